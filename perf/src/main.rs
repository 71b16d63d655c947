//! The command: arguments in, a table or JSON out.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lamina_perf::allocator::Counting;
use lamina_perf::{budgets, compare, deletion, engine, nvmf, promises, vhost};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Benchmarks of Lamina
#[derive(Parser)]
#[command(
    name = "lamina-perf",
    version,
    about,
    after_help = "Examples:
  cargo run --release -p lamina-perf -- engine
  cargo run --release -p lamina-perf -- engine --rows depth --json
  cargo run --release -p lamina-perf -- vhost --peer qsd

Compare rows of one run only: an absolute figure from a shared machine means nothing."
)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The engine in this process, on RAM, one thread; also counts allocations
    Engine(engine::Options),
    /// Instructions of each step of the engine, held against perf/budgets.toml (needs valgrind)
    Budgets(budgets::Options),
    /// What deleting a snapshot of a large full disk costs, by what the snapshot alone holds
    Deletion(deletion::Options),
    /// Lamina beside SPDK and QEMU, in turns, with the same client
    Compare(compare::Options),
    /// What is promised without comparing with others: row, goal, measured, met or not
    Goals(promises::Options),
    /// A target in another process, over a vhost-user socket
    Vhost(vhost::Options),
    /// laminad in another process, over NVMe/TCP on the loopback, beside a TCP echo
    Nvmf(nvmf::Options),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().what {
        What::Engine(options) => engine::main(&options),
        What::Budgets(options) => budgets::main(&options),
        What::Compare(options) => compare::main(&options),
        What::Deletion(options) => deletion::main(&options),
        What::Goals(options) => promises::main(&options),
        What::Vhost(options) => vhost::main(&options),
        What::Nvmf(options) => nvmf::main(&options),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lamina-perf: {error:#}");
            ExitCode::FAILURE
        }
    }
}

//! Remote hosts' load over NVMe/TCP on the loopback, beside a TCP echo of the same sizes.
//!
//! ```text
//!   core 1: this process                        core 0: laminad, store in RAM
//!   load ─► initiators ─► sockets ─ loopback ─► group ─► engine ─► RAM
//!                                               core 0: a thread that answers with as many bytes
//!                         sockets ─ loopback ─► echo
//! ```
//!
//! The echo is the limit: the same bytes both ways, the same system calls on this side, and nothing
//! done with them on the other.

mod attack;
mod daemon;
mod echo;
mod load;
mod sink;

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::clock;
use crate::engine::{parse_seconds, parse_size};
use daemon::Daemon;
pub(crate) use daemon::{Queue, controller};
use echo::Echo;
pub(crate) use load::{Case, Lane};
use load::{Measured, run};

/// Settings of the command.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Machine-readable output
    #[arg(long)]
    pub json: bool,

    /// The daemon's program [default: laminad beside this one]
    #[arg(long, value_name = "PATH")]
    pub daemon: Option<PathBuf>,

    /// Let laminad poll for ever instead of sleeping when idle; it takes half of the echo's core
    /// then
    #[arg(long)]
    pub busy_poll: bool,

    /// Measure one host beside hostile ones instead: fails if its p99 more than doubles
    #[arg(long)]
    pub attack: bool,

    /// Only take connections and do nothing with them, for --attack
    #[arg(long, hide = true)]
    pub sink: bool,

    /// Seconds of each timed run
    #[arg(long, value_name = "S", default_value_t = 1.0, value_parser = parse_seconds)]
    pub seconds: f64,

    /// Bytes of the disk, a multiple of 128 KiB
    #[arg(long, value_name = "BYTES", default_value_t = 256 << 20, value_parser = parse_size)]
    pub size: u64,

    /// Rounds; every case runs once in each, and the best counts
    #[arg(long, value_name = "N", default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,

    /// Core of the target
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub target_core: usize,

    /// Core of the client
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub client_core: usize,
}

/// What is measured.
const CASES: [Case; 12] = {
    const fn case(name: &'static str, write: bool, bytes: usize, depth: u16, queues: u16) -> Case {
        Case { name, write, bytes, depth, queues }
    }
    [
        case("4k randread qd1", false, 4096, 1, 1),
        case("4k randwrite qd1", true, 4096, 1, 1),
        case("4k randread qd64", false, 4096, 64, 1),
        case("4k randwrite qd64", true, 4096, 64, 1),
        case("4k randread qd1 x4", false, 4096, 1, 4),
        case("4k randwrite qd1 x4", true, 4096, 1, 4),
        case("4k randread qd64 x4", false, 4096, 64, 4),
        case("4k randwrite qd64 x4", true, 4096, 64, 4),
        case("128k seqread qd16", false, 128 << 10, 16, 1),
        case("128k seqwrite qd16", true, 128 << 10, 16, 1),
        case("128k seqread qd16 x4", false, 128 << 10, 16, 4),
        case("128k seqwrite qd16 x4", true, 128 << 10, 16, 4),
    ]
};

/// The better of two runs.
fn better(best: Option<Measured>, new: Measured) -> Measured {
    match best {
        Some(best) if best.per_second >= new.per_second => best,
        _ => new,
    }
}

/// Runs the command. True unless `--attack` finds that a host can harm another: nothing else here
/// must hold on any machine.
///
/// # Errors
/// It could not be measured.
pub fn main(options: &Options) -> Result<bool> {
    if options.sink {
        return sink::main();
    }
    if options.attack {
        return attack::main(options);
    }
    let mut daemon = Daemon::start(options)?;
    let echo = Echo::start(options.target_core)?;
    if let Err(error) = clock::pin(options.client_core) {
        bail!("core {} cannot be had for the client: {error}", options.client_core);
    }
    let time_ns = (options.seconds * 1e9) as u64;
    let mut rows: Vec<(Case, Option<Measured>, Option<Measured>)> =
        CASES.iter().map(|case| (*case, None, None)).collect();
    for round in 0..options.runs {
        for (case, lamina, limit) in &mut rows {
            eprintln!("nvmf: round {}, {}", round + 1, case.name);
            let mut queues = daemon.queues(case)?;
            *lamina = Some(better(lamina.take(), run(&mut queues, case, options.size, time_ns)?));
            drop(queues);
            let mut streams = echo.streams(case)?;
            *limit = Some(better(limit.take(), run(&mut streams, case, options.size, time_ns)?));
        }
    }
    let rows: Vec<(Case, Measured, Measured)> =
        rows.into_iter().filter_map(|(case, a, b)| Some((case, a?, b?))).collect();
    match options.json {
        true => println!("{:#}", Value::Array(rows.iter().map(as_json).collect())),
        false => print(&rows, options),
    }
    Ok(true)
}

fn as_json((case, lamina, limit): &(Case, Measured, Measured)) -> Value {
    let one =
        |m: &Measured| json!({"per_second": m.per_second, "p50_ns": m.p50_ns, "p99_ns": m.p99_ns});
    json!({"case": case.name, "bytes": case.bytes, "lamina": one(lamina), "echo": one(limit)})
}

fn print(rows: &[(Case, Measured, Measured)], options: &Options) {
    println!(
        "NVMe/TCP on the loopback, store in RAM, target on core {}, client on core {}",
        options.target_core, options.client_core
    );
    println!(
        "{:<24}{:>12}{:>10}{:>10}{:>10}{:>14}{:>10}{:>8}",
        "case", "ops/s", "MiB/s", "p50 us", "p99 us", "echo ops/s", "p50 us", "share"
    );
    for (case, lamina, limit) in rows {
        let us = |ns: u64| ns as f64 / 1000.0;
        println!(
            "{:<24}{:>12.0}{:>10.0}{:>10.1}{:>10.1}{:>14.0}{:>10.1}{:>7.0}%",
            case.name,
            lamina.per_second,
            lamina.per_second * case.bytes as f64 / f64::from(1 << 20),
            us(lamina.p50_ns),
            us(lamina.p99_ns),
            limit.per_second,
            us(limit.p50_ns),
            100.0 * lamina.per_second / limit.per_second
        );
    }
}

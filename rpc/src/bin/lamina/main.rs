//! The `lamina` command: what a person or a script does with the daemon.
//!
//! ```text
//!  arguments ─► one module a noun (store, disk, snapshot, tree, export, ...)
//!                 │ typed calls, through Session (connection, spinner, hints)
//!                 ▼
//!               Answer { text for people, JSON for programs } ─► stdout
//!               Failure { what, what to do next, exit code }  ─► stderr
//! ```

mod answer;
mod changes;
mod check;
mod disk;
mod events;
mod export;
mod failure;
mod general;
mod human;
mod nvmf;
mod progress;
mod session;
mod size;
mod snapshot;
mod stats;
mod store;
mod stream;
mod table;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueHint};

use answer::Answer;
use failure::Failure;
use session::Session;

/// Manages thin virtual disks, their snapshots and their exports.
#[derive(Parser)]
#[command(name = "lamina", version, after_help = EXAMPLES, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true)]
struct Arguments {
    /// Print JSON instead of text (errors too, on stderr)
    #[arg(long, global = true)]
    json: bool,

    /// The daemon's socket, under a name that every command has
    ///
    /// `export attach --socket` names the guest's socket, so `--socket` cannot be global; it is
    /// added to the other commands by [`with_socket`].
    #[arg(long, global = true, hide = true, value_name = "PATH", env = "LAMINA_SOCKET",
          default_value = lamina_rpc::SOCKET_DEFAULT, value_hint = ValueHint::FilePath)]
    rpc_socket: PathBuf,

    /// How long one call may take, in seconds
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,

    #[command(subcommand)]
    command: Command,
}

/// Id of the argument that [`with_socket`] adds.
const DAEMON_SOCKET: &str = "daemon_socket";

const EXAMPLES: &str = "\
A first session:
  lamina store create pool /srv/pool.lamina --size 100G
  lamina disk create golden --size 10G
  lamina export attach golden            (prints the options for QEMU)
  lamina snapshot create golden base
  lamina disk create vm1 --from golden@base
  lamina tree

Exit codes: 0 done, 1 the daemon refused, 2 wrong arguments, 3 the daemon cannot be reached;\n`lamina check`: 0 clean, 1 something was found, 2 it could not check.";

#[derive(Subcommand)]
enum Command {
    /// Stores: where disks live
    #[command(subcommand, visible_alias = "stores")]
    Store(store::Command),
    /// Disks
    #[command(subcommand, visible_alias = "disks")]
    Disk(disk::Command),
    /// Snapshots of disks, and clones of snapshots
    #[command(subcommand, visible_alias = "snapshots")]
    Snapshot(snapshot::Command),
    /// Draw disks, snapshots and clones with their descent
    Tree(tree::Arguments),
    /// Exports: disks on sockets, for virtual machines
    #[command(subcommand, visible_alias = "exports")]
    Export(export::Command),
    /// Subsystems: disks for remote hosts, over NVMe/TCP
    #[command(subcommand)]
    Nvmf(nvmf::Command),
    /// Counters of stores and reactors
    Stats(stats::Arguments),
    /// What has happened: stores filling up, failures
    Events(events::Arguments),
    /// Write a consistency point now, so that recovery has nothing to replay
    Checkpoint(general::CheckpointArguments),
    /// Check a store: every checksum, link and bitmap
    Check(check::Arguments),
    /// Call a method of the daemon by name
    Rpc(general::RpcArguments),
    /// Print the completions for a shell
    Completions(general::CompletionsArguments),
    /// Print the versions of this command and of the daemon
    #[command(after_help = "Example:\n  lamina version --json")]
    Version,
}

fn main() -> ExitCode {
    let matches = command_line().get_matches();
    let socket = socket_of(&matches);
    let mut arguments = match Arguments::from_arg_matches(&matches) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    if let Some(socket) = socket {
        arguments.rpc_socket = socket;
    }
    let json = arguments.json;
    match run(arguments).and_then(|answer| answer.print(json)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(json),
    }
}

fn run(arguments: Arguments) -> Result<Answer, Failure> {
    let timeout = Duration::from_secs(arguments.timeout);
    let mut session = Session::new(arguments.rpc_socket, timeout, arguments.json);
    match arguments.command {
        Command::Store(command) => store::run(&mut session, command),
        Command::Disk(command) => disk::run(&mut session, command),
        Command::Snapshot(command) => snapshot::run(&mut session, command),
        Command::Tree(arguments) => tree::run(&mut session, arguments),
        Command::Export(command) => export::run(&mut session, command),
        Command::Nvmf(command) => nvmf::run(&mut session, command),
        Command::Stats(arguments) => stats::run(&mut session, &arguments),
        Command::Events(arguments) => events::run(&mut session, &arguments),
        Command::Checkpoint(arguments) => general::checkpoint(&mut session, arguments),
        Command::Check(arguments) => check::run(&mut session, &arguments),
        Command::Rpc(arguments) => general::rpc(&mut session, arguments),
        Command::Completions(arguments) => general::completions(&arguments),
        Command::Version => general::version(&mut session),
    }
}

/// The arguments, as clap knows them.
fn command_line() -> clap::Command {
    with_socket(Arguments::command())
}

/// The command with `--socket` at every level where it does not mean something else.
fn with_socket(command: clap::Command) -> clap::Command {
    let taken = command.get_arguments().any(|known| known.get_long() == Some("socket"));
    let command = match taken {
        true => command,
        false => command.arg(
            clap::Arg::new(DAEMON_SOCKET)
                .long("socket")
                .value_name("PATH")
                .value_parser(clap::value_parser!(PathBuf))
                .value_hint(ValueHint::FilePath)
                .help(format!(
                    "The daemon's socket [env: LAMINA_SOCKET] [default: {}]",
                    lamina_rpc::SOCKET_DEFAULT
                )),
        ),
    };
    command.mut_subcommands(with_socket)
}

/// What `--socket` says of the daemon, at the level nearest to the command.
fn socket_of(matches: &clap::ArgMatches) -> Option<PathBuf> {
    let nearer = matches.subcommand().and_then(|(_, matches)| socket_of(matches));
    // An error where the argument does not exist at this level.
    nearer.or_else(|| matches.try_get_one::<PathBuf>(DAEMON_SOCKET).ok().flatten().cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        command_line().debug_assert();
    }

    #[test]
    fn every_command_has_help_with_an_example() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} has no help");
            if command.has_subcommands() {
                for inner in command.get_subcommands() {
                    check(inner, &path);
                }
            } else {
                let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(after.contains("lamina "), "{path} has no example");
            }
        }
        check(&command_line(), "");
    }
}

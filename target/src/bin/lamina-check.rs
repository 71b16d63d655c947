//! lamina-check: checks, and repairs, a store that no daemon has open. `lamina check PATH` becomes
//! this program; it is to a store what fsck is to a file system.
//!
//! A program of its own, since the command line depends on nothing of ours, and since a check is
//! wanted most where no daemon can open the store. It takes the lock that a daemon takes, so an
//! open store is refused: that one is checked by its name, by the daemon. Rejected: a subcommand of
//! laminad (its arguments are a daemon's), an RPC with a path (needs a daemon).

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use lamina_bdev::check::{CheckOptions, CheckProgress, RepairOptions, check, repair};
use lamina_bdev::{Error, ErrorKind};
use lamina_rpc::methods::CheckReport;
use lamina_target::base::BaseFile;
use lamina_target::check::{CheckedFile, report};

/// Something was found.
const EXIT_FOUND: u8 = 1;
/// It could not check.
const EXIT_UNCHECKED: u8 = 2;

/// Checks every checksum, link and bitmap of a store that is not open.
#[derive(Parser)]
#[command(name = "lamina-check", version)]
#[command(after_help = "Exit codes: 0 clean, 1 something was found, 2 it could not check.")]
struct Arguments {
    /// The file or block device
    path: PathBuf,
    /// Repair what can be repaired without loss
    #[arg(long)]
    repair: bool,
    /// With --repair: give up disks and parts of disks that cannot be read, and free the rest of
    /// what they held
    #[arg(long, requires = "repair")]
    cut_off: bool,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    lamina_target::log::set_level(lamina_target::log::Level::Error);
    match run(&arguments) {
        Ok(report) => {
            let text = if arguments.json {
                serde_json::to_string_pretty(&report).unwrap_or_default() + "\n"
            } else {
                report.text()
            };
            // Whoever closed the pipe still gets the exit code.
            let _ = std::io::stdout().write_all(text.as_bytes());
            if report.clean { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FOUND) }
        }
        Err(error) => {
            eprintln!("error: {error}");
            if error.kind == ErrorKind::Busy {
                eprintln!("hint: an open store is checked by its name: lamina check NAME");
            }
            ExitCode::from(EXIT_UNCHECKED)
        }
    }
}

fn run(arguments: &Arguments) -> Result<CheckReport, Error> {
    let path = arguments.path.as_path();
    let file = BaseFile::open(path)?;
    let bar = bar();
    let mut show = |at: CheckProgress| {
        bar.set_length(at.total);
        bar.set_position(at.done);
        let (shard, shards) = (at.shard + 1, at.shards);
        bar.set_message(format!("shard {shard} of {shards}: {}", at.phase.text()));
        true
    };
    let (device, bytes) = (&mut CheckedFile(&file), file.size());
    let found = if arguments.repair {
        let options = RepairOptions { cut_off: arguments.cut_off };
        repair(device, bytes, options, &mut show)
    } else {
        let found = check(device, bytes, CheckOptions::default(), &mut show);
        found.map(|found| (found, Vec::new()))
    };
    bar.finish_and_clear();
    let (found, repairs) = found?;
    Ok(report(&name_of(path), false, &found, repairs))
}

fn name_of(path: &Path) -> String {
    path.display().to_string()
}

fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    // A fixed template: it is right or it is not, and the default does as well.
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {percent}% {elapsed}") {
        bar.set_style(style);
    }
    bar
}

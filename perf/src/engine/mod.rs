//! The engine in this process: one thread, RAM below, the same loop as a reactor's.

mod allocations;
pub(crate) mod rig;

use anyhow::Result;

use crate::clock;
use crate::goals::judge;
use crate::report::Report;
use crate::rows::{Plan, Row, measure};
use rig::Rig;

/// Settings of the command.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Machine-readable output
    #[arg(long)]
    pub json: bool,

    /// Seconds of each timed run
    #[arg(long, value_name = "S", default_value_t = 0.3, value_parser = parse_seconds)]
    pub seconds: f64,

    /// Bytes of each disk, a multiple of 128 KiB
    #[arg(long, value_name = "BYTES", default_value_t = 256 << 20, value_parser = parse_size)]
    pub size: u64,

    /// Rounds; every row runs once in each
    #[arg(long, value_name = "N", default_value_t = 7,
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,

    /// Only rows whose name contains this (may be repeated)
    #[arg(long, value_name = "TEXT")]
    pub rows: Vec<String>,

    /// Core to run on
    #[arg(long, value_name = "N")]
    pub core: Option<usize>,

    /// Leave the requests' data where it is: the engine's own time, without the memory's
    #[arg(long)]
    pub no_copy: bool,

    /// Do not count allocations
    #[arg(long)]
    pub no_allocations: bool,
}

/// Reads a number of seconds.
///
/// # Errors
/// A sentence for the person who wrote it.
pub fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (0.01..=60.0).contains(&seconds) { Ok(seconds) } else { Err("0.01 to 60 seconds".into()) }
}

/// Reads the size of a disk.
///
/// # Errors
/// A sentence for the person who wrote it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bytes: u64 = text.parse().map_err(|_| format!("{text:?} is not a number of bytes"))?;
    let lawful = bytes.is_multiple_of(128 << 10) && (16 << 20..=64 << 30).contains(&bytes);
    if lawful { Ok(bytes) } else { Err("a multiple of 131072 from 16 MiB to 64 GiB".into()) }
}

/// The rows whose names contain one of `wanted`, all of them if that is empty.
pub fn chosen_rows(wanted: &[String]) -> Vec<Row> {
    let mut rows = Row::all();
    if !wanted.is_empty() {
        rows.retain(|row| wanted.iter().any(|text| row.name().contains(text.as_str())));
    }
    rows
}

/// Runs the command. False: a promise that must hold on any machine does not.
///
/// # Errors
/// It could not be measured.
pub fn main(options: &Options) -> Result<bool> {
    if let Some(core) = options.core {
        clock::pin(core)?;
    }
    let mut plan = Plan {
        rows: chosen_rows(&options.rows),
        rounds: options.runs as usize,
        time_ns: (options.seconds * 1e9) as u64,
        disk_bytes: options.size,
    };
    let store_bytes = plan.store_bytes();
    let mut rig = Rig::new(store_bytes)?;
    let mut notes = Vec::new();
    let mut good = true;
    if !options.no_allocations {
        // First: a store that is new is where there is most to be allocated.
        eprintln!("engine: counting allocations");
        let seen = allocations::count(&mut rig, options.size)?;
        notes = seen.notes();
        good = seen.good();
    }
    if options.no_copy {
        rig.leave_data();
        // So much faster that the store would be full before the end.
        plan.time_ns /= 4;
    }
    let outcomes = measure(&mut rig, &plan, |what| eprintln!("engine: {what}"))?;
    let report = Report {
        title: "Lamina engine in process, on RAM, one thread".into(),
        facts: vec![
            ("disk", format!("{} MiB", options.size >> 20)),
            ("store", format!("{} MiB", store_bytes >> 20)),
            ("rounds", format!("{}, {} s a timed run", options.runs, options.seconds)),
            ("data", if options.no_copy { "not moved" } else { "copied" }.into()),
            ("compared by", "CPU time of the thread, pair by pair".into()),
        ],
        goals: judge(&outcomes),
        outcomes,
        notes,
    };
    report.print(options.json);
    if !good {
        eprintln!("lamina-perf: the data path allocates after warm-up: see the table");
    }
    Ok(good)
}

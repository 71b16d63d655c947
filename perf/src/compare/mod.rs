//! Lamina beside SPDK and QEMU: the same client, the same cores, the same disk, in turns.
//!
//! ```text
//!   core 0 (targets take turns)             core 1 (their clients take turns too)
//!   laminad      stands still  runs  ...    bdevperf, spdk_nvme_perf or this process
//!   spdk_tgt     runs  stands still  ...
//!        A    B    A    B    A    B         figures of one round are held against each other
//! ```
//!
//! Each target serves one disk, every block of which has been written. Those whose turn it is not
//! are stopped with a signal, so that nobody's polling takes time from another. Next to requests a
//! second stands the CPU time of the target's reactor for each, which leaves out what other tenants
//! of the machine took.

mod figure;
mod fresh;
mod lane;
pub(crate) mod machine;
pub(crate) mod page;
mod plot;
mod report;
mod rows;
mod spdk;
mod target;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::engine::parse_size;
use lane::Lane;
use report::{Measured, Report};
use rows::{Case, Client, GROUPS, Group, Peer};
use spdk::Build;

/// Settings of the command.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Machine-readable output
    #[arg(long)]
    pub json: bool,

    /// laminad's program [default: the one beside this one]
    #[arg(long, value_name = "PATH")]
    pub daemon: Option<PathBuf>,

    /// Whole seconds of each run
    #[arg(long, value_name = "S", default_value_t = 2,
        value_parser = clap::value_parser!(u32).range(1..=60))]
    pub seconds: u32,

    /// Rounds; every row runs once in each
    #[arg(long, value_name = "N", default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,

    /// Only rows whose name contains this, or this group: vhost, vhost-null, vhost-depth,
    /// vhost-file, qemu, qemu-file, nvme, snapshot (may be repeated)
    #[arg(long, value_name = "TEXT")]
    pub rows: Vec<String>,

    /// Bytes of each disk, a multiple of 128 KiB
    #[arg(long, value_name = "BYTES", default_value_t = 192 << 20, value_parser = parse_size)]
    pub size: u64,

    /// Folder for files that serve as a base [default: the one for temporary files]
    #[arg(long, value_name = "DIR")]
    pub files: Option<PathBuf>,

    /// Keep the result in this file; rows that are not measured now stay as they are there
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,

    /// Measure nothing: show what the file of --save has
    #[arg(long, requires = "save")]
    pub show: bool,

    /// Write tables and plots into this folder's performance.md
    #[arg(long, value_name = "DIR")]
    pub docs: Option<PathBuf>,

    /// Core of the target
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub target_core: usize,

    /// Core of the client
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub client_core: usize,
}

impl Options {
    /// Where files that serve as a base go.
    fn folder(&self) -> PathBuf {
        self.files.clone().unwrap_or_else(std::env::temp_dir)
    }
}

/// Runs the command. True if everything could be measured: what is met and what is not stands in
/// the report.
///
/// # Errors
/// It could not be measured.
pub fn main(options: &Options) -> Result<bool> {
    let mut report = match &options.save {
        Some(file) if file.exists() => Report::load(file)?,
        _ => Report::default(),
    };
    let whole = options.show || measure(options, &mut report)?;
    if let Some(folder) = &options.docs {
        page::write(folder, &report)?;
    }
    if options.json {
        println!("{:#}", report.json());
    } else {
        print!("{}", report.text());
    }
    Ok(whole)
}

/// Measures group by group. False: one could not be measured; the others stand.
fn measure(options: &Options, report: &mut Report) -> Result<bool> {
    let mut whole = true;
    report.machine = machine::describe();
    let spdk = Build::find();
    if let Err(why) = &spdk {
        eprintln!("compare: without SPDK: {why}");
    }
    let qemu = has_qemu();
    if !qemu {
        eprintln!("compare: without QEMU: there is no qemu-storage-daemon (qemu-system-common)");
    }
    for group in GROUPS {
        let cases: Vec<Case> =
            group.cases.iter().copied().filter(|c| wanted(options, &group, c)).collect();
        let needs_spdk = matches!(group.client, Client::BdevPerf | Client::NvmePerf);
        let there = |peer: &Peer| {
            (spdk.is_ok() || !peer.is_spdk() && !needs_spdk) && (qemu || !peer.is_qemu())
        };
        let peers: Vec<Peer> = group.peers.iter().copied().filter(there).collect();
        if cases.is_empty() || peers.is_empty() {
            continue;
        }
        match measure_group(options, &group, &peers, &cases, spdk.as_ref().ok()) {
            Ok(rows) => report.take(rows, options.rounds, options.seconds),
            Err(error) => {
                eprintln!("compare: {} is not measured: {error:#}", group.title);
                whole = false;
            }
        }
        if let Some(file) = &options.save {
            report.keep(file)?;
        }
    }
    Ok(whole)
}

fn wanted(options: &Options, group: &Group, case: &Case) -> bool {
    let name = report::row_name(group, *case);
    let is_key = |text: &str| GROUPS.iter().any(|group| group.key == text);
    let named = |text: &String| match is_key(text) {
        true => group.key == text,
        false => name.contains(text.as_str()),
    };
    options.rows.is_empty() || options.rows.iter().any(named)
}

fn measure_group(
    options: &Options,
    group: &Group,
    peers: &[Peer],
    cases: &[Case],
    spdk: Option<&Build>,
) -> Result<Vec<Measured>> {
    let mut lanes = Vec::new();
    let mut options = options.clone();
    if group.client == Client::Initiator {
        options.size = fresh::DISK_BYTES;
    }
    for &peer in peers {
        eprintln!("compare: {}: preparing {}", group.title, peer.name());
        lanes.push(
            Lane::open(peer, group.client, &options, spdk)
                .with_context(|| format!("preparing {}", peer.name()))?,
        );
    }
    let mut rows: Vec<Measured> =
        cases.iter().map(|&case| Measured::new(group, case, peers)).collect();
    for round in 1..=options.rounds {
        for (row, case) in rows.iter_mut().zip(cases) {
            eprintln!("compare: round {round}, {}", row.row);
            for (lane, into) in lanes.iter_mut().zip(&mut row.peers) {
                into.figures.push(lane.run(case, options.seconds)?);
            }
        }
    }
    Ok(rows)
}

fn has_qemu() -> bool {
    let mut ask = Command::new("qemu-storage-daemon");
    ask.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    ask.status().is_ok_and(|status| status.success())
}

//! A target in another process, over a vhost-user socket, with an independent client.
//!
//! ```text
//!   core 1: this process                       core 0: laminad or qemu-storage-daemon
//!   load ─► virtio-driver ─► ring in shared memory ◄─► reactor ─► engine ─► RAM
//!   a thread of its own ── JSON-RPC: snapshots ──────► control
//! ```

pub(crate) mod client;
pub(crate) mod folder;
mod laminad;
pub(crate) mod process;
pub(crate) mod qsd;
pub(crate) mod rig;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::clock;
use crate::engine::{chosen_rows, parse_seconds, parse_size};
use crate::goals::judge;
use crate::report::Report;
use crate::rows::{Plan, measure};
use laminad::Laminad;
use qsd::{Format, Qsd};
use rig::{Peer, Rig};

/// Who is measured.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerName {
    /// laminad with a store in RAM
    Lamina,
    /// qemu-storage-daemon, raw and qcow2 files in RAM
    Qsd,
}

/// Settings of the command.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Machine-readable output: a list with one report for each target
    #[arg(long)]
    pub json: bool,

    /// Who is measured
    #[arg(long, value_enum, default_value = "lamina")]
    pub peer: PeerName,

    /// The daemon's program [default: laminad beside this one, or qemu-storage-daemon]
    #[arg(long, value_name = "PATH")]
    pub daemon: Option<PathBuf>,

    /// Let laminad poll for ever instead of sleeping when idle
    #[arg(long)]
    pub busy_poll: bool,

    /// Seconds of each timed run
    #[arg(long, value_name = "S", default_value_t = 0.3, value_parser = parse_seconds)]
    pub seconds: f64,

    /// Bytes of each disk, a multiple of 128 KiB
    #[arg(long, value_name = "BYTES", default_value_t = 256 << 20, value_parser = parse_size)]
    pub size: u64,

    /// Rounds; every row runs once in each
    #[arg(long, value_name = "N", default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,

    /// Only rows whose name contains this (may be repeated)
    #[arg(long, value_name = "TEXT")]
    pub rows: Vec<String>,

    /// Core of the target
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub target_core: usize,

    /// Core of the client
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub client_core: usize,
}

/// Runs the command. Always true: what must hold on any machine is the engine's to show.
///
/// # Errors
/// It could not be measured.
pub fn main(options: &Options) -> Result<bool> {
    let plan = Plan {
        rows: chosen_rows(&options.rows),
        rounds: options.runs as usize,
        time_ns: (options.seconds * 1e9) as u64,
        disk_bytes: options.size,
    };
    let mut peers: Vec<Box<dyn Peer>> = match options.peer {
        PeerName::Lamina => vec![Box::new(Laminad::start(options, plan.store_bytes())?)],
        PeerName::Qsd => {
            vec![
                Box::new(Qsd::in_ram(options, Format::Raw)?),
                Box::new(Qsd::in_ram(options, Format::Qcow2)?),
            ]
        }
    };
    let mut reports = Vec::new();
    for peer in peers.drain(..) {
        reports.push(report(peer, &plan, options)?);
    }
    if options.json {
        let all: Vec<_> = reports.iter().map(Report::json).collect();
        println!("{:#}", serde_json::Value::Array(all));
    } else {
        reports.iter().for_each(|report| report.print(false));
    }
    Ok(true)
}

fn report(peer: Box<dyn Peer>, plan: &Plan, options: &Options) -> Result<Report> {
    let title = format!("{} over vhost-user-blk, one queue, split ring", peer.name());
    let mut rig = Rig::new(peer)?;
    if let Err(error) = clock::pin(options.client_core) {
        bail!("core {} cannot be had for the client: {error}", options.client_core);
    }
    let outcomes = measure(&mut rig, plan, |what| eprintln!("vhost: {what}"))?;
    Ok(Report {
        title,
        facts: vec![
            ("disk", format!("{} MiB", options.size >> 20)),
            ("cores", format!("target {}, client {}", options.target_core, options.client_core)),
            ("rounds", format!("{}, {} s a timed run", options.runs, options.seconds)),
            ("compared by", "CPU time of the target's process, pair by pair".into()),
        ],
        goals: judge(&outcomes),
        outcomes,
        notes: Vec::new(),
    })
}

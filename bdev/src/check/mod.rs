//! `lamina check`: Parallax's mark and sweep over a whole store, on its own road past the engine.
//!
//! ```text
//!  label ─► superblocks ─► catalogue ─► records ─► snapshot logs          (system)
//!       ─► mark: every tree of every version, each node once              (tree)
//!       ─► mark again what several leaves hold: at one place only?        (shared)
//!       ─► journal: what waits for replay                                 (journal)
//!       ─► sweep: bitmaps against marks                                   (space)
//!       ─► repair, if asked: new bitmaps, a new consistency point         (repair)
//! ```
//!
//! Every block of a region is exactly one of: free, system area, journal, an extent's bitmap, a
//! snapshot-log pair, a map node, data. Blocks may be held more than once only at the same place
//! of trees that descend from each other. A check proves this, the checksum and the identity of
//! every metadata block, and the bitmaps.
//!
//! Memory: two bits a block of the region (three while it is served), some 60 bytes a map node, and
//! a bounded table for shared data. It runs on a thread that may block, never on a reactor.
//!
//! # While the store is served
//!
//! Trees of a committed consistency point *G* are never overwritten; only the copies of pairs are,
//! in turn: *G*'s copy of a pair falls to point *G + 2* at the earliest, and a freed block can be
//! reused once the point that freed it has committed. So the host first gives the engine
//! [`crate::Command::Hold`]: from then on blocks that come free are remembered and not given out.
//! Then this reads the superblocks and, at once, all pairs; then the superblocks again. If no more
//! than one point has committed in between, every pair showed its copy of *G*, and everything below
//! is immutable until [`crate::Command::Unhold`]; if not, it starts over with the newer point. A
//! bitmap that changed too often is left out, and the report says so. The journal is not looked at:
//! it is being written.

mod blocks;
mod cuts;
mod descent;
mod journal;
mod lineage;
mod mend;
mod pairs;
mod rebuild;
mod repair;
mod report;
mod shared;
mod space;
mod system;
mod tree;

use crate::error::{Error, ErrorKind};
use crate::format::label::{LABEL_BYTES, StoreLabel, read_label};
use crate::types::BLOCK_SIZE;
use blocks::Reader;
pub use repair::{RepairOptions, WriteBlocks, repair};
pub use report::{Counts, Finding, FindingKind, Report, Severity};
use system::Shard;

/// Reads whole blocks of the device a store is on.
pub trait ReadBlocks {
    /// Fills `buf`, a whole number of 4 KiB blocks, from 4 KiB block `block` of the device on.
    ///
    /// # Errors
    /// `Io`: not all of it could be read.
    fn read(&mut self, block: u64, buf: &mut [u8]) -> Result<(), Error>;
}

/// What a check is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CheckPhase {
    /// Reading superblocks, catalogue, records and logs.
    System,
    /// Walking the trees.
    Trees,
    /// Comparing where shared blocks are held.
    Shared,
    /// Comparing bitmaps.
    Bitmaps,
}

impl CheckPhase {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            CheckPhase::System => "reading records",
            CheckPhase::Trees => "walking maps",
            CheckPhase::Shared => "comparing shared blocks",
            CheckPhase::Bitmaps => "comparing bitmaps",
        }
    }
}

/// How far a check is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckProgress {
    /// Which shard.
    pub shard: u32,
    /// Of how many.
    pub shards: u32,
    /// Doing what.
    pub phase: CheckPhase,
    /// Blocks (of 4 KiB) accounted for in this phase.
    pub done: u64,
    /// Of about how many.
    pub total: u64,
}

/// How to check.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CheckOptions {
    /// The store is being served, and held (see the module).
    pub online: bool,
}

/// Is told how far the check is; answers false to end it.
pub type OnProgress<'a> = &'a mut dyn FnMut(CheckProgress) -> bool;

/// Checks the store on a device of `device_bytes`.
///
/// # Errors
/// What kept it from checking at all: `Io`, `Corrupt` (no store there, no good label), `Version`,
/// `Invalid` (the device is smaller than the store), `Busy` (ended by `progress`).
pub fn check(
    device: &mut dyn ReadBlocks,
    device_bytes: u64,
    options: CheckOptions,
    progress: OnProgress<'_>,
) -> Result<Report, Error> {
    let mut report = Report::default();
    let label = check_label(device, device_bytes, &mut report)?;
    for shard in 0..label.shards {
        check_shard(device, &label, shard, options, &mut report, progress)?;
    }
    Ok(report)
}

fn check_label(
    device: &mut dyn ReadBlocks,
    device_bytes: u64,
    report: &mut Report,
) -> Result<StoreLabel, Error> {
    if device_bytes < LABEL_BYTES as u64 {
        let text = format!("the device has only {device_bytes} bytes: no Lamina store is on it");
        return Err(Error::new(ErrorKind::Corrupt, text));
    }
    let blocks = LABEL_BYTES / BLOCK_SIZE;
    let bytes = Reader::new(device, 0, blocks as u64).pair(0)?.concat();
    let label = read_label(&bytes, device_bytes)?;
    for copy in 0..2 {
        let mut alone = bytes.clone();
        alone[(1 - copy) * BLOCK_SIZE..(2 - copy) * BLOCK_SIZE].fill(0);
        let damage = match read_label(&alone, device_bytes) {
            Ok(found) if found == label => continue,
            Ok(_) => "says something else than the other copy".to_string(),
            Err(_) => "its checksum or its content is wrong".to_string(),
        };
        report.add(Finding {
            severity: Severity::Warning,
            kind: FindingKind::Label,
            shard: 0,
            disk: None,
            snapshot: None,
            block: Some(copy as u64),
            text: format!("the label in block {copy} of the device is damaged: {damage}"),
        });
    }
    Ok(label)
}

fn check_shard(
    device: &mut dyn ReadBlocks,
    label: &StoreLabel,
    number: u32,
    options: CheckOptions,
    report: &mut Report,
    progress: OnProgress<'_>,
) -> Result<(), Error> {
    let reader = region_reader(device, label, number);
    report.counts.shards += 1;
    let mut on_progress = told(label, number, progress);
    let shard = Shard::open(reader, label, number, options, report, &mut on_progress)?;
    let Some(mut shard) = shard else { return Ok(()) };
    shard.mark_trees()?;
    shard.check_shared()?;
    if !options.online {
        shard.check_journal()?;
    }
    shard.sweep()
}

/// First block of a shard's region on the device.
fn first_block(label: &StoreLabel, number: u32) -> u64 {
    let block = BLOCK_SIZE as u64;
    label.first_region / block + u64::from(number) * (label.region_bytes / block)
}

fn region_reader<'a>(
    device: &'a mut dyn ReadBlocks,
    label: &StoreLabel,
    number: u32,
) -> Reader<'a> {
    let blocks = label.region_bytes / BLOCK_SIZE as u64;
    Reader::new(device, first_block(label, number), blocks)
}

fn told(
    label: &StoreLabel,
    shard: u32,
    progress: OnProgress<'_>,
) -> impl FnMut(CheckPhase, u64, u64) -> bool {
    let shards = label.shards;
    move |phase, done, total| progress(CheckProgress { shard, shards, phase, done, total })
}

//! `--repair`: new consistency points, until nothing is left to be done.
//!
//! ```text
//!  check ─┬─ (cut-off) nodes that cannot be used are written over, where they are ─► check again
//!         └─ names, counts, descent (mend, descent); links cut (cuts): new nodes, new logs
//!            bitmaps, catalogue (rebuild), records: the copy that does not count ─► flush
//!            superblock: the older copy ─► flush = commit ─► the other copy ─► flush
//!            something was cut ─► check again: what it alone held comes free
//! ```
//!
//! As in the engine's consistency points, nothing that counts is overwritten before the commit, so
//! a power cut in between leaves the store as it was. A node is written over only if it cannot be
//! used anyway and nothing else holds its block. The journal stays: the next open replays it.
//!
//! While something cannot be read, what it held is not known to be free. So leaks are freed, and
//! bitmaps built anew, only if all can be read, or if what cannot be is given up (cut off).

use super::report::Report;
use super::system::{Picked, Shard, Slot};
use super::{CheckOptions, OnProgress, ReadBlocks, check, check_label, region_reader, told};
use crate::error::{Error, ErrorKind};
use crate::format::disk_record::{self, DiskRecord};
use crate::format::label::{StoreLabel, write_labels};
use crate::format::pairs::Sums;
use crate::format::snapshot_log::{self, ENTRIES, LogEntry, Place};
use crate::format::superblock::Superblock;
use crate::format::{Block, Header, Kind, seal};
use crate::types::BLOCK_SIZE;
use std::collections::BTreeMap;

/// Rounds: each may bring one more level to light.
const ROUNDS_MAX: usize = 32;

/// Reads and writes whole blocks of the device a store is on.
pub trait WriteBlocks: ReadBlocks {
    /// Writes `bytes`, a whole number of 4 KiB blocks, from 4 KiB block `block` on.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    fn write(&mut self, block: u64, bytes: &[u8]) -> Result<(), Error>;

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// `Io`.
    fn flush(&mut self) -> Result<(), Error>;
}

/// How to repair.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RepairOptions {
    /// Give up what cannot be read, and free the rest of what it held.
    pub cut_off: bool,
}

/// Sentences kept of what was done.
const DONE_MAX: usize = 1000;

/// Writes of one round, by block of the region, and what they do.
#[derive(Default)]
pub(super) struct Plan {
    pub writes: Vec<(u64, Box<Block>)>,
    done: Vec<String>,
    /// Blocks in use that a bitmap had as free.
    pub entered: u64,
    /// Records to be written anew, by slot.
    pub records: BTreeMap<u32, DiskRecord>,
    /// Snapshot logs to be written anew, by disk.
    pub logs: BTreeMap<u32, Vec<LogEntry>>,
    /// Once this is done there may be more to do, and space to be freed.
    pub again: bool,
}

impl Plan {
    /// What is done, for people.
    pub fn say(&mut self, text: String) {
        self.done.push(text);
    }

    /// The record of a disk, to be changed.
    pub fn record(&mut self, shard: &Shard<'_>, slot: u32) -> &mut DiskRecord {
        let now = || shard.disk(slot).map_or_else(DiskRecord::free, |disk| disk.record.clone());
        self.records.entry(slot).or_insert_with(now)
    }

    /// The snapshots of a disk, to be changed.
    pub fn log(&mut self, shard: &Shard<'_>, slot: u32) -> &mut Vec<LogEntry> {
        let now = || shard.disk(slot).map(|disk| disk.snaps.clone()).unwrap_or_default();
        self.logs.entry(slot).or_insert_with(now)
    }
}

/// Repairs the store on a device of `device_bytes`, which nobody else may have open; answers what a
/// check says afterwards, and what was done.
///
/// # Errors
/// As [`check`]; what writing failed with; `NoSpace`: no block is free for what must be written.
pub fn repair(
    device: &mut dyn WriteBlocks,
    device_bytes: u64,
    options: RepairOptions,
    progress: OnProgress<'_>,
) -> Result<(Report, Vec<String>), Error> {
    let mut done = Vec::new();
    let mut report = Report::default();
    let label = check_label(device, device_bytes, &mut report)?;
    if !report.findings.is_empty() {
        device.write(0, &write_labels(&label))?;
        device.flush()?;
        done.push("both labels were written anew".to_string());
    }
    for number in 0..label.shards {
        repair_shard(device, &label, number, options, &mut done, progress)?;
    }
    if done.len() > DONE_MAX {
        let more = done.len() - DONE_MAX;
        done.truncate(DONE_MAX);
        done.push(format!("... and {more} more"));
    }
    let report = check(device, device_bytes, CheckOptions::default(), progress)?;
    Ok((report, done))
}

fn repair_shard(
    device: &mut dyn WriteBlocks,
    label: &StoreLabel,
    number: u32,
    options: RepairOptions,
    done: &mut Vec<String>,
    progress: OnProgress<'_>,
) -> Result<(), Error> {
    for _ in 0..ROUNDS_MAX {
        if !repair_round(device, label, number, options, done, progress)? {
            return Ok(());
        }
    }
    let text = format!("shard {number}: damage came to light {ROUNDS_MAX} times over: run again");
    Err(Error::new(ErrorKind::Corrupt, text))
}

/// One consistency point. True: there may be more to do.
fn repair_round(
    device: &mut dyn WriteBlocks,
    label: &StoreLabel,
    number: u32,
    options: RepairOptions,
    done: &mut Vec<String>,
    progress: OnProgress<'_>,
) -> Result<bool, Error> {
    let first = super::first_block(label, number);
    let mut report = Report::default();
    let reader = region_reader(device, label, number);
    let mut on_progress = told(label, number, progress);
    let plain = CheckOptions::default();
    let opened = Shard::open(reader, label, number, plain, &mut report, &mut on_progress)?;
    let Some(mut shard) = opened else { return Ok(false) };
    shard.mark_trees()?;
    shard.check_shared()?;
    shard.check_journal()?;
    if shard.pairs.later.is_some() && !options.cut_off {
        // Whatever is written would be on top of an older point.
        return Ok(false);
    }
    let mut plan = Plan::default();
    // Before anything of them is given up.
    let holes = options.cut_off && shard.note_holes(&mut plan);
    if options.cut_off && !holes && shard.write_over(&mut plan) {
        carry_out(device, first, plan, done)?;
        return Ok(true);
    }
    if options.cut_off {
        shard.plan_journal(&mut plan);
    }
    let unread = shard.broken.iter().any(|b| !shard.contested.contains(&b.address));
    let left = !shard.cuts.harmless() || !shard.contested.is_empty();
    shard.mend_records(options, &mut plan)?;
    shard.cut_links(options.cut_off, &mut plan)?;
    shard.plan_logs(&mut plan)?;
    shard.plan_records(&mut plan)?;
    // What is to be freed is known only once everything that is there can be read.
    shard.blind = plan.again || unread || left || shard.unknown_disks();
    shard.plan_space(&mut plan)?;
    let superblocks = shard.superblocks_differ()? || shard.pairs.later.is_some();
    if plan.writes.is_empty() && !superblocks {
        return Ok(false);
    }
    if superblocks {
        plan.say("both superblocks were written anew".to_string());
    }
    shard.plan_stale(&mut plan)?;
    let (superblock, newest) = shard.next_superblock(&plan)?;
    let again = plan.again;
    carry_out(device, first, plan, done)?;
    for copy in [1 - newest, newest] {
        let mut block = [0; BLOCK_SIZE];
        superblock.write(&mut block, label.uuid, number as u16, copy);
        device.write(first + copy, &block)?;
        device.flush()?;
    }
    Ok(again)
}

fn carry_out(
    device: &mut dyn WriteBlocks,
    first: u64,
    plan: Plan,
    done: &mut Vec<String>,
) -> Result<(), Error> {
    for (block, bytes) in &plan.writes {
        device.write(first + block, &bytes[..])?;
    }
    device.flush()?;
    done.extend(plan.done);
    Ok(())
}

impl Shard<'_> {
    /// True if what some disk holds is not known.
    fn unknown_disks(&self) -> bool {
        self.slots.iter().any(|slot| match slot {
            Slot::Free => false,
            Slot::Lost => true,
            Slot::Disk(disk) => !disk.log_read,
        })
    }

    /// The journal's next replay passes over what is lost.
    fn plan_journal(&mut self, plan: &mut Plan) {
        for (address, block, done) in self.fill_holes() {
            plan.writes.push((address, block));
            plan.say(done);
        }
    }

    /// Snapshot logs that change are written anew, at new places.
    fn plan_logs(&mut self, plan: &mut Plan) -> Result<(), Error> {
        let generation = self.superblock.generation + 1;
        let (store, shard) = (self.store, self.number as u16);
        for (disk, snaps) in std::mem::take(&mut plan.logs) {
            let (mut previous, mut sums) = (0, Sums::default());
            for (number, snaps) in snaps.chunks(ENTRIES).enumerate() {
                let pair = self.take_free(2)?;
                let mut entries = [None; ENTRIES];
                entries.iter_mut().zip(snaps).for_each(|(to, from)| *to = Some(*from));
                for address in [pair, pair + 1] {
                    let number = number as u64;
                    let place = Place { disk, number, address, previous, generation };
                    let mut block = Box::new([0; BLOCK_SIZE]);
                    snapshot_log::write(&mut block, &entries, &place, store, shard);
                    plan.writes.push((address, block));
                }
                sums.change(number, 0, generation);
                previous = pair;
            }
            let record = plan.record(self, disk);
            record.log_head = previous;
            record.log_sums = sums;
            record.log_blocks = snaps.len().div_ceil(ENTRIES) as u64;
        }
        Ok(())
    }

    /// Records that change: the copy that does not count. Never both before the commit: that would
    /// look like an older superblock.
    fn plan_records(&mut self, plan: &mut Plan) -> Result<(), Error> {
        let generation = self.superblock.generation + 1;
        let (store, shard) = (self.store, self.number as u16);
        for (slot, record) in std::mem::take(&mut plan.records) {
            let pair = self.geometry().records + 2 * u64::from(slot);
            let address = match self.pick(Kind::DiskRecord, pair)? {
                Picked::Copy(_, side, _) => pair + 1 - side.current as u64,
                Picked::Damaged(_) | Picked::Unreadable(_) => {
                    pair + self.next_side(Kind::DiskRecord, pair)
                }
            };
            let mut block = Box::new([0; BLOCK_SIZE]);
            disk_record::write(&mut block, &record, slot, store, shard, address, generation);
            plan.writes.push((address, block));
        }
        Ok(())
    }

    /// A copy left by a consistency point that never committed would count from the next one on:
    /// it is written over with the copy that does.
    fn plan_stale(&mut self, plan: &mut Plan) -> Result<(), Error> {
        let g = self.geometry();
        let mut pairs: Vec<(Kind, u64)> =
            (0..g.catalogue_pairs).map(|p| (Kind::Catalogue, g.catalogue + 2 * p)).collect();
        let used = self.superblock.records_used;
        pairs.extend((0..used).map(|slot| (Kind::DiskRecord, g.records + 2 * slot)));
        for slot in &self.slots {
            if let Slot::Disk(disk) = slot {
                pairs.extend(disk.log.iter().map(|&at| (Kind::SnapshotLog, at)));
            }
        }
        for (kind, at) in pairs {
            let planned = plan.writes.iter().any(|(block, _)| *block == at || *block == at + 1);
            let Picked::Copy(mut block, side, header) = self.pick(kind, at)? else { continue };
            if planned || !side.stale_other {
                continue;
            }
            let address = at + 1 - side.current as u64;
            // Of the same point: what the pair is committed as stays.
            seal(&mut block, &Header { address, ..header });
            plan.writes.push((address, block));
        }
        Ok(())
    }

    /// True if one of the superblocks is damaged, or not of the newest point.
    fn superblocks_differ(&mut self) -> Result<bool, Error> {
        let [a, b] = self.superblocks()?;
        Ok(a.is_err() || a.ok() != b.ok())
    }

    /// The superblock that commits, and which copy is the newest now.
    fn next_superblock(&mut self, plan: &Plan) -> Result<(Superblock, u64), Error> {
        let [a, b] = self.superblocks()?;
        let newest = match (a, b) {
            (Ok(a), Ok(b)) => u64::from(b.generation > a.generation),
            (Ok(_), Err(_)) => 0,
            (Err(_), _) => 1,
        };
        Ok((self.superblock_after(&plan.writes), newest))
    }
}

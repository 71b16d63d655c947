//! `--repair`: a new consistency point whose bitmaps are what the mark found.
//!
//! ```text
//!  (with cut-off) nodes that cannot be used are written over, where they are ─► check again
//!  bitmaps, catalogue, records: the copy that does not count ─► flush
//!  superblock: the older copy ─► flush = commit ─► the other copy ─► flush
//! ```
//!
//! As in the engine's consistency points, nothing that counts is overwritten before the commit, so
//! a power cut in between leaves the store as it was. A node is written over only if it cannot be
//! used anyway and nothing else holds its block. The journal stays: the next open replays it.
//!
//! While something cannot be read, what it held is not known to be free. So leaks are freed, and
//! bitmaps built anew, only if all can be read, or if what cannot be is given up (cut off).

use super::report::Report;
use super::space::Bitmap;
use super::system::{Picked, Shard, Slot};
use super::tree::Place;
use super::{CheckOptions, OnProgress, ReadBlocks, check, check_label, region_reader, told};
use crate::error::{Error, ErrorKind};
use crate::format::disk_record::{self, DiskRecord};
use crate::format::extent::{
    BITMAP_WORDS, CATALOGUE_ENTRIES, Entry, ExtentType, write_bitmap, write_catalogue,
};
use crate::format::label::{StoreLabel, write_labels};
use crate::format::node::{self, NodeInfo};
use crate::format::superblock::Superblock;
use crate::format::{Block, Header, Kind, seal, unseal};
use crate::limits::{EXTENT_HEAD_BLOCKS, LINKS};
use crate::types::BLOCK_SIZE;

/// Rounds of writing nodes over: each may bring one more level to light.
const ROUNDS_MAX: usize = 16;

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

/// A node that cannot be used, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Broken {
    pub address: u64,
    pub place: Place,
    pub slot: u32,
    pub birth: u64,
}

/// Writes of one round, by block of the region, and what they do.
#[derive(Default)]
struct Plan {
    writes: Vec<(u64, Box<Block>)>,
    done: Vec<String>,
    /// Blocks in use that a bitmap had as free.
    entered: u64,
}

/// Repairs the store on a device of `device_bytes`, which nobody else may have open; answers what a
/// check says afterwards, and what was done.
///
/// # Errors
/// As [`check`]; and what writing failed with.
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
    let first = super::first_block(label, number);
    for _ in 0..ROUNDS_MAX {
        let mut report = Report::default();
        let reader = region_reader(device, label, number);
        let mut on_progress = told(label, number, progress);
        let plain = CheckOptions::default();
        let opened = Shard::open(reader, label, number, plain, &mut report, &mut on_progress)?;
        let Some(mut shard) = opened else { return Ok(()) };
        shard.mark_trees()?;
        shard.check_shared()?;
        shard.check_journal()?;
        let mut plan = Plan::default();
        if options.cut_off && shard.write_over(&mut plan) {
            carry_out(device, first, plan, done)?;
            continue;
        }
        shard.plan_records(options, &mut plan)?;
        shard.plan_space(&mut plan)?;
        let superblocks = shard.superblocks_differ()?;
        if plan.writes.is_empty() && !superblocks {
            return Ok(());
        }
        if superblocks {
            plan.done.push("both superblocks were written anew".to_string());
        }
        shard.plan_stale(&mut plan)?;
        let (superblock, newest) = shard.next_superblock()?;
        carry_out(device, first, plan, done)?;
        for copy in [1 - newest, newest] {
            let mut block = [0; BLOCK_SIZE];
            superblock.write(&mut block, label.uuid, number as u16, copy);
            device.write(first + copy, &block)?;
            device.flush()?;
        }
        return Ok(());
    }
    let text = format!("shard {number}: damage came to light {ROUNDS_MAX} times over: run again");
    Err(Error::new(ErrorKind::Corrupt, text))
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
    /// Writes over nodes that cannot be used: what is good of their links stays, the rest is lost.
    /// False: there are none.
    fn write_over(&mut self, plan: &mut Plan) -> bool {
        let generation = self.superblock.generation;
        let geometry = self.geometry();
        for broken in std::mem::take(&mut self.broken) {
            let Broken { address, place, slot, birth } = broken;
            if self.contested.contains(&address) || !geometry.linkable(address) {
                continue;
            }
            let mut links = Box::new([node::LOST; LINKS]);
            let mut info = NodeInfo {
                level: place.level,
                owner: slot,
                index: place.index,
                generation,
                birth,
                shared_with: 0,
            };
            let mut kept = 0;
            if let Some((read, found)) = self.salvage(&broken) {
                (links, info) = (read, found);
                kept = links.iter().filter(|l| geometry.linkable(**l & node::ADDRESS)).count();
            }
            let mut block = Box::new([0; BLOCK_SIZE]);
            let (store, shard) = (self.store, self.number as u16);
            node::write(&mut block, &links, &info, store, shard, address);
            plan.writes.push((address, block));
            let disk = self.disk_name(slot);
            let from = place.first_block();
            plan.done.push(format!(
                "disk {disk}: the map node at block {address} (level {}, disk block {from} and up) was given up; {kept} of its links are kept",
                place.level
            ));
        }
        !plan.writes.is_empty()
    }

    /// The good links of a node whose only fault is that others lead astray.
    fn salvage(&mut self, broken: &Broken) -> Option<(Box<[u64; LINKS]>, NodeInfo)> {
        let (store, shard, geometry) = (self.store, self.number as u16, self.geometry());
        let block = self.reader.node(broken.address).ok()?;
        let mut links = Box::new([0; LINKS]);
        let info = node::read(block, &mut links, store, shard, broken.address).ok()?;
        let lawful = info.level == broken.place.level
            && info.index == broken.place.index
            && info.generation <= self.superblock.generation;
        for link in links.iter_mut() {
            let to = *link & node::ADDRESS;
            if to != 0 && !geometry.linkable(to) {
                *link = node::LOST;
            }
        }
        lawful.then_some((links, info))
    }

    /// Records: counts are mended; those that cannot be read are freed, if that was asked for.
    fn plan_records(&mut self, options: RepairOptions, plan: &mut Plan) -> Result<(), Error> {
        let mut left = false;
        for slot in 0..self.slots.len() as u32 {
            match &self.slots[slot as usize] {
                Slot::Free => {}
                Slot::Lost if options.cut_off => left |= !self.free_record(slot, plan),
                Slot::Lost => left = true,
                Slot::Disk(disk) if !disk.log_read => left = true,
                Slot::Disk(disk) => {
                    let mut record = disk.record.clone();
                    if let Some(mapped) = disk.counted.filter(|&c| c != record.mapped) {
                        record.mapped = mapped;
                        let name = record.name;
                        plan.done.push(format!("disk {name}: {mapped} mapped blocks counted"));
                        self.rewrite_record(slot, &record, plan)?;
                    }
                }
            }
        }
        let unread = self.broken.iter().any(|b| !self.contested.contains(&b.address));
        self.blind = left || unread || !self.contested.is_empty();
        Ok(())
    }

    /// False: clones of it must know where they come from.
    fn free_record(&mut self, slot: u32, plan: &mut Plan) -> bool {
        let clones = (0..self.slots.len() as u32)
            .filter_map(|s| self.disk(s)?.record.origin)
            .any(|(origin, _)| origin == slot);
        if clones {
            return false;
        }
        let pair = self.geometry().records + 2 * u64::from(slot);
        self.record_copies(slot, &DiskRecord::free(), &[pair, pair + 1], plan);
        plan.done.push(format!("record slot {slot}: the disk was given up, the slot is free"));
        true
    }

    fn rewrite_record(
        &mut self,
        slot: u32,
        record: &DiskRecord,
        plan: &mut Plan,
    ) -> Result<(), Error> {
        let pair = self.geometry().records + 2 * u64::from(slot);
        if let Picked::Copy(_, side, _) = self.pick(Kind::DiskRecord, pair)? {
            self.record_copies(slot, record, &[pair + 1 - side.current as u64], plan);
        }
        Ok(())
    }

    fn record_copies(&self, slot: u32, record: &DiskRecord, at: &[u64], plan: &mut Plan) {
        let generation = self.superblock.generation + 1;
        let (store, shard) = (self.store, self.number as u16);
        for &address in at {
            let mut block = Box::new([0; BLOCK_SIZE]);
            disk_record::write(&mut block, record, slot, store, shard, address, generation);
            plan.writes.push((address, block));
        }
    }

    /// Bitmaps and the catalogue as the mark has it.
    fn plan_space(&mut self, plan: &mut Plan) -> Result<(), Error> {
        let g = self.geometry();
        let (mut freed, mut rebuilt) = (0, 0u64);
        for pair in 0..g.catalogue_pairs {
            let first = pair * CATALOGUE_ENTRIES as u64;
            let end = (first + CATALOGUE_ENTRIES as u64).min(g.extent_count);
            let mut changed = false;
            let mut entries = Vec::new();
            for extent in first..end {
                let before = self.entries[extent as usize];
                let (entry, gained) = self.plan_extent(extent, before, plan)?;
                if gained.is_none() && entry.is_some() && entry != before {
                    rebuilt += 1;
                }
                freed += gained.unwrap_or(0);
                changed |= entry != before;
                entries.push(entry);
            }
            let entries: Option<Vec<Entry>> = entries.into_iter().collect();
            if let (true, Some(entries)) = (changed, entries) {
                self.plan_catalogue(pair, &entries, plan)?;
            }
        }
        if freed > 0 {
            plan.done.push(format!("{freed} leaked blocks were freed"));
        }
        if plan.entered > 0 {
            plan.done.push(format!("{} blocks in use were entered in bitmaps", plan.entered));
        }
        if rebuilt > 0 {
            plan.done.push(format!("the bitmaps of {rebuilt} extents were built anew"));
        }
        Ok(())
    }

    /// The entry an extent is to have (`None`: not known), and the blocks that came free; `None`
    /// for those of a bitmap that had to be built anew.
    fn plan_extent(
        &mut self,
        extent: u64,
        before: Option<Entry>,
        plan: &mut Plan,
    ) -> Result<(Option<Entry>, Option<u64>), Error> {
        let g = self.geometry();
        let start = g.extent_start(extent);
        let count = (g.extent_blocks / 64) as usize;
        let mut words = [0u64; BITMAP_WORDS];
        for (i, word) in words[..count].iter_mut().enumerate() {
            *word = self.used.word_at(start + i as u64 * 64);
        }
        words[0] |= (1 << EXTENT_HEAD_BLOCKS) - 1;
        let old = match before {
            Some(entry) => Some(self.bitmap(extent, &entry)?),
            None => None,
        };
        let mut gained = None;
        match &old {
            Some(Bitmap::Words(old)) => {
                if self.blind {
                    words.iter_mut().zip(old.iter()).for_each(|(new, old)| *new |= old);
                }
                if words[..] == old[..] {
                    return Ok((before, Some(0)));
                }
                let pairs = words.iter().zip(old.iter());
                plan.entered += pairs
                    .clone()
                    .map(|(new, old)| u64::from((new & !old).count_ones()))
                    .sum::<u64>();
                gained = Some(pairs.map(|(new, old)| u64::from((old & !new).count_ones())).sum());
            }
            _ if self.blind => return Ok((before, Some(0))),
            _ => {}
        }
        let used: u32 = words[..count].iter().map(|w| w.count_ones()).sum();
        let free = g.extent_blocks as u32 - used;
        if before.is_none() && u64::from(used) == EXTENT_HEAD_BLOCKS {
            return Ok((Some(Entry { kind: ExtentType::Free, free, bitmap: 0 }), None));
        }
        let generation = self.superblock.generation + 1;
        let (store, shard) = (self.store, self.number as u16);
        // The copy that counts, if one does, stays until the commit.
        let side = match before {
            Some(entry) => self.bitmap_side(start, entry.bitmap)?.map_or(0, |side| 1 - side),
            None => 0,
        };
        let mut block = Box::new([0; BLOCK_SIZE]);
        let (address, words) = (start + side, &words[..count]);
        write_bitmap(&mut block, store, shard, address, extent, generation, words);
        plan.writes.push((address, block));
        let kind = before.map_or(ExtentType::Data, |entry| entry.kind);
        Ok((Some(Entry { kind, free, bitmap: generation }), gained))
    }

    /// Which copy of a bitmap has this generation.
    fn bitmap_side(&mut self, start: u64, generation: u64) -> Result<Option<u64>, Error> {
        let Ok(both) = self.reader.pair(start) else { return Ok(None) };
        let (store, shard) = (self.store, self.number as u16);
        for (side, block) in (0..).zip(&both) {
            let open = unseal(block, Kind::Bitmap, store, shard, start + side);
            if open.is_ok_and(|h| h.generation == generation) {
                return Ok(Some(side));
            }
        }
        Ok(None)
    }

    fn plan_catalogue(
        &mut self,
        pair: u64,
        entries: &[Entry],
        plan: &mut Plan,
    ) -> Result<(), Error> {
        let at = self.geometry().catalogue + 2 * pair;
        let known = self.entries[pair as usize * CATALOGUE_ENTRIES].is_some();
        let sides = match self.pick(Kind::Catalogue, at)? {
            Picked::Copy(_, side, _) if known => vec![1 - side.current as u64],
            _ => vec![0, 1],
        };
        let generation = self.superblock.generation + 1;
        let (store, shard) = (self.store, self.number as u16);
        for side in sides {
            let mut block = Box::new([0; BLOCK_SIZE]);
            write_catalogue(&mut block, store, shard, at + side, pair, generation, entries);
            plan.writes.push((at + side, block));
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
        let generation = self.superblock.generation + 1;
        for (kind, at) in pairs {
            let planned = plan.writes.iter().any(|(block, _)| *block == at || *block == at + 1);
            let Picked::Copy(mut block, side, header) = self.pick(kind, at)? else { continue };
            if planned || !side.stale_other {
                continue;
            }
            let address = at + 1 - side.current as u64;
            seal(&mut block, &Header { address, generation, ..header });
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
    fn next_superblock(&mut self) -> Result<(Superblock, u64), Error> {
        let [a, b] = self.superblocks()?;
        let newest = match (a, b) {
            (Ok(a), Ok(b)) => u64::from(b.generation > a.generation),
            (Ok(_), Err(_)) => 0,
            (Err(_), _) => 1,
        };
        let generation = self.superblock.generation + 1;
        Ok((Superblock { generation, ..self.superblock }, newest))
    }
}

//! First part of a check: superblocks, catalogue, disk records, snapshot logs, and descent.

use super::blocks::{Bits, Reader};
use super::cuts::{Broken, Cuts};
use super::journal::JournalRuns;
use super::lineage::Lineage;
use super::pairs::Pairs;
use super::rebuild::Taking;
use super::report::{Finding, FindingKind, Report, Severity};
use super::space::Bitmap;
use super::tree::NodeSeen;
use super::{CheckOptions, CheckPhase};
use crate::error::{Error, ErrorKind};
use crate::format::disk_record::{self, DiskRecord, REAP_LIVE, REAP_NONE, State};
use crate::format::extent::{Entry, read_entries};
use crate::format::label::StoreLabel;
use crate::format::snapshot_log::{self, LogEntry};
use crate::format::superblock::{Geometry, Superblock};
use crate::format::{Block, Damage, Header, Kind, Side, pick_side, unseal};
use crate::limits::EXTENT_HEAD_BLOCKS;
use crate::types::{BLOCK_SIZE, Uuid};
use std::collections::{BTreeMap, BTreeSet};

/// How often the pairs of a served store are read before the check gives up.
const CHASES_MAX: usize = 64;

/// A disk as its record and log describe it.
pub(super) struct DiskState {
    pub record: DiskRecord,
    /// Sorted by number.
    pub snaps: Vec<LogEntry>,
    /// Log pairs, newest first.
    pub log: Vec<u64>,
    /// The whole log could be read.
    pub log_read: bool,
    /// Disks of one family descend from each other, and may share blocks.
    pub family: u32,
    /// Mapped blocks of its live tree, once counted.
    pub counted: Option<u64>,
}

/// What a record slot holds.
pub(super) enum Slot {
    Free,
    /// Its record cannot be used.
    Lost,
    Disk(Box<DiskState>),
}

/// Told how far: phase, blocks done, of how many. False: end the check.
pub(super) type Told<'a> = &'a mut dyn FnMut(CheckPhase, u64, u64) -> bool;

/// One shard under check.
pub(super) struct Shard<'a> {
    pub reader: Reader<'a>,
    pub store: Uuid,
    pub number: u32,
    pub online: bool,
    pub superblock: Superblock,
    /// Entries of the catalogue; `None` where it is damaged.
    pub entries: Vec<Option<Entry>>,
    /// Of a served store: read at once, before they move on.
    pub bitmaps: Vec<Bitmap>,
    pub slots: Vec<Slot>,
    /// Who descends from whom.
    pub lineage: Lineage,
    /// Blocks that something holds.
    pub used: Bits,
    /// Data blocks that several leaves hold.
    pub shared: Bits,
    pub nodes: BTreeMap<u64, NodeSeen>,
    pub journal: JournalRuns,
    pub pairs: Pairs,
    /// Journal blocks that were promised and are lost.
    pub holes: Vec<u64>,
    /// Something cannot be read: what it held is unknown.
    pub blind: bool,
    /// Nodes that cannot be used.
    pub broken: Vec<Broken>,
    /// Blocks of nodes that something else holds too.
    pub contested: BTreeSet<u64>,
    /// Links that a repair may cut.
    pub cuts: Cuts,
    /// Snapshots of which something is lost, or cannot be read.
    pub holed: Vec<(u32, u64)>,
    /// Where a repair takes free blocks.
    pub taking: Taking,
    pub report: &'a mut Report,
    told: Told<'a>,
    told_done: u64,
}

impl<'a> Shard<'a> {
    /// Reads all that is not a tree. `None`: the shard has no usable superblock.
    pub fn open(
        reader: Reader<'a>,
        label: &StoreLabel,
        number: u32,
        options: CheckOptions,
        report: &'a mut Report,
        told: Told<'a>,
    ) -> Result<Option<Shard<'a>>, Error> {
        let blocks = label.region_bytes / BLOCK_SIZE as u64;
        let mut shard = Shard {
            reader,
            store: label.uuid,
            number,
            online: options.online,
            superblock: Superblock::default(),
            entries: Vec::new(),
            bitmaps: Vec::new(),
            slots: Vec::new(),
            lineage: Lineage::default(),
            used: Bits::new(blocks),
            shared: Bits::new(blocks),
            nodes: BTreeMap::new(),
            journal: JournalRuns::default(),
            pairs: Pairs::default(),
            holes: Vec::new(),
            blind: false,
            broken: Vec::new(),
            contested: BTreeSet::new(),
            cuts: Cuts::default(),
            holed: Vec::new(),
            taking: Taking::default(),
            report,
            told,
            told_done: 0,
        };
        for _ in 0..CHASES_MAX {
            let before = shard.report.clone();
            if !shard.open_superblock(blocks)? {
                return Ok(None);
            }
            shard.read_catalogue()?;
            shard.read_records()?;
            shard.judge_pairs();
            shard.read_logs()?;
            let generation = shard.superblock.generation;
            if !shard.online || shard.newest_generation()? <= generation + 1 {
                if shard.online {
                    shard.keep_bitmaps()?;
                }
                shard.check_descent();
                return Ok(Some(shard));
            }
            // Too slow for this point: the findings of this round may be none.
            *shard.report = before;
            shard.used = Bits::new(blocks);
            shard.nodes.clear();
            shard.blind = false;
            shard.pairs = Pairs::default();
        }
        let text = format!(
            "shard {number}: consistency points follow one another too fast to check: try again when the store is less busy"
        );
        Err(Error::new(ErrorKind::Busy, text))
    }

    pub fn tell(&mut self, phase: CheckPhase, done: u64, total: u64) -> Result<(), Error> {
        // Not for each block.
        if done != 0 && done.abs_diff(self.told_done) < 2048 {
            return Ok(());
        }
        self.told_done = done;
        if (self.told)(phase, done, total.max(done)) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Busy, "the check was ended before it was done"))
    }

    pub fn geometry(&self) -> Geometry {
        self.superblock.geometry
    }

    pub fn find(
        &mut self,
        severity: Severity,
        kind: FindingKind,
        block: Option<u64>,
        text: impl Into<String>,
    ) {
        let (shard, text) = (self.number, text.into());
        let (disk, snapshot) = (None, None);
        self.report.add(Finding { severity, kind, shard, disk, snapshot, block, text });
    }

    /// A finding about a disk.
    pub fn find_on(
        &mut self,
        severity: Severity,
        kind: FindingKind,
        slot: u32,
        block: Option<u64>,
        text: &str,
    ) {
        let disk = self.disk_name(slot);
        let text = format!("disk {disk}: {text}");
        let (shard, snapshot) = (self.number, None);
        let disk = Some(disk);
        self.report.add(Finding { severity, kind, shard, disk, snapshot, block, text });
    }

    /// Its name, or where it should be.
    pub fn disk_name(&self, slot: u32) -> String {
        match self.slots.get(slot as usize) {
            Some(Slot::Disk(disk)) => disk.record.name.to_string(),
            _ => format!("in record slot {slot}"),
        }
    }

    pub fn disk(&self, slot: u32) -> Option<&DiskState> {
        match self.slots.get(slot as usize) {
            Some(Slot::Disk(disk)) => Some(disk),
            _ => None,
        }
    }

    pub fn superblocks(&mut self) -> Result<[Result<Superblock, Damage>; 2], Error> {
        let [a, b] = self.reader.pair(0)?;
        let shard = self.number as u16;
        Ok([Superblock::read(&a, self.store, shard, 0), Superblock::read(&b, self.store, shard, 1)])
    }

    fn newest_generation(&mut self) -> Result<u64, Error> {
        let both = self.superblocks()?;
        Ok(both.iter().flatten().map(|s| s.generation).max().unwrap_or(u64::MAX))
    }

    fn open_superblock(&mut self, blocks: u64) -> Result<bool, Error> {
        let both = self.superblocks()?;
        let Some(newest) = both.iter().flatten().copied().max_by_key(|s| s.generation) else {
            let [a, b] = both;
            let damage = [a.err(), b.err()].into_iter().flatten().next().unwrap_or(Damage::Magic);
            let text = format!(
                "both superblocks (blocks 0 and 1) are damaged: {damage}; none of the shard's disks can be served"
            );
            self.find(Severity::Error, FindingKind::Superblock, Some(0), text);
            return Ok(false);
        };
        if newest.geometry.region_blocks > blocks {
            let text = format!(
                "the superblock says the region has {} blocks, the label gives it {blocks}; none of its disks can be served",
                newest.geometry.region_blocks
            );
            self.find(Severity::Error, FindingKind::Superblock, Some(0), text);
            return Ok(false);
        }
        for (copy, found) in both.iter().enumerate() {
            // A served store, or one whose host was cut off, may be between the two copies.
            if let (Err(damage), false) = (found, self.online) {
                let text =
                    format!("the copy of the superblock in block {copy} is damaged: {damage}");
                let block = Some(copy as u64);
                self.find(Severity::Note, FindingKind::Superblock, block, text);
            }
        }
        if let [Ok(a), Ok(b)] = both
            && !self.online
            && (a.geometry != b.geometry || a.generation.abs_diff(b.generation) > 1)
        {
            let text = format!(
                "the superblocks in blocks 0 and 1 disagree: consistency points {} and {}; the newer one counts",
                a.generation, b.generation
            );
            self.find(Severity::Warning, FindingKind::Superblock, Some(0), text);
        }
        let spare = if both[0] == both[1] { None } else { self.spare_superblock(&newest) };
        self.superblock = spare.unwrap_or(newest);
        Ok(true)
    }

    /// The copy of a pair that counts.
    pub fn pick(&mut self, kind: Kind, address: u64) -> Result<Picked, Error> {
        let both = match self.reader.pair(address) {
            Ok(both) => both,
            Err(error) => return Ok(Picked::Unreadable(error)),
        };
        let open = |side: usize| {
            let at = address + side as u64;
            unseal(&both[side], kind, self.store, self.number as u16, at)
        };
        let headers = [open(0), open(1)];
        match pick_side(headers, self.superblock.generation) {
            Ok((side, header)) => Ok(Picked::Copy(Box::new(both[side.current]), side, header)),
            Err(damage) => Ok(Picked::Damaged(damage)),
        }
    }

    fn read_catalogue(&mut self) -> Result<(), Error> {
        let g = self.geometry();
        self.entries = vec![None; g.extent_count as usize];
        for pair in 0..g.catalogue_pairs {
            self.tell(CheckPhase::System, pair, g.catalogue_pairs + self.superblock.records_used)?;
            let address = g.catalogue + 2 * pair;
            let listed = g.listed(pair as usize);
            let mut entries = vec![Entry::default(); listed.len()];
            let max = (g.extent_blocks - EXTENT_HEAD_BLOCKS) as u32;
            let index = g.catalogue_pair(pair);
            let damage = match self.pick_system(Kind::Catalogue, index, pair)? {
                Picked::Copy(block, _, _) => match read_entries(&block, &mut entries, max) {
                    Ok(()) => {
                        for (to, from) in self.entries[listed].iter_mut().zip(entries) {
                            *to = Some(from);
                        }
                        continue;
                    }
                    Err(damage) => damage.to_string(),
                },
                Picked::Damaged(damage) => damage.to_string(),
                Picked::Unreadable(error) => error.message,
            };
            let text = format!(
                "the catalogue of extents {} to {} (blocks {address} and {}) cannot be used: {damage}; their free blocks are not given out",
                listed.start,
                listed.end.max(listed.start + 1) - 1,
                address + 1
            );
            self.find(Severity::Error, FindingKind::Catalogue, Some(address), text);
        }
        Ok(())
    }

    fn read_records(&mut self) -> Result<(), Error> {
        self.slots.clear();
        let (g, used) = (self.geometry(), self.superblock.records_used);
        for slot in 0..used {
            self.tell(CheckPhase::System, g.catalogue_pairs + slot, g.catalogue_pairs + used)?;
            let address = g.records + 2 * slot;
            let read = match self.pick_system(Kind::DiskRecord, g.record_pair(slot), slot)? {
                Picked::Copy(_, _, h) if u64::from(h.owner) != slot => {
                    Err(Damage::Identity.to_string())
                }
                Picked::Copy(block, _, _) => disk_record::read(&block).map_err(|d| d.to_string()),
                Picked::Damaged(damage) => Err(damage.to_string()),
                Picked::Unreadable(error) => Err(error.message),
            };
            let read = read.and_then(|record| self.lawful(record));
            let found = match read {
                Ok(None) => Slot::Free,
                Ok(Some(disk)) => Slot::Disk(disk),
                Err(damage) => {
                    self.slots.push(Slot::Lost);
                    let text = format!(
                        "its record (blocks {address} and {}) cannot be used: {damage}",
                        address + 1
                    );
                    let kind = FindingKind::Record;
                    self.find_on(Severity::Error, kind, slot as u32, Some(address), &text);
                    self.blind = true;
                    continue;
                }
            };
            self.slots.push(found);
        }
        Ok(())
    }

    /// `None`: a free slot.
    fn lawful(&self, record: DiskRecord) -> Result<Option<Box<DiskState>>, String> {
        if record.state == State::Free {
            return Ok(None);
        }
        let g = self.geometry();
        if record.root != 0 && !g.linkable(record.root) {
            return Err(format!("its root, block {}, lies out of bounds", record.root));
        }
        if record.root != 0 && record.root_generation > self.superblock.generation {
            return Err("its root is from the future".to_string());
        }
        let pair = |at: u64| g.linkable(at) && g.linkable(at + 1);
        if record.log_head != 0 && !pair(record.log_head) {
            return Err(format!("its snapshot log, block {}, lies out of bounds", record.log_head));
        }
        let blocks = g.extent_count * g.extent_blocks;
        if (record.log_head != 0) != (record.log_blocks != 0) || record.log_blocks > blocks / 2 {
            return Err(format!("its snapshot log cannot have {} blocks", record.log_blocks));
        }
        if record.born > self.superblock.generation {
            return Err("it is from the future".to_string());
        }
        let (snaps, log) = (Vec::new(), Vec::new());
        Ok(Some(Box::new(DiskState {
            record,
            snaps,
            log,
            log_read: true,
            family: 0,
            counted: None,
        })))
    }

    fn read_logs(&mut self) -> Result<(), Error> {
        for slot in 0..self.slots.len() as u32 {
            let Some(disk) = self.disk(slot) else { continue };
            let mut address = disk.record.log_head;
            let (mut found, mut blocks) = (Vec::new(), Vec::new());
            for number in (0..disk.record.log_blocks).rev() {
                match self.read_log(slot, number, address)? {
                    Ok((previous, generation)) => {
                        found.push((number as usize, generation));
                        blocks.push(address);
                        address = previous;
                    }
                    Err(damage) => {
                        let text = format!(
                            "block {number} of its snapshot log (blocks {address} and {}) cannot be used: {damage}",
                            address + 1
                        );
                        let kind = FindingKind::SnapshotLog;
                        self.find_on(Severity::Error, kind, slot, Some(address), &text);
                        self.blind = true;
                        if let Slot::Disk(disk) = &mut self.slots[slot as usize] {
                            disk.log_read = false;
                        }
                        break;
                    }
                }
            }
            self.judge_log(slot, &found, &blocks);
            if let Slot::Disk(disk) = &mut self.slots[slot as usize] {
                disk.snaps.sort_unstable_by_key(|s| s.snap);
            }
        }
        Ok(())
    }

    /// Takes over a log block; says where the one before it is, and its generation.
    fn read_log(
        &mut self,
        slot: u32,
        number: u64,
        address: u64,
    ) -> Result<Result<(u64, u64), String>, Error> {
        let g = self.geometry();
        let found = match self.pick(Kind::SnapshotLog, address)? {
            Picked::Copy(_, _, h) if h.owner != slot || h.index != number => {
                return Ok(Err(Damage::Identity.to_string()));
            }
            Picked::Copy(block, _, h) => {
                snapshot_log::read(&block).map(|read| (read, h.generation))
            }
            Picked::Damaged(damage) => Err(damage),
            Picked::Unreadable(error) => return Ok(Err(error.message)),
        };
        let ((entries, previous), generation) = match found {
            Ok(found) => found,
            Err(damage) => return Ok(Err(damage.to_string())),
        };
        if self.used.add(address) | self.used.add(address + 1) {
            return Ok(Err("another snapshot log has the same blocks".to_string()));
        }
        self.nodes.insert(address, NodeSeen::log(slot));
        self.nodes.insert(address + 1, NodeSeen::log(slot));
        if number > 0 && !(g.linkable(previous) && g.linkable(previous + 1)) {
            return Ok(Err(format!("the one before it, block {previous}, lies out of bounds")));
        }
        if number == 0 && previous != 0 {
            return Ok(Err("the first one says there is one before it".to_string()));
        }
        let Slot::Disk(disk) = &mut self.slots[slot as usize] else {
            unreachable!("its log is being read")
        };
        for entry in entries.into_iter().flatten() {
            if entry.snap >= disk.record.epoch {
                return Ok(Err(format!("snapshot {} is from the future", entry.snap)));
            }
            if entry.root != 0 && !g.linkable(entry.root) {
                return Ok(Err(format!(
                    "the root of snapshot {}, block {}, lies out of bounds",
                    entry.snap, entry.root
                )));
            }
            if entry.root != 0 && entry.root_generation > self.superblock.generation {
                return Ok(Err(format!("the root of snapshot {} is from the future", entry.snap)));
            }
            // A log block has few entries; all of a long log are compared when they are sorted.
            disk.snaps.push(entry);
        }
        disk.log.push(address);
        Ok(Ok((previous, generation)))
    }

    /// Origins, doubles, and who belongs together.
    fn check_descent(&mut self) {
        self.lineage = self.lineage_of_records();
        let count = self.slots.len() as u32;
        let mut family: Vec<u32> = (0..count).collect();
        let mut names: BTreeMap<String, u32> = BTreeMap::new();
        let mut uuids: BTreeMap<Uuid, u32> = BTreeMap::new();
        for slot in 0..count {
            let Some(disk) = self.disk(slot) else { continue };
            let snapshots = disk.snaps.iter().filter(|s| !s.ghost).count() as u64;
            let record = disk.record.clone();
            let doubled = disk.snaps.windows(2).find(|w| w[0].snap == w[1].snap);
            let doubled = doubled.map(|w| w[0].snap);
            self.report.counts.disks += 1;
            self.report.counts.snapshots += snapshots;
            let mut say: Vec<(FindingKind, String)> = Vec::new();
            if let Some(id) = doubled {
                let text = format!("two entries of its snapshot log are both snapshot {id}");
                say.push((FindingKind::SnapshotLog, text));
            }
            if !self.reaping_lawful(slot) {
                let text = "the version being reclaimed is unknown".to_string();
                say.push((FindingKind::Record, text));
            }
            if let Some(seal) = record.sealed {
                let text = format!("it is sealed: {}", seal.text());
                say.push((FindingKind::Journal, text));
            }
            if record.state == State::Live {
                if record.name.is_empty() {
                    say.push((FindingKind::Record, "it has no name".to_string()));
                }
                if let Some(other) = names.insert(record.name.to_string(), slot) {
                    let text = format!("record slots {other} and {slot} have the same name");
                    say.push((FindingKind::Record, text));
                }
                if let Some(other) = uuids.insert(record.uuid, slot) {
                    let other = self.disk_name(other);
                    let text = format!("it has the same UUID as disk {other}: {}", record.uuid);
                    say.push((FindingKind::Record, text));
                }
            }
            if let Some((origin, snap)) = record.origin {
                let text = self.descent_of(slot, origin, snap);
                say.extend(text.map(|text| (FindingKind::Descent, text)));
                if origin < count {
                    join(&mut family, slot, origin);
                }
            }
            let block = self.geometry().records + 2 * u64::from(slot);
            for (kind, text) in say {
                self.find_on(Severity::Error, kind, slot, Some(block), &text);
            }
        }
        // With a record missing, nobody knows who descends from whom.
        let known = !self.slots.iter().any(|s| matches!(s, Slot::Lost));
        for slot in 0..count {
            let root = root_of(&family, slot);
            if let Slot::Disk(disk) = &mut self.slots[slot as usize] {
                disk.family = if known { root } else { 0 };
            }
        }
    }

    pub fn reaping_lawful(&self, slot: u32) -> bool {
        let Some(disk) = self.disk(slot) else { return true };
        let deleting = disk.record.state == State::Deleting;
        match disk.record.reaping {
            REAP_NONE => true,
            REAP_LIVE => deleting,
            id => disk.snaps.iter().any(|s| s.snap == id && !s.ghost && (s.dying || deleting)),
        }
    }

    /// What is wrong with where a disk comes from.
    fn descent_of(&self, slot: u32, origin: u32, snap: u64) -> Option<String> {
        if self.lineage.is_circular(slot) {
            return Some("it descends from a clone of itself".to_string());
        }
        let found = self.disk(origin);
        let there = |d: &DiskState| d.snaps.binary_search_by_key(&snap, |s| s.snap).is_ok();
        if !found.is_some_and(there) {
            let from = self.disk_name(origin);
            return Some(format!(
                "it is a clone of snapshot {snap} of disk {from}, which is not there; deleted space is not reclaimed"
            ));
        }
        None
    }
}

/// A pair as read.
pub(super) enum Picked {
    Copy(Box<Block>, Side, Header),
    Damaged(Damage),
    Unreadable(Error),
}

fn root_of(family: &[u32], mut slot: u32) -> u32 {
    while family[slot as usize] != slot {
        slot = family[slot as usize];
    }
    slot
}

fn join(family: &mut [u32], a: u32, b: u32) {
    let (a, b) = (root_of(family, a), root_of(family, b));
    family[a.max(b) as usize] = a.min(b);
}

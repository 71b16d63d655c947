//! Opening a shard: the same steps after a clean stop and after a crash.
//!
//! ```text
//!  superblock ─► catalogue ─► disk records ─► snapshot logs ─► journal (read)
//!      ─► verify (data crc) ─► apply (map) ─► settle (flush) ─► checkpoint (new journal)
//! ```
//!
//! Work and memory are bounded by the journal and the number of disks and snapshots, not by the
//! capacity: bitmaps and map nodes are read only where the journal touches them.
//!
//! A record that no completed flush covers is checked against its data and dropped if they differ:
//! the data was lost with the device's cache. No block named by the journal is reused or
//! overwritten before the next consistency point, so a mismatch can mean nothing else.

use crate::base_io::BaseOp;
use crate::canary::{Canary, planted};
use crate::disk::{Disk, LogBlock, Root, Snap};
use crate::engine::{Class, Engine, EngineState, tag};
use crate::error::{Error, ErrorKind};
use crate::format::disk_record::{self, REAP_LIVE, REAP_NONE, State as RecordState};
use crate::format::extent::CATALOGUE_ENTRIES;
use crate::format::journal::{self as frame, Record};
use crate::format::snapshot_log;
use crate::format::superblock::Superblock;
use crate::format::{Damage, Header, Kind, Side, pick_side, unseal};
use crate::limits::{LINKS, WRITE_RETRIES};
use crate::page::{PageId, Pages};
use crate::replay::Unapplied;
use crate::space::Space;
use crate::status::BaseError;
use crate::types::BLOCK_SIZE;

/// Blocks of a lane's buffer.
const LANE_BLOCKS: usize = 32;
/// Reads in flight while data is verified.
const LANES: usize = 8;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Superblock,
    Catalogue,
    Records,
    Logs,
    Journal,
    Verify,
    Apply,
    Settle,
    Checkpoint,
}

/// One buffer and the read that fills it.
#[derive(Clone, Copy)]
struct Lane {
    block: u64,
    count: usize,
    reading: bool,
    arrived: bool,
    tries: u8,
    /// Verify: which record, how many of its blocks are done, their checksum so far.
    record: usize,
    done: u64,
    crc: u32,
    verifying: bool,
}

struct Replay {
    record: Record,
    /// Its data must be compared with its checksum.
    check: bool,
    dropped: bool,
}

/// Where opening stands.
pub(crate) struct Recovery {
    region_bytes: u64,
    stage: Stage,
    buffer: Pages,
    lanes: [Lane; LANES],
    /// Next pair, slot, disk, record, ... of the stage.
    cursor: u64,
    records: Vec<Replay>,
    /// First record of each journal block is only needed to know what a flush covered.
    lsns: Vec<u64>,
    lsn: u64,
    flushed: u64,
    /// Reads of map nodes that failed for the record being applied.
    pub node_failures: u8,
    /// Reads of bitmaps that failed for it.
    pub bitmap_failures: u8,
}

impl Recovery {
    pub fn new(region_bytes: u64) -> Recovery {
        let lane = Lane {
            block: 0,
            count: 0,
            reading: false,
            arrived: false,
            tries: 0,
            record: 0,
            done: 0,
            crc: 0,
            verifying: false,
        };
        Recovery {
            region_bytes,
            stage: Stage::Superblock,
            buffer: Pages::new(LANE_BLOCKS * LANES),
            lanes: [lane; LANES],
            cursor: 0,
            records: Vec::new(),
            lsns: Vec::new(),
            lsn: 0,
            flushed: 0,
            node_failures: 0,
            bitmap_failures: 0,
        }
    }

    fn block(&self, lane: usize, at: usize) -> &[u8; BLOCK_SIZE] {
        self.buffer.bytes(PageId((lane * LANE_BLOCKS + at) as u32))
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.cursor = 0;
    }
}

impl Engine {
    /// Takes opening as far as it gets without waiting.
    pub(crate) fn recover_step(&mut self) {
        while self.state == EngineState::Opening {
            let Some(mut recovery) = self.recovery.take() else { return };
            let went_on = match recovery.stage {
                Stage::Superblock => self.recover_superblock(&mut recovery),
                Stage::Catalogue => self.recover_catalogue(&mut recovery),
                Stage::Records => self.recover_records(&mut recovery),
                Stage::Logs => self.recover_logs(&mut recovery),
                Stage::Journal => self.recover_journal(&mut recovery),
                Stage::Verify => self.recover_verify(&mut recovery),
                Stage::Apply => self.recover_apply(&mut recovery),
                Stage::Settle => Ok(self.recover_settle(&mut recovery)),
                Stage::Checkpoint => Ok(false),
            };
            self.recovery = Some(recovery);
            match went_on {
                Ok(true) => {}
                Ok(false) => break,
                Err(refused) => self.open_failed(refused),
            }
        }
        if let Some(why) = self.failed.clone()
            && self.state == EngineState::Opening
        {
            self.open_failed(Error::new(ErrorKind::Io, why));
        }
    }

    fn open_failed(&mut self, why: Error) {
        self.state = EngineState::Failed;
        self.open_error = Some(why);
    }

    /// The checkpoint that ends recovery is durable.
    pub(crate) fn recovery_committed(&mut self) {
        if self.state == EngineState::Opening {
            self.state = EngineState::Ready;
            self.recovery = None;
        }
    }

    fn recover_read(&mut self, recovery: &mut Recovery, lane: usize, block: u64, count: usize) {
        let l = &mut recovery.lanes[lane];
        assert!(!l.reading && !l.arrived && count <= LANE_BLOCKS && count > 0);
        (l.block, l.count, l.reading, l.tries) = (block, count, true, 0);
        self.issue_lane(recovery, lane);
    }

    fn issue_lane(&mut self, recovery: &Recovery, lane: usize) {
        let l = &recovery.lanes[lane];
        let addr = recovery.buffer.addr(PageId((lane * LANE_BLOCKS) as u32));
        let len = (l.count * BLOCK_SIZE) as u32;
        self.issue(tag(Class::Recover, 0, lane as u32), BaseOp::Read, l.block, addr, len);
    }

    pub(crate) fn recover_io_done(&mut self, lane: u32, result: Result<(), BaseError>) {
        let Some(mut recovery) = self.recovery.take() else { return };
        let l = &mut recovery.lanes[lane as usize];
        assert!(l.reading);
        if result.is_ok() {
            l.reading = false;
            l.arrived = true;
        } else if l.tries < WRITE_RETRIES {
            l.tries += 1;
            self.issue_lane(&recovery, lane as usize);
        } else {
            let text = format!("block {} of the store cannot be read", l.block);
            self.open_failed(Error::new(ErrorKind::Io, text));
        }
        self.recovery = Some(recovery);
    }

    /// The buffer of lane 0 holding `block ..`; false: it is being read.
    fn have(&mut self, recovery: &mut Recovery, block: u64, count: usize) -> bool {
        let l = &mut recovery.lanes[0];
        if l.reading {
            return false;
        }
        if std::mem::take(&mut l.arrived) && l.block == block && l.count == count {
            return true;
        }
        self.recover_read(recovery, 0, block, count);
        false
    }

    fn recover_superblock(&mut self, recovery: &mut Recovery) -> Result<bool, Error> {
        if !self.have(recovery, 0, 2) {
            return Ok(false);
        }
        let read =
            |copy| Superblock::read(recovery.block(0, copy), self.store, self.shard, copy as u64);
        let (first, second) = (read(0), read(1));
        let (superblock, newest) = match (first, second) {
            (Ok(a), Ok(b)) if b.generation > a.generation => (b, 1),
            (Ok(a), _) => (a, 0),
            (Err(_), Ok(b)) => (b, 1),
            (Err(damage), Err(_)) => {
                let text = format!("shard {}: both superblocks are damaged: {damage}", self.shard);
                return Err(Error::new(ErrorKind::Corrupt, text));
            }
        };
        if superblock.geometry.region_blocks * BLOCK_SIZE as u64 > recovery.region_bytes {
            let text = format!("shard {}: the superblock describes a larger region", self.shard);
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        self.superblock = superblock;
        self.checkpoint.newest_superblock = newest;
        self.space = Space::new(superblock.geometry);
        recovery.enter(Stage::Catalogue);
        Ok(true)
    }

    /// Opens both copies of the pair whose first copy is at place `at` of lane 0.
    fn pair(
        &self,
        recovery: &Recovery,
        at: usize,
        kind: Kind,
        address: u64,
    ) -> Result<(Side, Header), Damage> {
        let open = |side: usize| {
            let block = recovery.block(0, at + side);
            unseal(block, kind, self.store, self.shard, address + side as u64)
        };
        pick_side([open(0), open(1)], self.superblock.generation)
    }

    fn recover_catalogue(&mut self, recovery: &mut Recovery) -> Result<bool, Error> {
        let g = self.superblock.geometry;
        if recovery.cursor == g.catalogue_pairs {
            recovery.enter(Stage::Records);
            return Ok(true);
        }
        let count = (g.catalogue_pairs - recovery.cursor).min(LANE_BLOCKS as u64 / 2);
        let start = g.catalogue + 2 * recovery.cursor;
        if !self.have(recovery, start, 2 * count as usize) {
            return Ok(false);
        }
        for i in 0..count as usize {
            let pair = recovery.cursor as usize + i;
            let found = self.pair(recovery, 2 * i, Kind::Catalogue, start + 2 * i as u64);
            let adopted = found.and_then(|(side, header)| {
                if header.index != pair as u64 {
                    return Err(Damage::Identity);
                }
                let block = recovery.block(0, 2 * i + side.current);
                self.space.adopt_catalogue(pair, block, side.current, side.stale_other)
            });
            if let Err(damage) = adopted {
                self.space.seal_catalogue(pair);
                let first = pair * CATALOGUE_ENTRIES;
                let text = format!(
                    "the catalogue of extents {first} and up is damaged ({damage}); their free blocks are not used"
                );
                self.event(true, text);
            }
        }
        recovery.cursor += count;
        Ok(true)
    }

    fn recover_records(&mut self, recovery: &mut Recovery) -> Result<bool, Error> {
        let used = self.superblock.records_used;
        if recovery.cursor == used {
            recovery.enter(Stage::Logs);
            return Ok(true);
        }
        let count = (used - recovery.cursor).min(LANE_BLOCKS as u64 / 2);
        let start = self.superblock.geometry.records + 2 * recovery.cursor;
        if !self.have(recovery, start, 2 * count as usize) {
            return Ok(false);
        }
        for i in 0..count as usize {
            let slot = recovery.cursor as usize + i;
            let found = self.pair(recovery, 2 * i, Kind::DiskRecord, start + 2 * i as u64);
            let disk = found.and_then(|(side, header)| {
                if header.index != slot as u64 {
                    return Err(Damage::Identity);
                }
                let record = disk_record::read(recovery.block(0, 2 * i + side.current))?;
                if record.state == RecordState::Free {
                    self.free_records.push((slot as u32, side.current));
                    if side.stale_other {
                        self.scrub.push(slot as u32);
                    }
                }
                self.disk_from(record, side)
            });
            match disk {
                Ok(disk) => self.disks.push(disk),
                Err(damage) => {
                    self.disks.push(None);
                    self.lose_disk(slot as u32, &format!("its record is damaged: {damage}"));
                }
            }
        }
        recovery.cursor += count;
        Ok(true)
    }

    fn disk_from(
        &self,
        record: disk_record::DiskRecord,
        side: Side,
    ) -> Result<Option<Box<Disk>>, Damage> {
        let linkable = |block| block == 0 || self.space.geometry.linkable(block);
        let pair = |block| linkable(block) && linkable(block + 1);
        if record.state == RecordState::Free {
            return Ok(None);
        }
        if !linkable(record.root) || (record.log_head != 0 && !pair(record.log_head)) {
            return Err(Damage::Content);
        }
        let mut disk = Box::new(Disk::new(record.name, record.uuid, record.size, record.created));
        disk.root = Root { address: record.root, level: record.root_level };
        disk.epoch = record.epoch;
        disk.mapped = record.mapped;
        disk.origin = record.origin;
        disk.adopted = record.adopted;
        disk.born = record.born;
        disk.deleting = record.state == RecordState::Deleting;
        disk.reaping = record.reaping;
        disk.reap_cursor = record.reap_cursor;
        disk.blob = record.blob;
        disk.side = side.current;
        disk.fresh = false;
        disk.dirty = side.stale_other;
        // Filled in from the log, newest block first.
        disk.log = Vec::new();
        if record.log_head != 0 {
            let count = usize::try_from(record.log_blocks).map_err(|_| Damage::Content)?;
            if count == 0 || count > 1 << 24 {
                return Err(Damage::Content);
            }
            let blank = LogBlock { address: 0, side: 0, used: 0, dirty: false, fresh: false };
            disk.log = vec![blank; count];
            disk.log[count - 1].address = record.log_head;
        }
        Ok(Some(disk))
    }

    /// A disk that cannot be served; its slot stays taken so that nothing overwrites it.
    fn lose_disk(&mut self, slot: u32, why: &str) {
        let name = self.disks[slot as usize].take().map(|d| d.name.to_string());
        let name = name.unwrap_or_else(|| format!("in record slot {slot}"));
        let block = self.superblock.geometry.records + 2 * u64::from(slot);
        let text = format!("disk {name} (record at block {block}) is not available: {why}");
        self.event(true, text);
        self.lost.push(slot);
    }

    fn recover_logs(&mut self, recovery: &mut Recovery) -> Result<bool, Error> {
        let slot = recovery.cursor as usize;
        if slot == self.disks.len() {
            self.link_clones();
            recovery.lsn = self.superblock.journal_tail;
            recovery.flushed = recovery.lsn;
            recovery.enter(Stage::Journal);
            return Ok(true);
        }
        let next = self.disks[slot].as_ref().and_then(|d| {
            let at = d.log.iter().rposition(|b| b.used == 0 && !b.fresh)?;
            Some((at, d.log[at].address))
        });
        let Some((number, address)) = next else {
            if let Some(disk) = self.disks[slot].as_mut() {
                disk.log.iter_mut().for_each(|b| {
                    b.fresh = false;
                    b.used &= !(1 << 31);
                });
                disk.snaps.sort_unstable_by_key(|s| s.id);
                disk.refresh_newest();
            }
            recovery.cursor += 1;
            return Ok(true);
        };
        if !self.have(recovery, address, 2) {
            return Ok(false);
        }
        if let Err(damage) = self.adopt_log(recovery, slot, number, address) {
            self.lose_disk(slot as u32, &format!("its snapshot log is damaged: {damage}"));
            recovery.cursor += 1;
        }
        Ok(true)
    }

    fn adopt_log(
        &mut self,
        recovery: &Recovery,
        slot: usize,
        number: usize,
        address: u64,
    ) -> Result<(), Damage> {
        let (side, header) = self.pair(recovery, 0, Kind::SnapshotLog, address)?;
        if header.owner != slot as u32 || header.index != number as u64 {
            return Err(Damage::Identity);
        }
        let (entries, previous) = snapshot_log::read(recovery.block(0, side.current))?;
        let geometry = self.space.geometry;
        let disk = self.disks[slot].as_mut().expect("its log is being read");
        let linkable = geometry.linkable(previous) && geometry.linkable(previous + 1);
        if (number > 0) != linkable {
            return Err(Damage::Content);
        }
        // The highest bit says "read" until all blocks are: an empty block looks unread otherwise.
        let mut used = 1u32 << 31;
        for (i, entry) in entries.iter().enumerate() {
            let Some(e) = entry else { continue };
            let lawful = e.snap < disk.epoch && (e.root == 0 || geometry.linkable(e.root));
            if !lawful || disk.snaps.iter().any(|s| s.id == e.snap) {
                return Err(Damage::Content);
            }
            used |= 1 << i;
            disk.snaps.push(Snap {
                id: e.snap,
                uuid: e.uuid,
                label: e.label,
                time: e.time,
                size: e.size,
                mapped: e.mapped,
                root: Some(Root { address: e.root, level: e.root_level }),
                written: true,
                drain: 0,
                dying: e.dying,
                ghost: e.ghost,
                attached: 0,
                clones: 0,
                place: Some((number as u32, i as u8)),
            });
        }
        let block = &mut disk.log[number];
        (block.side, block.used, block.dirty) = (side.current, used, side.stale_other);
        if number > 0 {
            disk.log[number - 1].address = previous;
        }
        Ok(())
    }

    /// Counts the clones of each snapshot. A clone whose origin could not be opened serves all the
    /// same: its tree is its own.
    fn link_clones(&mut self) {
        self.lose_impossible();
        for slot in 0..self.disks.len() {
            let Some((disk, snap)) = self.disks[slot].as_ref().and_then(|d| d.origin) else {
                continue;
            };
            let origin = self.disks.get_mut(disk as usize).and_then(|d| d.as_mut());
            if let Some(snap) = origin.and_then(|d| d.snap_mut(snap)) {
                snap.clones += u32::from(!planted(Canary::CloneUncounted));
                continue;
            }
            let clone = self.disks[slot].as_mut().expect("just seen");
            clone.origin_lost = true;
            clone.adopted = true;
            let text = format!(
                "disk {}: the snapshot it is a clone of is not available; deleted snapshots and disks give no space back meanwhile",
                clone.name
            );
            self.event(true, text);
            self.bereft = true;
        }
        self.bereft |= !self.lost.is_empty();
        self.count_reapable();
    }

    /// Disks that descend from themselves, or that the reaper is said to be where it cannot be.
    fn lose_impossible(&mut self) {
        let parent = |disks: &[Option<Box<Disk>>], slot: usize| {
            disks.get(slot)?.as_ref()?.origin.map(|(disk, _)| disk as usize)
        };
        let mut lost = Vec::new();
        for (slot, disk) in self.disks.iter().enumerate() {
            let Some(disk) = disk else { continue };
            // No chain is longer than there are disks.
            let mut at = parent(&self.disks, slot);
            let mut steps = 0;
            while let Some(next) = at.filter(|_| steps <= self.disks.len()) {
                at = parent(&self.disks, next);
                steps += 1;
            }
            let reaped = match disk.reaping {
                REAP_NONE => true,
                REAP_LIVE => disk.deleting,
                id => disk.snap(id).is_some_and(|s| !s.ghost && (s.dying || disk.deleting)),
            };
            if at.is_some() {
                lost.push((slot, "it descends from a clone of itself"));
            } else if !reaped {
                lost.push((slot, "its record is damaged: the version being reclaimed is unknown"));
            }
        }
        for (slot, why) in lost {
            self.lose_disk(slot as u32, why);
        }
    }

    /// Reads the journal from its tail to the first block that is not the next one.
    fn recover_journal(&mut self, recovery: &mut Recovery) -> Result<bool, Error> {
        let g = self.superblock.geometry;
        let position = recovery.lsn % g.journal_blocks;
        let read = recovery.lsn - self.superblock.journal_tail;
        let count = (g.journal_blocks - position).min(LANE_BLOCKS as u64);
        let count = count.min(g.journal_blocks - read);
        if count > 0 && !self.have(recovery, g.journal + position, count as usize) {
            return Ok(false);
        }
        let mut ended = count == 0;
        for i in 0..count as usize {
            let block = recovery.block(0, i);
            let address = g.journal + position + i as u64;
            let opened = frame::open(block, self.store, self.shard, address);
            let fits = |f: &frame::Frame| {
                f.lsn == recovery.lsn
                    && (f.incarnation == self.superblock.incarnation
                        || planted(Canary::ReplayTwice))
            };
            let Some(found) = opened.ok().filter(fits) else {
                ended = true;
                break;
            };
            let mut records = Vec::new();
            if frame::records(block, found.count, |record| records.push(record)).is_err() {
                self.event(true, format!("journal block {} is damaged", found.lsn));
                ended = true;
                break;
            }
            recovery.flushed = recovery.flushed.max(found.flushed);
            for record in records {
                let check = !found.ordered && matches!(record, Record::Write { .. });
                recovery.records.push(Replay { record, check, dropped: false });
                recovery.lsns.push(found.lsn);
            }
            recovery.lsn += 1;
        }
        if ended {
            for (replay, &lsn) in recovery.records.iter_mut().zip(&recovery.lsns) {
                replay.check &= lsn >= recovery.flushed;
            }
            recovery.lanes[0].arrived = false;
            recovery.enter(Stage::Verify);
        }
        Ok(true)
    }

    /// Compares the data of unflushed records with their checksums, several at a time.
    fn recover_verify(&mut self, recovery: &mut Recovery) -> Result<bool, Error> {
        let mut waiting = false;
        for lane in 0..LANES {
            if recovery.lanes[lane].arrived {
                self.verify_arrived(recovery, lane);
            }
            if !recovery.lanes[lane].verifying && !self.verify_next(recovery, lane) {
                continue;
            }
            waiting = true;
        }
        if !waiting {
            self.stats.dropped_records =
                recovery.records.iter().filter(|r| r.dropped).count() as u64;
            if planted(Canary::ReplayReversed) {
                recovery.records.reverse();
            }
            recovery.enter(Stage::Apply);
            return Ok(true);
        }
        Ok(false)
    }

    fn verify_arrived(&mut self, recovery: &mut Recovery, lane: usize) {
        let mut l = recovery.lanes[lane];
        l.arrived = false;
        for i in 0..l.count {
            l.crc = crc32c::crc32c_append(l.crc, recovery.block(lane, i));
        }
        l.done += l.count as u64;
        let Record::Write { pba, len, crc, .. } = recovery.records[l.record].record else {
            unreachable!("only writes are verified")
        };
        recovery.lanes[lane] = l;
        if l.done < u64::from(len) {
            let count = (u64::from(len) - l.done).min(LANE_BLOCKS as u64);
            self.recover_read(recovery, lane, pba + l.done, count as usize);
            return;
        }
        recovery.records[l.record].dropped = l.crc != crc && !planted(Canary::DataUnchecked);
        recovery.lanes[lane].verifying = false;
    }

    /// Gives the lane the next record to verify. False: there is none.
    fn verify_next(&mut self, recovery: &mut Recovery, lane: usize) -> bool {
        while let Some(replay) = recovery.records.get(recovery.cursor as usize) {
            let at = recovery.cursor as usize;
            recovery.cursor += 1;
            let Record::Write { pba, len, .. } = replay.record else { continue };
            if !replay.check || !self.lawful_run(pba, u64::from(len)) {
                continue;
            }
            let l = &mut recovery.lanes[lane];
            (l.record, l.done, l.crc, l.verifying) = (at, 0, 0, true);
            let count = usize::from(len).min(LANE_BLOCKS);
            self.recover_read(recovery, lane, pba, count);
            return true;
        }
        false
    }

    pub(crate) fn lawful_run(&self, pba: u64, len: u64) -> bool {
        let g = &self.space.geometry;
        let last = pba.saturating_add(len.saturating_sub(1));
        len > 0
            && len <= LINKS as u64
            && g.linkable(pba)
            && g.linkable(last)
            && g.extent_of(pba) == g.extent_of(last)
    }

    /// Applies what survived, in order.
    fn recover_apply(&mut self, recovery: &mut Recovery) -> Result<bool, Error> {
        let Some(replay) = recovery.records.get(recovery.cursor as usize) else {
            let blocks = self.superblock.geometry.journal_blocks;
            let incarnation = self.superblock.incarnation + 1;
            self.journal.start(recovery.lsn, self.superblock.journal_tail, incarnation, blocks);
            recovery.enter(Stage::Settle);
            recovery.records = Vec::new();
            recovery.lsns = Vec::new();
            if !planted(Canary::RecoveryUnsettled) {
                self.begin_checkpoint_flush();
            }
            return Ok(true);
        };
        let record = replay.record;
        let outcome = if replay.dropped { Ok(true) } else { self.replay(&record, recovery) };
        match outcome {
            Ok(false) => {
                self.load_wanted_bitmap();
                return Ok(false);
            }
            Ok(true) => {}
            Err(Unapplied::Unlawful(why)) => {
                self.event(true, format!("a journal record was skipped: {why}"));
            }
            Err(Unapplied::Unreadable(why)) => return Err(Error::new(ErrorKind::Io, why)),
        }
        recovery.cursor += 1;
        recovery.node_failures = 0;
        recovery.bitmap_failures = 0;
        self.stats.replayed_records += 1;
        Ok(true)
    }

    /// What was read may still be in the device's cache (the last daemon died, the device did not).
    /// It must be durable before anything is written on top of it: else a power cut could bring an
    /// older superblock back, whose copies of records have been overwritten.
    fn recover_settle(&mut self, recovery: &mut Recovery) -> bool {
        if self.checkpoint_flushing() || self.failed.is_some() {
            return false;
        }
        recovery.enter(Stage::Checkpoint);
        // A checkpoint that the crash cut off has used the next number, perhaps for blocks that are
        // written again now: should such a write get lost, what lies there must not pass for it.
        self.superblock.generation += 1;
        self.freeze();
        true
    }
}

//! Opening a shard: the same steps after a clean stop and after a crash.
//!
//! ```text
//!  superblock ─► catalogue ─► disk records ─► snapshot logs ─► (space) ─► journal (read)
//!      ─► verify (data crc) ─► apply (map) ─► settle (flush) ─► twin (the other superblock)
//!      ─► checkpoint (new journal)
//! ```
//!
//! A block that cannot be read, while others can, counts as damaged (`unread`). But without any
//! superblock, or a journal block that may count, the store does not open.
//!
//! Work and memory are bounded by the journal and the number of disks and snapshots, not by the
//! capacity: bitmaps and map nodes are read only where the journal touches them.
//!
//! A record that no completed flush covers is checked against its data and dropped if they differ:
//! the data was lost with the device's cache. No block named by the journal is reused or
//! overwritten before the next consistency point, so a mismatch can mean nothing else.
//!
//! What had been promised and is not there is never passed over: an older copy of a pair is damage
//! (`system`), and so is a missing journal block that later ones say was durable (`journal`).
//! Each costs the disks it concerns. An older superblock would cost all, so the shard is refused.
//! What says which blocks are in use costs no disk: it is found out again (`space`), and only then
//! does opening take longer the more is stored.

mod journal;
mod space;
mod system;
mod unread;
mod verify;

use crate::base_io::BaseOp;
use crate::canary::{Canary, planted};
use crate::engine::{Class, Engine, EngineState, tag};
use crate::error::{Error, ErrorKind};
use crate::format::superblock::Superblock;
use crate::journal_scan::Scan;
use crate::limits::{LINKS, WRITE_RETRIES};
use crate::page::{PageId, Pages};
use crate::pipeline::superblocks::spare_block;
use crate::replay::Unapplied;
use crate::replays::{Entry, Replays};
use crate::space::Space;
use crate::status::BaseError;
use crate::types::BLOCK_SIZE;
pub(crate) use system::circular;

/// Blocks of a lane's buffer.
const LANE_BLOCKS: usize = 32;
/// Reads in flight while data is verified.
const LANES: usize = 8;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Superblock,
    Spare,
    Catalogue,
    Records,
    Logs,
    Space,
    Journal,
    Verify,
    Apply,
    Settle,
    Twin,
    SettleTwin,
    Checkpoint,
}

impl Stage {
    /// True if single blocks that cannot be read may be done without: there are copies, or it is
    /// not known yet whether the block is needed.
    fn does_without(self) -> bool {
        matches!(
            self,
            Stage::Superblock
                | Stage::Spare
                | Stage::Catalogue
                | Stage::Records
                | Stage::Logs
                | Stage::Space
                | Stage::Journal
        )
    }
}

fn unreadable(block: u64) -> Error {
    Error::new(ErrorKind::Io, format!("block {block} of the store cannot be read"))
}

/// One buffer and the read that fills it.
#[derive(Clone, Copy)]
struct Lane {
    block: u64,
    count: usize,
    reading: bool,
    arrived: bool,
    tries: u8,
    /// They could not be read together, and are read one by one: which is next.
    alone: Option<usize>,
    /// Those that cannot be read, as bits.
    gone: u32,
    /// Verify: which record, how many of its blocks are done, their checksum so far.
    record: usize,
    done: u64,
    crc: u32,
    verifying: bool,
}

/// Where opening stands.
pub(crate) struct Recovery {
    region_bytes: u64,
    stage: Stage,
    buffer: Pages,
    lanes: [Lane; LANES],
    /// Next pair, slot, disk, record, ... of the stage.
    cursor: u64,
    records: Replays,
    scan: Scan,
    /// Snapshot logs, by record slot: pair to be read next, and how many are left.
    logs: Vec<(u64, u64)>,
    /// The live trees as they were committed.
    trees: Vec<space::Item>,
    rebuild: Option<Box<space::Rebuild>>,
    /// What is in use was looked for, once.
    sought: bool,
    /// Where opening goes on when it is known.
    after_space: Stage,
    /// First block of the new journal.
    lsn: u64,
    /// What proves that a later consistency point than the superblock's has committed.
    newer: Option<String>,
    /// Copies of the superblock, by block; and where the spare one would be.
    copies: Vec<(u64, Option<Superblock>)>,
    spare: u64,
    /// The other superblock is not the same.
    twin_due: bool,
    /// Reads of map nodes that failed for the record being applied.
    pub node_failures: u8,
    /// Reads of bitmaps that failed for it.
    pub bitmap_failures: u8,
    /// One of them since there is no device any more.
    pub device_gone: bool,
    /// What cannot be read for it is damaged: another block can be.
    pub device_answers: bool,
    /// Slots of disks of which no copy of the record, or of a block of the log, can be read.
    unread: Vec<u32>,
    /// Those that lack writes the journal had.
    given_up: Vec<u32>,
}

impl Recovery {
    pub fn new(region_bytes: u64) -> Recovery {
        let lane = Lane {
            block: 0,
            count: 0,
            reading: false,
            arrived: false,
            tries: 0,
            alone: None,
            gone: 0,
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
            records: Replays::default(),
            scan: Scan::default(),
            logs: Vec::new(),
            trees: Vec::new(),
            rebuild: None,
            sought: false,
            after_space: Stage::Journal,
            lsn: 0,
            newer: None,
            copies: Vec::new(),
            spare: 0,
            twin_due: false,
            node_failures: 0,
            bitmap_failures: 0,
            device_gone: false,
            device_answers: false,
            unread: Vec::new(),
            given_up: Vec::new(),
        }
    }

    fn block(&self, lane: usize, at: usize) -> &[u8; BLOCK_SIZE] {
        self.buffer.bytes(Recovery::page(lane, at))
    }

    fn page(lane: usize, at: usize) -> PageId {
        PageId((lane * LANE_BLOCKS + at) as u32)
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
                Stage::Spare => self.recover_spare(&mut recovery),
                Stage::Catalogue => self.recover_catalogue(&mut recovery),
                Stage::Records => self.recover_records(&mut recovery),
                Stage::Logs => self.recover_logs(&mut recovery),
                Stage::Space => Ok(self.recover_space(&mut recovery)),
                Stage::Journal => self.recover_journal(&mut recovery),
                Stage::Verify => self.recover_verify(&mut recovery),
                Stage::Apply => self.recover_apply(&mut recovery),
                Stage::Settle => Ok(self.recover_settle(&mut recovery)),
                Stage::Twin => Ok(self.recover_twin(&mut recovery)),
                Stage::SettleTwin => Ok(self.recover_checkpoint(&mut recovery)),
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
        (l.alone, l.gone) = (None, 0);
        self.issue_lane(recovery, lane);
    }

    fn issue_lane(&mut self, recovery: &Recovery, lane: usize) {
        let l = &recovery.lanes[lane];
        let (at, count) = l.alone.map_or((0, l.count), |at| (at, 1));
        let addr = recovery.buffer.addr(Recovery::page(lane, at));
        let (block, len) = (l.block + at as u64, (count * BLOCK_SIZE) as u32);
        self.issue(tag(Class::Recover, 0, lane as u32), BaseOp::Read, block, addr, len);
    }

    pub(crate) fn recover_io_done(&mut self, lane: u32, result: Result<(), BaseError>) {
        let Some(mut recovery) = self.recovery.take() else { return };
        let stage = recovery.stage;
        let l = &mut recovery.lanes[lane as usize];
        assert!(l.reading);
        let again = match l.alone {
            _ if result.is_err() && l.tries < WRITE_RETRIES => {
                l.tries += 1;
                true
            }
            None if result.is_err() && stage.does_without() => {
                (l.alone, l.tries) = (Some(0), 0);
                true
            }
            Some(at) => {
                l.gone |= u32::from(result.is_err()) << at;
                (l.alone, l.tries) = (Some(at + 1), 0);
                at + 1 < l.count
            }
            None => false,
        };
        if again {
            self.issue_lane(&recovery, lane as usize);
        } else if l.alone.is_none() && result.is_err() {
            let block = l.block;
            self.open_failed(unreadable(block));
        } else {
            (l.reading, l.arrived) = (false, true);
            self.do_without(&mut recovery, lane as usize);
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
        if let (Err(damage), Err(_)) = (first, second) {
            let text = format!("shard {}: both superblocks are damaged: {damage}", self.shard);
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        recovery.copies = vec![(0, first.ok()), (1, second.ok())];
        recovery.twin_due = self.adopt_superblock(&recovery.copies)?;
        let (geometry, used) = (&self.superblock.geometry, self.superblock.records_used);
        if geometry.region_blocks * BLOCK_SIZE as u64 > recovery.region_bytes {
            let text = format!("shard {}: the superblock describes a larger region", self.shard);
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        match spare_block(geometry, used).filter(|_| recovery.twin_due) {
            Some(spare) => recovery.spare = spare,
            None => return Ok(self.superblock_found(recovery)),
        }
        recovery.enter(Stage::Spare);
        Ok(true)
    }

    /// The two copies differ: one of the two blocks may be bad, and its copy elsewhere.
    fn recover_spare(&mut self, recovery: &mut Recovery) -> Result<bool, Error> {
        let at = recovery.spare;
        if !self.have(recovery, at, 1) {
            return Ok(false);
        }
        let read = Superblock::read(recovery.block(0, 0), self.store, self.shard, at);
        let geometry = self.superblock.geometry;
        let usable = |s: &Superblock| s.geometry == geometry && recovery.lanes[0].gone == 0;
        recovery.copies.push((at, read.ok().filter(usable)));
        recovery.twin_due = self.adopt_superblock(&recovery.copies)?;
        Ok(self.superblock_found(recovery))
    }

    fn superblock_found(&mut self, recovery: &mut Recovery) -> bool {
        self.space = Space::new(self.superblock.geometry);
        recovery.enter(Stage::Catalogue);
        true
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
            recovery.records = Replays::default();
            if !planted(Canary::RecoveryUnsettled) {
                self.begin_checkpoint_flush();
            }
            return Ok(true);
        };
        let outcome = match replay.entry {
            Entry::Lost(touched) => {
                self.seal_disks(replay.lsn, touched);
                self.lack_writes(recovery, |slot| touched.has(slot));
                Ok(true)
            }
            Entry::Record(_) if replay.dropped => Ok(true),
            Entry::Record(record) => self.replay(&record, recovery),
        };
        match outcome {
            Ok(false) => {
                self.load_wanted_bitmap();
                return Ok(false);
            }
            Ok(true) => {}
            Err(Unapplied::Unlawful(why)) => {
                let (lsn, block) = (replay.lsn, self.journal_address(replay.lsn));
                let text =
                    format!("a record in journal block {lsn} (block {block}) was skipped: {why}");
                self.event(true, text);
                if let Entry::Record(record) = replay.entry {
                    self.lack_writes(recovery, |slot| slot == record.disk());
                }
            }
            Err(Unapplied::Unreadable(why)) => return self.tell_block_from_device(recovery, why),
        }
        recovery.cursor += 1;
        recovery.device_answers = false;
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
        recovery.enter(Stage::Twin);
        if recovery.twin_due {
            // A checkpoint was cut off between its two superblocks, or one has rotted. From here
            // on this point is relied on, so losing one copy must not bring an older one back.
            self.write_superblock();
        }
        true
    }

    fn recover_twin(&mut self, recovery: &mut Recovery) -> bool {
        if self.checkpoint.outstanding > 0 || self.failed.is_some() {
            return false;
        }
        if recovery.twin_due {
            self.begin_checkpoint_flush();
        }
        recovery.enter(Stage::SettleTwin);
        true
    }

    fn recover_checkpoint(&mut self, recovery: &mut Recovery) -> bool {
        if self.checkpoint_flushing() || self.failed.is_some() {
            return false;
        }
        recovery.enter(Stage::Checkpoint);
        self.give_up_disks(recovery);
        // A checkpoint that the crash cut off has used the next number, perhaps for blocks that are
        // written again now: should such a write get lost, what lies there must not pass for it.
        self.superblock.generation += 1;
        self.freeze();
        true
    }
}

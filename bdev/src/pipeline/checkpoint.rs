//! The consistency point: a snapshot of all disks that nobody keeps.
//!
//! ```text
//!  Idle ─freeze─► Nodes ─► Undecided ─► Reap ─► Log ─► Bits ─► Bitmaps ─► Catalogue ─► Records
//!    ▲              (checkpoint_nodes)   (background/reaper)     (checkpoint_system)        │
//!    └─ Release ◄─ flush ◄─ second copy ◄─ flush = commit ◄─ superblock ◄─ flush ◄── all written
//! ```
//!
//! The freeze takes the lists of what changed; from then on requests fill new ones, and a leaf that
//! is still to be written is copied aside before it changes. Each turn does a bounded piece, so
//! reads never wait for it. Blocks freed before the freeze are given out again after the second
//! copy of the superblock is durable and reads that began before the freeze are done. Before all
//! this, places in the snapshot logs are made sure of (`log_pairs`).

use crate::background::reaper::Descent;
use crate::background::settle::Settling;
use crate::background::walker::REAPER;
use crate::base_io::BaseOp;
use crate::canary::{Canary, planted};
use crate::control::Reply;
use crate::engine::{Class, Engine, EngineState, tag};
use crate::limits::{
    CHECKPOINT_INTERVAL_NS, CHECKPOINT_NODES_TURN, CHUNK_BLOCKS, CHUNKS, SYSTEM_WRITES,
    WRITE_RETRIES,
};
use crate::map::node_cache::Key;
use crate::page::{PageId, Pages};
use crate::slots::NONE;
use crate::status::BaseError;

/// Runs of blocks, packed: block in the high 48 bits, length in the low 16.
pub(crate) struct RunList {
    runs: Vec<u64>,
    blocks: u64,
}

impl RunList {
    /// With room for an ordinary interval between two checkpoints.
    fn roomy() -> RunList {
        RunList { runs: Vec::with_capacity(1 << 16), blocks: 0 }
    }

    pub fn empty() -> RunList {
        RunList { runs: Vec::new(), blocks: 0 }
    }

    pub fn push(&mut self, pba: u64, len: u64) {
        self.blocks += len;
        if let Some(last) = self.runs.last_mut()
            && (*last >> 16) + (*last & 0xffff) == pba
            && (*last & 0xffff) + len <= 0xffff
        {
            *last += len;
            return;
        }
        self.runs.push(pba << 16 | len);
    }

    pub fn get(&self, at: usize) -> Option<(u64, u64)> {
        self.runs.get(at).map(|run| (run >> 16, run & 0xffff))
    }

    pub fn len(&self) -> usize {
        self.runs.len()
    }

    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    pub fn clear(&mut self) {
        self.runs.clear();
        self.blocks = 0;
    }
}

/// A leaf to be written.
#[derive(Clone, Copy)]
pub(crate) struct DirtyLeaf {
    pub disk: u32,
    pub epoch: u64,
    pub index: u64,
    pub slot: u32,
}

/// Where a dropped block stood in its tree.
#[derive(Clone, Copy)]
pub(crate) enum Dropped {
    Data { vba: u64 },
    Node { level: u8, index: u64 },
}

/// A block dropped from a tree that another version may or may not hold.
#[derive(Clone, Copy)]
pub(crate) struct Undecided {
    pub disk: u32,
    pub epoch: u64,
    pub dropped: Dropped,
    pub pba: u64,
}

/// A node that could not be read.
#[derive(Clone, Copy)]
pub(crate) struct BadNode {
    key: Key,
    tries: u8,
    /// It was read, but it is not what should be there.
    pub damaged: bool,
}

/// One version of one disk that the running checkpoint writes.
#[derive(Clone, Copy)]
pub(crate) struct Version {
    pub disk: u32,
    pub epoch: u64,
    pub live: bool,
    pub end: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Idle,
    Pairs,
    Nodes,
    NodesDrain,
    Undecided,
    Reap,
    Log,
    Bits,
    Bitmaps,
    Catalogue,
    Records,
    SystemDrain,
    FlushData,
    Commit,
    FlushCommit,
    Second,
    FlushSecond,
    Release,
}

/// Whether a phase can go on now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    Go,
    Wait,
    Done,
}

/// A buffer of the sequential node writer.
pub(crate) struct Chunk {
    pub pages: Pages,
    pub start: u64,
    pub count: usize,
    /// Cache slots that must stay until the chunk is on disk.
    pub pins: Vec<u32>,
    pub writing: bool,
    tries: u8,
}

/// A single block on its way: catalogue, bitmap, record, log, superblock.
pub(crate) struct PageWrite {
    pub page: PageId,
    pub address: u64,
    tries: u8,
}

pub(crate) struct Checkpoint {
    /// Freezes since the engine was opened.
    pub freezes: u64,
    /// Checkpoints over since the engine was opened, what they freed given back; from 1.
    pub over: u64,
    pub phase: Phase,
    /// Since the last freeze.
    dirty: Vec<DirtyLeaf>,
    pub freed: RunListFreed,
    pub allocated: RunList,
    pub undecided: Vec<Undecided>,
    /// Somebody waits for what a checkpoint frees.
    pub urgent: bool,
    /// A snapshot may have settled: look at waiting commands.
    pub settled: bool,
    dirty_max: usize,
    last_ns: u64,
    /// Of the running checkpoint.
    pub entries: Vec<DirtyLeaf>,
    pub versions: Vec<Version>,
    pub version: usize,
    pub at: usize,
    pub path: [u32; 4],
    pub begun: bool,
    pub old_freed: RunList,
    pub old_allocated: RunList,
    pub old_undecided: Vec<Undecided>,
    pub cursor: usize,
    cut: u64,
    old_lane: usize,
    pub chunks: Vec<Chunk>,
    pub filling: Option<usize>,
    pub run: (u64, u64),
    pub writes: Vec<Option<PageWrite>>,
    pub outstanding: usize,
    pub replies: Vec<(u64, Reply)>,
    /// Answers that are due when the freed blocks are back.
    pub late_replies: Vec<(u64, Reply)>,
    pub gone: Vec<u32>,
    /// Pairs of blocks set aside for the snapshot logs.
    pub pairs: Vec<u64>,
    bad_node: Option<BadNode>,
    /// The last step found nothing it could do before something completes.
    pub waiting: bool,
    /// Copy of the superblock that is the newest.
    pub newest_superblock: u64,
    /// Node reads the reaper may still do.
    pub reap_budget: usize,
    pub reap: Descent,
    pub settling: Settling,
}

/// Blocks freed one by one.
pub(crate) struct RunListFreed(pub RunList);

impl RunListFreed {
    pub fn push(&mut self, pba: u64) {
        self.0.push(pba, 1);
    }
}

impl Checkpoint {
    pub fn new(cache_slots: usize) -> Checkpoint {
        let chunk = || Chunk {
            pages: Pages::new(CHUNK_BLOCKS),
            start: 0,
            count: 0,
            pins: Vec::with_capacity(CHUNK_BLOCKS),
            writing: false,
            tries: 0,
        };
        Checkpoint {
            freezes: 1,
            over: 1,
            phase: Phase::Idle,
            dirty: Vec::with_capacity(cache_slots),
            freed: RunListFreed(RunList::roomy()),
            allocated: RunList::roomy(),
            undecided: Vec::new(),
            urgent: false,
            settled: false,
            dirty_max: cache_slots / 2,
            last_ns: 0,
            entries: Vec::with_capacity(cache_slots),
            versions: Vec::new(),
            version: 0,
            at: 0,
            path: [NONE; 4],
            begun: false,
            old_freed: RunList::roomy(),
            old_allocated: RunList::roomy(),
            old_undecided: Vec::new(),
            cursor: 0,
            cut: 0,
            old_lane: 0,
            chunks: (0..CHUNKS).map(|_| chunk()).collect(),
            filling: None,
            run: (0, 0),
            writes: (0..SYSTEM_WRITES).map(|_| None).collect(),
            outstanding: 0,
            replies: Vec::new(),
            late_replies: Vec::new(),
            gone: Vec::new(),
            pairs: Vec::new(),
            bad_node: None,
            waiting: false,
            newest_superblock: 0,
            reap_budget: 0,
            reap: Descent::new(),
            settling: Settling::default(),
        }
    }

    /// Leaves that have to be written, frozen ones included.
    pub fn dirty_count(&self) -> usize {
        self.dirty.len() + self.entries.len() - self.at.min(self.entries.len())
    }

    /// True from a freeze until its commit.
    pub fn uncommitted(&self) -> bool {
        !matches!(self.phase, Phase::Idle | Phase::Second | Phase::FlushSecond | Phase::Release)
    }

    pub fn add_dirty(&mut self, disk: u32, epoch: u64, index: u64, slot: u32) -> u32 {
        self.dirty.push(DirtyLeaf { disk, epoch, index, slot });
        self.dirty.len() as u32 - 1
    }

    /// The first leaf of `disk` in `from .. to` that no checkpoint has written yet.
    pub fn first_dirty(&self, disk: u32, from: u64, to: u64) -> Option<u64> {
        let waiting = self.entries[self.at.min(self.entries.len())..].iter();
        let all = waiting.chain(&self.dirty).filter(|e| e.disk == disk).map(|e| e.index);
        all.filter(|index| (from..to).contains(index)).min()
    }

    /// The frozen content of an entry moved to another slot.
    pub fn retarget(&mut self, running: bool, entry: u32, slot: u32) {
        let list = if running { &mut self.entries } else { &mut self.dirty };
        list[entry as usize].slot = slot;
    }

    pub fn add_undecided(&mut self, disk: u32, epoch: u64, vba: u64, pba: u64) {
        self.undecided.push(Undecided { disk, epoch, dropped: Dropped::Data { vba }, pba });
    }

    /// A node could not be read; if the checkpoint wants it, it will ask here.
    pub fn node_failed(&mut self, key: Key, damaged: bool) {
        let tries = self.bad_node.filter(|bad| bad.key == key).map_or(0, |bad| bad.tries);
        self.bad_node = Some(BadNode { key, tries: tries.saturating_add(1), damaged });
    }

    /// True if the node that failed last was read, but is not what should be there.
    pub fn bad_node_is_damaged(&self) -> bool {
        self.bad_node.is_some_and(|bad| bad.damaged)
    }

    /// True if reading this node has failed too often.
    pub fn gave_up_on(&self, key: Key) -> Option<BadNode> {
        self.bad_node.filter(|bad| bad.key == key && bad.tries >= WRITE_RETRIES)
    }

    fn has_changes(&self) -> bool {
        !self.dirty.is_empty()
            || self.freed.0.len() > 0
            || self.allocated.len() > 0
            || !self.undecided.is_empty()
    }
}

impl Engine {
    /// True if one more leaf may become dirty.
    pub(crate) fn checkpoint_has_room(&self) -> bool {
        let c = &self.checkpoint;
        c.dirty_count() < c.dirty_max && c.freed.0.len() < 1 << 21 && c.undecided.len() < 1 << 20
    }

    /// Blocks that a checkpoint under way or to come gives back.
    pub(crate) fn pending_blocks(&self) -> u64 {
        let c = &self.checkpoint;
        c.freed.0.blocks() + c.old_freed.blocks() + self.hold.blocks()
    }

    /// True if waiting may bring space. Dirty leaves count: more is kept back for them than their
    /// checkpoint will need.
    pub(crate) fn space_is_coming(&self) -> bool {
        self.failed.is_none()
            && (self.pending_blocks() > 0
                || self.checkpoint.dirty_count() > 0
                || !self.checkpoint.undecided.is_empty()
                || self.checkpoint.phase != Phase::Idle
                || self.reaping())
    }

    fn checkpoint_is_due(&self) -> bool {
        let c = &self.checkpoint;
        c.urgent
            || self.commands_want_checkpoint()
            || c.dirty.len() * 2 > c.dirty_max
            || c.freed.0.len() > 1 << 20
            || self.journal.half_full()
            || self.reaping()
            || self.checkpoint_deadline().is_some_and(|at| self.now >= at)
    }

    pub(crate) fn checkpoint_wants_turn(&self) -> bool {
        if self.state == EngineState::Failed || self.failed.is_some() {
            return false;
        }
        match self.checkpoint.phase {
            Phase::Idle => {
                self.state == EngineState::Ready
                    && self.checkpoint_is_due()
                    && self.readers[1 - self.lane] == 0
            }
            _ => !self.checkpoint.waiting,
        }
    }

    pub(crate) fn checkpoint_deadline(&self) -> Option<u64> {
        let dirty = self.checkpoint.has_changes() || self.journal.used() > 0;
        let ready = self.state == EngineState::Ready && self.failed.is_none();
        let waiting = ready && self.checkpoint.phase == Phase::Idle && dirty;
        waiting.then_some(self.checkpoint.last_ns + CHECKPOINT_INTERVAL_NS)
    }

    /// A bounded step of the checkpoint, if one runs or is due.
    pub(crate) fn checkpoint_step(&mut self) {
        if self.failed.is_some() {
            return;
        }
        if self.checkpoint.phase == Phase::Idle {
            let ready = self.state == EngineState::Ready;
            if !ready || !self.checkpoint_is_due() || self.readers[1 - self.lane] > 0 {
                return;
            }
            self.freeze();
        }
        self.checkpoint.waiting = false;
        for _ in 0..CHECKPOINT_NODES_TURN {
            match self.checkpoint_phase() {
                Step::Go | Step::Done if self.failed.is_some() => return,
                Step::Go => {}
                Step::Wait => {
                    self.checkpoint.waiting = true;
                    return;
                }
                Step::Done => self.next_phase(),
            }
            if self.checkpoint.phase == Phase::Idle {
                return;
            }
        }
    }

    /// Takes what has changed so far; requests go on into new lists.
    pub(crate) fn freeze(&mut self) {
        self.execute_commands();
        let c = &mut self.checkpoint;
        assert!(c.entries.is_empty() && c.old_freed.len() == 0 && c.versions.is_empty());
        c.urgent = false;
        c.last_ns = self.now;
        c.freezes += 1;
        c.at = 0;
        c.version = 0;
        c.begun = false;
        c.cursor = 0;
        std::mem::swap(&mut c.entries, &mut c.dirty);
        std::mem::swap(&mut c.old_freed, &mut c.freed.0);
        std::mem::swap(&mut c.old_allocated, &mut c.allocated);
        std::mem::swap(&mut c.old_undecided, &mut c.undecided);
        c.cut = self.journal.applied();
        if planted(Canary::TrimBeforeCommit) {
            self.journal.tail = c.cut;
        }
        c.old_lane = self.lane;
        c.entries.sort_unstable_by_key(|e| (e.disk, e.epoch, e.index));
        for (at, entry) in c.entries.iter().enumerate() {
            self.cache.meta[entry.slot as usize].entry = at as u32;
        }
        assert_eq!(self.readers[1 - self.lane], 0);
        self.lane = 1 - self.lane;
        self.walkers[REAPER].forget();
        self.list_versions();
        self.checkpoint.phase = Phase::Pairs;
    }

    /// Which versions of which disks have to be written: snapshots without a tree, then the live.
    fn list_versions(&mut self) {
        let mut at = 0;
        for (id, disk) in self.disks.iter_mut().enumerate() {
            let Some(disk) = disk else { continue };
            disk.frozen_epoch = disk.epoch;
            disk.frozen_mapped = disk.mapped;
            let entries = &self.checkpoint.entries;
            let mut advance = |epoch: u64| {
                while entries.get(at).is_some_and(|e| e.disk == id as u32 && e.epoch <= epoch) {
                    at += 1;
                }
                at
            };
            let first_pending = disk.snaps.partition_point(|s| s.root.is_some());
            for snap in &disk.snaps[first_pending..] {
                let (disk, epoch, end) = (id as u32, snap.id, advance(snap.id));
                self.checkpoint.versions.push(Version { disk, epoch, live: false, end });
            }
            let (disk, epoch, end) = (id as u32, disk.epoch, advance(disk.epoch));
            let before = self.checkpoint.versions.last().map_or(0, |v| v.end);
            if end > before {
                self.checkpoint.versions.push(Version { disk, epoch, live: true, end });
            }
        }
        assert_eq!(at, self.checkpoint.entries.len(), "a dirty leaf of no known version");
    }

    fn checkpoint_phase(&mut self) -> Step {
        match self.checkpoint.phase {
            Phase::Idle => Step::Wait,
            Phase::Pairs => self.pairs_step(),
            Phase::Nodes => self.nodes_step(),
            Phase::NodesDrain | Phase::SystemDrain => self.drained(),
            Phase::Undecided => self.undecided_step(),
            Phase::Reap => self.reap_step(),
            Phase::Log => self.log_step(),
            Phase::Bits => self.bits_step(),
            Phase::Bitmaps => self.bitmaps_step(),
            Phase::Catalogue => self.catalogue_step(),
            Phase::Records => self.records_step(),
            Phase::FlushData | Phase::FlushCommit | Phase::FlushSecond => self.flushed_step(),
            Phase::Commit | Phase::Second => self.drained(),
            Phase::Release => self.release_step(),
        }
    }

    fn drained(&self) -> Step {
        if self.checkpoint.outstanding == 0 { Step::Done } else { Step::Wait }
    }

    fn next_phase(&mut self) {
        self.checkpoint.cursor = 0;
        self.checkpoint.phase = match self.checkpoint.phase {
            Phase::Idle => Phase::Idle,
            Phase::Pairs => Phase::Nodes,
            Phase::Nodes => {
                self.finish_nodes();
                Phase::NodesDrain
            }
            Phase::NodesDrain => {
                self.begin_settling();
                Phase::Undecided
            }
            Phase::Undecided => {
                self.begin_reap();
                Phase::Reap
            }
            Phase::Reap => Phase::Log,
            Phase::Log => Phase::Bits,
            Phase::Bits => Phase::Bitmaps,
            Phase::Bitmaps => Phase::Catalogue,
            Phase::Catalogue => Phase::Records,
            Phase::Records => Phase::SystemDrain,
            Phase::SystemDrain => {
                if planted(Canary::FreedTooEarly) {
                    while self.release_step() == Step::Go {}
                }
                if !planted(Canary::CommitBeforeData) {
                    self.begin_checkpoint_flush();
                }
                Phase::FlushData
            }
            Phase::FlushData => {
                self.begin_commit();
                Phase::Commit
            }
            Phase::Commit => {
                if !planted(Canary::CommitUnflushed) {
                    self.begin_checkpoint_flush();
                }
                Phase::FlushCommit
            }
            Phase::FlushCommit => {
                self.committed();
                Phase::Second
            }
            Phase::Second => {
                self.begin_checkpoint_flush();
                Phase::FlushSecond
            }
            Phase::FlushSecond => Phase::Release,
            Phase::Release => {
                self.checkpoint_over();
                Phase::Idle
            }
        };
    }

    fn flushed_step(&self) -> Step {
        if self.checkpoint_flushing() { Step::Wait } else { Step::Done }
    }

    /// Writes the copy of the superblock that is not the newest: that commits.
    fn begin_commit(&mut self) {
        self.superblock.generation += 1;
        self.superblock.journal_tail = self.checkpoint.cut;
        if planted(Canary::TailTooFar) {
            self.superblock.journal_tail = self.journal.applied();
        }
        self.superblock.incarnation = self.journal.incarnation;
        self.superblock.records_used = self.disks.len() as u64;
        self.write_superblock(1 - self.checkpoint.newest_superblock);
    }

    fn write_superblock(&mut self, copy: u64) {
        let (superblock, store, shard) = (self.superblock, self.store, self.shard);
        let write = self.write_page(copy, |block| superblock.write(block, store, shard, copy));
        assert!(write, "the checkpoint's page writers are idle here");
    }

    /// The checkpoint counts: trim the journal, answer commands, write the other copy.
    fn committed(&mut self) {
        self.journal.tail = self.checkpoint.cut;
        self.stats.checkpoints += 1;
        self.checkpoint.newest_superblock = 1 - self.checkpoint.newest_superblock;
        for disk in self.disks.iter_mut().flatten() {
            disk.guarded = 0;
        }
        for at in 0..self.checkpoint.versions.len() {
            let version = self.checkpoint.versions[at];
            let disk = self.disks[version.disk as usize].as_mut().expect("not gone yet");
            if let Some(snap) = disk.snap_mut(version.epoch).filter(|_| !version.live) {
                snap.written = true;
            }
        }
        for (cookie, reply) in std::mem::take(&mut self.checkpoint.replies) {
            self.replies.push_back((cookie, Ok(reply)));
        }
        for id in std::mem::take(&mut self.checkpoint.gone) {
            self.cache.purge(id);
            let side = self.disks[id as usize].take().expect("gone only now").side;
            self.free_records.push((id, side));
        }
        self.unpark = true;
        self.write_superblock(1 - self.checkpoint.newest_superblock);
    }

    /// Gives freed blocks out again, once no read can still be on them.
    fn release_step(&mut self) -> Step {
        if planted(Canary::FreedTooEarly) && self.checkpoint.phase == Phase::Release {
            return Step::Done;
        }
        if self.readers[self.checkpoint.old_lane] > 0 && !planted(Canary::FreedUnderRead) {
            return Step::Wait;
        }
        for _ in 0..64 {
            let Some((pba, len)) = self.checkpoint.old_freed.get(self.checkpoint.cursor) else {
                return Step::Done;
            };
            self.checkpoint.cursor += 1;
            if !self.hold_back(pba, len) {
                self.space.release(pba, len);
            }
        }
        Step::Go
    }

    fn checkpoint_over(&mut self) {
        let c = &mut self.checkpoint;
        c.over += 1;
        c.entries.clear();
        c.versions.clear();
        c.at = 0;
        c.old_freed.clear();
        c.old_allocated.clear();
        c.old_undecided.clear();
        for (cookie, reply) in std::mem::take(&mut self.checkpoint.late_replies) {
            self.replies.push_back((cookie, Ok(reply)));
        }
        self.release_pairs();
        self.unpark = true;
        self.recovery_committed();
        self.retry_commands();
    }

    /// Writes one block of system metadata; false: all page writers are in use, try again.
    pub(crate) fn write_page(
        &mut self,
        address: u64,
        fill: impl FnOnce(&mut crate::format::Block),
    ) -> bool {
        let Some(at) = self.checkpoint.writes.iter().position(|w| w.is_none()) else {
            return false;
        };
        let Some(page) = self.pages.take() else { return false };
        fill(self.pages.bytes_mut(page));
        self.checkpoint.writes[at] = Some(PageWrite { page, address, tries: 0 });
        self.checkpoint.outstanding += 1;
        let addr = self.pages.addr(page);
        self.issue(tag(Class::Page, 0, at as u32), BaseOp::Write, address, addr, 4096);
        true
    }

    pub(crate) fn page_write_done(&mut self, at: u32, result: Result<(), BaseError>) {
        let write = self.checkpoint.writes[at as usize].as_mut().expect("a page write in flight");
        if result.is_err() {
            write.tries += 1;
            if write.tries < WRITE_RETRIES {
                let (address, addr) = (write.address, self.pages.addr(write.page));
                self.issue(tag(Class::Page, 0, at), BaseOp::Write, address, addr, 4096);
                return;
            }
            self.fail("a metadata block could not be written".to_string());
        }
        let write = self.checkpoint.writes[at as usize].take().expect("looked at");
        self.pages.give(write.page);
        self.checkpoint.outstanding -= 1;
        self.unpark = true;
    }

    pub(crate) fn issue_chunk(&mut self, at: usize) {
        let chunk = &mut self.checkpoint.chunks[at];
        chunk.writing = true;
        let (addr, len) = (chunk.pages.addr(PageId(0)), chunk.count as u32 * 4096);
        let start = chunk.start;
        self.issue(tag(Class::Chunk, 0, at as u32), BaseOp::Write, start, addr, len);
    }

    pub(crate) fn chunk_write_done(&mut self, at: u32, result: Result<(), BaseError>) {
        let chunk = &mut self.checkpoint.chunks[at as usize];
        assert!(chunk.writing);
        if result.is_err() {
            chunk.tries += 1;
            if chunk.tries < WRITE_RETRIES {
                self.issue_chunk(at as usize);
                return;
            }
            self.fail("map nodes could not be written".to_string());
        }
        let chunk = &mut self.checkpoint.chunks[at as usize];
        chunk.tries = 0;
        chunk.writing = false;
        chunk.count = 0;
        let mut pins = std::mem::take(&mut chunk.pins);
        // After a failure nothing may be evicted that the disk does not have.
        if self.failed.is_none() {
            for slot in pins.drain(..) {
                self.cache.unpin(slot);
            }
        }
        self.checkpoint.chunks[at as usize].pins = pins;
        self.checkpoint.outstanding -= 1;
        self.unpark = true;
    }
}

//! The consistency point: a snapshot of all disks that nobody keeps.
//!
//! ```text
//!  Idle ─freeze─► Order ─► Nodes ─► Undecided ─► Reap ─► Log
//!    ▲        (checkpoint_order, _nodes)     (background/reaper)
//!    │            Records ◄─ Catalogue ◄─ Bitmaps ◄─ Bits ◄─┘
//!    │               └──────────┐           (checkpoint_system)
//!    └─ Release ◄─ flush ◄─ second copy ◄─ flush = commit ◄─ superblock ◄─ flush ◄── all written
//!               └ from here on it is relied on
//! ```
//!
//! The freeze takes the lists of what changed; from then on requests fill new ones, and a leaf that
//! is still to be written is copied aside before it changes. Each turn does a bounded piece
//! (`checkpoint_pace`), so that reads do not wait for it. Blocks freed before the
//! freeze are given out again after the second copy of the superblock is durable and reads that
//! began before the freeze are done. Before all this, places in the snapshot logs are made sure of
//! (`log_pairs`). Bury, before Bitmaps, is there only where a catalogue was lost (`space/rebuild`).

pub(crate) use super::checkpoint_state::{
    Checkpoint, Chunk, Dropped, PageWrite, Phase, RunList, Step, Undecided, Version,
};
use crate::background::walker::REAPER;
use crate::canary::{Canary, planted};
use crate::engine::{Engine, EngineState};
use crate::limits::{CHECKPOINT_BITS_STEP, CHECKPOINT_INTERVAL_NS};
use crate::map::radix::freeze_tag;

impl Engine {
    /// True if one more leaf may become dirty.
    pub(crate) fn checkpoint_has_room(&self) -> bool {
        let c = &self.checkpoint;
        c.dirty_count() < c.dirty_max && c.freed.0.len() < 1 << 21 && c.undecided.len() < 1 << 20
    }

    /// Blocks that a checkpoint under way or to come gives back.
    pub(crate) fn pending_blocks(&self) -> u64 {
        let c = &self.checkpoint;
        c.freed.0.blocks() + c.old_freed.blocks() - c.released + self.hold.blocks()
    }

    /// True if waiting may bring space. Dirty leaves count: more is kept back for them than their
    /// checkpoint will need.
    pub(crate) fn space_is_coming(&self) -> bool {
        self.failed.is_none()
            && !self.starved.waits()
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

    /// A bounded piece of the checkpoint, if one runs or is due.
    pub(crate) fn checkpoint_step(&mut self) {
        let share = self.checkpoint_share();
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
        for _ in 0..share {
            match self.checkpoint_phase() {
                Step::Go | Step::Done if self.failed.is_some() => return,
                Step::Go => {}
                Step::Wait => {
                    self.checkpoint.waiting = true;
                    break;
                }
                Step::Done => self.next_phase(),
            }
            if self.checkpoint.phase == Phase::Idle {
                return;
            }
        }
        // Where a write is a copy on this very core, long ones only make long turns.
        if self.traits.atomic_rw {
            self.seal_chunk();
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
        self.cache.unsealed = freeze_tag(c.freezes - 1);
        c.at = 0;
        c.version = 0;
        c.begun = false;
        (c.cursor, c.within) = (0, 0);
        std::mem::swap(&mut c.entries, &mut c.dirty);
        std::mem::swap(&mut c.old_freed, &mut c.freed.0);
        std::mem::swap(&mut c.old_allocated, &mut c.allocated);
        std::mem::swap(&mut c.old_undecided, &mut c.undecided);
        c.cut = self.journal.applied();
        if planted(Canary::TrimBeforeCommit) {
            self.journal.tail = c.cut;
        }
        c.old_lane = self.lane;
        c.order.begin();
        assert_eq!(self.readers[1 - self.lane], 0);
        self.lane = 1 - self.lane;
        self.walkers[REAPER].forget();
        self.list_versions();
        self.checkpoint.phase = Phase::Pairs;
    }

    /// Which versions of which disks have to be written: snapshots without a tree, then the live.
    fn list_versions(&mut self) {
        let c = &mut self.checkpoint;
        for (id, disk) in self.disks.iter_mut().enumerate() {
            let Some(disk) = disk else { continue };
            disk.frozen_epoch = disk.epoch;
            disk.frozen_mapped = disk.mapped;
            let first_pending = disk.snaps.partition_point(|s| s.root.is_some());
            for snap in &disk.snaps[first_pending..] {
                let (disk, epoch) = (id as u32, snap.id);
                c.versions.push(Version { disk, epoch, live: false, end: 0 });
            }
            let (disk, epoch) = (id as u32, disk.epoch);
            // It may turn out that all its leaves are of snapshots.
            if c.has_changed(disk) {
                c.versions.push(Version { disk, epoch, live: true, end: 0 });
            }
        }
        c.forget_changed();
    }

    /// Finds a piece of the order of the leaves.
    fn order_step(&mut self) -> Step {
        let c = &mut self.checkpoint;
        if c.order.step(&c.entries) { Step::Done } else { Step::Go }
    }

    fn checkpoint_phase(&mut self) -> Step {
        match self.checkpoint.phase {
            Phase::Idle => Step::Wait,
            Phase::Pairs => self.pairs_step(),
            Phase::Order => self.order_step(),
            Phase::Nodes => self.nodes_step(),
            Phase::NodesDrain | Phase::BuryDrain | Phase::SystemDrain => self.drained(),
            Phase::Undecided => self.undecided_step(),
            Phase::Reap => self.reap_step(),
            Phase::Log => self.log_step(),
            Phase::Bits => self.bits_step(),
            Phase::Bury => self.bury_step(),
            Phase::FlushBuried => self.flushed_step(),
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
        (self.checkpoint.cursor, self.checkpoint.within) = (0, 0);
        self.checkpoint.phase = match self.checkpoint.phase {
            Phase::Idle => Phase::Idle,
            Phase::Pairs => Phase::Order,
            Phase::Order => Phase::Nodes,
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
            Phase::Bits if self.space.buried.is_empty() => Phase::Bitmaps,
            Phase::Bits => Phase::Bury,
            Phase::Bury => Phase::BuryDrain,
            Phase::BuryDrain => {
                self.begin_checkpoint_flush();
                Phase::FlushBuried
            }
            Phase::FlushBuried => Phase::Bitmaps,
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
                self.begin_second();
                Phase::Second
            }
            Phase::Second => {
                if !planted(Canary::CommitUnflushed) {
                    self.begin_checkpoint_flush();
                }
                Phase::FlushSecond
            }
            Phase::FlushSecond => {
                self.committed();
                Phase::Release
            }
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
        self.write_superblock();
    }

    /// The checkpoint counts, but would not if this one copy were lost: the other one too, before
    /// anything relies on it.
    fn begin_second(&mut self) {
        self.checkpoint.homes.newest = 1 - self.checkpoint.homes.newest;
        self.write_superblock();
    }

    /// The checkpoint can be relied on: trim the journal, answer commands.
    fn committed(&mut self) {
        // What the reaper still reads may be given out again from now on.
        self.walkers[REAPER].forget();
        self.cache.unsealed = 0;
        self.journal.tail = self.checkpoint.cut;
        self.journal.point = self.superblock.generation;
        self.stats.checkpoints += 1;
        self.fed();
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
    }

    /// Gives freed blocks out again, once no read can still be on them.
    fn release_step(&mut self) -> Step {
        if planted(Canary::FreedTooEarly) && self.checkpoint.phase == Phase::Release {
            return Step::Done;
        }
        if self.readers[self.checkpoint.old_lane] > 0 && !planted(Canary::FreedUnderRead) {
            return Step::Wait;
        }
        let mut left = CHECKPOINT_BITS_STEP;
        while left > 0 {
            let Some(run) = self.checkpoint.old_freed.get(self.checkpoint.cursor) else {
                return Step::Done;
            };
            let (pba, len) = self.checkpoint.piece(run, left);
            self.checkpoint.advance(run, len);
            self.checkpoint.released += len;
            if !self.hold_back(pba, len) {
                self.space.release(pba, len);
            }
            left -= len;
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
        c.released = 0;
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
}

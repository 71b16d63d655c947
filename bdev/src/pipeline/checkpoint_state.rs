//! What a consistency point works on: lists of what changed since the last freeze, and of what the
//! running one has still to write.
//!
//! ```text
//!  requests ─► dirty, freed, allocated, undecided ─freeze─► entries, old_freed, old_... ─► disk
//! ```

use super::checkpoint_order::Order;
use super::superblocks::Homes;
use crate::background::reaper::Descent;
use crate::background::settle::Settling;
use crate::control::Reply;
use crate::limits::{CHUNK_BLOCKS, CHUNKS, DISKS_MAX, SYSTEM_WRITES, WRITE_RETRIES};
use crate::map::node_cache::Key;
use crate::page::{PageId, Pages};
use crate::slots::NONE;

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
    /// Where its leaves end in the order, once they are being written.
    pub end: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Idle,
    Pairs,
    Order,
    Nodes,
    NodesDrain,
    Undecided,
    Reap,
    Log,
    Bits,
    Bury,
    BuryDrain,
    FlushBuried,
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
    pub tries: u8,
}

/// A single block on its way: catalogue, bitmap, record, log, superblock.
pub(crate) struct PageWrite {
    pub page: PageId,
    pub address: u64,
    pub tries: u8,
}

pub(crate) struct Checkpoint {
    /// Freezes since the engine was opened.
    pub freezes: u64,
    /// Checkpoints over since the engine was opened, what they freed given back; from 1.
    pub over: u64,
    pub phase: Phase,
    /// Since the last freeze.
    pub dirty: Vec<DirtyLeaf>,
    /// A bit a disk: it has such leaves.
    changed: Vec<u64>,
    pub freed: RunListFreed,
    pub allocated: RunList,
    pub undecided: Vec<Undecided>,
    /// Somebody waits for what a checkpoint frees.
    pub urgent: bool,
    /// A snapshot may have settled: look at waiting commands.
    pub settled: bool,
    pub dirty_max: usize,
    pub last_ns: u64,
    /// Of the running checkpoint, in the order in which they became dirty.
    pub entries: Vec<DirtyLeaf>,
    /// In which they are written; of these, `at` have been.
    pub order: Order,
    pub versions: Vec<Version>,
    pub version: usize,
    pub at: usize,
    pub path: [u32; 4],
    pub begun: bool,
    pub old_freed: RunList,
    /// Blocks of it that have been given back.
    pub released: u64,
    pub old_allocated: RunList,
    pub old_undecided: Vec<Undecided>,
    pub cursor: usize,
    /// Blocks of the run at the cursor that have been dealt with.
    pub within: u64,
    pub cut: u64,
    pub old_lane: usize,
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
    /// Requests that have come since the last turn, and turns since the last one that had any.
    pub requests: usize,
    pub quiet: u32,
    /// The entry that was looked at ahead of its turn, and how many parts of it.
    pub looked_at: (usize, usize),
    /// By number of a pair in the system area: the generation that counts, 0 if it has none. The
    /// superblock's sums are over these.
    pub generations: Vec<u64>,
    pub homes: Homes,
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
            order: Order::new(cache_slots),
            changed: vec![0; DISKS_MAX.div_ceil(64) as usize],
            versions: Vec::new(),
            version: 0,
            at: 0,
            path: [NONE; 4],
            begun: false,
            old_freed: RunList::roomy(),
            released: 0,
            old_allocated: RunList::roomy(),
            old_undecided: Vec::new(),
            cursor: 0,
            within: 0,
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
            requests: 0,
            quiet: 0,
            looked_at: (0, 0),
            generations: Vec::new(),
            homes: Homes::new(),
            reap_budget: 0,
            reap: Descent::new(),
            settling: Settling::default(),
        }
    }

    /// The first blocks, at most `most`, of the run at the cursor that have not been dealt with.
    pub fn piece(&self, (pba, len): (u64, u64), most: u64) -> (u64, u64) {
        (pba + self.within, (len - self.within).min(most))
    }

    /// So many blocks more of that run have.
    pub fn advance(&mut self, (_, len): (u64, u64), blocks: u64) {
        self.within += blocks;
        if self.within == len {
            (self.cursor, self.within) = (self.cursor + 1, 0);
        }
    }

    /// Leaves that have to be written, frozen ones included.
    pub fn dirty_count(&self) -> usize {
        self.dirty.len() + self.entries.len() - self.at.min(self.entries.len())
    }

    /// True from a freeze until its commit can be relied on.
    pub fn uncommitted(&self) -> bool {
        !matches!(self.phase, Phase::Idle | Phase::Release)
    }

    pub fn add_dirty(&mut self, disk: u32, epoch: u64, index: u64, slot: u32) -> u32 {
        self.changed[disk as usize / 64] |= 1 << (disk % 64);
        self.dirty.push(DirtyLeaf { disk, epoch, index, slot });
        self.dirty.len() as u32 - 1
    }

    /// The first leaf of `disk` in `from .. to` that no checkpoint has written yet.
    pub fn first_dirty(&self, disk: u32, from: u64, to: u64) -> Option<u64> {
        let written = if self.at == 0 { 0 } else { self.entries.len() };
        let unwritten = self.order.from(if self.at == 0 { usize::MAX } else { self.at });
        let unwritten = unwritten.iter().map(|place| &self.entries[*place as usize]);
        // Before the first is written, the order may not be found yet, and does not matter.
        let waiting = self.entries[written..].iter().chain(unwritten);
        let all = waiting.chain(&self.dirty).filter(|e| e.disk == disk).map(|e| e.index);
        all.filter(|index| (from..to).contains(index)).min()
    }

    /// True if leaves of the disk have become dirty since the last freeze.
    pub fn has_changed(&self, disk: u32) -> bool {
        self.changed[disk as usize / 64] >> (disk % 64) & 1 == 1
    }

    /// From now on none have.
    pub fn forget_changed(&mut self) {
        self.changed.fill(0);
    }

    /// The leaf that is to be written next, when the order is found.
    pub fn next_leaf(&self) -> Option<&DirtyLeaf> {
        self.order.from(self.at).first().map(|place| &self.entries[*place as usize])
    }

    /// Where the leaves of a version end that begin with the next one.
    pub fn end_of(&self, version: &Version) -> usize {
        let within = |place: &u32| {
            let leaf = &self.entries[*place as usize];
            (leaf.disk, leaf.epoch) <= (version.disk, version.epoch)
        };
        self.at + self.order.from(self.at).partition_point(within)
    }

    /// The last leaf before the one at `end`, if it is not written yet.
    pub fn last_before(&self, end: usize) -> Option<&DirtyLeaf> {
        let ours = &self.order.from(self.at)[..end - self.at];
        ours.last().map(|place| &self.entries[*place as usize])
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

    pub fn has_changes(&self) -> bool {
        !self.dirty.is_empty()
            || self.freed.0.len() > 0
            || self.allocated.len() > 0
            || !self.undecided.is_empty()
    }
}

//! The engine: four verbs in (`submit`, `complete`, `tick`, `command`), outboxes out. Nothing
//! re-enters; nothing here knows what a thread, a clock or a socket is.

use crate::background::diff::Diffs;
use crate::background::hold::Hold;
use crate::background::walker::Walker;
use crate::base_io::{BaseIo, BaseOp, BaseTraits};
use crate::commands::{PendingSnapshot, Resize};
use crate::control::{Command, CommandDone, SpaceUsage, StoreInfo};
use crate::disk::straight::Straights;
use crate::disk::{Disk, Root, Traffic};
use crate::error::Error;
use crate::format::label::StoreLabel;
use crate::format::superblock::Superblock;
use crate::limits::{
    CACHE_BYTES_MAX, CACHE_BYTES_MIN, CACHE_RESERVE, JOURNAL_WINDOW, NODES_A_LEAF, READ_WINDOW,
    SEGS_MAX, SLOTS_INTERNAL, SYSTEM_READS, SYSTEM_WRITES,
};
use crate::map::node_cache::NodeCache;
use crate::page::{Pages, pieces};
use crate::pipeline::checkpoint::Checkpoint;
use crate::pipeline::flush::Flush;
use crate::pipeline::journal::Journal;
use crate::pipeline::starved::Starved;
use crate::recover::Recovery;
use crate::request::{Done, Op as Verb, Request, Seg};
use crate::ring::Ring;
use crate::slots::{Kind, List, Slots, Stage};
use crate::space::Space;
use crate::stats::Stats;
use crate::status::{BaseError, Status};
use crate::types::{BLOCK_SIZE, DiskId, Handle, Tag, Uuid};
use std::collections::VecDeque;

/// Sizes that are fixed when an engine is made.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Requests in flight (slots); `submit` refuses beyond.
    pub slots: usize,
    /// Node cache budget, bytes: from [`CACHE_BYTES_MIN`] to [`CACHE_BYTES_MAX`], and taken as the
    /// nearer of them otherwise.
    pub cache_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config { slots: 1024, cache_bytes: 64 << 20 }
    }
}

impl Config {
    /// Bytes that an engine takes at least, all of them when it is made.
    pub fn memory_bytes(&self) -> u64 {
        let slots = self.slots as u64 * size_of::<[Seg; SEGS_MAX]>() as u64;
        (self.cache_bytes as u64).saturating_add(slots)
    }
}

/// Where an engine is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EngineState {
    /// Recovering: drive its I/O, submit nothing.
    Opening,
    /// Serving.
    Ready,
    /// Open failed; see [`Engine::open_error`].
    Failed,
}

/// Something worth a line in the log.
#[derive(Clone, Debug)]
pub struct Event {
    /// For people.
    pub text: String,
    /// Needs somebody's attention.
    pub severe: bool,
}

/// An attachment.
pub(crate) struct Attachment {
    pub generation: u16,
    pub target: Option<Attached>,
}

#[derive(Clone, Copy)]
pub(crate) struct Attached {
    /// Key space in the node cache.
    pub tree: u32,
    pub disk: u32,
    /// Snapshot number, 0 for the live disk.
    pub snap: u64,
    /// Root of a snapshot view.
    pub root: Root,
    pub size: u64,
}

/// What a request that was checked is for.
#[derive(Clone, Copy)]
pub(crate) struct Live {
    /// See [`Attached`].
    pub tree: u32,
    pub disk: u32,
}

/// What a tag's completion is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Class {
    Op = 1,
    Node = 2,
    Journal = 3,
    Flush = 4,
    Chunk = 5,
    Page = 6,
    Bitmap = 8,
    Walk = 9,
    Recover = 10,
    Straight = 11,
}

/// Class in the top byte, 24 bits of generation, 32 bits of index.
pub(crate) fn tag(class: Class, generation: u32, index: u32) -> Tag {
    Tag((class as u64) << 56 | u64::from(generation & 0xff_ffff) << 32 | u64::from(index))
}

/// Trees of snapshot views have numbers from here on.
pub(crate) const VIEW_TREES: u32 = 1 << 20;

/// One shard's engine.
pub struct Engine {
    pub(crate) traits: BaseTraits,
    pub(crate) store: Uuid,
    pub(crate) shard: u16,
    /// Pages that only the journal and the checkpoint's writers may take.
    pub(crate) page_reserve: usize,
    pub(crate) state: EngineState,
    pub(crate) open_error: Option<Error>,
    /// The shard takes no more writes until it is reopened: why.
    pub(crate) failed: Option<String>,
    pub(crate) now: u64,
    pub(crate) stats: Stats,
    pub(crate) slots: Slots,
    pub(crate) straights: Straights,
    pub(crate) pages: Pages,
    pub(crate) cache: NodeCache,
    pub(crate) space: Space,
    pub(crate) superblock: Superblock,
    pub(crate) disks: Vec<Option<Box<Disk>>>,
    pub(crate) attachments: Vec<Attachment>,
    /// Record slots of disks that could not be opened; not reused.
    pub(crate) lost: Vec<u32>,
    /// A disk or a clone's origin could not be opened: what it shares is unknown, so nothing shared
    /// is given back.
    pub(crate) bereft: bool,
    /// Free record slots that hold something of a checkpoint that never committed.
    pub(crate) scrub: Vec<u32>,
    /// Free record slots that were used before, and which copy says so.
    pub(crate) free_records: Vec<(u32, usize)>,
    pub(crate) next_view: u32,
    pub(crate) journal: Journal,
    pub(crate) flush: Flush,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) starved: Starved,
    /// By [`crate::background::walker::REAPER`] and its kind.
    pub(crate) walkers: [Walker; 2],
    pub(crate) diffs: Diffs,
    pub(crate) hold: Hold,
    pub(crate) recovery: Option<Box<Recovery>>,
    pub(crate) commands: VecDeque<(u64, Command)>,
    pub(crate) resizes: Vec<Resize>,
    pub(crate) pending_snapshots: Vec<PendingSnapshot>,
    /// Operations to be advanced before the current verb returns.
    pub(crate) ready: VecDeque<u32>,
    /// Operations that used up their share of this turn.
    pub(crate) later: VecDeque<u32>,
    pub(crate) parked: List,
    /// Something that parked operations wait for has been freed.
    pub(crate) unpark: bool,
    /// Reads in flight by lane (see the checkpoint).
    pub(crate) readers: [u64; 2],
    pub(crate) lane: usize,
    /// Reads in flight by hash of (disk, block); used only where reads see half-done writes.
    pub(crate) reading: Vec<u16>,
    /// Bitmap read in flight: extent and its two pages.
    pub(crate) bitmap_load: Option<usize>,
    /// Reads of it that failed since the last that did not.
    pub(crate) bitmap_failures: u32,
    pub(crate) bitmap_pages: Pages,
    pub(crate) io: Ring<BaseIo>,
    pub(crate) done: Ring<Done>,
    /// Answers that may wait to be fetched before requests are refused.
    pub(crate) done_max: usize,
    pub(crate) replies: VecDeque<CommandDone>,
    pub(crate) events: VecDeque<Event>,
    pub(crate) in_flight: u64,
    /// Deleted versions that wait for the reaper.
    pub(crate) to_reap: usize,
}

impl Engine {
    /// Starts opening (recovering) the shard whose region the host maps to byte offset 0. Drive its
    /// I/O until [`Engine::state`] says Ready or Failed.
    pub fn open(config: Config, base: BaseTraits, label: &StoreLabel, shard: u32) -> Engine {
        let guests = config.slots.clamp(1, 65_536);
        let slots = guests + SLOTS_INTERNAL;
        let nodes = NodeCache::slots_in(config.cache_bytes.clamp(CACHE_BYTES_MIN, CACHE_BYTES_MAX));
        // Journal blocks in RAM, partial writes (one page each, bounded), node reads, page writes.
        let journal_pages = JOURNAL_WINDOW + slots / 15 + 4;
        let page_reserve = journal_pages + SYSTEM_WRITES;
        let pages = page_reserve + SYSTEM_READS + slots.min(256) + 16;
        Engine {
            traits: base,
            store: label.uuid,
            shard: shard as u16,
            page_reserve,
            state: EngineState::Opening,
            open_error: None,
            failed: None,
            now: 0,
            stats: Stats::default(),
            slots: Slots::new(guests, SLOTS_INTERNAL),
            straights: Straights::new(guests),
            pages: Pages::new(pages),
            cache: NodeCache::new(nodes),
            space: Space::new(Default::default()),
            superblock: Superblock::default(),
            disks: Vec::new(),
            attachments: Vec::new(),
            lost: Vec::new(),
            bereft: false,
            scrub: Vec::new(),
            free_records: Vec::new(),
            next_view: VIEW_TREES,
            journal: Journal::new(journal_pages),
            flush: Flush::default(),
            checkpoint: Checkpoint::new(nodes),
            starved: Starved::new(),
            walkers: [Walker::new(), Walker::new()],
            diffs: Diffs::default(),
            hold: Hold::new(),
            recovery: Some(Box::new(Recovery::new(label.region_bytes))),
            commands: VecDeque::new(),
            resizes: Vec::new(),
            pending_snapshots: Vec::new(),
            ready: VecDeque::with_capacity(slots),
            later: VecDeque::with_capacity(slots),
            parked: List::EMPTY,
            unpark: false,
            readers: [0; 2],
            lane: 0,
            reading: vec![0; if base.atomic_rw { 0 } else { 8192 }],
            bitmap_load: None,
            bitmap_failures: 0,
            bitmap_pages: Pages::new(2),
            io: Ring::new(slots * READ_WINDOW as usize + pages + 256),
            done: Ring::new(2 * slots),
            done_max: slots,
            replies: VecDeque::new(),
            events: VecDeque::new(),
            in_flight: 0,
            to_reap: 0,
        }
    }

    /// Where the engine is in its life.
    pub fn state(&self) -> EngineState {
        self.state
    }

    /// Why opening failed.
    pub fn open_error(&self) -> Option<&Error> {
        self.open_error.as_ref()
    }

    /// Why the shard refuses writes since a journal, metadata or flush operation failed; reopen it.
    pub fn failure(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Takes a request. False: all slots are taken, nothing was accepted, try again after the next
    /// `Done`. The answer may be in [`Engine::next_done`] already on return.
    #[must_use]
    pub fn submit(&mut self, request: &Request, segs: &[Seg]) -> bool {
        if self.done.len() >= self.done_max {
            return false;
        }
        let Some(index) = self.slots.take(true) else { return false };
        self.checkpoint.requests += 1;
        let op = &mut self.slots[index];
        op.cookie = request.cookie;
        op.offset = request.offset;
        op.len = request.len;
        op.fua = request.fua;
        op.kind = match request.op {
            Verb::Read => Kind::Read,
            Verb::Write => Kind::Write,
            Verb::Flush => Kind::Flush,
            Verb::Discard => Kind::Discard,
            Verb::WriteZeroes => Kind::WriteZeroes,
        };
        match self.check(request, segs) {
            Ok(target) => {
                let op = &mut self.slots[index];
                op.tree = target.tree;
                op.disk = target.disk;
                self.slots.set_segs(index, segs);
                self.advance(index);
                self.run_ready();
            }
            Err(status) => self.finish(index, status),
        }
        true
    }

    /// Ends an operation and answers its request.
    #[inline(always)]
    pub(crate) fn finish(&mut self, index: u32, status: Status) {
        let op = &self.slots[index];
        let (kind, cookie) = (op.kind, op.cookie);
        if status == Status::Ok {
            let (tree, disk, len) = (op.tree, op.disk, op.len);
            self.count_done(kind, tree, disk, len);
        }
        self.slots.give(index);
        match kind {
            Kind::Trim => self.trim_done(cookie as usize, status),
            Kind::Snapshot => self.snapshot_done(cookie, status),
            Kind::Read | Kind::Write | Kind::Flush | Kind::Discard | Kind::WriteZeroes => {
                self.done.push(Done { cookie, status });
            }
        }
    }

    /// Reports a base operation. Panics on a tag that is not in flight.
    pub fn complete(&mut self, tag: Tag, result: Result<(), BaseError>) {
        self.note_completion();
        let class = (tag.0 >> 56) as u8;
        let (generation, index) = ((tag.0 >> 32) as u32 & 0xff_ffff, tag.0 as u32);
        match class {
            1 => self.op_io_done(index, generation, result),
            2 => self.node_read_done(index, result),
            3 => self.journal_write_done(index, result),
            4 => self.flush_done(result),
            5 => self.chunk_write_done(index, result),
            6 => self.page_write_done(index, result),
            8 => self.bitmap_read_done(result),
            9 => self.walk_read_done(generation as usize, index, result),
            10 => self.recover_io_done(index, result),
            _ => panic!("a tag of no known class"),
        }
        self.run_ready();
    }

    /// A base operation is over; those in the background may wait for just that.
    #[inline]
    pub(crate) fn note_completion(&mut self) {
        assert!(self.in_flight > 0, "a base operation completed that was never started");
        self.in_flight -= 1;
        self.checkpoint.waiting = false;
        self.diffs.waiting = false;
    }

    /// Once a turn, after submits and completes: closes the commit batch and takes background work
    /// a bounded step further. `now_ns` is monotonic. Then drain [`Engine::next_io`].
    pub fn tick(&mut self, now_ns: u64) {
        self.now = now_ns;
        if self.state != EngineState::Ready {
            self.recover_step();
            if self.state == EngineState::Failed {
                return;
            }
        }
        for _ in 0..self.later.len() {
            let index = self.later.pop_front().expect("counted");
            self.advance(index);
        }
        if std::mem::take(&mut self.unpark) {
            self.wake_parked();
        }
        self.run_ready();
        if std::mem::take(&mut self.checkpoint.settled) {
            self.retry_commands();
        }
        self.journal_close_batch();
        self.retry_starved();
        self.checkpoint_step();
        self.diff_step();
        self.hold_step();
        self.load_wanted_bitmap();
        self.space.refill();
        self.run_ready();
    }

    /// The next base operation to start.
    pub fn next_io(&mut self) -> Option<BaseIo> {
        let io = self.io.pop()?;
        match io.op {
            BaseOp::Read => self.stats.base_reads += 1,
            BaseOp::Write => self.stats.base_writes += 1,
            BaseOp::Flush => self.stats.base_flushes += 1,
        }
        self.in_flight += 1;
        Some(io)
    }

    /// The next request that is done.
    pub fn next_done(&mut self) -> Option<Done> {
        self.done.pop()
    }

    /// Segments of an operation whose `first` does not cover it; clears and fills `out`.
    pub fn gather(&self, io: &BaseIo, out: &mut Vec<Seg>) {
        out.clear();
        if io.first.len >= io.len as usize {
            out.push(Seg { addr: io.first.addr, len: io.len as usize });
            return;
        }
        let (slot, at) = io.source;
        pieces(self.slots.segs(slot), at as usize, io.len as usize, |seg| out.push(seg));
    }

    /// Takes a control command; its answer comes from [`Engine::next_reply`].
    pub fn command(&mut self, cookie: u64, command: Command) {
        self.take_command(cookie, command);
        self.run_ready();
    }

    /// The next answer to a command.
    pub fn next_reply(&mut self) -> Option<CommandDone> {
        self.replies.pop_front()
    }

    /// The next line for the log.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// True if a tick now would get on with something even without new input.
    pub fn busy(&self) -> bool {
        !self.io.is_empty()
            || !self.done.is_empty()
            || !self.ready.is_empty()
            || !self.later.is_empty()
            || self.unpark
            || self.checkpoint.settled
            || self.journal.has_open_batch()
            || self.checkpoint_wants_turn()
            || self.diffs.want_turn()
            || self.hold.wants_turn()
    }

    /// When a tick is wanted although nothing happens, in the clock of `tick`.
    pub fn deadline_ns(&self) -> Option<u64> {
        let retry = self.starved.deadline_ns();
        [self.checkpoint_deadline(), retry].into_iter().flatten().min()
    }

    /// Traffic of a live disk since the engine was made.
    pub fn traffic(&self, disk: DiskId) -> Option<Traffic> {
        Some(self.disks.get(disk.0 as usize)?.as_ref()?.traffic)
    }

    /// How full the shard is; cheap enough for every turn.
    pub fn space_usage(&self) -> SpaceUsage {
        let (total, free) = (self.space.capacity(), self.space.free + self.pending_blocks());
        SpaceUsage {
            used_blocks: total.saturating_sub(free),
            usable_blocks: total.saturating_sub(self.reserve_fixed()),
        }
    }

    /// The shard's space and journal.
    pub fn store_info(&self) -> StoreInfo {
        let reserved = self.reserve();
        StoreInfo {
            total_blocks: self.space.capacity(),
            free_blocks: self.space.free.saturating_sub(reserved),
            pending_blocks: self.pending_blocks(),
            reserved_blocks: reserved.min(self.space.free),
            journal_blocks: self.superblock.geometry.journal_blocks,
            journal_used: self.journal.used(),
            checkpoints: self.superblock.generation,
            disks: self.disks.iter().flatten().filter(|d| !d.deleting).count() as u64,
        }
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        Stats {
            cache_evictions: self.cache.evictions(),
            cache_compactions: self.cache.compactions,
            ..self.stats
        }
    }

    /// Evicts up to `most` idle nodes, as if others needed their place: for tests, which need not
    /// fill the cache for it.
    pub fn evict_nodes(&mut self, most: usize) {
        (0..most).take_while(|_| self.cache.squeeze()).for_each(drop);
    }

    /// Gives up all compact copies, as if nodes needed their place: for tests, too.
    pub fn forget_copies(&mut self) {
        self.cache.drop_pages();
    }

    /// Size in bytes of an attached disk or snapshot, and whether it is read-only.
    pub fn handle_info(&self, handle: Handle) -> Option<(u64, bool)> {
        let target = self.attached(handle)?;
        Some((self.target_size(target), target.snap != 0))
    }

    pub(crate) fn event(&mut self, severe: bool, text: String) {
        // Bounded: a flood of damage must not eat the memory.
        if self.events.len() < 256 {
            self.events.push_back(Event { text, severe });
        }
    }

    /// The shard can no longer keep its promises: say why, refuse writes and flushes from now on.
    pub(crate) fn fail(&mut self, why: String) {
        if self.failed.is_none() {
            let text = format!("{why}; writes and flushes fail until the store is reopened");
            self.event(true, text.clone());
            self.failed = Some(text);
            self.unpark = true;
            self.fail_commands();
        }
    }

    /// Starts a base operation on plain memory.
    pub(crate) fn issue(&mut self, tag: Tag, op: BaseOp, block: u64, addr: usize, len: u32) {
        let first = Seg { addr, len: len as usize };
        let offset = block * BLOCK_SIZE as u64;
        self.io.push(BaseIo { tag, op, offset, len, first, guest: false, source: (0, 0) });
    }

    pub(crate) fn run_ready(&mut self) {
        while let Some(index) = self.ready.pop_front() {
            self.advance(index);
        }
    }

    /// Takes one operation as far as it gets.
    pub(crate) fn advance(&mut self, index: u32) {
        match self.slots[index].kind {
            Kind::Read => self.advance_read(index),
            Kind::Write => self.advance_write(index),
            Kind::Discard | Kind::WriteZeroes | Kind::Trim => self.advance_discard(index),
            Kind::Flush => self.start_flush(index),
            Kind::Snapshot => self.advance_snapshot(index),
        }
    }

    /// The operation holds nothing and waits until something is freed.
    pub(crate) fn park(&mut self, index: u32) {
        self.stats.parked += 1;
        let op = &mut self.slots[index];
        assert!(op.leaf == crate::slots::NONE && !op.locked, "a parked operation holds a leaf");
        op.stage = Stage::Parked;
        self.parked.push(&mut self.slots, index);
    }

    fn wake_parked(&mut self) {
        while let Some(index) = self.parked.pop(&mut self.slots) {
            self.slots[index].stage = Stage::Locate;
            self.ready.push_back(index);
        }
    }

    /// Blocks kept back from writes that need more space than before, so that the next checkpoint
    /// can always be written.
    pub(crate) fn reserve(&self) -> u64 {
        self.reserve_fixed() + NODES_A_LEAF * self.leaves_to_write()
    }

    fn reserve_fixed(&self) -> u64 {
        (self.space.capacity() / 64).clamp(48, 65_536)
    }

    /// Blocks kept back from commands and from writes that give back what they take.
    pub(crate) fn reserve_of_overwrites(&self) -> u64 {
        self.reserve() - self.reserve_fixed() / 2
    }

    /// Leaves that the next checkpoint has to write, admitted requests' included.
    pub(crate) fn leaves_to_write(&self) -> u64 {
        (self.checkpoint.dirty_count() + self.cache.promised()) as u64
    }

    /// Slots the guests' requests may not take from the cache.
    pub(crate) fn cache_reserve(&self) -> usize {
        CACHE_RESERVE
    }
}

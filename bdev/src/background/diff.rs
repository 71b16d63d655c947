//! Changed blocks: what differs between two snapshots, or what one has at all, by one walk over
//! both trees.
//!
//! ```text
//!   base:  root ─┬─ A ─┬─ leaf 0        view:  root' ─┬─ A' ─┬─ leaf 0    same address: skipped
//!                │     └─ leaf 1                      │      └─ leaf 1'   compared, link by link
//!                └─ B                                 └─ B                same address: skipped
//! ```
//!
//! Nodes and blocks are equal if their addresses are (and the stamps of nodes): a tree that shares
//! nothing with the other is walked whole, one that shares nearly all costs nearly nothing. A block
//! that was written again with the same bytes counts as changed; two disks may be compared, and are
//! cheap to compare if one is a clone of the other's snapshot.
//!
//! It reads attached snapshots only. Those cannot be deleted, so their trees do not change and
//! their addresses are not used for anything else while a list is being made: what the walker has
//! in its buffers is right until then, and is forgotten when the list is done.
//!
//! One list at a time is made, a few steps a turn; the others wait.

use crate::background::walker::{DIFF, Walk};
use crate::commands::snap_name;
use crate::control::{ChangeKind, ChangedExtent, Changes, DiffQuery, Reply};
use crate::disk::Root;
use crate::engine::{Attached, Engine};
use crate::error::{Error, ErrorKind};
use crate::format::node::{self, NodeRef};
use crate::limits::{
    DIFF_EXTENTS_MAX, DIFF_READS_MAX, DIFF_STEPS_TURN, DIFFS_MAX, LEVEL_BITS, LINKS,
};
use crate::types::BLOCK_SIZE;
use std::collections::VecDeque;

/// Lists asked for.
#[derive(Default)]
pub(crate) struct Diffs {
    /// The first is under way.
    queue: VecDeque<Diff>,
    /// A node is being read.
    pub waiting: bool,
}

struct Diff {
    cookie: u64,
    query: DiffQuery,
    started: bool,
    /// Block of the disk that comes next.
    cursor: u64,
    found: Vec<ChangedExtent>,
}

/// One of the two trees.
#[derive(Clone, Copy)]
struct Side {
    root: Root,
    /// Blocks presented; what a tree may have beyond does not count.
    blocks: u64,
    disk: u32,
    snap: u64,
}

/// What a tree has at one place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Hole,
    /// A node there.
    Node(NodeRef),
    /// The tree is lower than that.
    Below,
}

/// Why the walk does not go on.
enum Stop {
    Wait,
    /// A node cannot be read.
    Damaged {
        side: Side,
        address: u64,
        level: u8,
        index: u64,
    },
}

impl Diffs {
    /// True if a turn would get on with a list.
    pub fn want_turn(&self) -> bool {
        !self.queue.is_empty() && !self.waiting
    }
}

impl Diff {
    /// Notes that a block has changed. False: there is no room for it.
    fn note(&mut self, block: u64, kind: ChangeKind) -> bool {
        let size = BLOCK_SIZE as u64;
        let offset = block * size;
        if let Some(last) = self.found.last_mut()
            && last.kind == kind
            && last.offset + last.length == offset
        {
            last.length += size;
            return true;
        }
        if self.found.len() >= self.query.extents_max as usize {
            return false;
        }
        self.found.push(ChangedExtent { offset, length: size, kind });
        true
    }
}

impl Engine {
    pub(crate) fn start_diff(&mut self, cookie: u64, mut query: DiffQuery) {
        if self.diffs.queue.len() >= DIFFS_MAX {
            let why = format!("{DIFFS_MAX} lists of changed blocks are being made: try again");
            self.replies.push_back((cookie, Err(Error::new(ErrorKind::Busy, why))));
            return;
        }
        query.extents_max = query.extents_max.clamp(1, DIFF_EXTENTS_MAX);
        query.reads_max = query.reads_max.clamp(1, DIFF_READS_MAX);
        let cursor = query.offset / BLOCK_SIZE as u64;
        let diff = Diff { cookie, query, started: false, cursor, found: Vec::new() };
        self.diffs.queue.push_back(diff);
    }

    /// A few steps of the list that is under way.
    pub(crate) fn diff_step(&mut self) {
        for _ in 0..DIFF_STEPS_TURN {
            if !self.diffs.want_turn() {
                return;
            }
            let mut diff = self.diffs.queue.pop_front().expect("it wants a turn");
            let outcome = match self.diff_advance(&mut diff) {
                Ok(None) => {
                    self.diffs.queue.push_front(diff);
                    continue;
                }
                Ok(Some(next)) => {
                    Ok(Reply::Changes(Box::new(Changes { extents: diff.found, next })))
                }
                Err(error) => Err(error),
            };
            // From now on the snapshots may be deleted.
            self.walkers[DIFF].forget();
            self.replies.push_back((diff.cookie, outcome));
        }
    }

    /// One position. Some: the reply is complete, and where to go on.
    fn diff_advance(&mut self, diff: &mut Diff) -> Result<Option<Option<u64>>, Error> {
        let view = self.diff_side(diff.query.view)?;
        let base = match diff.query.base {
            Some(handle) => self.diff_side(handle)?,
            None => Side { root: Root::default(), blocks: 0, disk: view.disk, snap: view.snap },
        };
        if !diff.started {
            // A read may be left of a list whose snapshot was detached.
            if self.walkers[DIFF].is_loading() {
                self.diffs.waiting = true;
                return Ok(None);
            }
            self.walkers[DIFF].reads = 0;
            diff.started = true;
        }
        // Beyond what both trees reach there is nothing, however large the disk is.
        let level = view.root.level.max(base.root.level);
        let reach = 1u64 << (LEVEL_BITS * (u32::from(level) + 1));
        if diff.cursor >= view.blocks.min(reach) {
            return Ok(Some(None));
        }
        let here = diff.cursor;
        let next = || Some(Some(here * BLOCK_SIZE as u64));
        let moved = here * BLOCK_SIZE as u64 > diff.query.offset;
        if moved && self.walkers[DIFF].reads >= diff.query.reads_max as usize {
            return Ok(next());
        }
        match self.diff_position(diff, view, base) {
            // Full: nothing of this position, or not all of it.
            Ok(false) => Ok(Some(Some(diff.cursor * BLOCK_SIZE as u64))),
            Ok(true) => Ok(None),
            Err(Stop::Wait) => {
                self.diffs.waiting = true;
                Ok(None)
            }
            Err(Stop::Damaged { side, address, level, index }) => {
                Err(self.diff_damaged(side, address, level, index))
            }
        }
    }

    fn diff_side(&self, handle: crate::Handle) -> Result<Side, Error> {
        let Some(target) = self.attached(handle) else {
            let why = "a snapshot was detached before its changed blocks were listed";
            return Err(Error::new(ErrorKind::NotFound, why));
        };
        let Attached { disk, snap, root, size, .. } = *target;
        if snap == 0 {
            let why = "changed blocks are listed of snapshots: take one of the disk first";
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        Ok(Side { root, blocks: size / BLOCK_SIZE as u64, disk, snap })
    }

    fn diff_damaged(&self, side: Side, address: u64, level: u8, index: u64) -> Error {
        let disk = self.disks[side.disk as usize].as_ref();
        let disk = disk.expect("the disk of an attached snapshot exists");
        let snap = disk.snap(side.snap).map_or_else(|| side.snap.to_string(), snap_name);
        let node = if address == node::LOST {
            format!("a map node (level {level}, index {index}) is lost")
        } else {
            format!(
                "the map node at block {address} (level {level}, index {index}) is damaged or cannot be read"
            )
        };
        let why = format!(
            "snapshot {snap} of disk {}: {node}, so what changed there is unknown; lamina check shows what else is damaged",
            disk.name
        );
        Error::new(ErrorKind::Corrupt, why)
    }

    /// Goes on from the cursor to the end of what is equal there, or over one leaf. False: there is
    /// no room for what was found.
    fn diff_position(&mut self, diff: &mut Diff, view: Side, base: Side) -> Result<bool, Stop> {
        let leaf = diff.cursor >> LEVEL_BITS;
        let mut level = view.root.level.max(base.root.level);
        loop {
            let span = LEVEL_BITS * u32::from(level);
            let first = (leaf >> span) << (span + LEVEL_BITS);
            let past = ((leaf >> span) + 1) << (span + LEVEL_BITS);
            // Where only one of the two ends, the same node may mean different things.
            let alike = view.blocks == base.blocks
                || past <= view.blocks.min(base.blocks)
                || first >= view.blocks;
            match (self.diff_place(view, level, leaf)?, self.diff_place(base, level, leaf)?) {
                (Place::Hole, Place::Hole) => {
                    diff.cursor = past;
                    return Ok(true);
                }
                (Place::Node(a), Place::Node(b)) if a.same(b) && alike => {
                    diff.cursor = past;
                    return Ok(true);
                }
                (ours, theirs) if level == 0 => {
                    return self.diff_leaf(diff, (view, ours), (base, theirs));
                }
                _ => level -= 1,
            }
        }
    }

    /// What the tree has at `level` above `leaf`.
    fn diff_place(&mut self, side: Side, level: u8, leaf: u64) -> Result<Place, Stop> {
        let Side { root, .. } = side;
        if root.address == 0 {
            return Ok(Place::Hole);
        }
        if level > root.level {
            let first = leaf >> (LEVEL_BITS * u32::from(level));
            return Ok(if first == 0 { Place::Below } else { Place::Hole });
        }
        if leaf >> (LEVEL_BITS * u32::from(root.level)) != 0 {
            return Ok(Place::Hole);
        }
        let mut node = root.node();
        let mut at = root.level;
        while at > level {
            let buffer = self.diff_node(side, node, at, leaf)?;
            at -= 1;
            let child = leaf >> (LEVEL_BITS * u32::from(at));
            node = NodeRef::of_link(self.walkers[DIFF].links(buffer)[child as usize % LINKS]);
            if node.address == 0 {
                return Ok(Place::Hole);
            }
        }
        if node.address == node::LOST {
            let index = leaf >> (LEVEL_BITS * u32::from(level));
            return Err(Stop::Damaged { side, address: node.address, level, index });
        }
        Ok(Place::Node(node))
    }

    /// The buffer that has a node.
    fn diff_node(
        &mut self,
        side: Side,
        node: NodeRef,
        level: u8,
        leaf: u64,
    ) -> Result<usize, Stop> {
        let address = node.address;
        let index = leaf >> (LEVEL_BITS * u32::from(level));
        match self.walk_node(DIFF, node, level, index) {
            Walk::Node(_, buffer) => Ok(buffer),
            Walk::Wait => Err(Stop::Wait),
            Walk::Damaged | Walk::Absent => Err(Stop::Damaged { side, address, level, index }),
        }
    }

    /// Compares the links of one leaf from the cursor on.
    fn diff_leaf(
        &mut self,
        diff: &mut Diff,
        (view, ours): (Side, Place),
        (base, theirs): (Side, Place),
    ) -> Result<bool, Stop> {
        let leaf = diff.cursor >> LEVEL_BITS;
        let mut buffer_of = |side, place| match place {
            Place::Node(node) => self.diff_node(side, node, 0, leaf).map(Some),
            Place::Hole | Place::Below => Ok(None),
        };
        let (ours, theirs) = (buffer_of(view, ours)?, buffer_of(base, theirs)?);
        let walker = &self.walkers[DIFF];
        let link = |buffer: Option<usize>, side: Side, block: u64| match buffer {
            Some(buffer) if block < side.blocks => {
                walker.links(buffer)[block as usize % LINKS] & node::ADDRESS
            }
            Some(_) | None => 0,
        };
        let past = ((leaf + 1) << LEVEL_BITS).min(view.blocks);
        while diff.cursor < past {
            let block = diff.cursor;
            let (new, old) = (link(ours, view, block), link(theirs, base, block));
            let kind = if new == 0 { ChangeKind::Hole } else { ChangeKind::Data };
            if new != old && !diff.note(block, kind) {
                return Ok(false);
            }
            diff.cursor += 1;
        }
        Ok(true)
    }
}

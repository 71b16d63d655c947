//! One operation is one slot of a fixed slab; waiting is a link in an intrusive list.
//!
//! ```text
//!  submit ─► Locate ─► (WaitNode, WaitBusy) ─► admitted ─► RmwRead ─► Data ─► Journal
//!               ▲                                 │                               │
//!               └──────────── Parked ◄────────────┘           next part, Flush or Done
//! ```

use crate::limits::{RUNS_MAX, SEGS_MAX};
use crate::page::PageId;
use crate::request::Seg;
use crate::status::Status;

/// "No slot", "no op", "no node".
pub(crate) const NONE: u32 = u32::MAX;

/// What an operation does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
    /// Internal: frees what a shrink cuts off; the cookie is an index of the resize table.
    Trim,
    /// Internal: a snapshot on its way through the journal; the cookie is the command's.
    Snapshot,
}

/// Where an operation stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    Free,
    /// To find the leaf of its next part.
    Locate,
    /// Waits for a node to be read; restarts at Locate.
    WaitNode,
    /// Pinned its leaf, waits for other requests on the same blocks.
    WaitBusy,
    /// Waits for space, journal room, a cache slot or a page; holds nothing.
    Parked,
    /// Base reads of a read request in flight.
    Reading,
    /// The old block of a partial write is being read.
    RmwRead,
    /// Data writes in flight.
    Data,
    /// Its records wait for their journal block.
    Journal,
    /// Waits for a base flush.
    Flush,
}

/// A contiguous run of physical blocks.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Run {
    pub pba: u64,
    pub blocks: u16,
    pub crc: u32,
}

/// One operation.
pub(crate) struct Op {
    pub kind: Kind,
    pub stage: Stage,
    pub generation: u32,
    pub cookie: u64,
    /// Key space in the node cache.
    pub tree: u32,
    /// Disk slot; for a snapshot view the disk it belongs to.
    pub disk: u32,
    /// Bytes.
    pub offset: u64,
    pub len: u64,
    pub done: u64,
    pub fua: bool,
    pub status: Status,
    /// Pinned leaf of the current part.
    pub leaf: u32,
    pub leaf_index: u64,
    /// First block of the part in the leaf, and how many.
    pub first: u16,
    pub count: u16,
    /// Byte offset inside the first block (reads and partial writes).
    pub inner: u16,
    pub part_bytes: u32,
    /// Bytes of the part whose base reads have been issued.
    pub issued: u32,
    pub runs: [Run; RUNS_MAX],
    pub run_count: u8,
    pub in_place: bool,
    /// Busy bits of `first..first+count` are held.
    pub locked: bool,
    pub partial: bool,
    pub outstanding: u32,
    pub page: Option<PageId>,
    /// Reader lane it is counted in.
    pub lane: u8,
    pub in_lane: bool,
    /// Disk epoch when an in-place write was admitted.
    pub epoch: u64,
    pub next: u32,
    pub seg_count: u16,
    /// Number of checkpoints committed when it parked for space.
    pub parked_at: u64,
}

impl Op {
    fn free() -> Op {
        Op {
            kind: Kind::Read,
            stage: Stage::Free,
            generation: 0,
            cookie: 0,
            tree: 0,
            disk: 0,
            offset: 0,
            len: 0,
            done: 0,
            fua: false,
            status: Status::Ok,
            leaf: NONE,
            leaf_index: 0,
            first: 0,
            count: 0,
            inner: 0,
            part_bytes: 0,
            issued: 0,
            runs: [Run::default(); RUNS_MAX],
            run_count: 0,
            in_place: false,
            locked: false,
            partial: false,
            outstanding: 0,
            page: None,
            lane: 0,
            in_lane: false,
            epoch: 0,
            next: NONE,
            seg_count: 0,
            parked_at: 0,
        }
    }
}

impl Op {
    /// For a new operation. What `give` asserts, what `submit` sets and the runs, of which
    /// `run_count` count, are as they were.
    #[inline(always)]
    fn begin(&mut self) {
        self.stage = Stage::Locate;
        (self.tree, self.disk) = (0, 0);
        (self.offset, self.len, self.done) = (0, 0, 0);
        (self.kind, self.cookie, self.fua) = (Kind::Read, 0, false);
        self.status = Status::Ok;
        (self.run_count, self.issued, self.part_bytes) = (0, 0, 0);
        (self.first, self.count, self.inner, self.leaf_index) = (0, 0, 0, 0);
        (self.in_place, self.partial) = (false, false);
        (self.lane, self.epoch, self.parked_at, self.seg_count) = (0, 0, 0, 0);
    }
}

/// First and last op of a waiting list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    head: u32,
    tail: u32,
}

impl List {
    pub const EMPTY: List = List { head: NONE, tail: NONE };

    pub fn is_empty(&self) -> bool {
        self.head == NONE
    }

    pub fn push(&mut self, slots: &mut Slots, op: u32) {
        assert_eq!(slots.ops[op as usize].next, NONE, "an operation waits in two lists");
        match self.tail {
            NONE => self.head = op,
            tail => slots.ops[tail as usize].next = op,
        }
        self.tail = op;
    }

    pub fn pop(&mut self, slots: &mut Slots) -> Option<u32> {
        if self.head == NONE {
            return None;
        }
        let op = self.head;
        self.head = std::mem::replace(&mut slots.ops[op as usize].next, NONE);
        if self.head == NONE {
            self.tail = NONE;
        }
        Some(op)
    }
}

/// The slab.
pub(crate) struct Slots {
    pub ops: Vec<Op>,
    segs: Vec<[Seg; SEGS_MAX]>,
    free_guest: Vec<u32>,
    free_internal: Vec<u32>,
}

impl Slots {
    /// `guest` slots for requests and `internal` for the engine itself.
    pub fn new(guest: usize, internal: usize) -> Slots {
        let count = guest + internal;
        Slots {
            ops: (0..count).map(|_| Op::free()).collect(),
            segs: vec![[Seg::default(); SEGS_MAX]; guest],
            free_guest: (0..guest as u32).rev().collect(),
            free_internal: (guest as u32..count as u32).rev().collect(),
        }
    }

    /// A slot for a request; guests have the low numbers, which own segment tables.
    #[inline(always)]
    pub fn take(&mut self, guest: bool) -> Option<u32> {
        let index = if guest { self.free_guest.pop()? } else { self.free_internal.pop()? };
        let op = &mut self.ops[index as usize];
        assert_eq!(op.stage, Stage::Free);
        op.begin();
        Some(index)
    }

    #[inline(always)]
    pub fn give(&mut self, index: u32) {
        let op = &mut self.ops[index as usize];
        assert!(op.stage != Stage::Free, "a slot was freed twice");
        assert!(op.leaf == NONE && op.page.is_none() && op.outstanding == 0 && !op.in_lane);
        assert!(op.next == NONE && !op.locked, "a freed operation still waits or holds blocks");
        op.stage = Stage::Free;
        op.generation = op.generation.wrapping_add(1) & 0xff_ffff;
        if (index as usize) < self.segs.len() {
            self.free_guest.push(index);
        } else {
            self.free_internal.push(index);
        }
    }

    pub fn set_segs(&mut self, index: u32, segs: &[Seg]) {
        self.segs[index as usize][..segs.len()].copy_from_slice(segs);
        self.ops[index as usize].seg_count = segs.len() as u16;
    }

    pub fn segs(&self, index: u32) -> &[Seg] {
        if index as usize >= self.segs.len() {
            return &[];
        }
        &self.segs[index as usize][..self.ops[index as usize].seg_count as usize]
    }
}

impl std::ops::Index<u32> for Slots {
    type Output = Op;
    fn index(&self, index: u32) -> &Op {
        &self.ops[index as usize]
    }
}

impl std::ops::IndexMut<u32> for Slots {
    fn index_mut(&mut self, index: u32) -> &mut Op {
        &mut self.ops[index as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_and_internal_slots_do_not_starve_each_other() {
        let mut slots = Slots::new(3, 2);
        let guests: Vec<_> = std::iter::from_fn(|| slots.take(true)).collect();
        assert_eq!(guests.len(), 3);
        assert!(guests.iter().all(|&i| i < 3));
        let internal: Vec<_> = std::iter::from_fn(|| slots.take(false)).collect();
        assert_eq!(internal.len(), 2);
        for i in guests.into_iter().chain(internal) {
            slots.give(i);
        }
        assert!(slots.take(true).is_some() && slots.take(false).is_some());
    }

    #[test]
    fn lists_keep_their_order() {
        let mut slots = Slots::new(4, 0);
        let ops: Vec<_> = std::iter::from_fn(|| slots.take(true)).collect();
        let mut list = List::EMPTY;
        for &op in &ops {
            list.push(&mut slots, op);
        }
        let out: Vec<_> = std::iter::from_fn(|| list.pop(&mut slots)).collect();
        assert_eq!(out, ops);
        assert!(list.is_empty());
    }
}

//! Requests that are one base operation on a base that answers later: the host starts it itself and
//! brings the result back. No slot, stages or outboxes; what others must know meanwhile is held by
//! a record of 48 bytes.
//!
//! ```text
//!  straight ─► check ─► leaf in the cache ─► one run, nothing in the way ─► record ─► host starts
//!                │          │                                                             │
//!                └──────────┴─ anything else: `No`, and `submit` takes it     ended ◄─────┘
//!                                                                               └─► `Done`
//!
//!  while it is under way   a read                               an overwrite
//!  its blocks              counted in the readers' lane: not    held in the leaf's busy bits:
//!                          given out again                      no other write, discard or read
//!  in place under it       counted among blocks being read      the same bits
//!  its leaf                free to go: the address is known     pinned, since it has the bits
//!  a snapshot              sees none of it                      waits for it (`drain`)
//!  the attachment          does not end                         does not end
//! ```
//!
//! What decides is what decides for `submit`, as in [`super::at_once`]; and each thing held is held
//! in the same place, so whoever has to wait for a request cannot tell which way it went.

use crate::base_io::BaseOp;
use crate::canary::{Canary, planted};
use crate::disk::at_once::{Blocks, ReadPlace};
use crate::engine::{Class, Engine, Live, tag};
use crate::limits::LINKS;
use crate::page::zero_out;
use crate::request::{Done, Op, Request, Seg};
use crate::slots::{Kind, NONE};
use crate::status::{BaseError, Status};
use crate::types::{BLOCK_SIZE, Tag};

/// Requests under way at a time: more than a base takes.
const UNDER_WAY_MAX: usize = 1024;

/// What [`Engine::straight`] says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Straight {
    /// Not without waiting for something, or not in one piece: [`Engine::submit`] it.
    No,
    /// A read of a hole: its memory is zeroed, and it is done.
    Zeroed,
    /// The host starts a base operation of the request's kind and length on the request's memory;
    /// what it tells [`Engine::ended`] of it gives the answer.
    Start {
        /// To be given back.
        tag: Tag,
        /// Byte offset inside the shard's region.
        offset: u64,
    },
}

/// A request that goes the straight way.
#[derive(Clone, Copy, Debug)]
struct Run {
    cookie: u64,
    /// First block of the disk.
    block: u64,
    /// Disk epoch when an overwrite was admitted.
    epoch: u64,
    tree: u32,
    disk: u32,
    /// Of an overwrite, its pinned leaf; [`NONE`]: a read.
    leaf: u32,
    /// Bytes.
    len: u32,
    generation: u32,
    count: u16,
    /// Reader lane that a read is counted in.
    lane: u8,
    under_way: bool,
}

const IDLE: Run = Run {
    cookie: 0,
    block: 0,
    epoch: 0,
    tree: 0,
    disk: 0,
    leaf: NONE,
    len: 0,
    generation: 0,
    count: 0,
    lane: 0,
    under_way: false,
};

/// All of them: a fixed slab.
pub(crate) struct Straights {
    runs: Vec<Run>,
    free: Vec<u32>,
}

impl Straights {
    /// For `count` at a time, or as many as a base takes.
    pub fn new(count: usize) -> Straights {
        let count = count.min(UNDER_WAY_MAX);
        Straights { runs: vec![IDLE; count], free: (0..count as u32).rev().collect() }
    }

    fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    fn begin(&mut self, run: Run) -> Tag {
        let index = self.free.pop().expect("the caller has looked for room");
        let place = &mut self.runs[index as usize];
        assert!(!place.under_way, "a free place is under way");
        let generation = place.generation;
        *place = Run { generation, under_way: true, ..run };
        tag(Class::Straight, generation, index)
    }

    fn end(&mut self, tag: Tag) -> Run {
        let (generation, index) = ((tag.0 >> 32) as u32 & 0xff_ffff, tag.0 as u32);
        let place = &mut self.runs[index as usize];
        assert!(
            place.under_way && place.generation == generation,
            "a base operation ended for a request that is over"
        );
        let run = *place;
        place.under_way = false;
        place.generation = generation.wrapping_add(1) & 0xff_ffff;
        self.free.push(index);
        run
    }

    /// True if a request to this tree is under way.
    pub fn uses(&self, tree: u32) -> bool {
        self.runs.iter().any(|run| run.under_way && run.tree == tree)
    }
}

impl Engine {
    /// Takes a read or write that is one base operation with nothing in its way, for the host to
    /// start. After [`Straight::Zeroed`] the request is done with `Ok`; after [`Straight::Start`]
    /// its [`Done`] is what [`Engine::ended`] returns. After [`Straight::No`] nothing has happened.
    ///
    /// Contract. The operation is one like those of [`Engine::next_io`]: started at any time, its
    /// memory the request's, reported exactly once, in any order; but to [`Engine::ended`].
    #[inline]
    pub fn straight(&mut self, request: &Request, segs: &[Seg]) -> Straight {
        let reads = match request.op {
            Op::Read => true,
            Op::Write => false,
            Op::Flush | Op::Discard | Op::WriteZeroes => return Straight::No,
        };
        if self.straights.is_full() {
            return Straight::No;
        }
        let Ok(target) = self.check(request, segs) else { return Straight::No };
        let answer = if reads {
            self.read_straight(request, segs, target)
        } else {
            self.overwrite_straight(request, target)
        };
        if answer != Straight::No {
            self.checkpoint.requests += 1;
        }
        answer
    }

    fn read_straight(&mut self, request: &Request, segs: &[Seg], target: Live) -> Straight {
        let Live { tree, disk } = target;
        let Some(ReadPlace { blocks, leaf, start, inner }) = self.place_of_read(request, tree)
        else {
            return Straight::No;
        };
        let Blocks { leaf: leaf_index, first, count } = blocks;
        // Where reads can see half of a write in flight, they queue behind it. (What has only a
        // compact copy, no write holds.)
        if leaf != NONE && !self.traits.atomic_rw && self.cache.busy(leaf, first, count) {
            return Straight::No;
        }
        if start == 0 {
            self.count_done(Kind::Read, tree, disk, request.len);
            zero_out(segs, 0, request.len as usize);
            return Straight::Zeroed;
        }
        let block = leaf_index * LINKS as u64 + u64::from(first);
        let lane = self.begin_read(tree, disk, block, count);
        let (cookie, len) = (request.cookie, request.len as u32);
        let run = Run { cookie, block, tree, disk, len, count, lane, ..IDLE };
        self.start_straight(run, BaseOp::Read, start * BLOCK_SIZE as u64 + inner as u64)
    }

    fn overwrite_straight(&mut self, request: &Request, target: Live) -> Straight {
        let Live { tree, disk } = target;
        let Some((blocks, leaf)) = self.place_of_write(request, tree) else { return Straight::No };
        let Blocks { leaf: leaf_index, first, count } = blocks;
        if !self.can_overwrite(leaf, disk, first, count) {
            return Straight::No;
        }
        let Some(start) = self.run_to_overwrite(leaf, blocks) else { return Straight::No };
        if !self.cache.pin(leaf, self.cache_reserve()) {
            return Straight::No;
        }
        self.cache.set_busy(leaf, first, count);
        let found = self.disks[disk as usize].as_mut().expect("attached");
        found.in_place += 1;
        let epoch = found.epoch;
        self.stats.writes_in_place += 1;
        let block = leaf_index * LINKS as u64 + u64::from(first);
        let (cookie, len) = (request.cookie, request.len as u32);
        let run = Run { cookie, block, epoch, tree, disk, leaf, len, count, ..IDLE };
        self.start_straight(run, BaseOp::Write, start * BLOCK_SIZE as u64)
    }

    fn start_straight(&mut self, run: Run, op: BaseOp, offset: u64) -> Straight {
        match op {
            BaseOp::Read => self.stats.base_reads += 1,
            BaseOp::Write => self.stats.base_writes += 1,
            BaseOp::Flush => unreachable!("a flush is no request's data"),
        }
        self.in_flight += 1;
        Straight::Start { tag: self.straights.begin(run), offset }
    }

    /// Reports any base operation, as [`Engine::complete`] does; the answer to the request, if
    /// the operation was one of [`Engine::straight`]. Panics on a tag that is not in flight.
    #[inline]
    pub fn ended(&mut self, tag: Tag, result: Result<(), BaseError>) -> Option<Done> {
        if tag.0 >> 56 != Class::Straight as u64 {
            self.complete(tag, result);
            return None;
        }
        self.note_completion();
        let run = self.straights.end(tag);
        let Run { cookie, block, epoch, tree, disk, leaf, len, count, lane, .. } = run;
        let status = result.map_or_else(|error| self.status_of(error), |()| Status::Ok);
        let kind = if leaf == NONE {
            self.end_read(lane, tree, disk, block, count);
            Kind::Read
        } else {
            self.in_place_over(disk, epoch);
            self.cache.clear_busy(leaf, (block % LINKS as u64) as u16, count);
            self.wake_leaf(leaf);
            self.cache.unpin(leaf);
            Kind::Write
        };
        let ignored = kind == Kind::Write && planted(Canary::WriteErrorIgnored);
        let status = if ignored { Status::Ok } else { status };
        if status == Status::Ok {
            self.count_done(kind, tree, disk, u64::from(len));
        }
        self.unpark |= !self.parked.is_empty();
        self.run_ready();
        Some(Done { cookie, status })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_has_a_tag_of_its_own_and_ends_once() {
        let mut straights = Straights::new(2);
        let first = straights.begin(Run { tree: 7, cookie: 1, ..IDLE });
        let second = straights.begin(Run { tree: 8, cookie: 2, ..IDLE });
        assert!(straights.is_full() && straights.uses(7) && straights.uses(8));
        assert_eq!(straights.end(first).cookie, 1);
        assert!(!straights.is_full() && !straights.uses(7));
        let third = straights.begin(Run { tree: 9, cookie: 3, ..IDLE });
        assert!(third != first && third.0 as u32 == first.0 as u32);
        assert_eq!((straights.end(third).cookie, straights.end(second).cookie), (3, 2));
    }

    #[test]
    #[should_panic(expected = "for a request that is over")]
    fn a_tag_of_an_older_generation_is_refused() {
        let mut straights = Straights::new(1);
        let old = straights.begin(IDLE);
        straights.end(old);
        straights.begin(IDLE);
        straights.end(old);
    }
}

//! Requests that are over before anything else can happen: no slot, no stage, no outbox.
//!
//! ```text
//!  at_once ─► check ─► leaf in the cache ─► one run, nothing in the way ─► where it lies ─► host
//!  moves
//!                └──────────┴── anything else: `No`, and `submit` takes it through all stages
//! ```
//!
//! For a base that answers on the spot. What decides is what decides for `submit`, in the same
//! functions: [`Engine::check`], `leaf_at_hand`, `run_of`, `held_up`, `can_overwrite`; this file
//! only puts them in a line. So a request that goes this way does what it would do by the other if
//! its base operation completed before the next call.

use crate::engine::{Attached, Engine};
use crate::format::node;
use crate::limits::{LEVEL_BITS, LINKS};
use crate::page::zero_out;
use crate::request::{Op, Request, Seg};
use crate::slots::Kind;
use crate::types::BLOCK_SIZE;

/// What [`Engine::at_once`] says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AtOnce {
    /// Not without waiting for something, or not in one piece: [`Engine::submit`] it.
    No,
    /// A read of a hole: its memory is zeroed, and it is done.
    Zeroed,
    /// The request is done once the host has moved its bytes between its memory and the base.
    Move {
        /// Byte offset inside the shard's region.
        offset: u64,
    },
}

/// The blocks of a request that lies within one leaf.
#[derive(Clone, Copy)]
struct Blocks {
    leaf: u64,
    first: u16,
    count: u16,
}

impl Engine {
    /// Carries a read or write out without keeping it, if that is all there is to it. Unless the
    /// answer is [`AtOnce::No`], the request is done with `Ok`: there will be no
    /// [`crate::Done`] for it.
    ///
    /// Contract. For a host that moves the bytes itself, on the base's promise of
    /// [`crate::BaseTraits::atomic_rw`]. It moves them in the order of the answers: those of a
    /// write before it calls anything of the engine but this, those of a read before the next
    /// [`Engine::tick`], [`Engine::command`] or move of a write.
    #[inline]
    pub fn at_once(&mut self, request: &Request, segs: &[Seg]) -> AtOnce {
        if !self.traits.atomic_rw || self.done.len() >= self.done_max {
            return AtOnce::No;
        }
        let Ok(target) = self.check(request, segs) else { return AtOnce::No };
        let answer = match request.op {
            Op::Read => self.read_at_once(request, segs, &target),
            Op::Write => self.write_at_once(request, &target),
            Op::Flush | Op::Discard | Op::WriteZeroes => AtOnce::No,
        };
        if answer != AtOnce::No {
            self.checkpoint.requests += 1;
        }
        answer
    }

    fn read_at_once(&mut self, request: &Request, segs: &[Seg], target: &Attached) -> AtOnce {
        let Some(Blocks { leaf, first, .. }) = blocks_of(request) else { return AtOnce::No };
        let Some(slot) = self.leaf_at_hand(target.tree, leaf) else { return AtOnce::No };
        let links = &self.cache.links[slot as usize][usize::from(first)..];
        let (inner, bytes) = (request.offset as usize % BLOCK_SIZE, request.len as usize);
        let (start, len) = run_of(links, inner, bytes);
        if len < bytes || start == node::LOST {
            return AtOnce::No;
        }
        self.cache.meta[slot as usize].referenced = true;
        self.count_done(Kind::Read, target.tree, target.disk, request.len);
        if start == 0 {
            zero_out(segs, 0, bytes);
            return AtOnce::Zeroed;
        }
        self.stats.base_reads += 1;
        AtOnce::Move { offset: start * BLOCK_SIZE as u64 + inner as u64 }
    }

    fn write_at_once(&mut self, request: &Request, target: &Attached) -> AtOnce {
        let whole = (request.offset | request.len).is_multiple_of(BLOCK_SIZE as u64);
        let waits = self.failed.is_some() || request.fua || !whole;
        let Some(Blocks { leaf, first, count }) = blocks_of(request).filter(|_| !waits) else {
            return AtOnce::No;
        };
        let Some(slot) = self.leaf_at_hand(target.tree, leaf) else { return AtOnce::No };
        if !self.can_overwrite(slot, target.disk, first, count) || self.held_up(slot, first, count)
        {
            return AtOnce::No;
        }
        let links = &self.cache.links[slot as usize][usize::from(first)..];
        let (start, len) = run_of(links, 0, request.len as usize);
        if len < request.len as usize {
            return AtOnce::No;
        }
        self.cache.meta[slot as usize].referenced = true;
        self.count_done(Kind::Write, target.tree, target.disk, request.len);
        self.stats.writes_in_place += 1;
        self.stats.base_writes += 1;
        AtOnce::Move { offset: start * BLOCK_SIZE as u64 }
    }
}

/// Where a request lies, if within one leaf.
fn blocks_of(request: &Request) -> Option<Blocks> {
    let last = request.offset + request.len - 1;
    let leaf = request.offset >> (12 + LEVEL_BITS);
    let (first, end) = (request.offset >> 12, (last >> 12) + 1);
    let within = last >> (12 + LEVEL_BITS) == leaf;
    within.then_some(Blocks {
        leaf,
        first: (first % LINKS as u64) as u16,
        count: (end - first) as u16,
    })
}

/// The run that `links` begin with, of blocks or of holes: its first block (0: a hole) and how many
/// of the `left` bytes from byte `skip` of it on.
pub(crate) fn run_of(links: &[u64], skip: usize, left: usize) -> (u64, usize) {
    let start = links[0] & node::ADDRESS;
    let mut len = BLOCK_SIZE - skip;
    for (link, run) in links[1..].iter().zip(1..) {
        let expected = if start == 0 { 0 } else { start + run };
        if len >= left || link & node::ADDRESS != expected {
            break;
        }
        len += BLOCK_SIZE;
    }
    (start, len.min(left))
}

//! Requests whose bytes the host moves before anything else can happen: no outbox, and for reads
//! and overwrites no slot and no stages either.
//!
//! ```text
//!  at_once ─► check ─► leaf in the cache ─► one run, nothing in the way ─► host moves ─► over
//!                │          │                 one fresh block ─► record ─► host moves
//!                │          │                                      └─► written ─► applied, `Done`
//!                └──────────┴── anything else: `No`, and `submit` takes it through all stages
//! ```
//!
//! For a base that answers on the spot. What decides is what decides for `submit`, in the same
//! functions: [`Engine::check`], `leaf_at_hand`, `run_of`, `held_up`, `can_overwrite`,
//! `admit_redirect`; this file only puts them in a line. So a request that goes this way does what
//! it would do by the other if its base operation completed before the next call.

use crate::disk::write::Admit;
use crate::engine::{Engine, Live};
use crate::format::node;
use crate::limits::{LEVEL_BITS, LINKS};
use crate::page::zero_out;
use crate::request::{Op, Request, Seg};
use crate::slots::{Kind, NONE};
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
    /// A write to a fresh block: the host moves its bytes as for `Move`, and [`crate::Done`] comes
    /// once its record is written.
    Kept {
        /// Byte offset inside the shard's region.
        offset: u64,
    },
}

/// The blocks of a request that lies within one leaf.
#[derive(Clone, Copy)]
pub(crate) struct Blocks {
    pub leaf: u64,
    pub first: u16,
    pub count: u16,
}

/// Where the bytes of a read are.
pub(crate) struct ReadPlace {
    pub blocks: Blocks,
    /// Its leaf in the cache; [`NONE`]: that has a compact copy.
    pub leaf: u32,
    /// First block; 0: a hole.
    pub start: u64,
    /// Byte in that block.
    pub inner: usize,
}

impl Engine {
    /// Carries a read or write out on the spot, if that is all there is to it. If the answer is
    /// [`AtOnce::Zeroed`] or [`AtOnce::Move`], the request is done with `Ok`: there will be no
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
        let reads = match request.op {
            Op::Read => true,
            Op::Write => false,
            Op::Flush | Op::Discard | Op::WriteZeroes => return AtOnce::No,
        };
        let Ok(target) = self.check(request, segs) else { return AtOnce::No };
        let answer = if reads {
            self.read_at_once(request, segs, target)
        } else {
            self.write_at_once(request, target)
        };
        if answer != AtOnce::No {
            self.checkpoint.requests += 1;
        }
        answer
    }

    #[inline(always)]
    fn read_at_once(&mut self, request: &Request, segs: &[Seg], target: Live) -> AtOnce {
        let Some(place) = self.place_of_read(request, target.tree) else { return AtOnce::No };
        let ReadPlace { start, inner, .. } = place;
        self.count_done(Kind::Read, target.tree, target.disk, request.len);
        if start == 0 {
            zero_out(segs, 0, request.len as usize);
            return AtOnce::Zeroed;
        }
        self.stats.base_reads += 1;
        AtOnce::Move { offset: start * BLOCK_SIZE as u64 + inner as u64 }
    }

    /// Where a read's bytes are, if that is known and in one piece.
    #[inline(always)]
    pub(crate) fn place_of_read(&mut self, request: &Request, tree: u32) -> Option<ReadPlace> {
        let blocks = blocks_of(request)?;
        let Blocks { leaf, first, .. } = blocks;
        let (inner, bytes) = (request.offset as usize % BLOCK_SIZE, request.len as usize);
        let Some(slot) = self.leaf_at_hand(tree, leaf) else {
            let start = self.compact_run(tree, leaf, first, inner + bytes)?;
            return Some(ReadPlace { blocks, leaf: NONE, start, inner });
        };
        let links = &self.cache.links[slot as usize][usize::from(first)..];
        let (start, len) = run_of(links, inner, bytes);
        if len < bytes || start == node::LOST {
            return None;
        }
        self.cache.refer(slot);
        Some(ReadPlace { blocks, leaf: slot, start, inner })
    }

    /// The blocks of a write and their leaf in the cache, if it is of whole blocks and nothing
    /// holds it up.
    #[inline(always)]
    pub(crate) fn place_of_write(&mut self, request: &Request, tree: u32) -> Option<(Blocks, u32)> {
        let whole = (request.offset | request.len).is_multiple_of(BLOCK_SIZE as u64);
        if self.failed.is_some() || request.fua || !whole {
            return None;
        }
        let blocks = blocks_of(request)?;
        let slot = self.leaf_at_hand(tree, blocks.leaf)?;
        let free = !self.held_up(slot, blocks.first, blocks.count);
        free.then_some((blocks, slot))
    }

    /// The first of the blocks that may be overwritten, if they are one run.
    #[inline(always)]
    pub(crate) fn run_to_overwrite(&mut self, slot: u32, blocks: Blocks) -> Option<u64> {
        let bytes = usize::from(blocks.count) * BLOCK_SIZE;
        let links = &self.cache.links[slot as usize][usize::from(blocks.first)..];
        let (start, len) = run_of(links, 0, bytes);
        if len < bytes {
            return None;
        }
        self.cache.refer(slot);
        Some(start)
    }

    fn write_at_once(&mut self, request: &Request, target: Live) -> AtOnce {
        let Some((blocks, slot)) = self.place_of_write(request, target.tree) else {
            return AtOnce::No;
        };
        if !self.can_overwrite(slot, target.disk, blocks.first, blocks.count) {
            return self.redirect_at_once(request, target, blocks, slot);
        }
        let Some(start) = self.run_to_overwrite(slot, blocks) else { return AtOnce::No };
        self.count_done(Kind::Write, target.tree, target.disk, request.len);
        self.stats.writes_in_place += 1;
        self.stats.base_writes += 1;
        AtOnce::Move { offset: start * BLOCK_SIZE as u64 }
    }

    /// A write of one block to a fresh one. What it needs it takes as `submit` would, and its
    /// record joins the batch before the data is there: the host moves that before it takes the
    /// batch from the outbox.
    fn redirect_at_once(
        &mut self,
        request: &Request,
        target: Live,
        blocks: Blocks,
        slot: u32,
    ) -> AtOnce {
        // Several blocks may have to go in pieces; and a record on a volatile base has a checksum.
        let simple = blocks.count == 1 && !self.traits.volatile_cache;
        if !simple || !self.cache.pin(slot, self.cache_reserve()) {
            return AtOnce::No;
        }
        let Some(index) = self.slots.take(true) else {
            self.cache.unpin(slot);
            return AtOnce::No;
        };
        let op = &mut self.slots[index];
        (op.kind, op.cookie) = (Kind::Write, request.cookie);
        (op.tree, op.disk) = (target.tree, target.disk);
        (op.offset, op.len) = (request.offset, request.len);
        (op.leaf, op.leaf_index, op.first) = (slot, blocks.leaf, blocks.first);
        (op.count, op.part_bytes) = (1, BLOCK_SIZE as u32);
        if !matches!(self.admit_redirect(index), Admit::Go) {
            self.slots[index].leaf = NONE;
            self.cache.unpin(slot);
            self.slots.give(index);
            return AtOnce::No;
        }
        let op = &mut self.slots[index];
        op.locked = true;
        let offset = op.runs[0].pba * BLOCK_SIZE as u64;
        self.cache.set_busy(slot, blocks.first, 1);
        self.stats.writes_redirected += 1;
        self.stats.base_writes += 1;
        self.log_write(index);
        AtOnce::Kept { offset }
    }
}

/// Where a request lies, if within one leaf.
pub(crate) fn blocks_of(request: &Request) -> Option<Blocks> {
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
    if len >= left {
        return (start, left);
    }
    for (link, run) in links[1..].iter().zip(1..) {
        let expected = if start == 0 { 0 } else { start + run };
        if len >= left || link & node::ADDRESS != expected {
            break;
        }
        len += BLOCK_SIZE;
    }
    (start, len.min(left))
}

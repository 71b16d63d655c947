//! Reads on a base that is memory, of blocks whose leaf is not in the cache: one link is read where
//! it lies. A leaf need not be fetched twice to be believed.
//!
//! ```text
//!  at_once: No ─► node above the leaf in the cache ─► its link: block of the leaf, `CHECKED`
//!                     link_in_place ─► byte offset ─► host looks there: 8 bytes
//!                     read_in_place ◄───────────────────────┘
//!                          └─► a lawful block: host moves ─► over      a hole: zeroed
//! ```
//!
//! A node is never changed where it lies: as long as something leads to it, it is what was checked.
//! What leads to it is the link of the node above, whose bit goes with the link when the leaf is
//! written elsewhere, and with the node when that is evicted.

use crate::disk::at_once::{AtOnce, blocks_of};
use crate::engine::{Engine, Live};
use crate::format::node::{self, ADDRESS, CHECKED, LOST};
use crate::limits::{LEVEL_BITS, LINKS};
use crate::map::node_cache::Key;
use crate::page::zero_out;
use crate::request::{Op, Request, Seg};
use crate::slots::Kind;
use crate::types::BLOCK_SIZE;

impl Engine {
    /// For a request to which [`Engine::at_once`] said [`AtOnce::No`]: the byte offset inside the
    /// shard's region of 8 bytes that [`Engine::read_in_place`] can go on with, if it is a read
    /// that those are enough for.
    ///
    /// Contract. For a host whose base is memory of its own, which nobody else changes: a leaf that
    /// was checked when it was read is trusted to be what it was.
    #[inline]
    pub fn link_in_place(&mut self, request: &Request, segs: &[Seg]) -> Option<u64> {
        let reads = request.op == Op::Read && self.traits.atomic_rw;
        let Ok(Live { tree, .. }) = self.check(request, segs) else { return None };
        let blocks = blocks_of(request).filter(|blocks| reads && blocks.count == 1)?;
        // What is in the cache may be newer.
        if self.cache.find(Key::new(tree, 0, blocks.leaf)).is_some() {
            return None;
        }
        let above = self.cache.find(Key::new(tree, 1, blocks.leaf >> LEVEL_BITS))?;
        if self.cache.is_loading(above) {
            return None;
        }
        let link = self.cache.links[above as usize][blocks.leaf as usize % LINKS];
        self.cache.refer(above);
        let known = link & CHECKED != 0 && !matches!(link & ADDRESS, 0 | LOST);
        known.then(|| (link & ADDRESS) * BLOCK_SIZE as u64 + node::link_offset(blocks.first))
    }

    /// What [`Engine::at_once`] would say to that read if its leaf were in the cache; `bytes` are
    /// those at the offset that [`Engine::link_in_place`] has just given for it.
    #[inline]
    pub fn read_in_place(&mut self, request: &Request, segs: &[Seg], bytes: [u8; 8]) -> AtOnce {
        let Ok(target) = self.check(request, segs) else { return AtOnce::No };
        let start = node::link_of(bytes) & ADDRESS;
        // Something lost, or what should not be there: the way through the cache has the words.
        if start != 0 && (start == LOST || !self.space.geometry.linkable(start)) {
            return AtOnce::No;
        }
        self.checkpoint.requests += 1;
        self.stats.cache_in_place += 1;
        self.count_done(Kind::Read, target.tree, target.disk, request.len);
        if start == 0 {
            zero_out(segs, 0, request.len as usize);
            return AtOnce::Zeroed;
        }
        self.stats.base_reads += 1;
        AtOnce::Move { offset: start * BLOCK_SIZE as u64 + request.offset % BLOCK_SIZE as u64 }
    }

    /// The leaf at the end of `link` of the node above has been read and checked.
    pub(crate) fn note_checked(&mut self, leaf: Key, read: node::NodeRef) {
        let above = Key::new(leaf.tree(), 1, leaf.index() >> LEVEL_BITS);
        let Some(slot) = self.cache.find(above).filter(|slot| !self.cache.is_loading(*slot)) else {
            return;
        };
        let link = &mut self.cache.links[slot as usize][leaf.index() as usize % LINKS];
        if node::NodeRef::of_link(*link).same(read) {
            *link |= CHECKED;
        }
    }
}

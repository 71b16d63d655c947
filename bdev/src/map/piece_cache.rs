//! What the node cache keeps of leaves of which only some blocks are read: see [`pieces`].
//!
//! ```text
//!  read of a block ─► Loading: piece wanted ─► read, checked ─┬─► pieces kept, slot abandoned
//!  anything else   ─► Loading: node wanted ───────────────────┴─► node; its pieces are dropped
//! ```
//!
//! [`pieces`]: super::pieces

use crate::map::key::Key;
use crate::map::node_cache::{NodeCache, State};
use crate::map::pieces::{PIECE_LINKS, Piece};

impl NodeCache {
    /// Keeps the piece of a leaf being read that link `index` is in, whose links lead to
    /// `addresses`. False: something there is lost, or there is no room.
    pub fn keep_piece(&mut self, leaf: Key, index: u16, addresses: &[u64; PIECE_LINKS]) -> bool {
        let key = piece_key(leaf, index);
        let Some(piece) = Piece::of(key, self.compact.era(key.tree()), addresses) else {
            return false;
        };
        if self.compact.place(&mut self.links, piece.words()) {
            return true;
        }
        // There is another slot for whoever wants one: that of the leaf being read.
        let spare = self.idle > 0 || !self.free.is_empty();
        let slot = if spare && self.compact.wants_page() { self.take() } else { None };
        match slot {
            Some(slot) => {
                self.meta[slot as usize].state = State::Page;
                self.compact.open_page(slot);
            }
            None => self.compact.make_room(&self.links, piece.words()),
        }
        self.compact.place(&mut self.links, piece.words())
    }

    /// Somebody wants the node that is being read, as a whole.
    pub fn want_whole(&mut self, slot: u32) {
        self.meta[slot as usize].whole = true;
    }

    /// Link `index` of the leaf that is being read is wanted. `begun`: its reading began for that.
    pub fn want_piece(&mut self, slot: u32, leaf: Key, index: u16, begun: bool) {
        let m = &mut self.meta[slot as usize];
        // It may be a node above it that is being read.
        if m.key == leaf {
            m.pieces |= 1 << (index / PIECE_LINKS as u16);
            m.whole &= !begun;
        }
    }

    /// True if there is the piece of a leaf that link `index` is in.
    pub fn has_piece(&self, leaf: Key, index: u16) -> bool {
        self.compact.find(&self.links, piece_key(leaf, index)).is_some()
    }

    /// What [`NodeCache::compact_run`] says, of the piece that link `index` of a leaf is in, if
    /// there is one; no more than `want` links are looked at.
    pub fn piece_run(&mut self, leaf: Key, index: u16, want: usize) -> Option<(u64, usize)> {
        let piece = self.compact.find(&self.links, piece_key(leaf, index))?;
        Some(self.compact.piece_run_at(&self.links, piece, index, want))
    }

    /// Gives the slot of a leaf back that has been read and is not to be a node. The caller has
    /// taken the waiters.
    pub fn abandon(&mut self, slot: u32) {
        let m = &mut self.meta[slot as usize];
        assert!(m.state == State::Loading && m.pins == 1 && m.waiters.is_empty());
        m.pins = 0;
        m.state = State::Free;
        self.marks[slot as usize] = 0;
        self.unlink(slot);
        self.free.push(slot);
    }
}

/// The key of the piece that link `index` of a leaf is in.
#[inline]
fn piece_key(leaf: Key, index: u16) -> Key {
    leaf.piece(index / PIECE_LINKS as u16)
}

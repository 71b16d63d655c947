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
use crate::map::pieces::{self, PIECE_LINKS};

impl NodeCache {
    /// Keeps the piece of a leaf being read that link `index` is in, whose links lead to
    /// `addresses`. False: something there is lost, or there is no room.
    pub fn keep_piece(&mut self, leaf: Key, index: u16, addresses: &[u64; PIECE_LINKS]) -> bool {
        let key = piece_key(leaf, index);
        let era = self.compact.era(key.tree());
        let Some(piece) = pieces::write(&mut self.room, key, era, addresses) else {
            return false;
        };
        if self.compact.place(&mut self.links, piece) {
            return true;
        }
        let slot = if self.compact.wants_page() { self.slot_for_page() } else { None };
        let piece = pieces::record(&self.room);
        match slot {
            Some(slot) => {
                self.meta[slot as usize].state = State::Page;
                self.compact.open_page(slot);
            }
            None => self.compact.make_room(&self.links, piece),
        }
        self.compact.place(&mut self.links, piece)
    }

    /// A slot that nothing else is likely to need: a free one, beside those for nodes that will be
    /// read; or one whose node has not been used since a look before, of which one is taken.
    fn slot_for_page(&mut self) -> Option<u32> {
        if self.free.len() > self.reading.wanted() {
            return self.free.pop();
        }
        self.next_idle()
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

    /// Where link `index` of a leaf leads to and for how many links its run goes on, as far as the
    /// cache has it beside nodes; and whether only of a piece, of which no more than `want` links
    /// are looked at.
    #[inline]
    pub fn run_kept(&mut self, leaf: Key, index: u16, want: usize) -> Option<((u64, usize), bool)> {
        // A leaf has one or the other; what there is more of is looked for first.
        let first = self.compact.mostly_pieces();
        for of_piece in [first, !first] {
            let key = if of_piece { piece_key(leaf, index) } else { leaf };
            let Some(record) = self.compact.find(&self.links, key) else { continue };
            let run = match of_piece {
                true => self.compact.piece_run_at(&self.links, record, index, want),
                false => self.compact.run_at(&self.links, record, index),
            };
            return Some((run, of_piece));
        }
        None
    }

    /// Gives all pages up.
    pub fn drop_pages(&mut self) {
        while let Some(slot) = self.compact.last_page() {
            self.compact.close_page(&self.links, slot);
            self.meta[slot as usize].state = State::Free;
            self.free.push(slot);
        }
    }

    /// Gives the slot of a leaf back that has been read and is not to be a node. The caller has
    /// taken the waiters.
    pub fn abandon(&mut self, slot: u32) {
        let m = &mut self.meta[slot as usize];
        assert!(m.state == State::Loading && m.pins == 1 && m.waiters.is_empty());
        m.pins = 0;
        m.state = State::Free;
        self.marks[slot as usize] = 0;
        self.reading.end();
        self.unlink(slot);
        self.free.push(slot);
    }
}

/// The key of the piece that link `index` of a leaf is in.
#[inline]
fn piece_key(leaf: Key, index: u16) -> Key {
    leaf.piece(index / PIECE_LINKS as u16)
}

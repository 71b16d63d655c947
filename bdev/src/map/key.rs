//! Under which key something is cached.
//!
//! ```text
//!          63          32  31  29 28                0
//!  node    ┌ tree        ┬ level ┬ index            ┐
//!          63          32  31  30   27 26           0
//!  piece   ┌ tree        ┬ 1 ┬ piece ┬ leaf's index ┐     no level has the highest bit set
//! ```

use crate::limits::{LEVEL_BITS, LEVEL_MAX};
use crate::map::pieces::PIECES;

/// Key: tree in the high 32 bits, level in 3, index in 29. Of a piece of a leaf: the highest bit of
/// the level set, and the number of the piece above the 27 bits that a leaf's index has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key(pub u64);

impl Key {
    pub fn new(tree: u32, level: u8, index: u64) -> Key {
        assert!(index < 1 << 29);
        Key(u64::from(tree) << 32 | u64::from(level) << 29 | index)
    }

    pub fn tree(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub fn level(self) -> u8 {
        (self.0 >> 29) as u8 & 7
    }

    pub fn index(self) -> u64 {
        self.0 & ((1 << 29) - 1)
    }

    /// All of its bits in each bit: trees have the same indices, and indices come in rows.
    #[inline]
    pub fn hash(self) -> u64 {
        let mixed = (self.0 ^ self.0 >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        mixed ^ mixed >> 32
    }

    /// The key of piece `piece` of this leaf.
    #[inline]
    pub fn piece(self, piece: u16) -> Key {
        const { assert!(LEVEL_MAX < 4 && LEVEL_BITS * LEVEL_MAX as u32 == PIECE_SHIFT) };
        assert!(self.0 & 0xffff_ffff < 1 << PIECE_SHIFT && piece < PIECES, "not a leaf's piece");
        Key(self.0 | OF_PIECE | u64::from(piece) << PIECE_SHIFT)
    }

    /// True for the key of a piece.
    #[inline]
    pub fn is_piece(self) -> bool {
        self.0 & OF_PIECE != 0
    }
}

const PIECE_SHIFT: u32 = 27;
const _: () = assert!(PIECES == u8::BITS as u16);
const OF_PIECE: u64 = 1 << 31;

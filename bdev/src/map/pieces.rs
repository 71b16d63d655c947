//! A piece of a clean leaf: 64 links in a row, each in as many bits as the farthest apart need.
//! What is kept of a leaf of many runs, whose blocks still lie near each other.
//!
//! ```text
//!  64 links of a leaf on disk (384 bytes)      words of 64 bits: 2 + width
//!  ┌ 9000 ┬ 9777 ┬ 0 ┬ ... ┬ 9001 ┐            ┌ key ┬ base: 9000 ┬ 1 │ 778 │ 0 │ ...
//!  └──────┴──────┴───┴─────┴──────┘            │     │ width │ era │  codes of `width` bits
//! ```
//!
//! Code 0 is a hole, any other the distance from the base, plus one. Blocks that lie within 64 MiB
//! take 14 bits and the piece 128 bytes; within 16 GiB 192 bytes. Only addresses are kept: a piece
//! answers reads, and nobody makes a node of it.

use crate::format::node::{ADDRESS, LOST};
use crate::limits::LINKS;
use crate::map::node_cache::Key;
use crate::map::runs::UNIT_WORDS;

/// Links of a piece.
pub(crate) const PIECE_LINKS: usize = 64;
/// Pieces of a leaf.
pub(crate) const PIECES: u16 = (LINKS / PIECE_LINKS) as u16;
/// Words before the codes: 64 codes take as many words as one has bits.
const HEAD_WORDS: usize = 2;
/// Where the second word has the bits of a code, above the base.
const WIDTH_SHIFT: u32 = 48;
const WIDTH_BITS: u64 = 0xff;
const ERA_SHIFT: u32 = 56;
/// Units of the longest record.
const UNITS_MAX: usize = 7;
const WORDS_MAX: usize = UNITS_MAX * UNIT_WORDS;

const _: () = assert!(PIECE_LINKS == u64::BITS as usize);
const _: () = assert!(ADDRESS >> WIDTH_SHIFT == 0 && ADDRESS.count_ones() <= 47);
const _: () = assert!(HEAD_WORDS + 47 <= WORDS_MAX);

/// A piece of a leaf as it is kept.
pub(crate) struct Piece {
    words: [u64; WORDS_MAX],
}

impl Piece {
    /// Writes down where links lead. `None` if something there is lost.
    pub fn of(key: Key, era: u8, addresses: &[u64; PIECE_LINKS]) -> Option<Piece> {
        // A hole, one less, is above every address.
        let low = addresses.iter().fold(u64::MAX, |low, at| low.min(at.wrapping_sub(1)));
        let high = addresses.iter().fold(0, |high, at| high.max(*at));
        if high == LOST {
            return None;
        }
        let low = if high == 0 { 0 } else { low };
        let width = u64::BITS - (high - low).leading_zeros();
        let mut words = [0; WORDS_MAX];
        words[0] = key.0;
        words[1] = low | u64::from(width) << WIDTH_SHIFT | u64::from(era) << ERA_SHIFT;
        let (mut word, mut filled, mut at) = (0, 0, HEAD_WORDS);
        for &address in addresses {
            let code = address.saturating_sub(low);
            word |= code << filled;
            filled += width;
            if filled >= u64::BITS {
                words[at] = word;
                at += 1;
                filled -= u64::BITS;
                word = if filled == 0 { 0 } else { code >> (width - filled) };
            }
        }
        Some(Piece { words })
    }

    /// The record, in whole units.
    pub fn words(&self) -> &[u64] {
        &self.words[..units(&self.words) * UNIT_WORDS]
    }
}

/// Units that the record at the head of `words` takes.
pub(crate) fn units(words: &[u64]) -> usize {
    (HEAD_WORDS + width(words) as usize).div_ceil(UNIT_WORDS)
}

/// Which life of its tree's number the record is from.
pub(crate) fn era(words: &[u64]) -> u8 {
    (words[1] >> ERA_SHIFT) as u8
}

fn width(words: &[u64]) -> u32 {
    (words[1] >> WIDTH_SHIFT & WIDTH_BITS) as u32
}

/// The block that link `index` of a record leads to; 0: a hole.
#[inline]
fn block_at(words: &[u64], index: usize) -> u64 {
    let (low, width) = (words[1] & ADDRESS, width(words));
    let codes = &words[HEAD_WORDS..HEAD_WORDS + width as usize];
    let (word, shift) = (index * width as usize / 64, (index as u32 * width) % 64);
    let Some(first) = codes.get(word) else { return 0 };
    let mut code = first >> shift;
    if shift + width > u64::BITS {
        code |= codes[word + 1] << (u64::BITS - shift);
    }
    code &= (1 << width) - 1;
    if code == 0 { 0 } else { low + code }
}

/// The block that link `index` of a record leads to (0: a hole), and for how many of `want` links
/// from there on the run goes on.
#[inline]
pub(crate) fn run_at(words: &[u64], index: usize, want: usize) -> (u64, usize) {
    let start = block_at(words, index);
    let mut len = 1;
    while len < want && index + len < PIECE_LINKS {
        let next = if start == 0 { 0 } else { start + len as u64 };
        if block_at(words, index + len) != next {
            break;
        }
        len += 1;
    }
    (start, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(seed: &mut u64) -> u64 {
        *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *seed >> 17
    }

    #[test]
    fn links_come_back_whatever_their_distance() {
        let mut seed = 3;
        for bits in 0..=46u32 {
            for round in 0..40 {
                let base = next(&mut seed) % (LOST - (1 << bits)).max(1);
                let mut links = [0; PIECE_LINKS];
                for (i, link) in links.iter_mut().enumerate() {
                    *link = match next(&mut seed) % 4 {
                        0 if round % 2 == 0 => 0,
                        1 => (base + i as u64 % (1 << bits)).clamp(1, LOST - 1),
                        _ => (base + next(&mut seed) % (1 << bits)).clamp(1, LOST - 1),
                    };
                }
                let key = Key::new(7, 0, 5).piece(3);
                let piece = Piece::of(key, 200 + round as u8, &links).expect("nothing is lost");
                let mut words = piece.words().to_vec();
                assert_eq!((words[0], era(&words)), (key.0, 200u8.wrapping_add(round as u8)));
                assert_eq!(words.len(), units(&words) * UNIT_WORDS);
                assert!(words.len() <= (2 + bits as usize + 1).next_multiple_of(8), "{bits}");
                words.extend([u64::MAX; 8]);
                for index in 0..PIECE_LINKS {
                    let (block, len) = run_at(&words, index, 9);
                    assert_eq!(block, links[index], "{bits} bits, link {index}");
                    let same = |n: usize| {
                        links[index + n] == if block == 0 { 0 } else { block + n as u64 }
                    };
                    assert!(len <= 9 && (0..len).all(same));
                    assert!(len == 9 || index + len == PIECE_LINKS || !same(len));
                }
            }
        }
    }

    #[test]
    fn holes_alone_take_no_codes_and_what_is_lost_is_refused() {
        let key = Key::new(1, 0, 1).piece(0);
        let mut links = [0; PIECE_LINKS];
        let holes = Piece::of(key, 0, &links).expect("nothing is lost");
        assert_eq!((holes.words().len(), run_at(holes.words(), 3, 64)), (UNIT_WORDS, (0, 61)));
        links[9] = LOST;
        assert!(Piece::of(key, 0, &links).is_none());
    }
}

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
use zerocopy::IntoBytes;

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
// Codes are stored by words, of which the last may begin in the last byte.
const _: () = assert!(HEAD_WORDS + 47 < WORDS_MAX);

/// Room for the longest record, and for what is stored behind a shorter one while it is written.
pub(crate) type Room = [u64; WORDS_MAX];

/// Room with nothing in it.
pub(crate) const EMPTY: Room = [0; WORDS_MAX];

/// Writes down where links lead; the record is what is returned, in whole units. `None` if
/// something there is lost.
pub(crate) fn write<'a>(
    room: &'a mut Room,
    key: Key,
    era: u8,
    addresses: &[u64; PIECE_LINKS],
) -> Option<&'a [u64]> {
    let (low, high) = bounds(addresses);
    if high == LOST {
        return None;
    }
    let low = if high == 0 { 0 } else { low };
    let width = u64::BITS - (high - low).leading_zeros();
    room[0] = key.0;
    room[1] = low | u64::from(width) << WIDTH_SHIFT | u64::from(era) << ERA_SHIFT;
    let codes = &mut room[HEAD_WORDS..];
    // Four codes, or two, in a word at a time.
    match width {
        0..=14 => pack::<4>(codes, addresses, low, width),
        15..=28 => pack::<2>(codes, addresses, low, width),
        _ => pack::<1>(codes, addresses, low, width),
    }
    Some(record(room))
}

/// The record that was written there, in whole units.
pub(crate) fn record(room: &Room) -> &[u64] {
    &room[..units(room) * UNIT_WORDS]
}

/// What is below all addresses but holes, by one, and the highest.
fn bounds(addresses: &[u64; PIECE_LINKS]) -> (u64, u64) {
    // Several at a time, none of which waits for another.
    let (mut low, mut high) = ([u64::MAX; 4], [0; 4]);
    for four in addresses.chunks_exact(4) {
        for (n, &at) in four.iter().enumerate() {
            // A hole, one less, is above every address.
            low[n] = at.wrapping_sub(1).min(low[n]);
            high[n] = at.max(high[n]);
        }
    }
    let least = low.into_iter().fold(u64::MAX, u64::min);
    (least, high.into_iter().fold(0, u64::max))
}

/// Writes the codes of all addresses, `N` in one go, which have fewer than 57 bits.
fn pack<const N: usize>(out: &mut [u64], addresses: &[u64; PIECE_LINKS], low: u64, width: u32) {
    let bytes = out.as_mut_bytes();
    let (mut word, mut filled, mut at) = (0, 0, 0);
    for some in addresses.chunks_exact(N) {
        let mut codes = 0;
        for &address in some.iter().rev() {
            codes = codes << width | address.saturating_sub(low);
        }
        word |= codes << filled;
        // Whole words, each over what the one before had not filled.
        bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        filled += N as u32 * width;
        at += filled as usize / 8;
        word >>= filled & !7;
        filled &= 7;
    }
    out.iter_mut().for_each(|word| *word = u64::from_le(*word));
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
                // What was there before does not matter.
                let mut room = [next(&mut seed); WORDS_MAX];
                let written = write(&mut room, key, 200 + round as u8, &links);
                let mut words = written.expect("nothing is lost").to_vec();
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
        let mut room = EMPTY;
        let holes = write(&mut room, key, 0, &links).expect("nothing is lost");
        assert_eq!((holes.len(), run_at(holes, 3, 64)), (UNIT_WORDS, (0, 61)));
        links[9] = LOST;
        assert!(write(&mut room, key, 0, &links).is_none());
    }
}

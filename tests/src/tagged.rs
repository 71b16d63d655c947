//! Sectors that say who they are: a unique tag, their place, and bytes that follow from both.
//!
//! ```text
//!  0 tag u64 | 8 sector u64 | 16 seal u64 = mix(tag, sector) | 24.. seal repeated, turned
//! ```
//!
//! Tag 0 stands for a sector of zeros: never written, or discarded. A block's *state* is the tags
//! of its eight sectors.

use crate::sim::rng::mix;

/// Bytes in a sector.
pub const SECTOR: usize = 512;
/// Bytes in a block, the unit that is old or new as a whole.
pub const BLOCK: usize = 4096;
/// Sectors in a block.
pub const BLOCK_SECTORS: usize = BLOCK / SECTOR;

/// Tags of a block's sectors.
pub type State = [u64; BLOCK_SECTORS];

fn seal(tag: u64, sector: u64) -> u64 {
    mix(tag ^ mix(sector))
}

/// What sector `sector` holds after a write with `tag`.
#[must_use]
pub fn bytes_of(tag: u64, sector: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    if tag == 0 {
        return bytes;
    }
    let seal = seal(tag, sector);
    for (index, word) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *word = match index {
            0 => tag,
            1 => sector,
            index => seal.rotate_left(index as u32 - 2),
        }
        .to_le_bytes();
    }
    bytes
}

/// The tag of a sector that looks like one of ours, wherever it is.
#[must_use]
pub fn tag_of(bytes: &[u8; SECTOR]) -> Option<u64> {
    let words = bytes.as_chunks::<8>().0;
    let word = |index: usize| u64::from_le_bytes(words[index]);
    (word(0) != 0 && word(2) == seal(word(0), word(1))).then(|| word(0))
}

/// Bytes of `count` sectors from `first` with one tag.
#[must_use]
pub fn run_of(tag: u64, first: u64, count: u64) -> Vec<u8> {
    (first..first + count).flat_map(|sector| bytes_of(tag, sector)).collect()
}

/// The state of the block whose first sector is `first`.
///
/// # Errors
/// A sector that is not whole: says which.
pub fn state_of(bytes: &[u8], first: u64) -> Result<State, String> {
    let mut state = [0; BLOCK_SECTORS];
    assert_eq!(bytes.len(), BLOCK, "one block");
    for ((sector, tag), bytes) in (first..).zip(&mut state).zip(bytes.as_chunks::<SECTOR>().0) {
        *tag = u64::from_le_bytes(bytes.as_chunks::<8>().0[0]);
        if *bytes != bytes_of(*tag, sector) {
            return Err(format!(
                "sector {sector} is damaged: its tag says {tag:#x}, its bytes do not"
            ));
        }
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back() {
        let mut bytes = run_of(77, 16, 8);
        bytes[512..1024].copy_from_slice(&bytes_of(0, 17));
        bytes[1024..1536].copy_from_slice(&bytes_of(78, 18));
        assert_eq!(state_of(&bytes, 16), Ok([77, 0, 78, 77, 77, 77, 77, 77]));
        assert_eq!(tag_of(&bytes_of(9, 3)), Some(9));
        assert_eq!(tag_of(&[0; SECTOR]), None);
        assert_eq!(tag_of(&[1; SECTOR]), None);
    }

    #[test]
    fn a_sector_that_is_torn_or_misplaced_is_seen() {
        let bytes = run_of(77, 16, 8);
        assert!(state_of(&bytes, 24).is_err());
        for at in [0, 9, 17, 600, 4095] {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert!(state_of(&bytes, 16).is_err(), "byte {at}");
        }
    }
}

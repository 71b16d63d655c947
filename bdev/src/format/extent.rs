//! Extents: the catalogue that lists them and the bitmap that heads each.

use super::superblock::Geometry;
use super::{Block, Damage, HEADER_LEN, Header, Kind, payload, seal, unseal};
use crate::limits::{EXTENT_BLOCKS_MAX, EXTENT_HEAD_BLOCKS};
use crate::types::{BLOCK_SIZE, Uuid};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Entries in a catalogue block.
pub(crate) const CATALOGUE_ENTRIES: usize = (BLOCK_SIZE - HEADER_LEN) / 16;
/// 64-bit words of a full bitmap.
pub(crate) const BITMAP_WORDS: usize = (EXTENT_BLOCKS_MAX / 64) as usize;

/// Generation of a bitmap that must not be believed: no copy has it.
pub(crate) const UNTRUSTED: u64 = u64::MAX;

/// What an extent's blocks are used for. A preference, not a wall: when nothing else is left,
/// either kind goes anywhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub(crate) enum ExtentType {
    /// Never used: no bitmap on disk yet, everything but the head is free.
    #[default]
    Free = 0,
    Data = 1,
    Metadata = 2,
}

/// One line of the catalogue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Entry {
    pub kind: ExtentType,
    /// Free blocks at the consistency point.
    pub free: u32,
    /// Generation of the bitmap copy that counts; 0 = none was written.
    pub bitmap: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawEntry {
    kind: u8,
    reserved: [u8; 3],
    free: U32,
    bitmap: U64,
}
const _: () = assert!(size_of::<RawEntry>() == 16);

/// Entries of a fresh store, from extent `first` on.
pub(crate) fn empty_entries(geometry: &Geometry, first: u64) -> Vec<Entry> {
    let count = (geometry.extent_count.saturating_sub(first)).min(CATALOGUE_ENTRIES as u64);
    let free = (geometry.extent_blocks - EXTENT_HEAD_BLOCKS) as u32;
    (0..count).map(|_| Entry { kind: ExtentType::Free, free, bitmap: 0 }).collect()
}

/// Writes one catalogue block for `address`.
pub(crate) fn write_catalogue(
    block: &mut Block,
    store: Uuid,
    shard: u16,
    address: u64,
    pair: u64,
    generation: u64,
    entries: &[Entry],
) {
    block.fill(0);
    for (chunk, entry) in block[HEADER_LEN..].chunks_exact_mut(16).zip(entries) {
        let raw = RawEntry {
            kind: entry.kind as u8,
            reserved: [0; 3],
            free: U32::new(entry.free),
            bitmap: U64::new(entry.bitmap),
        };
        chunk.copy_from_slice(raw.as_bytes());
    }
    let kind = Kind::Catalogue;
    seal(
        block,
        &Header { kind, level: 0, owner: 0, store, shard, address, index: pair, generation },
    );
}

/// Reads the entries of an unsealed catalogue block.
pub(crate) fn read_entries(block: &Block, entries: &mut [Entry], max: u32) -> Result<(), Damage> {
    let raw = payload::<[RawEntry; CATALOGUE_ENTRIES]>(block);
    for (entry, raw) in entries.iter_mut().zip(raw) {
        let kind = match raw.kind {
            0 => ExtentType::Free,
            1 => ExtentType::Data,
            2 => ExtentType::Metadata,
            _ => return Err(Damage::Content),
        };
        if raw.free.get() > max {
            return Err(Damage::Content);
        }
        *entry = Entry { kind, free: raw.free.get(), bitmap: raw.bitmap.get() };
    }
    Ok(())
}

/// Writes a bitmap block: bit set = in use.
pub(crate) fn write_bitmap(
    block: &mut Block,
    store: Uuid,
    shard: u16,
    address: u64,
    extent: u64,
    generation: u64,
    words: &[u64],
) {
    block.fill(0);
    for (chunk, word) in block[HEADER_LEN..].chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    let kind = Kind::Bitmap;
    seal(
        block,
        &Header { kind, level: 0, owner: 0, store, shard, address, index: extent, generation },
    );
}

/// Adds to `words` what one copy of a bitmap at `address` has in use, of whatever generation it is.
/// Nothing, if no such bitmap was ever written there.
pub(crate) fn add_bitmap(
    block: &Block,
    store: Uuid,
    shard: u16,
    address: u64,
    extent: u64,
    words: &mut [u64],
) -> Result<(), Damage> {
    match unseal(block, Kind::Bitmap, store, shard, address) {
        Ok(h) if h.index == extent => {
            for (word, chunk) in words.iter_mut().zip(block[HEADER_LEN..].chunks_exact(8)) {
                *word |= u64::from_le_bytes(chunk.try_into().expect("8 bytes"));
            }
            Ok(())
        }
        Ok(_) => Err(Damage::Identity),
        Err(Damage::Magic | Damage::Store) => Ok(()),
        Err(damage) => Err(damage),
    }
}

/// Reads the copy of a bitmap that `generation` names into `words`; says which copy it was.
pub(crate) fn read_bitmap(
    copies: [&Block; 2],
    store: Uuid,
    shard: u16,
    address: u64,
    extent: u64,
    generation: u64,
    words: &mut [u64],
) -> Result<usize, Damage> {
    let mut damage = Damage::Identity;
    for (side, block) in copies.into_iter().enumerate() {
        match unseal(block, Kind::Bitmap, store, shard, address + side as u64) {
            Ok(h) if h.index == extent && h.generation == generation => {
                for (word, chunk) in words.iter_mut().zip(block[HEADER_LEN..].chunks_exact(8)) {
                    *word = u64::from_le_bytes(chunk.try_into().expect("8 bytes"));
                }
                return Ok(side);
            }
            Ok(_) => {}
            Err(found) => damage = found,
        }
    }
    Err(damage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_generation_of_a_bitmap_is_taken() {
        let store = Uuid([1; 16]);
        let mut copies = [[0; BLOCK_SIZE]; 2];
        for (side, generation) in [(0, 5), (1, 6)] {
            let words = [generation; 4];
            write_bitmap(&mut copies[side], store, 0, 100 + side as u64, 3, generation, &words);
        }
        let mut words = [0; 4];
        let mut read = |generation| {
            read_bitmap([&copies[0], &copies[1]], store, 0, 100, 3, generation, &mut words)
                .map(|side| (side, words[0]))
        };
        assert_eq!(read(5), Ok((0, 5)));
        assert_eq!(read(6), Ok((1, 6)));
        assert!(read(7).is_err());
    }

    #[test]
    fn all_that_any_copy_of_a_bitmap_has_in_use_is_added() {
        let store = Uuid([1; 16]);
        let mut block = [0; BLOCK_SIZE];
        let mut words = [4; 2];
        assert_eq!(add_bitmap(&block, store, 0, 100, 3, &mut words), Ok(()), "never written");
        write_bitmap(&mut block, store, 0, 100, 3, 9, &[1, 2]);
        assert_eq!(add_bitmap(&block, store, 0, 100, 4, &mut words), Err(Damage::Identity));
        assert_eq!(
            add_bitmap(&block, Uuid([2; 16]), 0, 100, 3, &mut words),
            Ok(()),
            "a stranger's"
        );
        assert_eq!(words, [4; 2]);
        assert_eq!(add_bitmap(&block, store, 0, 100, 3, &mut words), Ok(()));
        assert_eq!(words, [5, 6]);
        block[99] ^= 1;
        assert_eq!(add_bitmap(&block, store, 0, 100, 3, &mut words), Err(Damage::Checksum));
    }

    #[test]
    fn catalogue_entries_read_back_and_impossible_ones_do_not() {
        let entry = Entry { kind: ExtentType::Metadata, free: 77, bitmap: 12 };
        let mut block = [0; BLOCK_SIZE];
        write_catalogue(&mut block, Uuid([1; 16]), 0, 2, 0, 9, &[entry; CATALOGUE_ENTRIES]);
        let mut out = [Entry::default(); 3];
        read_entries(&block, &mut out, 100).unwrap();
        assert_eq!(out, [entry; 3]);
        assert_eq!(read_entries(&block, &mut out, 76), Err(Damage::Content));
        block[HEADER_LEN] = 9;
        assert_eq!(read_entries(&block, &mut out, 100), Err(Damage::Content));
    }
}

//! The superblock: the one block whose writing commits a consistency point; and the region's
//! layout.
//!
//! Both copies are written at each consistency point, one after the other with a flush between:
//! first the copy that is not the newest, which commits, then the other. Nothing relies on a point
//! before both copies are durable, so damage to either never costs anything. It carries sums over
//! the generations of all pairs (see [`super::pairs`]).

use super::extent::{self, CATALOGUE_ENTRIES};
use super::label::StoreLabel;
use super::pairs::{GROUPS, PairSums, RawSums, Sums};
use super::{Block, Damage, Header, Kind, payload, payload_mut, seal, unseal};
use crate::error::{Error, ErrorKind};
use crate::limits::{
    COUNTER_MAX, DISKS_MAX, EXTENT_BLOCKS_MAX, EXTENT_BLOCKS_MIN, EXTENTS_MAX, POINTS_MAX,
};
use crate::types::{BLOCK_SIZE, Uuid};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Where everything lies in a region; blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Geometry {
    pub region_blocks: u64,
    /// First block of the catalogue's pairs.
    pub catalogue: u64,
    pub catalogue_pairs: u64,
    /// First block of the disk records' pairs.
    pub records: u64,
    pub record_slots: u64,
    pub journal: u64,
    pub journal_blocks: u64,
    pub extents: u64,
    pub extent_blocks: u64,
    pub extent_count: u64,
}

impl Geometry {
    /// Lays out a region of `region_blocks` with a journal of `journal_blocks` (0 = by size).
    pub(super) fn plan(region_blocks: u64, journal_blocks: u64) -> Result<Geometry, Error> {
        let by_size = (region_blocks / 64).clamp(64, 4096);
        let journal_blocks = if journal_blocks == 0 { by_size } else { journal_blocks };
        let extent_blocks =
            prev_power_of_two(region_blocks / 64).clamp(EXTENT_BLOCKS_MIN, EXTENT_BLOCKS_MAX);
        let record_slots = (region_blocks / 512).clamp(64, DISKS_MAX);
        let catalogue_pairs = (region_blocks / extent_blocks).div_ceil(CATALOGUE_ENTRIES as u64);
        let catalogue = 2;
        let records = catalogue + 2 * catalogue_pairs;
        let journal = records + 2 * record_slots;
        let extents = (journal + journal_blocks).next_multiple_of(8);
        let extent_count = region_blocks.saturating_sub(extents) / extent_blocks;
        if !(16..=1 << 20).contains(&journal_blocks) || extent_count < 4 {
            let most = region_blocks / 4;
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "a journal of {journal_blocks} blocks of 4 KiB does not fit here: choose between 16 and {most}"
                ),
            ));
        }
        if extent_count > EXTENTS_MAX {
            let most = EXTENTS_MAX * extent_blocks * BLOCK_SIZE as u64;
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("a shard holds at most {most} bytes: use more shards"),
            ));
        }
        Ok(Geometry {
            region_blocks,
            catalogue,
            catalogue_pairs,
            records,
            record_slots,
            journal,
            journal_blocks,
            extents,
            extent_blocks,
            extent_count,
        })
    }

    /// True if the numbers from a disk are ones that `plan` could have made.
    pub(super) fn lawful(&self) -> bool {
        let small = [
            self.region_blocks,
            self.catalogue,
            self.catalogue_pairs,
            self.records,
            self.record_slots,
            self.journal,
            self.journal_blocks,
            self.extents,
            self.extent_blocks,
            self.extent_count,
        ]
        .iter()
        .all(|&v| v < 1 << 47);
        small
            && self.extent_blocks.is_power_of_two()
            && (EXTENT_BLOCKS_MIN..=EXTENT_BLOCKS_MAX).contains(&self.extent_blocks)
            && (16..=1 << 20).contains(&self.journal_blocks)
            && (1..=DISKS_MAX).contains(&self.record_slots)
            && (1..=EXTENTS_MAX).contains(&self.extent_count)
            && self.catalogue == 2
            && self.catalogue_pairs * CATALOGUE_ENTRIES as u64 >= self.extent_count
            && self.catalogue_pairs
                <= (self.region_blocks / self.extent_blocks).div_ceil(CATALOGUE_ENTRIES as u64)
            && self.records == self.catalogue + 2 * self.catalogue_pairs
            && self.journal == self.records + 2 * self.record_slots
            && self.extents >= self.journal + self.journal_blocks
            && self.extents + self.extent_count * self.extent_blocks <= self.region_blocks
    }

    /// Blocks that are written in place as long as the store lives, but for the records of disks
    /// beyond the first 1,024.
    pub(super) fn fixed_areas(&self) -> [std::ops::Range<u64>; 2] {
        let records = self.records + 2 * self.record_slots.min(1024);
        [0..records, self.journal..self.journal + self.journal_blocks]
    }

    /// Which extent a block lies in; `None` for the system area and for blocks past the end.
    pub fn extent_of(&self, block: u64) -> Option<u64> {
        // A power of two: nothing else is opened.
        let extent = block.checked_sub(self.extents)? >> self.extent_blocks.trailing_zeros();
        (extent < self.extent_count).then_some(extent)
    }

    /// The extents that a catalogue pair lists. The last pair may have none: what it was made for
    /// is taken by the journal and the disk records.
    pub fn listed(&self, pair: usize) -> std::ops::Range<usize> {
        let count = self.extent_count as usize;
        let first = pair * CATALOGUE_ENTRIES;
        first.min(count)..(first + CATALOGUE_ENTRIES).min(count)
    }

    /// Number of a catalogue block's pair among all.
    pub fn catalogue_pair(&self, pair: u64) -> usize {
        pair as usize
    }

    /// Number of a record slot's pair among all.
    pub fn record_pair(&self, slot: u64) -> usize {
        (self.catalogue_pairs + slot) as usize
    }

    /// First block of a pair, by its number among all.
    pub fn pair_block(&self, index: usize) -> u64 {
        self.catalogue + 2 * index as u64
    }

    /// Number of the pair that a block is a copy of; `None` for other blocks.
    pub fn pair_of(&self, block: u64) -> Option<usize> {
        (self.catalogue..self.journal)
            .contains(&block)
            .then(|| (block - self.catalogue) as usize / 2)
    }

    /// First block of an extent (its bitmap, copy A).
    pub fn extent_start(&self, extent: u64) -> u64 {
        self.extents + extent * self.extent_blocks
    }

    /// True if a link may point at `block`: inside an extent and not its bitmap.
    #[inline]
    pub fn linkable(&self, block: u64) -> bool {
        // Extents have a power of two of blocks, which spares a division for each link of a node.
        let at = block.wrapping_sub(self.extents);
        let inside = at < self.extent_count * self.extent_blocks;
        inside && at & self.extent_blocks.wrapping_sub(1) >= crate::limits::EXTENT_HEAD_BLOCKS
    }
}

fn prev_power_of_two(v: u64) -> u64 {
    if v == 0 { 1 } else { 1 << (63 - v.leading_zeros()) }
}

/// What a consistency point commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Superblock {
    pub geometry: Geometry,
    /// Number of the consistency point; pairs up to it count.
    pub generation: u64,
    /// First journal block to replay.
    pub journal_tail: u64,
    /// Journal blocks of another incarnation are from before the last recovery.
    pub incarnation: u64,
    /// Record slots at and above this were never used.
    pub records_used: u64,
    /// Which generation of each pair it commits.
    pub sums: PairSums,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSuperblock {
    region_blocks: U64,
    catalogue: U64,
    catalogue_pairs: U64,
    records: U64,
    record_slots: U64,
    journal: U64,
    journal_blocks: U64,
    extents: U64,
    extent_blocks: U64,
    extent_count: U64,
    journal_tail: U64,
    incarnation: U64,
    records_used: U64,
    shard: U32,
    reserved: U32,
    sums: [RawSums; GROUPS],
}
const _: () = assert!(size_of::<RawSuperblock>() == 112 + 16 * GROUPS);
const _: () = assert!(size_of::<RawSuperblock>() + super::HEADER_LEN <= BLOCK_SIZE);

impl Superblock {
    /// Writes the copy that belongs at block `copy` (0 or 1).
    pub fn write(&self, block: &mut Block, store: Uuid, shard: u16, copy: u64) {
        let g = &self.geometry;
        block.fill(0);
        *payload_mut::<RawSuperblock>(block) = RawSuperblock {
            region_blocks: U64::new(g.region_blocks),
            catalogue: U64::new(g.catalogue),
            catalogue_pairs: U64::new(g.catalogue_pairs),
            records: U64::new(g.records),
            record_slots: U64::new(g.record_slots),
            journal: U64::new(g.journal),
            journal_blocks: U64::new(g.journal_blocks),
            extents: U64::new(g.extents),
            extent_blocks: U64::new(g.extent_blocks),
            extent_count: U64::new(g.extent_count),
            journal_tail: U64::new(self.journal_tail),
            incarnation: U64::new(self.incarnation),
            records_used: U64::new(self.records_used),
            shard: U32::new(u32::from(shard)),
            reserved: U32::new(0),
            sums: self.sums.0.map(Sums::raw),
        };
        let header = Header {
            kind: Kind::Superblock,
            level: 0,
            owner: 0,
            store,
            shard,
            address: copy,
            index: 0,
            generation: self.generation,
        };
        seal(block, &header);
    }

    /// Reads copy `copy`.
    pub fn read(block: &Block, store: Uuid, shard: u16, copy: u64) -> Result<Superblock, Damage> {
        let header = unseal(block, Kind::Superblock, store, shard, copy)?;
        let raw = payload::<RawSuperblock>(block);
        let geometry = Geometry {
            region_blocks: raw.region_blocks.get(),
            catalogue: raw.catalogue.get(),
            catalogue_pairs: raw.catalogue_pairs.get(),
            records: raw.records.get(),
            record_slots: raw.record_slots.get(),
            journal: raw.journal.get(),
            journal_blocks: raw.journal_blocks.get(),
            extents: raw.extents.get(),
            extent_blocks: raw.extent_blocks.get(),
            extent_count: raw.extent_count.get(),
        };
        // Counters that could not be reached in any time, and would overflow.
        let counters = [header.generation, raw.journal_tail.get(), raw.incarnation.get()];
        let lawful = geometry.lawful()
            && raw.records_used.get() <= geometry.record_slots
            && header.generation < POINTS_MAX
            && counters.iter().all(|&counter| counter < COUNTER_MAX);
        if !lawful {
            return Err(Damage::Content);
        }
        Ok(Superblock {
            geometry,
            generation: header.generation,
            journal_tail: raw.journal_tail.get(),
            incarnation: raw.incarnation.get(),
            records_used: raw.records_used.get(),
            sums: PairSums(raw.sums.map(Sums::of)),
        })
    }
}

/// The blocks of an empty region, as (block, bytes), superblocks last.
pub(crate) fn format_region(
    label: &StoreLabel,
    shard: u32,
    journal_bytes: u64,
) -> Result<Vec<(u64, Vec<u8>)>, Error> {
    let block = BLOCK_SIZE as u64;
    let geometry = Geometry::plan(label.region_bytes / block, journal_bytes / block)?;
    let shard = shard as u16;
    let mut writes = Vec::new();
    let mut sums = PairSums::default();
    for pair in 0..geometry.catalogue_pairs {
        sums.change(geometry.catalogue_pair(pair), 0, 1);
        let at = geometry.catalogue + 2 * pair;
        let first = pair * CATALOGUE_ENTRIES as u64;
        let entries = extent::empty_entries(&geometry, first);
        let mut both = Vec::with_capacity(2 * BLOCK_SIZE);
        for copy in 0..2 {
            let mut bytes = [0; BLOCK_SIZE];
            extent::write_catalogue(&mut bytes, label.uuid, shard, at + copy, pair, 1, &entries);
            both.extend_from_slice(&bytes);
        }
        writes.push((at, both));
    }
    let superblock = Superblock {
        geometry,
        generation: 1,
        journal_tail: 1,
        incarnation: 1,
        records_used: 0,
        sums,
    };
    let mut both = Vec::with_capacity(2 * BLOCK_SIZE);
    for copy in 0..2 {
        let mut bytes = [0; BLOCK_SIZE];
        superblock.write(&mut bytes, label.uuid, shard, copy);
        both.extend_from_slice(&bytes);
    }
    writes.push((0, both));
    Ok(writes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_from_tiny_to_huge_are_lawful_and_use_the_space() {
        for shift in 24..46 {
            let blocks = (1u64 << shift) / BLOCK_SIZE as u64 + 3;
            let g = Geometry::plan(blocks, 0).unwrap();
            assert!(g.lawful(), "{g:?}");
            let used = g.extent_count * g.extent_blocks;
            assert!(used * 10 >= blocks * 8, "2^{shift}: {used} of {blocks} blocks in extents");
            assert_eq!(g.extent_of(g.extents - 1), None);
            assert_eq!(g.extent_of(g.extent_start(g.extent_count)), None);
            assert!(!g.linkable(g.extent_start(1)) && g.linkable(g.extent_start(1) + 2));
        }
        assert!(Geometry::plan(4096, 4000).is_err());
    }

    #[test]
    fn a_superblock_reads_back_and_impossible_ones_do_not() {
        let geometry = Geometry::plan(8192, 0).unwrap();
        let mut sums = PairSums::default();
        sums.change(5, 0, 7);
        let sb = Superblock {
            geometry,
            generation: 7,
            journal_tail: 9,
            incarnation: 2,
            records_used: 3,
            sums,
        };
        let (store, mut block) = (Uuid([1; 16]), [0; BLOCK_SIZE]);
        sb.write(&mut block, store, 4, 1);
        assert_eq!(Superblock::read(&block, store, 4, 1), Ok(sb));
        assert_eq!(Superblock::read(&block, store, 4, 0), Err(Damage::Address));
        let mut odd = sb;
        odd.geometry.extent_count += 1000;
        odd.write(&mut block, store, 4, 1);
        assert_eq!(Superblock::read(&block, store, 4, 1), Err(Damage::Content));
    }
}

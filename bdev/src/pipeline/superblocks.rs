//! Where the two copies of the superblock are kept.
//!
//! ```text
//!  block 0        block 1        catalogue ..  records .. ┌ last slot ┐  journal ..
//!  home, or bad   home, or bad                            └ spare     ┘
//! ```
//!
//! Blocks 0 and 1, unless one of them cannot be written any more: then the first block of the last
//! record slot, as long as no disk has ever needed that. There are always two homes, written in
//! turn, so that a torn one costs nothing. Which blocks are bad is found out anew each time the
//! store is opened; of the copies found then, the newest counts, wherever it is.

use crate::engine::Engine;
use crate::error::{Error, ErrorKind};
use crate::format::superblock::{Geometry, Superblock};
use crate::page::PageId;
use crate::status::BaseError;

/// Where copies are, and where they cannot be.
pub(crate) struct Homes {
    pub at: [u64; 2],
    /// Which of the two has the newest copy.
    pub newest: usize,
    bad: Vec<u64>,
}

impl Homes {
    /// The ordinary ones.
    pub fn new() -> Homes {
        Homes { at: [0, 1], newest: 0, bad: Vec::new() }
    }

    /// The one that is written next.
    pub fn older(&self) -> u64 {
        self.at[1 - self.newest]
    }

    /// From what was found in block 0, block 1 and the spare one: which copy counts, and whether
    /// the other home has something else.
    pub fn adopt(&mut self, found: &[(u64, Option<Superblock>)]) -> Option<(Superblock, bool)> {
        let generation = |copy: &Option<Superblock>| copy.map_or(0, |s| s.generation + 1);
        // The first one of several.
        let newest = found.iter().rev().max_by_key(|(_, copy)| generation(copy))?;
        let superblock = newest.1?;
        let others = found[..2].iter().filter(|(at, _)| *at != newest.0);
        // If that is the spare one, the worse of the two is written over first.
        let other = others.min_by_key(|(_, copy)| generation(copy)).expect("two blocks");
        self.at = [newest.0.min(other.0), newest.0.max(other.0)];
        self.newest = usize::from(self.at[1] == newest.0);
        Some((superblock, other.1 != Some(superblock)))
    }
}

/// The block that can stand in for one of the two, if no disk has it.
pub(crate) fn spare_block(geometry: &Geometry, records_used: u64) -> Option<u64> {
    let last = geometry.record_slots.checked_sub(1)?;
    (records_used <= last).then_some(geometry.records + 2 * last)
}

impl Engine {
    /// Writes the copy that is not the newest.
    pub(crate) fn write_superblock(&mut self) {
        let (superblock, store, shard) = (self.superblock, self.store, self.shard);
        let at = self.checkpoint.homes.older();
        let write = self.write_page(at, |block| superblock.write(block, store, shard, at));
        assert!(write, "the checkpoint's page writers are idle here");
    }

    /// Record slots that disks may have.
    pub(crate) fn record_slots(&self) -> u64 {
        let geometry = &self.superblock.geometry;
        let spare = spare_block(geometry, 0).filter(|at| self.checkpoint.homes.at.contains(at));
        geometry.record_slots - u64::from(spare.is_some())
    }

    /// A block cannot be written. If it is a home of the superblock, another takes its place: where
    /// that is, with the same superblock for it in `page`.
    pub(crate) fn move_superblock(
        &mut self,
        from: u64,
        page: PageId,
        why: BaseError,
    ) -> Option<u64> {
        // Without the device, or without space, no other block is better.
        if why != BaseError::Io || !self.checkpoint.homes.at.contains(&from) {
            return None;
        }
        let used = self.disks.len() as u64;
        let spare = spare_block(&self.superblock.geometry, used);
        let homes = &mut self.checkpoint.homes;
        homes.bad.push(from);
        let free = |at: &u64| !homes.at.contains(at) && !homes.bad.contains(at);
        let to = [0, 1].into_iter().chain(spare).find(free)?;
        *homes.at.iter_mut().find(|at| **at == from).expect("just looked") = to;
        let (superblock, store, shard) = (self.superblock, self.store, self.shard);
        superblock.write(self.pages.bytes_mut(page), store, shard, to);
        let text = format!(
            "shard {shard}: block {from}, a copy of the superblock, cannot be written; it is kept in block {to} meanwhile: move the store to a device without bad blocks"
        );
        self.event(true, text);
        Some(to)
    }

    /// Takes over the copies of the superblock that were found. True: both homes must be made
    /// equal.
    ///
    /// # Errors
    /// `Corrupt`: none can be used.
    pub(crate) fn adopt_superblock(
        &mut self,
        found: &[(u64, Option<Superblock>)],
    ) -> Result<bool, Error> {
        let Some((superblock, differ)) = self.checkpoint.homes.adopt(found) else {
            let text = format!("shard {}: no superblock can be used", self.shard);
            return Err(Error::new(ErrorKind::Corrupt, text));
        };
        self.superblock = superblock;
        Ok(differ)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(generation: u64) -> Option<Superblock> {
        Some(Superblock { generation, ..Superblock::default() })
    }

    /// Homes, the newest of them, the point that counts, and whether the other one differs.
    fn adopted(copies: [Option<Superblock>; 3]) -> ([u64; 2], u64, u64, bool) {
        let mut homes = Homes::new();
        let found: Vec<_> = [0, 1, 98].into_iter().zip(copies).collect();
        let (superblock, differ) = homes.adopt(&found).unwrap();
        (homes.at, homes.at[homes.newest], superblock.generation, differ)
    }

    #[test]
    fn the_newest_copy_counts_and_the_worse_of_the_others_is_written_next() {
        assert_eq!(adopted([copy(5), copy(5), None]), ([0, 1], 0, 5, false));
        assert_eq!(adopted([copy(5), copy(6), None]), ([0, 1], 1, 6, true));
        assert_eq!(adopted([None, copy(6), copy(5)]), ([0, 1], 1, 6, true));
        // Block 0 has been bad for a while; then block 1 was torn.
        assert_eq!(adopted([copy(2), copy(6), copy(6)]), ([0, 1], 1, 6, true));
        assert_eq!(adopted([copy(2), None, copy(6)]), ([1, 98], 98, 6, true));
        assert_eq!(adopted([copy(2), copy(5), copy(6)]), ([0, 98], 98, 6, true));
        assert!(Homes::new().adopt(&[(0, None), (1, None), (98, None)]).is_none());
    }
}

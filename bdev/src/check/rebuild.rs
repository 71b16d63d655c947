//! Bitmaps and catalogue as the mark has them; and free blocks for what a repair has to write.

use super::repair::Plan;
use super::space::Bitmap;
use super::system::{Picked, Shard};
use crate::error::{Error, ErrorKind};
use crate::format::extent::{
    BITMAP_WORDS, CATALOGUE_ENTRIES, Entry, ExtentType, write_bitmap, write_catalogue,
};
use crate::format::{Kind, unseal};
use crate::limits::EXTENT_HEAD_BLOCKS;
use crate::types::BLOCK_SIZE;

/// Where free blocks were taken last.
#[derive(Default)]
pub(super) struct Taking {
    /// Which of [`PREFERENCE`].
    choice: usize,
    extent: u64,
    /// First block of the extent not looked at.
    next: u64,
    /// The extent's bitmap.
    words: Option<Box<[u64; BITMAP_WORDS]>>,
}

/// Extents of these types are looked at one type after the other.
const PREFERENCE: [ExtentType; 3] = [ExtentType::Metadata, ExtentType::Data, ExtentType::Free];

impl Shard<'_> {
    /// Takes `count` neighbouring free blocks; from then on they are in use.
    pub fn take_free(&mut self, count: u64) -> Result<u64, Error> {
        let g = self.geometry();
        let mut taking = std::mem::take(&mut self.taking);
        while taking.choice < PREFERENCE.len() {
            let start = g.extent_start(taking.extent);
            if taking.words.is_none() {
                taking.words = self.words_of(taking.extent, PREFERENCE[taking.choice])?;
                taking.next = EXTENT_HEAD_BLOCKS;
            }
            if let Some(words) = &taking.words {
                let free = |bit: u64| {
                    let block = start + bit;
                    let allocated = words[(bit / 64) as usize] >> (bit % 64) & 1 == 1;
                    !allocated && !self.used.has(block) && !self.journal.has(block)
                };
                let last = g.extent_blocks.saturating_sub(count);
                let found = (taking.next..=last).find(|&bit| (bit..bit + count).all(free));
                if let Some(bit) = found {
                    (start + bit..start + bit + count).for_each(|block| {
                        self.used.add(block);
                    });
                    // A single block passed over for a pair is not looked at again.
                    taking.next = bit + count;
                    self.taking = taking;
                    return Ok(start + bit);
                }
            }
            taking.words = None;
            taking.extent += 1;
            if taking.extent == g.extent_count {
                (taking.choice, taking.extent) = (taking.choice + 1, 0);
            }
        }
        let text = format!(
            "shard {}: no free block is left for the repair: delete a snapshot or disk first, or repair without --cut-off",
            self.number
        );
        Err(Error::new(ErrorKind::NoSpace, text))
    }

    /// The bitmap of an extent if it is of that type and can be used.
    fn words_of(
        &mut self,
        extent: u64,
        kind: ExtentType,
    ) -> Result<Option<Box<[u64; BITMAP_WORDS]>>, Error> {
        let entry = self.entries[extent as usize].filter(|entry| entry.kind == kind);
        let Some(entry) = entry else { return Ok(None) };
        Ok(match self.bitmap(extent, &entry)? {
            Bitmap::Words(words) => Some(words),
            Bitmap::Damaged(_) | Bitmap::Moved => None,
        })
    }

    /// Bitmaps and the catalogue as the mark has it.
    pub fn plan_space(&mut self, plan: &mut Plan) -> Result<(), Error> {
        let g = self.geometry();
        let (mut freed, mut rebuilt) = (0, 0u64);
        for pair in 0..g.catalogue_pairs {
            let first = pair * CATALOGUE_ENTRIES as u64;
            let end = (first + CATALOGUE_ENTRIES as u64).min(g.extent_count);
            let mut changed = false;
            let mut entries = Vec::new();
            for extent in first..end {
                let before = self.entries[extent as usize];
                let (entry, gained) = self.plan_extent(extent, before, plan)?;
                if gained.is_none() && entry.is_some() && entry != before {
                    rebuilt += 1;
                }
                freed += gained.unwrap_or(0);
                changed |= entry != before;
                entries.push(entry);
            }
            let entries: Option<Vec<Entry>> = entries.into_iter().collect();
            if let (true, Some(entries)) = (changed, entries) {
                self.plan_catalogue(pair, &entries, plan)?;
            }
        }
        if freed > 0 {
            plan.say(format!("{freed} leaked blocks were freed"));
        }
        // Those that this repair has taken are no news.
        if plan.entered > 0 && !plan.again {
            plan.say(format!("{} blocks in use were entered in bitmaps", plan.entered));
        }
        if rebuilt > 0 {
            plan.say(format!("the bitmaps of {rebuilt} extents were built anew"));
        }
        Ok(())
    }

    /// The entry an extent is to have (`None`: not known), and the blocks that came free; `None`
    /// for those of a bitmap that had to be built anew.
    fn plan_extent(
        &mut self,
        extent: u64,
        before: Option<Entry>,
        plan: &mut Plan,
    ) -> Result<(Option<Entry>, Option<u64>), Error> {
        let g = self.geometry();
        let start = g.extent_start(extent);
        let count = (g.extent_blocks / 64) as usize;
        let mut words = [0u64; BITMAP_WORDS];
        for (i, word) in words[..count].iter_mut().enumerate() {
            *word = self.used.word_at(start + i as u64 * 64);
        }
        words[0] |= (1 << EXTENT_HEAD_BLOCKS) - 1;
        let old = match before {
            Some(entry) => Some(self.bitmap(extent, &entry)?),
            None => None,
        };
        let mut gained = None;
        match &old {
            Some(Bitmap::Words(old)) => {
                if self.blind {
                    words.iter_mut().zip(old.iter()).for_each(|(new, old)| *new |= old);
                }
                if words[..] == old[..] {
                    return Ok((before, Some(0)));
                }
                let pairs = words.iter().zip(old.iter());
                plan.entered += pairs
                    .clone()
                    .map(|(new, old)| u64::from((new & !old).count_ones()))
                    .sum::<u64>();
                gained = Some(pairs.map(|(new, old)| u64::from((old & !new).count_ones())).sum());
            }
            _ if self.blind => return Ok((before, Some(0))),
            _ => {}
        }
        let used: u32 = words[..count].iter().map(|w| w.count_ones()).sum();
        let free = g.extent_blocks as u32 - used;
        if before.is_none() && u64::from(used) == EXTENT_HEAD_BLOCKS {
            return Ok((Some(Entry { kind: ExtentType::Free, free, bitmap: 0 }), None));
        }
        let generation = self.superblock.generation + 1;
        let (store, shard) = (self.store, self.number as u16);
        // The copy that counts, if one does, stays until the commit.
        let side = match before {
            Some(entry) => self.bitmap_side(start, entry.bitmap)?.map_or(0, |side| 1 - side),
            None => 0,
        };
        let mut block = Box::new([0; BLOCK_SIZE]);
        let (address, words) = (start + side, &words[..count]);
        write_bitmap(&mut block, store, shard, address, extent, generation, words);
        plan.writes.push((address, block));
        let kind = match before.map(|entry| entry.kind) {
            None => ExtentType::Data,
            Some(ExtentType::Free) if u64::from(used) > EXTENT_HEAD_BLOCKS => ExtentType::Metadata,
            Some(kind) => kind,
        };
        Ok((Some(Entry { kind, free, bitmap: generation }), gained))
    }

    /// Which copy of a bitmap has this generation.
    fn bitmap_side(&mut self, start: u64, generation: u64) -> Result<Option<u64>, Error> {
        let Ok(both) = self.reader.pair(start) else { return Ok(None) };
        let (store, shard) = (self.store, self.number as u16);
        for (side, block) in (0..).zip(&both) {
            let open = unseal(block, Kind::Bitmap, store, shard, start + side);
            if open.is_ok_and(|h| h.generation == generation) {
                return Ok(Some(side));
            }
        }
        Ok(None)
    }

    fn plan_catalogue(
        &mut self,
        pair: u64,
        entries: &[Entry],
        plan: &mut Plan,
    ) -> Result<(), Error> {
        let at = self.geometry().catalogue + 2 * pair;
        let side = match self.pick(Kind::Catalogue, at)? {
            Picked::Copy(_, side, _) => 1 - side.current as u64,
            Picked::Damaged(_) | Picked::Unreadable(_) => self.next_side(Kind::Catalogue, at),
        };
        let generation = self.superblock.generation + 1;
        let (store, shard) = (self.store, self.number as u16);
        let mut block = Box::new([0; BLOCK_SIZE]);
        write_catalogue(&mut block, store, shard, at + side, pair, generation, entries);
        plan.writes.push((at + side, block));
        Ok(())
    }
}

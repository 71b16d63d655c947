//! The sweep: bitmaps against what the trees, logs and the journal hold.

use super::CheckPhase;
use super::report::{FindingKind, Severity};
use super::system::Shard;
use crate::error::Error;
use crate::format::extent::{BITMAP_WORDS, Entry, UNTRUSTED, read_bitmap};
use crate::limits::EXTENT_HEAD_BLOCKS;

/// What the bitmap of one extent says.
pub(super) enum Bitmap {
    Words(Box<[u64; BITMAP_WORDS]>),
    Damaged(String),
    /// Online: overwritten since.
    Moved,
}

/// The bits of an extent's head.
const HEAD: u64 = (1 << EXTENT_HEAD_BLOCKS) - 1;

impl Shard<'_> {
    pub fn sweep(&mut self) -> Result<(), Error> {
        let g = self.geometry();
        let mut moved = 0;
        for extent in 0..g.extent_count {
            let (done, total) = (extent * g.extent_blocks, g.extent_count * g.extent_blocks);
            self.tell(CheckPhase::Bitmaps, done, total)?;
            let Some(entry) = self.entries[extent as usize] else { continue };
            let start = g.extent_start(extent);
            let bitmap = match self.online {
                true => std::mem::replace(&mut self.bitmaps[extent as usize], Bitmap::Moved),
                false => self.bitmap(extent, &entry)?,
            };
            match bitmap {
                Bitmap::Words(words) => self.sweep_extent(extent, &words),
                Bitmap::Moved => moved += 1,
                Bitmap::Damaged(damage) => {
                    let text = format!(
                        "the bitmap of extent {extent} (blocks {start} and {}) cannot be used: {damage}; its free blocks are not given out",
                        start + 1
                    );
                    self.find(Severity::Error, FindingKind::Bitmap, Some(start), text);
                }
            }
        }
        if moved > 0 {
            let text = format!(
                "{moved} of {} extents were written to so often that their bitmaps could not be compared",
                g.extent_count
            );
            self.find(Severity::Note, FindingKind::Skipped, None, text);
        }
        Ok(())
    }

    /// Reads all bitmaps now.
    pub fn keep_bitmaps(&mut self) -> Result<(), Error> {
        self.bitmaps.clear();
        for extent in 0..self.entries.len() {
            let bitmap = match self.entries[extent] {
                Some(entry) => self.bitmap(extent as u64, &entry)?,
                None => Bitmap::Moved,
            };
            self.bitmaps.push(bitmap);
        }
        Ok(())
    }

    /// The bitmap of an extent as of this consistency point.
    pub fn bitmap(&mut self, extent: u64, entry: &Entry) -> Result<Bitmap, Error> {
        let g = self.geometry();
        let mut words = Box::new([0; BITMAP_WORDS]);
        let fresh = (g.extent_blocks - EXTENT_HEAD_BLOCKS) as u32;
        if entry.bitmap == 0 {
            words[0] = HEAD;
            if entry.free != fresh {
                let text = format!("never written, but {} blocks are said to be free", entry.free);
                return Ok(Bitmap::Damaged(text));
            }
            return Ok(Bitmap::Words(words));
        }
        if entry.bitmap == UNTRUSTED {
            let text = "it was found to be wrong while the store was served".to_string();
            return Ok(Bitmap::Damaged(text));
        }
        if entry.bitmap > self.superblock.generation {
            return Ok(Bitmap::Damaged("its generation is from the future".to_string()));
        }
        let start = g.extent_start(extent);
        let both = match self.reader.pair(start) {
            Ok(both) => both,
            Err(error) => return Ok(Bitmap::Damaged(error.message)),
        };
        let used = (g.extent_blocks / 64) as usize;
        let (store, shard) = (self.store, self.number as u16);
        let out = &mut words[..used];
        let copies = [&both[0], &both[1]];
        let found = read_bitmap(copies, store, shard, start, extent, entry.bitmap, out);
        if let Err(damage) = found {
            if self.online {
                return Ok(Bitmap::Moved);
            }
            return Ok(Bitmap::Damaged(damage.to_string()));
        }
        let ones: u32 = words.iter().map(|w| w.count_ones()).sum();
        let free = g.extent_blocks as u32 - ones;
        if words[0] & HEAD != HEAD {
            return Ok(Bitmap::Damaged("its own blocks are marked free".to_string()));
        }
        if free != entry.free {
            let text = format!("{free} blocks are free in it, the catalogue says {}", entry.free);
            return Ok(Bitmap::Damaged(text));
        }
        Ok(Bitmap::Words(words))
    }

    fn sweep_extent(&mut self, extent: u64, words: &[u64; BITMAP_WORDS]) {
        let g = self.geometry();
        let start = g.extent_start(extent);
        let (mut leaked, mut unallocated, mut journal) = (Runs::new(), Runs::new(), Runs::new());
        for (i, &word) in words[..(g.extent_blocks / 64) as usize].iter().enumerate() {
            let at = start + i as u64 * 64;
            let head = if i == 0 { HEAD } else { 0 };
            let held = self.used.word_at(at) | head;
            self.report.counts.free_blocks += u64::from((!word).count_ones());
            for bit in bits(held & !word) {
                unallocated.add(at + bit);
            }
            for bit in bits(word & !held) {
                let block = at + bit;
                if self.journal.has(block) { journal.add(block) } else { leaked.add(block) }
            }
        }
        self.report.counts.leaked_blocks += leaked.count;
        if unallocated.count > 0 {
            let text = format!(
                "{} in extent {extent}: in use, but free in its bitmap, so that other data may overwrite it",
                unallocated.text()
            );
            self.find(Severity::Error, FindingKind::NotAllocated, unallocated.first, text);
        }
        if journal.count > 0 {
            let text = format!(
                "{} in extent {extent}: named by journal records, but allocated before",
                journal.text()
            );
            self.find(Severity::Error, FindingKind::Journal, journal.first, text);
        }
        if leaked.count > 0 {
            let why = match self.blind {
                false => "but held by nothing",
                true => "but held by nothing that can be read; may belong to what is damaged",
            };
            let text = format!("{} in extent {extent}: allocated, {why}", leaked.text());
            self.find(Severity::Warning, FindingKind::Leak, leaked.first, text);
        }
    }
}

fn bits(mut word: u64) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        let bit = u64::from(word.trailing_zeros());
        word &= word.wrapping_sub(1);
        (bit < 64).then_some(bit)
    })
}

/// Blocks to be named in one sentence.
struct Runs {
    first: Option<u64>,
    last: u64,
    count: u64,
}

impl Runs {
    fn new() -> Runs {
        Runs { first: None, last: 0, count: 0 }
    }

    fn add(&mut self, block: u64) {
        self.first.get_or_insert(block);
        self.last = block;
        self.count += 1;
    }

    fn text(&self) -> String {
        match (self.first, self.count) {
            (Some(first), 1) => format!("block {first}"),
            (Some(first), count) => format!("{count} blocks between {first} and {}", self.last),
            (None, _) => "no blocks".to_string(),
        }
    }
}

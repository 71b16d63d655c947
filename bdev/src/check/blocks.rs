//! Reading one shard's region, with read-ahead for map nodes; and sets of its blocks.

use super::ReadBlocks;
use crate::error::Error;
use crate::format::Block;
use crate::types::BLOCK_SIZE;

/// Most blocks read ahead.
const AHEAD_MAX: usize = 128;

/// The region of one shard.
pub(super) struct Reader<'a> {
    device: &'a mut dyn ReadBlocks,
    /// First block of the region on the device.
    first: u64,
    blocks: u64,
    ahead: Vec<u8>,
    ahead_at: u64,
    ahead_count: usize,
    window: usize,
}

impl<'a> Reader<'a> {
    pub fn new(device: &'a mut dyn ReadBlocks, first: u64, blocks: u64) -> Reader<'a> {
        let ahead = vec![0; AHEAD_MAX * BLOCK_SIZE];
        Reader { device, first, blocks, ahead, ahead_at: 0, ahead_count: 0, window: 1 }
    }

    /// Reads `buf.len()` bytes from `block` on, now.
    pub fn read(&mut self, block: u64, buf: &mut [u8]) -> Result<(), Error> {
        assert!(buf.len().is_multiple_of(BLOCK_SIZE));
        assert!(block + (buf.len() / BLOCK_SIZE) as u64 <= self.blocks, "read past the region");
        self.device.read(self.first + block, buf)
    }

    /// Reads both copies of a pair. One that cannot be read is all zeros, if the other can be.
    pub fn pair(&mut self, block: u64) -> Result<[Block; 2], Error> {
        let mut both = [0; 2 * BLOCK_SIZE];
        if self.read(block, &mut both).is_err() {
            both.fill(0);
            let (a, b) = both.split_at_mut(BLOCK_SIZE);
            let (first, second) = (self.read(block, a), self.read(block + 1, b));
            if first.is_err() && second.is_err() {
                return Err(first.expect_err("just looked at"));
            }
        }
        let (a, b) = both.split_at(BLOCK_SIZE);
        Ok([a.try_into().expect("a block"), b.try_into().expect("a block")])
    }

    /// One block of a tree that no longer changes: may have been read ahead. Nodes lie in long
    /// runs in the order of the tree, so the window grows while they are read that way.
    pub fn node(&mut self, block: u64) -> Result<&Block, Error> {
        let held = self.ahead_at..self.ahead_at + self.ahead_count as u64;
        if !held.contains(&block) {
            let near = block >= self.ahead_at && block < held.end + self.window as u64;
            self.window = if near { (self.window * 2).min(AHEAD_MAX) } else { 1 };
            let count = (self.window as u64).min(self.blocks - block) as usize;
            self.ahead_count = 0;
            let bytes = &mut self.ahead[..count * BLOCK_SIZE];
            let first = self.first + block;
            let read = match self.device.read(first, bytes) {
                Err(_) if count > 1 => {
                    // Perhaps it was another block of the run that cannot be read.
                    self.device.read(first, &mut self.ahead[..BLOCK_SIZE]).map(|()| 1)
                }
                other => other.map(|()| count),
            };
            self.ahead_count = read?;
            self.ahead_at = block;
        }
        let at = (block - self.ahead_at) as usize * BLOCK_SIZE;
        Ok(self.ahead[at..at + BLOCK_SIZE].try_into().expect("a block"))
    }
}

/// A set of blocks.
pub(super) struct Bits {
    words: Vec<u64>,
}

impl Bits {
    pub fn new(blocks: u64) -> Bits {
        Bits { words: vec![0; blocks.div_ceil(64) as usize] }
    }

    pub fn has(&self, block: u64) -> bool {
        self.words[(block / 64) as usize] >> (block % 64) & 1 == 1
    }

    /// Adds a block; true if it was there already.
    pub fn add(&mut self, block: u64) -> bool {
        let word = &mut self.words[(block / 64) as usize];
        let was = *word >> (block % 64) & 1 == 1;
        *word |= 1 << (block % 64);
        was
    }

    /// The 64 blocks from `block` on, as bits.
    pub fn word_at(&self, block: u64) -> u64 {
        let (at, shift) = ((block / 64) as usize, block % 64);
        let low = self.words.get(at).copied().unwrap_or(0) >> shift;
        if shift == 0 {
            return low;
        }
        low | self.words.get(at + 1).copied().unwrap_or(0) << (64 - shift)
    }

    /// The first `most` members from block `from` on lie below this.
    pub fn window_end(&self, from: u64, most: u64) -> u64 {
        let mut count = 0;
        for (at, word) in self.words.iter().enumerate().skip((from / 64) as usize) {
            count += u64::from(word.count_ones());
            if count > most {
                return ((at as u64) * 64).max(from / 64 * 64 + 64);
            }
        }
        self.words.len() as u64 * 64
    }

    /// Members.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_windows_at_any_place() {
        let mut bits = Bits::new(300);
        for block in [0, 63, 64, 130, 299] {
            assert!(!bits.add(block) && bits.add(block) && bits.has(block));
        }
        assert_eq!(bits.word_at(63), 0b11);
        assert_eq!(bits.word_at(128), 0b100);
        assert_eq!(bits.word_at(298), 0b10);
        assert_eq!(bits.count(), 5);
        assert_eq!(bits.window_end(0, 2), 64);
        assert_eq!(bits.window_end(64, 2), 256);
        assert_eq!(bits.window_end(0, 9), 320);
    }
}

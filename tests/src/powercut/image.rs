//! Images of the base device that cost little: a table of page numbers into a shared pool, with a
//! hash that is kept up to date block by block.
//!
//! ```text
//!  image A  [ 3 | 0 | 7 | 0 ]      a crash state is a copy of a table and a few entries changed;
//!  image B  [ 3 | 0 | 9 | 0 ]      page 0 is all zeros
//!             │       │
//!  pool     zeros, ..., page 3, ..., page 7, page 9
//! ```

use crate::sim::rng::mix;

/// Bytes in a page: one block of the store.
pub const PAGE: usize = 4096;
/// The bytes of one block.
pub type Page = [u8; PAGE];
/// Number of a page in its pool.
pub type PageId = u32;

/// Pages by number. Those made for one state are dropped together.
pub struct Pool {
    pages: Vec<Box<Page>>,
    hashes: Vec<u64>,
    used: usize,
}

/// A 64-bit hash of a page, four lanes wide.
pub fn hash_page(page: &Page) -> u64 {
    let mut lanes = [1u64, 2, 3, 4];
    for chunk in page.chunks_exact(32) {
        for (lane, word) in lanes.iter_mut().zip(chunk.chunks_exact(8)) {
            let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
            *lane = (*lane ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        }
    }
    lanes.into_iter().fold(0, |sum, lane| mix(sum ^ lane))
}

impl Default for Pool {
    fn default() -> Self {
        Pool::new()
    }
}

impl Pool {
    /// A pool that holds the page of zeros.
    pub fn new() -> Pool {
        let mut pool = Pool { pages: Vec::new(), hashes: Vec::new(), used: 0 };
        pool.add(&[0; PAGE]);
        pool
    }

    /// Takes a page in.
    pub fn add(&mut self, page: &Page) -> PageId {
        if self.used == self.pages.len() {
            self.pages.push(Box::new([0; PAGE]));
            self.hashes.push(0);
        }
        self.pages[self.used].copy_from_slice(page);
        self.hashes[self.used] = hash_page(page);
        self.used += 1;
        (self.used - 1) as PageId
    }

    /// The bytes of a page.
    pub fn page(&self, id: PageId) -> &Page {
        assert!((id as usize) < self.used, "a page that was dropped");
        &self.pages[id as usize]
    }

    /// How many pages there are, for [`Pool::drop_after`].
    pub fn mark(&self) -> usize {
        self.used
    }

    /// Forgets the pages taken in since `mark`.
    pub fn drop_after(&mut self, mark: usize) {
        assert!(mark <= self.used, "a mark of this pool");
        self.used = mark;
    }
}

/// What a device holds.
#[derive(Clone)]
pub struct Image {
    table: Vec<PageId>,
    hash: u64,
}

impl Image {
    /// A device of `blocks` blocks of zeros.
    pub fn new(blocks: u64) -> Image {
        Image { table: vec![0; blocks as usize], hash: 0 }
    }

    /// The page at `block`.
    pub fn at(&self, block: u64) -> PageId {
        self.table[block as usize]
    }

    /// Blocks that hold something, with their pages.
    pub fn pages(&self) -> impl Iterator<Item = (u64, PageId)> {
        let numbered = self.table.iter().enumerate();
        numbered.filter(|(_, page)| **page != 0).map(|(block, page)| (block as u64, *page))
    }

    /// Puts a page at `block`.
    pub fn put(&mut self, pool: &Pool, block: u64, page: PageId) {
        let old = std::mem::replace(&mut self.table[block as usize], page);
        let term = |page: PageId| mix(pool.hashes[page as usize] ^ mix(block));
        self.hash ^= term(old) ^ term(page);
    }

    /// Hash over all blocks.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Becomes a copy of `other` without new memory.
    pub fn become_copy(&mut self, other: &Image) {
        self.table.copy_from_slice(&other.table);
        self.hash = other.hash;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_contents_have_equal_hashes_whatever_the_way_there() {
        let mut pool = Pool::new();
        let (a, b) = (pool.add(&[1; PAGE]), pool.add(&[2; PAGE]));
        let twin = pool.add(&[1; PAGE]);
        let empty = Image::new(8);
        let mut first = empty.clone();
        first.put(&pool, 3, a);
        first.put(&pool, 4, b);
        let mut second = empty.clone();
        second.put(&pool, 4, a);
        second.put(&pool, 4, b);
        second.put(&pool, 3, twin);
        assert_eq!(first.hash(), second.hash());
        second.put(&pool, 5, a);
        assert_ne!(first.hash(), second.hash());
        second.put(&pool, 5, 0);
        assert_eq!(first.hash(), second.hash());
        first.become_copy(&empty);
        assert_eq!(first.hash(), empty.hash());
    }

    #[test]
    fn a_page_of_a_past_state_is_gone() {
        let mut pool = Pool::new();
        let mark = pool.mark();
        pool.add(&[5; PAGE]);
        pool.drop_after(mark);
        let next = pool.add(&[6; PAGE]);
        assert_eq!((next as usize, pool.page(next)[0]), (mark, 6));
    }
}

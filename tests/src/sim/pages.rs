//! A sparse image of 4 KiB pages. A page never written reads as a fixed filling: zeros, or the
//! rubbish that a used device holds.
//!
//! Pages are counted: what was there before a write, and what it wrote, are kept without copies.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use super::rng::mix;

/// Bytes in a page.
pub const PAGE: usize = 4096;
/// The bytes of one page.
pub type Page = [u8; PAGE];

/// Hashes one `u64` key; the order of a map is never looked at.
#[derive(Clone, Default)]
pub struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 ^= self.0 >> 29;
    }
}

/// The image. A copy costs little: it shares the pages.
#[derive(Clone)]
pub struct Pages {
    map: HashMap<u64, Rc<Page>, BuildHasherDefault<KeyHasher>>,
    rubbish: Option<u64>,
    /// Zeros.
    blank: Rc<Page>,
}

impl Pages {
    /// An image full of zeros, or of the rubbish of a seed.
    pub fn new(rubbish: Option<u64>) -> Pages {
        Pages { map: HashMap::default(), rubbish, blank: Rc::new([0; PAGE]) }
    }

    fn filling(&self, page: u64) -> Page {
        let mut bytes = [0; PAGE];
        if let Some(seed) = self.rubbish {
            let mut word = mix(seed ^ page);
            for chunk in bytes.chunks_exact_mut(8) {
                word = word.wrapping_mul(0xD6E8_FEB8_6659_FD93).wrapping_add(0x1B);
                chunk.copy_from_slice(&word.to_le_bytes());
            }
        }
        bytes
    }

    /// True if the page was ever written.
    pub fn has(&self, page: u64) -> bool {
        self.map.contains_key(&page)
    }

    /// Copies the page's bytes from `skip` on into `out`.
    pub fn read(&self, page: u64, skip: usize, out: &mut [u8]) {
        let end = skip + out.len();
        match (self.map.get(&page), self.rubbish) {
            (Some(bytes), _) => out.copy_from_slice(&bytes[skip..end]),
            (None, None) => out.fill(0),
            (None, Some(_)) => out.copy_from_slice(&self.filling(page)[skip..end]),
        }
    }

    /// The page, to be changed.
    pub fn page_mut(&mut self, page: u64) -> &mut Page {
        if !self.map.contains_key(&page) {
            let filling = self.filling(page);
            self.map.insert(page, Rc::new(filling));
        }
        Rc::make_mut(self.map.get_mut(&page).expect("the page was put there just now"))
    }

    /// A copy of the page.
    pub fn copy(&self, page: u64) -> Box<Page> {
        Box::new(*self.share(page))
    }

    /// The page as it is now.
    pub fn share(&self, page: u64) -> Rc<Page> {
        match (self.map.get(&page), self.rubbish) {
            (Some(bytes), _) => bytes.clone(),
            (None, None) => self.blank.clone(),
            (None, Some(_)) => Rc::new(self.filling(page)),
        }
    }

    /// Replaces the page.
    pub fn put(&mut self, page: u64, bytes: Rc<Page>) {
        self.map.insert(page, bytes);
    }
}

/// Puts the sectors of `mask` from `source` into `target`.
pub fn copy_sectors(target: &mut Rc<Page>, source: &Rc<Page>, mask: u8) {
    match mask {
        0 => return,
        0xFF => return target.clone_from(source),
        _ => {}
    }
    let target = Rc::make_mut(target);
    for sector in (0..8).filter(|s| mask & 1 << s != 0) {
        let range = sector * 512..sector * 512 + 512;
        target[range.clone()].copy_from_slice(&source[range]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rubbish_is_stable_and_writes_cover_it() {
        let mut pages = Pages::new(Some(4));
        let before = pages.copy(9);
        let mut sector = [0; 512];
        pages.read(9, 1024, &mut sector);
        assert_eq!(sector, before[1024..1536]);
        pages.page_mut(9)[0] = !before[0];
        assert_eq!(pages.copy(9)[1..], before[1..]);
        let mut zeros = [1; 8];
        Pages::new(None).read(5, 0, &mut zeros);
        assert_eq!(zeros, [0; 8]);
    }
}

//! Memory the world below reads and writes: the engine's own I/O pages, and the requests' segments.
//!
//! ```text
//!  arena (4 KiB aligned)          request segments (guest memory)
//!  ┌────┬────┬────┬─────┐         ┌───────┐ ┌──┐ ┌─────┐
//!  │ p0 │ p1 │ p2 │ ... │         │ addr  │ │  │ │     │   copied through raw pointers only,
//!  └────┴────┴────┴─────┘         └───────┘ └──┘ └─────┘   since a guest writes at any time
//! ```
// UNSAFETY: pages are handed to devices by address, and guest memory may change under our eyes, so
// neither can be a Rust slice held across calls. This is the crate's only file with unsafe code.
#![allow(unsafe_code)]

use crate::request::Seg;
use crate::types::BLOCK_SIZE;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Index of a page in its [`Pages`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageId(pub u32);

/// A fixed arena of 4 KiB pages with a free list.
pub(crate) struct Pages {
    base: NonNull<u8>,
    layout: Layout,
    free: Vec<u32>,
    count: usize,
}

// SAFETY: the arena is owned by this value alone; moving it to another thread moves all access.
unsafe impl Send for Pages {}

impl Pages {
    /// `count` zeroed pages.
    pub fn new(count: usize) -> Pages {
        let layout = Layout::from_size_align(count.max(1) * BLOCK_SIZE, BLOCK_SIZE)
            .expect("an arena fits the address space");
        // SAFETY: the layout has a size above zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(raw) else { handle_alloc_error(layout) };
        let free = (0..count as u32).rev().collect();
        Pages { base, layout, free, count }
    }

    pub fn take(&mut self) -> Option<PageId> {
        self.free.pop().map(PageId)
    }

    /// A page, unless that would leave fewer than `reserve`.
    pub fn take_above(&mut self, reserve: usize) -> Option<PageId> {
        if self.free.len() > reserve { self.take() } else { None }
    }

    pub fn give(&mut self, page: PageId) {
        assert!(self.free.len() < self.count, "a page was given back twice");
        self.free.push(page.0);
    }

    /// Address of a page, for the device.
    pub fn addr(&self, page: PageId) -> usize {
        assert!((page.0 as usize) < self.count);
        self.base.as_ptr() as usize + page.0 as usize * BLOCK_SIZE
    }

    /// The bytes of a page. Called only while no device operation on it is in flight.
    pub fn bytes(&self, page: PageId) -> &[u8; BLOCK_SIZE] {
        // SAFETY: in bounds (asserted by addr), aligned, initialized; the borrow of self keeps
        // every writer of this process away, and no device operation is in flight by contract.
        unsafe { &*(self.addr(page) as *const [u8; BLOCK_SIZE]) }
    }

    /// The bytes of a page, to be changed. Same contract as [`Pages::bytes`].
    pub fn bytes_mut(&mut self, page: PageId) -> &mut [u8; BLOCK_SIZE] {
        // SAFETY: as in bytes; the exclusive borrow makes this the only reference.
        unsafe { &mut *(self.addr(page) as *mut [u8; BLOCK_SIZE]) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated in new with this very layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

/// Calls `f` for the pieces of `segs` that make up bytes `at .. at + len` of the request.
pub(crate) fn pieces(segs: &[Seg], at: usize, len: usize, mut f: impl FnMut(Seg)) {
    let (mut skip, mut left) = (at, len);
    for seg in segs {
        if left == 0 {
            return;
        }
        if skip >= seg.len {
            skip -= seg.len;
            continue;
        }
        let take = (seg.len - skip).min(left);
        f(Seg { addr: seg.addr + skip, len: take });
        skip = 0;
        left -= take;
    }
    assert!(left == 0, "segments shorter than the request");
}

/// Copies bytes `at ..` of the request into `to`.
pub(crate) fn copy_in(segs: &[Seg], at: usize, to: &mut [u8]) {
    let mut filled = 0;
    pieces(segs, at, to.len(), |seg| {
        let target = &mut to[filled..filled + seg.len];
        // SAFETY: the host promises that segments stay mapped until the request is done; the
        // target is a live exclusive slice of the same length, so they cannot overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(seg.addr as *const u8, target.as_mut_ptr(), seg.len)
        };
        filled += seg.len;
    });
}

/// Fills bytes `at .. at + len` of the request with zeros.
pub(crate) fn zero_out(segs: &[Seg], at: usize, len: usize) {
    pieces(segs, at, len, |seg| {
        // SAFETY: as in copy_in; the host promises the segment is writable for a read request.
        unsafe { std::ptr::write_bytes(seg.addr as *mut u8, 0, seg.len) };
    });
}

/// crc32c of bytes `at .. at + len` of the request, through a private copy.
pub(crate) fn crc_of(segs: &[Seg], at: usize, len: usize) -> u32 {
    let mut crc = 0;
    let mut copy = [0u8; BLOCK_SIZE];
    let mut done = 0;
    while done < len {
        let take = (len - done).min(BLOCK_SIZE);
        copy_in(segs, at + done, &mut copy[..take]);
        crc = crate::crc32c::crc32c_append(crc, &copy[..take]);
        done += take;
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_aligned_distinct_and_come_back() {
        let mut pages = Pages::new(3);
        let taken: Vec<_> = std::iter::from_fn(|| pages.take()).collect();
        assert_eq!(taken.len(), 3);
        for (i, &page) in taken.iter().enumerate() {
            assert_eq!(pages.addr(page) % BLOCK_SIZE, 0);
            pages.bytes_mut(page).fill(i as u8 + 1);
        }
        for (i, &page) in taken.iter().enumerate() {
            assert!(pages.bytes(page).iter().all(|&b| b == i as u8 + 1));
            pages.give(page);
        }
        assert!(pages.take().is_some());
    }

    #[test]
    fn segments_are_copied_zeroed_and_summed_across_borders() {
        let mut a = vec![1u8; 700];
        let mut b = vec![2u8; 324];
        let segs = [
            Seg { addr: a.as_mut_ptr() as usize, len: 700 },
            Seg { addr: b.as_mut_ptr() as usize, len: 324 },
        ];
        let mut out = [0u8; 512];
        copy_in(&segs, 512, &mut out);
        assert_eq!(&out[..188], &[1u8; 188]);
        assert_eq!(&out[188..], &[2u8; 324]);
        assert_eq!(crc_of(&segs, 512, 512), crate::crc32c::crc32c(&out));
        zero_out(&segs, 690, 20);
        assert!(a[690..].iter().all(|&x| x == 0) && b[..10].iter().all(|&x| x == 0));
        assert_eq!((a[689], b[10]), (1, 2));
    }

    #[test]
    #[should_panic(expected = "segments shorter")]
    fn short_segments_are_a_bug() {
        let byte = [0u8; 8];
        crc_of(&[Seg { addr: byte.as_ptr() as usize, len: 8 }], 0, 9);
    }
}

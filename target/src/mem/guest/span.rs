//! A piece of shared memory that was checked once: a ring, a queue of the in-flight log.
//!
//! ```text
//!  GuestSpan { addr, len } ─► read, write, load, store at an offset: asserted, copied, volatile
//! ```
#![allow(unsafe_code)]
// UNSAFETY: volatile and atomic access to memory that others write has no safe interface.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::{Mapping, MemoryError, RegionSpec};
use crate::mem::far;

/// A checked piece of shared memory inside one mapping, which it keeps alive. Values are
/// little-endian, as VIRTIO 1.0 and the in-flight log (on the machines we run on) have them.
///
/// Offsets come from our own code and are asserted: an index that a guest named must have been
/// checked before.
#[derive(Clone, Debug)]
pub struct GuestSpan {
    pub(super) mapping: Arc<Mapping>,
    pub(super) addr: usize,
    pub(super) len: usize,
}

macro_rules! plain_access {
    ($read:ident, $write:ident, $type:ty) => {
        /// Reads the value at byte `offset`, once.
        #[inline]
        pub fn $read(&self, offset: usize) -> $type {
            let at = self.at(offset, size_of::<$type>());
            // SAFETY: `at` has checked bounds and alignment; the mapping is kept by `self`.
            <$type>::from_le(unsafe { std::ptr::read_volatile(at as *const $type) })
        }

        /// Writes the value at byte `offset`, once.
        #[inline]
        pub fn $write(&self, offset: usize, value: $type) {
            let at = self.at(offset, size_of::<$type>());
            // SAFETY: as for reading.
            unsafe { std::ptr::write_volatile(at as *mut $type, value.to_le()) };
        }
    };
}

impl GuestSpan {
    /// Maps `size` bytes of `file` at `offset` for our own use (the in-flight log).
    ///
    /// # Errors
    /// The file is shorter than that, or mapping failed.
    pub fn map(file: &File, offset: u64, size: u64) -> Result<GuestSpan, MemoryError> {
        RegionSpec { guest_addr: 0, size, user_addr: 0, offset }.check()?;
        let (mapping, addr) = Mapping::new(file, offset, size)?;
        Ok(GuestSpan { mapping: Arc::new(mapping), addr, len: size as usize })
    }

    /// A part of this span; `None` if it does not lie inside or is not aligned to 8.
    pub fn part(&self, offset: usize, len: usize) -> Option<GuestSpan> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        let aligned = self.addr.wrapping_add(offset).is_multiple_of(8);
        (inside && aligned && len > 0).then(|| GuestSpan {
            mapping: self.mapping.clone(),
            addr: self.addr + offset,
            len,
        })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: a span has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// True if the file behind it was shrunk by the front-end.
    pub fn damaged(&self) -> bool {
        self.mapping.damaged()
    }

    /// Asks for the line at byte `offset`, which will be read soon.
    #[inline]
    pub fn soon_read(&self, offset: usize) {
        far::soon_read(self.addr.wrapping_add(offset));
    }

    /// Asks for the line at byte `offset`, which will be written soon.
    #[inline]
    pub fn soon_written(&self, offset: usize) {
        far::soon_written(self.addr.wrapping_add(offset));
    }

    #[inline]
    fn at(&self, offset: usize, size: usize) -> usize {
        assert!(offset + size <= self.len, "offset {offset} is outside of a {} span", self.len);
        let at = self.addr + offset;
        assert!(at.is_multiple_of(size), "offset {offset} is not aligned to {size}");
        at
    }

    /// Reads the `index`th pair of 64-bit words, each once; `None` beyond the end.
    #[inline]
    pub fn pair(&self, index: usize) -> Option<(u64, u64)> {
        if index >= self.len / 16 {
            return None;
        }
        let at = self.addr + 16 * index;
        assert!(at.is_multiple_of(8), "a span at {:#x} is not aligned to 8", self.addr);
        // SAFETY: bounds and alignment were just checked; the mapping is kept by `self`.
        let word = |i: usize| unsafe { std::ptr::read_volatile((at + 8 * i) as *const u64) };
        Some((u64::from_le(word(0)), u64::from_le(word(1))))
    }

    /// Writes two 32-bit values at byte `offset`, each once.
    #[inline]
    pub fn write_u32_pair(&self, offset: usize, first: u32, second: u32) {
        assert!(offset + 8 <= self.len, "offset {offset} is outside of a {} span", self.len);
        let at = (self.addr + offset) as *mut u32;
        assert!(at.is_aligned(), "offset {offset} is not aligned to 4");
        // SAFETY: bounds and alignment were just checked; the mapping is kept by `self`.
        unsafe {
            std::ptr::write_volatile(at, first.to_le());
            std::ptr::write_volatile(at.add(1), second.to_le());
        }
    }

    plain_access!(read_u8, write_u8, u8);
    plain_access!(read_u16, write_u16, u16);
    plain_access!(read_u32, write_u32, u32);
    plain_access!(read_u64, write_u64, u64);

    #[inline]
    fn atomic_u16(&self, offset: usize) -> &AtomicU16 {
        let at = self.at(offset, 2);
        // SAFETY: bounds and alignment checked; kept mapped by `self` for the borrow. Other
        // processes access it too, which atomics are made for.
        unsafe { AtomicU16::from_ptr(at as *mut u16) }
    }

    /// Reads an index; what was written before it is visible afterwards.
    #[inline]
    pub fn load_acquire_u16(&self, offset: usize) -> u16 {
        u16::from_le(self.atomic_u16(offset).load(Ordering::Acquire))
    }

    /// Writes an index as [`store_release_u16`](Self::store_release_u16) does, and before whatever
    /// [`load_ordered_u16`](Self::load_ordered_u16) reads afterwards.
    #[inline]
    pub fn store_ordered_u16(&self, offset: usize, value: u16) {
        // An exchange and not a store and a fence: that takes half the time.
        self.atomic_u16(offset).swap(value.to_le(), Ordering::SeqCst);
    }

    /// Reads a value, after whatever [`store_ordered_u16`](Self::store_ordered_u16) has written.
    #[inline]
    pub fn load_ordered_u16(&self, offset: usize) -> u16 {
        u16::from_le(self.atomic_u16(offset).load(Ordering::SeqCst))
    }

    /// Writes an index; everything written before is visible to whoever reads it.
    #[inline]
    pub fn store_release_u16(&self, offset: usize, value: u16) {
        self.atomic_u16(offset).store(value.to_le(), Ordering::Release);
    }
}

//! The memory that a client shares with its device: rings, request headers, data.
#![allow(unsafe_code)]
// UNSAFETY: another process writes here at any time, so there can be no reference to it: bytes are
// copied through raw pointers, and what the two sides wait for is read and written atomically.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU16, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, memfd_create};

/// A shared mapping. Offsets are in bytes from its start; all functions panic outside it.
#[derive(Debug)]
pub struct Memory {
    file: File,
    map: MmapRaw,
}

impl Memory {
    /// `len` bytes of zeros.
    ///
    /// # Errors
    /// What memfd_create(2), ftruncate(2) or mmap(2) say.
    pub fn new(len: usize) -> io::Result<Memory> {
        Memory::of(len, MemfdFlags::CLOEXEC)
    }

    /// The same of hugepages of 2 MiB, whole ones, which some devices want.
    ///
    /// # Errors
    /// As [`Memory::new`]; also if there are not enough hugepages.
    pub fn huge(len: usize) -> io::Result<Memory> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        Memory::of(len.next_multiple_of(2 << 20), flags)
    }

    fn of(len: usize, flags: MemfdFlags) -> io::Result<Memory> {
        let file = File::from(memfd_create("lamina-client", flags)?);
        file.set_len(len as u64)?;
        let map = MmapOptions::new().map_raw(&file)?;
        Ok(Memory { file, map })
    }

    /// For the other side to map.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// The address of `offset` in this process, which is how vhost-user names rings, and data too
    /// where guest and user addresses are made the same.
    #[must_use]
    pub fn addr(&self, offset: usize) -> u64 {
        assert!(offset <= self.len(), "an offset outside the memory");
        self.map.as_ptr().expose_provenance() as u64 + offset as u64
    }

    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let end = offset.checked_add(len).expect("an offset inside the memory");
        assert!(end <= self.len(), "{offset}+{len} leaves the shared memory");
        // SAFETY: inside the mapping.
        unsafe { self.map.as_mut_ptr().add(offset) }
    }

    /// Copies bytes in.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: inside the mapping; a slice of this process does not overlap it, as no reference
        // into the mapping is ever made.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    /// Copies bytes out.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.at(offset, bytes.len());
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) }
    }

    /// A copy of `N` bytes.
    #[must_use]
    pub fn take<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.read(offset, &mut bytes);
        bytes
    }

    fn word(&self, offset: usize) -> &AtomicU16 {
        let at = self.at(offset, 2).cast::<u16>();
        assert!(at.is_aligned(), "an index of a ring is aligned");
        // SAFETY: inside the mapping, which lives as long as `self`, aligned, and accessed by the
        // other process with whole 16-bit stores and loads only.
        unsafe { AtomicU16::from_ptr(at) }
    }

    /// Reads an index or flags that the other side publishes.
    #[must_use]
    pub fn load(&self, offset: usize) -> u16 {
        self.word(offset).load(Ordering::Acquire)
    }

    /// Publishes an index or flags, with everything written before.
    pub fn store(&self, offset: usize, value: u16) {
        self.word(offset).store(value, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_words_are_shared_with_another_mapping() {
        let memory = Memory::new(8192).unwrap();
        let other = MmapOptions::new().map_raw(&memory.file).unwrap();
        memory.write(4090, &[1, 2, 3]);
        memory.store(8190, 0x1234);
        assert_eq!(memory.take(4089), [0, 1, 2, 3]);
        assert_eq!(memory.load(8190), 0x1234);
        assert_eq!(memory.addr(10) - memory.addr(0), 10);
        // SAFETY: inside the second mapping, which nobody writes now.
        let seen = unsafe { std::slice::from_raw_parts(other.as_ptr().add(8190), 2) };
        assert_eq!(seen, [0x34, 0x12]);
    }

    #[test]
    #[should_panic(expected = "leaves the shared memory")]
    fn nothing_outside_is_written() {
        Memory::new(4096).unwrap().write(4095, &[0, 0]);
    }
}

//! Memory by address: the RAM base device, request buffers, and what another process shares.
// UNSAFETY: the engine and vhost-user targets know memory by address only; mapping it and copying
// to and from such addresses cannot be said in safe Rust.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ptr::{NonNull, null_mut};
use std::sync::Mutex;

use lamina_target::base::RamDevice;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// A mapping of this process, page aligned, filled with zeros, present in RAM.
pub struct Memory {
    base: NonNull<u8>,
    len: usize,
    file: Option<File>,
}

// SAFETY: the mapping belongs to this value alone; moving it moves all access of this process.
unsafe impl Send for Memory {}

impl Memory {
    /// `len` bytes of private memory, in huge pages where the kernel gives them on request.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn private(len: usize) -> io::Result<Memory> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let base = unsafe { mmap_anonymous(null_mut(), len, access, MapFlags::PRIVATE)? };
        // SAFETY: exactly the mapping just made. Without huge pages it works all the same.
        let _ = unsafe { madvise(base, len, Advice::LinuxHugepage) };
        Memory::present(base.cast(), len, None)
    }

    /// `len` bytes of private memory of which only what is written takes up RAM; reads as zeros.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn sparse(len: usize) -> io::Result<Memory> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let base = unsafe { mmap_anonymous(null_mut(), len, access, flags)? };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Memory { base, len, file: None })
    }

    /// `len` bytes that another process can map through [`Memory::file`].
    ///
    /// # Errors
    /// What memfd_create(2), ftruncate(2) or mmap(2) say.
    pub fn shared(len: usize) -> io::Result<Memory> {
        let file: File = memfd_create("lamina-perf", MemfdFlags::CLOEXEC)?.into();
        file.set_len(len as u64)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice, of a file as long as it.
        let base = unsafe { mmap(null_mut(), len, access, MapFlags::SHARED, &file, 0)? };
        Memory::present(base.cast(), len, Some(file))
    }

    /// Touches every page, so that no measured run has to.
    fn present(base: *mut u8, len: usize, file: Option<File>) -> io::Result<Memory> {
        let base = NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the whole of a mapping that nobody else knows yet.
        unsafe { base.as_ptr().write_bytes(0, len) };
        Ok(Memory { base, len, file })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: a mapping has a size.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The file behind shared memory.
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// Address of `len` bytes from `at` on. Panics if they are not inside.
    pub fn addr(&self, at: usize, len: usize) -> usize {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(inside, "{at}+{len} leaves a mapping of {} bytes", self.len);
        self.base.as_ptr().expose_provenance() + at
    }

    /// `len` bytes from `at` on, for as long as no request on them is in flight. Panics if they
    /// are not inside.
    pub fn piece(&mut self, at: usize, len: usize) -> &mut [u8] {
        self.addr(at, len);
        // SAFETY: inside the mapping, initialized; the exclusive borrow keeps this process away,
        // and by contract no device works on these bytes meanwhile.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(at), len) }
    }

    /// The same memory as a target's base device, which has it from now on.
    pub fn into_device(self) -> RamDevice {
        let (start, size) = (self.base, self.len as u64);
        // SAFETY: mapped for as long as the keeper lives, which nobody else can ask for it.
        unsafe { RamDevice::lent(start, size, Box::new(Mutex::new(self))) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped with this length; no borrow of it can be alive.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_there_and_back() {
        let mut base = Memory::private(1 << 20).unwrap();
        base.piece(12288, 4096).fill(7);
        assert!(base.file().is_none());
        let device = base.into_device();
        let mut out = [0; 4096];
        device.read_at(&mut out, 12288);
        assert_eq!((out, device.size()), ([7; 4096], 1 << 20));
        let mut buffer = Memory::shared(8192).unwrap();
        assert_eq!(buffer.piece(0, 8192), [0; 8192]);
        assert_eq!(buffer.file().unwrap().metadata().unwrap().len(), 8192);
    }

    #[test]
    fn sparse_memory_may_be_larger_than_the_machine() {
        let mut much = Memory::sparse(1 << 42).unwrap();
        much.piece((1 << 42) - 4096, 4096).fill(9);
        assert_eq!(much.piece(1 << 41, 2), [0, 0]);
        assert_eq!(much.piece((1 << 42) - 2, 2), [9, 9]);
    }

    #[test]
    #[should_panic(expected = "leaves a mapping")]
    fn nothing_outside_is_reached() {
        Memory::private(4096).unwrap().addr(4095, 2);
    }
}

//! Our own big memory: hugepages if there are any, ordinary pages otherwise.
#![allow(unsafe_code)]
// UNSAFETY: anonymous mappings exist only behind mmap(2), and their memory is handed out raw.

use std::io;

/// What kind of pages a mapping got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pages {
    /// Reserved 2 MiB pages.
    Huge,
    /// Ordinary pages that the kernel may gather into huge ones.
    Transparent,
    /// 4 KiB pages.
    Plain,
}

impl Pages {
    /// For the log.
    pub fn describe(self) -> &'static str {
        match self {
            Pages::Huge => "reserved 2 MiB hugepages",
            Pages::Transparent => "ordinary memory with transparent hugepages (none reserved)",
            Pages::Plain => "ordinary 4 KiB pages (no hugepages)",
        }
    }
}

const HUGE_PAGE_BYTES: usize = 2 << 20;

/// An anonymous private mapping, zeroed, page-aligned, unmapped when dropped.
pub struct Mapping {
    addr: *mut u8,
    len: usize,
    pages: Pages,
}

// SAFETY: the mapping is plain memory owned by this value; nothing in it belongs to a thread.
unsafe impl Send for Mapping {}
// SAFETY: the value itself only hands out the address; who writes where is up to its users.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps at least `len` bytes of zeros.
    ///
    /// # Errors
    /// What mmap(2) says; `InvalidInput` for 0 bytes.
    pub fn new(len: usize) -> io::Result<Mapping> {
        if len == 0 || len > isize::MAX as usize - HUGE_PAGE_BYTES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let huge_len = len.next_multiple_of(HUGE_PAGE_BYTES);
        if len >= HUGE_PAGE_BYTES
            && let Ok(addr) = map(huge_len, libc::MAP_HUGETLB)
        {
            return Ok(Mapping { addr, len: huge_len, pages: Pages::Huge });
        }
        let len = len.next_multiple_of(4096);
        let addr = map(len, libc::MAP_NORESERVE)?;
        // SAFETY: the range was mapped just now and belongs to nobody else.
        let advised = len >= HUGE_PAGE_BYTES
            && unsafe { libc::madvise(addr.cast(), len, libc::MADV_HUGEPAGE) } == 0;
        let pages = if advised { Pages::Transparent } else { Pages::Plain };
        Ok(Mapping { addr, len, pages })
    }

    /// Maps at least `len` bytes of zeros in plain pages, none of which is taken before it is
    /// written.
    ///
    /// # Errors
    /// What mmap(2) says; `InvalidInput` for 0 bytes.
    pub fn sparse(len: usize) -> io::Result<Mapping> {
        if len == 0 || len > isize::MAX as usize - HUGE_PAGE_BYTES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let len = len.next_multiple_of(4096);
        Ok(Mapping { addr: map(len, libc::MAP_NORESERVE)?, len, pages: Pages::Plain })
    }

    /// Touches every page now, so that no later access has to wait for the kernel.
    ///
    /// # Errors
    /// What madvise(2) says, for example that memory ran out. `Unsupported` kernels are fine: the
    /// pages then come at first use.
    pub fn populate(&self) -> io::Result<()> {
        // SAFETY: the range is ours; MADV_POPULATE_WRITE changes no content.
        let rc = unsafe { libc::madvise(self.addr.cast(), self.len, libc::MADV_POPULATE_WRITE) };
        match rc {
            0 => Ok(()),
            _ => match io::Error::last_os_error() {
                e if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
                e => Err(e),
            },
        }
    }

    /// Address of the first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.addr
    }

    /// Bytes mapped: what was asked for, rounded up to whole pages.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: an empty mapping cannot be made.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// What kind of pages it got.
    pub fn pages(&self) -> Pages {
        self.pages
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what mmap returned, unmapped once.
        let rc = unsafe { libc::munmap(self.addr.cast(), self.len) };
        assert_eq!(rc, 0, "munmap of our own mapping failed");
    }
}

fn map(len: usize, flags: libc::c_int) -> io::Result<*mut u8> {
    // SAFETY: a new anonymous mapping at an address of the kernel's choice disturbs nothing.
    let addr = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags,
            -1,
            0,
        )
    };
    if addr == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(addr.cast())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_zeroed_aligned_and_writable_to_its_last_byte() {
        for len in [1, 4096, 5000, 3 << 20] {
            let mapping = Mapping::new(len).unwrap();
            mapping.populate().unwrap();
            assert!(mapping.len() >= len && mapping.as_ptr().addr().is_multiple_of(4096));
            let last = mapping.len() - 1;
            // SAFETY: `last` is inside the mapping, which nobody else knows.
            unsafe {
                assert_eq!(*mapping.as_ptr().add(last), 0);
                *mapping.as_ptr().add(last) = 7;
                assert_eq!(*mapping.as_ptr().add(last), 7);
            }
        }
    }

    #[test]
    fn impossible_sizes_are_errors() {
        assert!(Mapping::new(0).is_err());
        assert!(Mapping::new(usize::MAX).is_err());
        assert!(Mapping::new(isize::MAX as usize / 2).is_err());
    }
}

//! An eventfd: how another thread or the kernel wakes a sleeping reactor.
#![allow(unsafe_code)]
// UNSAFETY: eventfd(2) has no safe wrapper in std.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, RawFd};

/// An eventfd of our own, non-blocking, closed on exec.
#[derive(Debug)]
pub struct EventFd(File);

impl EventFd {
    /// Makes one with count 0.
    ///
    /// # Errors
    /// What eventfd(2) says: mostly too many open files.
    pub fn new() -> io::Result<EventFd> {
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else knows.
        Ok(EventFd(unsafe { File::from_raw_fd(fd) }))
    }

    /// Wakes whoever waits for it, now or at the next wait.
    pub fn signal(&self) {
        // The only failure is a full counter: then it is readable, which is what is wanted.
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }

    /// Takes the count back to 0; false if it was.
    pub fn drain(&self) -> bool {
        (&self.0).read(&mut [0u8; 8]).is_ok()
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_kept_until_drained() {
        let fd = EventFd::new().unwrap();
        assert!(!fd.drain());
        fd.signal();
        fd.signal();
        assert!(fd.drain());
        assert!(!fd.drain());
    }
}

//! The one place where a reactor sleeps: an epoll set of eventfds.
//!
//! Descriptors are watched edge-triggered: each signal since the last wait ends the next wait,
//! and nobody has to read the eventfds (a guest's kick eventfd is not even ours to read).
#![allow(unsafe_code)]
// UNSAFETY: epoll has no safe wrapper in std.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Events taken at one wake-up; more simply end the next wait at once.
pub const EVENTS_MAX: usize = 64;

/// An epoll set.
pub struct Epoll {
    fd: OwnedFd,
    events: [libc::epoll_event; EVENTS_MAX],
}

impl Epoll {
    /// An empty set.
    ///
    /// # Errors
    /// What epoll_create1(2) says.
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else knows.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Epoll { fd, events: [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX] })
    }

    /// Watches `fd` for edges, each told as `data`. One that is readable already ends the next
    /// wait.
    ///
    /// # Errors
    /// What epoll_ctl(2) says.
    pub fn add(&mut self, fd: RawFd, data: u64) -> io::Result<()> {
        let events = (libc::EPOLLIN | libc::EPOLLET) as u32;
        let mut event = libc::epoll_event { events, u64: data };
        self.control(libc::EPOLL_CTL_ADD, fd, &mut event)
    }

    /// Watches `fd` no longer.
    ///
    /// # Errors
    /// What epoll_ctl(2) says.
    pub fn remove(&mut self, fd: RawFd) -> io::Result<()> {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        self.control(libc::EPOLL_CTL_DEL, fd, &mut event)
    }

    fn control(&self, op: i32, fd: RawFd, event: &mut libc::epoll_event) -> io::Result<()> {
        // SAFETY: `event` is valid for the call, which only reads it.
        let rc = unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), op, fd, event) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sleeps until something is signalled or `timeout_ms` are over (-1: for ever). Returns the
    /// data of what was signalled; a signal handler's interruption counts as nothing.
    ///
    /// # Errors
    /// What epoll_wait(2) says.
    pub fn wait(&mut self, timeout_ms: i32) -> io::Result<impl ExactSizeIterator<Item = u64>> {
        // SAFETY: the buffer holds EVENTS_MAX events.
        let count = unsafe {
            let buffer = self.events.as_mut_ptr();
            libc::epoll_wait(self.fd.as_raw_fd(), buffer, EVENTS_MAX as i32, timeout_ms)
        };
        let count = match usize::try_from(count) {
            Ok(count) => count,
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => 0,
                e => return Err(e),
            },
        };
        Ok(self.events[..count].iter().map(|event| event.u64))
    }
}

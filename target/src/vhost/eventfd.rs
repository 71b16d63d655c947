//! Event descriptors that a front-end passes: kicks to us, calls to the guest, ring errors.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

/// A front-end's eventfd, checked to be one, so that signalling it cannot block a reactor the way
/// a full pipe would. Its mode is the front-end's too and is left as it is.
#[derive(Debug)]
pub struct EventFd {
    file: File,
    /// A write may wait (for a counter of 2^64 - 2 to be read): look first.
    blocking: bool,
}

impl EventFd {
    /// Takes a descriptor that a front-end passed.
    ///
    /// # Errors
    /// It is not an eventfd.
    pub fn from_peer(file: File) -> io::Result<EventFd> {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        if link.to_str() != Some("anon_inode:[eventfd]") {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("expected an eventfd for a ring, got {}", link.display()),
            ));
        }
        let blocking = !rustix::fs::fcntl_getfl(&file)?.contains(OFlags::NONBLOCK);
        Ok(EventFd { file, blocking })
    }

    /// Signals it. A full counter means that it is signalled already; other errors mean that
    /// nobody listens any more. Neither is ours to handle.
    pub fn signal(&self) {
        if self.blocking && !self.has_room() {
            return;
        }
        let _ = (&self.file).write(&1u64.to_ne_bytes());
    }

    fn has_room(&self) -> bool {
        let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut fds, Some(&now)), Ok(1)) && fds[0].revents().contains(PollFlags::OUT)
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    #[test]
    fn never_waits_whatever_the_mode_and_the_counter() {
        for flags in [EventfdFlags::empty(), EventfdFlags::NONBLOCK] {
            let fd = eventfd(0, flags).unwrap();
            let twin = File::from(fd.try_clone().unwrap());
            let event = EventFd::from_peer(File::from(fd)).unwrap();
            event.signal();
            event.signal();
            let mut count = [0; 8];
            assert_eq!(rustix::io::read(&twin, &mut count).unwrap(), 8);
            assert_eq!(u64::from_ne_bytes(count), 2);
            // No room for one more: must return all the same.
            rustix::io::write(&twin, &(u64::MAX - 1).to_ne_bytes()).unwrap();
            event.signal();
            assert_eq!(rustix::io::read(&twin, &mut count).unwrap(), 8);
            assert_eq!(u64::from_ne_bytes(count), u64::MAX - 1);
        }
    }

    #[test]
    fn refuses_what_is_no_eventfd() {
        let (read_end, _write_end) = std::io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(read_end));
        let error = EventFd::from_peer(file).unwrap_err();
        assert!(error.to_string().contains("expected an eventfd"), "{error}");
    }
}

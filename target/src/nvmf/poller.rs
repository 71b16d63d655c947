//! Which sockets have something for us: an epoll set, edge-triggered, never changed for a socket
//! between its coming and its going.
//!
//! An edge says "try"; whoever tries goes on until the socket says "later". What is not tried at
//! once (no buffer, no room) must be remembered by the owner: the edge does not come again.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// Edges taken in one look.
const EDGES_MAX: usize = 128;

/// What happened to a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Edge {
    /// Its number, as given when it was added.
    pub id: u64,
    /// Reading may give something: bytes, the end or an error.
    pub readable: bool,
    /// Sending may take something.
    pub writable: bool,
    /// The other side has ended the connection, or its own half: after what has come there is the
    /// end to be read, and no other edge announces it.
    pub ended: bool,
}

/// A set of sockets.
pub struct Poller {
    set: OwnedFd,
    edges: Vec<Edge>,
}

impl Poller {
    /// An empty set.
    ///
    /// # Errors
    /// No descriptors or kernel memory.
    pub fn new() -> io::Result<Poller> {
        let set = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Poller { set, edges: Vec::with_capacity(EDGES_MAX) })
    }

    /// Watches `socket` under the number `id`. It goes by itself when it is closed.
    ///
    /// # Errors
    /// No kernel memory.
    pub fn add(&self, socket: impl AsFd, id: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.set, socket, EventData::new_u64(id), flags)?)
    }

    /// Watches a socket that is only read for now, as [`Poller::add`] would otherwise;
    /// [`Poller::watch_both`] changes that.
    ///
    /// # Errors
    /// No kernel memory.
    pub fn add_input(&self, socket: impl AsFd, id: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.set, socket, EventData::new_u64(id), flags)?)
    }

    /// Watches a socket for both directions from now on.
    ///
    /// # Errors
    /// It was not watched.
    pub fn watch_both(&self, socket: impl AsFd, id: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::modify(&self.set, socket, EventData::new_u64(id), flags)?)
    }

    /// Watches a socket only for its end from now on, whatever comes before that.
    ///
    /// # Errors
    /// It was not watched.
    pub fn watch_end(&self, socket: impl AsFd, id: u64) -> io::Result<()> {
        let flags = EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::modify(&self.set, socket, EventData::new_u64(id), flags)?)
    }

    /// Watches something that is only read, until it tells something for the first time;
    /// [`Poller::watch_again`] begins anew.
    ///
    /// # Errors
    /// No kernel memory.
    pub fn add_once(&self, source: impl AsFd, id: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::ONESHOT;
        Ok(epoll::add(&self.set, source, EventData::new_u64(id), flags)?)
    }

    /// Watches again what was added with [`Poller::add_once`].
    ///
    /// # Errors
    /// It was not watched.
    pub fn watch_again(&self, source: impl AsFd, id: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::ONESHOT;
        Ok(epoll::modify(&self.set, source, EventData::new_u64(id), flags)?)
    }

    /// Watches something that is only read, as long as there is something to read.
    ///
    /// # Errors
    /// No kernel memory.
    pub fn add_level(&self, source: impl AsFd, id: u64) -> io::Result<()> {
        Ok(epoll::add(&self.set, source, EventData::new_u64(id), EventFlags::IN)?)
    }

    /// Watches it no longer: it lives on elsewhere.
    ///
    /// # Errors
    /// It was not watched.
    pub fn remove(&self, source: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.set, source)?)
    }

    /// Waits for edges for at most `timeout_ms` (-1: for ever, 0: only looks).
    ///
    /// # Errors
    /// A broken set.
    pub fn wait(&mut self, timeout_ms: i32) -> io::Result<impl Iterator<Item = Edge> + '_> {
        self.wait_ns(u64::try_from(timeout_ms).ok().map(|ms| ms * 1_000_000))
    }

    /// The same for at most so many nanoseconds; `None`: for ever.
    ///
    /// # Errors
    /// A broken set.
    pub fn wait_ns(&mut self, timeout_ns: Option<u64>) -> io::Result<impl Iterator<Item = Edge>> {
        self.edges.clear();
        let timeout = timeout_ns.map(|ns| Timespec {
            tv_sec: (ns / 1_000_000_000) as i64,
            tv_nsec: (ns % 1_000_000_000) as i64,
        });
        let mut space = [MaybeUninit::<Event>::uninit(); EDGES_MAX];
        let events = match epoll::wait(&self.set, &mut space, timeout.as_ref()) {
            Ok((events, _)) => events,
            Err(rustix::io::Errno::INTR) => &mut [],
            Err(e) => return Err(e.into()),
        };
        let broken = EventFlags::ERR | EventFlags::HUP | EventFlags::RDHUP;
        self.edges.extend(events.iter().map(|event| {
            let flags = event.flags;
            Edge {
                id: event.data.u64(),
                readable: flags.intersects(EventFlags::IN | broken),
                writable: flags.intersects(EventFlags::OUT | broken),
                ended: flags.intersects(broken),
            }
        }));
        Ok(self.edges.iter().copied())
    }

    /// True if the last wait gave as many edges as it can: there may be more.
    pub fn was_full(&self) -> bool {
        self.edges.len() == EDGES_MAX
    }

    /// To be watched by a larger set: readable when an edge waits here.
    pub fn fd(&self) -> RawFd {
        self.set.as_raw_fd()
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.set.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn an_edge_comes_once_for_each_arrival() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let mut poller = Poller::new().unwrap();
        poller.add(&server, 7).unwrap();
        let first: Vec<Edge> = poller.wait(0).unwrap().collect();
        assert_eq!(first, [Edge { id: 7, readable: false, writable: true, ended: false }]);
        assert_eq!(poller.wait(0).unwrap().count(), 0);
        client.write_all(b"x").unwrap();
        let edges: Vec<Edge> = poller.wait(10_000).unwrap().collect();
        assert!(edges.len() == 1 && edges[0].id == 7 && edges[0].readable);
        assert_eq!(poller.wait(0).unwrap().count(), 0, "the same arrival comes once");
        client.write_all(b"y").unwrap();
        assert_eq!(poller.wait(10_000).unwrap().count(), 1);
        poller.remove(&server).unwrap();
        drop(client);
        assert_eq!(poller.wait(0).unwrap().count(), 0);
    }

    #[test]
    fn a_larger_set_sleeps_over_this_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let mut poller = Poller::new().unwrap();
        poller.add(&server, 1).unwrap();
        assert_eq!(poller.wait(0).unwrap().count(), 1);
        let mut outer = crate::reactor::epoll::Epoll::new().unwrap();
        outer.add(poller.fd(), 0).unwrap();
        assert_eq!(outer.wait(0).unwrap().len(), 0);
        for _ in 0..3 {
            client.write_all(b"x").unwrap();
            assert_eq!(outer.wait(10_000).unwrap().len(), 1);
            assert_eq!(poller.wait(0).unwrap().count(), 1);
            assert_eq!(outer.wait(0).unwrap().len(), 0);
        }
    }

    #[test]
    fn what_is_watched_once_is_silent_until_it_is_watched_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inner = Poller::new().unwrap();
        inner.add_level(&listener, 1).unwrap();
        let mut outer = Poller::new().unwrap();
        outer.add_once(&inner, 2).unwrap();
        let _first = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(outer.wait(10_000).unwrap().count(), 1);
        let _second = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(outer.wait_ns(Some(50_000_000)).unwrap().count(), 0);
        outer.watch_again(&inner, 2).unwrap();
        assert_eq!(outer.wait(10_000).unwrap().count(), 1, "what is there is told");
        assert!(!outer.was_full());
    }
}

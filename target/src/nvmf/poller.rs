//! Which sockets have something for us: an epoll set, edge-triggered, never changed for a socket
//! between its coming and its going.
//!
//! An edge says "try"; whoever tries goes on until the socket says "later". What is not tried at
//! once (no buffer, no room) must be remembered by the owner: the edge does not come again.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

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
        self.edges.clear();
        let timeout = (timeout_ms >= 0).then(|| Timespec {
            tv_sec: i64::from(timeout_ms / 1000),
            tv_nsec: i64::from(timeout_ms % 1000) * 1_000_000,
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

    /// To be watched by a larger set: readable when an edge waits here.
    pub fn fd(&self) -> RawFd {
        self.set.as_raw_fd()
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
}

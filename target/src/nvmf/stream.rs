//! One connected socket, plain or with TLS, never blocking.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::net::{RecvFlags, sockopt};

use super::low_water::set_low_water;
use super::tls::TlsStream;

/// A host that has sent nothing for so long is asked by TCP whether it is still there, again after
/// each interval, and taken for gone after so many questions: hosts need not have a keep-alive
/// timer.
const IDLE: Duration = Duration::from_secs(60);
const PROBE_INTERVAL: Duration = Duration::from_secs(15);
const PROBES: u32 = 4;

/// Most pieces of one send.
pub const PIECES_MAX: usize = 256;

/// Bytes of the part that all PDU headers have in common: enough to tell what is no NVMe.
const HEADER_BYTES: usize = 8;
/// Bytes dropped in one call.
const DISCARD_BYTES: usize = 4096;

/// Gives a listening socket the settings that its connections inherit: no blocking on small
/// packets, TCP looks whether the host is still there, and nothing is announced of a connection
/// before the header of a PDU is there (see [`Stream::wait_for`]), or its end: who sends a byte now
/// and then wakes nobody.
///
/// # Errors
/// What setsockopt(2) says.
pub fn prepare(listener: impl AsFd) -> io::Result<()> {
    let socket = listener.as_fd();
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, IDLE)?;
    sockopt::set_tcp_keepintvl(socket, PROBE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, PROBES)?;
    set_low_water(socket, HEADER_BYTES as i32)?;
    Ok(())
}

/// Where a connection's bytes come from and go to.
enum Channel {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
}

/// A socket and the addresses of its two ends.
pub struct Stream {
    channel: Channel,
    peer: SocketAddr,
    local: SocketAddr,
}

/// How a read or a send ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moved {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing now: the poller says when to try again.
    Later,
    /// The other side has closed its end.
    End,
}

impl Stream {
    /// A connection just accepted from a [`Listener`](super::listener::Listener), which has seen to
    /// its settings.
    pub fn new(socket: TcpStream, peer: SocketAddr) -> Stream {
        let local = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
        Stream { channel: Channel::Plain(socket), peer: plain(peer), local }
    }

    /// Has nothing announced before so many bytes are there.
    ///
    /// # Errors
    /// The socket is gone already.
    pub fn wait_for(&self, bytes: usize) -> io::Result<()> {
        set_low_water(self.socket(), bytes as i32)
    }

    /// Looks up our end's address, and has every byte announced from now on (see [`prepare`]).
    ///
    /// # Errors
    /// The socket is gone already.
    pub fn settle_in(&mut self) -> io::Result<()> {
        let Channel::Plain(socket) = &self.channel else { return Ok(()) };
        self.local = plain(socket.local_addr()?);
        set_low_water(socket, 1)?;
        Ok(())
    }

    /// The same connection, with TLS after its handshake.
    pub fn secured(peer: SocketAddr, local: SocketAddr, tls: Box<TlsStream>) -> Stream {
        Stream { channel: Channel::Tls(tls), peer, local }
    }

    /// Takes the plain socket out, for a TLS handshake. `None` if it has TLS already.
    pub fn into_plain(self) -> Option<TcpStream> {
        match self.channel {
            Channel::Plain(socket) => Some(socket),
            Channel::Tls(_) => None,
        }
    }

    /// Copies the first bytes that have come, without taking them; `None` if there are none yet.
    ///
    /// # Errors
    /// The connection has failed, or is closed.
    pub fn peek(&self, first: &mut [u8]) -> io::Result<Option<usize>> {
        let Channel::Plain(socket) = &self.channel else { return Ok(None) };
        match socket.peek(first) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Says that nothing more is sent: the other side reads what was sent, then the end.
    ///
    /// # Errors
    /// The connection has failed.
    pub fn end_sending(&self) -> io::Result<()> {
        self.socket().shutdown(Shutdown::Write)
    }

    /// Drops up to `limit` bytes that have come, and how many these were: what is unread when a
    /// socket is closed makes the kernel reset the connection, and the other side may lose what it
    /// has not read yet.
    ///
    /// # Errors
    /// The connection has failed.
    pub fn discard(&self, limit: usize) -> io::Result<Moved> {
        let mut space = [0; DISCARD_BYTES];
        let space = &mut space[..limit.min(DISCARD_BYTES)];
        // With TRUNC the kernel does not even copy them.
        let flags = RecvFlags::TRUNC | RecvFlags::DONTWAIT;
        settle(Ok(match rustix::net::recv(self.socket(), space, flags) {
            Ok((_, bytes)) => bytes,
            Err(e) => return settle(Err(e.into())),
        }))
    }

    fn socket(&self) -> &TcpStream {
        match &self.channel {
            Channel::Plain(socket) => socket,
            Channel::Tls(tls) => tls.socket(),
        }
    }

    /// The other end's address.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Our end's address.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// True if what passes is encrypted.
    pub fn is_secure(&self) -> bool {
        matches!(self.channel, Channel::Tls(_))
    }

    /// Reads what has come, into the first space, then into the second; one may be empty.
    ///
    /// # Errors
    /// The connection has failed.
    pub fn read(&mut self, first: &mut [u8], second: &mut [u8]) -> io::Result<Moved> {
        assert!(first.len() + second.len() > 0, "a read into nothing looks like the end");
        settle(match &mut self.channel {
            Channel::Plain(socket) if first.is_empty() => socket.read(second),
            Channel::Plain(socket) if second.is_empty() => socket.read(first),
            Channel::Plain(socket) => {
                socket.read_vectored(&mut [IoSliceMut::new(first), IoSliceMut::new(second)])
            }
            Channel::Tls(tls) => tls.read(if first.is_empty() { second } else { first }),
        })
    }

    /// Sends as much as the socket takes now.
    ///
    /// # Errors
    /// The connection has failed.
    pub fn send(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<Moved> {
        let pieces = &pieces[..pieces.len().min(PIECES_MAX)];
        settle(match &mut self.channel {
            Channel::Plain(socket) => socket.write_vectored(pieces),
            Channel::Tls(tls) => tls.write_vectored(pieces),
        })
    }

    /// Sends what was accepted and is not out yet (TLS only). True if nothing is left.
    ///
    /// # Errors
    /// The connection has failed.
    pub fn flush(&mut self) -> io::Result<bool> {
        match &mut self.channel {
            Channel::Plain(_) => Ok(true),
            Channel::Tls(tls) => tls.flush(),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.channel {
            Channel::Plain(socket) => socket.as_fd(),
            Channel::Tls(tls) => tls.as_fd(),
        }
    }
}

fn settle(result: io::Result<usize>) -> io::Result<Moved> {
    match result {
        Ok(0) => Ok(Moved::End),
        Ok(bytes) => Ok(Moved::Bytes(bytes)),
        Err(e) => match e.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(Moved::Later),
            _ => Err(e),
        },
    }
}

/// An IPv4 address in the form that belongs to it, also if a socket for IPv6 has accepted it.
fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(ip) => match Ipv6Addr::to_ipv4_mapped(&ip) {
            Some(ip) => SocketAddr::new(ip.into(), address.port()),
            None => address,
        },
        IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::super::listener::Listener;
    use super::super::poller::Poller;
    use super::*;
    use lamina_nvmf::transport::GREETING_BYTES;

    #[test]
    fn nothing_blocks_and_the_end_is_seen() {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), 16).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut stream = accepted(&listener);
        assert!(sockopt::socket_keepalive(&stream).unwrap(), "a dead host is noticed");
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), IDLE);
        assert!(sockopt::tcp_nodelay(&stream).unwrap());
        let mut space = [0; 16];
        assert_eq!(stream.read(&mut space, &mut []).unwrap(), Moved::Later);
        client.write_all(b"hello").unwrap();
        let (first, second) = space.split_at_mut(2);
        while stream.read(first, second).unwrap() == Moved::Later {
            std::thread::yield_now();
        }
        assert_eq!(&space[..5], b"hello");
        let pieces = [IoSlice::new(b"wor"), IoSlice::new(b"ld")];
        assert_eq!(stream.send(&pieces).unwrap(), Moved::Bytes(5));
        client.read_exact(&mut space[..5]).unwrap();
        assert_eq!(&space[..5], b"world");
        stream.settle_in().unwrap();
        assert_eq!(stream.local(), client.peer_addr().unwrap());
        drop(client);
        while stream.read(&mut [], &mut space).unwrap() != Moved::End {
            std::thread::yield_now();
        }
        assert!(stream.peer().ip().is_loopback() && !stream.is_secure());
    }

    fn accepted(listener: &Listener) -> Stream {
        loop {
            if let Some((socket, peer)) = listener.accept().unwrap() {
                return Stream::new(socket, peer);
            }
        }
    }

    #[test]
    fn nothing_is_told_of_a_connection_before_there_is_something_to_judge() {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), 16).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut stream = accepted(&listener);
        let mut poller = Poller::new().unwrap();
        poller.add_input(&stream, 1).unwrap();
        let mut send = |bytes: usize| (0..bytes).for_each(|_| client.write_all(&[0]).unwrap());
        send(HEADER_BYTES - 1);
        assert_eq!(poller.wait(50).unwrap().count(), 0);
        send(1);
        assert_eq!(poller.wait(10_000).unwrap().count(), 1);
        stream.wait_for(GREETING_BYTES).unwrap();
        send(GREETING_BYTES - HEADER_BYTES - 1);
        assert_eq!(poller.wait(50).unwrap().count(), 0);
        send(1);
        assert_eq!(poller.wait(10_000).unwrap().count(), 1);
        let mut first = [1; 2 * GREETING_BYTES];
        assert_eq!(stream.peek(&mut first).unwrap(), Some(GREETING_BYTES));
        // From here on every byte is.
        stream.settle_in().unwrap();
        while stream.read(&mut first, &mut []).unwrap() != Moved::Later {}
        send(1);
        assert_eq!(poller.wait(10_000).unwrap().count(), 1);
        // The end is told in any case.
        let quitter = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let served = accepted(&listener);
        poller.add_input(&served, 2).unwrap();
        drop(quitter);
        assert!(poller.wait(10_000).unwrap().any(|edge| edge.id == 2 && edge.ended));
    }

    #[test]
    fn what_was_sent_last_is_read_although_more_came_in() {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), 16).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut stream = accepted(&listener);
        client.write_all(&[7; 100_000]).unwrap();
        assert_eq!(stream.send(&[IoSlice::new(b"goodbye")]).unwrap(), Moved::Bytes(7));
        stream.end_sending().unwrap();
        let mut dropped = 0;
        while dropped < 100_000 {
            match stream.discard(usize::MAX).unwrap() {
                Moved::Bytes(bytes) => dropped += bytes,
                moved => assert_eq!(moved, Moved::Later),
            }
        }
        assert_eq!(dropped, 100_000);
        drop(stream);
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).expect("no reset");
        assert_eq!(rest, b"goodbye");
    }
}

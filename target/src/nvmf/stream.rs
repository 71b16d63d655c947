//! One connected socket, plain or with TLS, never blocking.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::net::sockopt;

use super::tls::TlsStream;

/// A host that has sent nothing for so long is asked by TCP whether it is still there, again after
/// each interval, and taken for gone after so many questions: hosts need not have a keep-alive
/// timer.
const IDLE: Duration = Duration::from_secs(60);
const PROBE_INTERVAL: Duration = Duration::from_secs(15);
const PROBES: u32 = 4;

/// Most pieces of one send.
pub const PIECES_MAX: usize = 256;

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
    /// A connection just accepted: no delay for small packets, no blocking, and TCP looks whether
    /// the host is still there.
    ///
    /// # Errors
    /// The socket is gone already.
    pub fn new(socket: TcpStream) -> io::Result<Stream> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, IDLE)?;
        sockopt::set_tcp_keepintvl(&socket, PROBE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(&socket, PROBES)?;
        let (peer, local) = (plain(socket.peer_addr()?), plain(socket.local_addr()?));
        Ok(Stream { channel: Channel::Plain(socket), peer, local })
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

    /// The first byte that has come, without taking it; `None` if there is none yet.
    ///
    /// # Errors
    /// The connection has failed, or is closed.
    pub fn peek(&self) -> io::Result<Option<u8>> {
        let Channel::Plain(socket) = &self.channel else { return Ok(None) };
        let mut first = [0];
        match socket.peek(&mut first) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(Some(first[0])),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
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
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn nothing_blocks_and_the_end_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut stream = Stream::new(listener.accept().unwrap().0).unwrap();
        assert!(sockopt::socket_keepalive(&stream).unwrap(), "a dead host is noticed");
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), IDLE);
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
        drop(client);
        while stream.read(&mut [], &mut space).unwrap() != Moved::End {
            std::thread::yield_now();
        }
        assert!(stream.peer().ip().is_loopback() && !stream.is_secure());
    }
}

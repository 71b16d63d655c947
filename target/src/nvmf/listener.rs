//! A listening socket: bound, accepted from, never blocking.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::stream::prepare;

/// Connections that may wait to be accepted unless told otherwise; the kernel keeps to its own
/// limit (somaxconn).
pub const BACKLOG: i32 = 1024;

/// A socket that hosts connect to.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
}

impl Listener {
    /// Listens on `address`, with room for `backlog` connections that wait. An address of IPv6
    /// takes no connections of IPv4.
    ///
    /// # Errors
    /// The address is in use, or is none of this machine.
    pub fn bind(address: SocketAddr, backlog: i32) -> io::Result<Listener> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket: OwnedFd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        // Connections of a daemon that has just ended still linger on the address.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        prepare(&socket)?;
        rustix::net::bind(&socket, &address)?;
        rustix::net::listen(&socket, backlog)?;
        Ok(Listener { socket: TcpListener::from(socket) })
    }

    /// The next connection and its other end; `None` if none waits. It never blocks either.
    ///
    /// # Errors
    /// No descriptors are left, or the like: it may be tried again later.
    pub fn accept(&self) -> io::Result<Option<(TcpStream, SocketAddr)>> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        loop {
            match rustix::net::acceptfrom_with(&self.socket, flags) {
                Ok((socket, peer)) => {
                    // One that is gone already may have no address.
                    let Some(peer) = peer.and_then(|peer| SocketAddr::try_from(peer).ok()) else {
                        continue;
                    };
                    return Ok(Some((TcpStream::from(socket), peer)));
                }
                Err(Errno::AGAIN) => return Ok(None),
                // One that has gone while it waited says nothing of the next.
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What getsockname(2) says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_listened_on_once_and_again_after_it_was_closed() {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), BACKLOG).unwrap();
        assert!(listener.accept().unwrap().is_none());
        let address = listener.socket.local_addr().unwrap();
        let error = Listener::bind(address, BACKLOG).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let client = TcpStream::connect(address).unwrap();
        let served = loop {
            if let Some(served) = listener.accept().unwrap() {
                break served;
            }
        };
        assert_eq!(served.1, client.local_addr().unwrap());
        drop(listener);
        drop(served);
        let again = Listener::bind(address, BACKLOG).unwrap();
        assert!(again.accept().unwrap().is_none());
    }
}

//! A socket and the protocol's state together: bytes in, bytes out.

use std::io::IoSlice;

use lamina_nvmf::SlotId;
use lamina_nvmf::pool::Pool;
use lamina_nvmf::transport::Connection;

use super::poller::Edge;
use super::stream::{Moved, PIECES_MAX, Stream};

/// Bytes received from one connection in one turn: others want their turn too.
const RECEIVE_BYTES_MAX: usize = 1 << 20;
/// Sends of one connection in one turn.
const SENDS_MAX: usize = 4;

/// Both ends of a connection's bytes.
pub struct Link {
    /// The socket.
    pub stream: Stream,
    /// The protocol.
    pub connection: Connection,
    /// Reading may give something.
    pub readable: bool,
    /// Sending may take something.
    pub writable: bool,
    /// The end is there to be read.
    pub ended: bool,
    /// The other side is gone, or the socket has failed.
    pub broken: bool,
}

impl Link {
    /// A connection just accepted.
    pub fn new(stream: Stream, connection: Connection) -> Link {
        let (readable, writable) = (true, true);
        Link { stream, connection, readable, writable, ended: false, broken: false }
    }

    /// Notes what the poller says.
    pub fn edge(&mut self, edge: Edge) {
        self.readable |= edge.readable;
        self.writable |= edge.writable;
        self.ended |= edge.ended;
    }

    /// Takes what has come, a bounded amount. True if there was anything.
    pub fn receive(&mut self, pool: &mut Pool) -> bool {
        let mut taken = 0;
        if self.connection.is_paused() || self.connection.wants_buffer() {
            self.connection.resume(pool);
        }
        while self.readable && !self.broken && taken < RECEIVE_BYTES_MAX {
            let (first, second) = self.connection.receive_slices();
            let room = first.len() + second.len();
            if room == 0 {
                break;
            }
            match self.stream.read(first, second) {
                Ok(Moved::Bytes(bytes)) => {
                    self.connection.received(bytes, pool);
                    taken += bytes;
                    // Less than there was room for: that was all, and an edge announces more. Not
                    // so with TLS, whose records come piece by piece, nor of the end.
                    if bytes < room && !self.stream.is_secure() && !self.ended {
                        self.readable = false;
                    }
                }
                Ok(Moved::Later) => self.readable = false,
                Ok(Moved::End) | Err(_) => self.broken = true,
            }
        }
        taken > 0
    }

    /// Sends what there is to send, as much as the socket takes. True if anything went. `pieces` is
    /// memory to work with; it comes back empty.
    pub fn send(&mut self, pool: &mut Pool, pieces: &mut Vec<IoSlice<'static>>) -> bool {
        let mut sent = false;
        for _ in 0..SENDS_MAX {
            if !self.writable || self.broken || !self.connection.wants_send() {
                break;
            }
            let mut out = recycle(std::mem::take(pieces));
            self.connection.transmit(&mut out);
            if out.is_empty() {
                *pieces = recycle(out);
                break;
            }
            let moved = self.stream.send(&out);
            let all: usize = out.iter().take(PIECES_MAX).map(|piece| piece.len()).sum();
            *pieces = recycle(out);
            match moved {
                Ok(Moved::Bytes(bytes)) => {
                    self.connection.transmitted(bytes, pool);
                    sent = true;
                    // TLS takes what fits a record, and says when it can take no more.
                    self.writable = bytes == all || self.stream.is_secure();
                }
                Ok(Moved::Later) => self.writable = false,
                Ok(Moved::End) | Err(_) => self.broken = true,
            }
        }
        if self.writable && !self.broken {
            match self.stream.flush() {
                Ok(all) => self.writable = all,
                Err(_) => self.broken = true,
            }
        }
        sent
    }

    /// Everything that was to be sent is on its way.
    pub fn is_flushed(&mut self) -> bool {
        !self.connection.wants_send() && self.stream.flush().is_ok_and(|all| all)
    }
}

/// The data that came with a command.
pub fn data_of(connection: &Connection, slot: SlotId) -> &[u8] {
    let len = connection.data_len(slot) as usize;
    connection.data(slot).map_or(&[][..], |buffer| &buffer.as_slice()[..len.min(buffer.capacity())])
}

/// The same memory for pieces that live for another time. An empty list holds none of either.
fn recycle<'b>(mut pieces: Vec<IoSlice<'_>>) -> Vec<IoSlice<'b>> {
    pieces.clear();
    // Collecting in place keeps the allocation.
    pieces.into_iter().map(|_| IoSlice::new(&[])).collect()
}

//! Connections on their way in, and on their way out: who is let in, and how the last words of a
//! connection get through.
//!
//! ```text
//!  accept ─┬─ too many, or an address of garbage: closed
//!          ├─ first bytes are no NVMe: told so ─────────────────────────────┐
//!          └─ at the door (deadline) ─┬─ a queue                             │
//!                                     └─ refused, or ended with a reason ────┤
//!  a reactor's queue, ended with a reason ───────────────────────────────────┤
//!      lingering: our half closed; at its end, or a deadline, what has come ◄┘
//!      is dropped ─► closed
//! ```
//!
//! A socket that is closed with bytes unread resets its connection, and the host may never read why
//! it was ended.

use std::net::{SocketAddr, TcpStream};

use lamina_nvmf::subsystem::PortId;

use super::conn::{Begun, Conn, Stage};
use super::core::{Core, DOOR};
use super::message::ConnectionId;
use super::stream::Stream;
use crate::log;

/// Connections accepted from one socket in one turn.
const ACCEPTS_MAX: usize = 32;
/// Connections that linger at the same time; more are closed at once.
const LINGERING_MAX: usize = 256;
/// After this, accepting is tried again when it failed, nanoseconds.
const ACCEPT_RETRY_NS: u64 = 100_000_000;
/// How often the log tells of connections turned away, nanoseconds.
const REPORT_NS: u64 = 10_000_000_000;

/// Connections turned away that the log has not told of.
#[derive(Debug, Default)]
pub(super) struct TurnedAway {
    count: u64,
    last: Option<SocketAddr>,
    told_ns: u64,
}

impl Core {
    /// Takes connections that wait at a listener. True if there were any.
    pub(super) fn accept(&mut self, port: PortId, now: u64) -> bool {
        for taken in 0..ACCEPTS_MAX {
            let Some(entry) = self.ports.get_mut(&port) else { return taken > 0 };
            let Some(listener) = &entry.listener else { return taken > 0 };
            match listener.accept() {
                Ok(Some((socket, peer))) => self.admit(port, socket, peer, now),
                Ok(None) => return taken > 0,
                Err(e) => {
                    // Told of once, until it works again: it is tried ten times a second.
                    if !std::mem::replace(&mut entry.failing, true) {
                        let address = &entry.address;
                        log::warn(format!("no connection can be accepted on {address}: {e}"));
                    }
                    // It would be reported again and again, at full speed.
                    let _ = self.door.remove(listener);
                    entry.retry_ns = Some(now + ACCEPT_RETRY_NS);
                    return true;
                }
            }
            if let Some(entry) = self.ports.get_mut(&port) {
                entry.failing = false;
            }
        }
        true
    }

    fn admit(&mut self, port: PortId, socket: TcpStream, peer: SocketAddr, now: u64) {
        self.counts.accepted += 1;
        let mut conn = Conn::new(Stream::new(socket, peer), port, now + self.caps.handshake_ns);
        let ip = conn.peer().ip();
        if self.peers.is_turned_away(ip, now)
            || self.conns.len() + self.away.len() >= self.caps.connections
            || self.peers.connections(ip) >= self.caps.connections_of_address
        {
            return self.turn_away(peer);
        }
        // The oldest has had the most time to say something; an address that has many pays for
        // itself, and not others.
        let its_oldest = self.peers.oldest_fresh(ip, self.caps.half_open / 2);
        let full = self.fresh.len() >= self.caps.half_open;
        if let Some(oldest) = its_oldest.or_else(|| self.fresh.first().copied().filter(|_| full)) {
            self.turn_away(peer);
            self.end(oldest);
        }
        let id = ConnectionId(self.next_id);
        self.next_id += 1;
        let mut lingers = false;
        match conn.look() {
            Begun::No => {}
            Begun::Yes => {
                self.knocking.insert(id);
            }
            Begun::Over => return self.offence(&conn, now),
            Begun::Refused => {
                self.offence(&conn, now);
                if conn.is_drained() || self.lingering.len() >= LINGERING_MAX {
                    return;
                }
                lingers = true;
            }
        }
        if let Err(e) = self.door.add_input(&conn, id.0) {
            return log::error(format!("a connection cannot be watched: {e}"));
        }
        self.peers.came(ip, id, !lingers);
        self.conns.insert(id, conn);
        match lingers {
            true => self.lingers(id, now),
            false => drop(self.fresh.insert(id)),
        }
    }

    fn turn_away(&mut self, peer: SocketAddr) {
        self.counts.refused += 1;
        self.turned_away.count += 1;
        self.turned_away.last = Some(peer);
    }

    /// A connection was no NVMe.
    pub(super) fn offence(&mut self, conn: &Conn, now: u64) {
        self.peers.offended(conn.peer().ip(), now);
        self.turned_away.count += 1;
        self.turned_away.last = Some(conn.peer());
    }

    /// Tells the log of connections turned away, now and then.
    pub(super) fn report(&mut self, now: u64) {
        let told = &mut self.turned_away;
        if now < told.told_ns + REPORT_NS {
            return;
        }
        if let Some(last) = told.last.take() {
            let count = std::mem::take(&mut told.count);
            told.told_ns = now;
            let why = "too many, or no NVMe/TCP";
            log::warn(format!("{count} connections were turned away: {why}; the last from {last}"));
        }
    }

    /// A connection is ended by us for a reason that its host is to read: closed when the host has
    /// closed its half, or after a while.
    pub(super) fn linger(&mut self, id: ConnectionId, now: u64) {
        let room = self.lingering.len() < LINGERING_MAX && !self.stopping;
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if !room {
            return self.end(id);
        }
        let stage = std::mem::replace(&mut conn.stage, Stage::Lingering);
        match conn.stop_talking(&mut self.pool) || conn.is_drained() {
            true => self.end(id),
            false => self.lingers(id, now),
        }
        self.stage_over(id, stage);
    }

    /// Notes that it lingers.
    fn lingers(&mut self, id: ConnectionId, now: u64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.deadline_ns = Some(now + self.caps.farewell_ns);
        // What comes is of no interest before its end, or the deadline. An admin queue is not at
        // the door.
        let watched = self.door.watch_end(&*conn, id.0);
        if let Err(e) = watched.or_else(|_| self.poller.watch_end(&*conn, id.0)) {
            log::error(format!("a connection is not seen to end: {e}"));
        }
        let ip = conn.peer().ip();
        self.fresh.remove(&id);
        self.peers.not_fresh(ip, id);
        self.lingering.insert(id);
    }

    /// The socket of a reactor's queue that was ended with a reason.
    pub(super) fn take_back(&mut self, id: ConnectionId, stream: Stream, now: u64) {
        if self.lingering.len() >= LINGERING_MAX || self.stopping {
            return;
        }
        let mut conn = Conn::farewell(stream);
        if conn.is_drained() || self.door.add_input(&conn, id.0).is_err() {
            return;
        }
        self.peers.came(conn.peer().ip(), id, false);
        self.conns.insert(id, conn);
        self.lingers(id, now);
    }

    /// A lingering connection's turn.
    pub(super) fn drain(&mut self, id: ConnectionId) {
        if self.conns.get_mut(&id).is_some_and(Conn::is_drained) {
            self.end(id);
        }
    }

    /// Looks at the door: connections that wait to be accepted, and those that are no queues yet,
    /// unless that has to wait.
    pub(super) fn look_at_door(&mut self, now: u64) {
        if !self.knocked && self.knocking.is_empty() || self.pace.wait_ns(now).is_some() {
            return;
        }
        let mut found = !self.knocking.is_empty();
        let mut edges = std::mem::take(&mut self.door_edges);
        match self.door.wait(0) {
            Ok(new) => edges.extend(new),
            Err(e) => log::error(format!("the NVMe service cannot look at its door: {e}")),
        }
        let more = self.door.was_full();
        for edge in edges.drain(..) {
            if edge.id & super::core::PORT_BIT != 0 {
                found |= self.accept(PortId(edge.id as u16), now);
            } else if let Some(conn) = self.conns.get_mut(&ConnectionId(edge.id)) {
                conn.edge(edge);
                self.knocking.insert(ConnectionId(edge.id));
                found = true;
            }
        }
        self.door_edges = edges;
        for id in std::mem::take(&mut self.knocking) {
            self.turn(id, now);
        }
        if found {
            self.pace.looked();
        }
        // While looks come at intervals nobody has to be woken for the next one.
        self.knocked = more || self.pace.wait_ns(now).is_some();
        if !self.knocked
            && let Err(e) = self.poller.watch_again(&self.door, DOOR)
        {
            log::error(format!("the NVMe service cannot watch its door: {e}"));
        }
    }

    /// A connection is to have a turn that no edge announces.
    pub(super) fn wake(&mut self, id: ConnectionId) {
        match self.conns.get(&id) {
            Some(conn) if matches!(conn.stage, Stage::Admin(_)) => self.active.insert(id),
            Some(_) => self.knocking.insert(id),
            None => false,
        };
    }
}

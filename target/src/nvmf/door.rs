//! Connections on the service thread: from the first byte to a queue, and admin queues after that.
//!
//! ```text
//!  Silent ─ first byte ─┬──────────► Fresh ─ Connect ─┬─ Admin
//!                       └ TLS: keys ►                 ├─ Proving ─ authenticated ─┐
//!                                                     ├─ Moving ◄─────────────────┘
//!                                                     │    └ answer sent ─► a reactor
//!                                                     └─ Ending (refused) ─ answer sent ─► gone
//! ```

use std::sync::Arc;

use lamina_nvmf::SlotId;
use lamina_nvmf::controller::{Connected, ControllerKey, Origin};
use lamina_nvmf::transport::Fault;
use lamina_nvmf::wire::opcode::{admin, fabrics};
use lamina_nvmf::wire::{Completion, Status};

use super::conn::{Begun, Channel, Conn, Stage};
use super::core::{Association, Away, Core};
use super::deliver::ReplyTo;
use super::link::data_of;
use super::message::{Adopted, ConnectionId, GroupMsg, QueueShared};
use super::usage::QueueUsage;
use crate::log;
use crate::reactor::clock::now_ns;
use crate::reactor::handle::Message;

/// Commands of one connection carried out in one turn.
const COMMANDS_MAX: usize = 64;

impl Core {
    /// A connection's turn: takes what has come, carries it out, sends the answers.
    pub(super) fn turn(&mut self, id: ConnectionId, now: u64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if matches!(conn.stage, Stage::Lingering) {
            return self.drain(id);
        }
        if matches!(conn.stage, Stage::Silent) {
            let fresh = matches!(conn.channel, Channel::Silent(_));
            match conn.look() {
                // A host that has gone away sends no more.
                Begun::No if !conn.ended => return,
                Begun::No | Begun::Over => return self.end(id),
                Begun::Refused => {
                    let peer = conn.peer().ip();
                    self.peers.offended(peer, now);
                    return self.linger(id, now);
                }
                Begun::Yes => {}
            }
            if fresh && self.door.watch_both(&*conn, id.0).is_err() {
                return self.end(id);
            }
            let (port, keys, target) = (conn.port, &mut self.tls_keys, self.service.target());
            if !conn.begin(&self.settings, || keys.of_port(port, target)) {
                return self.end(id);
            }
        }
        let Some(conn) = self.conns.get_mut(&id) else { return };
        // What comes next is the reactor's, also if the last answer does not go out at once.
        let moving = matches!(conn.stage, Stage::Moving(_));
        let Some(link) = conn.link() else { return };
        if !link.connection.join(&mut self.pool) {
            self.counts.refused += 1;
            return self.end(id);
        }
        if !moving {
            link.receive(&mut self.pool);
        }
        let mut more = true;
        for _ in 0..COMMANDS_MAX {
            let Some(conn) = self.conns.get_mut(&id) else { return };
            let done = matches!(conn.stage, Stage::Ending | Stage::Moving(_));
            let Some(link) = conn.link() else { return };
            let slot = if done { None } else { link.connection.next_command() };
            let Some(slot) = slot else {
                more = false;
                break;
            };
            self.command(id, slot, now);
        }
        self.settle(id, more);
    }

    /// Carries a command out.
    fn command(&mut self, id: ConnectionId, slot: SlotId, now: u64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let queue = match &conn.stage {
            Stage::Admin(key) => Some((*key, 0)),
            Stage::Proving(connected) => Some((connected.controller, connected.qid)),
            _ => None,
        };
        let fresh = matches!(conn.stage, Stage::Fresh);
        conn.running.push(slot);
        let Some(link) = conn.link() else { return };
        let connection = &link.connection;
        let command = *connection.command(slot);
        let len = connection.data_len(slot);
        let authentication =
            [fabrics::AUTHENTICATION_SEND, fabrics::AUTHENTICATION_RECEIVE].map(Some);
        if let Some((key, qid)) = queue {
            if command.opcode == admin::GET_LOG_PAGE {
                self.refresh_usage();
            }
            let Some(link) = self.conns.get_mut(&id).and_then(Conn::link) else { return };
            let connection = &link.connection;
            let data = data_of(connection, slot);
            let answer = match qid {
                0 if authentication.contains(&command.fctype()) => {
                    self.service.authenticate(key, 0, &command, len, data, now)
                }
                0 => self.service.admin(key, slot, &command, len, now),
                _ => self.service.queue_command(key, qid, &command, len, data, now),
            };
            self.answer(ReplyTo::Here(id, slot), answer);
            self.proved(id, key, qid);
        } else if fresh && command.fctype() == Some(fabrics::CONNECT) {
            self.connect(id, slot, now);
        } else {
            // A queue takes Connect first, and nothing before that is answered.
            let status = Status::COMMAND_SEQUENCE_ERROR.dnr();
            let completion = Completion { cid: command.cid, status, ..Completion::default() };
            conn.respond(slot, completion, 0);
            conn.stage = Stage::Ending;
        }
    }

    /// Lets an I/O queue that has authenticated go on to its reactor.
    pub(super) fn proved(&mut self, id: ConnectionId, key: ControllerKey, qid: u16) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if qid != 0 && self.service.is_trusted(key, qid) {
            conn.stage = match std::mem::replace(&mut conn.stage, Stage::Ending) {
                Stage::Proving(connected) => Stage::Moving(connected),
                stage => stage,
            };
        }
    }

    fn connect(&mut self, id: ConnectionId, slot: SlotId, now: u64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let (port, local, tls) = (conn.port, conn.local.ip(), conn.tls.clone());
        let Some(link) = conn.link() else { return };
        let data = data_of(&link.connection, slot);
        let origin = Origin { port, local, tls };
        let command = link.connection.command(slot);
        match self.service.connect(&origin, command, data, now) {
            Ok(connected) => {
                link.connection.set_sq(connected.entries, connected.flow_control);
                // What follows the Connect of an I/O queue is the reactor's to parse, or comes one
                // by one until the host has authenticated.
                link.connection.set_one_by_one(connected.qid != 0);
                conn.respond(slot, connected.completion, 0);
                self.enrol(id, connected);
            }
            Err(completion) => {
                conn.respond(slot, completion, 0);
                conn.stage = Stage::Ending;
            }
        }
    }

    /// The connection is a queue now.
    fn enrol(&mut self, id: ConnectionId, connected: Connected) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let key = connected.controller;
        self.fresh.remove(&id);
        conn.queue = true;
        self.peers.became_queue(conn.peer.ip(), id);
        self.pace.give_back();
        if connected.qid == 0 {
            // From the door to the admin queues.
            let moved = self.door.remove(&*conn).and_then(|()| self.poller.add(&*conn, id.0));
            if let Err(e) = moved {
                log::error(format!("an admin queue cannot be watched: {e}"));
            }
            let shared = Arc::new(QueueShared::default());
            let (peer, local) = (conn.peer, conn.local);
            let queues = Default::default();
            let association = Association { admin: id, queues, shared, peer, local };
            self.associations.insert(key, association);
            self.counts.admin_total += 1;
            conn.stage = Stage::Admin(key);
            conn.deadline_ns = None;
        } else {
            if let Some(association) = self.associations.get_mut(&key) {
                association.queues.insert(connected.qid, id);
            }
            if connected.authenticate {
                // The controllers' owner sees to it that this does not take for ever.
                conn.deadline_ns = None;
            }
            conn.stage = match connected.authenticate {
                true => Stage::Proving(Box::new(connected)),
                false => Stage::Moving(Box::new(connected)),
            };
        }
    }

    /// Sends, and sees what becomes of the connection.
    pub(super) fn settle(&mut self, id: ConnectionId, more: bool) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let ending = matches!(conn.stage, Stage::Ending);
        let moving = matches!(conn.stage, Stage::Moving(_));
        let Some(link) = conn.link() else { return };
        link.send(&mut self.pool, &mut self.pieces);
        let flushed = link.is_flushed();
        let failed = link.connection.fatal().is_some();
        if link.broken {
            return self.end(id);
        }
        if ending || failed {
            let told = !matches!(link.connection.fatal(), Some(Fault::Peers { .. }));
            return match (flushed, link.writable) {
                (true, _) if told => self.linger(id, now_ns()),
                (false, true) => self.wake(id),
                // It takes nothing: not waited for, or it knows why.
                _ => self.end(id),
            };
        }
        if moving && flushed && link.connection.is_quiet() {
            return self.hand_over(id);
        }
        let connection = &link.connection;
        let starved = connection.wants_buffer();
        // Paused until the command before is answered: it goes on when that is sent.
        let paused = connection.is_paused();
        let readable =
            link.readable && !starved && !paused || paused && connection.in_flight() == 0;
        if readable || link.writable && connection.wants_send() || more {
            self.wake(id);
        }
        if starved {
            self.starved.insert(id);
        }
    }

    /// Gives an I/O queue to a reactor.
    fn hand_over(&mut self, id: ConnectionId) {
        let Some(conn) = self.conns.remove(&id) else { return };
        self.active.remove(&id);
        let Conn { channel: Channel::Link(mut link), stage: Stage::Moving(connected), .. } = conn
        else {
            unreachable!("the caller looked");
        };
        let (key, qid) = (connected.controller, connected.qid);
        let Some(association) = self.associations.get(&key) else {
            link.connection.close(&mut self.pool);
            self.left(key);
            return self.peers.gone(link.stream.peer().ip(), id, true);
        };
        link.connection.leave(&mut self.pool);
        link.connection.set_one_by_one(false);
        let shared = association.shared.clone();
        if let Err(e) = self.door.remove(&link.stream) {
            log::error(format!("a connection is watched no longer, but says: {e}"));
        }
        let table = self.service.table(key);
        let reactor = self.place(key, qid);
        let (peer, local) = (link.stream.peer(), link.stream.local());
        link.readable = true;
        link.writable = true;
        let entries = connected.entries;
        let data_bytes_max = self.settings.data_bytes_max;
        let (subsystem, usage) = (connected.subsystem, Arc::new(QueueUsage::default()));
        let shown = usage.clone();
        let adopted =
            Adopted { id, link: *link, entries, data_bytes_max, table, shared, usage: shown };
        let message = Message::Nvmf(GroupMsg::Adopt(Box::new(adopted)));
        let away = Away { controller: key, qid, reactor, peer, local, subsystem, usage };
        self.away.insert(id, away);
        if let Err(error) = self.reactors[reactor].post(message) {
            log::error(format!("an I/O queue is lost: {error}"));
            self.gone(id);
        }
    }

    /// The reactor for a queue: one of those that drive its namespaces, in turn.
    fn place(&self, key: ControllerKey, qid: u16) -> usize {
        let subsystem = self.service.controller(key).map(|c| c.subsystem);
        let subsystem = subsystem.and_then(|id| self.target().get(id));
        let mut homes: Vec<usize> = subsystem
            .into_iter()
            .flat_map(|subsystem| subsystem.namespaces())
            .filter_map(|namespace| self.homes.get(&namespace.device).copied())
            .collect();
        homes.sort_unstable();
        homes.dedup();
        let turn = usize::from(qid - 1);
        match homes.is_empty() {
            true => turn % self.reactors.len(),
            false => homes[turn % homes.len()],
        }
    }

    /// Closes a connection on this thread.
    pub(super) fn end(&mut self, id: ConnectionId) {
        let Some(mut conn) = self.conns.remove(&id) else { return };
        self.fresh.remove(&id);
        self.active.remove(&id);
        self.starved.remove(&id);
        self.knocking.remove(&id);
        self.lingering.remove(&id);
        self.peers.gone(conn.peer.ip(), id, conn.queue);
        for slot in conn.running.clone() {
            conn.respond(slot, Status::ABORTED_SQ_DELETION.into(), 0);
        }
        if let Some(link) = conn.link() {
            link.connection.close(&mut self.pool);
        }
        // Buffers have come back.
        for starved in std::mem::take(&mut self.starved) {
            self.wake(starved);
        }
        self.stage_over(id, conn.stage);
    }

    /// A connection is not what it was any more.
    pub(super) fn stage_over(&mut self, id: ConnectionId, stage: Stage) {
        match stage {
            Stage::Admin(key) => {
                self.service.admin_closed(key);
                self.act();
            }
            Stage::Proving(connected) | Stage::Moving(connected) => {
                self.queue_gone(id, connected.controller, connected.qid);
            }
            Stage::Silent | Stage::Fresh | Stage::Ending | Stage::Lingering => {}
        }
    }

    /// The connection of an I/O queue on a reactor has ended.
    pub(super) fn gone(&mut self, id: ConnectionId) {
        if let Some(away) = self.away.remove(&id) {
            self.keep_usage(&away);
            self.peers.gone(away.peer.ip(), id, true);
            self.queue_gone(id, away.controller, away.qid);
        }
    }

    fn queue_gone(&mut self, id: ConnectionId, key: ControllerKey, qid: u16) {
        // Another connection may be that queue by now.
        if let Some(association) = self.associations.get_mut(&key)
            && association.queues.get(&qid) == Some(&id)
        {
            association.queues.remove(&qid);
            self.service.queue_closed(key, qid);
        }
        self.left(key);
    }

    /// Nothing works for a connected I/O queue any more.
    fn left(&mut self, key: ControllerKey) {
        self.service.queue_left(key, now_ns());
        self.act();
    }
}

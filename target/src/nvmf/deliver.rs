//! From the controllers' answers and actions to connections, reactors and disks' records.
//!
//! ```text
//!  answer ─┬─ reply ─────────────────────────────► connection, or reactor
//!          └─ reply after actions ─► tokens ─ all acknowledged ─► the same
//!  action ─── publish, close, respond, save
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;

use lamina_nvmf::SlotId;
use lamina_nvmf::controller::{Action, Answer, AuthWorked, ControllerKey, Reply};
use lamina_nvmf::subsystem::SubsystemId;
use lamina_nvmf::wire::Status;
use lamina_nvmf::wire::opcode::fabrics;

use super::conn::{Conn, Stage};
use super::core::Core;
use super::message::{ConnectionId, GroupMsg, Save, ServiceMsg};
use crate::log;
use crate::reactor::clock::now_ns;
use crate::reactor::handle::Message;

/// Who waits for a reply.
#[derive(Clone, Copy, Debug)]
pub(super) enum ReplyTo {
    /// A connection on this thread.
    Here(ConnectionId, SlotId),
    /// A queue on a reactor.
    Away(ConnectionId, SlotId),
}

/// A reply that waits until reactors and the disks' records have followed.
pub(super) struct Deferred {
    tokens: BTreeSet<u64>,
    to: ReplyTo,
    reply: Reply,
}

impl Core {
    /// Does what a message says.
    pub(super) fn message(&mut self, message: ServiceMsg) {
        match message {
            ServiceMsg::Run(run) => run(self),
            ServiceMsg::Gone(id, stream) => {
                self.gone(id);
                if let Some(stream) = stream {
                    self.take_back(id, *stream, now_ns());
                }
            }
            ServiceMsg::Command { id, slot, command, data, data_len } => {
                let Some(away) = self.away.get(&id) else { return };
                let (key, qid, now) = (away.controller, away.qid, now_ns());
                let answer = self.service.queue_command(key, qid, &command, data_len, &data, now);
                self.answer(ReplyTo::Away(id, slot), answer);
                let leaves = command.fctype() == Some(fabrics::DISCONNECT);
                if !leaves {
                    self.distrusted(id, key, qid);
                }
            }
            ServiceMsg::Computed(done) => self.computed(done),
            ServiceMsg::Acknowledged(token) => self.acknowledged(token, true),
            ServiceMsg::Saved(token, kept) => self.acknowledged(token, kept),
            ServiceMsg::Stop => self.stopping = true,
        }
    }

    /// Passes a controller's answer on, and does what it entails.
    pub(super) fn answer(&mut self, to: ReplyTo, answer: Answer) {
        match answer {
            Answer::Reply(reply) => {
                self.deliver(to, reply);
                self.act();
            }
            Answer::ReplyAfterActions(reply) => {
                let tokens = self.act_with_tokens();
                match tokens.is_empty() {
                    true => self.deliver(to, reply),
                    false => self.deferred.push(Deferred { tokens, to, reply }),
                }
            }
            Answer::Later(number) => {
                self.computed_for.insert(number, to);
                let from = match to {
                    ReplyTo::Here(id, _) => self.conns.get(&id).map(Conn::peer),
                    ReplyTo::Away(id, _) => self.away.get(&id).map(|away| away.peer),
                };
                while let Some(work) = self.service.next_work() {
                    let submitted = match from {
                        Some(from) => self.computing.submit(from.ip(), work),
                        None => Err(work),
                    };
                    if let Err(work) = submitted {
                        self.computed(work.refuse());
                    }
                }
                self.act();
            }
            Answer::Hold => {
                if let ReplyTo::Here(id, slot) = to
                    && let Some(link) = self.conns.get_mut(&id).and_then(Conn::link)
                {
                    link.connection.park(slot);
                }
                self.act();
            }
        }
    }

    /// A computation is done: its command is answered, and its queue may go on.
    fn computed(&mut self, done: AuthWorked) {
        let to = self.computed_for.remove(&done.number());
        let (key, qid) = done.queue();
        let reply = self.service.computed(done, now_ns());
        let (Some(to), Some(reply)) = (to, reply) else { return };
        self.deliver(to, reply);
        self.act();
        match to {
            ReplyTo::Here(id, _) => self.proved(id, key, qid),
            ReplyTo::Away(id, _) => self.distrusted(id, key, qid),
        }
    }

    /// Ends an I/O queue that has tried to authenticate anew and failed: no I/O from here on.
    fn distrusted(&mut self, id: ConnectionId, key: ControllerKey, qid: u16) {
        let trusted = self.service.is_trusted(key, qid);
        if !trusted && self.away.get(&id).is_some_and(|a| (a.controller, a.qid) == (key, qid)) {
            self.close(id);
        }
    }

    /// Something that replies wait for is over. A reservation that is not durable is not
    /// acknowledged: the host has to ask what there is, or try again.
    fn acknowledged(&mut self, token: u64, well: bool) {
        let mut at = 0;
        while at < self.deferred.len() {
            let deferred = &mut self.deferred[at];
            if deferred.tokens.remove(&token) && !well {
                deferred.reply.completion.status = Status::INTERNAL_ERROR;
            }
            if self.deferred[at].tokens.is_empty() {
                let Deferred { to, reply, .. } = self.deferred.remove(at);
                self.deliver(to, reply);
            } else {
                at += 1;
            }
        }
    }

    fn deliver(&mut self, to: ReplyTo, reply: Reply) {
        match to {
            ReplyTo::Here(id, slot) => {
                self.respond(id, slot, reply);
                // Its turn sends; one that answers at another time has to be looked at.
                self.wake(id);
            }
            ReplyTo::Away(id, slot) => {
                if let Some(away) = self.away.get(&id) {
                    self.post(away.reactor, GroupMsg::Reply { id, slot, reply });
                }
            }
        }
    }

    fn respond(&mut self, id: ConnectionId, slot: SlotId, reply: Reply) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Some(link) = conn.link() else { return };
        let connection = &mut link.connection;
        let len = reply.data.len().min(connection.data_len(slot) as usize);
        let mut completion = reply.completion;
        if len > 0 {
            match connection.take_buffer(len as u32, &mut self.pool) {
                Some(mut buffer) => {
                    buffer.as_mut_slice()[..len].copy_from_slice(&reply.data[..len]);
                    connection.attach(slot, buffer);
                }
                // Its earlier answers are all still to be sent; it may ask again.
                None => completion = Status::INTERNAL_ERROR.into(),
            }
        }
        let sent = if completion.status.is_ok() { len } else { 0 };
        conn.respond(slot, completion, sent as u32);
    }

    /// Does what the controllers want done.
    pub(super) fn act(&mut self) {
        self.act_with_tokens();
    }

    /// The same; gives the tokens that will be acknowledged. What an action leads to (the end of a
    /// connection is another thing to act on) is done by the call that goes on already, and counts
    /// for it: otherwise an answer would not wait for what is published on the way.
    fn act_with_tokens(&mut self) -> BTreeSet<u64> {
        if self.acting.is_some() {
            return BTreeSet::new();
        }
        self.acting = Some(BTreeSet::new());
        let mut drained = BTreeSet::new();
        while let Some(action) = self.service.next_action() {
            match action {
                Action::Respond { controller, slot, reply } => {
                    if let Some(association) = self.associations.get(&controller) {
                        self.deliver(ReplyTo::Here(association.admin, slot), reply);
                    }
                }
                Action::Forget { controller, slot } => {
                    let association = self.associations.get(&controller);
                    let conn = association.and_then(|a| self.conns.get_mut(&a.admin));
                    if let Some(conn) = conn {
                        conn.forget(slot, &mut self.pool);
                    }
                }
                Action::Publish { controller, drain } => {
                    self.publish(controller, drain);
                    let subsystem = self.service.controller(controller).map(|c| c.subsystem);
                    if let Some(subsystem) = subsystem.filter(|one| drain && drained.insert(*one)) {
                        self.drain_leaving(subsystem);
                    }
                }
                Action::Save { subsystem, nsid, image } => {
                    let Some(one) = self.service.target().get(subsystem) else { continue };
                    let Some(namespace) = one.namespace(nsid) else { continue };
                    let (nqn, uuid) = (one.nqn().to_string(), namespace.uuid);
                    let device = namespace.device;
                    let token = self.next_token();
                    (self.save)(Save { nqn, nsid, uuid, device, image, token });
                }
                Action::CloseQueue { controller, qid } => {
                    let association = self.associations.get_mut(&controller);
                    if let Some(id) = association.and_then(|a| a.queues.remove(&qid)) {
                        self.close(id);
                    }
                }
                Action::CloseController { controller, reason } => {
                    self.close_controller(controller, reason);
                }
            }
        }
        self.acting.take().expect("set above, taken here alone")
    }

    /// A token that what is acted on now will be acknowledged with.
    fn next_token(&mut self) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.acting.as_mut().expect("something is acted on").insert(token);
        token
    }

    fn publish(&mut self, key: ControllerKey, drain: bool) {
        let Some(association) = self.associations.get(&key) else { return };
        let ids: Vec<ConnectionId> = association.queues.values().copied().collect();
        let table = self.service.table(key);
        for id in ids {
            // One on its way to a reactor gets its table there.
            let Some(away) = self.away.get(&id) else { continue };
            let (reactor, table) = (away.reactor, table.clone());
            let token = self.next_token();
            self.post(reactor, GroupMsg::Table { id, table, drain, token: Some(token) });
        }
    }

    /// Queues that are on their way out have commands in flight too, of hosts that may be fenced
    /// off.
    fn drain_leaving(&mut self, subsystem: SubsystemId) {
        let kept: BTreeSet<ConnectionId> =
            self.associations.values().flat_map(|one| one.queues.values().copied()).collect();
        let leaving = self.away.iter().filter(|(id, _)| !kept.contains(id));
        let leaving: Vec<(ConnectionId, usize)> = leaving
            .filter(|(_, away)| away.subsystem == subsystem)
            .map(|(id, away)| (*id, away.reactor))
            .collect();
        for (id, reactor) in leaving {
            let token = self.next_token();
            let (table, token) = (Arc::default(), Some(token));
            self.post(reactor, GroupMsg::Table { id, table, drain: true, token });
        }
    }

    fn close_controller(&mut self, key: ControllerKey, reason: &'static str) {
        let Some(association) = self.associations.remove(&key) else { return };
        for id in association.queues.into_values() {
            self.close(id);
        }
        log::info(format!("NVMe controller of {} ended: {reason}", association.peer));
        if let Some(conn) = self.conns.get_mut(&association.admin) {
            conn.stage = Stage::Ending;
            // What is to be sent to a host that takes nothing is not waited for.
            conn.deadline_ns = Some(now_ns() + self.caps.farewell_ns);
            self.wake(association.admin);
        }
    }

    /// Ends the connection of an I/O queue, wherever it is.
    fn close(&mut self, id: ConnectionId) {
        match self.away.get(&id) {
            Some(away) => self.post(away.reactor, GroupMsg::Close(id)),
            None => self.end(id),
        }
    }

    pub(super) fn post(&self, reactor: usize, message: GroupMsg) {
        if let Err(error) = self.reactors[reactor].post(Message::Nvmf(message)) {
            log::error(format!("a message of the NVMe service is lost: {error}"));
        }
    }
}

#[cfg(test)]
mod tests;

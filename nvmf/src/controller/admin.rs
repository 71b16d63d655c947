//! Admin commands: who may send what when, and which file answers.

use super::events::Request;
use super::{Answer, ControllerKey, Reply, Service};
use crate::SlotId;
use crate::io::NSID_ALL;
use crate::wire::opcode::{admin, fabrics, nvm};
use crate::wire::{Command, Completion, Fuse, Status};

/// A completion with its dword 0.
pub(super) fn completion(cid: u16, status: Status, dw0: u32) -> Completion {
    Completion { dw0, cid, status, ..Completion::default() }
}

/// A reply without data.
pub(super) fn plain(command: &Command, status: Status, dw0: u32) -> Reply {
    Reply { completion: completion(command.cid, status, dw0), data: Vec::new() }
}

/// An answer with data.
pub(super) fn reply(command: &Command, status: Status, dw0: u32, data: Vec<u8>) -> Answer {
    Answer::Reply(Reply { data, ..plain(command, status, dw0) })
}

/// A refusal.
pub(super) fn fail(command: &Command, status: Status) -> Answer {
    Answer::Reply(plain(command, status, 0))
}

impl Service {
    /// A command on the admin queue. `data_len`: bytes its SGL describes. Authentication commands
    /// go to [`Service::authenticate`] instead, Connect to [`Service::connect`]; a second one is
    /// refused here.
    pub fn admin(
        &mut self,
        key: ControllerKey,
        slot: SlotId,
        command: &Command,
        data_len: u32,
        now_ns: u64,
    ) -> Answer {
        let Some(controller) = self.controllers.get_mut(&key) else {
            return fail(command, Status::ABORTED_SQ_DELETION);
        };
        controller.heard_ns = now_ns;
        if let Some(forgotten) = controller.events.take_request(command.cid) {
            let slot = forgotten.slot;
            self.actions.push_back(super::Action::Forget { controller: key, slot });
        }
        let trusted = self.own(key).trusted;
        let answer = match command.fctype() {
            Some(_) if command.fuse != Fuse::None => fail(command, Status::INVALID_FIELD.dnr()),
            Some(fctype) => self.fabrics(key, command, fctype, trusted, now_ns),
            None if !trusted => fail(command, Status::AUTHENTICATION_REQUIRED.dnr()),
            None => self.admin_command(key, slot, command, data_len),
        };
        self.note(key, 0, command, &answer);
        answer
    }

    /// A command an I/O queue forwarded: reservations, fabrics.
    pub fn queue_command(
        &mut self,
        key: ControllerKey,
        qid: u16,
        command: &Command,
        data_len: u32,
        data: &[u8],
        now_ns: u64,
    ) -> Answer {
        let queue = self.controllers.get(&key).and_then(|c| c.queues.get(&qid)).copied();
        let Some(queue) = queue else { return fail(command, Status::ABORTED_SQ_DELETION) };
        self.heard(key, now_ns);
        let authentication =
            [fabrics::AUTHENTICATION_SEND, fabrics::AUTHENTICATION_RECEIVE].map(Some);
        let answer = match command.opcode {
            _ if authentication.contains(&command.fctype()) => {
                self.authenticate(key, qid, command, data_len, data, now_ns)
            }
            _ if command.fctype() == Some(fabrics::DISCONNECT) => {
                self.disconnect_queue(key, qid, queue.trusted, command)
            }
            // Properties and Connect have no business on an I/O queue here.
            fabrics::OPCODE => fail(command, Status::INVALID_OPCODE.dnr()),
            _ if !queue.trusted => fail(command, Status::AUTHENTICATION_REQUIRED.dnr()),
            nvm::RESERVATION_REGISTER
            | nvm::RESERVATION_ACQUIRE
            | nvm::RESERVATION_RELEASE
            | nvm::RESERVATION_REPORT => self.reservation(key, command, data_len, data),
            _ => fail(command, Status::INVALID_OPCODE.dnr()),
        };
        self.note(key, qid, command, &answer);
        answer
    }

    /// Disconnect (Base 2.1, 6.4): the queue's number is free at once. Whoever has the connection
    /// answers when all earlier commands are done, takes no later ones, and closes it.
    fn disconnect_queue(
        &mut self,
        key: ControllerKey,
        qid: u16,
        trusted: bool,
        command: &Command,
    ) -> Answer {
        if !trusted {
            return fail(command, Status::AUTHENTICATION_REQUIRED.dnr());
        }
        // Record format 0 is the only one.
        if command.cdw10 & 0xffff != 0 {
            return fail(command, Status::CONNECT_INCOMPATIBLE_FORMAT.dnr());
        }
        self.queue_closed(key, qid);
        reply(command, Status::SUCCESS, 0, Vec::new())
    }

    /// Failures go to the error log.
    fn note(&mut self, key: ControllerKey, qid: u16, command: &Command, answer: &Answer) {
        let Answer::Reply(Reply { completion, .. }) = answer else { return };
        let controller = self.controllers.get_mut(&key);
        if let Some(controller) = controller.filter(|_| !completion.status.is_ok()) {
            controller.note_error(qid, command, completion.status);
        }
    }

    fn fabrics(
        &mut self,
        key: ControllerKey,
        command: &Command,
        fctype: u8,
        trusted: bool,
        now_ns: u64,
    ) -> Answer {
        let completion = match fctype {
            fabrics::PROPERTY_GET | fabrics::PROPERTY_SET if !trusted => {
                return fail(command, Status::AUTHENTICATION_REQUIRED.dnr());
            }
            fabrics::PROPERTY_GET => self.property_get(key, command),
            fabrics::PROPERTY_SET => self.property_set(key, command, now_ns),
            // The queue is connected.
            fabrics::CONNECT => return fail(command, Status::COMMAND_SEQUENCE_ERROR.dnr()),
            // The admin queue ends with its connection.
            fabrics::DISCONNECT => {
                return fail(command, Status::DISCONNECT_INVALID_QUEUE_TYPE.dnr());
            }
            _ => return fail(command, Status::INVALID_OPCODE.dnr()),
        };
        Answer::Reply(Reply { completion, data: Vec::new() })
    }

    fn admin_command(
        &mut self,
        key: ControllerKey,
        slot: SlotId,
        command: &Command,
        data_len: u32,
    ) -> Answer {
        let controller = self.own(key);
        if command.fuse != Fuse::None {
            return fail(command, Status::INVALID_FIELD.dnr());
        }
        if !controller.is_ready() && command.opcode != admin::KEEP_ALIVE {
            return fail(command, Status::COMMAND_SEQUENCE_ERROR.dnr());
        }
        let discovery = controller.discovery;
        match command.opcode {
            admin::IDENTIFY => self.identify(key, command, data_len),
            admin::GET_LOG_PAGE => self.get_log_page(key, command, data_len),
            admin::GET_FEATURES => self.get_features(key, command, data_len),
            admin::SET_FEATURES => self.set_features(key, command),
            admin::ASYNC_EVENT_REQUEST => self.hold_event_request(key, slot, command),
            admin::KEEP_ALIVE => reply(command, Status::SUCCESS, 0, Vec::new()),
            admin::ABORT if !discovery => self.abort(key, command),
            _ => fail(command, Status::INVALID_OPCODE.dnr()),
        }
    }

    fn hold_event_request(
        &mut self,
        key: ControllerKey,
        slot: SlotId,
        command: &Command,
    ) -> Answer {
        if !self.own(key).events.hold(Request { slot, cid: command.cid }) {
            return fail(command, Status::ASYNC_EVENT_LIMIT_EXCEEDED.dnr());
        }
        self.answer_events(key);
        Answer::Hold
    }

    /// Abort: only held event requests can be; all else is done before an Abort is looked at, or in
    /// the engine's hands. Dword 0 bit 0: not aborted.
    fn abort(&mut self, key: ControllerKey, command: &Command) -> Answer {
        let (sqid, cid) = (command.cdw10 as u16, (command.cdw10 >> 16) as u16);
        let controller = self.own(key);
        if sqid != 0 && !controller.queues.contains_key(&sqid) {
            return fail(command, Status::INVALID_FIELD.dnr());
        }
        let aborted = if sqid == 0 { controller.events.take_request(cid) } else { None };
        if let Some(request) = aborted {
            let completion = completion(request.cid, Status::ABORTED_BY_REQUEST, 0);
            let reply = Reply { completion, data: Vec::new() };
            let slot = request.slot;
            self.actions.push_back(super::Action::Respond { controller: key, slot, reply });
        }
        reply(command, Status::SUCCESS, u32::from(aborted.is_none()), Vec::new())
    }

    /// Whether a namespace field says "none" or "all".
    pub(super) fn is_global(nsid: u32) -> bool {
        matches!(nsid, 0 | NSID_ALL)
    }
}

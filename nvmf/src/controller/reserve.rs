//! The four reservation commands (Base 2.1, 7.5 to 7.8), forwarded by I/O queues.
//!
//! The table changes here, then every reactor gets its new view, the saved copy is written, and
//! only then the command is answered: a preempted host cannot write after the preempting one was
//! told.

use super::{Answer, ControllerKey, Service};
use crate::reservation::{Kind, Notice, Refusal, Register, RegisterAction};
use crate::wire::opcode::nvm;
use crate::wire::{Command, Status};

/// What a command did.
struct Effect {
    notices: Vec<Notice>,
    /// Commands in flight end before the answer.
    drain: bool,
}

impl From<Vec<Notice>> for Effect {
    fn from(notices: Vec<Notice>) -> Effect {
        Effect { notices, drain: false }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Status {
        match refusal {
            Refusal::Conflict => Status::RESERVATION_CONFLICT.dnr(),
            Refusal::Invalid => Status::INVALID_FIELD.dnr(),
            // There is no status for "too many hosts"; it may pass, so a retry is allowed.
            Refusal::Full => Status::INTERNAL_ERROR,
        }
    }
}

fn key_at(data: &[u8], at: usize) -> Result<u64, Status> {
    let bytes = data.get(at..at + 8).ok_or(Status::DATA_SGL_LENGTH_INVALID.dnr())?;
    Ok(u64::from_le_bytes(bytes.try_into().expect("8 bytes")))
}

impl Service {
    /// A reservation command.
    pub(super) fn reservation(
        &mut self,
        key: ControllerKey,
        command: &Command,
        data_len: u32,
        data: &[u8],
    ) -> Answer {
        if let Err(status) = self.reservation_allowed(key, command) {
            return super::admin::fail(command, status);
        }
        if command.opcode == nvm::RESERVATION_REPORT {
            return match self.report(key, command, data_len) {
                Ok(data) => super::admin::reply(command, Status::SUCCESS, 0, data),
                Err(status) => super::admin::fail(command, status),
            };
        }
        match self.change_reservation(key, command, data) {
            Ok(effect) => {
                self.tell(key, command.nsid, &effect.notices);
                self.apply_changes(effect.drain);
                Answer::ReplyAfterActions(super::admin::plain(command, Status::SUCCESS, 0))
            }
            Err(status) => super::admin::fail(command, status),
        }
    }

    /// The namespace exists, its path is open, the host has an identifier.
    fn reservation_allowed(&self, key: ControllerKey, command: &Command) -> Result<(), Status> {
        let controller = &self.controllers[&key];
        let subsystem = self.subsystem_of(key).ok_or(Status::INTERNAL_ERROR)?;
        let found = subsystem.namespace(command.nsid);
        let namespace = found.ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.dnr())?;
        let listener = subsystem.listener(controller.port).ok_or(Status::INTERNAL_ERROR)?;
        crate::io::path_status(listener.state(namespace.ana_group))?;
        if controller.host_id == [0; 16] {
            return Err(Status::HOST_IDENTIFIER_NOT_INITIALIZED.dnr());
        }
        Ok(())
    }

    fn change_reservation(
        &mut self,
        key: ControllerKey,
        command: &Command,
        data: &[u8],
    ) -> Result<Effect, Status> {
        let (id, host) = {
            let controller = &self.controllers[&key];
            (controller.subsystem, controller.host_id)
        };
        let action = command.cdw10 & 7;
        let ignore_key = command.cdw10 & 1 << 3 != 0;
        let kind = Kind::from_code((command.cdw10 >> 8) as u8);
        let current = key_at(data, 0)?;
        let invalid = Status::INVALID_FIELD.dnr();
        let namespace = self.target.namespace_mut(id, command.nsid).expect("just found");
        let reservations = &mut namespace.reservations;
        let persisted = reservations.persist();
        let effect: Effect = match command.opcode {
            nvm::RESERVATION_REGISTER => {
                let what = register(command, ignore_key, current, key_at(data, 8)?)?;
                reservations.register(host, what)?.into()
            }
            // Without IEKEY these two would not know whom to believe.
            _ if ignore_key => return Err(invalid),
            nvm::RESERVATION_ACQUIRE => {
                let (kind, victims) = (kind.ok_or(invalid)?, key_at(data, 8)?);
                match action {
                    0 => {
                        reservations.acquire(host, current, kind)?;
                        Vec::new().into()
                    }
                    1 | 2 => {
                        let notices = reservations.preempt(host, current, victims, kind)?;
                        Effect { notices, drain: action == 2 }
                    }
                    _ => return Err(invalid),
                }
            }
            _ => match action {
                0 => reservations.release(host, current, kind.ok_or(invalid)?)?.into(),
                1 => reservations.clear(host, current)?.into(),
                _ => return Err(invalid),
            },
        };
        let persist = persisted || reservations.persist();
        self.target.reservations_changed(id, command.nsid, persist);
        Ok(effect)
    }

    /// Puts notices in the log of every controller of the hosts concerned, on this subsystem.
    fn tell(&mut self, key: ControllerKey, nsid: u32, notices: &[Notice]) {
        let id = self.controllers[&key].subsystem;
        for notice in notices {
            let its = self
                .controllers
                .iter_mut()
                .filter(|(_, c)| c.subsystem == id && c.host_id == notice.host);
            let mut told = Vec::new();
            for (key, controller) in its {
                if !controller.features.notice_masked(nsid, notice.kind) {
                    controller.events.reservation_notice(notice.kind, nsid);
                    told.push(*key);
                }
            }
            told.into_iter().for_each(|key| self.answer_events(key));
        }
    }

    /// Reservation Report; only the extended form has room for 128-bit host identifiers.
    fn report(
        &self,
        key: ControllerKey,
        command: &Command,
        data_len: u32,
    ) -> Result<Vec<u8>, Status> {
        let len = (u64::from(command.cdw10) + 1) * 4;
        if len > u64::from(self.limits.data_bytes_max) {
            return Err(Status::INVALID_FIELD.dnr());
        }
        if len > u64::from(data_len) {
            return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
        }
        if command.cdw11 & 1 == 0 {
            return Err(Status::HOST_IDENTIFIER_INCONSISTENT_FORMAT.dnr());
        }
        let subsystem = self.subsystem_of(key).ok_or(Status::INTERNAL_ERROR)?;
        let namespace = subsystem.namespace(command.nsid).ok_or(Status::INTERNAL_ERROR)?;
        let mut data = namespace.reservations.report();
        data.resize(len as usize, 0);
        Ok(data)
    }
}

/// RREGA, IEKEY and CPTPL of Reservation Register.
fn register(
    command: &Command,
    ignore_key: bool,
    current: u64,
    new: u64,
) -> Result<Register, Status> {
    let invalid = Status::INVALID_FIELD.dnr();
    let action = match command.cdw10 & 7 {
        0 => RegisterAction::Register,
        1 => RegisterAction::Unregister,
        2 => RegisterAction::Replace,
        _ => return Err(invalid),
    };
    let persist = match command.cdw10 >> 30 {
        0 => None,
        2 => Some(false),
        3 => Some(true),
        _ => return Err(invalid),
    };
    Ok(Register { action, ignore_key, persist, current, new })
}

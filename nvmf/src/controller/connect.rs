//! Connect: which controller a new connection belongs to (Base 2.1, 6.3).

use super::admin::completion;
use super::events::Events;
use super::features::{Features, round_kato};
use super::one::{Controller, Queue};
use super::{Connected, ControllerKey, Limits, Origin, Service};
use crate::reservation::HostId;
use crate::subsystem::{Nqn, Subsystem, SubsystemId};
use crate::wire::{Command, Completion, Status};

/// Bytes of Connect data.
pub const CONNECT_DATA_BYTES: usize = 1024;
/// CNTLID that asks for any controller (dynamic model).
const CNTLID_DYNAMIC: u16 = 0xffff;
/// CNTLID that asks for any free controller (static model).
const CNTLID_ANY: u16 = 0xfffe;
/// Queue head of a Connect's completion that says that flow control is off.
const NO_FLOW_CONTROL: u16 = 0xffff;
/// AUTHREQ in the response: the queue must authenticate (ATR).
const AUTHENTICATION_REQUIRED: u32 = 1 << 17;

// Offsets of fields a refusal points at.
const AT_CNTLID: u32 = 16;
const AT_SUBNQN: u32 = 256;
const AT_HOSTNQN: u32 = 512;
const AT_QID: u32 = 42;
const AT_SQSIZE: u32 = 44;

/// Why a Connect was refused: status and dword 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Refused(Status, u32);

/// Connect Invalid Parameters, pointing at a field of the data.
fn bad_data(at: u32) -> Refused {
    Refused(Status::CONNECT_INVALID_PARAMETERS.dnr(), at | 1 << 16)
}

/// Connect Invalid Parameters, pointing at a field of the command.
fn bad_command(at: u32) -> Refused {
    Refused(Status::CONNECT_INVALID_PARAMETERS.dnr(), at)
}

impl From<Status> for Refused {
    fn from(status: Status) -> Refused {
        Refused(status, 0)
    }
}

/// A Connect, decoded.
struct Connect {
    qid: u16,
    entries: u16,
    flow_control: bool,
    kato_ms: u32,
    host_id: HostId,
    cntlid: u16,
    subsystem: Nqn,
    host: Nqn,
}

impl Connect {
    fn decode(command: &Command, data: &[u8], limits: &Limits) -> Result<Connect, Refused> {
        if command.cdw10 & 0xffff != 0 {
            return Err(Status::CONNECT_INCOMPATIBLE_FORMAT.dnr().into());
        }
        if data.len() < CONNECT_DATA_BYTES {
            return Err(Status::DATA_SGL_LENGTH_INVALID.dnr().into());
        }
        let qid = (command.cdw10 >> 16) as u16;
        let entries_max =
            if qid == 0 { limits.admin_entries_max } else { limits.queue_entries_max };
        let sqsize = command.cdw11 as u16;
        if sqsize == 0 || sqsize >= entries_max {
            return Err(bad_command(AT_SQSIZE));
        }
        Ok(Connect {
            qid,
            entries: sqsize + 1,
            flow_control: command.cdw11 & 1 << 18 == 0,
            kato_ms: command.cdw12,
            host_id: data[..16].try_into().expect("16 bytes"),
            cntlid: u16::from_le_bytes([data[16], data[17]]),
            subsystem: Nqn::from_field(&data[256..512]).ok_or(bad_data(AT_SUBNQN))?,
            host: Nqn::of_host(&data[512..768]).ok_or(bad_data(AT_HOSTNQN))?,
        })
    }
}

impl Service {
    /// A Connect command on a fresh connection. An error is the completion to send before the
    /// connection is closed.
    pub fn connect(
        &mut self,
        origin: &Origin,
        command: &Command,
        data: &[u8],
        now_ns: u64,
    ) -> Result<Connected, Completion> {
        self.try_connect(origin, command, data, now_ns)
            .map_err(|Refused(status, result)| completion(command.cid, status, result))
    }

    fn try_connect(
        &mut self,
        origin: &Origin,
        command: &Command,
        data: &[u8],
        now_ns: u64,
    ) -> Result<Connected, Refused> {
        let connect = Connect::decode(command, data, &self.limits)?;
        let (id, subsystem) =
            self.target.find(connect.subsystem.as_str()).ok_or(bad_data(AT_SUBNQN))?;
        let authenticate = admission(subsystem, origin, &connect)?;
        let (controller, cntlid) = match connect.qid {
            0 => self.connect_admin(id, origin, &connect, !authenticate, now_ns)?,
            _ => self.connect_io(id, origin, &connect, !authenticate, now_ns)?,
        };
        let required = if authenticate { AUTHENTICATION_REQUIRED } else { 0 };
        let result = u32::from(cntlid) | required;
        Ok(Connected {
            controller,
            subsystem: id,
            qid: connect.qid,
            entries: connect.entries,
            flow_control: connect.flow_control,
            authenticate,
            // A host that turned flow control off is told here that it is off.
            completion: Completion {
                sq_head: if connect.flow_control { 0 } else { NO_FLOW_CONTROL },
                ..completion(command.cid, Status::SUCCESS, result)
            },
        })
    }

    fn connect_admin(
        &mut self,
        id: SubsystemId,
        origin: &Origin,
        connect: &Connect,
        trusted: bool,
        now_ns: u64,
    ) -> Result<(ControllerKey, u16), Refused> {
        if self.controllers.len() >= self.limits.controllers_max {
            return Err(Status::CONNECT_CONTROLLER_BUSY.into());
        }
        let cntlid = self.free_cntlid(id, connect.cntlid)?;
        let subsystem = self.target.get(id).expect("just found");
        let discovery = subsystem.is_discovery();
        let key = ControllerKey(self.next_key);
        self.next_key += 1;
        let controller = Controller {
            subsystem: id,
            cntlid,
            host: connect.host.clone(),
            host_id: connect.host_id,
            port: origin.port,
            local: origin.local,
            discovery,
            trusted,
            untrusted_ns: now_ns,
            authentications: Default::default(),
            cc: 0,
            csts: 0,
            wait: None,
            connections: 0,
            kato_ms: round_kato(connect.kato_ms),
            heard_ns: now_ns,
            disabled_ns: now_ns,
            queues: Default::default(),
            features: Features::new(self.limits.io_queues_max),
            events: Events::new(discovery, subsystem.spec().ana_reporting),
            errors: Default::default(),
            error_count: 0,
            busy_ns: 0,
        };
        self.controllers.insert(key, controller);
        Ok((key, cntlid))
    }

    /// The number a new controller gets: the lowest free one, or the one asked for.
    fn free_cntlid(&self, id: SubsystemId, asked: u16) -> Result<u16, Refused> {
        let spec = self.target.get(id).expect("just found").spec();
        let range = spec.min_cntlid..=spec.max_cntlid;
        let taken: std::collections::BTreeSet<u16> =
            self.controllers.values().filter(|c| c.subsystem == id).map(|c| c.cntlid).collect();
        match asked {
            CNTLID_DYNAMIC | CNTLID_ANY => {
                let mut all = range;
                let free = all.find(|cntlid| !taken.contains(cntlid));
                free.ok_or(Status::CONNECT_CONTROLLER_BUSY.into())
            }
            _ if !range.contains(&asked) => Err(bad_data(AT_CNTLID)),
            _ if taken.contains(&asked) => Err(Status::CONNECT_CONTROLLER_BUSY.into()),
            _ => Ok(asked),
        }
    }

    fn connect_io(
        &mut self,
        id: SubsystemId,
        origin: &Origin,
        connect: &Connect,
        trusted: bool,
        now_ns: u64,
    ) -> Result<(ControllerKey, u16), Refused> {
        let same = |c: &Controller| c.subsystem == id && c.cntlid == connect.cntlid;
        let found = self.controllers.iter_mut().find(|(_, c)| same(c));
        let (key, controller) = found.ok_or(bad_data(AT_CNTLID))?;
        if controller.host != connect.host || controller.host_id != connect.host_id {
            return Err(bad_data(AT_HOSTNQN));
        }
        if controller.port != origin.port {
            return Err(bad_data(AT_CNTLID));
        }
        let granted = controller.features.io_queues();
        if controller.discovery || connect.qid > granted {
            return Err(bad_command(AT_QID));
        }
        if !controller.is_ready() || !controller.trusted {
            return Err(bad_command(AT_QID));
        }
        if controller.queues.contains_key(&connect.qid) {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.dnr().into());
        }
        let queue = Queue { entries: connect.entries, trusted, untrusted_ns: now_ns };
        controller.queues.insert(connect.qid, queue);
        controller.connections += 1;
        controller.heard_ns = now_ns;
        Ok((*key, controller.cntlid))
    }
}

/// Whether the host may use the subsystem on this connection; `true`: it must authenticate.
fn admission(subsystem: &Subsystem, origin: &Origin, connect: &Connect) -> Result<bool, Refused> {
    let refused = || Refused(Status::CONNECT_INVALID_HOST.dnr(), 0);
    let listener = subsystem.listener(origin.port);
    // The discovery subsystem answers on every port.
    if listener.is_none() && !subsystem.is_discovery() {
        return Err(refused());
    }
    if !subsystem.allows(&connect.host) {
        return Err(refused());
    }
    match &origin.tls {
        Some(proved) if proved.host != connect.host || proved.subsystem != connect.subsystem => {
            return Err(refused());
        }
        None if listener.is_some_and(|l| l.secure) => return Err(refused()),
        _ => {}
    }
    let keys = subsystem.host_keys(&connect.host);
    Ok(keys.is_some_and(|k| k.dhchap.is_some()))
}

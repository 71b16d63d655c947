//! Authentication Send and Receive (Base 2.1, 6.1 and 6.2): carry the messages of `auth` and open
//! the queue when that is done.
//!
//! A queue that has to authenticate takes nothing else until then, and not for longer than
//! [`AUTHENTICATION_NS_MAX`]. A host with keys may authenticate again at any time; if that fails
//! its queue is shut again, and ends at the same deadline.

use super::admin::completion;
use super::one::SECOND_NS;
use super::{Action, Answer, ControllerKey, Reply, Service};
use crate::auth::{AuthKey, Authentication, Credentials, Group, HashId, Stage, Work, Worked};
use crate::subsystem::{HostKeys, Nqn, Subsystem};
use crate::wire::opcode::fabrics;
use crate::wire::{Command, Status};

/// How long a queue may go without having authenticated.
pub(super) const AUTHENTICATION_NS_MAX: u64 = 30 * SECOND_NS;
/// SECP E9h, SPSP1 and SPSP0 01h, in dword 10: the authentication protocol of NVMe.
const PROTOCOL: u32 = 0xe901_0100;
/// Groups in the order a target picks them: the smallest that is good enough for now first.
const GROUPS: [Group; 6] = [
    Group::Ffdhe2048,
    Group::Ffdhe3072,
    Group::Ffdhe4096,
    Group::Ffdhe6144,
    Group::Ffdhe8192,
    Group::Null,
];

/// Randomness for challenges and exponents.
pub type RandomSource = Box<dyn FnMut(&mut [u8]) + Send>;

/// A computation that an Authentication Send waits for. Costs milliseconds; the owner does it where
/// nobody else waits, and not all that one peer asks for before the others'.
pub struct AuthWork {
    controller: ControllerKey,
    qid: u16,
    number: u64,
    cid: u16,
    work: Work,
}

impl AuthWork {
    /// Computes.
    pub fn run(self) -> AuthWorked {
        let AuthWork { controller, qid, number, cid, work } = self;
        AuthWorked { controller, qid, number, cid, worked: Some(work.run()) }
    }

    /// Not computed: there is too much of it. The command fails, and so does the authentication.
    pub fn refuse(self) -> AuthWorked {
        let AuthWork { controller, qid, number, cid, .. } = self;
        AuthWorked { controller, qid, number, cid, worked: None }
    }
}

/// What has become of an [`AuthWork`].
pub struct AuthWorked {
    controller: ControllerKey,
    qid: u16,
    number: u64,
    cid: u16,
    worked: Option<Worked>,
}

impl AuthWorked {
    /// As in [`Answer::Later`].
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The queue it is of.
    pub fn queue(&self) -> (ControllerKey, u16) {
        (self.controller, self.qid)
    }
}

/// An authentication and the number of the work it waits for.
pub(super) struct Proof {
    authentication: Authentication,
    work: u64,
}

/// What the target knows of the host; `None`: it need not, and cannot, authenticate.
pub(super) fn credentials(subsystem: &Subsystem, host: &Nqn) -> Option<Credentials> {
    let HostKeys { dhchap, dhchap_controller, .. } = subsystem.host_keys(host)?;
    // Management has checked both texts.
    let parse = |text: &str| AuthKey::parse(text).ok();
    let host_key = parse(&dhchap.as_ref()?.text)?;
    let controller_key = dhchap_controller.as_ref().and_then(|secret| parse(&secret.text));
    let (hashes, groups) = (HashId::ALL.to_vec(), GROUPS.to_vec());
    Some(Credentials { host_key, controller_key, hashes, groups })
}

impl Service {
    /// Where challenges get their randomness from. Without one no authentication succeeds.
    pub fn set_random(&mut self, random: RandomSource) {
        self.random = Some(random);
    }

    /// Whether the queue (0: admin) may do more than authenticate.
    pub fn is_trusted(&self, key: ControllerKey, qid: u16) -> bool {
        let Some(controller) = self.controllers.get(&key) else { return false };
        match qid {
            0 => controller.trusted,
            _ => controller.queues.get(&qid).is_some_and(|queue| queue.trusted),
        }
    }

    /// An Authentication Send or Receive of a connected queue (0: admin). After it, look at
    /// [`Service::is_trusted`], and for [`Answer::Later`] at [`Service::next_work`].
    pub fn authenticate(
        &mut self,
        key: ControllerKey,
        qid: u16,
        command: &Command,
        data_len: u32,
        data: &[u8],
        now_ns: u64,
    ) -> Answer {
        self.heard(key, now_ns);
        let known = self.controllers.get(&key);
        if !known.is_some_and(|c| qid == 0 || c.queues.contains_key(&qid)) {
            return super::admin::fail(command, Status::ABORTED_SQ_DELETION);
        }
        let works = self.work.len();
        let result = match command.cdw10 {
            PROTOCOL if command.fctype() == Some(fabrics::AUTHENTICATION_SEND) => {
                self.authentication_send(key, qid, command, data, now_ns)
            }
            PROTOCOL => self.authentication_receive(key, qid, command, data_len),
            _ => Err(Status::INVALID_FIELD.dnr()),
        };
        match result {
            Ok(_) if self.work.len() > works => Answer::Later(self.works),
            Ok(data) => super::admin::reply(command, Status::SUCCESS, 0, data),
            Err(status) => super::admin::fail(command, status),
        }
    }

    fn authentication_send(
        &mut self,
        key: ControllerKey,
        qid: u16,
        command: &Command,
        data: &[u8],
        now_ns: u64,
    ) -> Result<Vec<u8>, Status> {
        // TL is the length of the message.
        let message = data.get(..command.cdw11 as usize);
        let message = message.ok_or(Status::DATA_SGL_LENGTH_INVALID.dnr())?;
        let random = self.random.as_mut().ok_or(Status::INTERNAL_ERROR)?;
        let controller = self.controllers.get_mut(&key).expect("the caller found it");
        let under_way = controller.authentications.get(&qid).map(|p| p.authentication.stage());
        // A failed one stays: the queue has had its chance. A done one may be followed by another.
        if matches!(under_way, None | Some(Stage::Done)) {
            let subsystem = self.target.get(controller.subsystem);
            let found = subsystem.and_then(|s| Some((s, credentials(s, &controller.host)?)));
            let (subsystem, credentials) = found.ok_or(Status::INVALID_FIELD.dnr())?;
            let (host, subsystem) = (controller.host.as_str(), subsystem.nqn().as_str());
            let fresh = Authentication::new(host, subsystem, credentials);
            controller.authentications.insert(qid, Proof { authentication: fresh, work: 0 });
        }
        let proof = controller.authentications.get_mut(&qid).expect("just made");
        if proof.authentication.stage() != Stage::Host {
            return Err(Status::COMMAND_SEQUENCE_ERROR.dnr());
        }
        if let Some(work) = proof.authentication.send(message, random) {
            self.works += 1;
            proof.work = self.works;
            let (number, cid) = (self.works, command.cid);
            self.work.push_back(AuthWork { controller: key, qid, number, cid, work });
        }
        self.judge(key, qid, now_ns);
        Ok(Vec::new())
    }

    /// The next computation; drain it after every [`Answer::Later`].
    pub fn next_work(&mut self) -> Option<AuthWork> {
        self.work.pop_front()
    }

    /// A computation is done: the answer to its command. `None`: the queue is gone. After it, look
    /// at [`Service::is_trusted`].
    pub fn computed(&mut self, done: AuthWorked, now_ns: u64) -> Option<Reply> {
        let AuthWorked { controller: key, qid, number, cid, worked } = done;
        let controller = self.controllers.get_mut(&key)?;
        let proof = controller.authentications.get_mut(&qid)?;
        if proof.work != number {
            return None;
        }
        let status = match worked {
            Some(worked) => {
                proof.authentication.resume(worked);
                Status::SUCCESS
            }
            None => {
                proof.authentication.give_up();
                Status::INTERNAL_ERROR
            }
        };
        self.judge(key, qid, now_ns);
        Some(Reply { completion: completion(cid, status, 0), data: Vec::new() })
    }

    fn authentication_receive(
        &mut self,
        key: ControllerKey,
        qid: u16,
        command: &Command,
        data_len: u32,
    ) -> Result<Vec<u8>, Status> {
        // AL is the room there is.
        let room = command.cdw11.min(data_len);
        let controller = self.controllers.get_mut(&key).expect("the caller found it");
        let now_ns = controller.heard_ns;
        let proof = controller.authentications.get_mut(&qid);
        let authentication = &mut proof.ok_or(Status::COMMAND_SEQUENCE_ERROR.dnr())?.authentication;
        let due = authentication.due().ok_or(Status::COMMAND_SEQUENCE_ERROR.dnr())?;
        if command.cdw11 > data_len || due > room as usize {
            return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
        }
        let mut message = authentication.receive().expect("a message is due");
        message.resize(room as usize, 0);
        self.judge(key, qid, now_ns);
        Ok(message)
    }

    /// Opens or shuts the queue by what has become of its authentication.
    fn judge(&mut self, key: ControllerKey, qid: u16, now_ns: u64) {
        let controller = self.controllers.get_mut(&key).expect("the caller found it");
        let stage = controller.authentications.get(&qid).map(|p| p.authentication.stage());
        let trusted = match stage {
            Some(Stage::Done) => true,
            Some(Stage::Failed) => false,
            Some(Stage::Host | Stage::Target | Stage::Busy) | None => return,
        };
        let (flag, since) = match qid {
            0 => (&mut controller.trusted, &mut controller.untrusted_ns),
            _ => {
                let queue = controller.queues.get_mut(&qid).expect("the caller found it");
                (&mut queue.trusted, &mut queue.untrusted_ns)
            }
        };
        if *flag && !trusted {
            *since = now_ns;
        }
        *flag = trusted;
    }

    /// Ends queues that had to authenticate and have not.
    pub(super) fn end_untrusted(&mut self, now_ns: u64) {
        let late = |since: u64| now_ns.saturating_sub(since) > AUTHENTICATION_NS_MAX;
        let mut controllers = Vec::new();
        for (key, controller) in &mut self.controllers {
            if !controller.trusted && late(controller.untrusted_ns) {
                controllers.push(*key);
                continue;
            }
            let queues = controller.queues.iter();
            let lost = queues.filter(|(_, q)| !q.trusted && late(q.untrusted_ns));
            for qid in lost.map(|(qid, _)| *qid).collect::<Vec<u16>>() {
                controller.forget_queue(qid);
                self.actions.push_back(Action::CloseQueue { controller: *key, qid });
            }
        }
        for key in controllers {
            self.disconnect(key, "authentication failed or did not come");
        }
    }
}

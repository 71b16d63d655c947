//! A service with hosts, and I/O queues on a disk in memory.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use lamina_bdev::{Status as EngineStatus, Uuid};
use lamina_nvmf::SlotId;
use lamina_nvmf::controller::{
    Action, Answer, Connected, ControllerKey, Limits, Origin, Reply, Service,
};
use lamina_nvmf::io::Work;
use lamina_nvmf::io::{Entry, GateUse, IoQueue, Memory, Pass, RangeGate, Response, Step, WorkOp};
use lamina_nvmf::subsystem::{
    Address, DeviceKey, NamespaceSpec, Nqn, NsTable, PortId, SubsystemSpec, Target,
};
use lamina_nvmf::wire::opcode::{admin, fabrics};
use lamina_nvmf::wire::{Command, Completion, Status};

pub const SUBSYSTEM: &str = "nqn.2026-01.io.lamina:cnode1";
pub const HOST: &str = "nqn.2026-01.io.lamina:host1";
pub const OTHER_HOST: &str = "nqn.2026-01.io.lamina:host2";
pub const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// Bytes of the first namespace's disk.
pub const DISK_BYTES: u64 = 4 << 20;
pub const SECOND: u64 = 1_000_000_000;
/// CC that enables a controller.
pub const ENABLE: u32 = 0x0046_0001;

pub fn nqn(text: &str) -> Nqn {
    Nqn::new(text).expect("a good name")
}

pub fn address(port: u16) -> Address {
    Address::parse(None, "127.0.0.1", &port.to_string()).expect("an address")
}

pub fn uuid(number: u8) -> Uuid {
    Uuid([number; 16])
}

/// A disk as namespace, with everything derived.
pub fn disk(number: u8, bytes: u64) -> NamespaceSpec {
    let device = DeviceKey(u64::from(number));
    NamespaceSpec::new(device, &format!("disk{number}"), uuid(number), bytes)
}

/// Everything the service thread has, with one subsystem of one namespace on two ports.
pub struct Rig {
    pub service: Service,
    pub now: u64,
    pub port: PortId,
    pub second_port: PortId,
    pub actions: Vec<Action>,
    /// Connections of I/O queues, by controller.
    pub io_connections: Vec<ControllerKey>,
    next_slot: u16,
}

impl Rig {
    pub fn new() -> Rig {
        Rig::with(|spec| spec)
    }

    /// As `new`, with a subsystem made to measure.
    pub fn with(change: impl FnOnce(SubsystemSpec) -> SubsystemSpec) -> Rig {
        let mut target = Target::new();
        let mut spec = SubsystemSpec::new(nqn(SUBSYSTEM));
        spec.allow_any_host = true;
        spec.ana_reporting = true;
        target.add_subsystem(change(spec)).expect("a subsystem");
        target.add_namespace(SUBSYSTEM, disk(1, DISK_BYTES)).expect("a namespace");
        let port = target.add_listener(SUBSYSTEM, &address(4420), false).expect("a port");
        let second = target.add_listener(SUBSYSTEM, &address(4421), false).expect("a port");
        let mut service = Service::new(target, Limits::default(), SECOND);
        service.edit(|_| ());
        Rig {
            service,
            now: SECOND,
            port,
            second_port: second,
            actions: Vec::new(),
            io_connections: Vec::new(),
            next_slot: 0,
        }
    }

    pub fn origin(&self) -> Origin {
        Origin { port: self.port, local: IpAddr::V4(Ipv4Addr::LOCALHOST), tls: None }
    }

    /// A management call.
    pub fn edit<R>(&mut self, change: impl FnOnce(&mut Target) -> R) -> R {
        let result = self.service.edit(change);
        self.drain();
        result
    }

    fn drain(&mut self) {
        while let Some(action) = self.service.next_action() {
            self.actions.push(action);
        }
    }

    pub fn take_actions(&mut self) -> Vec<Action> {
        self.drain();
        std::mem::take(&mut self.actions)
    }

    /// Sends a Connect.
    pub fn connect(&mut self, connect: &ConnectWith) -> Result<Connected, Completion> {
        let mut origin = self.origin();
        if let Some(port) = connect.port {
            origin.port = port;
        }
        let result = self.service.connect(&origin, &connect.command(), &connect.data(), self.now);
        self.drain();
        let io = result.iter().filter(|connected| connected.qid != 0);
        self.io_connections.extend(io.map(|connected| connected.controller));
        result
    }

    /// The oldest I/O connection is gone, and nothing works for it any more.
    pub fn one_leaves(&mut self) {
        let key = self.io_connections.remove(0);
        self.service.queue_left(key, self.now);
        self.drain();
    }

    /// The same of all.
    pub fn all_leave(&mut self) {
        while !self.io_connections.is_empty() {
            self.one_leaves();
        }
    }

    /// Connects and enables a host's controller.
    pub fn enabled(&mut self, connect: &ConnectWith) -> ControllerKey {
        let connected = self.connect(connect).expect("connects");
        let done = self.property_set(connected.controller, 0x14, ENABLE);
        assert!(done.status.is_ok(), "{done:?}");
        connected.controller
    }

    /// The usual host's controller, enabled.
    pub fn host(&mut self) -> ControllerKey {
        self.enabled(&ConnectWith::default())
    }

    /// Any command of the admin queue.
    pub fn answer(&mut self, key: ControllerKey, command: &Command) -> Answer {
        self.next_slot = self.next_slot.wrapping_add(1);
        let slot = SlotId(self.next_slot);
        let len = command.sgl.length;
        let answer = self.service.admin(key, slot, command, len, self.now);
        self.drain();
        answer
    }

    /// A command that must be answered at once.
    pub fn admin(&mut self, key: ControllerKey, command: &Command) -> Reply {
        match self.answer(key, command) {
            Answer::Reply(reply) | Answer::ReplyAfterActions(reply) => reply,
            Answer::Hold | Answer::Later(_) => panic!("held: {command:?}"),
        }
    }

    pub fn status(&mut self, key: ControllerKey, command: &Command) -> Status {
        self.admin(key, command).completion.status
    }

    /// The data of a command that must succeed.
    pub fn data(&mut self, key: ControllerKey, command: &Command) -> Vec<u8> {
        let reply = self.admin(key, command);
        assert!(reply.completion.status.is_ok(), "{command:?}: {:?}", reply.completion);
        reply.data
    }

    pub fn property_set(&mut self, key: ControllerKey, at: u32, value: u32) -> Completion {
        self.admin(key, &property_set(at, value)).completion
    }

    pub fn property(&mut self, key: ControllerKey, at: u32, size: u32) -> Completion {
        let attribute = if size == 8 { 1 } else { 0 };
        let nsid = u32::from(fabrics::PROPERTY_GET);
        let opcode = fabrics::OPCODE;
        self.admin(
            key,
            &Command { opcode, nsid, cdw10: attribute, cdw11: at, ..Command::default() },
        )
        .completion
    }

    /// A command forwarded by an I/O queue.
    pub fn forwarded(
        &mut self,
        key: ControllerKey,
        qid: u16,
        command: &Command,
        data: &[u8],
    ) -> Answer {
        let len = command.sgl.length;
        let answer = self.service.queue_command(key, qid, command, len, data, self.now);
        self.drain();
        answer
    }

    /// Controllers that ended, with the reasons.
    pub fn ended(&mut self) -> Vec<(ControllerKey, &'static str)> {
        let ends = |action| match action {
            Action::CloseController { controller, reason } => Some((controller, reason)),
            _ => None,
        };
        self.take_actions().into_iter().filter_map(ends).collect()
    }

    /// Held commands that were answered: dword 0 and status.
    pub fn responded(&mut self) -> Vec<(u32, Status)> {
        let answers = |action| match action {
            Action::Respond { reply, .. } => Some((reply.completion.dw0, reply.completion.status)),
            _ => None,
        };
        self.take_actions().into_iter().filter_map(answers).collect()
    }
}

pub fn property_set(at: u32, value: u32) -> Command {
    let (opcode, nsid) = (fabrics::OPCODE, u32::from(fabrics::PROPERTY_SET));
    Command { opcode, nsid, cdw11: at, cdw12: value, ..Command::default() }
}

/// An admin command with room for 4096 bytes.
pub fn admin_command(opcode: u8, nsid: u32, cdw10: u32, cdw11: u32) -> Command {
    let sgl = lamina_nvmf::wire::Sgl::transport(4096);
    Command { opcode, nsid, cdw10, cdw11, sgl, ..Command::default() }
}

pub fn identify(cns: u32, nsid: u32) -> Command {
    admin_command(admin::IDENTIFY, nsid, cns, 0)
}

/// Get Log Page of `len` bytes.
pub fn log(page: u32, len: u32, offset: u64) -> Command {
    let dwords = len / 4 - 1;
    let cdw10 = page | (dwords & 0xffff) << 16;
    let sgl = lamina_nvmf::wire::Sgl::transport(len);
    let command = admin_command(admin::GET_LOG_PAGE, 0, cdw10, dwords >> 16);
    Command { cdw12: offset as u32, cdw13: (offset >> 32) as u32, sgl, ..command }
}

pub fn u16_at(data: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(data[at..at + 2].try_into().expect("2 bytes"))
}

pub fn u32_at(data: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(data[at..at + 4].try_into().expect("4 bytes"))
}

pub fn u64_at(data: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(data[at..at + 8].try_into().expect("8 bytes"))
}

/// The fields of a Connect, all changeable.
#[derive(Clone)]
pub struct ConnectWith {
    pub recfmt: u16,
    pub qid: u16,
    pub sqsize: u16,
    pub cattr: u8,
    pub kato: u32,
    pub host_id: u8,
    pub cntlid: u16,
    pub subsystem: String,
    pub host: String,
    pub port: Option<PortId>,
    pub data_len: usize,
}

impl Default for ConnectWith {
    fn default() -> ConnectWith {
        ConnectWith {
            recfmt: 0,
            qid: 0,
            sqsize: 31,
            cattr: 0,
            kato: 15_000,
            host_id: 1,
            cntlid: 0xffff,
            subsystem: SUBSYSTEM.to_string(),
            host: HOST.to_string(),
            port: None,
            data_len: 1024,
        }
    }
}

impl ConnectWith {
    /// An I/O queue of the usual host.
    pub fn io(cntlid: u16, qid: u16) -> ConnectWith {
        ConnectWith { qid, cntlid, sqsize: 127, kato: 0, ..ConnectWith::default() }
    }

    pub fn other_host() -> ConnectWith {
        ConnectWith { host_id: 2, host: OTHER_HOST.to_string(), ..ConnectWith::default() }
    }

    pub fn discovery() -> ConnectWith {
        ConnectWith { subsystem: DISCOVERY.to_string(), ..ConnectWith::default() }
    }

    fn command(&self) -> Command {
        let (opcode, nsid) = (fabrics::OPCODE, u32::from(fabrics::CONNECT));
        let cdw10 = u32::from(self.recfmt) | u32::from(self.qid) << 16;
        let cdw11 = u32::from(self.sqsize) | u32::from(self.cattr) << 16;
        Command { opcode, nsid, cdw10, cdw11, cdw12: self.kato, ..Command::default() }
    }

    fn data(&self) -> Vec<u8> {
        let mut data = vec![0; 1024];
        data[..16].fill(self.host_id);
        data[16..18].copy_from_slice(&self.cntlid.to_le_bytes());
        data[256..256 + self.subsystem.len()].copy_from_slice(self.subsystem.as_bytes());
        data[512..512 + self.host.len()].copy_from_slice(self.host.as_bytes());
        data.truncate(self.data_len);
        data
    }
}

/// An I/O queue whose disk is memory.
pub struct Queue {
    pub queue: IoQueue<Vec<u8>>,
    pub table: Arc<NsTable>,
    pub disk: Vec<u8>,
    pub gate: RangeGate,
    /// What the next pieces of work end with; `Ok` when it is empty.
    pub failures: Vec<EngineStatus>,
    /// All work done, in order.
    pub log: Vec<Work>,
    holds: BTreeMap<u16, Pass>,
    sent: BTreeMap<u16, Vec<u8>>,
    next_slot: u16,
}

/// What became of a command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    pub status: Status,
    pub dw0: u32,
    pub data: Vec<u8>,
}

impl Queue {
    pub fn new(table: Arc<NsTable>) -> Queue {
        Queue {
            queue: IoQueue::new(128, 128 << 10),
            table,
            disk: vec![0; DISK_BYTES as usize],
            gate: RangeGate::new(),
            failures: Vec::new(),
            log: Vec::new(),
            holds: BTreeMap::new(),
            sent: BTreeMap::new(),
            next_slot: 0,
        }
    }

    /// A queue on the usual subsystem, as its usual host sees it.
    pub fn usual() -> Queue {
        let mut rig = Rig::new();
        let key = rig.host();
        Queue::new(rig.service.table(key))
    }

    /// Gives a command to the queue; its first step.
    pub fn start(&mut self, command: &Command, data: &[u8]) -> (SlotId, Step) {
        let slot = SlotId(self.next_slot);
        self.next_slot = (self.next_slot + 1) % 128;
        self.sent.insert(slot.0, data.to_vec());
        let len = command.sgl.length;
        (slot, self.queue.start(slot, command, len, data, &self.table))
    }

    /// Does one piece of work on the disk; the command's next step.
    pub fn run(&mut self, work: Work) -> Step {
        self.log.push(work);
        let ticket = u64::from(work.slot.0);
        let entered = match work.gate {
            GateUse::Open => None,
            GateUse::Write => self.gate.enter(Entry::Write, work.offset, work.len, ticket),
            GateUse::Hold => {
                let pass = self.gate.enter(Entry::Hold, work.offset, work.len, ticket);
                self.holds.insert(work.slot.0, pass.expect("nobody else is there"));
                None
            }
            GateUse::Unhold => Some(self.holds.remove(&work.slot.0).expect("held")),
        };
        let status = match self.failures.is_empty() || work.op == WorkOp::Release {
            true => self.perform(work),
            false => match self.failures.remove(0) {
                EngineStatus::Ok => self.perform(work),
                failure => failure,
            },
        };
        entered.into_iter().for_each(|pass| self.gate.leave(pass));
        let data = self.sent[&work.slot.0].clone();
        self.queue.done(work.slot, status, &data, &self.table)
    }

    fn perform(&mut self, work: Work) -> EngineStatus {
        let (from, len) = (work.offset as usize, work.len as usize);
        match (work.op, work.memory) {
            (WorkOp::Read, Memory::Data(slot)) => {
                let data = self.disk[from..from + len].to_vec();
                self.sent.insert(slot.0, data);
            }
            (WorkOp::Read, Memory::Scratch) => {
                if !self.queue.has_scratch(work.slot) {
                    self.queue.lend(work.slot, vec![0; len]);
                }
                let buffer = self.queue.scratch_mut(work.slot).expect("lent");
                buffer[..len].copy_from_slice(&self.disk[from..from + len]);
            }
            (WorkOp::Write, Memory::Data(slot)) => {
                self.disk[from..from + len].copy_from_slice(&self.sent[&slot.0][..len]);
            }
            (WorkOp::Write, Memory::Scratch) => {
                let buffer = self.queue.scratch(work.slot).expect("read before")[..len].to_vec();
                self.disk[from..from + len].copy_from_slice(&buffer);
            }
            (WorkOp::Discard | WorkOp::WriteZeroes, Memory::None) => {
                self.disk[from..from + len].fill(0);
            }
            (WorkOp::Flush | WorkOp::Release, Memory::None) => {}
            other => panic!("no such work: {other:?}"),
        }
        EngineStatus::Ok
    }

    /// Answers so far.
    pub fn outcomes(&mut self) -> Vec<(SlotId, Outcome)> {
        let mut outcomes = Vec::new();
        while let Some(Response { slot, completion, data_len }) = self.queue.next_response() {
            let data = self.sent[&slot.0][..data_len as usize].to_vec();
            let (status, dw0) = (completion.status, completion.dw0);
            drop(self.queue.take_scratch(slot));
            outcomes.push((slot, Outcome { status, dw0, data }));
        }
        outcomes
    }

    /// Runs a command to its end.
    pub fn outcome(&mut self, command: &Command, data: &[u8]) -> Outcome {
        let (slot, mut step) = self.start(command, data);
        while let Step::Submit(work) = step {
            step = self.run(work);
        }
        assert_eq!(step, Step::Wait, "{command:?}");
        let mut outcomes = self.outcomes();
        assert_eq!(outcomes.len(), 1, "{outcomes:?}");
        assert_eq!(outcomes[0].0, slot);
        assert!(self.queue.is_idle() && self.gate.is_idle());
        outcomes.remove(0).1
    }

    pub fn status(&mut self, command: &Command, data: &[u8]) -> Status {
        self.outcome(command, data).status
    }
}

/// An I/O command on a range of the first namespace, with an SGL that fits 512-byte blocks.
pub fn io(opcode: u8, slba: u64, blocks: u32) -> Command {
    Command {
        opcode,
        nsid: 1,
        cdw10: slba as u32,
        cdw11: (slba >> 32) as u32,
        cdw12: blocks - 1,
        sgl: lamina_nvmf::wire::Sgl::transport(blocks * 512),
        ..Command::default()
    }
}

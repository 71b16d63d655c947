//! Fuzz target of everything a host can say once its connection stands: Connect, admin, fabrics and
//! I/O commands, from several hosts, while management changes what is exported. `cargo test`
//! replays its inputs; `scripts/fuzz` finds new ones.
//!
//! ```text
//!  input: steps of 68 bytes   | what | who | data | failure | 64-byte command |
//! ```

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use lamina_bdev::{Status as EngineStatus, Uuid};
use zerocopy::FromBytes;

use crate::SlotId;
use crate::auth::{AuthKey, HashId};
use crate::controller::{Action, Answer, ControllerKey, Limits, Origin, Service};
use crate::io::{Entry, GateUse, IoQueue, Memory, RangeGate, Step, Work, WorkOp};
use crate::subsystem::{
    Address, AnaState, DeviceKey, Host, HostKeys, NamespaceSpec, Nqn, NsTable, PortId, Secret,
    SubsystemSpec, Target,
};
use crate::wire::opcode::fabrics;
use crate::wire::{Command, RawCommand};

const STEP_BYTES: usize = 68;
/// Commands of one input.
const STEPS_MAX: usize = 64;
const DISK_BYTES: u64 = 1 << 20;
const AUTHENTICATION: [u8; 2] = [fabrics::AUTHENTICATION_SEND, fabrics::AUTHENTICATION_RECEIVE];
const SUBSYSTEM: &str = "nqn.2026-01.io.lamina:fuzz";
const HOST: &str = "nqn.2026-01.io.lamina:host";
const SECOND: u64 = 1_000_000_000;

struct World {
    service: Service,
    port: PortId,
    now: u64,
    controllers: Vec<ControllerKey>,
    /// Connections of I/O queues, by controller.
    io_connections: Vec<ControllerKey>,
    queue: IoQueue<Vec<u8>>,
    gate: RangeGate,
    table: Arc<NsTable>,
    next_slot: u16,
}

fn address() -> Address {
    Address::parse(None, "127.0.0.1", "4420").expect("an address")
}

impl World {
    fn new() -> World {
        let mut target = Target::new();
        let mut spec = SubsystemSpec::new(Nqn::new(SUBSYSTEM).expect("a name"));
        (spec.allow_any_host, spec.ana_reporting, spec.max_namespaces) = (true, true, 8);
        target.add_subsystem(spec).expect("a subsystem");
        let port = target.add_listener(SUBSYSTEM, &address(), false).expect("a port");
        // One of the hosts has to authenticate.
        let key = AuthKey::generate(HashId::Sha256, &mut |bytes: &mut [u8]| bytes.fill(1));
        let dhchap = Some(Secret { name: "key".to_string(), text: key.to_text() });
        let keys = HostKeys { dhchap, ..HostKeys::default() };
        let nqn = Nqn::new(&format!("{HOST}3")).expect("a name");
        target.add_host(SUBSYSTEM, Host { nqn, keys }).expect("a host");
        let mut service = Service::new(target, Limits::default(), 0);
        service.set_random(Box::new(|bytes: &mut [u8]| bytes.fill(0x5a)));
        let (queue, gate) = (IoQueue::new(64, 128 << 10), RangeGate::new());
        let controllers = Vec::new();
        let table = Arc::default();
        let mut world = World {
            service,
            port,
            now: 0,
            controllers,
            io_connections: Vec::new(),
            queue,
            gate,
            table,
            next_slot: 0,
        };
        world.add_namespace(1);
        world
    }

    fn add_namespace(&mut self, number: u8) {
        let mut spec = NamespaceSpec::new(
            DeviceKey(u64::from(number)),
            "disk",
            Uuid([number; 16]),
            DISK_BYTES,
        );
        spec.block_size = if number.is_multiple_of(2) { 4096 } else { 512 };
        spec.readonly = number % 5 == 4;
        let _ = self.service.edit(|target| target.add_namespace(SUBSYSTEM, spec));
    }

    fn origin(&self) -> Origin {
        Origin { port: self.port, local: IpAddr::V4(Ipv4Addr::LOCALHOST), tls: None }
    }

    /// Connect data of one of a few hosts, with one byte the input's.
    fn connect_data(who: u8, at: u8, value: u8) -> Vec<u8> {
        let mut data = vec![0; 1024];
        data[..16].fill(who % 4);
        data[16..18].fill(0xff);
        if who >= 128 {
            data[16..18].copy_from_slice(&u16::from(who & 7).to_le_bytes());
        }
        let subsystem = if who & 64 != 0 { crate::subsystem::DISCOVERY_NQN } else { SUBSYSTEM };
        data[256..256 + subsystem.len()].copy_from_slice(subsystem.as_bytes());
        let host = format!("{HOST}{}", who % 4);
        data[512..512 + host.len()].copy_from_slice(host.as_bytes());
        data[usize::from(at) * 4] ^= value;
        data
    }

    fn controller(&self, who: u8) -> ControllerKey {
        match self.controllers.len() {
            0 => ControllerKey(u64::from(who)),
            count => self.controllers[usize::from(who) % count],
        }
    }

    /// A connection of an I/O queue is gone.
    fn one_leaves(&mut self, which: u8) {
        if !self.io_connections.is_empty() {
            let at = usize::from(which) % self.io_connections.len();
            self.service.queue_left(self.io_connections.swap_remove(at), self.now);
        }
    }

    /// Does what was handed out to be computed.
    fn compute(&mut self) {
        while let Some(work) = self.service.next_work() {
            let done = if self.now.is_multiple_of(2 * SECOND) { work.run() } else { work.refuse() };
            let _ = self.service.computed(done, self.now);
        }
    }

    fn step(&mut self, what: u8, who: u8, aux: u8, fault: u8, command: &Command) {
        let data = vec![aux; (command.sgl.length as usize).min(8192)];
        let (key, qid) = (self.controller(who), u16::from(aux % 4));
        let len = command.sgl.length;
        match what % 8 {
            0 => {
                let data = World::connect_data(who, aux, fault);
                let connected = self.service.connect(&self.origin(), command, &data, self.now);
                if let Ok(connected) = connected {
                    match connected.qid {
                        0 => self.controllers.push(connected.controller),
                        _ => self.io_connections.push(connected.controller),
                    }
                }
            }
            1 | 2 if command.fctype().is_some_and(|t| AUTHENTICATION.contains(&t)) => {
                let answer = self.service.authenticate(key, 0, command, len, &data, self.now);
                World::check(command, &answer);
            }
            1 | 2 => {
                let answer =
                    self.service.admin(key, SlotId(u16::from(fault)), command, len, self.now);
                World::check(command, &answer);
            }
            3 => {
                let answer = self.service.queue_command(key, qid, command, len, &data, self.now);
                World::check(command, &answer);
            }
            4 | 5 => self.io(key, command, &data, fault),
            6 => self.manage(aux, fault),
            _ => {
                self.now += u64::from(aux) * SECOND;
                self.service.tick(self.now);
                self.one_leaves(fault);
            }
        }
        self.compute();
        while let Some(action) = self.service.next_action() {
            match action {
                Action::CloseController { controller, .. } => {
                    self.controllers.retain(|key| *key != controller);
                }
                Action::Save { image: Some(image), .. } => {
                    assert!(image.len() <= crate::reservation::IMAGE_BYTES_MAX);
                }
                Action::Respond { .. }
                | Action::Forget { .. }
                | Action::Publish { .. }
                | Action::Save { image: None, .. }
                | Action::CloseQueue { .. } => {}
            }
        }
    }

    /// An answer names its command and fits where the host wants it.
    fn check(command: &Command, answer: &Answer) {
        if let Answer::Reply(reply) | Answer::ReplyAfterActions(reply) = answer {
            assert_eq!(reply.completion.cid, command.cid);
            assert!(reply.data.len() <= command.sgl.length as usize);
            assert!(reply.data.is_empty() || reply.completion.status.is_ok());
        }
    }

    fn manage(&mut self, what: u8, number: u8) {
        let nsid = u32::from(number % 9);
        match what % 5 {
            0 => self.add_namespace(number % 8),
            1 => drop(self.service.edit(|t| t.remove_namespace(SUBSYSTEM, nsid))),
            2 => {
                let device = DeviceKey(u64::from(number % 8));
                self.service.edit(|t| t.resize_device(device, DISK_BYTES / 2));
            }
            3 => {
                let state = [AnaState::Optimized, AnaState::Change, AnaState::Inaccessible];
                let state = state[usize::from(number) % 3];
                let at = address();
                let set = |t: &mut Target| t.set_ana_state(SUBSYSTEM, &at, Some(nsid), state);
                let _ = self.service.edit(set);
            }
            _ => {
                let key = self.controller(number);
                self.service.queue_closed(key, u16::from(number % 4));
            }
        }
    }

    /// Runs an I/O command (and the lone half before it) to its end; its work stays on its disk.
    fn io(&mut self, key: ControllerKey, command: &Command, data: &[u8], fault: u8) {
        self.table = self.service.table(key);
        self.next_slot = (self.next_slot + 1) % 64;
        let slot = SlotId(self.next_slot);
        let len = command.sgl.length.min(data.len() as u32);
        let mut step = self.queue.start(slot, command, len, data, &self.table);
        let (mut works, mut hold) = (0u32, None);
        while let Step::Submit(work) = step {
            let at = self.table.iter().find(|ns| ns.device == work.device).expect("its disk");
            let end = work.offset.checked_add(work.len).expect("no overflow");
            assert!(end <= at.blocks << at.block_shift, "{work:?}");
            let pass = match work.gate {
                GateUse::Open => None,
                GateUse::Write => self.gate.enter(Entry::Write, work.offset, work.len, 0),
                GateUse::Hold => {
                    hold = self.gate.enter(Entry::Hold, work.offset, work.len, 0);
                    None
                }
                GateUse::Unhold => hold.take(),
            };
            self.lend(work);
            works += 1;
            let fails = fault != 0 && works % u32::from(fault) == 0 && work.op != WorkOp::Release;
            let status = if fails { EngineStatus::IoError } else { EngineStatus::Ok };
            pass.into_iter().for_each(|pass| self.gate.leave(pass));
            step = self.queue.done(work.slot, status, data, &self.table);
            assert!(works <= 66_000, "bounded by the blocks of a Verify");
        }
        assert!(self.gate.is_idle());
        while let Some(response) = self.queue.next_response() {
            drop(self.queue.take_scratch(response.slot));
            assert!(response.data_len <= 128 << 10);
        }
    }

    fn lend(&mut self, work: Work) {
        if work.memory == Memory::Scratch && !self.queue.has_scratch(work.slot) {
            self.queue.lend(work.slot, vec![0; work.len as usize]);
        }
        if let Memory::Data(_) = work.memory {
            assert!(work.len <= 128 << 10);
        }
    }
}

/// Runs an input; the world after it.
fn run(input: &[u8]) -> World {
    let mut world = World::new();
    for bytes in input.chunks_exact(STEP_BYTES).take(STEPS_MAX) {
        let raw = RawCommand::read_from_bytes(&bytes[4..]).expect("64 bytes");
        let mut command = Command::from(&raw);
        // The transport holds data to this.
        command.sgl.length = command.sgl.length.min(128 << 10);
        world.step(bytes[0], bytes[1], bytes[2], bytes[3], &command);
    }
    world
}

#[test]
fn nvme_command() {
    bolero::check!(name = "nvme_command")
        .with_iterations(0)
        .with_test_time(Duration::MAX)
        .with_shrink_time(Duration::ZERO)
        .for_each(|input: &[u8]| {
            let mut world = run(input);
            world.queue.close();
            while world.queue.next_response().is_some() {}
            assert!(world.queue.is_idle(), "every command has ended");
            let keys: Vec<ControllerKey> = world.service.controllers().map(|(k, _)| k).collect();
            assert_eq!(keys, world.controllers);
            keys.into_iter().for_each(|key| world.service.admin_closed(key));
            assert_eq!(world.service.controllers().count(), 0);
            while !world.io_connections.is_empty() {
                world.one_leaves(0);
            }
        });
}

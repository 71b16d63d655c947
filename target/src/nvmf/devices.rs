//! Disks as the NVMe queues of one reactor reach them.
//!
//! ```text
//!  connection of this reactor ─┐        ┌─ gate ─► engine of the shard ─► done ─┐
//!                              ├─ job ──┤    (waits)      (full: blocked)       ├─► finished
//!  message of another reactor ─┘        └─ no such disk (any more): Detached ───┘
//! ```
//!
//! A disk has its gate on the reactor that drives its shard; every other reactor only knows where
//! that is. A job keeps the place in the table of jobs that its cookie names until the engine has
//! answered, so whoever gave the job must keep its memory until it is in `finished`.

use std::collections::VecDeque;
use std::sync::mpsc::SyncSender;

use lamina_bdev::{Handle, Op, Request, Seg, Status};
use lamina_nvmf::SlotId;
use lamina_nvmf::io::{Entry, GateUse, Pass, RangeGate, WorkOp};
use lamina_nvmf::subsystem::DeviceKey;

use crate::reactor::shard::ShardKey;

/// Place among the exports, in a cookie, that means these jobs.
pub const NVMF_INDEX: u16 = u16::MAX - 1;
const INDEX_SHIFT: u32 = 48;

/// Where the engine of a disk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// The disk.
    pub key: DeviceKey,
    /// The reactor that drives its shard.
    pub reactor: usize,
    /// The shard there.
    pub shard: ShardKey,
    /// The attachment in the shard's engine.
    pub handle: Handle,
}

/// Who gave a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// The reactor of its connection.
    pub reactor: usize,
    /// Place of the connection there.
    pub connection: u32,
    /// The command's slot.
    pub slot: SlotId,
}

/// One piece of work for an engine. The memory belongs to the command's connection.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// Who is to be told.
    pub origin: Origin,
    /// On which disk.
    pub device: DeviceKey,
    /// What to do.
    pub op: WorkOp,
    /// Its way past other commands.
    pub gate: GateUse,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Durable before it is done.
    pub fua: bool,
    /// Address of the data; 0 where there is none.
    pub addr: usize,
}

/// What takes requests for the engines of a reactor.
pub trait Engines {
    /// Gives a request to the engine of a shard. `None`: the shard is gone; `Some(false)`: its
    /// engine is full.
    fn submit(&mut self, shard: ShardKey, request: &Request, segs: &[Seg]) -> Option<bool>;
}

struct Device {
    route: Route,
    gate: RangeGate,
    /// Granted holds, each until the job of its slot that gives it up.
    held: Vec<(Origin, Pass)>,
    /// Jobs of it that are not finished.
    jobs: u32,
    /// Set while it is being removed.
    leaving: Option<SyncSender<()>>,
}

struct Running {
    job: Job,
    pass: Option<Pass>,
}

/// All disks that a reactor's queues can reach, and the jobs on those of its own shards.
pub struct Devices {
    reactor: usize,
    /// By the low half of the key.
    devices: Vec<Option<Device>>,
    jobs: Vec<Option<Running>>,
    free: Vec<u32>,
    running: usize,
    /// Their engine was full.
    blocked: VecDeque<u32>,
    finished: VecDeque<(Origin, Status)>,
}

/// Where a disk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// On this reactor.
    Here,
    /// On that one.
    Reactor(usize),
    /// Nowhere (any more).
    Gone,
}

fn index(key: DeviceKey) -> usize {
    (key.0 & 0xffff_ffff) as usize
}

impl Devices {
    /// None yet, on reactor number `reactor`.
    pub fn new(reactor: usize) -> Devices {
        Devices {
            reactor,
            devices: Vec::new(),
            jobs: Vec::new(),
            free: Vec::new(),
            running: 0,
            blocked: VecDeque::new(),
            finished: VecDeque::new(),
        }
    }

    /// A disk can be reached from now on. Its place in the low half of the key must be free.
    pub fn add(&mut self, route: Route) {
        let at = index(route.key);
        if self.devices.len() <= at {
            self.devices.resize_with(at + 1, || None);
        }
        assert!(self.devices[at].is_none(), "a device's place is used by one at a time");
        self.devices[at] = Some(Device {
            route,
            gate: RangeGate::new(),
            held: Vec::new(),
            jobs: 0,
            leaving: None,
        });
    }

    /// The disk can no longer be reached; `gone` is told when nothing is in flight on it here.
    pub fn remove(&mut self, key: DeviceKey, gone: SyncSender<()>) {
        match self.device(key) {
            Some(device) => {
                device.leaving = Some(gone);
                self.let_go(key);
            }
            None => {
                let _ = gone.try_send(());
            }
        }
    }

    /// Drops a disk that is to leave and can.
    fn let_go(&mut self, key: DeviceKey) {
        let Some(place) = self.devices.get_mut(index(key)) else { return };
        if let Some(device) = place
            && device.route.key == key
            && device.jobs == 0
            && device.gate.is_idle()
            && let Some(gone) = device.leaving.take()
        {
            *place = None;
            let _ = gone.try_send(());
        }
    }

    fn device(&mut self, key: DeviceKey) -> Option<&mut Device> {
        let device = self.devices.get_mut(index(key))?.as_mut()?;
        (device.route.key == key).then_some(device)
    }

    /// Where a disk is.
    pub fn place(&self, key: DeviceKey) -> Place {
        match self.devices.get(index(key)) {
            Some(Some(device)) if device.route.key == key => {
                if device.route.reactor == self.reactor {
                    Place::Here
                } else {
                    Place::Reactor(device.route.reactor)
                }
            }
            Some(_) | None => Place::Gone,
        }
    }

    /// Begins a job on a disk of this reactor.
    pub fn start(&mut self, job: Job, engines: &mut impl Engines) {
        let here = self.reactor;
        let Some(device) = self.device(job.device) else {
            return self.finished.push_back((job.origin, Status::Detached));
        };
        if device.route.reactor != here || device.leaving.is_some() && job.gate != GateUse::Unhold {
            return self.finished.push_back((job.origin, Status::Detached));
        }
        let mut held = None;
        if job.gate == GateUse::Unhold {
            // The disk may have begun to leave before the hold was granted.
            let Some(at) = device.held.iter().position(|(who, _)| *who == job.origin) else {
                return self.finished.push_back((job.origin, Status::Detached));
            };
            held = Some(device.held.swap_remove(at).1);
        }
        device.jobs += 1;
        let ticket = self.take_place(job);
        let Some(device) = self.device(job.device) else { unreachable!("just found") };
        let pass = match job.gate {
            GateUse::Open => return self.submit(ticket, engines),
            GateUse::Write => device.gate.enter(Entry::Write, job.offset, job.len, ticket.into()),
            GateUse::Hold => device.gate.enter(Entry::Hold, job.offset, job.len, ticket.into()),
            GateUse::Unhold => held,
        };
        if let Some(pass) = pass {
            self.passed(ticket, pass, engines);
        }
    }

    fn take_place(&mut self, job: Job) -> u32 {
        self.running += 1;
        let running = Some(Running { job, pass: None });
        match self.free.pop() {
            Some(place) => {
                self.jobs[place as usize] = running;
                place
            }
            None => {
                self.jobs.push(running);
                (self.jobs.len() - 1) as u32
            }
        }
    }

    fn job(&mut self, ticket: u32) -> &mut Running {
        self.jobs[ticket as usize].as_mut().expect("a job keeps its place until it is finished")
    }

    fn passed(&mut self, ticket: u32, pass: Pass, engines: &mut impl Engines) {
        self.job(ticket).pass = Some(pass);
        self.submit(ticket, engines);
    }

    /// Gives a job to its engine, or keeps it until there is room.
    fn submit(&mut self, ticket: u32, engines: &mut impl Engines) {
        if !self.try_submit(ticket, engines) {
            self.blocked.push_back(ticket);
        }
    }

    fn try_submit(&mut self, ticket: u32, engines: &mut impl Engines) -> bool {
        let job = self.job(ticket).job;
        let op = match job.op {
            WorkOp::Read => Op::Read,
            WorkOp::Write => Op::Write,
            WorkOp::Flush => Op::Flush,
            WorkOp::Discard => Op::Discard,
            WorkOp::WriteZeroes => Op::WriteZeroes,
            WorkOp::Release => {
                self.finish(ticket, Status::Ok, engines);
                return true;
            }
        };
        let Some(device) = self.device(job.device) else { unreachable!("it waits for its jobs") };
        let (shard, handle) = (device.route.shard, device.route.handle);
        let cookie = u64::from(NVMF_INDEX) << INDEX_SHIFT | u64::from(ticket);
        let request =
            Request { cookie, handle, op, offset: job.offset, len: job.len, fua: job.fua };
        let seg = Seg { addr: job.addr, len: job.len as usize };
        let segs = match job.op {
            WorkOp::Read | WorkOp::Write => std::slice::from_ref(&seg),
            _ => &[],
        };
        match engines.submit(shard, &request, segs) {
            Some(taken) => taken,
            None => {
                self.finish(ticket, Status::Detached, engines);
                true
            }
        }
    }

    /// Tries again what found its engine full. True if any got in.
    pub fn retry(&mut self, engines: &mut impl Engines) -> bool {
        let mut worked = false;
        for _ in 0..self.blocked.len() {
            let Some(ticket) = self.blocked.pop_front() else { break };
            if self.try_submit(ticket, engines) {
                worked = true;
            } else {
                // Those behind it may be for another engine, but order is not worth less than that.
                self.blocked.push_front(ticket);
                break;
            }
        }
        worked
    }

    /// Takes an engine's answer.
    ///
    /// # Panics
    /// If it is to no job.
    pub fn done(&mut self, cookie: u64, status: Status, engines: &mut impl Engines) {
        self.finish((cookie & 0xffff_ffff) as u32, status, engines);
    }

    fn finish(&mut self, ticket: u32, status: Status, engines: &mut impl Engines) {
        let running = self.jobs[ticket as usize].take().expect("a job is finished once");
        self.free.push(ticket);
        self.running -= 1;
        let Running { job, pass } = running;
        let Some(device) = self.device(job.device) else { unreachable!("it waits for its jobs") };
        device.jobs -= 1;
        match (job.gate, pass) {
            (GateUse::Open, None) => {}
            (GateUse::Write | GateUse::Unhold, Some(pass)) => device.gate.leave(pass),
            // Kept whatever the status: the slot gives it up.
            (GateUse::Hold, Some(pass)) => device.held.push((job.origin, pass)),
            (gate, pass) => unreachable!("{gate:?} with {pass:?}"),
        }
        self.finished.push_back((job.origin, status));
        if job.gate != GateUse::Open {
            self.admit(job.device, engines);
        }
        self.let_go(job.device);
    }

    /// Submits those that waited at the gate and may go.
    fn admit(&mut self, key: DeviceKey, engines: &mut impl Engines) {
        while let Some((ticket, pass)) = self.device(key).and_then(|d| d.gate.next_ready()) {
            self.passed(ticket as u32, pass, engines);
        }
    }

    /// The next finished job.
    pub fn next_finished(&mut self) -> Option<(Origin, Status)> {
        self.finished.pop_front()
    }

    /// Jobs begun and not finished.
    pub fn running(&self) -> usize {
        self.running
    }

    /// Jobs that wait for room in an engine.
    pub fn blocked(&self) -> usize {
        self.blocked.len()
    }
}

#[cfg(test)]
mod tests;

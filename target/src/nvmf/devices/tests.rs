//! Jobs on disks, with an engine that does what the test says.

use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use super::*;

const SHARD: ShardKey = ShardKey(7);
const KEY: DeviceKey = DeviceKey(1 << 32);

/// An engine with room for so many requests.
struct Fake {
    room: usize,
    taken: Vec<Request>,
}

impl Engines for Fake {
    fn submit(&mut self, shard: ShardKey, request: &Request, segs: &[Seg]) -> Option<bool> {
        if shard != SHARD {
            return None;
        }
        let carries = matches!(request.op, Op::Read | Op::Write);
        assert_eq!(segs.len(), usize::from(carries));
        if self.taken.len() == self.room {
            return Some(false);
        }
        self.taken.push(*request);
        Some(true)
    }
}

fn engine(room: usize) -> Fake {
    Fake { room, taken: Vec::new() }
}

fn devices(shard: ShardKey) -> Devices {
    let mut devices = Devices::new(0);
    devices.add(Route { key: KEY, reactor: 0, shard, handle: Handle(3) });
    devices
}

fn job(slot: u16, op: WorkOp, gate: GateUse) -> Job {
    Job {
        origin: Origin { reactor: 0, connection: 1, slot: SlotId(slot) },
        device: KEY,
        op,
        gate,
        offset: 0,
        len: 4096,
        fua: false,
        addr: 0x1000,
    }
}

/// Slots and statuses of what is finished.
fn finished(devices: &mut Devices) -> Vec<(u16, Status)> {
    let next = || devices.next_finished().map(|(origin, status)| (origin.slot.0, status));
    std::iter::from_fn(next).collect()
}

fn removal(devices: &mut Devices) -> Receiver<()> {
    let (gone, told) = sync_channel(1);
    devices.remove(KEY, gone);
    told
}

#[test]
fn jobs_go_to_the_engine_and_their_ends_to_their_slots() {
    let (mut devices, mut engine) = (devices(SHARD), engine(8));
    devices.start(job(5, WorkOp::Read, GateUse::Open), &mut engine);
    devices.start(job(6, WorkOp::Write, GateUse::Write), &mut engine);
    assert_eq!((engine.taken.len(), devices.running()), (2, 2));
    assert_eq!(engine.taken[0].handle, Handle(3));
    devices.done(engine.taken[1].cookie, Status::Ok, &mut engine);
    devices.done(engine.taken[0].cookie, Status::IoError, &mut engine);
    assert_eq!(finished(&mut devices), [(6, Status::Ok), (5, Status::IoError)]);
    assert_eq!(devices.running(), 0);
}

#[test]
fn a_full_engine_is_asked_again() {
    let (mut devices, mut engine) = (devices(SHARD), engine(1));
    for slot in 0..3 {
        devices.start(job(slot, WorkOp::Read, GateUse::Open), &mut engine);
    }
    assert_eq!((engine.taken.len(), devices.blocked()), (1, 2));
    assert!(!devices.retry(&mut engine));
    engine.room = 3;
    assert!(devices.retry(&mut engine));
    assert_eq!((engine.taken.len(), devices.blocked()), (3, 0));
}

#[test]
fn what_is_not_there_is_detached() {
    let mut engine = engine(8);
    let mut gone = devices(ShardKey(9));
    gone.start(job(1, WorkOp::Write, GateUse::Write), &mut engine);
    assert_eq!(finished(&mut gone), [(1, Status::Detached)]);
    let mut devices = devices(SHARD);
    let other = Job { device: DeviceKey(2 << 32), ..job(2, WorkOp::Read, GateUse::Open) };
    assert_eq!(devices.place(other.device), Place::Gone);
    devices.start(other, &mut engine);
    assert_eq!(finished(&mut devices), [(2, Status::Detached)]);
    devices.add(Route { key: DeviceKey(1 << 32 | 1), reactor: 4, shard: SHARD, handle: Handle(0) });
    assert_eq!(devices.place(DeviceKey(1 << 32 | 1)), Place::Reactor(4));
    assert!(engine.taken.is_empty());
}

#[test]
fn a_disk_leaves_when_nothing_is_in_flight_on_it() {
    let (mut devices, mut engine) = (devices(SHARD), engine(8));
    devices.start(job(1, WorkOp::Write, GateUse::Write), &mut engine);
    let told = removal(&mut devices);
    assert_eq!(told.try_recv(), Err(TryRecvError::Empty));
    devices.start(job(2, WorkOp::Write, GateUse::Write), &mut engine);
    assert_eq!(finished(&mut devices), [(2, Status::Detached)], "nothing new begins");
    devices.done(engine.taken[0].cookie, Status::Ok, &mut engine);
    assert_eq!(told.try_recv(), Ok(()));
    assert_eq!(devices.place(KEY), Place::Gone);
    assert_eq!(removal(&mut devices).try_recv(), Ok(()), "once more is as good");
}

#[test]
fn a_hold_keeps_writes_out_until_its_slot_gives_it_up() {
    let (mut devices, mut engine) = (devices(SHARD), engine(8));
    devices.start(job(1, WorkOp::Read, GateUse::Hold), &mut engine);
    devices.start(job(2, WorkOp::Write, GateUse::Write), &mut engine);
    assert_eq!(engine.taken.len(), 1, "the write waits");
    devices.done(engine.taken[0].cookie, Status::Ok, &mut engine);
    assert_eq!(finished(&mut devices), [(1, Status::Ok)]);
    let told = removal(&mut devices);
    assert_eq!(told.try_recv(), Err(TryRecvError::Empty), "a hold counts as in flight");
    devices.start(job(1, WorkOp::Write, GateUse::Unhold), &mut engine);
    assert_eq!(engine.taken.len(), 2);
    devices.done(engine.taken[1].cookie, Status::Ok, &mut engine);
    assert_eq!(engine.taken.len(), 3, "the write goes on");
    devices.done(engine.taken[2].cookie, Status::Ok, &mut engine);
    assert_eq!(told.try_recv(), Ok(()));
    assert_eq!(finished(&mut devices), [(1, Status::Ok), (2, Status::Ok)]);
}

#[test]
fn a_hold_that_was_never_granted_is_given_up_without_harm() {
    let (mut devices, mut engine) = (devices(SHARD), engine(8));
    devices.start(job(9, WorkOp::Write, GateUse::Write), &mut engine);
    let told = removal(&mut devices);
    devices.start(job(1, WorkOp::Read, GateUse::Hold), &mut engine);
    devices.start(job(1, WorkOp::Release, GateUse::Unhold), &mut engine);
    assert_eq!(finished(&mut devices), [(1, Status::Detached), (1, Status::Detached)]);
    devices.done(engine.taken[0].cookie, Status::Ok, &mut engine);
    assert_eq!(told.try_recv(), Ok(()));
}

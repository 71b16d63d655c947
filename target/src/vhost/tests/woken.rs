//! A guest whose kick has ended a sleep: what it is told is true at once.

use std::io::Write;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use lamina_bdev::{Command, Error, Name, Reply as EngineReply, Target, Uuid};

use super::rig::*;
use crate::reactor::feed::tests::opening;
use crate::reactor::shard::{Shard, ShardKey};
use crate::reactor::tests::ByHand;
use crate::vhost::BlkExport;

/// Requests at a time: fewer than wait in the pipeline that hides the memory's latency.
const READS: u64 = 3;

struct Served {
    shard: Shard,
    now: u64,
}

impl Served {
    fn turn(&mut self) {
        self.now += 1_000_000;
        self.shard.turn(self.now);
    }

    fn until<T>(&mut self, answer: &Receiver<T>) -> T {
        for _ in 0..10_000 {
            if let Ok(there) = answer.try_recv() {
                return there;
            }
            self.turn();
        }
        panic!("no answer");
    }

    fn command(&mut self, command: Command) -> EngineReply {
        let (sender, answer) = sync_channel::<Result<EngineReply, Error>>(1);
        self.shard.command(command, sender);
        self.until(&answer).unwrap()
    }
}

/// A shard with a disk in RAM, exported to a guest whose every block was written.
fn served(packed: bool) -> (Served, Rig) {
    served_by(packed, 64)
}

fn served_by(packed: bool, slots: usize) -> (Served, Rig) {
    let (mut served, mut rig) = empty(packed, slots);
    for n in 0..READS {
        rig.ram.write(parts(n).data, &[n as u8 + 1; 4096]);
        rig.offer(0, n, WRITE, n * 8, 4096);
    }
    for _ in 0..100 {
        served.turn();
    }
    for n in 0..READS {
        rig.used(0).expect("the write is done");
        assert_eq!(rig.status(n), OK);
    }
    (served, rig)
}

/// The same before anything was written.
fn empty(packed: bool, slots: usize) -> (Served, Rig) {
    let (engine, base) = opening(slots);
    let (sender, opened) = sync_channel(1);
    let shard = Shard::new(ShardKey(1), "shard".into(), Box::new(engine), base, sender);
    let mut served = Served { shard, now: 0 };
    assert!(served.shard.adopt());
    served.until(&opened).unwrap();
    let (name, uuid, size) = (Name::new("disk").unwrap(), Uuid([8; 16]), DISK_BYTES as u64);
    let create = Command::CreateDisk { name, uuid, size, from: None, time: 2 };
    let EngineReply::Disk(disk) = served.command(create) else { panic!("no disk") };
    let attach = Command::Attach(Target::Disk(disk));
    let EngineReply::Handle(handle) = served.command(attach) else { panic!("no handle") };
    let mut config = config();
    config.handle = handle;
    let mut rig = Rig::with(config.clone(), all_features(packed), 16);
    let export = std::mem::replace(&mut rig.export, BlkExport::new(config));
    served.shard.add_export(EXPORT, Box::new(export));
    (served, rig)
}

#[test]
fn what_is_told_after_a_sleep_has_been_moved() {
    for packed in [false, true] {
        let (mut served, mut rig) = served(packed);
        for n in 0..READS {
            rig.ram.write(parts(n).data, &[0xaa; 4096]);
            rig.offer(0, n, READ, n * 8, 4096);
        }
        served.shard.serve(EXPORT);
        for n in 0..READS {
            rig.used(0).expect("a read that memory holds is done at once");
            assert_eq!(rig.status(n), OK);
            let there = rig.ram.read_vec(parts(n).data, 4096);
            assert!(there == [n as u8 + 1; 4096], "read {n} was told before it was there");
        }
    }
}

/// What the engine does not answer while it is asked, like a hole of a disk that has no map yet, is
/// told of before the reactor looks at the rings of anybody else.
#[test]
fn what_takes_a_step_of_the_engine_is_told_at_once_after_a_sleep() {
    for packed in [false, true] {
        let (mut served, mut rig) = empty(packed, 64);
        rig.ram.write(parts(0).data, &[0xaa; 4096]);
        rig.offer(0, 0, READ, 64, 4096);
        assert!(served.shard.serve(EXPORT));
        rig.used(0).expect("a hole is told of at once");
        assert_eq!(rig.status(0), OK);
        assert!(rig.ram.read_vec(parts(0).data, 4096) == [0; 4096]);
    }
}

/// A reactor that is kicked out of its sleep by a guest has worked: its next gap begins there.
#[test]
fn a_sleep_that_a_kick_ends_counts_as_work() {
    for packed in [false, true] {
        let (served, mut rig) = served(packed);
        let reactor = ByHand::with(served.shard);
        let counters = reactor.counters();
        let thread = std::thread::spawn(move || reactor.until_served());
        // Far longer than a noisy machine needs.
        let end = Instant::now() + Duration::from_secs(30);
        let wait = || {
            assert!(Instant::now() < end, "the reactor neither sleeps nor serves");
            std::thread::yield_now();
        };
        while !thread.is_finished() {
            if !counters.snapshot().asleep {
                wait();
                continue;
            }
            rig.offer(0, 0, READ, 0, 4096);
            rig.kicks[0].write_all(&1u64.to_ne_bytes()).expect("an eventfd");
            // It may have been found by a turn; then the next one is the one to be kicked for.
            while rig.used(0).is_none() && !thread.is_finished() {
                wait();
            }
        }
        assert!(thread.join().unwrap(), "what a kick brought was work");
    }
}

/// A write that the engine had no room for, and that goes at once a turn later, with nothing behind
/// it: its bytes are in the store when the guest hears of it, who may put others there then.
#[test]
fn what_waited_and_is_told_has_been_moved() {
    for packed in [false, true] {
        let (mut served, mut rig) = served_by(packed, 1);
        for round in 0..20u8 {
            // Over what is there, and into holes.
            let block = if round % 2 == 0 { 1 } else { READS + u64::from(round) };
            // A piece of a block takes the only slot.
            rig.ram.write(parts(0).data, &[0x11; 512]);
            rig.offer(0, 0, WRITE, 0, 512);
            rig.ram.write(parts(1).data, &[round + 100; 4096]);
            rig.offer(0, 1, WRITE, block * 8, 4096);
            let mut done = 0;
            for _ in 0..100 {
                served.turn();
                while rig.used(0).is_some() {
                    done += 1;
                }
                if done == 2 {
                    break;
                }
            }
            assert_eq!((done, rig.status(0), rig.status(1)), (2, OK, OK));
            rig.ram.write(parts(1).data, &[0xee; 4096]);
            rig.offer(0, 2, READ, block * 8, 4096);
            while rig.used(0).is_none() {
                served.turn();
            }
            let there = rig.ram.read_vec(parts(2).data, 4096);
            assert!(there == [round + 100; 4096], "round {round}: told before it was moved");
        }
    }
}

/// Turns until `count` reads that are offered now are done.
fn turns(served: &mut Served, rig: &mut Rig, count: u64) -> usize {
    for n in 0..count {
        rig.ram.write(parts(n).data, &[0xaa; 4096]);
        rig.offer(0, n, READ, n * 8, 4096);
    }
    let (mut turns, mut done) = (0, 0);
    while done < count {
        served.now += 1_000;
        served.shard.turn_with(served.now, 16, || true);
        turns += 1;
        assert!(turns < 100, "they are done some time");
        while rig.used(0).is_some() {
            done += 1;
        }
    }
    for n in 0..count {
        assert_eq!(rig.status(n), OK);
        assert!(rig.ram.read_vec(parts(n).data, 4096) == [n as u8 + 1; 4096], "told too early");
    }
    turns
}

#[test]
fn one_at_a_time_is_served_at_once_and_several_wait_for_more_a_little() {
    for packed in [false, true] {
        let (mut served, mut rig) = served(packed);
        for _ in 0..20 {
            assert_eq!(turns(&mut served, &mut rig, 1), 1);
        }
        assert_eq!(turns(&mut served, &mut rig, READS), 1);
        assert_eq!(turns(&mut served, &mut rig, READS), 1 + READS as usize / 2);
        assert_eq!(turns(&mut served, &mut rig, 1), 1 + READS as usize / 2);
        assert_eq!(turns(&mut served, &mut rig, 1), 1);
        // A sleep ends the wait.
        assert_eq!(turns(&mut served, &mut rig, READS), 1);
        assert!(served.shard.prepare_sleep());
        served.shard.woken();
        assert_eq!(turns(&mut served, &mut rig, 1), 1);
    }
}

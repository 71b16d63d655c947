//! A guest whose kick has ended a sleep: what it is told is true at once.

use std::sync::mpsc::{Receiver, sync_channel};

use lamina_bdev::{Command, Error, Name, Reply as EngineReply, Target, Uuid};

use super::rig::*;
use crate::reactor::feed::tests::opening;
use crate::reactor::shard::{Shard, ShardKey};
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

#[test]
fn what_is_told_after_a_sleep_has_been_moved() {
    for packed in [false, true] {
        let (engine, base) = opening();
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

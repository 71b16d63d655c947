//! A base that runs out of space, as a sparse file on a full file system does: what costs a
//! request its data costs that request; consistency points wait for space, and nothing is lost.

#[path = "rig/mod.rs"]
mod rig;

use lamina_bdev::*;
use rig::{DISK, FILE, RAM, Rig};

const MIB: u64 = 1 << 20;
const TRAITS: [BaseTraits; 3] = [RAM, FILE, DISK];

/// Which writes find no space.
#[derive(Clone, Copy, PartialEq)]
enum Full {
    /// Those of requests' memory.
    Data,
    /// Those of the engine, but for the journal's, which the host has reserved.
    Metadata,
    Nothing,
}

/// A store with its disk, on a base that may be full.
struct Store {
    rig: Rig,
    handle: Handle,
    disk: DiskId,
}

impl Store {
    fn new(traits: BaseTraits) -> Store {
        let mut rig = Rig::new(64 << 20, traits, true);
        let disk = rig.create("disk", 32 * MIB, None).unwrap();
        let handle = rig.attach(Target::Disk(disk));
        rig.events();
        Store { rig, handle, disk }
    }

    fn turn(&mut self, full: Full) {
        self.rig.wait_ns(10_000_000);
        self.rig.step();
        while let Some(pending) = self.rig.base.pending.first() {
            let journal = Store::is_journal(pending.io.offset / 4096);
            let found = match full {
                Full::Data => !pending.io.guest,
                Full::Metadata => pending.io.guest || journal,
                Full::Nothing => true,
            };
            let good = found || pending.io.op != BaseOp::Write;
            self.rig.complete(0, if good { Ok(()) } else { Err(BaseError::NoSpace) });
            self.rig.start_all();
        }
    }

    /// In a region of 64 MiB less the label: two superblocks, a pair of catalogue blocks, 64 pairs
    /// of disk records, and then the journal.
    fn is_journal(block: u64) -> bool {
        let journal = 2 + 2 + 2 * 64;
        (journal..journal + 255).contains(&block)
    }

    fn ask(&mut self, op: Op, block: u64, byte: u8, full: Full) -> (Status, Vec<u8>) {
        let (handle, offset, len) = (self.handle, block * 4096, 4096);
        let request = Request { cookie: 0, handle, op, offset, len, fua: false };
        let data = if op == Op::Discard { Vec::new() } else { vec![byte; 4096] };
        let cookie = self.rig.submit(request, data).expect("few are in flight");
        for _ in 0..10_000 {
            if let Some((done, data)) = self.rig.next_done() {
                assert_eq!(done.cookie, cookie);
                return (done.status, data);
            }
            self.turn(full);
        }
        panic!("{op:?} of block {block} never ends");
    }

    fn write(&mut self, block: u64, byte: u8, full: Full) -> Status {
        self.ask(Op::Write, block, byte, full).0
    }

    fn assert_holds(&mut self, block: u64, byte: u8, full: Full) {
        let (status, data) = self.ask(Op::Read, block, 0x5a, full);
        assert_eq!((status, data == vec![byte; 4096]), (Status::Ok, true), "block {block}");
    }

    /// A command's answer.
    fn command(&mut self, command: Command, full: Full) -> Result<Reply, Error> {
        let given = self.rig.begin(command);
        for _ in 0..10_000 {
            if let Some((cookie, outcome)) = self.rig.engine.next_reply() {
                assert_eq!(cookie, given);
                return outcome;
            }
            self.turn(full);
        }
        panic!("a command never ends");
    }

    fn said(&mut self, words: &str) -> usize {
        self.rig.events().iter().filter(|event| event.text.contains(words)).count()
    }
}

#[test]
fn data_that_finds_no_space_costs_its_request_only_and_the_log_says_so() {
    for traits in TRAITS {
        let mut store = Store::new(traits);
        assert_eq!(store.write(1, 1, Full::Nothing), Status::Ok);
        for block in 10..20 {
            assert_eq!(store.write(block, 7, Full::Data), Status::NoSpace);
        }
        assert_eq!(store.said("no space"), 1, "once, not for each");
        assert_eq!(store.rig.engine.failure(), None);
        store.assert_holds(1, 1, Full::Data);
        store.assert_holds(10, 0, Full::Data);
        assert_eq!(store.write(10, 8, Full::Nothing), Status::Ok);
        store.assert_holds(10, 8, Full::Nothing);
        store.command(Command::Checkpoint, Full::Nothing).unwrap();
        assert_eq!(store.write(11, 7, Full::Data), Status::NoSpace);
        assert_eq!(store.said("no space"), 1, "again, after a consistency point");
    }
}

#[test]
fn a_consistency_point_waits_for_space_and_costs_nothing() {
    for traits in TRAITS {
        let mut store = Store::new(traits);
        for block in 0..100 {
            assert_eq!(store.write(block, 3, Full::Nothing), Status::Ok);
        }
        let refused = store.command(Command::Checkpoint, Full::Metadata).unwrap_err();
        assert_eq!((refused.kind, store.said("no space for metadata")), (ErrorKind::NoSpace, 1));
        // It serves, and takes what the journal has room for.
        for block in 50..150 {
            assert_eq!(store.write(block, 4, Full::Metadata), Status::Ok);
        }
        let again = store.command(Command::Checkpoint, Full::Metadata).unwrap_err();
        assert_eq!((again.kind, store.said("")), (ErrorKind::NoSpace, 0));
        assert_eq!(store.rig.engine.failure(), None);
        assert_eq!(store.ask(Op::Flush, 0, 0, Full::Metadata).0, Status::Ok);
        let due = [vec![3; 4096], vec![4; 4096]].concat();
        // What a power cut leaves now has everything, and so has the store once there is space.
        if traits.volatile_cache {
            let mut later = store.rig.after_power_cut();
            let handle = later.attach(Target::Disk(store.disk));
            assert!(later.read(handle, 49 * 4096, 8192) == due);
        }
        for _ in 0..200 {
            store.turn(Full::Nothing);
        }
        assert_eq!(store.said("has space for metadata again"), 1);
        store.command(Command::Checkpoint, Full::Nothing).unwrap();
        let mut rig = store.rig.reopen();
        let handle = rig.attach(Target::Disk(store.disk));
        assert!(rig.read(handle, 49 * 4096, 8192) == due);
    }
}

#[test]
fn a_journal_that_fills_meanwhile_refuses_and_nothing_waits_for_ever() {
    for traits in TRAITS {
        let mut store = Store::new(traits);
        assert_eq!(store.write(0, 1, Full::Nothing), Status::Ok);
        store.command(Command::Checkpoint, Full::Nothing).unwrap();
        let statuses: Vec<Status> =
            (1..600).map(|block| store.write(block, 2, Full::Metadata)).collect();
        let refused = statuses.iter().position(|&s| s == Status::NoSpace).expect("it fills");
        assert!(refused > 100, "after {refused} records");
        assert!(statuses[refused..].iter().all(|&s| s == Status::NoSpace));
        assert_eq!(store.ask(Op::Discard, 1, 0, Full::Metadata).0, Status::NoSpace);
        let (disk, uuid, label) = (store.disk, Uuid([3; 16]), Name::EMPTY);
        let snapshot = Command::Snapshot { disk, uuid, label, time: 1 };
        assert_eq!(store.command(snapshot, Full::Metadata).unwrap_err().kind, ErrorKind::NoSpace);
        let in_place = if traits.atomic_4k { Status::Ok } else { Status::NoSpace };
        assert_eq!(store.write(0, 5, Full::Metadata), in_place);
        store.assert_holds(1, 2, Full::Metadata);
        for _ in 0..200 {
            store.turn(Full::Nothing);
        }
        for block in 1..600 {
            assert_eq!(store.write(block, 6, Full::Nothing), Status::Ok);
        }
        let clone = store.rig.create("more", MIB, None);
        assert!(clone.is_ok() && store.rig.engine.failure().is_none());
    }
}

#[test]
fn a_store_that_cannot_be_opened_for_want_of_space_says_so() {
    let mut store = Store::new(FILE);
    assert_eq!(store.write(0, 1, Full::Nothing), Status::Ok);
    let Rig { base, label, .. } = store.rig;
    let rig = Rig::opening(base.visible, label, FILE, false);
    let mut store = Store { rig, handle: store.handle, disk: store.disk };
    for _ in 0..1000 {
        store.turn(Full::Metadata);
    }
    let why = store.rig.engine.open_error().expect("it does not open").message.clone();
    assert!(why.contains("no space"), "{why}");
}

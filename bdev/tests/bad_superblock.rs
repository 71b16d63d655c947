//! A block of the superblock that can never be written again: the store opens, serves, and says
//! so; whatever a power cut does to the copies that are left, nothing that was flushed is missing.

mod damage;
mod rig;
mod simple;

use damage::checked;
use lamina_bdev::*;
use rig::{DISK, FILE, RAM, Random, Rig};

const STORE_BYTES: usize = 18 << 20;

/// A host whose base fails every write to some blocks of the region.
struct Host {
    rig: Rig,
    bad: Vec<u64>,
}

impl Host {
    fn open(image: Vec<u8>, label: StoreLabel, traits: BaseTraits, bad: &[u64]) -> Host {
        let rig = Rig::opening(image, label, traits, true);
        let mut host = Host { rig, bad: bad.to_vec() };
        for _ in 0..10_000 {
            if host.rig.engine.state() != EngineState::Opening {
                return host;
            }
            host.turn();
        }
        panic!("opening never ends");
    }

    fn turn(&mut self) {
        self.rig.step();
        while let Some(pending) = self.rig.base.pending.first() {
            let io = &pending.io;
            let (first, end) =
                (io.offset / 4096, io.offset.div_ceil(4096) + u64::from(io.len) / 4096);
            let hit = self.bad.iter().any(|block| (first..end).contains(block));
            let fails = io.op == BaseOp::Write && hit;
            self.rig.complete(0, if fails { Err(BaseError::Io) } else { Ok(()) });
            self.rig.start_all();
        }
    }

    fn command(&mut self, command: Command) -> Result<Reply, Error> {
        let given = self.rig.begin(command);
        for _ in 0..10_000 {
            if let Some((cookie, outcome)) = self.rig.engine.next_reply() {
                assert_eq!(cookie, given);
                return outcome;
            }
            self.turn();
        }
        panic!("a command never ends");
    }

    fn request(&mut self, handle: Handle, op: Op, offset: u64, data: Vec<u8>) -> (Status, Vec<u8>) {
        let len = data.len() as u64;
        let request = Request { cookie: 0, handle, op, offset, len, fua: false };
        self.rig.submit(request, data).expect("there are slots");
        for _ in 0..10_000 {
            if let Some((done, data)) = self.rig.next_done() {
                return (done.status, data);
            }
            self.turn();
        }
        panic!("a request never ends");
    }

    fn attach(&mut self, disk: DiskId) -> Handle {
        let reply = self.command(Command::Attach(Target::Disk(disk)));
        let Ok(Reply::Handle(handle)) = reply else { panic!("{reply:?}") };
        handle
    }
}

/// One block of the disk for each life.
fn lives(traits: BaseTraits, bad: &[u64], torn: Option<u64>) {
    let mut rig = Rig::new(STORE_BYTES, traits, true);
    let disk = rig.create("a", 4 << 20, None).unwrap();
    rig.settle();
    let (mut image, label) = (rig.base.visible.clone(), rig.label);
    let mut random = Random(7);
    for life in 0..12u8 {
        let mut host = Host::open(image, label, traits, bad);
        let refused = host.rig.engine.open_error();
        assert!(refused.is_none(), "{bad:?} in life {life}: {refused:?}");
        let said: Vec<Event> = host.rig.events();
        let names = |e: &&Event| e.text.contains("cannot be written") && e.severe;
        // After a torn one the spare copy and the torn one are kept, and the bad block is not
        // tried.
        let told = torn.is_some() || said.iter().any(|e| names(&e));
        assert!(told, "{bad:?} in life {life}: {said:?}");
        let handle = host.attach(disk);
        for before in 0..life {
            let at = u64::from(before) * 4096;
            let (status, data) = host.request(handle, Op::Read, at, vec![0x5a; 4096]);
            assert_eq!((status, data[0]), (Status::Ok, before + 1), "{bad:?} in life {life}");
        }
        let at = u64::from(life) * 4096;
        assert_eq!(host.request(handle, Op::Write, at, vec![life + 1; 4096]).0, Status::Ok);
        assert_eq!(host.request(handle, Op::Flush, 0, Vec::new()).0, Status::Ok);
        for _ in 0..random.below(4) {
            host.command(Command::Checkpoint).unwrap();
        }
        assert_eq!(host.rig.engine.failure(), None);
        image = match traits.volatile_cache {
            true => host.rig.base.durable.clone(),
            false => host.rig.base.visible.clone(),
        };
        if let Some(block) = torn.filter(|_| life % 2 == 1) {
            // A power cut in the middle of writing the good one of the two.
            let at = label.first_region as usize + block as usize * 4096;
            image[at + 512..at + 1024].fill(0x3c);
        }
        let report = checked(&image).unwrap();
        let errors = report.findings.iter().filter(|f| f.severity == check::Severity::Error);
        let errors: Vec<String> = errors.map(ToString::to_string).collect();
        assert!(errors.is_empty(), "{bad:?} after life {life}: {errors:?}");
    }
    // The device has been replaced by one without bad blocks: at the second open at the latest
    // both copies are where they belong.
    let host = Host::open(image, label, traits, &[]);
    let mut host = Host::open(host.rig.base.visible, label, traits, &[]);
    assert!(host.rig.engine.open_error().is_none());
    host.command(Command::Checkpoint).unwrap();
    let report = checked(&host.rig.base.visible).unwrap();
    assert!(report.clean(), "{:?}", report.findings);
}

#[test]
fn a_store_with_a_bad_superblock_block_opens_and_serves_life_after_life() {
    for traits in [RAM, FILE, DISK] {
        for bad in [0, 1] {
            lives(traits, &[bad], None);
        }
    }
}

#[test]
fn the_copy_elsewhere_counts_if_the_last_good_block_is_torn() {
    for traits in [FILE, DISK] {
        for bad in [0, 1] {
            lives(traits, &[bad], Some(1 - bad));
        }
    }
}

#[test]
fn with_both_blocks_bad_nothing_is_promised() {
    let mut rig = Rig::new(STORE_BYTES, FILE, true);
    rig.create("a", 4 << 20, None).unwrap();
    let host = Host::open(rig.base.durable.clone(), rig.label, FILE, &[0, 1]);
    assert_eq!(host.rig.engine.state(), EngineState::Failed);
    let why = host.rig.engine.open_error().unwrap().to_string();
    assert!(why.contains("could not be written"), "{why}");
}

/// The last record slot is where the copy is: no disk gets it meanwhile.
#[test]
fn disks_do_not_take_the_place_of_a_superblock() {
    let mut rig = Rig::new(STORE_BYTES, FILE, true);
    let mut made = 0;
    while rig.create(&format!("d{made}"), 1 << 20, None).is_ok() {
        made += 1;
    }
    let slots = made;
    let (image, label) = rig::formatted(STORE_BYTES);
    let mut host = Host::open(image, label, FILE, &[1]);
    host.command(Command::Checkpoint).unwrap();
    for made in 0..slots {
        let (name, mut uuid) = (Name::new(&format!("d{made}")).unwrap(), Uuid([9; 16]));
        uuid.0[0] = made as u8;
        let create = Command::CreateDisk { name, uuid, size: 1 << 20, from: None, time: 1 };
        assert_eq!(host.command(create).is_ok(), made + 1 < slots, "{made} of {slots}");
    }
    assert_eq!(host.rig.engine.failure(), None);
    let image = host.rig.base.durable.clone();
    assert!(checked(&image).unwrap().findings.iter().all(|f| f.severity < check::Severity::Error));
    let host = Host::open(image, label, FILE, &[1]);
    assert_eq!(host.rig.engine.disks().len(), slots - 1);
}

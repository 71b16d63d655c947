//! A block of the base that cannot be written, whichever it is: data, journal, map node, bitmap,
//! disk record, snapshot log, superblock. And one that cannot be read while a store is opened.
//!
//! ```text
//!  base writes:  1  2  3 ... n ✗          from then on, every write to that block fails
//!                             └ data: the request fails, and nothing else
//!                             └ a superblock: it is kept elsewhere, which is said once
//!                             └ anything else: the shard fails, and says so once
//! ```
//!
//! Every request and command gets its answer; what was acknowledged is there, in the engine that
//! met the block and in the next one. `LAMINA_BAD_BLOCKS` sets how many writes are tried (160).

mod rig;

use std::collections::BTreeMap;

use lamina_bdev::*;
use rig::{DISK, FILE, RAM, Random, Rig};

const STORE_BYTES: usize = 18 << 20;
/// Requests at once, each on blocks of its own.
const LANES: usize = 8;
const LANE_BLOCKS: usize = 12;
const WAVES: u64 = 9;

/// The block that cannot be written.
struct Bad {
    /// It is the first block of this write, counted from 1.
    nth: u64,
    seen: u64,
    address: Option<u64>,
}

impl Bad {
    fn judge(&mut self, io: &BaseIo) -> Result<(), BaseError> {
        if io.op != BaseOp::Write {
            return Ok(());
        }
        self.seen += 1;
        if self.seen == self.nth {
            self.address = Some(io.offset);
        }
        let hit = |at: u64| (io.offset..io.offset + u64::from(io.len)).contains(&at);
        if self.address.is_some_and(hit) { Err(BaseError::Io) } else { Ok(()) }
    }
}

/// Tags that each block may hold.
type Blocks = Vec<Vec<u64>>;

struct World {
    rig: Rig,
    random: Random,
    disk: DiskId,
    handle: Handle,
    blocks: Blocks,
    tag: u64,
    /// Snapshots that were answered, and what may be in them.
    snapshots: BTreeMap<u64, Blocks>,
    failed_requests: u64,
    failed_commands: u64,
}

fn check(rig: &mut Rig, target: Target, blocks: &Blocks, what: &str) {
    let handle = rig.attach(target);
    let bytes = rig.read(handle, 0, blocks.len() * 4096);
    for (at, (found, known)) in bytes.chunks(4096).zip(blocks).enumerate() {
        let tag = u64::from_le_bytes(found[..8].try_into().expect("8 bytes"));
        assert!(found.chunks(8).all(|word| word == &found[..8]), "{what}: block {at} is a mix");
        assert!(known.contains(&tag), "{what}: block {at} holds {tag}, not one of {known:?}");
    }
    rig.command(Command::Detach(handle)).expect("nothing is in flight");
}

impl World {
    fn new(traits: BaseTraits, seed: u64) -> World {
        let mut rig = Rig::new(STORE_BYTES, traits, false);
        let disk = rig.create("a", 4 << 20, None).expect("an empty store takes a disk");
        let handle = rig.attach(Target::Disk(disk));
        World {
            rig,
            random: Random(seed),
            disk,
            handle,
            blocks: vec![vec![0]; LANES * LANE_BLOCKS],
            tag: 0,
            snapshots: BTreeMap::new(),
            failed_requests: 0,
            failed_commands: 0,
        }
    }

    /// A request within lane `lane`; its cookie, tag and blocks.
    fn submit(&mut self, lane: usize) -> (u64, u64, std::ops::Range<usize>) {
        let count = 1 + self.random.below(LANE_BLOCKS as u64) as usize;
        let first =
            lane * LANE_BLOCKS + self.random.below((LANE_BLOCKS - count + 1) as u64) as usize;
        let op = match self.random.below(10) {
            0 => Op::Discard,
            1 => Op::WriteZeroes,
            _ => Op::Write,
        };
        self.tag += 1;
        let (tag, data) = match op {
            Op::Write => (self.tag, self.tag.to_le_bytes().repeat(512 * count)),
            _ => (0, Vec::new()),
        };
        let (offset, len) = (first as u64 * 4096, count as u64 * 4096);
        let fua = self.random.chance(20);
        let request = Request { cookie: 0, handle: self.handle, op, offset, len, fua };
        let cookie = self.rig.submit(request, data).expect("there are slots");
        (cookie, tag, first..first + count)
    }

    fn command(&self, wave: u64) -> Command {
        let name = Name::new(&format!("d{wave}")).expect("a lawful name");
        let uuid = Uuid([wave as u8 + 1; 16]);
        match wave % 4 {
            0 => Command::Snapshot { disk: self.disk, uuid, label: Name::EMPTY, time: 1 },
            1 => Command::Checkpoint,
            2 => Command::CreateDisk { name, uuid, size: 1 << 20, from: None, time: 2 },
            _ => Command::Resize(self.disk, (4 + wave) << 20),
        }
    }

    /// One request a lane and a command, in any order, to the end.
    fn wave(&mut self, wave: u64, bad: &mut Bad) {
        let mut flying: BTreeMap<_, _> = (0..LANES)
            .map(|lane| {
                let (cookie, tag, range) = self.submit(lane);
                (cookie, (tag, range))
            })
            .collect();
        let mut during = self.blocks.clone();
        for (tag, range) in flying.values() {
            during[range.clone()].iter_mut().for_each(|known| known.push(*tag));
        }
        let mut waits = Some(self.rig.begin(self.command(wave)));
        for _ in 0..20_000 {
            self.rig.step();
            while !self.rig.base.pending.is_empty() {
                let at = self.random.below(self.rig.base.pending.len() as u64) as usize;
                let result = bad.judge(&self.rig.base.pending[at].io);
                self.rig.complete(at, result);
                self.rig.start_all();
            }
            while let Some((done, _)) = self.rig.next_done() {
                let (tag, range) = flying.remove(&done.cookie).expect("answered once");
                let good = done.status == Status::Ok;
                assert!(good || done.status == Status::IoError, "{:?}", done.status);
                self.failed_requests += u64::from(!good);
                for known in &mut self.blocks[range] {
                    known.retain(|_| !good);
                    known.push(tag);
                }
            }
            while let Some((cookie, outcome)) = self.rig.engine.next_reply() {
                assert_eq!(waits.take(), Some(cookie), "a command is answered once");
                match outcome {
                    Ok(Reply::Snapshot(snap)) => {
                        self.snapshots.insert(snap.0, during.clone());
                    }
                    Ok(_) => {}
                    Err(error) => {
                        assert_eq!(error.kind, ErrorKind::Io, "{}", error.message);
                        assert!(!error.message.is_empty());
                        self.failed_commands += 1;
                    }
                }
            }
            if flying.is_empty() && waits.is_none() {
                return;
            }
        }
        panic!("{} requests and command {waits:?} never ended", flying.len());
    }

    /// What was acknowledged is there: now, and for the next engine.
    fn judge(mut self, bad: &Bad, what: &str) {
        let failure = self.rig.engine.failure().map(str::to_owned);
        let severe = self.rig.events().iter().filter(|event| event.severe).count();
        let superblock = bad.address.is_some_and(|at| at < 8192);
        assert_eq!(severe, usize::from(failure.is_some() || superblock), "{what}: {failure:?}");
        assert!(!(superblock && failure.is_some()), "{what}: there are two more places for it");
        check(&mut self.rig, Target::Disk(self.disk), &self.blocks, what);
        if let Some(failure) = &failure {
            assert!(!failure.is_empty());
            let status = self.rig.write(self.handle, 0, vec![1; 4096]);
            assert_eq!(status, Status::IoError, "{what}: a write after {failure}");
            let refused = self.rig.command(Command::Checkpoint).expect_err("it has failed");
            assert_eq!(refused.kind, ErrorKind::Io);
        } else if bad.address.is_some() && !superblock {
            assert!(self.failed_requests > 0, "{what}: nobody was told");
            assert_eq!(self.failed_commands, 0, "{what}: a block of data costs a request");
        } else {
            assert_eq!((self.failed_requests, self.failed_commands), (0, 0), "{what}");
        }
        let mut rig = self.rig.reopen();
        check(&mut rig, Target::Disk(self.disk), &self.blocks, what);
        for (snap, blocks) in &self.snapshots {
            let at = SnapRef { disk: self.disk, snap: SnapId(*snap) };
            check(&mut rig, Target::Snapshot(at), blocks, &format!("{what}, snapshot {snap}"));
        }
        let handle = rig.attach(Target::Disk(self.disk));
        assert_eq!(rig.write(handle, 0, vec![1; 4096]), Status::Ok, "{what}");
        assert_eq!(rig.flush(handle), Status::Ok, "{what}");
        rig.settle();
    }
}

fn tried() -> u64 {
    std::env::var("LAMINA_BAD_BLOCKS").ok().map_or(160, |text| text.parse().expect("a number"))
}

#[test]
fn whatever_cannot_be_written_costs_a_request_or_fails_the_shard_and_loses_nothing() {
    let (mut data, mut shard) = (0, 0);
    for nth in 1..=tried() {
        let (traits, name) = [(RAM, "RAM"), (FILE, "file"), (DISK, "disk")][nth as usize % 3];
        let mut world = World::new(traits, nth);
        let mut bad = Bad { nth, seen: 0, address: None };
        for wave in 0..WAVES {
            world.wave(wave, &mut bad);
        }
        let failed = world.rig.engine.failure().is_some();
        shard += u64::from(failed);
        data += u64::from(!failed && bad.address.is_some());
        world.judge(&bad, &format!("write {nth} on {name}"));
    }
    assert!(data > 20 && shard > 20, "{data} blocks of data, {shard} of metadata");
}

/// What disk `a` holds in the end: bytes, and in how many blocks.
const FURNISHED: [(u8, usize); 3] = [(1, 1), (3, 1), (2, 32)];

/// A store with something of everything: two disks, a clone, snapshots, a journal to replay.
fn furnished(traits: BaseTraits) -> (Rig, DiskId) {
    let mut rig = Rig::new(STORE_BYTES, traits, false);
    let disk = rig.create("a", 4 << 20, None).expect("a disk");
    let handle = rig.attach(Target::Disk(disk));
    assert_eq!(rig.write(handle, 0, vec![1; 64 << 10]), Status::Ok);
    let snap = rig.snapshot(disk).expect("a snapshot");
    rig.create("b", 4 << 20, Some(snap)).expect("a clone");
    rig.settle();
    assert_eq!(rig.write(handle, 8192, vec![2; 128 << 10]), Status::Ok);
    rig.snapshot(disk).expect("a snapshot");
    assert_eq!(rig.write(handle, 4096, vec![3; 4096]), Status::Ok);
    (rig, disk)
}

/// Opens the store with the `nth` read failing, and if not `once`, all later ones of that block;
/// how many reads there were.
fn open_with_bad_read(rig: &Rig, nth: u64, once: bool) -> (Rig, u64) {
    let image = rig.base.visible.clone();
    let mut rig = Rig::opening(image, rig.label, rig.traits, false);
    let (mut reads, mut bad) = (0, None);
    for _ in 0..10_000 {
        if rig.engine.state() != EngineState::Opening {
            return (rig, reads);
        }
        rig.step();
        while let Some(pending) = rig.base.pending.first() {
            let (is_read, offset) = (pending.io.op == BaseOp::Read, pending.io.offset);
            reads += u64::from(is_read);
            if is_read && reads == nth {
                bad = Some(offset);
            }
            let fails = is_read && bad == Some(offset) && (!once || reads == nth);
            rig.complete(0, if fails { Err(BaseError::Io) } else { Ok(()) });
            rig.start_all();
        }
    }
    panic!("opening with read {nth} failing never ends");
}

#[test]
fn a_store_of_which_a_block_cannot_be_read_opens_or_says_why_not() {
    for traits in [RAM, FILE] {
        let (rig, disk) = furnished(traits);
        let (good, reads) = open_with_bad_read(&rig, u64::MAX, false);
        assert_eq!(good.engine.state(), EngineState::Ready);
        assert!(reads > 10, "{reads} reads");
        let (mut opened, mut refused) = (0, 0);
        for nth in 1..=reads {
            for once in [false, true] {
                let (mut found, _) = open_with_bad_read(&rig, nth, once);
                if found.engine.state() == EngineState::Failed {
                    let error = found.engine.open_error().expect("a failure has a reason");
                    assert!(error.message.contains("read"), "read {nth}: {}", error.message);
                    refused += 1;
                    continue;
                }
                opened += 1;
                let told = found.events().iter().any(|event| event.severe);
                let all_there = found.engine.disks().iter().filter(|d| d.id == disk).count() == 1;
                assert!(told || all_there, "read {nth}: a disk is gone without a word");
                // What cannot be told is refused; what is told is true.
                if let Ok(Reply::Handle(handle)) =
                    found.command(Command::Attach(Target::Disk(disk)))
                {
                    let len = FURNISHED.iter().map(|(_, blocks)| blocks * 4096).sum::<usize>();
                    let (op, offset) = (Op::Read, 0);
                    let request =
                        Request { cookie: 0, handle, op, offset, len: len as u64, fua: false };
                    let (status, data) = found.request(request, vec![0; len]);
                    let mut known = FURNISHED.iter().flat_map(|(byte, n)| vec![*byte; n * 4096]);
                    let same = data.iter().all(|byte| known.next() == Some(*byte));
                    assert!(status != Status::Ok || same, "read {nth}: wrong data");
                }
            }
        }
        assert!(opened > 0 && refused > 0, "{opened} opened, {refused} refused");
    }
}

/// Opens the store while no read succeeds that covers the block of the region.
fn open_without(rig: &Rig, block: u64) -> Rig {
    let image = rig.base.visible.clone();
    Rig::open_failing(image, rig.label, rig.traits, |op, at| op == BaseOp::Read && at == block)
}

/// Disks that can be used of `a` and `b`; `None`: the store was refused.
fn served_without(rig: &Rig, block: u64) -> Option<usize> {
    let mut found = open_without(rig, block);
    if found.engine.state() == EngineState::Failed {
        let error = found.engine.open_error().expect("a failure has a reason");
        assert!(error.message.contains("cannot be read"), "block {block}: {error}");
        return None;
    }
    let disks = found.engine.disks();
    let told = found.events().iter().any(|event| event.severe);
    assert!(told || disks.len() == 2, "block {block}: a disk is gone without a word");
    for disk in disks.iter().filter(|disk| disk.name.as_str() == "a") {
        let handle = found.attach(Target::Disk(disk.id));
        let known: Vec<u8> = FURNISHED.iter().flat_map(|&(b, n)| vec![b; n * 4096]).collect();
        assert!(found.read(handle, 0, known.len()) == known, "block {block}: wrong data");
    }
    found.settle();
    Some(disks.len())
}

#[test]
fn of_what_there_are_two_copies_one_that_cannot_be_read_costs_one_disk_at_most() {
    for traits in [RAM, FILE] {
        let (rig, _) = furnished(traits);
        let superblock = rig.label.first_region as usize;
        let field = |at: usize| {
            let bytes = &rig.base.visible[superblock + at..superblock + at + 8];
            u64::from_le_bytes(bytes.try_into().expect("8 bytes"))
        };
        let (catalogue, records, journal, journal_blocks) =
            (field(72), field(88), field(104), field(112));
        let (extents, extent_blocks, extent_count) = (field(120), field(128), field(136));
        let (tail, slots) = (field(144), field(160));
        for copy in [0, 1] {
            assert_eq!(served_without(&rig, copy), Some(2), "superblock {copy}");
        }
        let pairs = (catalogue..records + 2 * slots).step_by(2);
        let bitmaps = (0..extent_count).map(|extent| extents + extent * extent_blocks);
        for pair in pairs.chain(bitmaps) {
            let copies = [pair, pair + 1].map(|copy| served_without(&rig, copy));
            assert!(copies.contains(&Some(2)), "pair {pair}: {copies:?}");
            // A record or log costs its disk. What is in use can be found out from elsewhere.
            let space = pair < records || pair >= extents;
            assert!(!space || copies == [Some(2); 2], "pair {pair}: {copies:?}");
            assert!(!copies.contains(&None), "pair {pair}: {copies:?}");
        }
        // The journal as far as it counts, and one past its end.
        let at = |lsn: u64| served_without(&rig, journal + lsn % journal_blocks);
        assert_eq!(at(tail), None, "acknowledged writes are not passed over");
        let end = (tail..tail + journal_blocks).find(|&lsn| at(lsn).is_some());
        let end = end.expect("the journal is not full");
        assert!((end..end + 40).all(|lsn| at(lsn) == Some(2)), "behind block {end}");
    }
}

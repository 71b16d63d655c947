//! A flush is a flush: checked against what the base device was asked and answered, and against
//! what a power cut would leave.
//!
//! ```text
//!  writes acknowledged ─┐
//!        FLUSH arrives ─┴─► a base flush begins ─► ... ─► it completes, well ─► acknowledged
//! ```
//!
//! Completions come in random order and late. `LAMINA_FLUSH_SEEDS` sets the number of seeds (150).

mod rig;

use std::collections::BTreeMap;

use lamina_bdev::*;
use rig::{DISK, FILE, RAM, Random, Rig};

const STORE_BYTES: usize = 18 << 20;
const BLOCKS: usize = 96;

/// A guest request in flight.
struct Flying {
    op: Op,
    fua: bool,
    first: usize,
    count: usize,
    /// For a flush: when the last write that it covers was on the base.
    covers: u64,
    submitted: u64,
}

/// What a block may hold: values, with when they were acknowledged; the first is durable.
type History = Vec<(u64, Option<u64>)>;

struct World {
    rig: Rig,
    random: Random,
    disk: DiskId,
    handle: Handle,
    blocks: Vec<History>,
    flying: BTreeMap<u64, Flying>,
    /// Commands in flight; true: a snapshot.
    commands: BTreeMap<u64, bool>,
    snapshots: Vec<SnapRef>,
    tags: u64,
    /// When the last write acknowledged so far was on the base.
    written: u64,
    /// When a base flush failed.
    broken: Option<u64>,
    flushes_acked: u64,
    flushes_failed: u64,
}

impl World {
    fn new(traits: BaseTraits, seed: u64) -> World {
        let mut rig = Rig::new(STORE_BYTES, traits, true);
        let disk = rig.create("a", 1 << 20, None).unwrap();
        let handle = rig.attach(Target::Disk(disk));
        let blocks = vec![vec![(0, Some(0))]; BLOCKS];
        World {
            rig,
            random: Random(seed),
            disk,
            handle,
            blocks,
            flying: BTreeMap::new(),
            commands: BTreeMap::new(),
            snapshots: Vec::new(),
            tags: 0,
            written: 0,
            broken: None,
            flushes_acked: 0,
            flushes_failed: 0,
        }
    }

    fn now(&self) -> u64 {
        self.rig.base.clock
    }

    fn submit(&mut self) {
        let (op, fua) = match self.random.below(100) {
            0..=54 => (Op::Write, false),
            55..=69 => (Op::Write, true),
            70..=79 => (Op::Discard, self.random.chance(30)),
            _ => (Op::Flush, false),
        };
        let count = if op == Op::Flush { 0 } else { 1 + self.random.below(6) as usize };
        let first = self.random.below((BLOCKS - count) as u64) as usize;
        let taken = |f: &Flying| first < f.first + f.count && f.first < first + count;
        if self.flying.values().any(taken) {
            return;
        }
        let mut data = Vec::new();
        self.tags += 1;
        if op == Op::Write {
            data = self.tags.to_le_bytes().repeat(512 * count);
        }
        let (offset, len) = (first as u64 * 4096, count as u64 * 4096);
        let request = Request { cookie: 0, handle: self.handle, op, offset, len, fua };
        let Some(cookie) = self.rig.submit(request, data) else { return };
        let tag = if op == Op::Write { self.tags } else { 0 };
        for history in &mut self.blocks[first..first + count] {
            history.push((tag, None));
        }
        let (covers, submitted) = (self.written, self.now());
        self.flying.insert(cookie, Flying { op, fua, first, count, covers, submitted });
    }

    /// Takes answers at once, so that an answer comes with the completion that caused it.
    fn collect(&mut self) {
        while let Some((done, _)) = self.rig.next_done() {
            let flying = self.flying.remove(&done.cookie).expect("answered once");
            self.answered(&flying, done.status);
        }
        while let Some((cookie, outcome)) = self.rig.engine.next_reply() {
            let snapshot = self.commands.remove(&cookie).expect("answered once");
            if self.broken.is_some() {
                assert!(outcome.is_err(), "a command was done after a failed flush");
            }
            if let Ok(Reply::Snapshot(snap)) = outcome {
                assert!(snapshot);
                self.snapshots.push(SnapRef { disk: self.disk, snap });
            }
        }
    }

    fn answered(&mut self, flying: &Flying, status: Status) {
        let now = self.now();
        let promise = flying.op == Op::Flush || flying.fua;
        if self.broken.is_some() && promise {
            assert_eq!(status, Status::IoError, "{:?} after a failed flush", flying.op);
        }
        if status != Status::Ok {
            assert!(self.broken.is_some(), "{:?} failed: {status:?}", flying.op);
            self.flushes_failed += u64::from(promise);
            return;
        }
        for history in &mut self.blocks[flying.first..flying.first + flying.count] {
            history.last_mut().expect("never empty").1 = Some(now);
        }
        if flying.op != Op::Flush && !flying.fua {
            self.written = self.rig.base.last_write;
        }
        if promise {
            self.promised(flying);
        }
    }

    /// A flush (or a write with FUA) was acknowledged: was it one?
    fn promised(&mut self, flying: &Flying) {
        let now = self.now();
        self.flushes_acked += 1;
        // A write's own data cannot have been on the base before it was submitted.
        let after = if flying.op == Op::Flush { flying.covers } else { flying.submitted };
        let needed = self.rig.traits.volatile_cache && after > 0;
        let good = |f: &rig::Flushed| f.good && f.began > after && f.ended <= now;
        if needed {
            assert!(self.rig.base.flushed.iter().any(good), "no base flush since {after} by {now}");
        }
        for (i, history) in self.blocks.iter_mut().enumerate() {
            let own = (flying.first..flying.first + flying.count).contains(&i);
            let before = |at: u64| if own { at <= now } else { at < flying.submitted };
            if !own && flying.op != Op::Flush {
                continue;
            }
            let covered = history.iter().rposition(|(_, acked)| acked.is_some_and(before));
            history.drain(..covered.unwrap_or(0));
        }
    }

    fn command(&mut self) {
        let snapshot = self.random.chance(50) && self.snapshots.len() < 20;
        let cookie = if snapshot {
            let (disk, uuid) = (self.disk, Uuid([self.tags as u8; 16]));
            self.rig.begin(Command::Snapshot { disk, uuid, label: Name::EMPTY, time: 1 })
        } else {
            self.rig.begin(Command::Checkpoint)
        };
        self.commands.insert(cookie, snapshot);
    }

    /// One thing happens. `fail`: how the next base flush to complete ends.
    fn step(&mut self, fail: &mut bool) {
        match self.random.below(100) {
            0..=34 => self.submit(),
            35..=36 if self.commands.len() < 4 => self.command(),
            37..=59 => self.rig.step(),
            _ => {
                let pending = self.rig.base.pending.len() as u64;
                if pending > 0 {
                    let at = self.random.below(pending) as usize;
                    let flush = self.rig.base.pending[at].io.op == BaseOp::Flush;
                    let result = if flush && *fail { Err(BaseError::Io) } else { Ok(()) };
                    if result.is_err() {
                        *fail = false;
                        self.broken = Some(self.now());
                    }
                    self.rig.complete(at, result);
                    self.collect();
                    self.rig.start_all();
                }
            }
        }
        self.collect();
    }

    /// Everything in flight ends.
    fn drain(&mut self) {
        for _ in 0..20_000 {
            if self.flying.is_empty() && self.commands.is_empty() {
                return;
            }
            self.rig.step();
            self.collect();
            while !self.rig.base.pending.is_empty() {
                let at = self.random.below(self.rig.base.pending.len() as u64) as usize;
                self.rig.complete(at, Ok(()));
                self.collect();
                self.rig.start_all();
            }
        }
        let ops: Vec<Op> = self.flying.values().map(|f| f.op).collect();
        panic!("{ops:?} and {} commands never ended", self.commands.len());
    }

    /// What a power cut now leaves is nothing but what was promised or may have been written since.
    fn cut_power(&mut self) {
        let mut rig = self.rig.after_power_cut();
        let handle = rig.attach(Target::Disk(self.disk));
        let read = rig.read(handle, 0, BLOCKS * 4096);
        for (i, (found, history)) in read.chunks(4096).zip(&self.blocks).enumerate() {
            let tag = u64::from_le_bytes(found[..8].try_into().expect("8 bytes"));
            assert!(found.chunks(8).all(|word| word == &found[..8]), "block {i} is a mix");
            let known = history.iter().any(|&(known, _)| known == tag);
            assert!(known, "block {i} holds {tag} after a power cut, not one of {history:?}");
        }
        let found: Vec<SnapRef> =
            rig.engine.snapshots(self.disk).iter().map(|info| info.snap).collect();
        for snap in &self.snapshots {
            assert!(found.contains(snap), "{snap:?} was answered and is gone: {found:?}");
        }
    }
}

fn seeds() -> u64 {
    std::env::var("LAMINA_FLUSH_SEEDS").ok().map_or(150, |text| text.parse().expect("a number"))
}

#[test]
fn every_flush_acknowledged_had_a_base_flush_of_its_own_time() {
    let mut acked = 0;
    for seed in 0..seeds() {
        let traits = [FILE, DISK][seed as usize % 2];
        let mut world = World::new(traits, seed);
        for _ in 0..6 {
            for _ in 0..150 {
                world.step(&mut false);
            }
            world.cut_power();
        }
        world.drain();
        world.cut_power();
        acked += world.flushes_acked;
        assert_eq!(world.flushes_failed, 0);
    }
    assert!(acked > 20 * seeds(), "only {acked} promises were made");
}

#[test]
fn after_a_failed_flush_nothing_is_promised_until_the_store_is_reopened() {
    let mut failed = 0;
    for seed in 0..seeds() {
        let traits = [FILE, DISK][seed as usize % 2];
        let mut world = World::new(traits, 1_000_000 + seed);
        let quiet = world.random.below(400);
        for _ in 0..quiet {
            world.step(&mut false);
        }
        let mut fail = true;
        for _ in 0..300 {
            world.step(&mut fail);
        }
        if fail {
            continue;
        }
        assert!(world.rig.engine.failure().is_some());
        world.drain();
        assert_eq!(world.rig.flush(world.handle), Status::IoError);
        let severe = world.rig.events().iter().filter(|event| event.severe).count();
        assert_eq!(severe, 1, "one failure is one line for the log");
        assert_eq!(world.rig.command(Command::Checkpoint).unwrap_err().kind, ErrorKind::Io);
        world.cut_power();
        failed += world.flushes_failed;
        // Reads go on; a new attachment changes nothing; a new engine does.
        world.rig.read(world.handle, 0, 4096);
        let again = world.rig.attach(Target::Disk(world.disk));
        assert_eq!(world.rig.flush(again), Status::IoError);
        let mut rig = world.rig.reopen();
        let handle = rig.attach(Target::Disk(world.disk));
        assert_eq!(rig.write(handle, 0, vec![1; 4096]), Status::Ok);
        assert_eq!(rig.flush(handle), Status::Ok);
    }
    assert!(failed > seeds(), "only {failed} flushes saw the failure");
}

/// A device with a volatile cache may drop what it held when a flush fails, and answer the next
/// flush well because nothing is left to write; completions may overtake each other. So the success
/// of one of two flushes in flight would mean nothing: there is only ever one.
#[test]
fn base_flushes_do_not_overlap() {
    let mut flushes = 0;
    for seed in 0..seeds() / 3 {
        let mut world = World::new(FILE, 2_000_000 + seed);
        for _ in 0..600 {
            world.step(&mut false);
            let pending = &world.rig.base.pending;
            let flying = pending.iter().filter(|p| p.io.op == BaseOp::Flush).count();
            assert!(flying <= 1, "{flying} base flushes at a time");
        }
        flushes += world.rig.base.flushed.len();
    }
    assert!(flushes as u64 > 10 * seeds());
}

/// A consistency point's own flush fails: commands that wait for it, and flushes after it, fail.
#[test]
fn a_failed_flush_of_a_consistency_point_is_a_failed_flush() {
    for nth in 0..3 {
        let mut world = World::new(DISK, nth);
        let status = world.rig.write(world.handle, 0, vec![5; 4096]);
        assert_eq!(status, Status::Ok);
        let checkpoint = world.rig.begin(Command::Checkpoint);
        let mut seen = 0;
        for _ in 0..1000 {
            world.rig.step();
            while let Some(pending) = world.rig.base.pending.first() {
                let fails = pending.io.op == BaseOp::Flush && seen == nth;
                seen += u64::from(pending.io.op == BaseOp::Flush);
                world.rig.complete(0, if fails { Err(BaseError::Io) } else { Ok(()) });
                world.rig.start_all();
            }
        }
        let (cookie, outcome) = world.rig.engine.next_reply().expect("an answer");
        assert_eq!((cookie, outcome.unwrap_err().kind), (checkpoint, ErrorKind::Io));
        assert_eq!(world.rig.flush(world.handle), Status::IoError);
        assert_eq!(world.rig.write(world.handle, 0, vec![6; 4096]), Status::IoError);
    }
}

#[test]
fn a_base_without_a_volatile_cache_is_never_flushed() {
    for seed in 0..seeds() / 5 {
        let mut world = World::new(RAM, 3_000_000 + seed);
        for _ in 0..300 {
            world.step(&mut false);
        }
        world.drain();
        assert!(world.flushes_acked > 0);
        assert!(world.rig.base.flushed.is_empty());
    }
}

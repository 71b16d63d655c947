//! The alphabet of workloads, and the hand that plays a word of it on a store and notes down
//! everything that was asked and answered.

use std::collections::BTreeMap;

use lamina_bdev::{
    BaseTraits, Command, DiskId, ErrorKind, FormatParams, LABEL_BYTES, Name, Op, Reply, Request,
    SnapRef, Status, StoreLabel, Target, Uuid, format_plan, read_label,
};

use super::facts::{Change, DiskFacts, Effect, Facts, SnapFacts, Span};
use super::host::{Host, Order};
use super::image::{Image, PAGE, Page, Pool};
use super::log::Log;
use crate::sim::memory::Buffer;
use crate::sim::pattern;

/// Bytes of the store: the least that the format allows.
const REGION_BYTES: u64 = 16 << 20;
/// Bytes of the journal: the shortest ring, so that it wraps soon.
const JOURNAL_BYTES: u64 = 64 << 10;
/// Bytes of the disk that most letters work on: three leaves.
const DISK_BYTES: u64 = 4 << 20;
/// Turns without an answer after which the engine hangs.
const TURNS_MAX: usize = 20_000;
/// Time at which the recorded part of a workload begins.
pub const START: usize = 1 << 32;

/// One step of a workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Letter {
    /// One block that a snapshot shares.
    Write,
    /// Some sectors of two blocks.
    Unaligned,
    /// Four blocks on both sides of the border of two leaves.
    Span,
    /// The same block twice, without a flush between.
    Twice,
    /// A block with force unit access.
    Fua,
    /// A flush.
    Flush,
    /// Blocks and parts of blocks.
    Discard,
    /// The same, which must read as zeros.
    Zeroes,
    /// A snapshot.
    Snapshot,
    /// A clone of the newest snapshot, and a write to it.
    Clone,
    /// The oldest snapshot goes.
    DropSnapshot,
    /// A disk goes: the newest clone, else the second disk.
    DropDisk,
    /// The disk shrinks to a leaf, or grows back.
    Resize,
    /// A consistency point.
    Checkpoint,
    /// More records than the journal's ring holds.
    Wrap,
}

impl Letter {
    /// All of them.
    pub const ALL: [Letter; 15] = [
        Letter::Write,
        Letter::Unaligned,
        Letter::Span,
        Letter::Twice,
        Letter::Fua,
        Letter::Flush,
        Letter::Discard,
        Letter::Zeroes,
        Letter::Snapshot,
        Letter::Clone,
        Letter::DropSnapshot,
        Letter::DropDisk,
        Letter::Resize,
        Letter::Checkpoint,
        Letter::Wrap,
    ];

    /// As a workload's name spells it.
    pub fn name(self) -> &'static str {
        match self {
            Letter::Write => "write",
            Letter::Unaligned => "unaligned",
            Letter::Span => "span",
            Letter::Twice => "twice",
            Letter::Fua => "fua",
            Letter::Flush => "flush",
            Letter::Discard => "discard",
            Letter::Zeroes => "zeroes",
            Letter::Snapshot => "snapshot",
            Letter::Clone => "clone",
            Letter::DropSnapshot => "dropsnapshot",
            Letter::DropDisk => "dropdisk",
            Letter::Resize => "resize",
            Letter::Checkpoint => "checkpoint",
            Letter::Wrap => "wrap",
        }
    }
}

/// A formatted store with two disks and a snapshot, and all that is known of it.
pub struct Prelude {
    /// What names the store.
    pub label: StoreLabel,
    /// What it holds.
    pub image: Image,
    /// Free blocks of the store when it was empty.
    pub empty_blocks: u64,
}

/// Plays letters on one store.
pub struct Player {
    /// The engine and its device.
    pub host: Host,
    /// What was asked and answered.
    pub facts: Facts,
    /// Wait for the answer of each request before the next.
    patient: bool,
    cookies: u64,
    /// By cookie: which changes and barriers wait for their answers, and their memory.
    waiting: BTreeMap<u64, Waiting>,
    answers: BTreeMap<u64, Result<Reply, ErrorKind>>,
}

enum Waiting {
    Change(usize, #[allow(dead_code, reason = "kept until the answer")] Option<Buffer>),
    Barrier(usize),
}

type Played = Result<(), String>;

fn format(pool: &mut Pool) -> Result<(StoreLabel, Image), String> {
    let params = FormatParams {
        uuid: Uuid([0x5A; 16]),
        name: Name::new("powercut")?,
        device_bytes: REGION_BYTES + 16 * PAGE as u64,
        shards: 1,
        journal_bytes: JOURNAL_BYTES,
        time: 1_700_000_000,
    };
    let writes = format_plan(&params).map_err(|error| format!("format: {error}"))?;
    let mut first = vec![0; LABEL_BYTES];
    for write in writes.iter().filter(|w| w.offset == 0) {
        first.copy_from_slice(&write.bytes);
    }
    let label = read_label(&first, params.device_bytes).map_err(|e| format!("label: {e}"))?;
    let mut image = Image::new(label.region_bytes / PAGE as u64);
    for write in writes.iter().filter(|w| w.offset >= label.first_region) {
        for (index, chunk) in write.bytes.chunks_exact(PAGE).enumerate() {
            let page: &Page = chunk.try_into().expect("a chunk is a page");
            let block = (write.offset - label.first_region) / PAGE as u64 + index as u64;
            let page = pool.add(page);
            image.put(pool, block, page);
        }
    }
    Ok((label, image))
}

/// Makes the store that all workloads begin with, and the facts about it.
///
/// # Errors
/// The engine refuses something.
pub fn prelude(pool: &mut Pool, traits: BaseTraits) -> Result<(Prelude, Facts), String> {
    let (label, image) = format(pool)?;
    let host = Host::open(pool, image, &label, traits, Order::Together, Log::new(1))?;
    let info = host.engine().store_info();
    let empty_blocks = info.free_blocks + info.pending_blocks;
    let mut player = Player::new(host, Facts::new(traits), true);
    player.create_disk(pool, DISK_BYTES, None)?;
    player.create_disk(pool, 1 << 20, None)?;
    player.change(pool, 0, (0, 9), Effect::Write, false)?;
    player.change(pool, 0, (8 * 509, 8 * 6), Effect::Write, false)?;
    player.change(pool, 0, (8 * 1023, 8), Effect::Write, false)?;
    player.change(pool, 1, (0, 16), Effect::Write, false)?;
    player.change(pool, 0, (8, 32), Effect::Write, false)?;
    player.snapshot(pool, 0)?;
    // Of these only the live disk knows: they may be overwritten in place.
    player.change(pool, 0, (8 * 4, 8 * 4), Effect::Write, false)?;
    player.change(pool, 0, (8 * 511, 8 * 2), Effect::Write, false)?;
    player.barrier(pool, Command::Checkpoint)?;
    let mut facts = player.facts;
    facts.disks.iter_mut().for_each(|disk| disk.handle = None);
    Ok((Prelude { label, image: player.host.image, empty_blocks }, facts))
}

impl Facts {
    fn new(traits: BaseTraits) -> Facts {
        // Number 0 stands for zeros.
        let nothing = Change {
            disk: 0,
            offset: 0,
            len: 0,
            effect: Effect::Zero,
            span: Span { submit: 0, ack: 0 },
            fua: false,
        };
        Facts { changes: vec![nothing], steady: !traits.volatile_cache, ..Facts::default() }
    }
}

impl Player {
    /// A player of a store about which `facts` are known.
    pub fn new(host: Host, facts: Facts, patient: bool) -> Player {
        Player {
            host,
            facts,
            patient,
            cookies: 0,
            waiting: BTreeMap::new(),
            answers: BTreeMap::new(),
        }
    }

    /// Attaches the disks that are there.
    ///
    /// # Errors
    /// The engine refuses.
    pub fn attach_all(&mut self, pool: &mut Pool) -> Played {
        for disk in 0..self.facts.disks.len() {
            self.attach(pool, disk)?;
        }
        Ok(())
    }

    /// Plays one letter.
    ///
    /// # Errors
    /// The engine does what it must not.
    pub fn play(&mut self, pool: &mut Pool, letter: Letter) -> Played {
        match letter {
            Letter::Write => self.change(pool, 0, (0, 8), Effect::Write, false),
            Letter::Unaligned => self.change(pool, 0, (5, 9), Effect::Write, false),
            Letter::Span => self.change(pool, 0, (8 * 510, 8 * 4), Effect::Write, false),
            Letter::Twice => {
                self.change(pool, 0, (8 * 2, 8), Effect::Write, false)?;
                self.change(pool, 0, (8 * 2, 8), Effect::Write, false)
            }
            Letter::Fua => self.change(pool, 0, (8 * 4, 8), Effect::Write, true),
            Letter::Flush => self.flush(pool),
            Letter::Discard => self.change(pool, 0, (4, 28), Effect::Discard, false),
            Letter::Zeroes => self.change(pool, 0, (12, 30), Effect::Zero, false),
            Letter::Snapshot => self.snapshot(pool, 0),
            Letter::Clone => self.clone_newest(pool),
            Letter::DropSnapshot => self.drop_snapshot(pool),
            Letter::DropDisk => self.drop_disk(pool),
            Letter::Resize => self.resize(pool),
            Letter::Checkpoint => self.barrier(pool, Command::Checkpoint),
            Letter::Wrap => {
                for at in 0..20 {
                    self.change(pool, 0, (8 * (16 + at % 7), 8), Effect::Write, false)?;
                }
                Ok(())
            }
        }
    }

    /// Waits until nothing is in flight.
    ///
    /// # Errors
    /// That never comes, or something failed.
    pub fn rest(&mut self, pool: &mut Pool) -> Played {
        self.until(pool, |player| player.waiting.is_empty() && !player.host.busy())
    }

    fn until(&mut self, pool: &mut Pool, done: impl Fn(&Player) -> bool) -> Played {
        for _ in 0..TURNS_MAX {
            self.collect()?;
            if done(self) {
                return Ok(());
            }
            self.host.turn(pool);
        }
        Err("the engine hangs".to_string())
    }

    fn collect(&mut self) -> Played {
        for done in self.host.take_done() {
            let ack = self.host.log.note();
            match (self.waiting.remove(&done.cookie), done.status) {
                (Some(Waiting::Change(at, _)), Status::Ok) => {
                    self.facts.changes[at].span.ack = ack;
                }
                // A shrink was asked for meanwhile: it may have been there first, or come between.
                (Some(Waiting::Change(at, _)), Status::OutOfRange) if self.cut_off(at) => {}
                (Some(_), status) if status != Status::Ok => {
                    return Err(format!("a request ended with {status:?}"));
                }
                (Some(Waiting::Barrier(at)), _) => self.facts.barriers[at].ack = ack,
                (Some(Waiting::Change(..)), _) => unreachable!("matched by its status"),
                (None, _) => return Err("a request ended twice".to_string()),
            }
        }
        for (cookie, outcome) in self.host.take_replies() {
            self.host.log.note();
            self.answers.insert(cookie, outcome.map_err(|error| error.kind));
        }
        Ok(())
    }

    /// True if the disk's last resize was asked for after change `at`, and ends before it.
    fn cut_off(&self, at: usize) -> bool {
        let change = &self.facts.changes[at];
        let (size, span) = self.facts.disks[change.disk].sizes.last().expect("it has a size");
        span.submit > change.span.submit && change.offset + change.len > *size
    }

    fn cookie(&mut self) -> u64 {
        self.cookies += 1;
        self.cookies
    }

    /// Writes, zeroes or discards sectors of a disk: `(first, count)`.
    fn change(
        &mut self,
        pool: &mut Pool,
        disk: usize,
        (first, count): (u64, u64),
        effect: Effect,
        fua: bool,
    ) -> Played {
        let size = self.facts.disks[disk].size();
        let (offset, len) = (first * 512, (count * 512).min(size.saturating_sub(first * 512)));
        let Some(handle) = self.facts.disks[disk].handle.filter(|_| len > 0) else { return Ok(()) };
        let number = self.facts.changes.len();
        let buffer = (effect == Effect::Write).then(|| {
            let mut data = vec![0; len as usize];
            for (index, sector) in data.chunks_exact_mut(512).enumerate() {
                pattern::fill(sector, number as u32, first + index as u64);
            }
            let buffer = Buffer::new(&[len as usize], 0);
            buffer.store(&data);
            buffer
        });
        let op = match effect {
            Effect::Write => Op::Write,
            Effect::Zero => Op::WriteZeroes,
            Effect::Discard => Op::Discard,
        };
        let cookie = self.cookie();
        let span = Span::begin(self.host.log.note());
        self.facts.changes.push(Change { disk, offset, len, effect, span, fua });
        let request = Request { cookie, handle, op, offset, len, fua };
        let segs = buffer.as_ref().map_or(&[][..], |b| b.segs()).to_vec();
        self.waiting.insert(cookie, Waiting::Change(number, buffer));
        self.submit(pool, &request, &segs)
    }

    fn submit(&mut self, pool: &mut Pool, request: &Request, segs: &[lamina_bdev::Seg]) -> Played {
        for _ in 0..TURNS_MAX {
            if self.host.submit(request, segs) {
                let cookie = request.cookie;
                return match self.patient {
                    true => self.until(pool, |player| !player.waiting.contains_key(&cookie)),
                    false => Ok(()),
                };
            }
            self.host.turn(pool);
            self.collect()?;
        }
        Err("a request is never taken".to_string())
    }

    fn flush(&mut self, pool: &mut Pool) -> Played {
        let Some(handle) = self.facts.disks[0].handle else { return Ok(()) };
        let cookie = self.cookie();
        self.facts.barriers.push(Span::begin(self.host.log.note()));
        self.waiting.insert(cookie, Waiting::Barrier(self.facts.barriers.len() - 1));
        let request = Request { cookie, handle, op: Op::Flush, offset: 0, len: 0, fua: false };
        self.submit(pool, &request, &[])
    }

    /// Gives a command and waits for its answer. Times: asked for, answered.
    fn ask(
        &mut self,
        pool: &mut Pool,
        command: Command,
        begun: impl FnOnce(&mut Facts, Span),
    ) -> Result<(Result<Reply, ErrorKind>, usize), String> {
        let cookie = self.cookie();
        let span = Span::begin(self.host.log.note());
        begun(&mut self.facts, span);
        self.host.command(cookie, command);
        self.until(pool, |player| player.answers.contains_key(&cookie))?;
        let outcome = self.answers.remove(&cookie).expect("waited for");
        Ok((outcome, self.host.log.note()))
    }

    /// A command whose answer makes everything durable that was answered before it was asked for.
    fn barrier(&mut self, pool: &mut Pool, command: Command) -> Played {
        let (outcome, ack) = self.ask(pool, command, |facts, span| facts.barriers.push(span))?;
        outcome.map_err(|kind| format!("a consistency point is refused: {kind:?}"))?;
        self.facts.barriers.last_mut().expect("just pushed").ack = ack;
        Ok(())
    }

    fn create_disk(&mut self, pool: &mut Pool, size: u64, origin: Option<usize>) -> Played {
        let disk = self.facts.disks.len();
        let uuid = Uuid([disk as u8 + 1; 16]);
        let from = origin.map(|snap| self.snap_ref(snap));
        let name = Name::new(&format!("disk{disk}"))?;
        let command = Command::CreateDisk { name, uuid, size: 0, from, time: 1 };
        let command = match (command, origin) {
            (Command::CreateDisk { name, uuid, from, time, .. }, None) => {
                Command::CreateDisk { name, uuid, size, from, time }
            }
            (command, _) => command,
        };
        let (outcome, ack) = self.ask(pool, command, |facts, create| {
            let sizes = vec![(size, create)];
            let (id, handle, delete) = (None, None, None);
            facts.disks.push(DiskFacts { uuid, id, handle, origin, create, delete, sizes });
            facts.barriers.push(create);
        })?;
        match outcome {
            Ok(Reply::Disk(id)) => {
                let facts = &mut self.facts.disks[disk];
                facts.id = Some(id);
                facts.create.ack = ack;
                facts.sizes[0].1.ack = ack;
            }
            other => return Err(format!("creating a disk: {other:?}")),
        }
        self.facts.barriers.last_mut().expect("just pushed").ack = ack;
        self.attach(pool, disk)
    }

    fn attach(&mut self, pool: &mut Pool, disk: usize) -> Played {
        let Some(id) =
            self.facts.disks[disk].id.filter(|_| self.facts.disks[disk].delete.is_none())
        else {
            return Ok(());
        };
        let (outcome, _) = self.ask(pool, Command::Attach(Target::Disk(id)), |_, _| ())?;
        match outcome {
            Ok(Reply::Handle(handle)) => self.facts.disks[disk].handle = Some(handle),
            other => return Err(format!("attaching disk {disk}: {other:?}")),
        }
        Ok(())
    }

    fn snap_ref(&self, snap: usize) -> SnapRef {
        let facts = &self.facts.snaps[snap];
        let disk = self.facts.disks[facts.disk].id.expect("it was answered");
        SnapRef { disk, snap: facts.id.expect("it was answered") }
    }

    fn snapshot(&mut self, pool: &mut Pool, disk: usize) -> Played {
        let number = self.facts.snaps.len();
        let uuid = Uuid([number as u8 + 100; 16]);
        let id = self.disk_id(disk);
        let size = self.facts.disks[disk].size();
        let command = Command::Snapshot { disk: id, uuid, label: Name::EMPTY, time: 1 };
        let (outcome, ack) = self.ask(pool, command, |facts, take| {
            facts.snaps.push(SnapFacts { uuid, disk, id: None, size, take, delete: None });
        })?;
        match outcome {
            Ok(Reply::Snapshot(id)) => self.facts.snaps[number].id = Some(id),
            other => return Err(format!("taking a snapshot: {other:?}")),
        }
        self.facts.snaps[number].take.ack = ack;
        Ok(())
    }

    fn disk_id(&self, disk: usize) -> DiskId {
        self.facts.disks[disk].id.expect("it was answered")
    }

    fn live_snaps(&self) -> impl DoubleEndedIterator<Item = usize> {
        let live = self.facts.snaps.iter().enumerate().filter(|(_, s)| s.delete.is_none());
        live.map(|(snap, _)| snap)
    }

    fn clone_newest(&mut self, pool: &mut Pool) -> Played {
        let Some(snap) = self.live_snaps().next_back() else { return Ok(()) };
        let disk = self.facts.disks.len();
        let size = self.facts.snaps[snap].size;
        self.create_disk(pool, size, Some(snap))?;
        self.change(pool, disk, (8, 16), Effect::Write, false)
    }

    fn drop_snapshot(&mut self, pool: &mut Pool) -> Played {
        let Some(snap) = self.live_snaps().next() else { return Ok(()) };
        let command = Command::DeleteSnapshot(self.snap_ref(snap));
        let (outcome, ack) = self.ask(pool, command, |facts, span| {
            facts.snaps[snap].delete = Some(span);
            facts.barriers.push(span);
        })?;
        match outcome {
            Ok(_) => {
                self.facts.snaps[snap].delete = Some(self.answered(ack));
                Ok(())
            }
            // It has clones, and the engine does not let it go then.
            Err(ErrorKind::Busy) => {
                self.facts.snaps[snap].delete = None;
                self.facts.barriers.pop();
                Ok(())
            }
            Err(kind) => Err(format!("deleting a snapshot: {kind:?}")),
        }
    }

    /// The last barrier was answered at `ack`; its times.
    fn answered(&mut self, ack: usize) -> Span {
        let barrier = self.facts.barriers.last_mut().expect("just pushed");
        barrier.ack = ack;
        *barrier
    }

    fn drop_disk(&mut self, pool: &mut Pool) -> Played {
        let live = |(disk, facts): (usize, &DiskFacts)| {
            (disk > 0 && facts.delete.is_none()).then_some(disk)
        };
        let found = self.facts.disks.iter().enumerate().rev().find_map(live);
        let Some(disk) = found else { return Ok(()) };
        // Requests must have ended before an attachment does.
        self.rest(pool)?;
        if let Some(handle) = self.facts.disks[disk].handle.take() {
            let (outcome, _) = self.ask(pool, Command::Detach(handle), |_, _| ())?;
            outcome.map_err(|kind| format!("detaching: {kind:?}"))?;
        }
        let command = Command::DeleteDisk(self.disk_id(disk));
        let (outcome, ack) = self.ask(pool, command, |facts, span| {
            facts.disks[disk].delete = Some(span);
            facts.barriers.push(span);
        })?;
        outcome.map_err(|kind| format!("deleting a disk: {kind:?}"))?;
        self.facts.disks[disk].delete = Some(self.answered(ack));
        Ok(())
    }

    fn resize(&mut self, pool: &mut Pool) -> Played {
        let old = self.facts.disks[0].size();
        let new = if old == DISK_BYTES { 2 << 20 } else { DISK_BYTES };
        let command = Command::Resize(self.disk_id(0), new);
        let number = self.facts.changes.len();
        let (outcome, ack) = self.ask(pool, command, |facts, span| {
            facts.disks[0].sizes.push((new, span));
            facts.barriers.push(span);
            if new < old {
                let (offset, len, effect) = (new, old - new, Effect::Zero);
                facts.changes.push(Change { disk: 0, offset, len, effect, span, fua: false });
            }
        })?;
        outcome.map_err(|kind| format!("resizing: {kind:?}"))?;
        let span = self.answered(ack);
        self.facts.disks[0].sizes.last_mut().expect("just pushed").1 = span;
        if new < old {
            self.facts.changes[number].span = span;
        }
        Ok(())
    }
}

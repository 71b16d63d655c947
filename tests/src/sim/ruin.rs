//! What had been promised and is damaged is an error, never old bytes: what a crash has left is
//! copied, one block of the copy is ruined, and the copy is opened and read.
//!
//! ```text
//!  image at a crash ─┬─▶ copy ───────────────────▶ open ─▶ what each disk reads
//!                    └─▶ copy ─▶ ruin one block ─▶ open ─▶ the same, or an error, and that only
//!                                     │                    of the disks the block was about
//!                                     ├─▶ check finds it; repair, open ─▶ the same again
//!                                     └─▶ a catalogue: open in pieces  ─▶ every block as it was
//! ```
//!
//! Ruined are: the copy of a pair that counts (the older one must not pass for it), a superblock,
//! and a journal block that later ones say was durable.

use std::collections::{BTreeMap, BTreeSet};

use lamina_bdev::check::{
    CheckOptions, ReadBlocks, RepairOptions, Severity, WriteBlocks, check, repair,
};
use lamina_bdev::{
    Command, Engine, EngineState, Error, Handle, Op, Reply, Request, Seg, SnapRef, Status, Target,
    Uuid,
};

use super::base::Base;
use super::image::{Block, Header, Image, Kind, header_of, seal, u64_at, unseal};
use super::memory::Buffer;
use super::model::Place;
use super::plan::{Faults, Latency, Lie};
use super::rng::{Rng, mix};
use super::world::World;

/// One crash in so many is looked at this way.
const ONE_IN: u64 = 6;
/// Turns within which anything must end.
const TURNS_MAX: u64 = 100_000;
/// Blocks read of each disk and snapshot.
const READS_MAX: usize = 24;
/// Where the units of a journal block begin, their length, and their number at most.
const UNITS: (usize, usize, usize) = (192, 32, 122);

/// Which blocks to read of each disk and snapshot.
type Places = BTreeMap<Uuid, Vec<u64>>;
/// What they hold; `None`: it answers with errors.
type Contents = BTreeMap<Uuid, Option<Vec<u8>>>;

/// A block to be ruined.
struct Victim {
    kind: Kind,
    block: u64,
    /// The other copy of the pair.
    other: Option<u64>,
    /// Record slots of the disks that may suffer.
    slots: BTreeSet<u64>,
    /// It must be noticed.
    seen: bool,
}

/// A copy of the store, opened.
struct Trial<'a> {
    world: &'a World,
    base: Base,
    engine: Engine,
    now: u64,
    cookie: u64,
    /// Severe lines of its log.
    lines: Vec<String>,
}

impl World {
    /// Ruins something after some crashes. Draws nothing from the run's own chance.
    pub(super) fn ruin(&self) -> Result<(), String> {
        let drawn = mix(self.seed ^ mix(mix(self.crashes)) ^ u64::from(self.plan.shard));
        if !drawn.is_multiple_of(ONE_IN) || self.damage.done() || self.empty_blocks.is_none() {
            return Ok(());
        }
        let mut rng = Rng::new(drawn);
        let Some(victim) = self.victim(&mut rng) else { return Ok(()) };
        let (kind, block) = (victim.kind, victim.block);
        self.ruined(&victim, &mut rng).map_err(|why| {
            format!("ruin: {kind:?} at block {block} after crash {}: {why}", self.crashes)
        })
    }

    fn ruined(&self, victim: &Victim, rng: &mut Rng) -> Result<(), String> {
        let places = self.places();
        let mut whole = Trial::open(self, self.copy(rng)).map_err(|e| format!("as it was: {e}"))?;
        let due = whole.contents(&places)?;
        let suffer = self.uuids(&victim.slots);
        let mut base = self.copy(rng);
        self.spoil(&mut base, victim, rng);
        let bytes = self.plan.device_bytes;
        let shard = self.plan.shard;
        let report = check(&mut Medium(&mut base), bytes, CheckOptions::default(), &mut |_| true);
        let report = report.map_err(|e| format!("check: {e}"))?;
        let worst = report.findings.iter().filter(|f| f.shard == shard).map(|f| f.severity).max();
        let error = worst == Some(Severity::Error);
        if error != victim.seen {
            return Err(format!("check finds {:?}", report.findings));
        }
        let pages = base.pages.clone();
        match Trial::open(self, base) {
            Ok(mut trial) => {
                trial.compare(&places, &due, &suffer, false)?;
                trial.says(victim)?;
            }
            Err(why) => return Err(why),
        }
        if victim.kind == Kind::Catalogue {
            // What is in use is found out again, to the block.
            self.recovers_all_the_same(pages.clone(), rng.next())?;
        }
        let mut base = self.copy(rng);
        base.pages = pages;
        let options = RepairOptions { cut_off: true };
        repair(&mut Medium(&mut base), bytes, options, &mut |_| true)
            .map_err(|e| format!("repair: {e}"))?;
        let mut trial = Trial::open(self, base).map_err(|e| format!("after a repair: {e}"))?;
        trial.compare(&places, &due, &suffer, true).map_err(|e| format!("after a repair: {e}"))
    }

    fn copy(&self, rng: &mut Rng) -> Base {
        let mut base = Base::new(self.plan.traits, None, rng.next());
        base.pages = self.base.pages.clone();
        base.behave(Latency::INSTANT, Faults::default(), Lie::None);
        base
    }

    /// What was written of the disks and snapshots that may be there.
    fn places(&self) -> Places {
        let some = |place: Place| {
            let all = self.model.touched(place);
            let step = all.len().div_ceil(READS_MAX).max(1);
            all.into_iter().step_by(step).collect::<Vec<u64>>()
        };
        let disks = self.model.disks.iter().map(|(uid, d)| (d.uuid, some(Place::Disk(*uid))));
        let snaps = self.model.snaps.iter().map(|(uid, s)| (s.uuid, some(Place::Snap(*uid))));
        disks.chain(snaps).collect()
    }

    fn image(&self) -> Image<'_> {
        Image::new(&self.base, &self.label, self.plan.shard)
    }

    /// The header of a block, if it is one of `kind` and good.
    fn header(&self, kind: Kind, at: u64) -> Option<Header> {
        let (store, shard) = (&self.label.uuid.0, self.plan.shard as u16);
        let header = unseal(&self.image().block(at), kind, store, shard).ok()?;
        (header.address == at).then_some(header)
    }

    /// The copy of a pair that counts, and whether the other one could pass for it.
    fn counted(&self, kind: Kind, pair: u64, slots: &[u64]) -> Option<Victim> {
        let (_, committed) = self.image().superblock().ok()?;
        let generation = |side: u64| {
            let header = self.header(kind, pair + side);
            header.map(|h| h.generation).filter(|g| *g <= committed)
        };
        let (a, b) = (generation(0), generation(1));
        let side = u64::from(b > a);
        let (block, other) = (pair + side, Some(pair + 1 - side));
        let slots = slots.iter().copied().collect();
        (a.is_some() || b.is_some()).then_some(Victim { kind, block, other, slots, seen: a != b })
    }

    /// Disks and snapshots in record slots.
    fn uuids(&self, slots: &BTreeSet<u64>) -> BTreeSet<Uuid> {
        let in_slot =
            |d: &&super::model::Disk| d.id.is_none_or(|id| slots.contains(&u64::from(id.0)));
        let mut found: BTreeSet<Uuid> =
            self.model.disks.values().filter(in_slot).map(|d| d.uuid).collect();
        let snaps = self.model.snaps.values();
        let theirs = snaps.filter(|s| found.contains(&self.model.disks[&s.disk].uuid));
        let theirs: Vec<Uuid> = theirs.map(|s| s.uuid).collect();
        found.extend(theirs);
        found
    }

    fn victim(&self, rng: &mut Rng) -> Option<Victim> {
        let (superblock, _) = self.image().superblock().ok()?;
        let field = |index: usize| u64_at(&superblock, 64 + index * 8);
        let (catalogue, pairs, records, used) = (field(1), field(2), field(3), field(12));
        let slot = if used > 0 { rng.below(used) } else { 0 };
        let record = self.counted(Kind::DiskRecord, records + 2 * slot, &[slot]);
        let record = record.filter(|_| used > 0);
        match rng.below(10) {
            0 => {
                let good = |at| self.header(Kind::Superblock, at).map(|h| h.generation);
                let [a, b] = [good(0), good(1)];
                // Between the two, only the newer one has what commands in flight have done.
                let block = if a == b { rng.below(2) } else { u64::from(a > b) };
                let (other, slots, seen) = (Some(1 - block), BTreeSet::new(), false);
                Some(Victim { kind: Kind::Superblock, block, other, slots, seen })
            }
            1 | 2 => self.counted(Kind::Catalogue, catalogue + 2 * rng.below(pairs), &[]),
            3..5 => record,
            5..7 => {
                let record = self.image().block(record?.block);
                let head = u64_at(&record, 200);
                let live = record[64] != 0 && head != 0;
                self.counted(Kind::SnapshotLog, head, &[slot]).filter(|_| live)
            }
            _ => self.journal_victim(&superblock, rng),
        }
    }

    /// A journal block that a later one says was durable.
    fn journal_victim(&self, superblock: &Block, rng: &mut Rng) -> Option<Victim> {
        let field = |index: usize| u64_at(superblock, 64 + index * 8);
        let (journal, blocks, tail, incarnation) = (field(5), field(6), field(10), field(11));
        let place = |lsn: u64| journal + lsn % blocks;
        let good = |lsn: &u64| {
            let header = self.header(Kind::Journal, place(*lsn));
            header.is_some_and(|h| (h.index, h.generation) == (*lsn, incarnation))
        };
        let all: Vec<u64> = (tail..tail + blocks).filter(good).collect();
        let durable = |lsn: &u64| u64_at(&self.image().block(place(*lsn)), 72);
        let promised = all.iter().map(durable).max()?;
        let below: Vec<u64> = all.into_iter().filter(|lsn| *lsn < promised).collect();
        if below.is_empty() {
            return None;
        }
        let block = place(rng.pick(&below));
        let bytes = self.image().block(block);
        let count = usize::from(u16::from_le_bytes([bytes[64], bytes[65]])).min(UNITS.2);
        let (mut unit, mut slots) = (0, BTreeSet::new());
        while unit < count {
            let at = UNITS.0 + unit * UNITS.1;
            slots.insert(u64::from(u32::from_le_bytes(bytes[at + 4..at + 8].try_into().ok()?)));
            unit += usize::from(bytes[at + 1]).max(1);
        }
        Some(Victim { kind: Kind::Journal, block, other: None, slots, seen: true })
    }

    /// Rot, a write that was lost, or another block's content.
    fn spoil(&self, base: &mut Base, victim: &Victim, rng: &mut Rng) {
        let first = self.label.first_region + u64::from(self.plan.shard) * self.label.region_bytes;
        let region = first / 4096;
        let at = region + victim.block;
        let other = victim.other.map(|block| base.pages.copy(region + block));
        let of_kind = |page: &Block| header_of(page).is_some_and(|(k, _)| k == victim.kind);
        let newest = u64_at(&base.pages.copy(at), 48);
        let other = other.filter(|page| of_kind(page) && u64_at(page, 48) < newest);
        let page = base.pages.page_mut(at);
        match (rng.below(4), other) {
            // As the other copy was before: a point or more behind it.
            (0, Some(other)) => {
                page.copy_from_slice(&other[..]);
                let before = u64_at(&other, 48).saturating_sub(rng.between(1, 3)).max(1);
                page[32..40].copy_from_slice(&victim.block.to_le_bytes());
                page[48..56].copy_from_slice(&before.to_le_bytes());
                seal(page, victim.kind);
            }
            (1, _) => page.fill(0),
            (2, _) => page[rng.index(4096 / 512) * 512..].fill(0x3c),
            _ => {
                let bit = rng.index(4096 * 8);
                page[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }
}

impl Trial<'_> {
    /// Opens the store on `base`.
    fn open(world: &World, base: Base) -> Result<Trial<'_>, String> {
        let (config, shard) = (world.config, world.plan.shard);
        let engine = Engine::open(config, world.plan.traits, &world.label, shard);
        let mut trial = Trial { world, base, engine, now: 0, cookie: 0, lines: Vec::new() };
        trial.until(|engine| (engine.state() != EngineState::Opening).then_some(()))?;
        match trial.engine.open_error().cloned() {
            Some(error) => {
                trial.turn();
                Err(format!("it does not open: {error} ({:?})", trial.lines))
            }
            None => Ok(trial),
        }
    }

    fn until<T>(&mut self, mut done: impl FnMut(&mut Engine) -> Option<T>) -> Result<T, String> {
        for _ in 0..TURNS_MAX {
            self.turn();
            if let Some(answer) = done(&mut self.engine) {
                return Ok(answer);
            }
            let waits = self.base.next_time().into_iter().chain(self.engine.deadline_ns()).min();
            self.now = match waits {
                Some(at) if !self.engine.busy() => self.now.max(at),
                _ => self.now + 100,
            };
        }
        Err("it does not end".to_string())
    }

    fn turn(&mut self) {
        let label = &self.world.label;
        let region = label.first_region + u64::from(self.world.plan.shard) * label.region_bytes;
        while let Some((tag, result)) = self.base.poll(self.now) {
            self.engine.complete(tag, result);
        }
        self.engine.tick(self.now);
        let mut segs: Vec<Seg> = Vec::new();
        while let Some(io) = self.engine.next_io() {
            self.engine.gather(&io, &mut segs);
            self.base.start(&io, region + io.offset, &segs, self.now);
        }
        while let Some(event) = self.engine.next_event() {
            self.lines.extend(event.severe.then_some(event.text));
        }
    }

    fn attach(&mut self, target: Target) -> Result<Option<Handle>, String> {
        self.cookie += 1;
        self.engine.command(self.cookie, Command::Attach(target));
        match self.until(Engine::next_reply)?.1 {
            Ok(Reply::Handle(handle)) => Ok(Some(handle)),
            Ok(other) => Err(format!("{other:?} is no handle")),
            Err(_) => Ok(None),
        }
    }

    fn read(&mut self, target: Target, blocks: &[u64]) -> Result<Option<Vec<u8>>, String> {
        let Some(handle) = self.attach(target)? else { return Ok(None) };
        let (mut all, mut some) = (Vec::new(), Vec::new());
        let size = self.engine.handle_info(handle).map_or(0, |(size, _)| size);
        for block in blocks.iter().filter(|b| **b * 4096 + 4096 <= size) {
            let buffer = Buffer::new(&[4096], 0);
            self.cookie += 1;
            let (cookie, op, fua) = (self.cookie, Op::Read, false);
            let request = Request { cookie, handle, op, offset: block * 4096, len: 4096, fua };
            if !self.engine.submit(&request, buffer.segs()) {
                return Err("a read was not taken".to_string());
            }
            if self.until(Engine::next_done)?.status != Status::Ok {
                return Ok(None);
            }
            buffer.load(&mut some);
            all.extend_from_slice(&block.to_le_bytes());
            all.extend_from_slice(&some);
        }
        Ok(Some(all))
    }

    /// What all disks and snapshots that are there read.
    fn contents(&mut self, places: &Places) -> Result<Contents, String> {
        let mut found = Contents::new();
        let none = Vec::new();
        for disk in self.engine.disks() {
            let mut targets = vec![(disk.uuid, Target::Disk(disk.id))];
            for snap in self.engine.snapshots(disk.id) {
                let at = SnapRef { disk: disk.id, snap: snap.snap.snap };
                targets.push((snap.uuid, Target::Snapshot(at)));
            }
            for (uuid, target) in targets {
                let read = self.read(target, places.get(&uuid).unwrap_or(&none))?;
                found.insert(uuid, read);
            }
        }
        Ok(found)
    }

    /// Everything reads as it is due, but for what may suffer: that may answer with errors, or lack
    /// what it has lost once the loss is `accepted`.
    fn compare(
        &mut self,
        places: &Places,
        due: &Contents,
        suffer: &BTreeSet<Uuid>,
        accepted: bool,
    ) -> Result<(), String> {
        let found = self.contents(places)?;
        for (uuid, bytes) in due {
            let now = found.get(uuid).cloned().flatten();
            match now {
                Some(_) if now == *bytes => {}
                Some(_) if accepted && suffer.contains(uuid) => {}
                None if suffer.contains(uuid) => {}
                None => return Err(format!("{uuid} answers with errors: {:?}", self.lines)),
                Some(_) => return Err(format!("{uuid} reads other bytes: {:?}", self.lines)),
            }
        }
        match found.keys().find(|uuid| !due.contains_key(uuid)) {
            Some(uuid) => Err(format!("{uuid} was not there before")),
            None => Ok(()),
        }
    }

    /// The log names the block.
    fn says(&self, victim: &Victim) -> Result<(), String> {
        let numbers = |line: &String| {
            let words = line.split(|c: char| !c.is_ascii_digit());
            words.filter_map(|word| word.parse().ok()).collect::<Vec<u64>>()
        };
        let near =
            |n: u64| n == victim.block || victim.kind != Kind::Journal && n + 1 == victim.block;
        let named = self.lines.iter().any(|line| numbers(line).into_iter().any(near));
        match named || !victim.seen {
            true => Ok(()),
            false => Err(format!("no line of the log names the block: {:?}", self.lines)),
        }
    }
}

/// The device of a copy, as check and repair read and write it.
struct Medium<'a>(&'a mut Base);

impl ReadBlocks for Medium<'_> {
    fn read(&mut self, block: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.0.peek(block * 4096, buf);
        Ok(())
    }
}

impl WriteBlocks for Medium<'_> {
    fn write(&mut self, block: u64, bytes: &[u8]) -> Result<(), Error> {
        self.0.install(block * 4096, bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

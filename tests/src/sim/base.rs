//! The simulated base device: what it shows now, what would survive a power cut, and the
//! operations in flight on it.
//!
//! ```text
//!  start ──▶ in flight ── takes effect, in one or two steps ──▶ done ──(flush)──▶ safe
//!                              │
//!          pages (shown now) ◀─┴─▶ dirty block: durable page + pieces of writes not yet safe
//! ```
//!
//! Operations complete in any order. A write's effect falls anywhere between start and completion.
//! What a crash leaves of pieces that are not safe is drawn in `power.rs`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use lamina_bdev::{BaseError, BaseIo, BaseOp, BaseTraits, Seg, Tag};

use super::harm::Harms;
use super::memory::{read_segs, write_segs};
use super::pages::{PAGE, Page, Pages, copy_sectors};
use super::plan::{Faults, Latency, Lie};
use super::rng::{Rng, mix};

/// Mean of a stall.
const STALL_MEAN_NS: u64 = 3_000_000_000;
/// The longest stall.
const STALL_MAX_NS: u64 = 30_000_000_000;
/// Not completed yet.
const IN_FLIGHT: u64 = u64::MAX;

/// What one write did to one block.
pub(super) struct Piece {
    /// Number of the write.
    pub io: u64,
    /// Sectors it changed.
    pub mask: u8,
    /// Sectors of this block that the whole write covers.
    pub cover: u8,
    /// When it completed, as a step of the device.
    pub done: u64,
    /// Survives a power cut.
    pub safe: bool,
    /// A failed flush has dropped it: it shows until the device is reopened.
    pub doomed: bool,
    /// The data, in place.
    pub data: Box<Page>,
}

impl Piece {
    /// True while its write has not completed.
    pub fn in_flight(&self) -> bool {
        self.done == IN_FLIGHT
    }
}

/// A block with pieces that are not safe.
pub(super) struct Dirty {
    /// What would be there without them.
    pub durable: Box<Page>,
    /// In the order in which they took effect.
    pub pieces: Vec<Piece>,
}

struct Flight {
    number: u64,
    tag: Tag,
    op: BaseOp,
    offset: u64,
    len: u32,
    segs: Vec<Seg>,
    began: u64,
    /// Splits the effect in two steps.
    split: Option<u64>,
    early_done: bool,
    late_done: bool,
    fails: Option<BaseError>,
    /// Does not end before the faults stop; how long it takes from then on.
    stuck: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Event {
    Early,
    Late,
    Done,
}

/// Errors given out since the device was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injected {
    /// Reads that failed.
    pub reads: u32,
    /// Writes that failed.
    pub writes: u32,
    /// Flushes that failed.
    pub flushes: u32,
}

impl Injected {
    /// True if any did.
    pub fn any(self) -> bool {
        self != Injected::default()
    }
}

/// The device.
pub struct Base {
    pub(super) traits: BaseTraits,
    pub(super) pages: Pages,
    pub(super) dirty: BTreeMap<u64, Dirty>,
    pub(super) rng: Rng,
    pub(super) lie: Lie,
    pub(super) clock: u64,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    events: BinaryHeap<Reverse<(u64, u64, usize, Event)>>,
    event_count: u64,
    latency: Latency,
    pub(super) faults: Faults,
    /// Draws the faults that came later to the simulator.
    pub(super) fate: Rng,
    /// What reads return instead, and what they have returned.
    pub(super) harms: Harms,
    /// It was removed: everything fails until it is opened again.
    pub(super) gone: bool,
    /// Errors given out since the device was opened.
    pub injected: Injected,
    /// Things that happened to operations; crashes are timed by it.
    pub happened: u64,
}

impl Base {
    /// A device that nobody has written to.
    pub fn new(traits: BaseTraits, rubbish: Option<u64>, seed: u64) -> Base {
        Base {
            traits,
            pages: Pages::new(rubbish),
            dirty: BTreeMap::new(),
            rng: Rng::new(seed),
            lie: Lie::None,
            clock: 0,
            flights: Vec::new(),
            free: Vec::new(),
            events: BinaryHeap::new(),
            event_count: 0,
            latency: Latency::INSTANT,
            faults: Faults::default(),
            fate: Rng::new(mix(seed)),
            harms: Harms::default(),
            gone: false,
            injected: Injected::default(),
            happened: 0,
        }
    }

    /// Sets how it behaves from now on.
    pub fn behave(&mut self, latency: Latency, faults: Faults, lie: Lie) {
        self.latency = latency;
        self.faults = faults;
        self.lie = lie;
    }

    /// Puts bytes (whole blocks) on the medium at once.
    pub fn install(&mut self, offset: u64, bytes: &[u8]) {
        assert!(offset.is_multiple_of(4096) && bytes.len().is_multiple_of(PAGE), "whole blocks");
        for (index, chunk) in bytes.chunks_exact(PAGE).enumerate() {
            let page = offset / PAGE as u64 + index as u64;
            self.pages.page_mut(page).copy_from_slice(chunk);
        }
    }

    /// What the device shows at `offset` (of whole blocks).
    pub fn peek(&self, offset: u64, out: &mut [u8]) {
        for (index, chunk) in out.chunks_mut(PAGE).enumerate() {
            self.pages.read(offset / PAGE as u64 + index as u64, 0, chunk);
        }
    }

    /// The faults stop: what was stuck goes on. (A device that is gone stays away.)
    pub fn relent(&mut self, now: u64) {
        for slot in 0..self.flights.len() {
            let freed = self.flights[slot].as_mut().and_then(|flight| flight.stuck.take());
            if let Some(took) = freed {
                self.schedule(slot, took, now);
            }
        }
    }

    /// True if something is stuck.
    pub fn is_stuck(&self) -> bool {
        self.flights.iter().flatten().any(|flight| flight.stuck.is_some())
    }

    /// Operations in flight.
    pub fn in_flight(&self) -> usize {
        self.flights.iter().flatten().count()
    }

    /// When something happens next, in nanoseconds.
    pub fn next_time(&self) -> Option<u64> {
        self.events.peek().map(|Reverse((time, ..))| *time)
    }

    /// Starts an operation; `offset` counts from the start of the device.
    pub fn start(&mut self, io: &BaseIo, offset: u64, segs: &[Seg], now: u64) {
        self.clock += 1;
        self.happened += 1;
        let mut took = self.latency.draw(io.op, &mut self.rng);
        let fails = self.draw_fault(io.op);
        if self.happens(self.faults.stall) {
            took += self.fate.around(STALL_MEAN_NS).min(STALL_MAX_NS);
        }
        let stuck = self.happens(self.faults.stuck).then_some(took);
        let split =
            (took > 1 && io.op != BaseOp::Flush && self.rng.chance(250)).then(|| self.rng.next());
        let flight = Flight {
            number: self.clock,
            tag: io.tag,
            op: io.op,
            offset,
            len: io.len,
            segs: segs.to_vec(),
            began: self.clock,
            split,
            early_done: false,
            late_done: false,
            fails,
            stuck,
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.flights.push(None);
            self.flights.len() - 1
        });
        assert!(self.flights[slot].is_none(), "a free slot is empty");
        self.flights[slot] = Some(flight);
        if stuck.is_none() {
            self.schedule(slot, took, now);
        }
    }

    /// When an operation takes effect and ends.
    fn schedule(&mut self, slot: usize, took: u64, now: u64) {
        let split = self.flights[slot].as_ref().expect("it is in flight").split;
        let late = now + self.rng.pick(&[0, took / 2, took]);
        if split.is_some() {
            let early = now + self.rng.below(late - now + 1);
            self.at(early, slot, Event::Early);
        }
        self.at(late, slot, Event::Late);
        self.at(now + took, slot, Event::Done);
    }

    fn at(&mut self, time: u64, slot: usize, event: Event) {
        self.event_count += 1;
        self.events.push(Reverse((time, self.event_count, slot, event)));
    }

    /// One of the faults that came later, at a rate in 10,000.
    pub(super) fn happens(&mut self, rate: u32) -> bool {
        rate > 0 && self.fate.below(10_000) < u64::from(rate)
    }

    fn draw_fault(&mut self, op: BaseOp) -> Option<BaseError> {
        if self.faults.gone_every > 0 && self.fate.below(self.faults.gone_every) == 0 {
            self.gone = true;
        }
        if self.gone {
            return Some(BaseError::Gone);
        }
        let rate = match op {
            BaseOp::Read => self.faults.read,
            BaseOp::Write => self.faults.write,
            BaseOp::Flush => self.faults.flush,
        };
        if self.rng.below(10_000) >= u64::from(rate) {
            return None;
        }
        let full = op == BaseOp::Write && self.faults.no_space && self.rng.chance(300);
        Some(if full { BaseError::NoSpace } else { BaseError::Io })
    }

    /// The next completion due by `now`, if any.
    pub fn poll(&mut self, now: u64) -> Option<(Tag, Result<(), BaseError>)> {
        while let Some(Reverse((time, _, slot, event))) = self.events.peek().copied() {
            if time > now {
                return None;
            }
            self.events.pop();
            self.clock += 1;
            self.happened += 1;
            let mut flight = self.flights[slot].take().expect("events end with their operation");
            match event {
                Event::Early => self.take_effect(&mut flight, true),
                Event::Late if flight.fails.is_none() => self.take_effect(&mut flight, false),
                Event::Late => flight.late_done = true,
                Event::Done => {
                    self.free.push(slot);
                    return Some((flight.tag, self.finish(&mut flight)));
                }
            }
            self.flights[slot] = Some(flight);
        }
        None
    }

    /// One of the two steps in which an operation reads or changes the pages.
    fn take_effect(&mut self, flight: &mut Flight, early: bool) {
        let done = if early { &mut flight.early_done } else { &mut flight.late_done };
        if std::mem::replace(done, true) || flight.op == BaseOp::Flush {
            return;
        }
        let (first, last) = blocks(flight.offset, flight.len);
        for block in first..=last {
            let cover = cover(flight.offset, flight.len, block);
            let mask = self.step_mask(flight, block, early) & cover;
            if mask == 0 {
                continue;
            }
            match flight.op {
                BaseOp::Read => self.read_sectors(flight, block, mask),
                BaseOp::Write => self.write_sectors(flight, block, mask, cover),
                BaseOp::Flush => unreachable!("a flush has no pages"),
            }
        }
    }

    /// Sectors of `block` that belong to this step.
    fn step_mask(&self, flight: &Flight, block: u64, early: bool) -> u8 {
        let Some(split) = flight.split else {
            return if early { 0 } else { 0xFF };
        };
        let drawn = mix(split ^ block);
        // A write that fails leaves whole blocks old or new, like one that a crash cuts short.
        let whole = self.traits.atomic_rw || flight.fails.is_some() && self.traits.atomic_4k;
        let first = match (whole, drawn & 1) {
            (true, 0) => 0,
            (true, _) => 0xFF,
            (false, _) => (drawn >> 8) as u8,
        };
        if early {
            first
        } else if flight.early_done {
            !first
        } else {
            0xFF
        }
    }

    fn read_sectors(&mut self, flight: &Flight, block: u64, mask: u8) {
        let mut sector_data = [0; 512];
        if mask == 0xFF {
            let page = self.pages.copy(block);
            let skip = block * PAGE as u64 - flight.offset;
            write_segs(&flight.segs, skip as usize, &page[..]);
            return;
        }
        for sector in (0..8).filter(|s| mask & 1 << s != 0) {
            self.pages.read(block, sector as usize * 512, &mut sector_data);
            let skip = block * PAGE as u64 + sector * 512 - flight.offset;
            write_segs(&flight.segs, skip as usize, &sector_data);
        }
    }

    fn write_sectors(&mut self, flight: &Flight, block: u64, mask: u8, cover: u8) {
        if self.faults.harm.any() || !self.harms.is_empty() {
            self.harm_write(block);
        }
        let pages = &mut self.pages;
        let dirty = self
            .dirty
            .entry(block)
            .or_insert_with(|| Dirty { durable: pages.copy(block), pieces: Vec::new() });
        let page = pages.page_mut(block);
        let start = block * PAGE as u64;
        if mask == 0xFF {
            read_segs(&flight.segs, (start - flight.offset) as usize, &mut page[..]);
        } else {
            for sector in (0..8).filter(|s| mask & 1 << s != 0) {
                let skip = start + sector as u64 * 512 - flight.offset;
                let range = sector * 512..sector * 512 + 512;
                read_segs(&flight.segs, skip as usize, &mut page[range]);
            }
        }
        // Only the sectors of `mask` count.
        let data = Box::new(*page);
        dirty.pieces.push(Piece {
            io: flight.number,
            mask,
            cover,
            done: IN_FLIGHT,
            safe: false,
            doomed: false,
            data,
        });
    }

    fn finish(&mut self, flight: &mut Flight) -> Result<(), BaseError> {
        if self.gone {
            flight.fails = Some(BaseError::Gone);
        }
        match flight.op {
            BaseOp::Read if flight.fails.is_none() => {
                self.harm_read(flight.offset, flight.len, &flight.segs);
            }
            BaseOp::Read => {}
            BaseOp::Write => self.finish_write(flight),
            BaseOp::Flush => self.finish_flush(flight),
        }
        let Some(error) = flight.fails else { return Ok(()) };
        match flight.op {
            BaseOp::Read => self.injected.reads += 1,
            BaseOp::Write => self.injected.writes += 1,
            BaseOp::Flush => self.injected.flushes += 1,
        }
        Err(error)
    }

    fn finish_write(&mut self, flight: &Flight) {
        let (first, last) = blocks(flight.offset, flight.len);
        for block in first..=last {
            let Some(dirty) = self.dirty.get_mut(&block) else { continue };
            for piece in dirty.pieces.iter_mut().filter(|p| p.io == flight.number) {
                piece.done = self.clock;
                piece.safe = !self.traits.volatile_cache;
            }
            if fold(dirty) {
                self.dirty.remove(&block);
            }
        }
        if first == last && flight.fails.is_none() {
            self.harm_written(first);
        }
    }

    /// A flush covers what completed before it began; one that fails may drop that for good.
    fn finish_flush(&mut self, flight: &Flight) {
        let drop_permille =
            if flight.fails.is_some() { self.rng.pick(&[0, 300, 1000]) } else { 0u64 };
        if self.lie == Lie::Flush {
            return;
        }
        let drop_seed = self.rng.next();
        self.dirty.retain(|block, dirty| {
            for piece in dirty.pieces.iter_mut().filter(|p| p.done < flight.began && !p.safe) {
                if flight.fails.is_none() {
                    piece.safe = !piece.doomed;
                } else {
                    // The same for both steps of a write.
                    let drawn = mix(mix(drop_seed ^ piece.io) ^ *block) % 1000;
                    piece.doomed |= drawn < drop_permille;
                }
            }
            !fold(dirty)
        });
    }

    /// Everything in flight takes effect as far as it still can; called when the engine dies,
    /// while its memory is still there.
    pub(super) fn materialize(&mut self) {
        let mut flights: Vec<Flight> = self.flights.drain(..).flatten().collect();
        self.rng.shuffle(&mut flights);
        for flight in flights.iter_mut().filter(|f| f.op == BaseOp::Write) {
            self.take_effect(flight, false);
        }
        self.free.clear();
        self.events.clear();
    }
}

/// Moves the safe pieces at the front into the durable page; true if no piece is left.
fn fold(dirty: &mut Dirty) -> bool {
    let safe = dirty.pieces.iter().take_while(|piece| piece.safe).count();
    for piece in dirty.pieces.drain(..safe) {
        copy_sectors(&mut dirty.durable, &piece.data, piece.mask);
    }
    dirty.pieces.is_empty()
}

fn blocks(offset: u64, len: u32) -> (u64, u64) {
    (offset / PAGE as u64, (offset + u64::from(len) - 1) / PAGE as u64)
}

/// Sectors of `block` inside a byte range.
pub(super) fn cover(offset: u64, len: u32, block: u64) -> u8 {
    let start = block * PAGE as u64;
    (0..8u64)
        .filter(|sector| {
            let at = start + sector * 512;
            at >= offset && at < offset + u64::from(len)
        })
        .fold(0, |mask, sector| mask | 1 << sector)
}

#[cfg(test)]
#[path = "base_tests.rs"]
mod tests;

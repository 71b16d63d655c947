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
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::rc::Rc;

use lamina_bdev::{BaseError, BaseIo, BaseOp, BaseTraits, Seg, Tag};

use super::harm::{Harms, Note};
use super::memory::read_segs;
use super::pages::{PAGE, Page, Pages};
use super::pattern::is_data;
use super::plan::{Faults, Latency, Lie};
use super::rng::{Rng, mix};

/// Mean of a stall.
const STALL_MEAN_NS: u64 = 3_000_000_000;
/// The longest stall.
const STALL_MAX_NS: u64 = 30_000_000_000;
/// Mean of a while without space.
const FULL_MEAN_NS: u64 = 400_000_000;
/// Not completed yet.
pub(super) const IN_FLIGHT: u64 = u64::MAX;

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
    pub data: Rc<Page>,
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
    pub durable: Rc<Page>,
    /// In the order in which they took effect.
    pub pieces: Vec<Piece>,
}

/// An operation that has not ended.
pub(super) struct Flight {
    /// The shard that asked for it.
    pub owner: u32,
    pub number: u64,
    pub tag: Tag,
    pub op: BaseOp,
    pub offset: u64,
    pub len: u32,
    pub segs: Vec<Seg>,
    pub began: u64,
    /// Splits the effect in two steps.
    pub split: Option<u64>,
    pub early_done: bool,
    pub late_done: bool,
    pub fails: Option<BaseError>,
    /// Does not end before the faults stop; how long it takes from then on.
    pub stuck: Option<u64>,
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
    /// Writes for which a full base had no space: not counted as failed, since no shard fails of
    /// it.
    pub full: u32,
}

impl Injected {
    /// True if any did.
    pub fn any(self) -> bool {
        self.reads + self.writes + self.flushes > 0
    }

    /// True if any write may have found no space.
    pub fn no_space(self) -> bool {
        self.writes + self.full > 0
    }
}

/// What a shard is told that is not the one that looks at the device just now.
#[derive(Default)]
pub(super) struct Mail {
    done: VecDeque<(Tag, Result<(), BaseError>, Vec<Note>)>,
    pub injected: Injected,
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
    /// Byte ranges (offset, length) that are there even if there is no space.
    pub(super) reserved: Vec<(u64, u64)>,
    /// Until when there is no space for other blocks that were never written.
    full_until: u64,
    /// It was removed: everything fails until it is opened again.
    pub(super) gone: bool,
    /// The shard that looks at it just now; others have mail.
    pub(super) holder: u32,
    pub(super) mail: BTreeMap<u32, Mail>,
    /// A flush has failed, and whose it was.
    pub(super) flush_failed: Option<u32>,
    /// Errors given out to this shard since the device was opened.
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
            reserved: Vec::new(),
            full_until: 0,
            gone: false,
            holder: 0,
            mail: BTreeMap::new(),
            flush_failed: None,
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
        self.full_until = 0;
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
        let unread: usize = self.mail.values().map(|mail| mail.done.len()).sum();
        self.flights.iter().flatten().count() + unread
    }

    /// Another shard looks at the device from now on.
    pub fn hand_to(&mut self, shard: u32) {
        let shown = std::mem::take(&mut self.injected);
        self.mail.entry(self.holder).or_default().injected = shown;
        self.injected = std::mem::take(&mut self.mail.entry(shard).or_default().injected);
        self.holder = shard;
    }

    /// True if it has given an error to any shard since it was opened.
    pub fn injected_any(&self) -> bool {
        self.injected.any() || self.mail.values().any(|mail| mail.injected.any())
    }

    /// When something happens next, in nanoseconds.
    pub fn next_time(&self) -> Option<u64> {
        if self.mail.values().any(|mail| !mail.done.is_empty()) {
            return Some(0);
        }
        self.events.peek().map(|Reverse((time, ..))| *time)
    }

    /// Starts an operation; `offset` counts from the start of the device.
    pub fn start(&mut self, io: &BaseIo, offset: u64, segs: &[Seg], now: u64) {
        self.clock += 1;
        self.happened += 1;
        let is_data = self.latency.tail_of_data && io.op == BaseOp::Write && holds_data(segs);
        let mut took = self.latency.draw(io.op, is_data, &mut self.rng);
        let fails = self.draw_fault(io.op).or_else(|| self.draw_full(io, offset, now));
        if self.happens(self.faults.stall) {
            took += self.fate.around(STALL_MEAN_NS).min(STALL_MAX_NS);
        }
        let stuck = self.happens(self.faults.stuck).then_some(took);
        let split =
            (took > 1 && io.op != BaseOp::Flush && self.rng.chance(250)).then(|| self.rng.next());
        let flight = Flight {
            owner: self.holder,
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

    /// An operation of a device that answers on the spot: it never fails and leaves nothing in
    /// flight.
    pub fn at_once(&mut self, op: BaseOp, offset: u64, segs: &[Seg]) {
        self.clock += 1;
        self.happened += 1;
        let mut flight = Flight {
            owner: self.holder,
            number: self.clock,
            tag: Tag(0),
            op,
            offset,
            len: segs.iter().map(|seg| seg.len as u32).sum(),
            segs: segs.to_vec(),
            began: self.clock,
            split: None,
            early_done: false,
            late_done: false,
            fails: None,
            stuck: None,
        };
        self.take_effect(&mut flight, false);
        self.clock += 1;
        let ended = self.finish(&mut flight);
        assert_eq!(ended, Ok(()), "a device that is there does what it is told");
    }

    /// 8 bytes as they are: what was checked of a device that is memory stays as it is, so there is
    /// no harm in it.
    pub fn word(&self, offset: u64) -> [u8; 8] {
        let page = self.pages.copy(offset / PAGE as u64);
        let at = offset as usize % PAGE;
        page[at..at + 8].try_into().expect("a node's links end before its block does")
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

    fn draw_full(&mut self, io: &BaseIo, offset: u64, now: u64) -> Option<BaseError> {
        if io.op != BaseOp::Write || self.faults.full == 0 {
            return None;
        }
        if now >= self.full_until && self.happens(self.faults.full) {
            self.full_until = now + self.fate.around(FULL_MEAN_NS);
        }
        let end = offset + u64::from(io.len);
        let reserved = |&(at, len): &(u64, u64)| at <= offset && end <= at + len;
        let there = (offset / 4096..end.div_ceil(4096)).all(|block| self.pages.has(block));
        let full = now < self.full_until && !there && !self.reserved.iter().any(reserved);
        full.then_some(BaseError::NoSpace)
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
        let mail = self.mail.get_mut(&self.holder).and_then(|mail| mail.done.pop_front());
        if let Some((tag, result, notes)) = mail {
            self.harms.notes.extend(notes);
            return Some((tag, result));
        }
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
                    let known = self.harms.notes.len();
                    let result = self.finish(&mut flight);
                    if flight.owner == self.holder {
                        return Some((flight.tag, result));
                    }
                    let notes = self.harms.notes.split_off(known);
                    let mail = self.mail.entry(flight.owner).or_default();
                    mail.done.push_back((flight.tag, result, notes));
                    continue;
                }
            }
            self.flights[slot] = Some(flight);
        }
        None
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
        self.mail.values_mut().for_each(|mail| mail.done.clear());
    }

    /// Opened again: what went wrong before is over. True if a flush had failed.
    pub(super) fn reopen(&mut self) -> bool {
        let failed = self.flush_failed.take().is_some() || self.injected.flushes > 0;
        self.full_until = 0;
        self.injected = Injected::default();
        self.mail.clear();
        failed
    }
}

/// True if the memory begins with what a client has written.
fn holds_data(segs: &[Seg]) -> bool {
    let mut head = [0; 8];
    read_segs(segs, 0, &mut head);
    is_data(head)
}

#[cfg(test)]
#[path = "base_tests.rs"]
mod tests;

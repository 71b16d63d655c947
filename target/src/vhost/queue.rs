//! One virtqueue being served: ring, requests in flight, and what waits for room in the engine.
//!
//! ```text
//!  ring.pop ─► parse ─► submit ─► slot ─► (engine) ─► complete ─► status, used entry ─► publish
//!                 │        │  └ refused: slot, stays `pending`, first thing next turn
//!                 └────────┴─ answered at once: no slot. Errors, GET_ID; hits on a base of RAM
//! ```

use lamina_bdev::{Engine, Op, Request, Seg, Status};

use super::blk::{self, Action, Answer, Device, Operands, Parsed};
use super::chain::Chain;
use super::epochs::Epochs;
use super::eventfd::EventFd;
use super::inflight::InflightLog;
use super::inflight_packed::PackedLog;
use super::inflight_split::SplitLog;
use super::message::{EventKind, Reply, StoppedQueue};
use super::vring::{Fault, Head, Ring, RingFeatures, RingSpans};
use super::vring_packed::PackedRing;
use super::vring_split::SplitRing;
use crate::mem::far;
use crate::mem::guest::GuestMemory;

/// Chains taken from one queue in one turn, so that queues share a reactor fairly.
pub const BATCH_MAX: usize = 32;

/// What became of a request given to [`Submit::submit`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// There is no room, nothing was accepted.
    No,
    /// It will be answered.
    Later,
    /// It is done, well, as soon as this turn publishes: its memory must stay until then.
    Done,
}

/// Where requests go: an engine, what stands before it, or a test.
pub trait Submit {
    /// Takes a request, or says why not.
    fn submit(&mut self, request: &Request, segs: &[Seg]) -> Taken;

    /// Moves the bytes of all that was [`Taken::Done`]: its guest may be told now.
    fn finish(&mut self) {}
}

impl Submit for Engine {
    fn submit(&mut self, request: &Request, segs: &[Seg]) -> Taken {
        if Engine::submit(self, request, segs) { Taken::Later } else { Taken::No }
    }
}

/// What a session knows of a queue it starts.
#[derive(Debug)]
pub struct QueueSetup<'a> {
    /// Index of the queue.
    pub index: u16,
    /// Descriptors.
    pub size: u16,
    /// Ring format.
    pub features: RingFeatures,
    /// The ring in guest memory.
    pub spans: RingSpans,
    /// From SET_VRING_BASE.
    pub base: u32,
    /// The in-flight log, if one was set.
    pub log: Option<&'a InflightLog>,
    /// Kick; `None` asks us to poll.
    pub kick: Option<EventFd>,
    /// Call; `None` says that the driver polls.
    pub call: Option<EventFd>,
    /// Ring errors.
    pub error: Option<EventFd>,
    /// SET_VRING_ENABLE so far.
    pub enabled: bool,
}

/// A request taken from the ring.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    head: Head,
    /// Memory table the addresses are of.
    epoch: u32,
    status_addr: u64,
    /// For the used entry if all goes well.
    written: u32,
    /// Engine requests not yet done.
    outstanding: u16,
    /// First failure of any of them.
    status: Status,
    in_use: bool,
}

/// A request that is parsed but not, or not completely, submitted.
#[derive(Clone, Copy, Debug)]
struct Pending {
    slot: u16,
    action: Action,
    /// Pieces submitted so far.
    next_piece: usize,
}

/// What came of polling a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Polled {
    /// Chains taken, or submitted after a wait.
    pub(super) taken: usize,
    /// The guest broke the ring.
    pub(super) fault: Option<Fault>,
}

/// A queue. Made by the session with everything it needs, then sent to the reactor.
#[derive(Debug)]
pub struct Queue {
    index: u16,
    ring: Ring,
    slots: Vec<Slot>,
    free_slots: Vec<u16>,
    chain: Chain,
    operands: Operands,
    hint: usize,
    pending: Option<Pending>,
    in_flight: u32,
    unpublished: bool,
    /// Several chains were taken the last time.
    crowded: bool,
    enabled: bool,
    kicks_wanted: bool,
    fault: Option<Fault>,
    stopping: Option<(Reply<StoppedQueue>, bool)>,
    kick: Option<EventFd>,
    call: Option<EventFd>,
    error: Option<EventFd>,
}

impl Queue {
    /// Takes a ring over. Control threads only: allocates, and reads the in-flight log.
    ///
    /// # Errors
    /// The in-flight log does not fit the ring or does not add up, or the base is outside of it.
    pub fn new(setup: QueueSetup<'_>) -> Result<Box<Queue>, Fault> {
        let QueueSetup { size, features, spans, base, .. } = setup;
        let log = match setup.log {
            None => None,
            Some(log) => {
                let span = log.queue(setup.index, features.packed, size);
                Some((span.ok_or(Fault::InflightLog)?, log.queue_size()))
            }
        };
        let ring = if features.packed {
            let log = log.map(|(span, entries)| PackedLog::new(span, entries));
            Ring::Packed(PackedRing::new(spans, size, features, base, log)?)
        } else {
            let log = log.map(|(span, entries)| SplitLog::new(span, entries));
            Ring::Split(SplitRing::new(spans, size, features, base as u16, log)?)
        };
        Ok(Box::new(Queue {
            index: setup.index,
            ring,
            slots: vec![Slot::default(); usize::from(size)],
            free_slots: (0..size).rev().collect(),
            chain: Chain::new(),
            operands: Operands::new(),
            hint: 0,
            pending: None,
            in_flight: 0,
            unpublished: false,
            crowded: false,
            enabled: setup.enabled,
            kicks_wanted: false,
            fault: None,
            stopping: None,
            kick: setup.kick,
            call: setup.call,
            error: setup.error,
        }))
    }

    pub(super) fn index(&self) -> u16 {
        self.index
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    pub(super) fn kick(&self) -> Option<&EventFd> {
        self.kick.as_ref()
    }

    /// True while new chains are taken.
    pub(super) fn is_live(&self) -> bool {
        self.enabled && self.fault.is_none() && self.stopping.is_none()
    }

    /// Called once when the reactor takes the queue: it polls, so no kicks; and the guest looks at
    /// its used ring, in case the previous daemon died between an entry and the call for it.
    pub(super) fn begin(&mut self) {
        self.ring.want_kicks(false);
        self.call_guest();
    }

    fn call_guest(&self) {
        if let Some(call) = &self.call {
            call.signal();
        }
    }

    /// Stops taking chains for good, because the guest broke the ring. Returns the reason once.
    pub(super) fn fail(&mut self, fault: Fault) -> Option<Fault> {
        if self.fault.is_some() {
            return None;
        }
        self.fault = Some(fault);
        if let Some(error) = &self.error {
            error.signal();
        }
        Some(fault)
    }

    /// Takes what is available, up to `batch` chains, and submits it. After a fault the caller has
    /// to [`fail`](Self::fail) the queue.
    pub(super) fn poll(
        &mut self,
        device: &Device,
        epochs: &mut Epochs,
        cookie_base: u64,
        engine: &mut impl Submit,
        batch: usize,
    ) -> Polled {
        // One that had to wait counts again: it may have been done at once now.
        let waited = usize::from(self.pending.is_some());
        let mut polled = Polled { taken: 0, fault: None };
        if !self.submit_pending(device, epochs, cookie_base, engine) {
            return polled;
        }
        polled.taken = waited;
        if !self.is_live() {
            return polled;
        }
        for _ in 0..batch {
            match self.take(device, epochs, cookie_base, engine) {
                Ok(true) => polled.taken += 1,
                Ok(false) => return polled,
                Err(fault) => return Polled { fault: Some(fault), ..polled },
            }
            if !self.submit_pending(device, epochs, cookie_base, engine) {
                return polled;
            }
        }
        polled
    }

    /// What the last poll took, for [`Queue::is_crowded`].
    pub(super) fn note_taken(&mut self, chains: usize) {
        self.crowded = chains > 1;
    }

    /// True if several chains were taken the last time.
    pub(super) fn is_crowded(&self) -> bool {
        self.crowded
    }

    /// True if a request that was taken waits until the engine has room.
    pub(super) fn is_held_up(&self) -> bool {
        self.pending.is_some()
    }

    /// Takes and parses one chain; it is answered or pending afterwards. False: there is none.
    fn take(
        &mut self,
        device: &Device,
        epochs: &mut Epochs,
        cookie_base: u64,
        engine: &mut impl Submit,
    ) -> Result<bool, Fault> {
        let memory = epochs.current();
        let Some(head) = self.ring.pop(memory, &mut self.hint, &mut self.chain)? else {
            return Ok(false);
        };
        let parsed =
            blk::parse(self.chain.descs(), memory, &mut self.hint, device, &mut self.operands)?;
        if !far::same_line(parsed.status_addr, self.chain.descs()[0].addr) {
            far::soon_written(memory.line(&mut self.hint, parsed.status_addr));
        }
        let index = *self.free_slots.last().expect("a ring holds no more chains than slots");
        let mut outstanding = 0;
        match parsed.action {
            Action::Reply(answer) => {
                self.answer(head, &parsed, answer, memory);
                return Ok(true);
            }
            Action::Transfer { op, offset, len, fua } => {
                let cookie = cookie_base | u64::from(self.index) << 16 | u64::from(index);
                let request = Request { cookie, handle: device.handle, op, offset, len, fua };
                let segs: &[Seg] = if op == Op::Flush { &[] } else { &self.operands.segs };
                match engine.submit(&request, segs) {
                    Taken::Done => {
                        self.answer(head, &parsed, Answer::Ok, memory);
                        return Ok(true);
                    }
                    Taken::Later => outstanding = 1,
                    Taken::No => {}
                }
            }
            Action::Pieces { .. } => {}
        }
        self.free_slots.pop();
        let slot = &mut self.slots[usize::from(index)];
        assert!(!slot.in_use);
        *slot = Slot {
            head,
            epoch: epochs.enter(),
            status_addr: parsed.status_addr,
            written: parsed.written,
            outstanding,
            status: Status::Ok,
            in_use: true,
        };
        self.in_flight += 1;
        if outstanding == 0 {
            self.pending = Some(Pending { slot: index, action: parsed.action, next_piece: 0 });
        }
        Ok(true)
    }

    /// Answers a chain that was just taken and needs no slot.
    fn answer(&mut self, head: Head, parsed: &Parsed, answer: Answer, memory: &GuestMemory) {
        let written = if answer == Answer::Ok { parsed.written } else { 1 };
        let there = memory.write_u8(&mut self.hint, parsed.status_addr, answer as u8);
        assert!(there, "the address was checked against this very table");
        self.ring.push_used(head, written);
        self.unpublished = true;
    }

    /// Hands the pending request to the engine; false if the engine has no room for (all of) it.
    #[inline]
    fn submit_pending(
        &mut self,
        device: &Device,
        epochs: &mut Epochs,
        cookie_base: u64,
        engine: &mut impl Submit,
    ) -> bool {
        self.pending.is_none() || self.submit_waiting(device, epochs, cookie_base, engine)
    }

    #[cold]
    fn submit_waiting(
        &mut self,
        device: &Device,
        epochs: &mut Epochs,
        cookie_base: u64,
        engine: &mut impl Submit,
    ) -> bool {
        let Some(pending) = &mut self.pending else { return true };
        let slot = &mut self.slots[usize::from(pending.slot)];
        let cookie = cookie_base | u64::from(self.index) << 16 | u64::from(pending.slot);
        let request = |op: Op, offset: u64, len: u64, fua: bool| Request {
            cookie,
            handle: device.handle,
            op,
            offset,
            len,
            fua,
        };
        match pending.action {
            Action::Transfer { op, offset, len, fua } => {
                let segs: &[Seg] = if op == Op::Flush { &[] } else { &self.operands.segs };
                match engine.submit(&request(op, offset, len, fua), segs) {
                    Taken::No => return false,
                    Taken::Later => slot.outstanding += 1,
                    Taken::Done => {
                        let index = pending.slot;
                        self.pending = None;
                        self.finish(index, Answer::Ok, epochs);
                        return true;
                    }
                }
            }
            Action::Pieces { op } => {
                let fua = device.negotiated.writes_through(device.write_cache);
                while let Some(piece) = self.operands.pieces.get(pending.next_piece) {
                    match engine.submit(&request(op, piece.offset, piece.len, fua), &[]) {
                        Taken::No => return false,
                        Taken::Later => slot.outstanding += 1,
                        Taken::Done => unreachable!("only transfers are done at once"),
                    }
                    pending.next_piece += 1;
                }
            }
            Action::Reply(_) => unreachable!("answered when it was taken"),
        }
        // Earlier pieces may have been done in earlier turns; the last cannot be yet.
        assert!(slot.outstanding > 0);
        self.pending = None;
        true
    }

    /// One engine request of slot `index` is done.
    pub(super) fn complete(&mut self, index: u16, status: Status, epochs: &mut Epochs) {
        let slot = &mut self.slots[usize::from(index)];
        assert!(slot.in_use && slot.outstanding > 0, "the engine answers each request once");
        slot.outstanding -= 1;
        if slot.status == Status::Ok {
            slot.status = status;
        }
        let submitting = self.pending.as_ref().is_some_and(|pending| pending.slot == index);
        if slot.outstanding == 0 && !submitting {
            let answer = Answer::from(slot.status);
            self.finish(index, answer, epochs);
        }
    }

    /// Answers the guest: status byte now, used entry with the next publish.
    fn finish(&mut self, index: u16, answer: Answer, epochs: &mut Epochs) {
        let slot = &mut self.slots[usize::from(index)];
        let written = if answer == Answer::Ok { slot.written } else { 1 };
        slot.in_use = false;
        epochs.leave(slot.epoch, &mut self.hint, slot.status_addr, answer as u8);
        self.ring.push_used(slot.head, written);
        self.free_slots.push(index);
        self.in_flight -= 1;
        self.unpublished = true;
    }

    /// Publishes what was finished in this turn, with one store and at most one call.
    pub(super) fn publish(&mut self) {
        if std::mem::take(&mut self.unpublished) && self.ring.publish() {
            self.call_guest();
        }
    }

    /// Asks for kicks, or not. Cheap if nothing changes.
    pub(super) fn want_kicks(&mut self, wanted: bool) {
        if self.kicks_wanted != wanted {
            self.kicks_wanted = wanted;
            self.ring.want_kicks(wanted);
        }
    }

    /// Chains that wait to be taken, or some of them.
    pub(super) fn waiting(&self) -> usize {
        self.ring.waiting()
    }

    /// True if the reactor may not sleep on account of this queue.
    pub(super) fn has_work(&self) -> bool {
        self.pending.is_some()
            || self.unpublished
            || (self.is_live() && (self.kick.is_none() || self.ring.has_work()))
    }

    pub(super) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// Exchanges an event descriptor for another.
    pub(super) fn set_event(&mut self, kind: EventKind, event: Option<EventFd>) -> Option<EventFd> {
        let place = match kind {
            EventKind::Kick => &mut self.kick,
            EventKind::Call => &mut self.call,
            EventKind::Error => &mut self.error,
        };
        let old = std::mem::replace(place, event);
        if kind == EventKind::Call {
            // Whatever was finished while there was no descriptor, or another.
            self.call_guest();
        }
        old
    }

    /// Moves the ring to other mappings of its memory.
    pub(super) fn remap(&mut self, spans: RingSpans) {
        self.ring.remap(spans);
    }

    /// From now on only what is in flight is served.
    pub(super) fn stop(&mut self, done: Reply<StoppedQueue>, retire_log: bool) {
        self.stopping = Some((done, retire_log));
    }

    /// True once stopped and with nothing left to return to the guest.
    pub(super) fn is_drained(&self) -> bool {
        self.stopping.is_some() && self.in_flight == 0
    }

    /// Gives the drained queue back to whoever stopped it.
    pub(super) fn hand_back(mut self: Box<Queue>) {
        assert!(self.is_drained() && !self.unpublished && self.pending.is_none());
        let Some((done, retire_log)) = self.stopping.take() else { return };
        if retire_log && self.fault.is_none() {
            self.ring.retire_log();
        }
        let (base, fault) = (self.ring.base(), self.fault);
        done.send(StoppedQueue { base, fault, queue: Some(self) });
    }
}

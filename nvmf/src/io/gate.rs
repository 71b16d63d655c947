//! Makes Compare-and-Write atomic against the other writes of a namespace.
//!
//! ```text
//!  every write ── enter ──► nobody holds a range: one count, go
//!                          somebody holds an overlapping range: wait
//!  compare-and-write ── enter(Hold) ──► its range is closed to new writes
//!                          the writes begun before are counted out ──► granted: read, write
//!                          leave ──► those that waited go on
//! ```
//!
//! One gate a device, on the reactor that drives its engine, passed by the work of all NVMe queues
//! just before the engine. Writes in flight are not listed, only counted in two generations: a hold
//! begins a new generation and waits until the old one is empty. So a write that meets no hold
//! costs an increment and a decrement. Reads pass freely: the engine makes each 4 KiB block old or
//! new.

use std::collections::VecDeque;

/// Ranges held at the same time; more holds wait.
pub const HOLDS_MAX: usize = 16;

/// What wants to pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// A write, discard or write-zeroes.
    Write,
    /// A compare-and-write: alone on its range until it leaves.
    Hold,
}

/// Permission to go on; given back by [`RangeGate::leave`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pass {
    /// A write, counted in this generation (0 or 1).
    Write(u8),
    /// A hold, by its place.
    Hold(u8),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Waits for a generation of its own.
    New,
    /// Waits for the writes of the generation before.
    Draining,
    Granted,
}

#[derive(Clone, Copy, Debug)]
struct Hold {
    start: u64,
    end: u64,
    ticket: u64,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    entry: Entry,
    start: u64,
    end: u64,
    ticket: u64,
}

/// The gate of one device.
#[derive(Debug, Default)]
pub struct RangeGate {
    writes: [u32; 2],
    generation: u8,
    holds: [Option<Hold>; HOLDS_MAX],
    held: usize,
    waiting: VecDeque<Waiter>,
    ready: VecDeque<(u64, Pass)>,
}

impl RangeGate {
    /// A gate nobody is in.
    pub fn new() -> RangeGate {
        RangeGate::default()
    }

    /// Asks to pass with the bytes from `offset`. `None`: wait, the pass comes out of
    /// [`RangeGate::next_ready`] with the caller's `ticket`.
    pub fn enter(&mut self, entry: Entry, offset: u64, len: u64, ticket: u64) -> Option<Pass> {
        if self.held == 0 && self.waiting.is_empty() && entry == Entry::Write {
            return Some(self.count_in());
        }
        let waiter = Waiter { entry, start: offset, end: offset.saturating_add(len), ticket };
        let blocked = self.waiting.iter().any(|w| overlap(w.start, w.end, &waiter));
        if blocked || !self.try_enter(waiter) {
            self.waiting.push_back(waiter);
        }
        // Nothing but this one can have become ready, and only as the last.
        match self.ready.back() {
            Some((ready, _)) if *ready == ticket => self.ready.pop_back().map(|(_, pass)| pass),
            _ => None,
        }
    }

    /// Gives a pass back when the work is done.
    pub fn leave(&mut self, pass: Pass) {
        match pass {
            Pass::Write(generation) => {
                let count = &mut self.writes[usize::from(generation)];
                *count = count.checked_sub(1).expect("a write leaves once");
            }
            Pass::Hold(at) => {
                let hold = self.holds[usize::from(at)].take().expect("a hold leaves once");
                assert!(hold.stage == Stage::Granted, "a hold leaves after it was granted");
                self.held -= 1;
            }
        }
        if self.held > 0 {
            self.advance();
        }
        if let Pass::Hold(_) = pass {
            self.retry();
        }
    }

    /// The next of those that waited and may go now.
    pub fn next_ready(&mut self) -> Option<(u64, Pass)> {
        self.ready.pop_front()
    }

    /// Nobody is in and nobody waits.
    pub fn is_idle(&self) -> bool {
        self.writes == [0, 0] && self.held == 0 && self.waiting.is_empty() && self.ready.is_empty()
    }

    fn count_in(&mut self) -> Pass {
        self.writes[usize::from(self.generation)] += 1;
        Pass::Write(self.generation)
    }

    /// Lets a write in or places a hold; false if a held range is in the way.
    fn try_enter(&mut self, waiter: Waiter) -> bool {
        if self.holds.iter().flatten().any(|h| overlap(h.start, h.end, &waiter)) {
            return false;
        }
        match waiter.entry {
            Entry::Write => {
                let pass = self.count_in();
                self.ready.push_back((waiter.ticket, pass));
            }
            Entry::Hold => {
                let Some(at) = self.holds.iter().position(Option::is_none) else { return false };
                let Waiter { start, end, ticket, .. } = waiter;
                self.holds[at] = Some(Hold { start, end, ticket, stage: Stage::New });
                self.held += 1;
                self.advance();
            }
        }
        true
    }

    /// Grants holds whose writes have drained and starts a generation for new ones.
    fn advance(&mut self) {
        for _ in 0..2 {
            let old = usize::from(1 - self.generation);
            if self.writes[old] == 0 {
                self.grant();
            }
            if self.holds.iter().flatten().any(|h| h.stage == Stage::Draining) {
                return;
            }
            let mut any = false;
            for hold in self.holds.iter_mut().flatten().filter(|h| h.stage == Stage::New) {
                hold.stage = Stage::Draining;
                any = true;
            }
            if !any {
                return;
            }
            self.generation = 1 - self.generation;
        }
    }

    fn grant(&mut self) {
        for (at, hold) in self.holds.iter_mut().enumerate() {
            if let Some(hold) = hold
                && hold.stage == Stage::Draining
            {
                hold.stage = Stage::Granted;
                self.ready.push_back((hold.ticket, Pass::Hold(at as u8)));
            }
        }
    }

    /// Everybody who waits tries again, in order; nobody overtakes one it overlaps with.
    fn retry(&mut self) {
        for waiter in std::mem::take(&mut self.waiting) {
            let blocked = self.waiting.iter().any(|w| overlap(w.start, w.end, &waiter));
            if blocked || !self.try_enter(waiter) {
                self.waiting.push_back(waiter);
            }
        }
    }
}

fn overlap(start: u64, end: u64, with: &Waiter) -> bool {
    start < with.end && with.start < end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_alone_never_wait() {
        let mut gate = RangeGate::new();
        let passes: Vec<Pass> =
            (0..10).map(|t| gate.enter(Entry::Write, 0, 512, t).expect("open")).collect();
        passes.into_iter().for_each(|p| gate.leave(p));
        assert!(gate.is_idle());
    }

    #[test]
    fn a_hold_waits_for_the_writes_before_it_and_stops_those_after() {
        let mut gate = RangeGate::new();
        let before = gate.enter(Entry::Write, 0, 4096, 1).expect("open");
        assert_eq!(gate.enter(Entry::Hold, 0, 512, 2), None);
        assert_eq!(gate.enter(Entry::Write, 0, 512, 3), None, "overlaps the hold");
        let beside = gate.enter(Entry::Write, 512, 512, 4).expect("beside it");
        assert_eq!(gate.next_ready(), None);
        gate.leave(before);
        let (ticket, hold) = gate.next_ready().expect("drained");
        assert_eq!(ticket, 2);
        gate.leave(beside);
        assert_eq!(gate.next_ready(), None, "the write still waits");
        gate.leave(hold);
        let (ticket, write) = gate.next_ready().expect("free");
        assert_eq!(ticket, 3);
        gate.leave(write);
        assert!(gate.is_idle());
    }

    #[test]
    fn holds_on_one_range_take_turns() {
        let mut gate = RangeGate::new();
        let mut pass = gate.enter(Entry::Hold, 0, 512, 0).expect("nobody there");
        for ticket in 1..=40 {
            assert_eq!(gate.enter(Entry::Hold, 0, 512, ticket), None);
        }
        for expected in 1..=40 {
            gate.leave(pass);
            let (ticket, next) = gate.next_ready().expect("the next in line");
            assert_eq!((ticket, gate.next_ready()), (expected, None));
            pass = next;
        }
        gate.leave(pass);
        assert!(gate.is_idle());
    }

    #[test]
    fn more_holds_than_places_wait() {
        let mut gate = RangeGate::new();
        let mut passes = Vec::new();
        for ticket in 0..HOLDS_MAX as u64 {
            passes.push(gate.enter(Entry::Hold, ticket * 512, 512, ticket).expect("a place"));
        }
        assert_eq!(gate.enter(Entry::Hold, 1 << 30, 512, 99), None);
        gate.leave(passes.pop().expect("some"));
        assert_eq!(gate.next_ready().map(|(t, _)| t), Some(99));
    }

    /// Random traffic against the rule itself: while a hold is granted, no overlapping write is in.
    #[test]
    fn no_write_is_inside_a_granted_hold() {
        let mut seed = 1u64;
        let mut random = move |n: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        let mut gate = RangeGate::new();
        let mut asked = std::collections::BTreeMap::new();
        let mut inside: Vec<(u64, Pass)> = Vec::new();
        for ticket in 0..20_000u64 {
            if inside.len() + asked.len() < 40 {
                let entry = if random(4) == 0 { Entry::Hold } else { Entry::Write };
                let (start, len) = (random(16) * 512, (1 + random(4)) * 512);
                asked.insert(ticket, (start, start + len));
                if let Some(pass) = gate.enter(entry, start, len, ticket) {
                    inside.push((ticket, pass));
                }
            }
            if random(2) == 0 && !inside.is_empty() {
                let (ticket, pass) = inside.swap_remove(random(inside.len() as u64) as usize);
                asked.remove(&ticket);
                gate.leave(pass);
            }
            while let Some(ready) = gate.next_ready() {
                inside.push(ready);
            }
            for (holder, pass) in &inside {
                let Pass::Hold(_) = pass else { continue };
                let (start, end) = asked[holder];
                for (other, _) in inside.iter().filter(|(t, _)| t != holder) {
                    let (from, to) = asked[other];
                    assert!(end <= from || to <= start, "{holder} and {other} are both inside");
                }
            }
        }
        while let Some((_, pass)) = inside.pop() {
            gate.leave(pass);
            while let Some(ready) = gate.next_ready() {
                inside.push(ready);
            }
        }
        assert!(gate.is_idle(), "nobody is left waiting");
    }
}

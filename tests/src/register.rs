//! Is a history of concurrent reads and writes of one register linearizable?
//!
//! ```text
//!  A:  ├── write 1 ──┤     ├─ read 2 ─┤
//!  B:       ├───── write 2 ─────┤                 time ─▶
//!            └ each operation happens at one instant between its ends
//! ```
//!
//! The check walks through begins and ends in time order with all *worlds* that are possible so
//! far, and lets a write take effect only when an end asks for it: at its own end, or at that of a
//! read that found its value. A write may also have gone unseen: overwritten at once by the write
//! that gave the register its value, if it had begun by then. No worlds left: not linearizable.
//! What never ends (its client saw no answer) may happen at any time, or never.
//!
//! ```text
//!  world:  value | reads that have happened | writes that have been the value  ─┐ of those
//!                                           | writes that may have gone unseen ─┘ under way
//! ```
//!
//! Values written are unique but for discards, so reads leave few worlds: the cost is that of
//! sorting, times the operations under way at once.

/// Operations under way at once, at most.
const PENDING_MAX: usize = 64;

/// What an operation does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Sets the register.
    Write(u64),
    /// Found the register to be this. A read without an answer says nothing and is left out.
    Read(u64),
}

/// One operation of a history. Times are in any unit, the same for all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// When it was asked for.
    pub begin: u64,
    /// When it was answered; `None`: never, so it may or may not have happened.
    pub end: Option<u64>,
    /// What it was.
    pub action: Action,
    /// False: at `end` it was given up, so until then it may or may not have happened, and after
    /// that it does not.
    pub sure: bool,
}

/// Why a history is not one of a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// This operation of the history cannot have ended as it did.
    Unexplained {
        /// Its place in the history.
        index: usize,
        /// A value that the register may have had before.
        before: u64,
    },
    /// More operations at once than the check can follow.
    TooMany,
}

/// One possibility. Bits are places in [`Pending`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct World {
    value: u64,
    /// Reads that have happened.
    read: u64,
    /// Writes that have been the value; they cannot be again.
    used: u64,
    /// Writes that may have happened right before the one whose value this is, or may be still to
    /// come. None of them is in `used`.
    unseen: u64,
}

impl World {
    /// True if whatever can come of `other` can come of this.
    fn covers(&self, other: &World) -> bool {
        self.value == other.value
            && other.read & !self.read == 0
            && other.unseen & !self.unseen == 0
            && (self.used ^ other.used) & !self.unseen == 0
    }

    fn forget(&mut self, bit: u64) {
        self.read &= !bit;
        self.used &= !bit;
        self.unseen &= !bit;
    }
}

/// Worlds none of which covers another.
#[derive(Default)]
struct Worlds(Vec<World>);

impl Worlds {
    fn add(&mut self, world: World) {
        if !self.0.iter().any(|known| known.covers(&world)) {
            self.0.retain(|known| !world.covers(known));
            self.0.push(world);
        }
    }
}

/// Operations under way.
struct Pending {
    slots: [Option<Action>; PENDING_MAX],
    writes: u64,
    reads: u64,
}

/// The numbers of the bits in `bits`.
fn each(mut bits: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = bits.trailing_zeros();
        (bits != 0).then(|| {
            bits &= bits - 1;
            bit
        })
    })
}

impl Pending {
    fn begin(&mut self, action: Action) -> Result<u32, Refusal> {
        let slot = (!(self.writes | self.reads)).trailing_zeros();
        if slot as usize == PENDING_MAX {
            return Err(Refusal::TooMany);
        }
        self.slots[slot as usize] = Some(action);
        match action {
            Action::Write(_) => self.writes |= 1 << slot,
            Action::Read(_) => self.reads |= 1 << slot,
        }
        Ok(slot)
    }

    fn end(&mut self, slot: u32) {
        self.slots[slot as usize] = None;
        self.writes &= !(1 << slot);
        self.reads &= !(1 << slot);
    }

    /// A read changes nothing, so it may as well happen as soon as it can: this keeps every other
    /// possibility open.
    fn with_reads(&self, mut world: World) -> World {
        for slot in each(self.reads & !world.read) {
            if self.slots[slot as usize] == Some(Action::Read(world.value)) {
                world.read |= 1 << slot;
            }
        }
        world
    }

    /// The world after write `slot` has taken effect in it.
    fn after(&self, world: World, slot: u32) -> World {
        let Some(Action::Write(value)) = self.slots[slot as usize] else {
            unreachable!("a write that is under way");
        };
        let used = world.used | 1 << slot;
        self.with_reads(World { value, used, unseen: self.writes & !used, ..world })
    }

    /// Adds to `reached` every world in which one of the writes `last` has just taken effect,
    /// others before it: those that a read is waiting for, as for nobody else it matters.
    fn force(&self, world: World, last: u64, reached: &mut Worlds) {
        let mut seen = vec![world];
        while let Some(world) = seen.pop() {
            for write in each(self.writes & !world.used) {
                let next = self.after(world, write);
                if last & 1 << write != 0 {
                    reached.add(next);
                }
                if next.read != world.read {
                    seen.push(next);
                }
            }
        }
    }

    /// The worlds that are left once the operation of `slot` has ended.
    fn ended(&self, worlds: &Worlds, slot: u32, sure: bool) -> Worlds {
        let (bit, mut left) = (1 << slot, Worlds::default());
        for &world in &worlds.0 {
            match self.slots[slot as usize].expect("an operation under way") {
                Action::Read(_) if world.read & bit != 0 => left.add(world),
                Action::Read(value) => {
                    let gives =
                        |write: &u32| self.slots[*write as usize] == Some(Action::Write(value));
                    let last = each(self.writes).filter(gives).fold(0, |all, one| all | 1 << one);
                    self.force(world, last, &mut left);
                }
                Action::Write(_) => {
                    if !sure || (world.used | world.unseen) & bit != 0 {
                        left.add(world);
                    }
                    self.force(world, bit, &mut left);
                }
            }
        }
        left
    }
}

/// Checks a history of a register that holds `initial` before it.
///
/// # Errors
/// The first operation whose answer no order of events explains.
pub fn check(initial: u64, history: &[Operation]) -> Result<(), Refusal> {
    // Ends before begins at the same instant would order more than was seen.
    let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * history.len());
    for (index, operation) in history.iter().enumerate() {
        if operation.end.is_none() && matches!(operation.action, Action::Read(_)) {
            continue;
        }
        events.push((operation.begin, false, index));
        if let Some(end) = operation.end {
            assert!(operation.begin <= end, "an operation ends after it begins");
            events.push((end, true, index));
        }
    }
    events.sort_unstable();
    let mut worlds = Worlds(vec![World { value: initial, read: 0, used: 0, unseen: 0 }]);
    let mut pending = Pending { slots: [None; PENDING_MAX], writes: 0, reads: 0 };
    let mut slots = vec![0; history.len()];
    for (_, is_end, index) in events {
        if !is_end {
            slots[index] = pending.begin(history[index].action)?;
            worlds.0.iter_mut().for_each(|world| *world = pending.with_reads(*world));
            continue;
        }
        let slot = slots[index];
        let left = pending.ended(&worlds, slot, history[index].sure);
        if left.0.is_empty() {
            let before = worlds.0.first().map_or(initial, |world| world.value);
            return Err(Refusal::Unexplained { index, before });
        }
        pending.end(slot);
        worlds = Worlds::default();
        for mut world in left.0 {
            world.forget(1 << slot);
            worlds.add(world);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::rng::Rng;

    fn w(begin: u64, end: u64, value: u64) -> Operation {
        Operation { begin, end: Some(end), action: Action::Write(value), sure: true }
    }

    fn r(begin: u64, end: u64, value: u64) -> Operation {
        Operation { begin, end: Some(end), action: Action::Read(value), sure: true }
    }

    /// A write that was never answered.
    fn maybe(begin: u64, value: u64) -> Operation {
        Operation { begin, end: None, action: Action::Write(value), sure: true }
    }

    /// A write that was given up at `end`.
    fn lapsed(begin: u64, end: u64, value: u64) -> Operation {
        Operation { begin, end: Some(end), action: Action::Write(value), sure: false }
    }

    #[test]
    fn lawful_histories_are_accepted() {
        for (name, history) in [
            ("nothing", vec![]),
            ("the first value", vec![r(0, 1, 0)]),
            ("one after the other", vec![w(0, 1, 5), r(2, 3, 5), w(4, 5, 6), r(6, 7, 6)]),
            ("a read at once with a write, before", vec![w(0, 10, 5), r(1, 2, 0), r(3, 4, 5)]),
            ("writes at once, either last", vec![w(0, 9, 5), w(0, 9, 6), r(10, 11, 5)]),
            ("writes at once, the other last", vec![w(0, 9, 5), w(0, 9, 6), r(10, 11, 6)]),
            ("a maybe that was", vec![w(0, 1, 5), maybe(2, 6), r(3, 4, 5), r(9, 10, 6)]),
            ("a maybe that was not", vec![w(0, 1, 5), maybe(2, 6), r(30, 40, 5)]),
            ("a discard twice", vec![w(0, 1, 5), w(2, 3, 0), w(4, 5, 6), w(6, 7, 0), r(8, 9, 0)]),
            ("ends that touch", vec![w(0, 5, 5), r(5, 6, 0)]),
            ("given up, and was not", vec![w(0, 1, 5), lapsed(2, 5, 6), r(6, 7, 5)]),
            ("given up, and was", vec![w(0, 1, 5), lapsed(2, 5, 6), r(6, 7, 6)]),
            (
                "given up, seen, and done again after the death",
                vec![
                    w(0, 1, 5),
                    lapsed(2, 9, 6),
                    w(2, 20, 6),
                    r(3, 4, 6),
                    w(5, 6, 7),
                    r(7, 8, 7),
                    r(21, 22, 6),
                ],
            ),
        ] {
            assert_eq!(check(0, &history), Ok(()), "{name}");
        }
    }

    #[test]
    fn unlawful_histories_are_refused() {
        for (name, history) in [
            ("a lost write", vec![w(0, 1, 5), r(2, 3, 0)]),
            ("an old value", vec![w(0, 1, 5), w(2, 3, 6), r(4, 5, 5)]),
            ("a value nobody wrote", vec![w(0, 1, 5), r(2, 3, 7)]),
            ("from the future", vec![r(0, 1, 5), w(2, 3, 5)]),
            ("new, then old", vec![w(0, 1, 4), w(2, 20, 5), r(3, 4, 5), r(6, 7, 4)]),
            ("readers that disagree", vec![w(0, 20, 5), w(0, 20, 6), r(21, 22, 5), r(23, 24, 6)]),
            ("a maybe that came and went", vec![w(0, 1, 5), maybe(2, 6), r(3, 4, 6), r(5, 6, 5)]),
            ("back from a discard", vec![w(0, 1, 5), w(2, 3, 0), r(4, 5, 5)]),
            ("a maybe before it was asked for", vec![w(0, 1, 5), r(2, 3, 6), maybe(4, 6)]),
            ("after it was given up", vec![w(0, 1, 5), lapsed(2, 5, 6), r(6, 7, 5), r(8, 9, 6)]),
            (
                "done twice without a death",
                vec![w(0, 1, 5), w(2, 20, 6), r(3, 4, 6), w(5, 6, 7), r(7, 8, 7), r(21, 22, 6)],
            ),
            ("a second death", vec![maybe(0, 5), r(1, 2, 5), w(3, 4, 6), r(5, 6, 5)]),
        ] {
            assert!(check(0, &history).is_err(), "{name}");
        }
    }

    /// Runs `count` clients on a register that is one, with random delays before and after the
    /// instant at which each operation happens.
    fn simulated(rng: &mut Rng, clients: usize, count: u64) -> Vec<Operation> {
        let (mut free_at, mut instants) = (vec![0u64; clients], Vec::new());
        for _ in 0..count {
            let client = rng.index(clients);
            let begin = free_at[client] + rng.below(5);
            let instant = begin + rng.below(20);
            let end = instant + rng.below(20);
            free_at[client] = end + 1;
            instants.push((instant, begin, end));
        }
        instants.sort_unstable();
        let (mut value, mut next) = (0, 0);
        let mut history = Vec::new();
        for (_, begin, end) in instants {
            history.push(match rng.below(10) {
                0..=4 => {
                    next += 1;
                    value = next;
                    w(begin, end, value)
                }
                5 => {
                    value = 0;
                    w(begin, end, 0)
                }
                _ => r(begin, end, value),
            });
        }
        history
    }

    /// The definition, tried out: is there an order in which each happens while it is under way?
    /// `done` has the bits of those that have happened.
    fn can_go_on(history: &[Operation], done: u64, value: u64) -> bool {
        let left = |index: &usize| done & 1 << index == 0;
        let due = (0..history.len()).filter(left).filter(|&i| history[i].sure);
        let Some(deadline) = due.filter_map(|i| history[i].end).min() else { return true };
        (0..history.len()).filter(left).any(|index| {
            let Operation { begin, end, action, .. } = history[index];
            let now = begin.max(last_begin(history, done));
            // Not before its begin, nor after an end that comes first.
            let in_time = now <= deadline && end.is_none_or(|end| now <= end);
            let good = in_time
                && match action {
                    Action::Write(_) => true,
                    Action::Read(found) => found == value,
                };
            let value = if let Action::Write(new) = action { new } else { value };
            good && can_go_on(history, done | 1 << index, value)
        })
    }

    fn last_begin(history: &[Operation], done: u64) -> u64 {
        let begins = each(done).map(|index| history[index as usize].begin);
        begins.max().unwrap_or(0)
    }

    #[test]
    fn the_definition_agrees_on_small_histories() {
        let (mut rng, mut good) = (Rng::new(5), 0);
        for case in 0..20_000 {
            let count = 3 + rng.index(5);
            let history: Vec<_> = (0..count as u64)
                .map(|index| {
                    let begin = rng.below(12);
                    let end = begin + rng.below(8);
                    let value = if rng.below(4) == 0 { 0 } else { index + 1 };
                    match rng.below(8) {
                        0..3 => w(begin, end, value),
                        3 => lapsed(begin, end, value),
                        4 => maybe(begin, value),
                        _ => r(begin, end, rng.below(count as u64 + 1)),
                    }
                })
                .collect();
            let lawful = can_go_on(&history, 0, 0);
            assert_eq!(check(0, &history).is_ok(), lawful, "case {case}: {history:?}");
            good += u32::from(lawful);
        }
        assert!((2_000..18_000).contains(&good), "{good} lawful histories");
    }

    #[test]
    fn a_real_register_passes_and_a_broken_one_does_not() {
        let mut caught = 0;
        for seed in 0..100 {
            let mut rng = Rng::new(seed);
            let history = simulated(&mut rng, 6, 400);
            assert_eq!(check(0, &history), Ok(()), "seed {seed}");
            // One read long after the beginning sees a value from long before.
            let mut broken = history.clone();
            let read = (300..400).find(|&i| matches!(broken[i].action, Action::Read(_)));
            broken[read.expect("a read")].action = Action::Read(1);
            caught += u32::from(check(0, &broken).is_err());
        }
        assert_eq!(caught, 100);
    }
}

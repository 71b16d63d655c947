//! Is a history of concurrent reads and writes of one register linearizable?
//!
//! ```text
//!  A:  ├── write 1 ──┤     ├─ read 2 ─┤
//!  B:       ├───── write 2 ─────┤                 time ─▶
//!            └ each operation happens at one instant between its ends
//! ```
//!
//! The check walks through begins and ends in time order with all *worlds* that are possible so
//! far: a value, and which of the operations under way have happened already. At an end, that
//! operation must have happened: worlds where it cannot have are dropped. None left: not
//! linearizable. What never ends (its client saw no answer) may happen at any time, or never.
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

/// One possibility: the register's value, and which operations under way have happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct World {
    value: u64,
    happened: u64,
}

/// Operations under way, in the bits of [`World::happened`].
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
    fn begin(&mut self, action: Action) -> Result<u32, String> {
        let slot = (!(self.writes | self.reads)).trailing_zeros();
        if slot as usize == PENDING_MAX {
            return Err(format!("more than {PENDING_MAX} operations at once"));
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
        for slot in each(self.reads & !world.happened) {
            if self.slots[slot as usize] == Some(Action::Read(world.value)) {
                world.happened |= 1 << slot;
            }
        }
        world
    }

    /// Every world in which the operation of `slot` has happened, reached from `worlds` by letting
    /// writes happen, this one last.
    fn force(&self, worlds: &[World], slot: u32) -> Vec<World> {
        let mut reached = Vec::new();
        let mut seen = worlds.to_vec();
        let mut next = 0;
        while let Some(world) = seen.get(next).copied() {
            next += 1;
            if world.happened & (1 << slot) != 0 {
                reached.push(world);
                continue;
            }
            for write in each(self.writes & !world.happened) {
                let Some(Action::Write(value)) = self.slots[write as usize] else { continue };
                let happened = world.happened | 1 << write;
                let world = self.with_reads(World { value, happened });
                if !seen.contains(&world) {
                    seen.push(world);
                }
            }
        }
        reached
    }
}

/// Checks a history of a register that holds `initial` before it.
///
/// # Errors
/// The first operation whose answer no order of events explains.
pub fn check(initial: u64, history: &[Operation]) -> Result<(), String> {
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
    let mut worlds = vec![World { value: initial, happened: 0 }];
    let mut pending = Pending { slots: [None; PENDING_MAX], writes: 0, reads: 0 };
    let mut slots = vec![None; history.len()];
    for (_, is_end, index) in events {
        if !is_end {
            slots[index] = Some(pending.begin(history[index].action)?);
            worlds.iter_mut().for_each(|world| *world = pending.with_reads(*world));
            continue;
        }
        let slot = slots[index].expect("it began");
        if !history[index].sure {
            worlds.extend(pending.force(&worlds, slot));
            pending.end(slot);
            let mut merged: Vec<World> = Vec::new();
            for mut world in worlds {
                world.happened &= !(1 << slot);
                if !merged.contains(&world) {
                    merged.push(world);
                }
            }
            worlds = merged;
            continue;
        }
        let before = worlds.first().map_or(initial, |world| world.value);
        worlds = pending.force(&worlds, slot);
        if worlds.is_empty() {
            return Err(format!(
                "{:x?} cannot be explained; the register may have held {before:#x} before",
                history[index]
            ));
        }
        pending.end(slot);
        // All of them have this bit set, so they stay different without it.
        worlds.iter_mut().for_each(|world| world.happened &= !(1 << slot));
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

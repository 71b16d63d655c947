//! One closed loop: a fixed number of requests in flight, for a time or until every block was hit.

use anyhow::{Result, ensure};

use crate::clock;
use crate::histogram::Histogram;
use crate::random::Random;
use crate::store::{DEPTH_MAX, Store, Verb};

/// Which offset comes next.
pub enum Pattern<'a> {
    /// Any of the first `units` units, for ever.
    Random(Random, u64),
    /// One after the other from unit `next` on, round and round.
    Sequential {
        /// Next unit.
        next: u64,
        /// Units before it starts again.
        units: u64,
    },
    /// Each unit of the list once.
    Once(std::slice::Iter<'a, u32>),
}

impl Pattern<'_> {
    fn next(&mut self) -> Option<u64> {
        match self {
            Pattern::Random(random, units) => Some(random.below(*units)),
            Pattern::Sequential { next, units } => {
                let unit = *next;
                *next = if unit + 1 == *units { 0 } else { unit + 1 };
                Some(unit)
            }
            Pattern::Once(list) => list.next().map(|&unit| u64::from(unit)),
        }
    }
}

/// What to ask for.
pub struct Load<'a> {
    /// Which kind.
    pub verb: Verb,
    /// Requests in flight, at most [`DEPTH_MAX`].
    pub depth: usize,
    /// Bytes of each request and of the pattern's unit.
    pub len: u32,
    /// Where.
    pub pattern: Pattern<'a>,
    /// Nanoseconds; `None`: until the pattern ends.
    pub time_ns: Option<u64>,
}

/// What came of one run.
#[derive(Clone, Copy, Default, Debug)]
pub struct Sample {
    /// Requests done.
    pub ios: u64,
    /// Time on the wall.
    pub wall_ns: u64,
    /// CPU time of what was measured.
    pub cpu_ns: u64,
}

/// Snapshots in the middle of a load, and how long everything takes meanwhile.
pub struct Probe {
    /// Nanoseconds between snapshots; 0: none are taken.
    period_ns: u64,
    next_ns: u64,
    waiting: bool,
    begun: [u64; DEPTH_MAX],
    /// Of the requests.
    pub requests: Histogram,
    /// Of the snapshots.
    pub snapshots: Histogram,
    /// Of the snapshots without the waiting for a core, where that is known.
    pub on_core: Histogram,
}

impl Probe {
    /// `rate` snapshots a second; 0: none.
    pub fn new(rate: u64) -> Probe {
        Probe {
            period_ns: 1_000_000_000u64.checked_div(rate).unwrap_or(0),
            next_ns: 0,
            waiting: false,
            begun: [0; DEPTH_MAX],
            requests: Histogram::default(),
            snapshots: Histogram::default(),
            on_core: Histogram::default(),
        }
    }

    /// Takes the answer to a snapshot, asks for the next one when it is due.
    fn step(&mut self, store: &mut dyn Store, may_ask: bool) -> Result<()> {
        if self.waiting
            && let Some(took) = store.snapshot_answer()?
        {
            self.snapshots.add(took.wall_ns);
            if let Some(on_core) = took.on_core_ns {
                self.on_core.add(on_core);
            }
            self.waiting = false;
        }
        let now = store.pace_ns();
        if self.next_ns == 0 {
            self.next_ns = now + self.period_ns;
        }
        if self.period_ns > 0 && may_ask && !self.waiting && now >= self.next_ns {
            // One that is late is not made up for in a burst.
            self.next_ns = (self.next_ns + self.period_ns).max(now);
            store.ask_snapshot()?;
            self.waiting = true;
        }
        Ok(())
    }
}

/// Lists of slots, kept from run to run so that a run allocates nothing.
pub struct Slots {
    idle: Vec<u32>,
    done: Vec<u32>,
}

impl Default for Slots {
    fn default() -> Slots {
        Slots { idle: Vec::with_capacity(DEPTH_MAX), done: Vec::with_capacity(DEPTH_MAX) }
    }
}

/// Runs one load to its end.
///
/// # Errors
/// A request or a snapshot failed.
pub fn run(store: &mut dyn Store, load: &mut Load, probe: Option<&mut Probe>) -> Result<Sample> {
    run_in(&mut Slots::default(), store, load, probe)
}

/// The same with lists of the caller's.
///
/// # Errors
/// A request or a snapshot failed.
pub fn run_in(
    slots: &mut Slots,
    store: &mut dyn Store,
    load: &mut Load,
    mut probe: Option<&mut Probe>,
) -> Result<Sample> {
    ensure!((1..=DEPTH_MAX).contains(&load.depth), "a depth of {} is not offered", load.depth);
    let Slots { idle, done } = slots;
    idle.clear();
    idle.extend(0..load.depth as u32);
    done.clear();
    let (cpu, begin) = (store.cpu_ns()?, clock::wall_ns());
    let end = load.time_ns.map(|time| begin + time);
    let (mut ios, mut turns, mut over) = (0, 0u32, false);
    loop {
        // A look at the clock costs as much as a small request.
        turns = turns.wrapping_add(1);
        over |= turns.is_multiple_of(16) && end.is_some_and(|end| clock::wall_ns() >= end);
        let now = if probe.is_some() { clock::wall_ns() } else { 0 };
        while !over && let Some(slot) = idle.pop() {
            let Some(unit) = load.pattern.next() else {
                idle.push(slot);
                over = true;
                break;
            };
            store.submit(load.verb, slot, unit * u64::from(load.len), load.len)?;
            if let Some(probe) = &mut probe {
                probe.begun[slot as usize] = now;
            }
        }
        if let Some(probe) = &mut probe {
            probe.step(store, !over)?;
        }
        if over && idle.len() == load.depth && probe.as_ref().is_none_or(|p| !p.waiting) {
            break;
        }
        store.turn(done)?;
        ios += done.len() as u64;
        if let Some(probe) = &mut probe
            && !done.is_empty()
        {
            let now = clock::wall_ns();
            done.iter().for_each(|&slot| probe.requests.add(now - probe.begun[slot as usize]));
        }
        idle.append(done);
    }
    Ok(Sample { ios, wall_ns: clock::wall_ns() - begin, cpu_ns: store.cpu_ns()? - cpu })
}

/// Writes every block of the chosen disk once, in the order of `blocks`, each with its own mark,
/// and reads some back, so that what is measured afterwards is known to be a disk.
///
/// # Errors
/// A request failed, or what comes back is not what was written.
pub fn fill(store: &mut dyn Store, blocks: &[u32], len: u32) -> Result<()> {
    for slot in 0..DEPTH_MAX as u32 {
        store.buffer(slot).fill(slot as u8 + 1);
    }
    let mut load = Load {
        verb: Verb::Write,
        depth: 32,
        len,
        pattern: Pattern::Once(blocks.iter()),
        time_ns: None,
    };
    run(store, &mut load, None)?;
    if !store.keeps_data() {
        return Ok(());
    }
    let marked = &blocks[..blocks.len().min(16)];
    for (verb, mark) in [(Verb::Write, true), (Verb::Read, false)] {
        for &block in marked {
            let stamp = u64::from(block) | 0x5a00_0000_0000_0000;
            let bytes = if mark { stamp.to_le_bytes() } else { [0; 8] };
            store.buffer(0)[..8].copy_from_slice(&bytes);
            let pattern = Pattern::Once(std::slice::from_ref(&block).iter());
            run(store, &mut Load { verb, depth: 1, len, pattern, time_ns: None }, None)?;
            ensure!(store.buffer(0)[..8] == stamp.to_le_bytes(), "block {block} reads wrong");
        }
    }
    Ok(())
}

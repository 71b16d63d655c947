//! One 4 KiB block as a linearizable register of eight sectors, and the proof that what a read
//! returned is lawful.
//!
//! ```text
//!   base        entry          entry                     entry
//!   [8 tags] ──▶ write 5 ──▶  write 9 (sectors 2-3) ──▶ discard 12 ...
//!                submit/ack intervals of entries may overlap: then either order is lawful
//! ```
//!
//! A read of sectors R is lawful if there is a set S of entries and an order of S such that S
//! holds everything that must have happened before the read began, holds what S itself implies,
//! respects real time, and its last entry on each sector of R is what was read there. Each data
//! write is unique, so the winner of a sector is known and only zeros need a small search.

use super::ops::{Fate, NEVER, OpFacts, OpTable};
use super::pattern::OpId;

/// Sectors in a block.
pub const SECTORS: usize = 8;
/// The winner of a sector is what the block held before all entries.
const BASE: usize = usize::MAX;
/// Entries a check can hold (bits of a `u128`).
const NODES_MAX: usize = 128;
/// Combinations of zero writers tried before the read is let pass.
const SEARCH_MAX: usize = 512;

/// One operation, as one block saw it.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Which.
    pub op: OpId,
    /// Sectors it covers.
    pub mask: u8,
    /// Inherited from a snapshot that need not hold it.
    maybe: bool,
    /// Event after which it cannot come into this block (the snapshot's reply).
    cap: u64,
    /// First event by which a read had seen it.
    seen_at: u64,
    /// Power cuts before that.
    seen_epoch: u32,
}

impl Entry {
    fn closed(&self, facts: &OpFacts) -> u64 {
        facts.closed.min(self.cap).min(self.seen_at)
    }

    /// Event from which on it must be there.
    fn effective(&self, facts: &OpFacts, epoch: u32) -> u64 {
        let acked = if facts.must && !self.maybe { facts.ack } else { NEVER };
        let seen_counts = self.seen_at > facts.forget
            && (facts.durable || self.seen_epoch == epoch || facts.epoch < self.seen_epoch);
        if seen_counts { acked.min(self.seen_at) } else { acked }
    }
}

/// What one read of a block returned.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The write each sector came from.
    pub tags: [OpId; SECTORS],
    /// Sectors that were read.
    pub mask: u8,
}

/// Between which events a read (or a snapshot) looked.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// It was asked for.
    pub from: u64,
    /// It was answered.
    pub to: u64,
}

/// What a lawful read teaches about later ones.
#[derive(Debug, Default)]
pub struct Lesson {
    seen: Vec<usize>,
    order: Vec<(OpId, OpId)>,
    gone: Vec<OpId>,
    /// The search was cut short; the read was let pass unproven.
    pub unproven: bool,
}

impl Lesson {
    /// True if there is something to keep.
    pub fn teaches(&self) -> bool {
        !(self.seen.is_empty() && self.order.is_empty() && self.gone.is_empty())
    }
}

/// The history of one block.
#[derive(Clone, Debug, Default)]
pub struct History {
    base: [OpId; SECTORS],
    from_snapshot: bool,
    entries: Vec<Entry>,
    order: Vec<(OpId, OpId)>,
}

impl History {
    /// A block known to hold `tags` and nothing else.
    pub fn known(tags: [OpId; SECTORS]) -> History {
        History { base: tags, from_snapshot: true, ..History::default() }
    }

    /// The operations that may show in it.
    pub fn ops(&self) -> impl Iterator<Item = OpId> {
        self.entries.iter().map(|entry| entry.op)
    }

    /// True if there are entries, and each certainly took effect before event `first`.
    pub fn settled(&self, ops: &OpTable, first: u64) -> bool {
        let certain = |entry: &Entry| {
            let facts = ops.get(entry.op);
            !entry.maybe && facts.closed < first && facts.fate == Fate::Acked
        };
        !self.entries.is_empty() && self.entries.iter().all(certain)
    }

    /// Entries kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// `op` may take effect from now on.
    pub fn push(&mut self, op: OpId, mask: u8) {
        let entry = Entry { op, mask, maybe: false, cap: NEVER, seen_at: NEVER, seen_epoch: 0 };
        self.entries.push(entry);
    }

    /// The history a clone starts with, if this is what a snapshot taken in `window` saw.
    pub fn inherited(&self, ops: &OpTable, window: Window) -> History {
        let mut copy = self.clone();
        for entry in &mut copy.entries {
            let facts = ops.get(entry.op);
            let before = entry.effective(facts, ops.epoch).min(facts.ack);
            if before >= window.from {
                // What a read of the live disk saw meanwhile says nothing about the snapshot.
                entry.maybe = true;
                entry.seen_at = NEVER;
            }
            entry.cap = entry.cap.min(window.to);
        }
        copy
    }

    /// Whether the block is certainly mapped, and whether it may be, with nothing in flight.
    pub fn mapped(&self, ops: &OpTable) -> (bool, bool) {
        let frees = |e: &Entry| ops.get(e.op).zero && e.mask == 0xFF;
        let certain = |e: &Entry| e.effective(ops.get(e.op), ops.epoch) != NEVER;
        let before = |a: &Entry, b: &Entry| a.closed(ops.get(a.op)) < ops.get(b.op).submit;
        let data = |e: &Entry| !ops.get(e.op).zero;
        let filled = self.base.iter().any(|tag| *tag != 0);
        let mut all = self.entries.iter();
        let surely = filled && !self.entries.iter().any(frees)
            || all.any(|d| {
                data(d) && certain(d) && self.entries.iter().all(|z| !frees(z) || before(z, d))
            });
        let freed = self.entries.iter().any(|z| {
            let last = |e: &Entry| e.op == z.op || frees(e) || before(e, z);
            frees(z) && certain(z) && self.entries.iter().all(last)
        });
        let untouched = self.entries.is_empty() && !filled && !self.from_snapshot;
        (surely, !(freed || untouched))
    }

    /// Forgets entries that nothing can show any more; `horizon` is the submission of the oldest
    /// read in flight.
    pub fn prune(&mut self, ops: &OpTable, horizon: u64) {
        let solid: Vec<(u64, u8)> = self
            .entries
            .iter()
            .filter(|e| !e.maybe)
            .map(|e| (ops.get(e.op), e.mask))
            .filter(|(facts, _)| facts.durable && facts.must && facts.ack < horizon)
            .map(|(facts, mask)| (facts.submit, mask))
            .collect();
        self.entries.retain(|entry| {
            let closed = entry.closed(ops.get(entry.op));
            let after = solid.iter().filter(|(submit, _)| closed < *submit);
            let hidden = after.fold(0, |mask, (_, covers)| mask | covers);
            entry.mask & !hidden != 0
        });
        let kept = &self.entries;
        self.order.retain(|(a, b)| [a, b].iter().all(|op| kept.iter().any(|e| e.op == **op)));
    }

    /// Checks what a read in `window` returned.
    ///
    /// # Errors
    /// Why no order of the writes explains it.
    pub fn check(&self, ops: &OpTable, seen: Seen, window: Window) -> Result<Lesson, String> {
        if self.entries.is_empty() {
            return match self.base_mismatch(seen) {
                None => Ok(Lesson::default()),
                Some(sector) => Err(self.explain(
                    ops,
                    seen,
                    window,
                    &format!(
                        "sector {sector} shows write {} which this block never had",
                        seen.tags[sector]
                    ),
                )),
            };
        }
        let Some(slim) = self.slim(ops, seen, window) else {
            return Ok(Lesson { unproven: true, ..Lesson::default() });
        };
        let groups =
            slim.groups(ops, seen, window).map_err(|why| self.explain(ops, seen, window, &why))?;
        let combinations: usize =
            groups.iter().map(|g| g.winners.len()).try_fold(1, usize::checked_mul).unwrap_or(0);
        if combinations == 0 || combinations > SEARCH_MAX {
            return Ok(Lesson { unproven: true, ..Lesson::default() });
        }
        for combination in 0..combinations {
            let mut rest = combination;
            let mut winners = [None; SECTORS];
            for group in &groups {
                let choice = group.winners[rest % group.winners.len()];
                rest /= group.winners.len();
                for (sector, winner) in winners.iter_mut().enumerate() {
                    if group.sectors & 1 << sector != 0 {
                        *winner = Some(choice);
                    }
                }
            }
            if slim.feasible(ops, &winners, window) {
                return Ok(slim.lesson(ops, &groups, window, self));
            }
        }
        Err(self.explain(ops, seen, window, "no order of the writes gives this"))
    }

    /// Keeps what a read taught.
    pub fn learn(&mut self, lesson: &Lesson, at: u64, epoch: u32) {
        for index in &lesson.seen {
            let entry = &mut self.entries[*index];
            if entry.seen_at == NEVER || entry.seen_epoch != epoch {
                entry.seen_at = entry.seen_at.min(at);
                entry.seen_epoch = epoch;
            }
        }
        for pair in &lesson.order {
            if !self.order.contains(pair) {
                self.order.push(*pair);
            }
        }
        self.entries.retain(|entry| !lesson.gone.contains(&entry.op));
    }

    fn base_mismatch(&self, seen: Seen) -> Option<usize> {
        (0..SECTORS).find(|s| seen.mask & 1 << s != 0 && seen.tags[*s] != self.base[*s])
    }

    /// This history with few enough entries for a check: those go that were not seen and certainly
    /// overwritten before the read began.
    fn slim(
        &self,
        ops: &OpTable,
        seen: Seen,
        window: Window,
    ) -> Option<std::borrow::Cow<'_, History>> {
        if self.entries.len() <= NODES_MAX {
            return Some(std::borrow::Cow::Borrowed(self));
        }
        let mut copy = self.clone();
        let full: Vec<u64> = self
            .entries
            .iter()
            .filter(|e| e.mask == 0xFF && e.effective(ops.get(e.op), ops.epoch) < window.from)
            .map(|e| ops.get(e.op).submit)
            .collect();
        copy.entries.retain(|e| {
            let closed = e.closed(ops.get(e.op));
            seen.tags.contains(&e.op) || !full.iter().any(|submit| closed < *submit)
        });
        (copy.entries.len() <= NODES_MAX).then_some(std::borrow::Cow::Owned(copy))
    }

    /// Sectors that share their possible winners.
    fn groups(&self, ops: &OpTable, seen: Seen, window: Window) -> Result<Vec<Group>, String> {
        let mut groups: Vec<Group> = Vec::new();
        for sector in (0..SECTORS).filter(|s| seen.mask & 1 << s != 0) {
            let tag = seen.tags[sector];
            let fits = |e: &Entry| {
                let facts = ops.get(e.op);
                let same = if tag == 0 { facts.zero } else { e.op == tag };
                same && e.mask & 1 << sector != 0 && facts.submit <= window.to
            };
            let mut winners: Vec<usize> =
                (0..self.entries.len()).rev().filter(|i| fits(&self.entries[*i])).collect();
            if self.base[sector] == tag {
                winners.push(BASE);
            }
            if winners.is_empty() {
                return Err(format!(
                    "sector {sector} shows {}, which is not a value it can have",
                    if tag == 0 { "zeros".to_string() } else { format!("write {tag}") }
                ));
            }
            match groups.iter_mut().find(|g| g.winners == winners) {
                Some(group) => group.sectors |= 1 << sector,
                None => groups.push(Group { sectors: 1 << sector, winners }),
            }
        }
        Ok(groups)
    }

    /// True if some set and order of entries makes `winners` the last on their sectors.
    fn feasible(&self, ops: &OpTable, winners: &[Option<usize>; SECTORS], window: Window) -> bool {
        let count = self.entries.len();
        let facts: Vec<&OpFacts> = self.entries.iter().map(|e| ops.get(e.op)).collect();
        let effective: Vec<u64> =
            self.entries.iter().zip(&facts).map(|(e, f)| e.effective(f, ops.epoch)).collect();
        let mut set = 0u128;
        for (index, at) in effective.iter().enumerate() {
            set |= u128::from(*at < window.from) << index;
        }
        for winner in winners.iter().flatten().filter(|w| **w != BASE) {
            set |= 1 << winner;
        }
        // What was certain before something in the set was even asked for is in the set too.
        let latest = (0..count).filter(|i| set >> i & 1 == 1).map(|i| facts[i].submit).max();
        for (index, at) in effective.iter().enumerate() {
            set |= u128::from(*at < latest.unwrap_or(0)) << index;
        }
        let mut before = vec![0u128; count];
        for i in (0..count).filter(|i| set >> i & 1 == 1) {
            for j in (0..count).filter(|j| set >> j & 1 == 1) {
                let closed = self.entries[j].closed(facts[j]);
                before[i] |= u128::from(i != j && closed < facts[i].submit) << j;
            }
        }
        for (sector, winner) in winners.iter().enumerate() {
            let Some(winner) = *winner else { continue };
            let covering = (0..count)
                .filter(|i| set >> i & 1 == 1 && self.entries[*i].mask & 1 << sector != 0)
                .fold(0u128, |bits, i| bits | 1 << i);
            if winner == BASE {
                if covering != 0 {
                    return false;
                }
            } else {
                before[winner] |= covering & !(1 << winner);
            }
        }
        self.add_learned(set, &mut before);
        orderable(set, &before)
    }

    fn add_learned(&self, set: u128, before: &mut [u128]) {
        for (first, second) in &self.order {
            let find = |op: OpId| self.entries.iter().position(|e| e.op == op);
            if let (Some(i), Some(j)) = (find(*first), find(*second))
                && set >> i & set >> j & 1 == 1
            {
                before[j] |= 1 << i;
            }
        }
    }

    fn lesson(&self, ops: &OpTable, groups: &[Group], window: Window, full: &History) -> Lesson {
        let mut lesson = Lesson::default();
        for group in groups.iter().filter(|g| g.winners.len() == 1) {
            let winner = group.winners[0];
            for (index, entry) in self.entries.iter().enumerate() {
                let facts = ops.get(entry.op);
                if entry.mask & group.sectors == 0 || index == winner || entry.maybe {
                    continue;
                }
                let effective = entry.effective(facts, ops.epoch);
                if winner == BASE {
                    let over = matches!(facts.fate, Fate::Cut | Fate::Acked);
                    if over && effective == NEVER && facts.closed < window.from {
                        lesson.gone.push(entry.op);
                    }
                } else if facts.fate != Fate::Failed && entry.closed(facts) < window.from {
                    let after = &self.entries[winner];
                    if entry.closed(facts) >= ops.get(after.op).submit {
                        lesson.order.push((entry.op, after.op));
                    }
                }
            }
            if winner != BASE {
                let entry = &self.entries[winner];
                if entry.effective(ops.get(entry.op), ops.epoch) > window.to {
                    let place = full.entries.iter().position(|e| e.op == entry.op);
                    lesson.seen.extend(place);
                }
            }
        }
        lesson
    }

    /// The history and what was read, for a person.
    fn explain(&self, ops: &OpTable, seen: Seen, window: Window, why: &str) -> String {
        let mut text = format!("{why}\n    read (events {}..{}) saw", window.from, window.to);
        for sector in 0..SECTORS {
            match seen.mask & 1 << sector {
                0 => text.push_str(" ."),
                _ => text.push_str(&format!(" {}", seen.tags[sector])),
            }
        }
        text.push_str(&format!("\n    before all writes: {:?}", self.base));
        for entry in &self.entries {
            let f = ops.get(entry.op);
            let time = |at: u64| if at == NEVER { "-".to_string() } else { at.to_string() };
            text.push_str(&format!(
                "\n    {} {} sectors {:#04x}: submitted {}, acked {}, {:?}{}{}{}{}",
                if f.zero { "zeroes" } else { "write" },
                entry.op,
                entry.mask,
                f.submit,
                time(f.ack),
                f.fate,
                if f.must { ", must be there" } else { ", may be lost" },
                if f.durable { ", flushed" } else { "" },
                if entry.maybe { ", may be outside the snapshot" } else { "" },
                if entry.seen_at == NEVER {
                    String::new()
                } else {
                    format!(", seen at {}", entry.seen_at)
                },
            ));
        }
        if !self.order.is_empty() {
            text.push_str(&format!("\n    orders shown by earlier reads: {:?}", self.order));
        }
        text
    }
}

/// Sectors of a read whose winner is one of the same few.
#[derive(Debug)]
struct Group {
    sectors: u8,
    winners: Vec<usize>,
}

/// True if the members of `set` can be put in a row with `before[i]` all in front of `i`.
fn orderable(set: u128, before: &[u128]) -> bool {
    let mut left = set;
    while left != 0 {
        let free = (0..before.len())
            .filter(|i| left >> i & 1 == 1 && before[*i] & left == 0)
            .fold(0u128, |bits, i| bits | 1 << i);
        if free == 0 {
            return false;
        }
        left &= !free;
    }
    true
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;

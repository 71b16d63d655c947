//! What was asked of a store and when it was answered, and what follows from it for a power cut at
//! a given moment.
//!
//! ```text
//!  facts (requests, commands, with times) ── cut at p ──▶ Due: for each disk and snapshot whether
//!                                                         it must, may or must not be there, and
//!                                                         for each block what it may hold
//! ```

use std::collections::BTreeSet;

use lamina_bdev::{DiskId, Handle, SnapId, Uuid};

use super::due::{BlockDue, DiskDue, Due, Presence, SnapDue, Value};
use super::log::Log;
use crate::sim::rng::mix;

/// Has not happened.
pub const NEVER: usize = usize::MAX;

/// When something was asked for and answered.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Asked for.
    pub submit: usize,
    /// Answered.
    pub ack: usize,
}

impl Span {
    /// Asked for now.
    pub fn begin(submit: usize) -> Span {
        Span { submit, ack: NEVER }
    }

    fn presence(&self, at: usize, durable: bool) -> Presence {
        if self.submit >= at {
            Presence::No
        } else if self.ack < at && durable {
            Presence::Must
        } else {
            Presence::May
        }
    }
}

/// What a request does to blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Writes its pattern.
    Write,
    /// Zeros.
    Zero,
    /// Zeros whole blocks, leaves parts of blocks as they are.
    Discard,
}

/// A request that changes data.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// Which disk, by its place in [`Facts::disks`].
    pub disk: usize,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// What it does.
    pub effect: Effect,
    /// When.
    pub span: Span,
    /// Durable when answered.
    pub fua: bool,
}

/// A disk.
pub struct DiskFacts {
    /// Its identity.
    pub uuid: Uuid,
    /// Its number.
    pub id: Option<DiskId>,
    /// Its attachment.
    pub handle: Option<Handle>,
    /// The snapshot it is a clone of, by its place in [`Facts::snaps`].
    pub origin: Option<usize>,
    /// Its creation.
    pub create: Span,
    /// Its deletion.
    pub delete: Option<Span>,
    /// Its sizes, first to last.
    pub sizes: Vec<(u64, Span)>,
}

impl DiskFacts {
    /// Bytes after the last resize.
    pub fn size(&self) -> u64 {
        self.sizes.last().expect("a disk has a size").0
    }
}

/// A snapshot.
pub struct SnapFacts {
    /// Its identity.
    pub uuid: Uuid,
    /// Of which disk.
    pub disk: usize,
    /// Its number.
    pub id: Option<SnapId>,
    /// Bytes.
    pub size: u64,
    /// When it was taken.
    pub take: Span,
    /// Its deletion.
    pub delete: Option<Span>,
}

/// Everything asked of one store. A change's place in `changes` is the number in its pattern.
#[derive(Default)]
pub struct Facts {
    /// Data.
    pub changes: Vec<Change>,
    /// Disks.
    pub disks: Vec<DiskFacts>,
    /// Snapshots, in the order taken.
    pub snaps: Vec<SnapFacts>,
    /// Flushes and commands whose answer makes what was answered before them durable.
    pub barriers: Vec<Span>,
    /// The base keeps what it completed.
    pub steady: bool,
}

impl Facts {
    /// True if what was answered at `ack` must survive a cut at `at`.
    fn durable(&self, ack: usize, at: usize) -> bool {
        let covered = |b: &Span| b.submit > ack && b.ack < at;
        ack < at && (self.steady || self.barriers.iter().any(covered))
    }

    /// What must be found after the death of the daemon alone at `at`: the device keeps all.
    pub fn due_after_kill(&mut self, at: usize) -> Due {
        let steady = std::mem::replace(&mut self.steady, true);
        let due = self.due(at);
        self.steady = steady;
        due
    }

    /// What must be found after a cut at `at`.
    pub fn due(&self, at: usize) -> Due {
        let disks: Vec<DiskDue> =
            (0..self.disks.len()).map(|disk| self.disk_due(disk, at)).collect();
        let mut signature = 0;
        let mut take = |fact: u64| signature = mix(signature ^ fact);
        for disk in &disks {
            take(disk.presence as u64 + 10);
            disk.sizes.iter().for_each(|size| take(*size));
            disk.snaps.iter().for_each(|snap| take(snap.presence as u64 + 20));
            let all = disk.snaps.iter().flat_map(|s| &s.blocks).chain(&disk.blocks);
            all.flat_map(|b| &b.allowed).for_each(|(_, hash)| take(*hash));
        }
        Due { disks, signature }
    }

    fn disk_due(&self, disk: usize, at: usize) -> DiskDue {
        let facts = &self.disks[disk];
        let mut presence = facts.create.presence(at, true);
        if let Some(delete) = &facts.delete {
            presence = without(presence, delete.presence(at, true));
        }
        let mut sizes = Vec::new();
        for (size, span) in &facts.sizes {
            match span.presence(at, true) {
                Presence::Must => sizes = vec![*size],
                Presence::May => sizes.push(*size),
                Presence::No => {}
            }
        }
        let blocks = self.touched(disk);
        let blocks = blocks.iter().map(|block| {
            let required = |change: &Change| self.must_be_there(change, at);
            BlockDue::new(*block, self.values(disk, *block, at, &required))
        });
        let blocks = blocks.collect();
        let snaps = self.snaps.iter().filter(|snap| snap.disk == disk);
        let snaps = snaps.map(|snap| self.snap_due(snap, at)).collect();
        DiskDue { uuid: facts.uuid, presence, sizes, blocks, snaps }
    }

    fn must_be_there(&self, change: &Change, at: usize) -> bool {
        let ack = change.span.ack;
        ack < at && (change.fua || self.durable(ack, at))
    }

    fn snap_due(&self, snap: &SnapFacts, at: usize) -> SnapDue {
        let durable = self.durable(snap.take.ack, at);
        let mut presence = snap.take.presence(at, durable);
        if let Some(delete) = &snap.delete {
            presence = without(presence, delete.presence(at, true));
        }
        let blocks = self.touched(snap.disk);
        let blocks = blocks
            .iter()
            .map(|block| BlockDue::new(*block, self.snap_values(snap, *block, at, durable)));
        let may_be_deleted = snap.delete.is_some_and(|delete| delete.submit < at);
        let (uuid, size, blocks) = (snap.uuid, snap.size, blocks.collect());
        SnapDue { uuid, presence, may_be_deleted, size, blocks }
    }

    /// What a block of a snapshot may hold: all that was answered before it was asked for, unless a
    /// cut took that first; none of what was asked for after its answer.
    fn snap_values(&self, snap: &SnapFacts, block: u64, at: usize, exact: bool) -> BTreeSet<Value> {
        let required = |change: &Change| {
            change.span.ack < snap.take.submit && (exact || self.must_be_there(change, at))
        };
        self.values(snap.disk, block, at.min(snap.take.ack), &required)
    }

    /// Blocks of a disk worth a look: those that anybody changed, and a few that nobody did.
    fn touched(&self, disk: usize) -> BTreeSet<u64> {
        let mut found = BTreeSet::from([100, 251]);
        let looked_at = |b: &u64| *b < 40 || (508..516).contains(b) || *b == 1023;
        for change in self.changes.iter().filter(|c| c.disk == disk) {
            let last = (change.offset + change.len).div_ceil(4096);
            found.extend((change.offset >> 12..last).filter(looked_at));
        }
        if let Some(origin) = self.disks[disk].origin {
            found.extend(self.touched(self.snaps[origin].disk));
        }
        found
    }

    /// What a block may hold: any state that the changes asked for before `at` can bring about in
    /// an order that time allows, with those that are `required` and all that came before them.
    fn values(
        &self,
        disk: usize,
        block: u64,
        at: usize,
        required: &dyn Fn(&Change) -> bool,
    ) -> BTreeSet<Value> {
        let ops: Vec<(u32, u8, &Change)> = self
            .changes
            .iter()
            .enumerate()
            .filter(|(_, c)| c.disk == disk && c.span.submit < at)
            .map(|(number, c)| (number as u32, mask_of(c, block), c))
            .filter(|(_, mask, _)| *mask != 0)
            .collect();
        assert!(ops.len() < 64, "a short workload");
        let must = ops.iter().enumerate().filter(|(_, (_, _, c))| required(c));
        let must: u64 = must.map(|(i, _)| 1 << i).sum();
        let before: Vec<u64> = ops
            .iter()
            .map(|(_, _, c)| {
                let earlier = ops.iter().enumerate().filter(|(_, o)| o.2.span.ack < c.span.submit);
                earlier.map(|(i, _)| 1 << i).sum()
            })
            .collect();
        let mut reached: BTreeSet<(u64, Value)> =
            self.start_values(disk, block).into_iter().map(|value| (0, value)).collect();
        let mut edge: Vec<(u64, Value)> = reached.iter().copied().collect();
        while let Some((done, value)) = edge.pop() {
            for (i, (number, mask, change)) in ops.iter().enumerate() {
                if done >> i & 1 == 1 || before[i] & !done != 0 {
                    continue;
                }
                let mut next = value;
                for sector in (0..8).filter(|s| mask >> s & 1 == 1) {
                    next[sector] = if change.effect == Effect::Write { *number } else { 0 };
                }
                if reached.insert((done | 1 << i, next)) {
                    edge.push((done | 1 << i, next));
                }
            }
        }
        reached.into_iter().filter(|(done, _)| done & must == must).map(|(_, v)| v).collect()
    }

    /// What a block held when its disk began.
    fn start_values(&self, disk: usize, block: u64) -> BTreeSet<Value> {
        match self.disks[disk].origin {
            None => BTreeSet::from([[0; 8]]),
            Some(origin) => {
                let snap = &self.snaps[origin];
                // A clone is made of what is on disk: everything before the snapshot is there.
                self.snap_values(snap, block, NEVER, true)
            }
        }
    }
}

/// `there`, unless it has been deleted.
fn without(there: Presence, deleted: Presence) -> Presence {
    match (there, deleted) {
        (Presence::No, _) | (_, Presence::Must) => Presence::No,
        (_, Presence::May) => Presence::May,
        (there, Presence::No) => there,
    }
}

/// Sectors of `block` that a change changes.
fn mask_of(change: &Change, block: u64) -> u8 {
    let (first, last) = (change.offset >> 9, (change.offset + change.len) >> 9);
    let low = first.saturating_sub(block << 3).min(8);
    let high = last.saturating_sub(block << 3).min(8);
    let mask = ((1u16 << high) - (1u16 << low.min(high))) as u8;
    if change.effect == Effect::Discard && mask != 0xFF { 0 } else { mask }
}

/// Checks, in what was recorded, that each answer that promises durability had its base flush: one
/// that began after what it covers was written, and ended before the answer.
///
/// # Errors
/// Which answer had none.
pub fn check_flushes(facts: &Facts, log: &Log) -> Result<(), String> {
    if facts.steady {
        return Ok(());
    }
    let recorded = |span: &Span| span.submit >= log.start && span.ack != NEVER;
    for barrier in facts.barriers.iter().filter(|b| recorded(b)) {
        let covered = facts.changes.iter().map(|c| c.span.ack).filter(|a| *a < barrier.submit);
        let Some(last) = covered.max().filter(|last| *last >= log.start) else { continue };
        if !log.flushed_between(last, barrier.ack) {
            return Err(format!(
                "the flush (or command) of event {} was answered at {} without a base flush",
                barrier.submit, barrier.ack
            ));
        }
    }
    for change in facts.changes.iter().filter(|c| c.fua && recorded(&c.span)) {
        if !log.flushed_between(change.span.submit, change.span.ack) {
            return Err(format!("a FUA write was answered at {} unflushed", change.span.ack));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One write of block 0 answered at 3, and a barrier from 4 on answered at `ack`.
    fn facts(ack: usize) -> Facts {
        let nothing = Span { submit: 0, ack: 0 };
        let change = |len, span| {
            let (offset, effect, fua) = (0, Effect::Write, false);
            Change { disk: 0, offset, len, effect, span, fua }
        };
        let disk = DiskFacts {
            uuid: Uuid([1; 16]),
            id: None,
            handle: None,
            origin: None,
            create: nothing,
            delete: None,
            sizes: vec![(1 << 20, nothing)],
        };
        Facts {
            changes: vec![change(0, nothing), change(4096, Span { submit: 2, ack: 3 })],
            disks: vec![disk],
            barriers: vec![Span { submit: 4, ack }],
            ..Facts::default()
        }
    }

    fn allowed(facts: &Facts, at: usize) -> Vec<Value> {
        let due = facts.due(at);
        let block = due.disks[0].blocks.iter().find(|b| b.block == 0).expect("it was written");
        block.allowed.iter().map(|(value, _)| *value).collect()
    }

    #[test]
    fn a_write_may_be_lost_until_a_flush_has_been_answered() {
        let facts = facts(7);
        assert_eq!(allowed(&facts, 1), [[0; 8]]);
        assert_eq!(allowed(&facts, 6), [[0; 8], [1; 8]]);
        assert_eq!(allowed(&facts, 8), [[1; 8]]);
        let mut killed = facts;
        let due = killed.due_after_kill(6);
        assert_eq!(
            due.disks[0].blocks[0].allowed.len(),
            1,
            "the death of the daemon loses nothing"
        );
    }

    #[test]
    fn an_answer_without_a_base_flush_is_accused() {
        let mut pool = crate::powercut::image::Pool::new();
        let mut log = Log::new(0);
        for _ in 0..3 {
            log.note();
        }
        let write = log.write(&mut pool, 1, &[1; 4096]);
        log.write_done(write);
        let flushed = |log: &Log| check_flushes(&facts(log.now()), log);
        assert!(flushed(&log).is_err());
        let flush = log.flush();
        assert!(flushed(&log).is_err(), "it has only begun");
        log.flush_done(flush);
        assert_eq!(flushed(&log), Ok(()));
    }
}

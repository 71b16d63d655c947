//! What is measured: one row each, run in rounds, so that the rows of a round can be compared.

use anyhow::{Context, Result};

use crate::histogram::Histogram;
use crate::load::{Load, Pattern, Probe, Sample, fill, run};
use crate::random::Random;
use crate::store::{DEPTH_MAX, Disk, Store, Verb};

/// Bytes of a small request: a block.
const SMALL: u32 = 4096;
/// Bytes of a large one.
const LARGE: u32 = 128 << 10;
/// Requests in flight where a row does not say.
const DEPTH: usize = 64;
/// Writes between the snapshots of the deepest disk.
const CHANGES: usize = 64;
/// Snapshots of the deepest disk.
const DEEPEST: usize = 1000;

/// One thing to measure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Row {
    /// 4 KiB at random on the memory alone, in the same loop.
    Raw(Verb, usize),
    /// 4 KiB at random at a depth.
    Random(Verb, usize),
    /// 128 KiB in sequence, 16 in flight.
    Sequential(Verb),
    /// Each block of a new disk written once, at random.
    Hole,
    /// Each block written once, at random, in place.
    Overwrite,
    /// Each block written once, at random, right after a snapshot.
    AfterSnapshot,
    /// 4 KiB random reads of a disk with so many snapshots.
    AtDepth(usize),
    /// The same of a disk whose snapshots, as many as the deepest has, are all deleted: its blocks
    /// lie as scattered as those of the deepest.
    Undone,
    /// 4 KiB random writes with so many snapshots a second.
    Snapshots(u64),
}

impl Row {
    /// All rows, in the order of the table.
    pub fn all() -> Vec<Row> {
        let mut rows = Vec::new();
        for depth in [1, DEPTH] {
            for verb in [Verb::Read, Verb::Write] {
                rows.extend([Row::Raw(verb, depth), Row::Random(verb, depth)]);
            }
        }
        rows.extend([Row::Sequential(Verb::Read), Row::Sequential(Verb::Write)]);
        rows.extend([Row::Hole, Row::Overwrite, Row::AfterSnapshot]);
        rows.extend([0, 100, DEEPEST].map(Row::AtDepth));
        rows.push(Row::Undone);
        rows.extend([0, 100, 1000].map(Row::Snapshots));
        rows
    }

    /// What the table calls it.
    pub fn name(self) -> String {
        let verb = |verb| match verb {
            Verb::Read => "read",
            Verb::Write => "write",
        };
        match self {
            Row::Raw(v, depth) => format!("raw memory, 4 KiB random {}, QD {depth}", verb(v)),
            Row::Random(v, depth) => format!("4 KiB random {}, QD {depth}", verb(v)),
            Row::Sequential(v) => format!("128 KiB sequential {}, QD 16", verb(v)),
            Row::Hole => format!("first write to a hole, QD {DEPTH}"),
            Row::Overwrite => format!("overwrite, QD {DEPTH}"),
            Row::AfterSnapshot => format!("first write after a snapshot, QD {DEPTH}"),
            Row::AtDepth(depth) => format!("random read at snapshot depth {depth}, QD {DEPTH}"),
            Row::Undone => format!("random read, {DEEPEST} snapshots deleted, QD {DEPTH}"),
            Row::Snapshots(rate) => format!("random write, {rate} snapshots/s, QD {DEPTH}"),
        }
    }

    /// Bytes of each of its requests.
    pub fn request_bytes(self) -> u32 {
        match self {
            Row::Sequential(_) => LARGE,
            _ => SMALL,
        }
    }
}

/// Everything measured of one row.
pub struct Outcome {
    /// Which row.
    pub row: Row,
    /// One a round.
    pub samples: Vec<Sample>,
    /// Of the requests, where the row asks for it.
    pub requests: Histogram,
    /// Of the snapshots.
    pub snapshots: Histogram,
    /// Of the snapshots without the waiting for a core, where that is known.
    pub on_core: Histogram,
}

/// What to measure and how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Rows in order.
    pub rows: Vec<Row>,
    /// Rounds.
    pub rounds: usize,
    /// Nanoseconds of each timed run.
    pub time_ns: u64,
    /// Bytes of each disk.
    pub disk_bytes: u64,
}

impl Plan {
    /// Bytes a store must have for all of this.
    pub fn store_bytes(&self) -> u64 {
        // What a busy core writes to fresh blocks in one run; deleted before the next.
        let rewritten = self.time_ns * 5 / 2 * u64::from(SMALL) / 1000;
        let nodes = (DEEPEST * CHANGES) as u64 * 2 * u64::from(SMALL);
        self.disk_bytes * 10 + rewritten + 2 * nodes + (256 << 20)
    }
}

/// Disks that are made once and measured in every round.
struct Disks {
    random: Option<Disk>,
    sequential: Option<Disk>,
    deep: Vec<(usize, Disk)>,
    undone: Option<Disk>,
}

/// A plan being carried out on a store.
struct Session<'a> {
    store: &'a mut dyn Store,
    plan: &'a Plan,
    /// Order in which disks are filled.
    filling: Vec<u32>,
    /// Order in which blocks are written once.
    writing: Vec<u32>,
    disks: Disks,
    seed: u64,
}

/// Measures all rows of the plan that the store can do. `progress` is told before each round.
///
/// # Errors
/// A request or command failed.
pub fn measure(
    store: &mut dyn Store,
    plan: &Plan,
    mut progress: impl FnMut(&str),
) -> Result<Vec<Outcome>> {
    let has_snapshots = store.has_snapshots();
    let has_raw = store.choose_raw();
    let able = |row: &Row| match row {
        Row::Raw(..) => has_raw,
        Row::AfterSnapshot | Row::Undone => has_snapshots,
        Row::AtDepth(depth) => has_snapshots || *depth == 0,
        Row::Snapshots(rate) => has_snapshots || *rate == 0,
        Row::Random(..) | Row::Sequential(_) | Row::Hole | Row::Overwrite => true,
    };
    let rows: Vec<Row> = plan.rows.iter().copied().filter(able).collect();
    let blocks = (plan.disk_bytes / u64::from(SMALL)) as u32;
    let mut random = Random::new(1);
    let mut session = Session {
        store,
        plan,
        filling: random.permutation(blocks),
        writing: random.permutation(blocks),
        disks: Disks { random: None, sequential: None, deep: Vec::new(), undone: None },
        seed: 2,
    };
    progress("making the disks");
    for &row in &rows {
        session.prepare(row).with_context(|| format!("preparing '{}'", row.name()))?;
    }
    let mut outcomes: Vec<Outcome> = rows
        .iter()
        .map(|&row| Outcome {
            row,
            samples: Vec::new(),
            requests: Histogram::default(),
            snapshots: Histogram::default(),
            on_core: Histogram::default(),
        })
        .collect();
    for round in 0..plan.rounds {
        progress(&format!("round {} of {}", round + 1, plan.rounds));
        for outcome in &mut outcomes {
            let row = outcome.row;
            session.round(outcome).with_context(|| format!("measuring '{}'", row.name()))?;
        }
    }
    Ok(outcomes)
}

impl Session<'_> {
    /// Makes the disk that a row needs in every round.
    fn prepare(&mut self, row: Row) -> Result<()> {
        match row {
            Row::Random(..) | Row::Overwrite if self.disks.random.is_none() => {
                self.disks.random = Some(self.filled()?);
            }
            Row::Sequential(_) if self.disks.sequential.is_none() => {
                let disk = self.store.create(self.plan.disk_bytes)?;
                let units: Vec<u32> =
                    (0..(self.plan.disk_bytes / u64::from(LARGE)) as u32).collect();
                fill(self.store, &units, LARGE)?;
                self.disks.sequential = Some(disk);
            }
            Row::AtDepth(depth) => {
                let disk = self.deep(depth)?;
                self.disks.deep.push((depth, disk));
            }
            Row::Undone => {
                self.disks.undone = Some(self.deep(DEEPEST)?);
                self.store.delete_snapshots()?;
            }
            _ => {}
        }
        self.store.settle()
    }

    /// A new disk with every block written, chosen.
    fn filled(&mut self) -> Result<Disk> {
        let disk = self.store.create(self.plan.disk_bytes)?;
        fill(self.store, &self.filling, SMALL)?;
        Ok(disk)
    }

    /// A filled disk with snapshots, and random writes between them: as many with few as with many.
    fn deep(&mut self, depth: usize) -> Result<Disk> {
        let disk = self.filled()?;
        let units = self.filling.len() as u64;
        let mut random = Random::new(3);
        let changes = DEEPEST * CHANGES;
        for epoch in 0..depth.max(1) {
            if depth > 0 {
                self.snapshot()?;
            }
            let count = changes * (epoch + 1) / depth.max(1) - changes * epoch / depth.max(1);
            let blocks: Vec<u32> = (0..count).map(|_| random.below(units) as u32).collect();
            self.once(&blocks)?;
        }
        Ok(disk)
    }

    /// Takes a snapshot and waits for it.
    fn snapshot(&mut self) -> Result<()> {
        self.store.ask_snapshot()?;
        let mut done = Vec::new();
        while self.store.snapshot_answer()?.is_none() {
            self.store.turn(&mut done)?;
        }
        Ok(())
    }

    fn once(&mut self, blocks: &[u32]) -> Result<Sample> {
        let pattern = Pattern::Once(blocks.iter());
        let mut load = Load { verb: Verb::Write, depth: DEPTH, len: SMALL, pattern, time_ns: None };
        run(self.store, &mut load, None)
    }

    fn timed(&mut self, verb: Verb, depth: usize, len: u32) -> Result<Sample> {
        let units = self.plan.disk_bytes / u64::from(len);
        self.seed += 1;
        let pattern = match len {
            SMALL => Pattern::Random(Random::new(self.seed), units),
            _ => Pattern::Sequential { next: 0, units },
        };
        let time_ns = Some(self.plan.time_ns);
        run(self.store, &mut Load { verb, depth, len, pattern, time_ns }, None)
    }

    /// One run of one row.
    fn round(&mut self, outcome: &mut Outcome) -> Result<()> {
        let sample = match outcome.row {
            Row::Raw(verb, depth) => {
                self.store.choose_raw();
                self.timed(verb, depth, SMALL)?
            }
            Row::Random(verb, depth) => {
                self.store.choose(self.disks.random.expect("prepared"));
                self.timed(verb, depth, SMALL)?
            }
            Row::Sequential(verb) => {
                self.store.choose(self.disks.sequential.expect("prepared"));
                self.timed(verb, 16, LARGE)?
            }
            Row::AtDepth(depth) => {
                let found = self.disks.deep.iter().find(|(d, _)| *d == depth).expect("prepared");
                self.store.choose(found.1);
                self.timed(Verb::Read, DEPTH, SMALL)?
            }
            Row::Undone => {
                self.store.choose(self.disks.undone.expect("prepared"));
                self.timed(Verb::Read, DEPTH, SMALL)?
            }
            Row::Overwrite => {
                self.store.choose(self.disks.random.expect("prepared"));
                let writing = std::mem::take(&mut self.writing);
                let sample = self.once(&writing);
                self.writing = writing;
                sample?
            }
            Row::Hole | Row::AfterSnapshot => self.fresh(outcome.row)?,
            Row::Snapshots(rate) => self.under_snapshots(rate, outcome)?,
        };
        outcome.samples.push(sample);
        Ok(())
    }

    fn fresh(&mut self, row: Row) -> Result<Sample> {
        let disk = match row {
            Row::Hole => self.store.create(self.plan.disk_bytes)?,
            _ => self.filled()?,
        };
        self.store.settle()?;
        if row == Row::AfterSnapshot {
            self.snapshot()?;
        }
        let writing = std::mem::take(&mut self.writing);
        let sample = self.once(&writing);
        self.writing = writing;
        self.store.delete(disk)?;
        sample
    }

    fn under_snapshots(&mut self, rate: u64, outcome: &mut Outcome) -> Result<Sample> {
        let disk = self.filled()?;
        self.store.settle()?;
        let units = self.filling.len() as u64;
        self.seed += 1;
        let mut probe = Probe::new(rate);
        let mut load = Load {
            verb: Verb::Write,
            depth: DEPTH_MAX,
            len: SMALL,
            pattern: Pattern::Random(Random::new(self.seed), units),
            time_ns: Some(self.plan.time_ns),
        };
        let sample = run(self.store, &mut load, Some(&mut probe))?;
        outcome.requests.merge(&probe.requests);
        outcome.snapshots.merge(&probe.snapshots);
        outcome.on_core.merge(&probe.on_core);
        self.store.delete(disk)?;
        Ok(sample)
    }
}

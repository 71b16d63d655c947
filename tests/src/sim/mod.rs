//! The simulator: the production engine over a simulated base device, with crashes at any step,
//! checked against a plain model. One seed is one run, the same byte for byte each time.
//!
//! ```text
//!  seed ─▶ plan (what is on, rates, sizes)
//!            │
//!          world ── requests, commands ──▶ Engine ── base I/O ──▶ base (volatile + durable image)
//!            │                               │                      │
//!          model ◀── answers, read data ─────┘        crash: kept, lost, torn (power)
//!            │
//!          histories: each 4 KiB block a linearizable register; snapshots; listings; space
//! ```
//!
//! Rules: no clock, no randomness but the seed's, no iteration over a hash map. A check may let a
//! wrong run pass, but never accuses a right one.

pub(crate) mod base;
#[cfg(feature = "canaries")]
mod canaries;
mod changed;
mod checks;
mod commands;
mod damage;
mod effect;
mod finish;
mod fleet;
pub(crate) mod fsck;
mod harm;
mod held;
mod history;
pub(crate) mod image;
mod life;
pub(crate) mod memory;
mod model;
mod ops;
mod pages;
pub(crate) mod pattern;
mod plan;
mod power;
mod rehearsal;
mod replies;
mod requests;
pub(crate) mod rng;
mod ruin;
mod swift;
mod trace;
mod world;

use std::cell::Cell;

#[cfg(feature = "canaries")]
pub use canaries::run_canaries;
use lamina_bdev::Stats;
pub use plan::Lie;
use world::World;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Requests and commands in one run.
    pub ops: u64,
    /// How the base device betrays its traits.
    pub lie: Lie,
    /// Print each event.
    pub log: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { ops: 300, lie: Lie::None, log: false }
    }
}

/// What came of one seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Which seed.
    pub seed: u64,
    /// Crashes and recoveries in it.
    pub crashes: u64,
    /// Turns of the host's loop.
    pub steps: u64,
    /// Hash over all events.
    pub hash: u64,
    /// What the node cache did.
    pub cache: CacheUse,
    /// What went wrong, if anything did.
    pub violation: Option<String>,
}

/// What the node cache of the engine under test did in all its lives.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CacheUse {
    /// Nodes read.
    pub misses: u64,
    /// Nodes and compact copies given up.
    pub evictions: u64,
    /// Leaves evicted of which a compact copy was made.
    pub compactions: u64,
    /// Reads answered from compact copies.
    pub compact_hits: u64,
    /// Pieces of leaves of many runs that were kept.
    pub pieces: u64,
    /// Reads answered from them; compact hits too.
    pub piece_hits: u64,
    /// Reads whose link was read in place.
    pub in_place: u64,
    /// Compact copies made nodes again.
    pub promotions: u64,
}

impl CacheUse {
    /// Adds what another did.
    pub fn add(&mut self, more: CacheUse) {
        self.misses += more.misses;
        self.evictions += more.evictions;
        self.compactions += more.compactions;
        self.compact_hits += more.compact_hits;
        self.pieces += more.pieces;
        self.piece_hits += more.piece_hits;
        self.in_place += more.in_place;
        self.promotions += more.promotions;
    }
}

impl From<Stats> for CacheUse {
    fn from(stats: Stats) -> CacheUse {
        CacheUse {
            misses: stats.cache_misses,
            evictions: stats.cache_evictions,
            compactions: stats.cache_compactions,
            compact_hits: stats.cache_compact_hits,
            pieces: stats.cache_pieces,
            piece_hits: stats.cache_piece_hits,
            in_place: stats.cache_in_place,
            promotions: stats.cache_promotions,
        }
    }
}

thread_local! {
    static AT: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

/// The seed and step that this thread is in, for a panic's report.
pub fn current() -> (u64, u64) {
    AT.get()
}

fn note_step(step: u64) {
    AT.set((AT.get().0, step));
}

/// Runs one seed. A panic of the engine is not caught here.
pub fn run_seed(seed: u64, options: &Options) -> Outcome {
    run(seed, options, |_| ())
}

fn run(seed: u64, options: &Options, prepare: impl FnOnce(&mut World)) -> Outcome {
    AT.set((seed, 0));
    let mut world = match World::new(seed, options.ops, options.lie, options.log) {
        Ok(world) => world,
        Err(why) => {
            let cache = CacheUse::default();
            return Outcome { seed, crashes: 0, steps: 0, hash: 0, cache, violation: Some(why) };
        }
    };
    prepare(&mut world);
    let result = world.run().and_then(|()| world.finish());
    let outcome = Outcome {
        seed,
        crashes: world.crash_count(),
        steps: world.steps(),
        hash: world.hash(),
        cache: world.cache_use(),
        violation: result.err(),
    };
    world.close();
    outcome
}

/// Runs what `bytes` say: the first eight are the seed that plans the run, the others its first
/// choices. A panic of the engine is not caught here.
pub fn run_bytes(bytes: &[u8], options: &Options) -> Outcome {
    let (seed, tape) = bytes.split_at(bytes.len().min(8));
    let mut padded = [0; 8];
    padded[..seed.len()].copy_from_slice(seed);
    let seed = u64::from_le_bytes(padded);
    run(seed, options, |world| world.rng = rng::Rng::on_tape(seed, tape))
}

/// Seeds that have failed before, with their number of operations; they are run first, always.
///
/// # Panics
/// If the list has a line it should not have.
pub fn regressions() -> Vec<(u64, u64)> {
    let lines = include_str!("../../regressions.txt").lines();
    lines
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .map(|line| {
            let mut words = line.split_whitespace().map(|word| word.parse().ok());
            let number = |word: Option<Option<u64>>| word.flatten();
            match (number(words.next()), number(words.next()), words.next()) {
                (Some(seed), Some(ops), None) => (seed, ops),
                _ => panic!("regressions.txt: a line is `seed ops # comment`, not {line:?}"),
            }
        })
        .collect()
}

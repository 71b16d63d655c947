//! A client that knows what its disk must hold: random writes, flushes, discards and reads, each
//! checked.
//!
//! ```text
//!  Client ── slots ──▶ Queue ──▶ device           Model: versions of every block
//!    │ every write has a tag of its own ───────────▶ │
//!    └ every flush that was answered: Flushed ──▶ the disk's record, if it keeps one
//! ```

mod model;
mod snapshots;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

pub use snapshots::{After, Snapshot, Snapshots};

pub use model::{Allowed, Mark, Model, Seen, check_snapshot};

use crate::client::{self, Queue, Request};
pub use crate::sim::rng::Rng;
use crate::tagged::{self, BLOCK, BLOCK_SECTORS, SECTOR, State};

/// How long a client sleeps when its queue is full and nothing is answered.
const PAUSE: Duration = Duration::from_micros(50);

/// What a slot is doing.
#[derive(Clone, Debug)]
enum Job {
    /// Blocks, and the tag written.
    Change {
        first: usize,
        count: usize,
        tag: u64,
    },
    Read {
        first: usize,
        count: usize,
    },
    Flush {
        mark: Mark,
        tags: Vec<u64>,
    },
}

/// A flush that was answered well.
#[derive(Clone, Debug)]
pub struct Flushed {
    /// Writes answered before it was asked for and after the flush before it.
    pub tags: Vec<u64>,
    /// When the answer was seen.
    pub answered: Instant,
}

/// What a client has seen.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Changes answered well.
    pub changes: u64,
    /// Reads answered well, and right.
    pub reads: u64,
    /// Flushes answered well.
    pub flushes: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Of those, flushes.
    pub failed_flushes: u64,
}

/// What a client may ask for, in 1,000 requests.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Reads.
    pub reads: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards and write-zeroes.
    pub discards: u64,
}

impl Default for Mix {
    fn default() -> Mix {
        Mix { reads: 150, flushes: 40, discards: 60 }
    }
}

/// A client on one queue.
pub struct Client {
    queue: Arc<Mutex<Queue>>,
    model: Arc<Mutex<Model>>,
    rng: Rng,
    mix: Mix,
    jobs: Vec<Option<Job>>,
    next_tag: u64,
    unflushed: Vec<u64>,
    /// Answers so far, for another thread to look at.
    progress: Arc<AtomicU64>,
    /// What it has seen.
    pub counts: Counts,
    /// Flushes answered well, with what they cover.
    pub flushed: Vec<Flushed>,
}

/// The model for a while.
///
/// # Panics
/// If a thread panicked with it.
pub fn lock(model: &Mutex<Model>) -> MutexGuard<'_, Model> {
    model.lock().expect("no thread panicked with the model")
}

impl Client {
    /// A client whose tags begin after `first_tag`, which must be unique to it.
    #[must_use]
    pub fn new(
        queue: Arc<Mutex<Queue>>,
        model: Arc<Mutex<Model>>,
        seed: u64,
        first_tag: u64,
    ) -> Client {
        Client {
            queue,
            model,
            rng: Rng::new(seed),
            mix: Mix::default(),
            jobs: Vec::new(),
            next_tag: first_tag,
            unflushed: Vec::new(),
            progress: Arc::default(),
            counts: Counts::default(),
            flushed: Vec::new(),
        }
    }

    /// Sets what is asked for.
    #[must_use]
    pub fn mix(mut self, mix: Mix) -> Client {
        self.mix = mix;
        self
    }

    /// Counts answers while another thread runs the client.
    #[must_use]
    pub fn progress(&self) -> Arc<AtomicU64> {
        self.progress.clone()
    }

    /// The last tag that was used.
    #[must_use]
    pub fn tag(&self) -> u64 {
        self.next_tag
    }

    /// Submits and checks until `stop` says so; what is in flight then stays there.
    ///
    /// # Panics
    /// If a read is wrong.
    pub fn run(&mut self, mut stop: impl FnMut() -> bool) {
        while !stop() {
            let answered = self.collect();
            let submitted = self.submit();
            if !answered && !submitted {
                std::thread::sleep(PAUSE);
            }
        }
    }

    /// Waits until everything in flight is answered.
    ///
    /// # Panics
    /// If it is not within `within`, or a read is wrong.
    pub fn drain(&mut self, within: Duration) {
        let end = Instant::now() + within;
        while client::lock(&self.queue).in_flight() > 0 {
            if !self.collect() {
                assert!(Instant::now() < end, "requests are not answered within {within:?}");
                std::thread::sleep(PAUSE);
            }
        }
    }

    /// Submits one flush, waits for all answers; true if the flush succeeded.
    ///
    /// # Panics
    /// As [`Client::drain`].
    pub fn flush(&mut self, within: Duration) -> bool {
        let before = self.counts.failed_flushes;
        self.drain(within);
        let slot = client::lock(&self.queue).free_slot().expect("nothing is in flight");
        self.submit_flush(slot);
        self.drain(within);
        self.counts.failed_flushes == before
    }

    /// Takes one answer; false if there is none.
    fn collect(&mut self) -> bool {
        let Some(done) = client::lock(&self.queue).poll() else { return false };
        let job = self.jobs[usize::from(done.slot)].take().expect("a slot with a job");
        self.progress.fetch_add(1, Ordering::Relaxed);
        if !done.good {
            self.counts.errors += 1;
        }
        match job {
            Job::Change { first, count, tag } => {
                lock(&self.model).answered(first, count, done.good);
                if done.good {
                    self.counts.changes += 1;
                    self.unflushed.extend((tag != 0).then_some(tag));
                }
            }
            Job::Read { first, count } => {
                let bytes = client::lock(&self.queue).data(done.slot, count * BLOCK);
                let mut model = lock(&self.model);
                if done.good {
                    self.counts.reads += 1;
                    for (block, bytes) in (first..).zip(bytes.chunks_exact(BLOCK)) {
                        check_block(block, bytes, |state| model.check_read(block, state))
                            .unwrap_or_else(|why| panic!("{why}"));
                    }
                }
                // The versions are as before: the answer says nothing new.
                model.release(first, count);
            }
            Job::Flush { mark, tags } if done.good => {
                self.counts.flushes += 1;
                lock(&self.model).flushed(&mark);
                self.flushed.push(Flushed { tags, answered: Instant::now() });
            }
            Job::Flush { tags, .. } => {
                self.counts.failed_flushes += 1;
                self.unflushed.extend(tags);
            }
        }
        true
    }

    /// Submits one request; false if there is no room for it.
    fn submit(&mut self) -> bool {
        let Some(slot) = client::lock(&self.queue).free_slot() else { return false };
        let chance = self.rng.below(1000);
        if chance < self.mix.flushes {
            self.submit_flush(slot);
            return true;
        }
        let model = self.model.clone();
        let mut model = lock(&model);
        let count = [1, 1, 1, 2, 4, 16][self.rng.index(6)];
        let first = self.rng.index(model.blocks() - count + 1);
        if model.is_busy(first, count) {
            return false;
        }
        model.claim(first, count);
        let (offset, len) = ((first * BLOCK) as u64, count * BLOCK);
        if chance < self.mix.flushes + self.mix.reads {
            drop(model);
            self.start(slot, Job::Read { first, count }, Request::Read { offset, len });
        } else if chance < self.mix.flushes + self.mix.reads + self.mix.discards {
            for block in first..first + count {
                model.submitted(block, |state| *state = [0; BLOCK_SECTORS]);
            }
            drop(model);
            let len = len as u64;
            let request = if self.rng.below(2) == 0 {
                Request::Discard { offset, len }
            } else {
                Request::WriteZeroes { offset, len }
            };
            self.start(slot, Job::Change { first, count, tag: 0 }, request);
        } else {
            let part = count == 1 && model.is_certain(first) && self.rng.below(4) == 0;
            drop(model);
            self.submit_write(slot, first, count, part);
        }
        true
    }

    /// Writes whole blocks, or some sectors of one.
    fn submit_write(&mut self, slot: u16, first: usize, count: usize, part: bool) {
        self.next_tag += 1;
        let tag = self.next_tag;
        let (from, to) = if part {
            let from = self.rng.index(BLOCK_SECTORS);
            (from, from + 1 + self.rng.index(BLOCK_SECTORS - from))
        } else {
            (0, BLOCK_SECTORS)
        };
        for block in first..first + count {
            lock(&self.model).submitted(block, |state| state[from..to].fill(tag));
        }
        let sector = (first * BLOCK_SECTORS + from) as u64;
        let sectors = if part { to - from } else { count * BLOCK_SECTORS };
        let data = tagged::run_of(tag, sector, sectors as u64);
        let offset = sector * SECTOR as u64;
        let request = Request::Write { offset, data: &data };
        self.start(slot, Job::Change { first, count, tag }, request);
    }

    fn submit_flush(&mut self, slot: u16) {
        let mark = lock(&self.model).flush_begins();
        let tags = std::mem::take(&mut self.unflushed);
        self.start(slot, Job::Flush { mark, tags }, Request::Flush);
    }

    fn start(&mut self, slot: u16, job: Job, request: Request<'_>) {
        if self.jobs.len() <= usize::from(slot) {
            self.jobs.resize(usize::from(slot) + 1, None);
        }
        self.jobs[usize::from(slot)] = Some(job);
        client::lock(&self.queue).submit(slot, request);
    }
}

fn check_block(
    block: usize,
    bytes: &[u8],
    check: impl FnOnce(&State) -> Result<(), String>,
) -> Result<(), String> {
    check(&tagged::state_of(bytes, (block * BLOCK_SECTORS) as u64)?)
}

/// Reads a whole disk of `blocks` blocks and gives each block's state to `check`.
///
/// # Errors
/// The first block that cannot be read, is damaged, or is refused by `check`.
pub fn check_disk(
    queue: &Mutex<Queue>,
    blocks: usize,
    mut check: impl FnMut(usize, &State) -> Result<(), String>,
) -> Result<(), String> {
    let bytes = client::read_all(queue, 0, blocks * BLOCK)?;
    for (block, bytes) in bytes.chunks_exact(BLOCK).enumerate() {
        check_block(block, bytes, |state| check(block, state))?;
    }
    Ok(())
}

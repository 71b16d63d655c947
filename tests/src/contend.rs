//! Clients that contend for a few blocks, and what each of them saw.
//!
//! ```text
//!  Contender ── slots ──▶ Queue ──▶ device        a request of many blocks is one Seen a block,
//!      └ asked, answered ──▶ history of each block         with the same times and the same tag
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::client::{self, Queue, Request};
use crate::register::{Action, Operation};
use crate::sim::rng::Rng;
use crate::tagged::{self, BLOCK, BLOCK_SECTORS};

/// Blocks that all clients share.
pub const BLOCKS: usize = 96;
/// Blocks in one request, at most.
pub const BLOCKS_MAX: usize = 64;
/// How long a client sleeps when its queue is full and nothing is answered.
const PAUSE: Duration = Duration::from_micros(30);
/// How long answers may take once everybody has stopped asking.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a client saw of one block in one request. Times are nanoseconds since a common start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// What happened to the block.
    pub operation: Operation,
    /// Index of the client, which is that of its queue.
    pub client: usize,
    /// Where in the queue.
    pub slot: u16,
    /// First block of the request.
    pub first: usize,
    /// Blocks of the request.
    pub count: usize,
}

/// What was seen of each block.
pub type History = Vec<Vec<Seen>>;

#[derive(Clone, Copy)]
enum Kind {
    Write(u64),
    Read,
    Flush,
}

#[derive(Clone, Copy)]
struct Job {
    kind: Kind,
    first: usize,
    count: usize,
    begin: u64,
}

/// One client.
pub struct Contender {
    index: usize,
    queue: Arc<Mutex<Queue>>,
    rng: Rng,
    tag: u64,
    blocks_max: usize,
    jobs: Vec<Option<Job>>,
    history: History,
    start: Instant,
}

impl Contender {
    /// The client of `queue` number `index`, which asks for at most `blocks_max` blocks at once;
    /// it begins to count time at `start`.
    #[must_use]
    pub fn new(
        index: usize,
        queue: Arc<Mutex<Queue>>,
        seed: u64,
        blocks_max: usize,
        start: Instant,
    ) -> Contender {
        assert!((1..=BLOCKS_MAX).contains(&blocks_max), "a request of 1 to {BLOCKS_MAX} blocks");
        let slots = client::lock(&queue).slots();
        Contender {
            index,
            queue,
            rng: Rng::new(seed * 100 + index as u64),
            // Tags of different clients are different, and 0 is a discard.
            tag: (index as u64) << 40,
            blocks_max,
            jobs: vec![None; slots],
            history: vec![Vec::new(); BLOCKS],
            start,
        }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn submit(&mut self, slot: u16) {
        let count = [1, 1, 2, 4, 16, BLOCKS_MAX][self.rng.index(6)].min(self.blocks_max);
        let first = self.rng.index(BLOCKS - count + 1);
        let (offset, len) = ((first * BLOCK) as u64, count * BLOCK);
        let chance = self.rng.below(100);
        let data;
        let (kind, request) = match chance {
            0..40 => {
                self.tag += 1;
                let (sector, sectors) = (first * BLOCK_SECTORS, count * BLOCK_SECTORS);
                data = tagged::run_of(self.tag, sector as u64, sectors as u64);
                (Kind::Write(self.tag), Request::Write { offset, data: &data })
            }
            40..45 => (Kind::Write(0), Request::Discard { offset, len: len as u64 }),
            45..50 => (Kind::Write(0), Request::WriteZeroes { offset, len: len as u64 }),
            50..53 => (Kind::Flush, Request::Flush),
            _ => (Kind::Read, Request::Read { offset, len }),
        };
        let begin = self.now();
        client::lock(&self.queue).submit(slot, request);
        self.jobs[usize::from(slot)] = Some(Job { kind, first, count, begin });
    }

    /// Takes one answer; false if there is none.
    fn collect(&mut self) -> bool {
        let Some(done) = client::lock(&self.queue).poll() else { return false };
        let end = Some(self.now());
        assert!(done.good, "a request failed");
        let job = self.jobs[usize::from(done.slot)].take().expect("a slot with a job");
        let mut seen = |block: usize, action: Action| {
            let operation = Operation { begin: job.begin, end, action, sure: true };
            let (client, slot) = (self.index, done.slot);
            let seen = Seen { operation, client, slot, first: job.first, count: job.count };
            self.history[block].push(seen);
        };
        let blocks = job.first..job.first + job.count;
        match job.kind {
            Kind::Flush => {}
            Kind::Write(tag) => blocks.for_each(|block| seen(block, Action::Write(tag))),
            Kind::Read => {
                let bytes = client::lock(&self.queue).data(done.slot, job.count * BLOCK);
                for (block, bytes) in blocks.zip(bytes.chunks_exact(BLOCK)) {
                    let state = tagged::state_of(bytes, (block * BLOCK_SECTORS) as u64);
                    let state = state.unwrap_or_else(|why| panic!("block {block}: {why}"));
                    assert_eq!(state, [state[0]; 8], "block {block} is a mix of writes");
                    seen(block, Action::Read(state[0]));
                }
            }
        }
        true
    }

    /// Asks until `stop`, and waits for what was asked.
    ///
    /// # Panics
    /// If a request fails, is not answered, or brings a block that is not one of those written.
    #[must_use]
    pub fn run(mut self, stop: &AtomicBool) -> History {
        while !stop.load(Ordering::Relaxed) {
            let answered = self.collect();
            let free = client::lock(&self.queue).free_slot();
            if let Some(slot) = free {
                self.submit(slot);
            } else if !answered {
                sleep(PAUSE);
            }
        }
        let end = Instant::now() + PATIENCE;
        while client::lock(&self.queue).in_flight() > 0 {
            if !self.collect() {
                assert!(Instant::now() < end, "no answer in {PATIENCE:?}");
                sleep(PAUSE);
            }
        }
        self.history
    }
}

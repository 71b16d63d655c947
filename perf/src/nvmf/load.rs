//! The load: keeps each queue's depth of requests in flight, and times every one.

use anyhow::{Result, ensure};

use crate::clock;
use crate::histogram::Histogram;
use crate::random::Random;

/// One kind of load.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// For people.
    pub name: &'static str,
    /// Writes, otherwise reads.
    pub write: bool,
    /// Bytes of a request; more than 4 KiB: in sequence, otherwise anywhere.
    pub bytes: usize,
    /// Requests in flight on a queue.
    pub depth: u16,
    /// Queues, each on a connection of its own.
    pub queues: u16,
}

/// What came out.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Requests a second.
    pub per_second: f64,
    /// Half of them took no longer, nanoseconds.
    pub p50_ns: u64,
    /// 99 of 100 took no longer, nanoseconds.
    pub p99_ns: u64,
}

/// One connection, polled.
pub trait Lane {
    /// Begins a request at byte `offset`; its number below the depth.
    ///
    /// # Errors
    /// The connection is over.
    fn submit(&mut self, case: &Case, offset: u64) -> Result<u16>;

    /// Moves what can be moved without waiting; numbers of requests that are over go to `done`.
    ///
    /// # Errors
    /// The connection is over, or a request failed.
    fn poll(&mut self, done: &mut Vec<u16>) -> Result<()>;
}

/// Where the next request goes.
struct Places {
    random: Random,
    next: u64,
    count: u64,
    sequence: bool,
}

impl Places {
    fn next(&mut self) -> u64 {
        if self.sequence {
            self.next = (self.next + 1) % self.count;
            return self.next;
        }
        self.random.below(self.count)
    }
}

/// Runs a load for a while.
///
/// # Errors
/// A connection is over, or a request failed.
pub fn run<L: Lane>(lanes: &mut [L], case: &Case, size: u64, time_ns: u64) -> Result<Measured> {
    ensure!(lanes.len() == usize::from(case.queues), "a lane a queue");
    let bytes = case.bytes as u64;
    let sequence = bytes > 4096;
    let places = |n: usize| {
        let count = size / bytes;
        let next = count / lanes.len() as u64 * n as u64;
        Places { random: Random::new(n as u64 + 1), next, count, sequence }
    };
    let mut places: Vec<Places> = (0..lanes.len()).map(places).collect();
    let mut begun = vec![[0u64; 1024]; lanes.len()];
    let mut done = Vec::with_capacity(1024);
    let mut times = Histogram::default();
    let start = clock::wall_ns();
    for (n, lane) in lanes.iter_mut().enumerate() {
        for _ in 0..case.depth {
            let number = lane.submit(case, places[n].next() * bytes)?;
            begun[n][usize::from(number)] = clock::wall_ns();
        }
    }
    let end = start + time_ns;
    let mut in_flight = lanes.len() * usize::from(case.depth);
    let mut ended = 0u64;
    let mut now = start;
    while in_flight > 0 {
        for (n, lane) in lanes.iter_mut().enumerate() {
            lane.poll(&mut done)?;
            now = clock::wall_ns();
            for number in done.drain(..) {
                times.add(now - begun[n][usize::from(number)]);
                in_flight -= 1;
                ended += u64::from(now < end);
                if now < end {
                    let number = lane.submit(case, places[n].next() * bytes)?;
                    begun[n][usize::from(number)] = now;
                    in_flight += 1;
                }
            }
        }
        ensure!(now < end + 20_000_000_000, "requests do not end");
    }
    Ok(Measured {
        per_second: ended as f64 * 1e9 / time_ns as f64,
        p50_ns: times.quantile(0.5),
        p99_ns: times.quantile(0.99),
    })
}

//! Flushes of one device, seen together: one that fails has failed for every shard on the device.
//!
//! ```text
//!  shard A   begin ──── fsync fails ─────────── end: failed ──► noted for the device
//!  shard B      begin ──── fsync "succeeds" ── end ╌╌ waits for A ╌╌► fails too
//! ```
//!
//! A kernel tells of a lost write-back once: the next flush, by whichever shard, says that all is
//! well, and so does a device whose cache has dropped what it could not write. So a flush that
//! succeeded is believed only when every other that was under way at that time is over and none on
//! the device has failed. The note lasts until the device is opened again.
//!
//! One counter a shard and no lock: a shard that flushes alone reads a few counters.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// The flushes of one shard: odd while one is under way.
#[derive(Debug, Default)]
struct Lane(AtomicU64);

/// The flushes of one device.
#[derive(Debug)]
pub struct Flushes {
    lanes: Vec<Lane>,
    /// Lanes given out.
    used: AtomicUsize,
    failed: AtomicBool,
}

/// Flushes of other shards that were under way at some time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Others(Vec<(usize, u64)>);

impl Flushes {
    /// For at most `shards` shards.
    pub fn new(shards: usize) -> Flushes {
        let lanes = (0..shards).map(|_| Lane::default()).collect();
        Flushes { lanes, used: AtomicUsize::new(0), failed: AtomicBool::new(false) }
    }

    /// A lane for one more shard.
    ///
    /// Panics if there are more shards than were said: a device has one store.
    pub fn join(&self) -> usize {
        let lane = self.used.fetch_add(1, Ordering::SeqCst);
        assert!(lane < self.lanes.len(), "more shards on a device than a store can have");
        lane
    }

    /// A flush of that lane is about to start.
    ///
    /// Panics if one is under way already.
    pub fn begin(&self, lane: usize) {
        let before = self.lanes[lane].0.fetch_add(1, Ordering::SeqCst);
        assert!(before.is_multiple_of(2), "two flushes of one shard at a time");
    }

    /// The flush of that lane is over. What others were under way, and may have met the failure
    /// that this one was not told of.
    pub fn end(&self, lane: usize, good: bool) -> Others {
        if !good {
            self.fail();
        }
        // After the note: whoever sees this flush as over sees that it failed.
        let before = self.lanes[lane].0.fetch_add(1, Ordering::SeqCst);
        assert!(!before.is_multiple_of(2), "a flush ended that had not begun");
        let used = self.used.load(Ordering::SeqCst).min(self.lanes.len());
        let numbers = self.lanes[..used].iter().map(|lane| lane.0.load(Ordering::SeqCst));
        Others(numbers.enumerate().filter(|(_, number)| !number.is_multiple_of(2)).collect())
    }

    /// True once all of these are over.
    pub fn over(&self, others: &Others) -> bool {
        others.0.iter().all(|&(lane, number)| self.lanes[lane].0.load(Ordering::SeqCst) != number)
    }

    /// A flush of the device has failed.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::SeqCst);
    }

    /// True if any flush has failed since the device was opened.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_waits_for_those_under_way_and_for_no_later_ones() {
        let flushes = Flushes::new(3);
        let [a, b, c] = [0, 1, 2].map(|_| flushes.join());
        flushes.begin(a);
        flushes.begin(b);
        let others = flushes.end(b, true);
        assert!(!flushes.over(&others) && !flushes.failed());
        // One that begins later has nothing to tell b.
        flushes.begin(c);
        let later = flushes.end(a, true);
        assert!(flushes.over(&others) && !flushes.over(&later), "a waits for c, b does not");
        flushes.end(c, false);
        assert!(flushes.failed());
        flushes.begin(a);
        assert!(flushes.over(&flushes.end(a, true)) && flushes.failed(), "once failed, for ever");
    }

    #[test]
    fn a_failure_is_seen_by_whoever_sees_the_flush_as_over() {
        for _ in 0..200 {
            let flushes = std::sync::Arc::new(Flushes::new(2));
            let (a, b) = (flushes.join(), flushes.join());
            flushes.begin(a);
            flushes.begin(b);
            let other = flushes.clone();
            let failing = std::thread::spawn(move || other.end(a, false));
            let others = flushes.end(b, true);
            while !flushes.over(&others) {
                std::thread::yield_now();
            }
            assert!(flushes.failed());
            failing.join().unwrap();
        }
    }

    #[test]
    #[should_panic(expected = "two flushes")]
    fn one_flush_a_shard() {
        let flushes = Flushes::new(1);
        let lane = flushes.join();
        flushes.begin(lane);
        flushes.begin(lane);
    }
}

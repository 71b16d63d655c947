//! What a reactor counts: written by it alone, read by anyone.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The shared side.
#[derive(Debug, Default)]
pub struct Counters {
    busy_ns: AtomicU64,
    idle_ns: AtomicU64,
    sleeps: AtomicU64,
    wakes: AtomicU64,
    turns: AtomicU64,
    asleep: AtomicBool,
}

/// Values at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Nanoseconds in turns that found work.
    pub busy_ns: u64,
    /// Nanoseconds in turns that found none, or asleep.
    pub idle_ns: u64,
    /// Times it went to sleep.
    pub sleeps: u64,
    /// Times something woke it (not the clock).
    pub wakes: u64,
    /// Turns.
    pub turns: u64,
    /// It sleeps now.
    pub asleep: bool,
}

impl Counters {
    /// Publishes the reactor's own values; only the reactor calls this.
    pub fn publish(&self, values: &Snapshot) {
        // Plain stores: one writer, and readers want no more than recent values.
        self.busy_ns.store(values.busy_ns, Ordering::Relaxed);
        self.idle_ns.store(values.idle_ns, Ordering::Relaxed);
        self.sleeps.store(values.sleeps, Ordering::Relaxed);
        self.wakes.store(values.wakes, Ordering::Relaxed);
        self.turns.store(values.turns, Ordering::Relaxed);
        self.asleep.store(values.asleep, Ordering::Relaxed);
    }

    /// Reads them.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            busy_ns: self.busy_ns.load(Ordering::Relaxed),
            idle_ns: self.idle_ns.load(Ordering::Relaxed),
            sleeps: self.sleeps.load(Ordering::Relaxed),
            wakes: self.wakes.load(Ordering::Relaxed),
            turns: self.turns.load(Ordering::Relaxed),
            asleep: self.asleep.load(Ordering::Relaxed),
        }
    }
}

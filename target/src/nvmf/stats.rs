//! What a reactor counts of its NVMe queues: written by it alone, read by anyone.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The counters.
#[derive(Debug, Default)]
pub struct GroupStats {
    io_qpairs: AtomicU64,
    current: AtomicU32,
    completed: AtomicU64,
    remote: AtomicU64,
    blocked: AtomicU64,
}

/// Their values at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupCounts {
    /// I/O queues since the start.
    pub io_qpairs: u64,
    /// I/O queues now.
    pub current: u32,
    /// Commands answered.
    pub completed: u64,
    /// Jobs done here for queues of other reactors.
    pub remote: u64,
    /// Jobs that wait for room in an engine now.
    pub blocked: u64,
}

impl GroupStats {
    /// A queue has come.
    pub fn queue_added(&self) {
        self.io_qpairs.fetch_add(1, Ordering::Relaxed);
        self.current.fetch_add(1, Ordering::Relaxed);
    }

    /// A queue has gone.
    pub fn queue_removed(&self) {
        self.current.fetch_sub(1, Ordering::Relaxed);
    }

    /// So many commands were answered.
    pub fn completed(&self, commands: u64) {
        if commands > 0 {
            // One writer: no need for an atomic addition.
            let now = self.completed.load(Ordering::Relaxed) + commands;
            self.completed.store(now, Ordering::Relaxed);
        }
    }

    /// A job came from another reactor.
    pub fn remote_job(&self) {
        self.remote.fetch_add(1, Ordering::Relaxed);
    }

    /// So many jobs wait for room.
    pub fn set_blocked(&self, jobs: u64) {
        self.blocked.store(jobs, Ordering::Relaxed);
    }

    /// The values now.
    pub fn counts(&self) -> GroupCounts {
        GroupCounts {
            io_qpairs: self.io_qpairs.load(Ordering::Relaxed),
            current: self.current.load(Ordering::Relaxed),
            completed: self.completed.load(Ordering::Relaxed),
            remote: self.remote.load(Ordering::Relaxed),
            blocked: self.blocked.load(Ordering::Relaxed),
        }
    }
}

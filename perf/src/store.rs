//! What is measured, as the rows see it.

use anyhow::Result;

/// Bytes of each request buffer, and the longest request.
pub const BUFFER_BYTES: usize = 128 << 10;
/// Requests in flight at most.
pub const DEPTH_MAX: usize = 64;

/// Kind of request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    /// Disk to buffer.
    Read,
    /// Buffer to disk.
    Write,
}

/// How long a snapshot took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Took {
    /// From asking to the answer, nanoseconds.
    pub wall_ns: u64,
    /// The same without the time that threads on the way waited for a core, if that is known; never
    /// less than it was, since the reading of the threads' statistics is part of it.
    pub on_core_ns: Option<u64>,
}

/// A disk of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Disk(pub usize);

/// A store with thin disks; one of them is chosen and takes the requests. Everything a load needs
/// in its loop neither blocks nor allocates.
pub trait Store {
    /// Hands in a request on buffer `slot`, which is idle.
    ///
    /// # Errors
    /// The target refuses it.
    fn submit(&mut self, verb: Verb, slot: u32, offset: u64, len: u32) -> Result<()>;

    /// Gets on with what was handed in; adds the slots that are done to `done`.
    ///
    /// # Errors
    /// A request failed.
    fn turn(&mut self, done: &mut Vec<u32>) -> Result<()>;

    /// Buffer of a slot that is idle.
    fn buffer(&mut self, slot: u32) -> &mut [u8];

    /// False if what is written is not kept, since only the target's own time is of interest.
    fn keeps_data(&self) -> bool {
        true
    }

    /// CPU time of what is measured, nanoseconds.
    ///
    /// # Errors
    /// It is gone.
    fn cpu_ns(&self) -> Result<u64>;

    /// The clock that snapshots are paced by, nanoseconds.
    fn pace_ns(&self) -> u64;

    /// A new disk, chosen.
    ///
    /// # Errors
    /// Why there is none.
    fn create(&mut self, bytes: u64) -> Result<Disk>;

    /// Sends requests to another disk.
    fn choose(&mut self, disk: Disk);

    /// Ends a disk with all its snapshots and waits until its space is back.
    ///
    /// # Errors
    /// Why it is still there.
    fn delete(&mut self, disk: Disk) -> Result<()>;

    /// Deletes all snapshots of the chosen disk and waits until their space is back.
    ///
    /// # Errors
    /// Why they are still there.
    fn delete_snapshots(&mut self) -> Result<()>;

    /// Waits for a consistency point, so that none is due soon.
    ///
    /// # Errors
    /// There was none.
    fn settle(&mut self) -> Result<()>;

    /// Sends requests past the target to its memory, if there is such a way.
    fn choose_raw(&mut self) -> bool;

    /// True if it takes snapshots.
    fn has_snapshots(&self) -> bool;

    /// Asks for a snapshot of the chosen disk; [`Store::snapshot_answer`] tells what became of it.
    ///
    /// # Errors
    /// Nobody is there to ask.
    fn ask_snapshot(&mut self) -> Result<()>;

    /// How long the snapshot took that was asked for; `None` while it is not done.
    ///
    /// # Errors
    /// It was refused.
    fn snapshot_answer(&mut self) -> Result<Option<Took>>;
}

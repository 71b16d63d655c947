//! Blocks for the snapshot log, set aside before a snapshot is taken.
//!
//! A block of the log is a pair of neighbours. On a full store the free blocks may all be single
//! ones, and a snapshot that has been acknowledged must find its place; so a pair is taken for each
//! snapshot before its record is written, kept in RAM (a crash frees it again, and leaves it free),
//! and given back if the disk's log turns out to have room.

use super::checkpoint::Step;
use crate::engine::Engine;
use crate::space::{Grant, Use};

impl Engine {
    /// Pairs that snapshots may need: one for each that has no place in a log.
    fn pairs_due(&self) -> usize {
        let placeless = |d: &crate::disk::Disk| {
            d.snaps.len() - d.snaps.partition_point(|snap| snap.place.is_some())
        };
        let entered: usize = self.disks.iter().flatten().map(|d| placeless(d)).sum();
        entered + self.pending_snapshots.iter().filter(|p| p.admitted).count()
    }

    /// Sets pairs aside for what is due and `more`. `Grant::Run`: all are there.
    pub(crate) fn secure_pairs(&mut self, more: usize) -> Grant {
        let due = self.pairs_due() + more;
        while self.checkpoint.pairs.len() < due {
            match self.space.allocate_pair(Use::Metadata) {
                Grant::Run(pba, _) => self.checkpoint.pairs.push(pba),
                refused => return refused,
            }
        }
        Grant::Run(0, 0)
    }

    /// First phase of a checkpoint: after a recovery, snapshots of the journal need pairs before
    /// the map's nodes take what is there.
    pub(crate) fn pairs_step(&mut self) -> Step {
        match self.secure_pairs(0) {
            Grant::Wait => Step::Wait,
            Grant::Full if self.space_is_sought() => Step::Wait,
            // Too few: the log will say so if it needs them.
            Grant::Run(..) | Grant::Full => Step::Done,
        }
    }

    /// A pair for a block of the log. `None`: a bitmap must be read first, or the shard has failed.
    pub(crate) fn take_pair(&mut self) -> Option<u64> {
        let pba = match self.checkpoint.pairs.pop() {
            Some(pba) => pba,
            None => match self.space.allocate_pair(Use::Metadata) {
                Grant::Run(pba, _) => pba,
                Grant::Wait => return None,
                Grant::Full => {
                    self.fail("no space is left for the snapshot log".to_string());
                    return None;
                }
            },
        };
        self.checkpoint.old_allocated.push(pba, 2);
        Some(pba)
    }

    /// Gives back what was not needed.
    pub(crate) fn release_pairs(&mut self) {
        let due = self.pairs_due();
        while self.checkpoint.pairs.len() > due {
            let pba = self.checkpoint.pairs.pop().expect("counted");
            self.space.release(pba, 2);
        }
    }
}

//! Flush: one base flush at a time answers everybody who asked before it began, consistency points
//! included.
//!
//! There is never a second one in flight: if a flush fails, a device may have dropped what it held,
//! and answer the next flush well because nothing is left to write. Completions may overtake each
//! other, so the success of one of two would mean nothing.

use crate::base_io::BaseOp;
use crate::canary::{Canary, planted};
use crate::engine::{Class, Engine, tag};
use crate::format::journal::Touched;
use crate::slots::{List, Stage};
use crate::status::{BaseError, Status};

/// Who waits for which base flush.
pub(crate) struct Flush {
    in_flight: bool,
    /// The checkpoint waits for the one in flight, or for the next.
    checkpoint: Asked,
    /// Covered by the one in flight.
    current: List,
    /// Asked after it began.
    next: List,
    /// Journal blocks below this were written when it began; and the disks of the last of them.
    covers: (u64, Touched),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    No,
    Current,
    Next,
}

impl Default for Flush {
    fn default() -> Flush {
        Flush {
            in_flight: false,
            checkpoint: Asked::No,
            current: List::EMPTY,
            next: List::EMPTY,
            covers: (0, Touched::default()),
        }
    }
}

impl Engine {
    /// The operation is done once a base flush that begins from now on has completed.
    pub(crate) fn start_flush(&mut self, index: u32) {
        if self.failed.is_some() {
            self.finish(index, Status::IoError);
            return;
        }
        if !self.traits.volatile_cache || planted(Canary::FlushAtOnce) {
            self.finish(index, Status::Ok);
            return;
        }
        self.slots[index].stage = Stage::Flush;
        if planted(Canary::FlushOnOld) && self.flush.in_flight {
            self.flush.current.push(&mut self.slots, index);
            return;
        }
        self.flush.next.push(&mut self.slots, index);
        self.begin_flush();
    }

    /// The same for the running checkpoint, or for recovery.
    pub(crate) fn begin_checkpoint_flush(&mut self) {
        if self.traits.volatile_cache {
            assert_eq!(self.flush.checkpoint, Asked::No);
            self.flush.checkpoint = Asked::Next;
            self.begin_flush();
        }
    }

    /// True while what [`Engine::begin_checkpoint_flush`] asked for is not done.
    pub(crate) fn checkpoint_flushing(&self) -> bool {
        self.flush.checkpoint != Asked::No
    }

    fn begin_flush(&mut self) {
        let wanted = !self.flush.next.is_empty() || self.flush.checkpoint == Asked::Next;
        if self.flush.in_flight || !wanted || self.failed.is_some() {
            return;
        }
        self.flush.in_flight = true;
        if self.flush.checkpoint == Asked::Next {
            self.flush.checkpoint = Asked::Current;
        }
        self.flush.current = std::mem::replace(&mut self.flush.next, List::EMPTY);
        self.flush.covers = self.journal.covered();
        if planted(Canary::FlushCoversMore) {
            self.flush.covers.0 += self.journal.used();
        }
        self.issue(tag(Class::Flush, 0, 0), BaseOp::Flush, 0, 0, 0);
    }

    pub(crate) fn flush_done(&mut self, result: Result<(), BaseError>) {
        assert!(self.flush.in_flight, "a flush completed that was never started");
        self.flush.in_flight = false;
        let status = match result {
            // The shard failed meanwhile: nothing is promised any more.
            Ok(()) if self.failed.is_some() => Status::IoError,
            Ok(()) => {
                self.journal.flush_done(self.flush.covers);
                Status::Ok
            }
            Err(_) if planted(Canary::FlushFailureForgotten) => Status::IoError,
            Err(_) => {
                self.fail("a flush of the base device failed".to_string());
                Status::IoError
            }
        };
        if self.flush.checkpoint == Asked::Current {
            self.flush.checkpoint = Asked::No;
        }
        let mut current = std::mem::replace(&mut self.flush.current, List::EMPTY);
        while let Some(op) = current.pop(&mut self.slots) {
            self.finish(op, status);
        }
        if self.failed.is_some() {
            let mut next = std::mem::replace(&mut self.flush.next, List::EMPTY);
            while let Some(op) = next.pop(&mut self.slots) {
                self.finish(op, Status::IoError);
            }
        }
        self.begin_flush();
    }
}

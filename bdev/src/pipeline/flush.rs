//! Flush: one base flush at a time answers everybody who asked before it began.

use crate::base_io::BaseOp;
use crate::engine::{Class, Engine, tag};
use crate::slots::{List, Stage};
use crate::status::{BaseError, Status};

/// Who waits for which base flush.
pub(crate) struct Flush {
    in_flight: bool,
    /// Covered by the one in flight.
    current: List,
    /// Asked after it began.
    next: List,
    /// Journal blocks below this were written when it began.
    covers: u64,
}

impl Default for Flush {
    fn default() -> Flush {
        Flush { in_flight: false, current: List::EMPTY, next: List::EMPTY, covers: 0 }
    }
}

impl Engine {
    /// The operation is done once a base flush that begins from now on has completed.
    pub(crate) fn start_flush(&mut self, index: u32) {
        if self.failed.is_some() {
            self.finish(index, Status::IoError);
            return;
        }
        if !self.traits.volatile_cache {
            self.finish(index, Status::Ok);
            return;
        }
        self.slots[index].stage = Stage::Flush;
        self.flush.next.push(&mut self.slots, index);
        self.begin_flush();
    }

    fn begin_flush(&mut self) {
        if self.flush.in_flight || self.flush.next.is_empty() {
            return;
        }
        self.flush.in_flight = true;
        self.flush.current = std::mem::replace(&mut self.flush.next, List::EMPTY);
        self.flush.covers = self.applied_lsn().0;
        self.issue(tag(Class::Flush, 0, 0), BaseOp::Flush, 0, 0, 0);
    }

    pub(crate) fn guest_flush_done(&mut self, result: Result<(), BaseError>) {
        assert!(self.flush.in_flight, "a flush completed that was never started");
        self.flush.in_flight = false;
        let status = match result {
            // Another flush failed meanwhile; what it dropped, this one no longer found to write.
            Ok(()) if self.failed.is_some() => Status::IoError,
            Ok(()) => {
                self.journal.flushed = self.journal.flushed.max(self.flush.covers);
                Status::Ok
            }
            Err(_) => {
                self.fail("a flush of the base device failed".to_string());
                Status::IoError
            }
        };
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

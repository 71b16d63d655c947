//! Holding freed blocks back, so that the trees of a committed consistency point stay as they are
//! while somebody reads them past the engine (`lamina check` of a store that is served).
//!
//! ```text
//!  consistency point frees ─► Release ─┬─ not held ─► free
//!                                      └─ held ─► kept here ─► Unhold (or space is short) ─► free
//! ```
//!
//! On disk such blocks are free as usual: only their being given out waits. So a crash ends a hold
//! by itself. It must not cost anybody a write: it ends early when space gets short, and whoever
//! asked for it is told at the end.

use crate::control::Reply;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind};
use crate::pipeline::checkpoint::RunList;

/// Runs kept back; beyond, the hold ends.
const RUNS_MAX: usize = 1 << 20;
/// Runs given back in one turn.
const RUNS_TURN: usize = 64;

/// What is held back.
pub(crate) struct Hold {
    held: bool,
    /// The last hold ended before it was to.
    cut_short: bool,
    runs: RunList,
    /// Runs below this have been given back.
    cursor: usize,
    blocks: u64,
}

impl Hold {
    pub fn new() -> Hold {
        Hold { held: false, cut_short: false, runs: RunList::empty(), cursor: 0, blocks: 0 }
    }

    /// Blocks kept back, or on their way to be free.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// True if a turn would give something back.
    pub fn wants_turn(&self) -> bool {
        !self.held && self.blocks > 0
    }
}

impl Engine {
    pub(crate) fn start_hold(&mut self, cookie: u64) {
        // One that was cut short is still somebody's, who is told at its end.
        let outcome = if self.hold.held || self.hold.cut_short {
            Err(Error::new(ErrorKind::Busy, "the store is being checked already: try again later"))
        } else {
            self.hold.held = true;
            Ok(Reply::Unit)
        };
        self.replies.push_back((cookie, outcome));
    }

    pub(crate) fn end_hold(&mut self, cookie: u64) {
        self.hold.held = false;
        let outcome = match std::mem::take(&mut self.hold.cut_short) {
            false => Ok(Reply::Unit),
            true => {
                let why = "the store ran short of space, so that blocks were reused meanwhile";
                Err(Error::new(ErrorKind::NoSpace, why))
            }
        };
        self.replies.push_back((cookie, outcome));
    }

    /// Takes blocks that a consistency point has freed. False: they are not to be held.
    pub(crate) fn hold_back(&mut self, pba: u64, len: u64) -> bool {
        if !self.hold.held {
            return false;
        }
        self.hold.runs.push(pba, len);
        self.hold.blocks += len;
        if self.hold.blocks > self.space.free || self.hold.runs.len() >= RUNS_MAX {
            self.give_up_hold();
        }
        true
    }

    /// Somebody needs the space more.
    pub(crate) fn give_up_hold(&mut self) {
        if self.hold.held {
            self.hold.held = false;
            self.hold.cut_short = true;
        }
    }

    /// Gives back some of what is not held any more.
    pub(crate) fn hold_step(&mut self) {
        if !self.hold.wants_turn() {
            return;
        }
        for _ in 0..RUNS_TURN {
            let Some((pba, len)) = self.hold.runs.get(self.hold.cursor) else {
                self.hold.runs.clear();
                self.hold.cursor = 0;
                break;
            };
            self.hold.cursor += 1;
            self.hold.blocks -= len;
            self.space.release(pba, len);
        }
        if self.hold.blocks == 0 {
            self.hold.runs.clear();
            self.hold.cursor = 0;
        }
        self.unpark = true;
    }
}

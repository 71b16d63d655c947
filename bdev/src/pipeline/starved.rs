//! A base that has run out of space itself: a sparse file on a full file system.
//!
//! ```text
//!  data       ─ no space ─► that request fails with NoSpace; the log says so once a point
//!  metadata   ─ no space ─► waits, is tried again 4 times a second ─ space ─► the point goes on
//! ```
//!
//! A consistency point that waits costs nothing that was acknowledged: the journal lies in blocks
//! that the host reserves, and takes records until it is full. From then on what needs a record
//! fails with NoSpace; reads, and writes in place, go on all the time.

use crate::base_io::BaseOp;
use crate::canary::{Canary, planted};
use crate::commands::error;
use crate::control::{Command, CommandDone};
use crate::engine::{Class, Engine, EngineState, tag};
use crate::error::ErrorKind;
use crate::limits::{CHUNKS, STARVED_RETRY_NS, SYSTEM_WRITES};
use crate::status::{BaseError, Status};

/// Metadata writes that found no space.
pub(crate) struct Starved {
    /// When they are tried again.
    retry_at: Option<u64>,
    /// Single blocks, by place among the page writers.
    pages: Vec<u32>,
    /// Runs of nodes, by number of their buffer.
    chunks: Vec<u32>,
    /// The log knows, and is to be told when it is over.
    told: bool,
    /// The last consistency point before which the log was told of data that found no space.
    data_told: Option<u64>,
}

impl Starved {
    pub fn new() -> Starved {
        Starved {
            retry_at: None,
            pages: Vec::with_capacity(SYSTEM_WRITES),
            chunks: Vec::with_capacity(CHUNKS),
            told: false,
            data_told: None,
        }
    }

    /// True while a consistency point waits for space.
    pub fn waits(&self) -> bool {
        self.retry_at.is_some()
    }

    /// Somebody waits: it is tried again now.
    fn hurry(&mut self, now: u64) {
        self.retry_at = self.retry_at.map(|at| at.min(now));
    }

    /// When a tick is wanted.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.retry_at
    }
}

/// The answer to a command that cannot be carried out now.
fn no_space(cookie: u64) -> CommandDone {
    let why = "the base device has no space: free some on its file system";
    (cookie, Err(error(ErrorKind::NoSpace, why)))
}

impl Engine {
    /// A metadata write failed. True: it found no space, and waits. An opening store does not: it
    /// has nothing to serve meanwhile.
    pub(crate) fn starves(&mut self, class: Class, at: u32, result: Result<(), BaseError>) -> bool {
        let serving = self.state == EngineState::Ready && self.failed.is_none();
        if result != Err(BaseError::NoSpace) || !serving {
            return false;
        }
        let forgotten = planted(Canary::StarvedForgotten);
        match class {
            Class::Page => self.starved.pages.push(at),
            _ => self.starved.chunks.push(at),
        }
        if self.starved.retry_at.is_none() && !forgotten {
            self.starved.retry_at = Some(self.now + STARVED_RETRY_NS);
        }
        if !std::mem::replace(&mut self.starved.told, true) {
            let text = "the base device has no space for metadata: consistency points wait until there is some; free space on its file system";
            self.event(true, text.to_string());
        }
        self.refuse_starved();
        // Those that wait for the consistency point had better be told.
        self.unpark = true;
        true
    }

    /// Nobody knows when the running consistency point ends. Commands that wait for the next one
    /// are refused, and those that only wait for the end; what this one is to commit waits with it.
    fn refuse_starved(&mut self) {
        let next = std::mem::take(&mut self.commands).into_iter().map(|(cookie, _)| cookie);
        let late = std::mem::take(&mut self.checkpoint.late_replies);
        let ends = late.into_iter().map(|(cookie, _)| cookie);
        self.replies.extend(next.chain(ends).map(no_space));
    }

    /// A command waits for the next consistency point. If one waits for space it is tried again
    /// now, and the command refused if there is still none.
    pub(crate) fn wait_for_point(&mut self, cookie: u64, command: Command) {
        self.starved.hurry(self.now);
        self.commands.push_back((cookie, command));
    }

    /// An operation that holds nothing needs a record, and the journal is full.
    pub(crate) fn wait_for_journal(&mut self, index: u32) {
        if self.starved.waits() {
            return self.finish(index, Status::NoSpace);
        }
        self.checkpoint.urgent = true;
        self.park(index);
    }

    /// Tries again what found no space, if it is time.
    pub(crate) fn retry_starved(&mut self) {
        if self.starved.retry_at.is_none_or(|at| at > self.now) {
            return;
        }
        self.starved.retry_at = None;
        while let Some(at) = self.starved.chunks.pop() {
            self.issue_chunk(at as usize);
        }
        while let Some(at) = self.starved.pages.pop() {
            let write = self.checkpoint.writes[at as usize].as_ref().expect("it waited");
            let (address, addr) = (write.address, self.pages.addr(write.page));
            self.issue(tag(Class::Page, 0, at), BaseOp::Write, address, addr, 4096);
        }
    }

    /// A consistency point has committed: there is space.
    pub(crate) fn fed(&mut self) {
        if std::mem::take(&mut self.starved.told) {
            self.event(false, "the base device has space for metadata again".to_string());
        }
    }

    /// A request's data found no space.
    pub(crate) fn data_found_no_space(&mut self) {
        let point = self.superblock.generation;
        if self.starved.data_told.replace(point) != Some(point) {
            let text = "the base device has no space: writes to new blocks fail; free space on its file system";
            self.event(true, text.to_string());
        }
    }
}

//! The writes of a consistency point: single blocks of system metadata, and runs of map nodes.

use super::checkpoint::{PageWrite, Phase};
use crate::base_io::BaseOp;
use crate::canary::{Canary, planted};
use crate::engine::{Class, Engine, tag};
use crate::limits::WRITE_RETRIES;
use crate::page::PageId;
use crate::status::BaseError;

impl Engine {
    /// Writes one block of system metadata; false: all page writers are in use, try again.
    pub(crate) fn write_page(
        &mut self,
        address: u64,
        fill: impl FnOnce(&mut crate::format::Block),
    ) -> bool {
        let Some(at) = self.checkpoint.writes.iter().position(|w| w.is_none()) else {
            return false;
        };
        let Some(page) = self.pages.take() else { return false };
        fill(self.pages.bytes_mut(page));
        self.checkpoint.writes[at] = Some(PageWrite { page, address, tries: 0 });
        self.checkpoint.outstanding += 1;
        let addr = self.pages.addr(page);
        self.issue(tag(Class::Page, 0, at as u32), BaseOp::Write, address, addr, 4096);
        true
    }

    /// What is buried may be bad for good: then it hardly comes back, and the point does not need
    /// it if the other copy can be written.
    fn cannot_be_buried(&self, address: u64, result: Result<(), BaseError>) -> bool {
        let burying = matches!(self.checkpoint.phase, Phase::Bury | Phase::BuryDrain);
        let g = &self.superblock.geometry;
        burying && result == Err(BaseError::Io) && (g.catalogue..g.records).contains(&address)
    }

    pub(crate) fn page_write_done(&mut self, at: u32, result: Result<(), BaseError>) {
        assert!(self.checkpoint.writes[at as usize].is_some(), "a page write in flight");
        if self.starves(Class::Page, at, result) {
            return;
        }
        let write = self.checkpoint.writes[at as usize].as_mut().expect("looked at");
        if result.is_err() {
            write.tries += 1;
            if write.tries < WRITE_RETRIES {
                let (address, addr) = (write.address, self.pages.addr(write.page));
                self.issue(tag(Class::Page, 0, at), BaseOp::Write, address, addr, 4096);
                return;
            }
            let (address, page) = (write.address, write.page);
            let moved = result.err().and_then(|why| self.move_superblock(address, page, why));
            if let Some(address) = moved {
                let write = PageWrite { page, address, tries: 0 };
                self.checkpoint.writes[at as usize] = Some(write);
                let addr = self.pages.addr(page);
                self.issue(tag(Class::Page, 0, at), BaseOp::Write, address, addr, 4096);
                return;
            }
            if self.cannot_be_buried(address, result) {
                let text =
                    format!("block {address}, a lost copy of the catalogue, cannot be written");
                self.event(true, text);
            } else {
                self.fail(format!("a metadata block could not be written{}", why(result)));
            }
        }
        let write = self.checkpoint.writes[at as usize].take().expect("looked at");
        self.pages.give(write.page);
        self.checkpoint.outstanding -= 1;
        self.unpark = true;
    }

    pub(crate) fn issue_chunk(&mut self, at: usize) {
        let chunk = &mut self.checkpoint.chunks[at];
        chunk.writing = true;
        let (addr, len) = (chunk.pages.addr(PageId(0)), chunk.count as u32 * 4096);
        let start = chunk.start;
        self.issue(tag(Class::Chunk, 0, at as u32), BaseOp::Write, start, addr, len);
    }

    pub(crate) fn chunk_write_done(&mut self, at: u32, result: Result<(), BaseError>) {
        assert!(self.checkpoint.chunks[at as usize].writing);
        let skipped = planted(Canary::StarvedSkipped) && result == Err(BaseError::NoSpace);
        let result = if skipped { Ok(()) } else { result };
        if self.starves(Class::Chunk, at, result) {
            return;
        }
        let chunk = &mut self.checkpoint.chunks[at as usize];
        if result.is_err() {
            chunk.tries += 1;
            if chunk.tries < WRITE_RETRIES {
                self.issue_chunk(at as usize);
                return;
            }
            self.fail(format!("map nodes could not be written{}", why(result)));
        }
        let chunk = &mut self.checkpoint.chunks[at as usize];
        chunk.tries = 0;
        chunk.writing = false;
        chunk.count = 0;
        let mut pins = std::mem::take(&mut chunk.pins);
        // After a failure nothing may be evicted that the disk does not have.
        if self.failed.is_none() {
            for slot in pins.drain(..) {
                self.cache.unpin(slot);
            }
        }
        self.checkpoint.chunks[at as usize].pins = pins;
        self.checkpoint.outstanding -= 1;
        self.unpark = true;
    }
}

/// The rest of a sentence about a write that failed for good.
pub(super) fn why(result: Result<(), BaseError>) -> &'static str {
    match result {
        Err(BaseError::NoSpace) => " (the base device has no space: free some on its file system)",
        Err(BaseError::Gone) => " (the base device has gone)",
        Err(BaseError::Io) | Ok(()) => "",
    }
}

//! The journal: records of one turn share a block; blocks may be written side by side, but take
//! effect, and answer their requests, strictly in order.

use super::checkpoint_io::why;
use crate::base_io::BaseOp;
use crate::canary::{Canary, planted};
use crate::engine::{Class, Engine, tag};
use crate::format::journal::{BEFORE, Frame, Record, Touched, UNITS_MAX, finish};
use crate::limits::{JOURNAL_WINDOW, WRITE_RETRIES};
use crate::page::PageId;
use crate::slots::{Kind, List};
use crate::status::BaseError;
use std::collections::VecDeque;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Takes records.
    Open,
    /// Full, waits for its turn to be written.
    Queued,
    Writing,
    Written,
}

struct Batch {
    page: PageId,
    lsn: u64,
    units: usize,
    touched: Touched,
    ops: List,
    state: State,
    tries: u8,
}

pub(crate) struct Journal {
    /// Batches that have not taken effect, oldest first; only the last may be open.
    batches: VecDeque<Batch>,
    batches_max: usize,
    next: u64,
    pub tail: u64,
    /// Blocks below this are durable, and so is the data their records name.
    flushed: u64,
    /// Disks of the block before that one.
    flushed_last: Touched,
    /// Disks of the last blocks that have taken effect, the very last first.
    applied_last: [Touched; BEFORE],
    /// The last consistency point that has committed.
    pub point: u64,
    pub incarnation: u64,
    blocks: u64,
    /// Admitted operations whose records are not in a batch yet; each may need a block.
    reserved: u64,
    broken: bool,
}

impl Journal {
    pub fn new(batches_max: usize) -> Journal {
        Journal {
            batches: VecDeque::with_capacity(batches_max + 1),
            batches_max,
            next: 1,
            tail: 1,
            flushed: 1,
            flushed_last: Touched::default(),
            applied_last: [Touched::default(); BEFORE],
            point: 0,
            incarnation: 0,
            blocks: 0,
            reserved: 0,
            broken: false,
        }
    }

    /// Starts an empty journal after an open.
    pub fn start(&mut self, next: u64, tail: u64, incarnation: u64, blocks: u64) {
        (self.next, self.tail, self.flushed) = (next, tail, tail);
        self.incarnation = incarnation;
        self.blocks = blocks;
    }

    /// A base flush has completed: what [`Journal::covered`] said when it began is durable.
    pub fn flush_done(&mut self, (covers, last): (u64, Touched)) {
        if covers >= self.flushed {
            (self.flushed, self.flushed_last) = (covers, last);
        }
    }

    /// What a base flush that begins now covers: the blocks below, and the disks of the last.
    pub fn covered(&self) -> (u64, Touched) {
        (self.applied(), self.applied_last[0])
    }

    /// The frame of batch `at`, which is complete, as are all before it.
    fn frame(&self, at: usize, volatile: bool) -> Frame {
        let batch = &self.batches[at];
        let (durable, promised) =
            if volatile { (self.flushed, self.flushed_last) } else { self.covered() };
        let mut before = [Touched::default(); BEFORE];
        for (back, touched) in before.iter_mut().enumerate() {
            *touched = match at.checked_sub(back + 1) {
                Some(at) => self.batches[at].touched,
                None => self.applied_last[back - at],
            };
        }
        Frame {
            lsn: batch.lsn,
            incarnation: self.incarnation,
            count: batch.units,
            durable,
            point: self.point,
            before,
            promised,
            ordered: !volatile || planted(Canary::RecordBeforeData),
        }
    }

    /// Blocks of the ring.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Blocks in use.
    pub fn used(&self) -> u64 {
        self.next - self.tail
    }

    pub fn half_full(&self) -> bool {
        self.used() * 2 > self.blocks
    }

    /// Requests will have to wait soon.
    pub fn nearly_full(&self) -> bool {
        self.used() * 4 > self.blocks * 3
    }

    /// The oldest block that has not taken effect: a checkpoint frozen now covers all before it.
    pub fn applied(&self) -> u64 {
        self.batches.front().map_or(self.next, |b| b.lsn)
    }

    pub fn reserve(&mut self) {
        self.reserved += 1;
    }

    pub fn unreserve(&mut self) {
        assert!(self.reserved > 0);
        self.reserved -= 1;
    }

    pub fn has_open_batch(&self) -> bool {
        !self.broken
            && self.batches.len() <= JOURNAL_WINDOW
            && self.batches.back().is_some_and(|b| b.state == State::Open)
    }
}

impl Engine {
    /// True if one more operation may be admitted without risking a full ring.
    pub(crate) fn journal_has_room(&self) -> bool {
        let j = &self.journal;
        j.used() + j.reserved + 4 < j.blocks && !j.broken
    }

    /// Puts the `count` records of an admitted operation into the open batch, writes of as many
    /// runs or one of another kind; the operation goes on when the batch has taken effect.
    #[inline(always)]
    pub(crate) fn journal_append(
        &mut self,
        index: u32,
        count: usize,
        mut record: impl FnMut(usize) -> Record,
    ) {
        assert!(count > 0);
        let first = record(0);
        let units = if count == 1 { first.units() } else { count };
        let queued = self.journal_make_room(units);
        let batch = self.journal.batches.back_mut().expect("there is room in it");
        let page = self.pages.bytes_mut(batch.page);
        for at in 0..count {
            let record = if at == 0 { first } else { record(at) };
            record.write(page, batch.units);
            batch.touched.add(record.disk());
            batch.units += record.units();
        }
        batch.ops.push(&mut self.slots, index);
        self.stats.journal_records += count as u64;
        if queued {
            self.journal_write_queued();
        }
    }

    /// Makes sure that the last batch is open and has room for so many units. True if another one
    /// that was full is to be written.
    #[inline(always)]
    fn journal_make_room(&mut self, units: usize) -> bool {
        self.journal.unreserve();
        let mut queued = false;
        if let Some(last) = self.journal.batches.back_mut()
            && last.state == State::Open
        {
            if last.units + units <= UNITS_MAX {
                return false;
            }
            last.state = State::Queued;
            queued = true;
        }
        self.journal_open_batch();
        queued
    }

    #[inline(never)]
    fn journal_open_batch(&mut self) {
        let j = &mut self.journal;
        assert!(j.batches.len() < j.batches_max, "more journal batches than their bound");
        assert!(j.next - j.tail < j.blocks, "the journal ring is full");
        let page = self.pages.take().expect("journal pages are set aside");
        let (lsn, ops) = (j.next, List::EMPTY);
        j.next += 1;
        let (state, touched) = (State::Open, Touched::default());
        j.batches.push_back(Batch { page, lsn, units: 0, touched, ops, state, tries: 0 });
    }

    /// End of a turn: the open batch goes out, unless so many are on their way that it had better
    /// collect more.
    pub(crate) fn journal_close_batch(&mut self) {
        if self.journal.has_open_batch() {
            self.journal.batches.back_mut().expect("open").state = State::Queued;
        }
        self.journal_write_queued();
    }

    /// Writes queued batches while the window has room.
    fn journal_write_queued(&mut self) {
        if self.journal.broken {
            return;
        }
        for at in 0..self.journal.batches.len().min(JOURNAL_WINDOW) {
            if self.journal.batches[at].state != State::Queued {
                continue;
            }
            let j = &mut self.journal;
            j.batches[at].state = State::Writing;
            let frame = j.frame(at, self.traits.volatile_cache);
            let address = self.superblock.geometry.journal + frame.lsn % j.blocks;
            let page = self.pages.bytes_mut(j.batches[at].page);
            finish(page, &frame, self.store, self.shard, address);
            self.stats.journal_blocks += 1;
            self.journal_issue(at);
            if planted(Canary::AckBeforeRecord) {
                let mut ops = std::mem::replace(&mut self.journal.batches[at].ops, List::EMPTY);
                self.journal_effect_of(&mut ops);
            }
        }
    }

    fn journal_issue(&mut self, at: usize) {
        let batch = &self.journal.batches[at];
        let address = self.superblock.geometry.journal + batch.lsn % self.journal.blocks;
        let addr = self.pages.addr(batch.page);
        let tag = tag(Class::Journal, 0, batch.lsn as u32);
        self.issue(tag, BaseOp::Write, address, addr, 4096);
    }

    pub(crate) fn journal_write_done(&mut self, lsn: u32, result: Result<(), BaseError>) {
        let batches = &mut self.journal.batches;
        let at = batches.iter().position(|b| b.lsn as u32 == lsn && b.state == State::Writing);
        let at = at.expect("a journal block completed that was not being written");
        if result.is_err() {
            batches[at].tries += 1;
            if batches[at].tries < WRITE_RETRIES && !self.journal.broken {
                self.journal_issue(at);
                return;
            }
            self.journal.broken = true;
            self.fail(format!("the journal could not be written{}", why(result)));
        }
        self.journal.batches[at].state = State::Written;
        if self.journal.broken {
            self.journal_fail_all();
        } else {
            self.journal_take_effect();
        }
    }

    /// Batches that are written, and all before them, change the map and answer their requests.
    fn journal_take_effect(&mut self) {
        if planted(Canary::EffectOutOfOrder) {
            let written = self.journal.batches.iter().position(|b| b.state == State::Written);
            self.journal.batches.swap(0, written.expect("one was just written"));
        }
        while self.journal.batches.front().is_some_and(|b| b.state == State::Written) {
            let mut batch = self.journal.batches.pop_front().expect("looked at");
            self.pages.give(batch.page);
            self.journal.applied_last.rotate_right(1);
            self.journal.applied_last[0] = batch.touched;
            self.journal_effect_of(&mut batch.ops);
        }
        self.journal_write_queued();
    }

    fn journal_effect_of(&mut self, ops: &mut List) {
        while let Some(op) = ops.pop(&mut self.slots) {
            match self.slots[op].kind {
                Kind::Write => self.apply_write(op),
                Kind::Discard | Kind::Trim => self.apply_discard(op),
                Kind::WriteZeroes if self.slots[op].partial => self.apply_write(op),
                Kind::WriteZeroes => self.apply_discard(op),
                Kind::Snapshot => self.apply_snapshot(op),
                Kind::Read | Kind::Flush => unreachable!("reads and flushes are not logged"),
            }
        }
    }

    /// A batch is lost: it and all that follow fail, since replay would stop there.
    fn journal_fail_all(&mut self) {
        let writing = self.journal.batches.iter().any(|b| b.state == State::Writing);
        if writing {
            return;
        }
        while let Some(mut batch) = self.journal.batches.pop_front() {
            self.pages.give(batch.page);
            while let Some(op) = batch.ops.pop(&mut self.slots) {
                if self.slots[op].kind == Kind::Snapshot {
                    self.finish(op, crate::status::Status::IoError);
                } else {
                    self.journal_part_failed(op);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(slot: u32) -> Touched {
        let mut touched = Touched::default();
        touched.add(slot);
        touched
    }

    /// Block `lsn` is about disk number `lsn`; those before `front` have taken effect.
    fn journal(front: u64, next: u64, flushed: u64) -> Journal {
        let mut journal = Journal::new(8);
        journal.start(next, 1, 3, 64);
        for back in 1..=BEFORE as u64 {
            journal.applied_last[back as usize - 1] = only((front - back) as u32);
        }
        for lsn in front..next {
            let (page, units, touched) = (PageId(0), 1, only(lsn as u32));
            let (ops, state, tries) = (List::EMPTY, State::Writing, 0);
            journal.batches.push_back(Batch { page, lsn, units, touched, ops, state, tries });
        }
        (journal.flushed, journal.flushed_last) = (flushed, only(flushed as u32 - 1));
        journal
    }

    #[test]
    fn a_block_says_what_the_five_before_it_were_about() {
        for at in 0..7 {
            let frame = journal(20, 28, 18).frame(at, true);
            let lsn = 20 + at as u64;
            assert_eq!(frame.lsn, lsn);
            for (back, touched) in frame.before.iter().enumerate() {
                assert_eq!(*touched, only((lsn - 1 - back as u64) as u32), "{back} before {lsn}");
            }
        }
    }

    #[test]
    fn a_block_promises_what_is_durable_and_no_more() {
        let volatile = journal(20, 24, 18).frame(2, true);
        assert_eq!((volatile.durable, volatile.promised), (18, only(17)));
        assert!(!volatile.ordered);
        // Without a volatile cache what has taken effect is durable.
        let durable = journal(20, 24, 18).frame(2, false);
        assert_eq!((durable.durable, durable.promised), (20, only(19)));
        assert!(durable.ordered);
    }

    #[test]
    fn of_two_flushes_the_older_one_takes_nothing_back() {
        let mut journal = journal(20, 24, 18);
        assert_eq!(journal.covered(), (20, only(19)));
        journal.flush_done((17, only(16)));
        assert_eq!((journal.flushed, journal.flushed_last), (18, only(17)));
        journal.flush_done((20, only(19)));
        assert_eq!((journal.flushed, journal.flushed_last), (20, only(19)));
    }

    #[test]
    fn more_than_half_in_use_is_half_full() {
        let mut journal = Journal::new(8);
        journal.start(10, 1, 1, 18);
        assert_eq!((journal.used(), journal.half_full()), (9, false));
        journal.next = 11;
        assert!(journal.half_full());
    }
}

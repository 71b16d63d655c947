//! A file or block device through `io_uring`: one ring a shard, a call for a few operations.
//!
//! ```text
//!  submit ─► slot ─┬─ memory aligned ────────────────────► SQE ─┐
//!                  ├─ not, up to 4 KiB: the slot's own bounce ──┤  enter, for every 4
//!                  └─ not, more: one of a few, piece by piece ──┤
//!  poll ◄── done ◄── count checked, retried, copied ◄ CQE ──────┘
//! ```
//!
//! All memory is allocated when the base is made. The ring is made disabled on a control thread
//! and enabled by the reactor, which the kernel then holds to be its only user.
#![allow(unsafe_code)]
// UNSAFETY: the kernel reads and writes memory by address while an operation is in flight.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use io_uring::{IoUring, opcode, squeue, types};
use lamina_bdev::limits::SEGS_MAX;
use lamina_bdev::{BaseError, BaseOp, BaseTraits, Error, ErrorKind, SECTOR_SIZE, Seg, Tag};

use super::flushes::Others;
use super::{BaseFile, BaseResult, Operation, Region};
use crate::eventfd::EventFd;
use crate::mem::hugepage::Mapping;

/// Operations in flight, a shard.
const SLOTS_MAX: usize = 256;
/// Bounce buffers for long operations, a shard, and bytes in one.
const BOUNCE_COUNT: usize = 16;
const BOUNCE_BYTES: usize = 128 << 10;
/// Bytes in the bounce buffer of each slot: a guest whose memory is never aligned has as many small
/// requests under way as any other.
const SMALL_BYTES: usize = 4096;
/// Operations given to the kernel at a time: a device that gets a few while more are on their way
/// answers a steady stream, one that gets a whole turn's answers in bursts, and idles between them.
const SUBMIT_BATCH: usize = 4;
/// How often an operation that the kernel interrupted is started again.
const RETRIES_MAX: u8 = 8;

/// Memory that the kernel takes in place of a request's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bounce {
    /// The slot's own.
    Small,
    /// One of those for long operations.
    Long(u8),
}

/// One operation in flight.
#[derive(Clone, Copy)]
struct Slot {
    tag: Tag,
    op: BaseOp,
    busy: bool,
    /// Device offset of the first byte.
    offset: u64,
    len: u32,
    segs: u16,
    retries: u8,
    /// The bounce buffer, if it needs one and has it.
    bounce: Option<Bounce>,
    /// Bytes moved through the bounce buffer so far.
    moved: u32,
}

const IDLE: Slot = Slot {
    tag: Tag(0),
    op: BaseOp::Flush,
    busy: false,
    offset: 0,
    len: 0,
    segs: 0,
    retries: 0,
    bounce: None,
    moved: 0,
};

/// One shard's view of a [`BaseFile`].
pub struct UringBase {
    // Declared first: the ring goes before the file and the memory it knows.
    ring: IoUring,
    file: Arc<BaseFile>,
    region: Region,
    wake: EventFd,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// `SEGS_MAX` entries a slot.
    iovecs: Vec<libc::iovec>,
    bounce: Mapping,
    bounce_free: Vec<u8>,
    /// `SMALL_BYTES` a slot.
    small: Mapping,
    /// Slots that wait for a bounce buffer for long operations.
    waiting: VecDeque<u16>,
    done: VecDeque<(Tag, BaseResult)>,
    /// This shard among those that flush the device.
    lane: usize,
    /// A flush that succeeded, until those of other shards that were under way are over.
    unsure: Option<(Tag, Others)>,
}

// SAFETY: the iovecs hold addresses of memory that is not tied to a thread; the ring is disabled
// while the value moves from the control thread to its reactor.
unsafe impl Send for UringBase {}

impl UringBase {
    /// Makes the ring (disabled until [`UringBase::adopt`]) and all memory.
    ///
    /// # Errors
    /// `Io` with a sentence if the kernel refuses.
    pub fn new(file: Arc<BaseFile>, region: Region) -> Result<UringBase, Error> {
        let end = region.offset.checked_add(region.len);
        assert!(end.is_some_and(|end| end <= file.size()), "the region leaves the device");
        let failed = |what: &str, e: io::Error| {
            Error::new(ErrorKind::Io, format!("{}: {what}: {e}", file.path().display()))
        };
        let ring = build_ring().map_err(|e| {
            failed("io_uring is not usable here (see sysctl kernel.io_uring_disabled)", e)
        })?;
        let wake = EventFd::new().map_err(|e| failed("no eventfd", e))?;
        ring.submitter()
            .register_eventfd(wake.as_raw_fd())
            .map_err(|e| failed("registering an eventfd", e))?;
        ring.submitter()
            .register_files(&[file.raw_fd()])
            .map_err(|e| failed("registering the file", e))?;
        let bounce =
            Mapping::new(BOUNCE_COUNT * BOUNCE_BYTES).map_err(|e| failed("no bounce memory", e))?;
        let small =
            Mapping::new(SLOTS_MAX * SMALL_BYTES).map_err(|e| failed("no bounce memory", e))?;
        let lane = file.flushes().join();
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Ok(UringBase {
            ring,
            file,
            region,
            wake,
            slots: vec![IDLE; SLOTS_MAX],
            free: (0..SLOTS_MAX as u16).rev().collect(),
            iovecs: vec![empty; SLOTS_MAX * SEGS_MAX],
            bounce,
            bounce_free: (0..BOUNCE_COUNT as u8).rev().collect(),
            small,
            waiting: VecDeque::with_capacity(SLOTS_MAX),
            done: VecDeque::with_capacity(SLOTS_MAX),
            lane,
            unsure: None,
        })
    }

    /// Enables the ring for the calling thread, its only user from now on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn adopt(&mut self) -> io::Result<()> {
        self.ring.submitter().register_enable_rings()?;
        self.ring.completion().disable_eventfd();
        Ok(())
    }

    /// What the engine must know.
    pub fn traits(&self) -> BaseTraits {
        self.file.traits()
    }

    /// Bytes in the region.
    pub fn size(&self) -> u64 {
        self.region.len
    }

    /// True if a slot is free.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Operations not yet answered.
    pub fn in_flight(&self) -> usize {
        SLOTS_MAX - self.free.len() + self.done.len() + usize::from(self.unsure.is_some())
    }

    /// See [`super::Base::wake_fd`].
    pub fn wake_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// Takes one operation. Panics without room, on too many segments, or if they do not add up.
    pub fn submit(&mut self, io: &Operation, segs: &[Seg]) {
        let offset = self.region.device_offset(io.offset, io.len as usize);
        let index = self.free.pop().expect("submit without room");
        let segs = if io.op == BaseOp::Flush { &[] } else { segs };
        let total: usize = segs.iter().map(|seg| seg.len).sum();
        assert!(total == io.len as usize && segs.len() <= SEGS_MAX, "segments do not add up");
        let slot = &mut self.slots[usize::from(index)];
        assert!(!slot.busy, "a free slot is busy");
        *slot = Slot {
            tag: io.tag,
            op: io.op,
            busy: true,
            offset,
            len: io.len,
            segs: segs.len() as u16,
            ..IDLE
        };
        if io.op == BaseOp::Flush {
            self.file.flushes().begin(self.lane);
        }
        let first = usize::from(index) * SEGS_MAX;
        for (iovec, seg) in self.iovecs[first..].iter_mut().zip(segs) {
            let addr = std::ptr::with_exposed_provenance_mut(seg.addr);
            *iovec = libc::iovec { iov_base: addr, iov_len: seg.len };
        }
        if io.op != BaseOp::Flush && !self.aligned(segs) {
            let long = total > SMALL_BYTES;
            let buffer =
                if long { self.bounce_free.pop().map(Bounce::Long) } else { Some(Bounce::Small) };
            if buffer.is_none() {
                self.waiting.push_back(index);
                return;
            }
            self.slots[usize::from(index)].bounce = buffer;
        }
        self.push(index);
        if self.ring.submission().len() >= SUBMIT_BATCH {
            self.give();
        }
    }

    /// Gives queued operations to the kernel; it may answer some already.
    fn give(&mut self) {
        if let Err(e) = self.ring.submit() {
            // Out of some kernel resource for the moment, or a signal: the entries stay queued.
            let again = matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY));
            assert!(again, "io_uring_enter on our own ring: {e}");
        }
    }

    /// Gives queued operations to the kernel, collects what is done. True if it did anything.
    pub fn enter(&mut self) -> bool {
        let queue = self.ring.submission();
        let queued = !queue.is_empty();
        let call = queued || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if call {
            self.give();
        }
        let before = self.done.len();
        // Bounded: an operation that goes on after its completion does so in the next turn.
        for _ in 0..SLOTS_MAX {
            let Some(entry) = self.ring.completion().next() else { break };
            self.completed(entry.user_data() as u16, entry.result());
        }
        self.settle_flush();
        queued || self.done.len() > before
    }

    /// The next answer.
    pub fn poll(&mut self) -> Option<(Tag, BaseResult)> {
        self.done.pop_front()
    }

    /// See [`super::Base::prepare_sleep`].
    pub fn prepare_sleep(&mut self) -> bool {
        self.ring.completion().enable_eventfd();
        // The kernel publishes work, then looks at the flag; we set the flag, then look for work.
        fence(Ordering::SeqCst);
        if self.unsure.is_some() {
            // Nobody wakes us when the others are over.
            return false;
        }
        let queue = self.ring.submission();
        let quiet = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
        drop(queue);
        quiet && self.ring.completion().is_empty() && self.done.is_empty()
    }

    /// See [`super::Base::woken`].
    pub fn woken(&mut self) {
        self.ring.completion().disable_eventfd();
    }

    fn aligned(&self, segs: &[Seg]) -> bool {
        match self.file.direct_align() {
            None => true,
            Some(align) => segs
                .iter()
                .all(|seg| seg.addr.is_multiple_of(align) && seg.len.is_multiple_of(SECTOR_SIZE)),
        }
    }

    /// Queues the operation of a slot, or its next piece.
    fn push(&mut self, index: u16) {
        let slot = self.slots[usize::from(index)];
        let first = usize::from(index) * SEGS_MAX;
        let file = types::Fixed(0);
        let entry = if slot.op == BaseOp::Flush {
            opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build()
        } else if let Some(buffer) = slot.bounce {
            let len = piece_len(&slot);
            if slot.op == BaseOp::Write {
                self.copy_piece(index);
            }
            let at = slot.offset + u64::from(slot.moved);
            transfer(slot.op, file, self.bounce_at(index, buffer), len, at)
        } else if slot.segs == 1 {
            let base = self.iovecs[first].iov_base.cast();
            transfer(slot.op, file, base, slot.len, slot.offset)
        } else {
            let (iovecs, count) = (&raw const self.iovecs[first], u32::from(slot.segs));
            match slot.op {
                BaseOp::Read => opcode::Readv::new(file, iovecs, count).offset(slot.offset).build(),
                BaseOp::Write => {
                    opcode::Writev::new(file, iovecs, count).offset(slot.offset).build()
                }
                BaseOp::Flush => unreachable!("handled above"),
            }
        };
        // A FUSE file's fsync holds a lock that starting a write waits for: the kernel's own
        // threads may wait there, a reactor may not.
        let offload = self.file.may_stall();
        let entry = if offload { entry.flags(squeue::Flags::ASYNC) } else { entry };
        let entry = entry.user_data(u64::from(index));
        // SAFETY: the memory is the slot's iovecs, its bounce buffer, or what the host promised to
        // keep until the answer; all of it outlives the operation (see `Drop`).
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("there are as many ring entries as slots");
    }

    /// The kernel is done with the operation of a slot, or with a piece of it.
    fn completed(&mut self, index: u16, result: i32) {
        let slot = &mut self.slots[usize::from(index)];
        assert!(slot.busy, "a completion for an idle slot");
        if matches!(-result, libc::EINTR | libc::EAGAIN) && slot.retries < RETRIES_MAX {
            slot.retries += 1;
            return self.push(index);
        }
        let expected = if slot.bounce.is_some() { piece_len(slot) } else { slot.len };
        if result < 0 {
            return self.answer(index, Err(base_error(-result)));
        }
        if result as u32 != expected {
            return self.answer(index, Err(BaseError::Io));
        }
        if slot.bounce.is_none() {
            return self.answer(index, Ok(()));
        }
        let read = slot.op == BaseOp::Read;
        if read {
            self.copy_piece(index);
        }
        let slot = &mut self.slots[usize::from(index)];
        slot.moved += expected;
        if slot.moved < slot.len { self.push(index) } else { self.answer(index, Ok(())) }
    }

    fn answer(&mut self, index: u16, result: BaseResult) {
        let slot = &mut self.slots[usize::from(index)];
        slot.busy = false;
        let (tag, op) = (slot.tag, slot.op);
        if op == BaseOp::Flush {
            let others = self.file.flushes().end(self.lane, result.is_ok());
            assert!(self.unsure.is_none(), "two flushes of one shard at a time");
            match result {
                Ok(()) => self.unsure = Some((tag, others)),
                Err(_) => self.done.push_back((tag, result)),
            }
        } else {
            self.done.push_back((tag, result));
        }
        let slot = &mut self.slots[usize::from(index)];
        let buffer = slot.bounce.take();
        self.free.push(index);
        let Some(Bounce::Long(buffer)) = buffer else { return };
        match self.waiting.pop_front() {
            Some(next) => {
                self.slots[usize::from(next)].bounce = Some(Bounce::Long(buffer));
                self.push(next);
            }
            None => self.bounce_free.push(buffer),
        }
    }

    /// Answers a flush that succeeded, once that is sure (see [`super::flushes`]).
    fn settle_flush(&mut self) {
        let flushes = self.file.flushes();
        let Some((tag, _)) = self.unsure.take_if(|(_, others)| flushes.over(others)) else {
            return;
        };
        let result = if flushes.failed() { Err(BaseError::Io) } else { Ok(()) };
        self.done.push_back((tag, result));
    }

    fn bounce_at(&self, index: u16, buffer: Bounce) -> *mut u8 {
        match buffer {
            Bounce::Small => {
                assert!(usize::from(index) < SLOTS_MAX);
                // SAFETY: inside the mapping of SLOTS_MAX buffers.
                unsafe { self.small.as_ptr().add(usize::from(index) * SMALL_BYTES) }
            }
            Bounce::Long(buffer) => {
                assert!(usize::from(buffer) < BOUNCE_COUNT);
                // SAFETY: inside the mapping of BOUNCE_COUNT buffers.
                unsafe { self.bounce.as_ptr().add(usize::from(buffer) * BOUNCE_BYTES) }
            }
        }
    }

    /// Copies the current piece between the slot's memory and its bounce buffer.
    fn copy_piece(&mut self, index: u16) {
        let slot = self.slots[usize::from(index)];
        let mut bounce = self.bounce_at(index, slot.bounce.expect("a slot with a bounce buffer"));
        let mut skip = slot.moved as usize;
        let mut left = piece_len(&slot) as usize;
        let first = usize::from(index) * SEGS_MAX;
        for iovec in &self.iovecs[first..first + usize::from(slot.segs)] {
            let from = skip.min(iovec.iov_len);
            skip -= from;
            let count = (iovec.iov_len - from).min(left);
            // SAFETY: `from + count` lies inside the segment, which the host keeps mapped; the
            // bounce buffer holds a piece, of which these are parts.
            unsafe {
                let memory = iovec.iov_base.cast::<u8>().add(from);
                match slot.op {
                    BaseOp::Read => std::ptr::copy_nonoverlapping(bounce, memory, count),
                    BaseOp::Write => std::ptr::copy_nonoverlapping(memory, bounce, count),
                    BaseOp::Flush => unreachable!("a flush has no memory"),
                }
                bounce = bounce.add(count);
            }
            left -= count;
        }
        assert_eq!(left, 0, "a piece ends inside its segments");
    }
}

impl Drop for UringBase {
    fn drop(&mut self) {
        // The kernel may still write into memory that is about to go.
        let busy = SLOTS_MAX - self.free.len();
        assert!(busy == 0 || std::thread::panicking(), "dropped with {busy} operations in flight");
    }
}

/// Bytes of the next piece; one that fits a slot's own bounce buffer is all there is.
fn piece_len(slot: &Slot) -> u32 {
    (slot.len - slot.moved).min(BOUNCE_BYTES as u32)
}

fn transfer(op: BaseOp, file: types::Fixed, addr: *mut u8, len: u32, at: u64) -> squeue::Entry {
    match op {
        BaseOp::Read => opcode::Read::new(file, addr, len).offset(at).build(),
        BaseOp::Write => opcode::Write::new(file, addr, len).offset(at).build(),
        BaseOp::Flush => unreachable!("a flush transfers nothing"),
    }
}

/// The best ring this kernel makes: newer flags are left out one after the other.
fn build_ring() -> io::Result<IoUring> {
    let entries = SLOTS_MAX as u32;
    let mut builder = IoUring::builder();
    builder.setup_r_disabled().setup_coop_taskrun().setup_taskrun_flag();
    builder.setup_single_issuer().setup_defer_taskrun();
    builder
        .build(entries)
        .or_else(|_| {
            let mut builder = IoUring::builder();
            builder.setup_r_disabled().setup_coop_taskrun().setup_taskrun_flag();
            builder.build(entries)
        })
        .or_else(|_| IoUring::builder().setup_r_disabled().build(entries))
}

fn base_error(errno: i32) -> BaseError {
    match errno {
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => BaseError::NoSpace,
        libc::ENODEV | libc::ENXIO | libc::ENOMEDIUM | libc::ESHUTDOWN => BaseError::Gone,
        _ => BaseError::Io,
    }
}

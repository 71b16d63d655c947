//! An I/O that somebody wants of one of our bdevs. It is answered exactly once: by
//! [`BdevIo::complete`], which consumes it, or, if it is dropped, as failed.
//!
//! ```text
//!  struct spdk_bdev_io │ ... │ driver_ctx: IoCtx { next, status } │
//!                                           list links and answers live here: nothing is allocated
//! ```
#![allow(unsafe_code)]
// UNSAFETY: an I/O and its memory are SPDK's, known by pointer.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

use lamina_bdev::{Seg, Status};

use crate::ffi;

/// The module's part of an I/O.
#[repr(C)]
struct IoCtx {
    /// The next one of an [`IoList`].
    next: *mut ffi::spdk_bdev_io,
    status: c_int,
    /// Who has the I/O: [`OURS`], [`ENGINES`] or [`BELOW`].
    place: u32,
    /// Of an operation that it is itself, with the engine.
    tag: u64,
}

const OURS: u32 = 0x4c61_6d01;
const ENGINES: u32 = 0x4c61_6d02;
const BELOW: u32 = 0x4c61_6d03;

/// Bytes of `driver_ctx` that the module asks for.
pub const CTX_BYTES: usize = size_of::<IoCtx>();
const _: () =
    assert!(std::mem::offset_of!(ffi::spdk_bdev_io, driver_ctx) % align_of::<IoCtx>() == 0);

/// What is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Disk to memory.
    Read,
    /// Memory to disk.
    Write,
    /// What was written becomes durable.
    Flush,
    /// The range is not needed any more.
    Unmap,
    /// The range reads as zeros.
    WriteZeroes,
    /// What is under way comes to an end first.
    Reset,
    /// Another I/O is not wanted any more.
    Abort,
}

/// How an I/O ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// As the engine says.
    Engine(Status),
    /// It was aborted before it began.
    Aborted,
    /// It failed.
    Failed,
}

const ANSWER_ABORTED: c_int = -1;
const ANSWER_FAILED: c_int = -2;
/// NVMe's "generic command status" and, in it, "capacity exceeded".
const SCT_GENERIC: c_int = 0;
const SC_CAPACITY_EXCEEDED: c_int = 0x81;

/// An I/O to be answered.
pub struct BdevIo(NonNull<ffi::spdk_bdev_io>);

// SAFETY: SPDK lets a module work on an I/O on any thread; only its answer has to be given on the
// I/O's own, which `complete` does.
unsafe impl Send for BdevIo {}

impl BdevIo {
    /// Takes what SPDK hands to a module.
    ///
    /// # Safety
    /// `raw` is an I/O on one of our bdevs, submitted to us and not answered.
    pub(super) unsafe fn new(raw: *mut ffi::spdk_bdev_io) -> BdevIo {
        let io = BdevIo(NonNull::new(raw).expect("SPDK submits an I/O"));
        let ctx = IoCtx { next: std::ptr::null_mut(), status: 0, place: OURS, tag: 0 };
        // SAFETY: SPDK keeps `CTX_BYTES` behind each I/O for us, aligned for any type.
        unsafe { io.ctx().write(ctx) };
        io
    }

    /// Not as a reference: SPDK links it into lists meanwhile, on its own thread.
    fn raw(&self) -> *const ffi::spdk_bdev_io {
        self.0.as_ptr()
    }

    fn ctx(&self) -> *mut IoCtx {
        // SAFETY: `driver_ctx` is the I/O's last member.
        unsafe { (&raw mut (*self.0.as_ptr()).driver_ctx).cast() }
    }

    /// What is wanted; `None`: nothing that we know.
    pub fn kind(&self) -> Option<Kind> {
        // SAFETY: it lives until it is answered, which takes it from us.
        let kind = unsafe { (*self.raw()).type_ };
        Some(match u32::from(kind) {
            ffi::SPDK_BDEV_IO_TYPE_READ => Kind::Read,
            ffi::SPDK_BDEV_IO_TYPE_WRITE => Kind::Write,
            ffi::SPDK_BDEV_IO_TYPE_FLUSH => Kind::Flush,
            ffi::SPDK_BDEV_IO_TYPE_UNMAP => Kind::Unmap,
            ffi::SPDK_BDEV_IO_TYPE_WRITE_ZEROES => Kind::WriteZeroes,
            ffi::SPDK_BDEV_IO_TYPE_RESET => Kind::Reset,
            ffi::SPDK_BDEV_IO_TYPE_ABORT => Kind::Abort,
            _ => return None,
        })
    }

    fn block_bytes(&self) -> u64 {
        // SAFETY: the bdev of an I/O lives as long as the I/O.
        u64::from(unsafe { (*(*self.raw()).bdev).blocklen })
    }

    /// First byte. For reads, writes, unmaps, write-zeroes and flushes.
    pub fn offset(&self) -> u64 {
        // SAFETY: those kinds use this part of the union.
        unsafe { (*self.raw()).u.bdev.offset_blocks }.saturating_mul(self.block_bytes())
    }

    /// Bytes. As for [`BdevIo::offset`].
    pub fn bytes(&self) -> u64 {
        // SAFETY: as in `offset`.
        unsafe { (*self.raw()).u.bdev.num_blocks }.saturating_mul(self.block_bytes())
    }

    /// Lists the memory of a read or write.
    pub fn segs(&self, out: &mut Vec<Seg>) {
        out.clear();
        // SAFETY: as in `offset`; the list is SPDK's, of that length, and lives with the I/O.
        let list = unsafe {
            let bdev = &(*self.raw()).u.bdev;
            if bdev.iovcnt <= 0 || bdev.iovs.is_null() {
                return;
            }
            std::slice::from_raw_parts(bdev.iovs, bdev.iovcnt as usize)
        };
        out.extend(list.iter().map(|iov| Seg { addr: iov.iov_base.addr(), len: iov.iov_len }));
    }

    /// True for a read that came without memory.
    pub(super) fn wants_memory(&self) -> bool {
        // SAFETY: as in `segs`.
        self.kind() == Some(Kind::Read)
            && unsafe {
                let bdev = &(*self.raw()).u.bdev;
                bdev.iovcnt <= 0 || bdev.iovs.is_null() || (*bdev.iovs).iov_base.is_null()
            }
    }

    /// For an abort: whether `other` is what it means.
    pub fn aborts(&self, other: &BdevIo) -> bool {
        // SAFETY: an abort uses this part of the union.
        self.kind() == Some(Kind::Abort)
            && unsafe { (*self.raw()).u.abort.bio_to_abort } == other.0.as_ptr()
    }

    /// The context of the bdev that it is for.
    pub(super) fn bdev_ctxt(&self) -> *mut c_void {
        // SAFETY: as in `block_bytes`.
        unsafe { (*(*self.raw()).bdev).ctxt }
    }

    /// Hands it over as a number, until [`BdevIo::from_engine`].
    pub fn into_engine(self) -> u64 {
        // SAFETY: ours, see `new`.
        unsafe { (*self.ctx()).place = ENGINES };
        self.into_raw().expose_provenance() as u64
    }

    /// What [`set_tag`] has noted.
    pub fn tag(&self) -> u64 {
        // SAFETY: ours, see `new`.
        unsafe { (*self.ctx()).tag }
    }

    /// Notes how its operation went, for as long as it is in an [`IoList`].
    pub fn set_good(&self, good: bool) {
        // SAFETY: ours, see `new`.
        unsafe { (*self.ctx()).status = c_int::from(good) };
    }

    /// What [`BdevIo::set_good`] has noted.
    pub fn good(&self) -> bool {
        // SAFETY: ours, see `new`.
        unsafe { (*self.ctx()).status != 0 }
    }

    /// Hands it to the bdev below, as what its callback gets back.
    pub(super) fn into_below(self) -> *mut ffi::spdk_bdev_io {
        // SAFETY: ours, see `new`.
        unsafe { (*self.ctx()).place = BELOW };
        self.into_raw()
    }

    /// Takes it back from there.
    ///
    /// # Safety
    /// `raw` is what [`BdevIo::into_below`] gave, or was.
    ///
    /// # Panics
    /// If it is not there.
    pub(super) unsafe fn from_below(raw: *mut ffi::spdk_bdev_io) -> BdevIo {
        let io = BdevIo(NonNull::new(raw).expect("given by into_below"));
        // SAFETY: by contract; I/O of SPDK's pool stays mapped, so a breach is found here.
        unsafe {
            assert!((*io.ctx()).place == BELOW, "an I/O came back that was not below");
            (*io.ctx()).place = OURS;
        }
        io
    }

    /// Its memory, as SPDK's list.
    pub(super) fn iovs(&self) -> (*mut ffi::iovec, c_int) {
        // SAFETY: reads and writes use this part of the union.
        let bdev = unsafe { &(*self.raw()).u.bdev };
        (bdev.iovs, bdev.iovcnt)
    }

    /// Blocks of its bdev. As for [`BdevIo::offset`].
    pub fn blocks(&self) -> u64 {
        // SAFETY: as in `offset`.
        unsafe { (*self.raw()).u.bdev.num_blocks }
    }

    /// Takes it back from the engine.
    ///
    /// # Panics
    /// If the engine does not have it.
    pub fn from_engine(number: u64) -> BdevIo {
        let raw = std::ptr::with_exposed_provenance_mut(number as usize);
        let io = BdevIo(NonNull::new(raw).expect("numbers of I/O are addresses"));
        // SAFETY: the engine gives back each number that it was given, once, and no other; I/O of
        // SPDK's pool stays mapped, so a breach is found here.
        unsafe {
            assert!((*io.ctx()).place == ENGINES, "an I/O came back that was not given");
            (*io.ctx()).place = OURS;
        }
        io
    }

    pub(super) fn into_raw(self) -> *mut ffi::spdk_bdev_io {
        let raw = self.0.as_ptr();
        std::mem::forget(self);
        raw
    }

    /// Takes back what `into_raw` gave.
    ///
    /// # Safety
    /// It was given by `into_raw`, and taken back by nobody else.
    pub(super) unsafe fn from_raw(raw: *mut ffi::spdk_bdev_io) -> BdevIo {
        BdevIo(NonNull::new(raw).expect("given by into_raw"))
    }

    /// Answers it, on its own thread.
    pub fn complete(self, answer: Answer) {
        let status = match answer {
            Answer::Engine(status) => status as c_int,
            Answer::Aborted => ANSWER_ABORTED,
            Answer::Failed => ANSWER_FAILED,
        };
        let raw = self.into_raw();
        // SAFETY: `raw` is ours and not answered; its thread lives while it has I/O under way.
        unsafe {
            let thread = ffi::spdk_bdev_io_get_thread(raw);
            if thread == ffi::spdk_get_thread() {
                finish(raw, status);
                return;
            }
            (*BdevIo(NonNull::new_unchecked(raw)).leak().ctx()).status = status;
            let sent = ffi::spdk_thread_send_msg(thread, Some(finish_there), raw.cast());
            assert_eq!(sent, 0, "SPDK takes no more messages");
        }
    }

    /// The same, never dropped.
    fn leak(self) -> std::mem::ManuallyDrop<BdevIo> {
        std::mem::ManuallyDrop::new(self)
    }
}

impl Drop for BdevIo {
    fn drop(&mut self) {
        // SAFETY: a second handle to the same I/O, of which the first is just going.
        unsafe { BdevIo::from_raw(self.0.as_ptr()) }.complete(Answer::Failed);
    }
}

unsafe extern "C" fn finish_there(raw: *mut c_void) {
    let raw = raw.cast::<ffi::spdk_bdev_io>();
    // SAFETY: sent by `complete`, which gave it up.
    unsafe {
        let status = (*BdevIo::from_raw(raw).leak().ctx()).status;
        finish(raw, status);
    }
}

/// # Safety
/// On the I/O's own thread, once.
unsafe fn finish(raw: *mut ffi::spdk_bdev_io, status: c_int) {
    const OK: c_int = Status::Ok as c_int;
    const NO_SPACE: c_int = Status::NoSpace as c_int;
    // SAFETY: by contract.
    unsafe {
        match status {
            OK => ffi::spdk_bdev_io_complete(raw, ffi::SPDK_BDEV_IO_STATUS_SUCCESS),
            NO_SPACE => {
                ffi::spdk_bdev_io_complete_nvme_status(raw, 0, SCT_GENERIC, SC_CAPACITY_EXCEEDED)
            }
            ANSWER_ABORTED => ffi::spdk_bdev_io_complete(raw, ffi::SPDK_BDEV_IO_STATUS_ABORTED),
            _ => ffi::spdk_bdev_io_complete(raw, ffi::SPDK_BDEV_IO_STATUS_FAILED),
        }
    }
}

/// Notes the tag of the operation that an I/O with the engine is.
///
/// # Panics
/// If the engine does not have it.
pub fn set_tag(number: u64, tag: u64) {
    let io = BdevIo::from_engine(number);
    // SAFETY: ours, see `BdevIo::new`.
    unsafe { (*io.ctx()).tag = tag };
    io.into_engine();
}

/// What [`set_tag`] has noted.
///
/// # Panics
/// If the engine does not have it.
pub fn tag_of(number: u64) -> u64 {
    let io = BdevIo::from_engine(number);
    let tag = io.tag();
    io.into_engine();
    tag
}

/// I/O that waits, in order; linked through its own contexts.
#[derive(Default)]
pub struct IoList {
    first: Option<NonNull<ffi::spdk_bdev_io>>,
    last: Option<NonNull<ffi::spdk_bdev_io>>,
}

// SAFETY: it owns the I/O in it, which may go between threads.
unsafe impl Send for IoList {}

impl IoList {
    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Behind all others.
    pub fn push_back(&mut self, io: BdevIo) {
        let io = io.leak();
        // SAFETY: the list owns all of its members, and their contexts are ours.
        unsafe {
            (*io.ctx()).next = std::ptr::null_mut();
            match self.last {
                Some(last) => (*BdevIo(last).leak().ctx()).next = io.0.as_ptr(),
                None => self.first = Some(io.0),
            }
        }
        self.last = Some(io.0);
    }

    /// Before all others.
    pub fn push_front(&mut self, io: BdevIo) {
        let io = io.leak();
        let next = self.first.map_or(std::ptr::null_mut(), NonNull::as_ptr);
        // SAFETY: as in `push_back`.
        unsafe { (*io.ctx()).next = next };
        self.first = Some(io.0);
        self.last = self.last.or(Some(io.0));
    }

    /// The first one.
    pub fn pop_front(&mut self) -> Option<BdevIo> {
        let io = BdevIo(self.first?);
        // SAFETY: as in `push_back`.
        self.first = NonNull::new(unsafe { (*io.ctx()).next });
        if self.first.is_none() {
            self.last = None;
        }
        Some(io)
    }

    /// Takes out the first one for which `wanted` holds.
    pub fn take(&mut self, mut wanted: impl FnMut(&BdevIo) -> bool) -> Option<BdevIo> {
        let mut kept = IoList::default();
        let mut found = None;
        while let Some(io) = self.pop_front() {
            if found.is_none() && wanted(&io) {
                found = Some(io);
            } else {
                kept.push_back(io);
            }
        }
        std::mem::swap(self, &mut kept);
        found
    }
}

impl Drop for IoList {
    fn drop(&mut self) {
        while let Some(io) = self.pop_front() {
            drop(io);
        }
    }
}

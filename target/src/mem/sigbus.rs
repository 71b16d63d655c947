//! Survives shared memory that its owner shrinks under us.
//!
//! A front-end maps its guest's memory from a file it still owns. If it truncates that file, the
//! next touch of a page beyond the new end raises SIGBUS, which would kill the daemon and every
//! other disk with it. Mappings of foreign memory are therefore registered here; the handler puts
//! anonymous pages in place of the whole mapping that was hit and marks it, and the export that
//! owns it stops its queues with a reason.
//!
//! ```text
//!  touch ──SIGBUS──► handler ── address in a watched mapping? ── yes ─► mmap over it, mark, return
//!                                                             └─ no ──► previous action, return
//! ```
//!
//! The table is a fixed array of atomics: a signal handler may neither lock nor allocate.
#![allow(unsafe_code)]
// UNSAFETY: installing a signal handler and mapping at a fixed address have no safe interface.

use std::mem::MaybeUninit;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// Most foreign mappings that are watched at once.
const WATCHES_MAX: usize = 1 << 16;
/// Marks an entry that is being filled in: no mapping begins at address 1.
const RESERVED: usize = 1;

struct Entry {
    start: AtomicUsize,
    end: AtomicUsize,
    hit: AtomicBool,
}

static ENTRIES: [Entry; WATCHES_MAX] = [const {
    Entry { start: AtomicUsize::new(0), end: AtomicUsize::new(0), hit: AtomicBool::new(false) }
}; WATCHES_MAX];
/// Entries at or beyond this were never used: bounds the handler's search.
static HIGH_WATER: AtomicUsize = AtomicUsize::new(0);
/// What was installed before us; set once, before the handler can run.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(std::ptr::null_mut());
static INSTALL: Once = Once::new();

/// Keeps one mapping watched until dropped. Drop it before the mapping is unmapped.
#[derive(Debug)]
pub(super) struct Watch {
    index: usize,
}

impl Watch {
    /// Watches `len` bytes at `start`; `None` if the table is full.
    pub(super) fn new(start: usize, len: usize) -> Option<Watch> {
        assert!(start > RESERVED && len > 0);
        INSTALL.call_once(install);
        for (index, entry) in ENTRIES.iter().enumerate() {
            let free =
                entry.start.compare_exchange(0, RESERVED, Ordering::Acquire, Ordering::Relaxed);
            if free.is_ok() {
                entry.hit.store(false, Ordering::Relaxed);
                entry.end.store(start + len, Ordering::Relaxed);
                entry.start.store(start, Ordering::Release);
                HIGH_WATER.fetch_max(index + 1, Ordering::Release);
                return Some(Watch { index });
            }
        }
        None
    }

    /// True once the mapping has been touched where its file had no page any more.
    pub(super) fn hit(&self) -> bool {
        ENTRIES[self.index].hit.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        ENTRIES[self.index].start.store(0, Ordering::Release);
    }
}

fn install() {
    let mut previous = Box::new(MaybeUninit::<libc::sigaction>::zeroed());
    // SAFETY: `sigaction` is a plain C struct for which all zeroes is a valid value; both
    // pointers are valid for the calls. The handler keeps to async-signal-safe operations.
    unsafe {
        libc::sigaction(libc::SIGBUS, std::ptr::null(), previous.as_mut_ptr());
        PREVIOUS.store(Box::into_raw(previous).cast(), Ordering::Release);
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        libc::sigemptyset(&mut action.sa_mask);
        let result = libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
        assert_eq!(result, 0, "sigaction(SIGBUS) cannot fail with valid arguments");
    }
}

extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid siginfo for a handler installed with SA_SIGINFO; `errno`
    // is this thread's own.
    let (address, saved_errno) = unsafe { ((*info).si_addr() as usize, *libc::__errno_location()) };
    if !replace_mapping(address) {
        // Not ours: give the signal back to whoever had it; returning raises it again.
        // SAFETY: PREVIOUS points to the action saved by `install`, which lives for ever.
        unsafe {
            libc::sigaction(signal, PREVIOUS.load(Ordering::Acquire), std::ptr::null_mut());
        }
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = saved_errno };
}

/// Puts anonymous memory in place of the watched mapping that holds `address`.
fn replace_mapping(address: usize) -> bool {
    let used = HIGH_WATER.load(Ordering::Acquire);
    for entry in &ENTRIES[..used] {
        let start = entry.start.load(Ordering::Acquire);
        let end = entry.end.load(Ordering::Relaxed);
        if start <= RESERVED || address < start || address >= end {
            continue;
        }
        // SAFETY: start..end is a mapping that `Mapping` owns and does not unmap while it is
        // watched; replacing its pages changes contents only, and nobody holds a reference in.
        let result = unsafe {
            libc::mmap(
                start as *mut libc::c_void,
                end - start,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if result == libc::MAP_FAILED {
            return false;
        }
        entry.hit.store(true, Ordering::Relaxed);
        return true;
    }
    false
}

//! The program's allocator: the system's, and while it is armed a witness of every allocation.
// UNSAFETY: `GlobalAlloc` is an unsafe trait; this passes its calls on unchanged.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Most allocations that are remembered with their stack; beyond, they are only counted.
const TRACES_MAX: u64 = 4096;

static ARMED: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);
static TRACES: Mutex<Vec<Backtrace>> = Mutex::new(Vec::new());

thread_local! {
    /// Set while a stack is taken, which allocates.
    static TRACING: Cell<bool> = const { Cell::new(false) };
}

/// Counts what is allocated (also by growing) between [`arm`] and [`disarm`].
pub struct Counting;

/// What was allocated while armed.
pub struct Witness {
    /// Allocations and growths.
    pub count: u64,
    /// Bytes asked for.
    pub bytes: u64,
    /// Where from, the first ones.
    pub traces: Vec<Backtrace>,
}

/// Starts counting, on all threads.
pub fn arm() {
    COUNT.store(0, Ordering::Relaxed);
    BYTES.store(0, Ordering::Relaxed);
    TRACES.lock().unwrap_or_else(PoisonError::into_inner).clear();
    ARMED.store(true, Ordering::SeqCst);
}

/// Ends counting.
pub fn disarm() -> Witness {
    ARMED.store(false, Ordering::SeqCst);
    let mut traces = TRACES.lock().unwrap_or_else(PoisonError::into_inner);
    Witness {
        count: COUNT.load(Ordering::Relaxed),
        bytes: BYTES.load(Ordering::Relaxed),
        traces: std::mem::take(&mut traces),
    }
}

fn note(bytes: usize) {
    if !ARMED.load(Ordering::Relaxed) || TRACING.get() {
        return;
    }
    BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    if COUNT.fetch_add(1, Ordering::Relaxed) < TRACES_MAX {
        TRACING.set(true);
        let trace = Backtrace::force_capture();
        TRACES.lock().unwrap_or_else(PoisonError::into_inner).push(trace);
        TRACING.set(false);
    }
}

// SAFETY: every call goes to the system's allocator with the caller's own promises.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are System's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_happens_while_armed_counts() {
        let bytes = |size| {
            // SAFETY: a lawful layout; the memory is freed with the same one.
            unsafe {
                let layout = Layout::from_size_align_unchecked(size, 8);
                let at = Counting.alloc(layout);
                assert!(!at.is_null());
                Counting.dealloc(at, layout);
            }
        };
        bytes(100);
        arm();
        bytes(1000);
        bytes(24);
        let seen = disarm();
        bytes(100);
        assert_eq!((seen.count, seen.bytes, seen.traces.len()), (2, 1024, 2));
    }
}

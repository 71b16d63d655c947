//! Threads of SPDK: messages to them, pollers on them.
#![allow(unsafe_code)]
// UNSAFETY: threads and pollers are SPDK's, known by pointer.

use std::ffi::{CString, c_int, c_void};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::ffi;

/// A thread of SPDK that is known to live: the application's, one of ours, or one that holds a
/// poller or channel of ours (SPDK lets no thread go that does).
pub struct Thread(NonNull<ffi::spdk_thread>);

// SAFETY: SPDK takes messages for a thread from any other; nothing else is done by this handle
// from outside.
unsafe impl Send for Thread {}
// SAFETY: as above.
unsafe impl Sync for Thread {}

impl Thread {
    /// The thread that this runs on.
    pub fn current() -> Option<Thread> {
        // SAFETY: may be called anywhere; null outside SPDK's threads.
        NonNull::new(unsafe { ffi::spdk_get_thread() }).map(Thread)
    }

    /// The application's first thread, on which bdevs come and go.
    pub fn app() -> Option<Thread> {
        // SAFETY: as in `current`.
        NonNull::new(unsafe { ffi::spdk_thread_get_app_thread() }).map(Thread)
    }

    /// A new thread that stays on `core`.
    pub fn spawn(name: &str, core: u32) -> Option<Thread> {
        let name = CString::new(name).ok()?;
        // SAFETY: a set of cores is plain bytes; SPDK copies both arguments.
        let thread = unsafe {
            let mut cores: ffi::spdk_cpuset = std::mem::zeroed();
            ffi::spdk_cpuset_zero(&mut cores);
            ffi::spdk_cpuset_set_cpu(&mut cores, core, true);
            ffi::spdk_thread_create(name.as_ptr(), &cores)
        };
        NonNull::new(thread).map(Thread)
    }

    /// Another handle to it, where whoever has it sees to it that the thread lives.
    pub fn again(&self) -> Thread {
        Thread(self.0)
    }

    /// True if this runs on it.
    pub fn is_current(&self) -> bool {
        // SAFETY: may be called anywhere.
        unsafe { ffi::spdk_get_thread() == self.0.as_ptr() }
    }

    /// Its name.
    pub fn name(&self) -> String {
        // SAFETY: the thread lives (see the type), and its name with it.
        unsafe { text(ffi::spdk_thread_get_name(self.0.as_ptr())) }
    }

    /// Its number, never used twice.
    pub fn id(&self) -> u64 {
        // SAFETY: the thread lives.
        unsafe { ffi::spdk_thread_get_id(self.0.as_ptr()) }
    }

    /// Runs `work` on it, soon.
    ///
    /// # Panics
    /// If SPDK has no memory for messages left: it could not go on either.
    pub fn send(&self, work: impl FnOnce() + Send + 'static) {
        let work: Box<Box<dyn FnOnce() + Send>> = Box::new(Box::new(work));
        // SAFETY: the thread lives; `run` takes the box back exactly once.
        let sent = unsafe {
            ffi::spdk_thread_send_msg(self.0.as_ptr(), Some(run), Box::into_raw(work).cast())
        };
        assert_eq!(sent, 0, "SPDK takes no more messages");
    }

    /// Ends a thread of ours, once what it holds has been given back.
    pub fn end(self) {
        self.send(|| {
            // SAFETY: a thread may end itself.
            unsafe { ffi::spdk_thread_exit(ffi::spdk_get_thread()) };
        });
    }

    pub(super) fn raw(&self) -> *mut ffi::spdk_thread {
        self.0.as_ptr()
    }
}

/// The cores that SPDK runs on.
pub fn cores() -> Vec<u32> {
    let mut cores = Vec::new();
    // SAFETY: plain questions to the environment, which is up before any module is.
    unsafe {
        let mut core = ffi::spdk_env_get_first_core();
        while core != u32::MAX {
            cores.push(core);
            core = ffi::spdk_env_get_next_core(core);
        }
    }
    cores
}

/// Lets the calling thread, which is none of SPDK's, run on any core.
pub fn run_anywhere() {
    // SAFETY: changes the calling thread's own mask of cores.
    unsafe { ffi::spdk_unaffinitize_thread() };
}

/// C text as SPDK gives it; empty for none.
///
/// # Safety
/// `text` is null or ends with a zero.
pub(super) unsafe fn text(text: *const std::ffi::c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: by contract.
    unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

unsafe extern "C" fn run(work: *mut c_void) {
    // SAFETY: made by `Thread::send`, run once.
    let work = unsafe { Box::from_raw(work.cast::<Box<dyn FnOnce() + Send>>()) };
    work();
}

/// A thread that changes.
pub struct AtomicThread(AtomicPtr<ffi::spdk_thread>);

impl AtomicThread {
    /// Begins with `thread`.
    pub fn new(thread: &Thread) -> AtomicThread {
        AtomicThread(AtomicPtr::new(thread.raw()))
    }

    /// True if it is the one that this runs on.
    pub fn is_current(&self) -> bool {
        // SAFETY: may be called anywhere.
        unsafe { ffi::spdk_get_thread() == self.0.load(Ordering::Acquire) }
    }

    /// The thread now. It lives as long as it is the one named here.
    pub fn get(&self) -> Thread {
        Thread(NonNull::new(self.0.load(Ordering::Acquire)).expect("made of a thread"))
    }

    /// Another one from now on; whatever was done before is seen by whoever sees this.
    pub fn set(&self, thread: &Thread) {
        self.0.store(thread.raw(), Ordering::Release);
    }
}

/// What a poller runs.
pub trait Polled: Send + Sync + 'static {
    /// One round. True if there was anything to do.
    fn poll(&self) -> bool;
}

/// A poller on one thread; gone when dropped, wherever that is.
pub struct Poller {
    raw: NonNull<ffi::spdk_poller>,
    thread: Thread,
    /// Gives the poller's share in its work back.
    release: fn(*mut c_void),
    work: *mut c_void,
}

// SAFETY: only dropped elsewhere, which sends a message to its own thread.
unsafe impl Send for Poller {}

impl Poller {
    /// Polls `work` on the calling thread as often as it can. `None`: no memory, or no thread of
    /// SPDK.
    pub fn register<T: Polled>(work: Arc<T>) -> Option<Poller> {
        let thread = Thread::current()?;
        let work = Arc::into_raw(work).cast_mut().cast::<c_void>();
        // SAFETY: `work` is a share in a `T` that is given back after the poller is gone.
        let raw = unsafe {
            ffi::spdk_poller_register_named(Some(poll::<T>), work, 0, c"lamina".as_ptr())
        };
        let Some(raw) = NonNull::new(raw) else {
            release::<T>(work);
            return None;
        };
        Some(Poller { raw, thread, release: release::<T>, work })
    }
}

unsafe extern "C" fn poll<T: Polled>(work: *mut c_void) -> c_int {
    // SAFETY: the poller's share keeps it (see `Poller::register` and `Drop`).
    c_int::from(unsafe { &*work.cast::<T>() }.poll())
}

fn release<T>(work: *mut c_void) {
    // SAFETY: the share that `register` took, given back once.
    drop(unsafe { Arc::from_raw(work.cast::<T>()) });
}

impl Drop for Poller {
    fn drop(&mut self) {
        struct Last(NonNull<ffi::spdk_poller>, fn(*mut c_void), *mut c_void);
        // SAFETY: goes to the poller's own thread, as SPDK wants it.
        unsafe impl Send for Last {}
        let last = Last(self.raw, self.release, self.work);
        let here = self.thread.is_current();
        let unregister = move || {
            let last = last;
            let mut raw = last.0.as_ptr();
            // SAFETY: on the poller's own thread; allowed from within the poller itself.
            unsafe { ffi::spdk_poller_unregister(&mut raw) };
            last
        };
        if here {
            let last = unregister();
            // Later: this may be the poller's own round.
            self.thread.send(move || {
                let last = last;
                (last.1)(last.2);
            });
        } else {
            self.thread.send(move || {
                let last = unregister();
                (last.1)(last.2);
            });
        }
    }
}

//! Data that one thread at a time may touch: the one that its owner names.
#![allow(unsafe_code)]
// UNSAFETY: shared between threads by the promise that only the owner looks, which is checked.

use std::cell::RefCell;

use super::thread::{AtomicThread, Thread};

/// A value that belongs to a thread, and goes from one to another.
pub struct Owned<T> {
    owner: AtomicThread,
    value: RefCell<T>,
}

// SAFETY: `value` is touched only by the owner (checked by `with`), and the change of owners
// publishes what the old one did.
unsafe impl<T: Send> Sync for Owned<T> {}

impl<T> Owned<T> {
    /// Belongs to `owner`.
    pub fn new(owner: &Thread, value: T) -> Owned<T> {
        Owned { owner: AtomicThread::new(owner), value: RefCell::new(value) }
    }

    /// True on the owner.
    pub fn is_here(&self) -> bool {
        self.owner.is_current()
    }

    /// The owner now.
    pub fn owner(&self) -> Thread {
        self.owner.get()
    }

    /// Runs `work` on the value.
    ///
    /// # Panics
    /// Anywhere but on the owner, and if `work` comes back here.
    pub fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        assert!(self.is_here(), "touched on a thread that does not own it");
        work(&mut self.value.borrow_mut())
    }

    /// The same, `None` if `work` would come back here.
    ///
    /// # Panics
    /// Anywhere but on the owner.
    pub fn try_with<R>(&self, work: impl FnOnce(&mut T) -> R) -> Option<R> {
        assert!(self.is_here(), "touched on a thread that does not own it");
        self.value.try_borrow_mut().ok().map(|mut value| work(&mut value))
    }

    /// Gives it to another thread.
    ///
    /// # Panics
    /// Anywhere but on the owner, and while it is in use.
    pub fn give(&self, to: &Thread) {
        assert!(self.is_here() && self.value.try_borrow_mut().is_ok(), "given away while in use");
        self.owner.set(to);
    }
}

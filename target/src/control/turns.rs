//! Who may change what: one at a time in each store, and one at a time in the daemon as a whole.
//!
//! ```text
//!  Control::change_in(store)   its disks, snapshots, exports, attachments. Its base may hang, and
//!    │                         with it whoever holds this: nobody outside of the store waits
//!    ▼ before
//!  Control::change()           which stores are open; subsystems, listeners and hosts
//! ```
//!
//! Whoever needs both takes them in this order, and holds the second one shortly.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use lamina_bdev::Error;

use super::names::{self, Found};
use super::stores::Store;
use super::{Control, unpoisoned};

/// Whether somebody changes a store.
#[derive(Default)]
pub(super) struct Turn {
    taken: Mutex<bool>,
    over: Condvar,
}

impl Turn {
    fn take(&self) {
        let taken = unpoisoned(self.taken.lock());
        let mut taken = unpoisoned(self.over.wait_while(taken, |taken| *taken));
        *taken = true;
    }

    fn give(&self) {
        *unpoisoned(self.taken.lock()) = false;
        self.over.notify_one();
    }
}

/// The right to change something in a store, until dropped.
pub(super) struct Changing(Arc<Store>);

impl Drop for Changing {
    fn drop(&mut self) {
        self.0.turn.give();
    }
}

impl Control {
    /// The right to change something of the daemon, until dropped.
    ///
    /// # Errors
    /// `Busy` when the daemon is stopping.
    pub(super) fn change(&self) -> Result<MutexGuard<'_, ()>, Error> {
        let guard = self.lock_change();
        self.refuse_when_stopping()?;
        Ok(guard)
    }

    pub(super) fn lock_change(&self) -> MutexGuard<'_, ()> {
        unpoisoned(self.changing.lock())
    }

    /// The right to change something in a store; waits for whoever has it.
    ///
    /// # Errors
    /// `Busy` when the daemon is stopping.
    pub(super) fn change_in(&self, store: &Arc<Store>) -> Result<Changing, Error> {
        let changing = self.lock_store(store);
        self.refuse_when_stopping()?;
        Ok(changing)
    }

    pub(super) fn lock_store(&self, store: &Arc<Store>) -> Changing {
        store.turn.take();
        Changing(store.clone())
    }

    /// What `text` names, and the right to change its store.
    ///
    /// # Errors
    /// As [`Control::find`]; `Busy` when the daemon is stopping.
    pub(super) fn change_of(&self, text: &str) -> Result<(Changing, Found), Error> {
        let store = self.find(text)?.store;
        let changing = self.change_in(&store)?;
        // Only from here on nobody else renames or deletes it.
        let found = names::find(std::slice::from_ref(&store), text)?;
        Ok((changing, found))
    }
}

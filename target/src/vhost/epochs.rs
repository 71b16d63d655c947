//! Memory tables of one export: the current one, and older ones that requests in flight still use.

use std::sync::Arc;

use super::message::Reply;
use crate::mem::guest::GuestMemory;

/// Tables kept without allocating. A front-end waits for one change before it makes the next, so
/// there are two at a time.
const EPOCHS_PREALLOCATED: usize = 8;

#[derive(Debug)]
struct Epoch {
    number: u32,
    memory: Arc<GuestMemory>,
    in_flight: u32,
    /// To be told when the last request on this table is done.
    done: Option<Reply<()>>,
}

/// The tables, oldest first; the last one is current.
#[derive(Debug)]
pub(super) struct Epochs {
    entries: Vec<Epoch>,
}

impl Epochs {
    pub(super) fn new() -> Epochs {
        let mut entries = Vec::with_capacity(EPOCHS_PREALLOCATED);
        let memory = Arc::new(GuestMemory::default());
        entries.push(Epoch { number: 0, memory, in_flight: 0, done: None });
        Epochs { entries }
    }

    fn last(&self) -> &Epoch {
        self.entries.last().expect("there is always a current table")
    }

    /// The table new requests use.
    pub(super) fn current(&self) -> &GuestMemory {
        &self.last().memory
    }

    /// Makes `memory` current; `done` hears when nothing uses what was current any more.
    pub(super) fn replace(&mut self, memory: Arc<GuestMemory>, done: Reply<()>) {
        let number = self.last().number.wrapping_add(1);
        let old = self.entries.last_mut().expect("there is always a current table");
        old.done = Some(done);
        self.entries.push(Epoch { number, memory, in_flight: 0, done: None });
        self.sweep();
    }

    /// Counts a request on the current table; returns the table's number.
    pub(super) fn enter(&mut self) -> u32 {
        let current = self.entries.last_mut().expect("there is always a current table");
        current.in_flight += 1;
        current.number
    }

    /// Puts a status byte where the request wanted it and counts the request out.
    pub(super) fn leave(&mut self, number: u32, hint: &mut usize, addr: u64, status: u8) {
        let epoch = self
            .entries
            .iter_mut()
            .rev()
            .find(|epoch| epoch.number == number)
            .expect("a table with requests in flight is kept");
        let written = epoch.memory.write_u8(hint, addr, status);
        assert!(written, "the address was checked against this very table");
        epoch.in_flight -= 1;
        if epoch.in_flight == 0 && epoch.done.is_some() {
            self.sweep();
        }
    }

    /// Lets go of old tables nobody uses. The session holds them until it hears of it, so nothing
    /// is unmapped here.
    fn sweep(&mut self) {
        let mut index = 0;
        while let Some(epoch) = self.entries.get_mut(index) {
            let done = if epoch.in_flight == 0 { epoch.done.take() } else { None };
            match done {
                None => index += 1,
                Some(done) => {
                    drop(self.entries.remove(index));
                    done.send(());
                }
            }
        }
    }
}

//! `lamina_check`: checking a store while it is served.
//!
//! ```text
//!  lamina_check ─► thread: Hold on every shard ─► read past the engines ─► Unhold ─► report
//!  lamina_check_status ◄── what the thread last said
//! ```
//!
//! The thread reads the base by its own calls: no reactor waits for it, and no other RPC does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use lamina_bdev::check::{CheckOptions, CheckProgress, ReadBlocks, check};
use lamina_bdev::{BLOCK_SIZE, Command, Error, ErrorKind, Reply};
use lamina_rpc::methods::{CheckReport, CheckStatus};

use super::device::Device;
use super::stores::Store;
use super::{Control, unpoisoned};
use crate::check::report;
use crate::log;

/// The check of one store: at most one at a time; the last one's outcome is kept.
#[derive(Default)]
pub struct CheckJob {
    status: Arc<Mutex<CheckStatus>>,
    cancel: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct CheckedDevice<'a>(&'a Device);

impl ReadBlocks for CheckedDevice<'_> {
    fn read(&mut self, block: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.0.read_at(buf, block * BLOCK_SIZE as u64)
    }
}

impl Control {
    /// Starts checking a store.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` (which store?), `Busy` (being checked already), `Io`.
    pub fn start_check(&self, store: Option<&str>) -> Result<(), Error> {
        let store = self.one_store(store)?;
        // So that it is not being closed.
        let _change = self.change_in(&store)?;
        let mut job = unpoisoned(store.check.lock());
        if job.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            let why = format!("the store {} is being checked already", store.name);
            return Err(Error::new(ErrorKind::Busy, why));
        }
        *job = CheckJob::default();
        unpoisoned(job.status.lock()).state = "running".to_string();
        let (status, cancel) = (job.status.clone(), job.cancel.clone());
        let checked = Arc::downgrade(&store);
        let thread = std::thread::Builder::new().name("check".to_string()).spawn(move || {
            // Whoever closes the store ends this first and waits, so it is still there.
            let Some(store) = checked.upgrade() else { return };
            let outcome = run(&store, &status, &cancel);
            let mut status = unpoisoned(status.lock());
            match outcome {
                Ok(found) => {
                    let verdict = if found.clean { "clean" } else { "NOT clean" };
                    log::info(format!("check of store {}: {verdict}", store.name));
                    status.state = "done".to_string();
                    status.report = Some(found);
                }
                Err(error) => {
                    log::warn(format!("check of store {}: {error}", store.name));
                    status.state = "failed".to_string();
                    status.error = Some(error.message);
                }
            }
        });
        let thread = thread.map_err(|e| {
            Error::new(ErrorKind::Io, format!("no thread can be started for the check: {e}"))
        })?;
        job.thread = Some(thread);
        Ok(())
    }

    /// How far the check of a store is.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` (which store?).
    pub fn check_status(&self, store: Option<&str>, cancel: bool) -> Result<CheckStatus, Error> {
        let store = self.one_store(store)?;
        let job = unpoisoned(store.check.lock());
        if cancel {
            job.cancel.store(true, Ordering::Release);
        }
        let mut status = unpoisoned(job.status.lock()).clone();
        if status.state.is_empty() {
            status.state = "none".to_string();
        }
        Ok(status)
    }
}

impl Store {
    /// Ends a check that is under way, and waits until it has let go.
    pub(super) fn stop_check(&self) {
        let thread = {
            let mut job = unpoisoned(self.check.lock());
            job.cancel.store(true, Ordering::Release);
            job.thread.take()
        };
        if thread.is_some_and(|thread| thread.join().is_err()) {
            log::error(format!("the check of store {} ended in a panic", self.name));
        }
    }
}

/// Holds, checks, lets go.
fn run(
    store: &Store,
    status: &Mutex<CheckStatus>,
    cancel: &AtomicBool,
) -> Result<CheckReport, Error> {
    let mut held = Vec::new();
    let mut outcome = Ok(Reply::Unit);
    for shard in &store.shards {
        // With a consistency point first, so that what was acknowledged before is looked at.
        outcome = shard.command(Command::Checkpoint);
        outcome = outcome.and_then(|_| shard.command(Command::Hold));
        if outcome.is_err() {
            break;
        }
        held.push(shard);
    }
    let found = outcome.and_then(|_| {
        let mut on_progress = |at: CheckProgress| {
            let mut status = unpoisoned(status.lock());
            status.phase = at.phase.text().to_string();
            (status.shard, status.shards) = (at.shard, at.shards);
            (status.done, status.total) = (at.done, at.total);
            !cancel.load(Ordering::Acquire)
        };
        let device = &store.device;
        let options = CheckOptions { online: true };
        check(&mut CheckedDevice(device), device.size(), options, &mut on_progress)
    });
    let mut cut_short = None;
    for shard in held {
        cut_short = shard.command(Command::Unhold).err().or(cut_short);
    }
    let found = found?;
    match cut_short {
        Some(error) => Err(error),
        None => Ok(report(store.name.as_str(), true, &found, Vec::new())),
    }
}

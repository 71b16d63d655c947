//! The control side: everything that may block, on threads of its own.
//!
//! ```text
//!  JSON-RPC connection threads ─► methods ─┬─ opening    stores made and opened
//!                                          ├─ stores     looked up, closed
//!                                          ├─ disks      create, clone, resize, delete
//!                                          ├─ snapshots  take, label, delete
//!                                          ├─ exports    attach, detach, restore
//!                                          ├─ nvmf       subsystems for remote hosts
//!                                          └─ views      what is there
//!                                                 │ post, wait (bounded)
//!                                                 ▼
//!                                             reactors
//! ```
//!
//! One change at a time in a store, and of the daemon as a whole ([`turns`]). Looking needs no lock
//! but the short one around the list of stores.

mod blob;
mod changes;
mod check;
mod coming;
pub mod device;
mod disks;
mod exports;
pub mod host;
mod methods;
mod names;
mod nvmf;
mod nvmf_book;
mod nvmf_calls;
mod nvmf_claims;
mod nvmf_ids;
mod nvmf_keys;
mod nvmf_restore;
mod nvmf_transport;
mod nvmf_views;
mod opening;
pub(crate) mod random;
mod snapshots;
mod sockets;
mod state;
mod stores;
mod streams;
mod turns;
mod views;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lamina_bdev::{Error, ErrorKind};

use crate::config::Config;
use crate::log;
use crate::reactor::handle::{Message, ReactorHandle};
use crate::reactor::shard::ShardKey;
use crate::reactor::space_watch::Thresholds;
use coming::{Claim, Coming};
use exports::Export;
use host::{Embedded, Host};
use nvmf::Nvmf;
use state::{KnownStore, StateDir};
use stores::FailedStore;

pub use methods::failure;
pub use opening::CreateStore;
pub use stores::Store;

/// How long a daemon that stops waits for stores on their way in.
const COMING_PATIENCE: Duration = Duration::from_secs(5);
const COMING_RETRY: Duration = Duration::from_millis(5);

/// The daemon, without its RPC server.
pub struct Control {
    engine: lamina_bdev::Config,
    /// Of stores that have none of their own.
    thresholds: Thresholds,
    export_dir: PathBuf,
    state: StateDir,
    host: Box<dyn Host>,
    reactors: Vec<Arc<ReactorHandle>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stores: RwLock<Stores>,
    exports: Mutex<Vec<Arc<Export>>>,
    nvmf: Nvmf,
    changing: Mutex<()>,
    /// Held from a look at how much memory there is until it is taken.
    memory: Mutex<()>,
    stopping: AtomicBool,
    next_shard: AtomicU32,
    /// Snapshots that stand for the "now" of disks.
    nows: Mutex<Vec<changes::Now>>,
    /// Disks that a stream is being imported into.
    importing: Mutex<Vec<lamina_bdev::Uuid>>,
    /// Streams of snapshots that are open.
    streams: Arc<AtomicUsize>,
    /// For threads of its own.
    me: Weak<Control>,
    stop: SyncSender<String>,
}

#[derive(Default)]
struct Stores {
    open: Vec<Arc<Store>>,
    /// On their way in.
    coming: Vec<Coming>,
    next_claim: u64,
    failed: Vec<FailedStore>,
}

impl Control {
    /// Takes the state folder and starts the reactors. `stop` is told why when a client asks for
    /// the end.
    ///
    /// # Errors
    /// `Busy`, `Invalid`, `Io`: the daemon cannot run like this.
    pub fn start(config: &Config, stop: SyncSender<String>) -> Result<Arc<Control>, Error> {
        // Before any thread is there: a bad setting or a folder in use ends the daemon at once.
        config.engine()?;
        let settings = config.reactors()?;
        let state = StateDir::open(&config.state_dir)?;
        let (mut reactors, mut threads) = (Vec::new(), Vec::new());
        for (index, settings) in settings.into_iter().enumerate() {
            let (reactor, thread) = crate::reactor::start(index, settings)?;
            reactors.push(reactor);
            threads.push(thread);
        }
        let host = Box::new(Embedded { reactors: reactors.clone() });
        Control::with(config, stop, state, host, (reactors, threads))
    }

    /// The same for another host, which drives the shards itself.
    ///
    /// # Errors
    /// `Busy`, `Invalid`, `Io`: it cannot run like this.
    pub fn start_on(
        config: &Config,
        stop: SyncSender<String>,
        host: Box<dyn Host>,
    ) -> Result<Arc<Control>, Error> {
        let state = StateDir::open(&config.state_dir)?;
        Control::with(config, stop, state, host, (Vec::new(), Vec::new()))
    }

    fn with(
        config: &Config,
        stop: SyncSender<String>,
        state: StateDir,
        host: Box<dyn Host>,
        (reactors, threads): (Vec<Arc<ReactorHandle>>, Vec<JoinHandle<()>>),
    ) -> Result<Arc<Control>, Error> {
        let engine = config.engine()?;
        let export_dir = std::path::absolute(&config.export_dir).map_err(|e| {
            Error::new(ErrorKind::Invalid, format!("{}: {e}", config.export_dir.display()))
        })?;
        streams::clear_sockets(state.dir());
        let nvmf = Nvmf::start(state.dir().to_path_buf(), reactors.clone())?;
        Ok(Arc::new_cyclic(|me| Control {
            engine,
            thresholds: config.space_warnings,
            export_dir,
            state,
            host,
            reactors,
            threads: Mutex::new(threads),
            stores: RwLock::default(),
            exports: Mutex::default(),
            nvmf,
            changing: Mutex::new(()),
            memory: Mutex::new(()),
            stopping: AtomicBool::new(false),
            next_shard: AtomicU32::new(0),
            nows: Mutex::default(),
            importing: Mutex::default(),
            streams: Arc::default(),
            me: me.clone(),
            stop,
        }))
    }

    /// Opens the stores that were open before, and those given; one that cannot be opened is
    /// logged and listed as failed, and one whose device hangs comes later.
    ///
    /// # Errors
    /// The state file is damaged: going on would forget stores.
    pub fn open_known(&self, given: &[String]) -> Result<(), Error> {
        let change = self.change()?;
        let mut known = self.state.load()?;
        self.restore_subsystems()?;
        for path in given {
            let path = absolute(path);
            if !known.iter().any(|store| store.path == path) {
                known.push(KnownStore { path, ..KnownStore::default() });
            }
        }
        let failed = known.into_iter().map(|known| FailedStore { known });
        self.stores_mut().failed.extend(failed);
        drop(change);
        self.open_failed();
        let _change = self.change()?;
        // Hosts may come only now that the disks are there.
        self.restore_listeners();
        self.remember()
    }

    /// The end in good order: exports stop, what is in flight finishes, every store gets a
    /// consistency point. True if all of that went well.
    pub fn shut_down(&self) -> bool {
        self.stopping.store(true, Ordering::Release);
        // Changes that have begun come to their end; no other begins.
        drop(self.lock_change());
        for store in self.open_stores() {
            drop(self.lock_store(&store));
        }
        let mut good = self.wait_for_coming();
        let _change = self.lock_change();
        let mut check = |what: &str, result: Result<(), Error>| {
            if let Err(error) = result {
                log::error(format!("while stopping, {what}: {error}"));
                good = false;
            }
        };
        check("remote hosts", self.nvmf.stop());
        for export in std::mem::take(&mut *self.exports()) {
            check(&export.record.ctrlr, export.take_down());
        }
        for store in std::mem::take(&mut self.stores_mut().open) {
            check(store.name.as_str(), self.close_shards(&store));
        }
        // With something in flight for which the kernel still writes to its memory, a reactor must
        // not end before the process does.
        good && self.stop_reactors()
    }

    fn stop_reactors(&self) -> bool {
        let mut posted = self.reactors.iter().map(|reactor| reactor.post(Message::Stop));
        if let Some(error) = posted.find_map(Result::err) {
            log::error(format!("while stopping, a reactor: {error}"));
            return false;
        }
        let threads = std::mem::take(&mut *unpoisoned(self.threads.lock()));
        threads.into_iter().all(|thread| thread.join().is_ok())
    }

    /// Stores on their way in see that the daemon stops, unless their device hangs. True if all
    /// have come to their end.
    fn wait_for_coming(&self) -> bool {
        let end = Instant::now() + COMING_PATIENCE;
        loop {
            let coming: Vec<String> =
                unpoisoned(self.stores.read()).coming.iter().map(|one| one.path.clone()).collect();
            if coming.is_empty() {
                return true;
            }
            if Instant::now() >= end {
                let paths = coming.join(", ");
                log::error(format!("while stopping: stores are still being opened: {paths}"));
                return false;
            }
            std::thread::sleep(COMING_RETRY);
        }
    }

    /// Asks the main thread to end the daemon.
    fn ask_to_stop(&self, why: String) {
        // A full channel means that it has been asked already.
        let _ = self.stop.try_send(why);
    }

    fn refuse_when_stopping(&self) -> Result<(), Error> {
        if self.stopping.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Busy, "laminad is stopping"));
        }
        Ok(())
    }

    fn stores_mut(&self) -> std::sync::RwLockWriteGuard<'_, Stores> {
        unpoisoned(self.stores.write())
    }

    /// The open stores now.
    pub fn open_stores(&self) -> Vec<Arc<Store>> {
        unpoisoned(self.stores.read()).open.clone()
    }

    /// The exports now; hold it shortly.
    fn exports(&self) -> MutexGuard<'_, Vec<Arc<Export>>> {
        unpoisoned(self.exports.lock())
    }

    fn next_key(&self) -> ShardKey {
        ShardKey(self.next_shard.fetch_add(1, Ordering::Relaxed))
    }

    /// Writes down which stores are open (or were meant to be); with [`Control::change`] only.
    fn remember(&self) -> Result<(), Error> {
        self.remember_with(None)
    }

    /// The same, as if one on its way in were open.
    fn remember_with(&self, new: Option<(&Claim<'_>, &Store)>) -> Result<(), Error> {
        let stores = unpoisoned(self.stores.read());
        let open = stores.open.iter().map(Arc::as_ref).chain(new.map(|(_, store)| store));
        let open = open.filter_map(Store::known);
        let others = |coming: &&Coming| !new.is_some_and(|(claim, _)| claim.is(coming));
        let coming = stores.coming.iter().filter(others).filter_map(|coming| coming.known.clone());
        let failed = stores.failed.iter().map(|store| store.known.clone());
        let known: Vec<KnownStore> = open.chain(coming).chain(failed).collect();
        drop(stores);
        self.state.save(&known)
    }
}

/// What a poisoned lock protects here is whole between any two statements; the panic itself has
/// been reported where it happened.
fn unpoisoned<G>(result: Result<G, std::sync::PoisonError<G>>) -> G {
    result.unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One spelling for a path, also of what is not there yet.
fn absolute(path: &str) -> String {
    if device::ends_with_the_daemon(path) || path.starts_with(host::PATH_PREFIX) {
        return path.into();
    }
    let in_folder = |_| -> std::io::Result<PathBuf> {
        let path = std::path::absolute(path)?;
        match (path.parent().map(std::fs::canonicalize), path.file_name()) {
            (Some(Ok(folder)), Some(name)) => Ok(folder.join(name)),
            (Some(Err(_)) | None, _) | (_, None) => Ok(path),
        }
    };
    let canonical = std::fs::canonicalize(path).or_else(in_folder);
    canonical.ok().and_then(|path| path.to_str().map(str::to_string)).unwrap_or_else(|| path.into())
}

/// Seconds since 1970.
fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Checks a name that a person gave.
fn name(text: &str) -> Result<lamina_bdev::Name, Error> {
    lamina_bdev::Name::new(text).map_err(|why| Error::new(ErrorKind::Invalid, why))
}

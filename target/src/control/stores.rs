//! Open stores: found, set, closed.
//!
//! ```text
//!  open ([`super::opening`]) ─► Store: its shards, each on its reactor
//!  close: namespaces and exports end ─► consistency point ─► off the reactors ─► lock gone
//! ```

use std::sync::{Arc, Mutex};

use lamina_bdev::{Command, Error, ErrorKind, Name, StoreLabel, Uuid};

use super::check::CheckJob;
use super::device::Device;
use super::state::KnownStore;
use super::turns::Turn;
use super::{Control, unpoisoned};
use crate::log;
use crate::reactor::handle::ShardHandle;
use crate::reactor::space_watch::{SpaceWatch, Thresholds};

/// An open store.
pub struct Store {
    /// Its name.
    pub name: Name,
    /// Its identity.
    pub uuid: Uuid,
    /// Its path as given to open it.
    pub path: String,
    /// Its shards, each on its reactor.
    pub shards: Vec<ShardHandle>,
    /// How full each shard is.
    pub watches: Vec<Arc<SpaceWatch>>,
    /// Its own thresholds, if it has any.
    warnings: Mutex<Option<Thresholds>>,
    lasting: bool,
    pub(super) device: Device,
    pub(super) check: Mutex<CheckJob>,
    pub(super) turn: Turn,
}

impl Store {
    /// One whose shards are still to come.
    pub(super) fn new(label: &StoreLabel, device: Device, path: &str) -> Store {
        let lasting = device.lasting_path();
        Store {
            name: label.name,
            uuid: label.uuid,
            path: lasting.clone().unwrap_or_else(|| path.to_string()),
            shards: Vec::new(),
            watches: Vec::new(),
            warnings: Mutex::new(None),
            lasting: lasting.is_some(),
            device,
            check: Mutex::default(),
            turn: Turn::default(),
        }
    }

    /// What the state file keeps; `None` for RAM.
    pub fn known(&self) -> Option<KnownStore> {
        self.lasting.then(|| KnownStore {
            path: self.path.clone(),
            name: self.name.to_string(),
            uuid: self.uuid.to_string(),
            warnings: self.own_warnings().map(|own| own.percents()),
        })
    }

    fn own_warnings(&self) -> Option<Thresholds> {
        *unpoisoned(self.warnings.lock())
    }

    /// Its own thresholds, or `default`; they hold from the next look.
    fn set_warnings(&self, own: Option<Thresholds>, default: Thresholds) {
        *unpoisoned(self.warnings.lock()) = own;
        for watch in &self.watches {
            watch.set(own.unwrap_or(default));
        }
    }

    /// Has its reactors look how full it is. Not with [`Control::change`]: they may be slow.
    fn look_how_full(&self) {
        for shard in &self.shards {
            // Any turn of its reactor looks, after it has answered: the first one has by the time
            // the second answers. One that is gone needs no look.
            let _ = shard.query(|_| ()).and_then(|()| shard.query(|_| ()));
        }
    }

    /// What was set before it was opened again; not if another store was on its path then. As
    /// slow as its reactors.
    pub(super) fn take_warnings(&self, known: &KnownStore, default: Thresholds) {
        if !known.uuid.is_empty() && known.uuid != self.uuid.to_string() {
            return;
        }
        // A state file may say anything.
        let own = known.warnings.as_deref().and_then(|own| Thresholds::new(own).ok());
        if own.is_some() {
            self.set_warnings(own, default);
            self.look_how_full();
        }
    }

    /// True if `text` is its name or UUID.
    pub fn is_called(&self, text: &str) -> bool {
        self.name.as_str() == text || self.uuid.to_string() == text.to_ascii_lowercase()
    }
}

/// A store that was open and is not: it could not be opened (yet) when the daemon started.
pub struct FailedStore {
    /// What the state file says of it.
    pub known: KnownStore,
}

impl FailedStore {
    /// True if `text` is its name, UUID or path.
    pub(super) fn is_called(&self, text: &str) -> bool {
        let known = &self.known;
        [&known.name, &known.uuid, &known.path].into_iter().any(|name| name == text)
    }
}

impl Control {
    /// Closes a store after a consistency point, and forgets it.
    ///
    /// # Errors
    /// `NotFound`; `Busy` while something of it is exported and not `force`; `Io`.
    pub fn close_store(&self, text: &str, force: bool) -> Result<(), Error> {
        let Some(store) = self.open_stores().into_iter().find(|store| store.is_called(text)) else {
            let _change = self.change()?;
            return self.forget_failed(text);
        };
        let _alone = self.change_in(&store)?;
        let exports = self.exports_to_end(&store, force)?;
        // Its base may hang: other stores go on meanwhile.
        self.hide_store(&store)?;
        for export in &exports {
            export.take_down()?;
        }
        self.exports().retain(|export| !exports.iter().any(|ended| Arc::ptr_eq(export, ended)));
        match self.checkpoint_shards(&store) {
            Ok(()) => {}
            // Closing is the way out of a base that failed: what was flushed is on it, and the
            // next opening recovers it from the journal.
            Err(error) if force => {
                log::warn(format!("store {} is closed as after a crash: {error}", store.name));
            }
            Err(error) => {
                let why = format!("{}; to close it all the same, say force", error.message);
                return Err(Error::new(error.kind, why));
            }
        }
        let change = self.change()?;
        self.stores_mut().open.retain(|open| !Arc::ptr_eq(open, &store));
        let kept = self.remember();
        drop(change);
        self.drop_shards(&store);
        log::info(format!("store {} is closed", store.name));
        kept
    }

    /// The exports of a store that is to be closed.
    ///
    /// # Errors
    /// `NotFound` if it has been closed meanwhile; `Busy` while something of it is exported or
    /// shown, and not `force`.
    fn exports_to_end(
        &self,
        store: &Arc<Store>,
        force: bool,
    ) -> Result<Vec<Arc<super::Export>>, Error> {
        if !self.open_stores().iter().any(|open| Arc::ptr_eq(open, store)) {
            return Err(no_store(store.name.as_str()));
        }
        let of_store = |export: &&Arc<super::Export>| Arc::ptr_eq(&export.store, store);
        let exports: Vec<_> = self.exports().iter().filter(of_store).cloned().collect();
        if let (Some(first), false) = (exports.first(), force) {
            let why = format!(
                "{} of store {} is exported as {}: end its exports first, or say force",
                first.device_name, store.name, first.record.ctrlr
            );
            return Err(Error::new(ErrorKind::Busy, why));
        }
        if let (Some((device, one)), false) = (self.shown_of_store(store), force) {
            let why = format!(
                "{} is namespace {} of {}: take it out first, or say force",
                device.alias, one.nsid, one.nqn
            );
            return Err(Error::new(ErrorKind::Busy, why));
        }
        Ok(exports)
    }

    fn forget_failed(&self, text: &str) -> Result<(), Error> {
        let mut stores = self.stores_mut();
        if let Some(coming) = stores.coming.iter().find(|coming| coming.is_called(text)) {
            return Err(coming.busy());
        }
        let before = stores.failed.len();
        stores.failed.retain(|failed| !failed.is_called(text));
        let found = stores.failed.len() < before;
        drop(stores);
        if !found {
            return Err(no_store(text));
        }
        self.remember()
    }

    /// Sets the percentages of used space at which events are raised; `None`: the daemon's own
    /// again. Returns what holds now.
    ///
    /// # Errors
    /// `NotFound`; `Invalid`: not percentages, or too many; `Io`: it cannot be remembered.
    pub fn set_warnings(&self, text: &str, percents: Option<&[u32]>) -> Result<Vec<u32>, Error> {
        let change = self.change()?;
        let store = self.one_store(Some(text))?;
        let own = percents.map(Thresholds::new).transpose();
        let own = own.map_err(|why| Error::new(ErrorKind::Invalid, why))?;
        store.set_warnings(own, self.thresholds);
        let kept = self.remember();
        drop(change);
        store.look_how_full();
        kept?;
        Ok(own.unwrap_or(self.thresholds).percents())
    }

    /// A consistency point in one store, or in all.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn checkpoint(&self, text: Option<&str>) -> Result<(), Error> {
        for store in self.stores_called(text)? {
            let _change = self.change_in(&store)?;
            self.checkpoint_shards(&store)?;
        }
        Ok(())
    }

    fn checkpoint_shards(&self, store: &Store) -> Result<(), Error> {
        for shard in &store.shards {
            shard.command(Command::Checkpoint)?;
        }
        Ok(())
    }

    /// Consistency point, then off the reactors whatever that said.
    pub(super) fn close_shards(&self, store: &Store) -> Result<(), Error> {
        let result = self.checkpoint_shards(store);
        self.drop_shards(store);
        result
    }

    pub(super) fn drop_shards(&self, store: &Store) {
        store.stop_check();
        for shard in &store.shards {
            if let Err(error) = shard.close() {
                log::error(format!("store {} does not let go: {error}", store.name));
            }
        }
    }

    /// The open store of this name or UUID; all of them for `None`.
    ///
    /// # Errors
    /// `NotFound`.
    pub(super) fn stores_called(&self, text: Option<&str>) -> Result<Vec<Arc<Store>>, Error> {
        let mut stores = self.open_stores();
        if let Some(text) = text {
            stores.retain(|store| store.is_called(text));
            if stores.is_empty() {
                return Err(no_store(text));
            }
        }
        Ok(stores)
    }

    /// The open store of this name or UUID; the only one for `None`.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` if there are several to choose from.
    pub(super) fn one_store(&self, text: Option<&str>) -> Result<Arc<Store>, Error> {
        let mut stores = self.stores_called(text)?;
        if stores.len() > 1 {
            let names: Vec<&str> = stores.iter().map(|store| store.name.as_str()).collect();
            let why = format!("several stores are open, say which: {}", names.join(", "));
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        stores.pop().ok_or_else(|| {
            let why = "no store is open: create or open one first (lamina store create)";
            Error::new(ErrorKind::NotFound, why)
        })
    }
}

fn no_store(text: &str) -> Error {
    let why = format!("no store {text:?} is open: lamina store list shows those that are");
    Error::new(ErrorKind::NotFound, why)
}

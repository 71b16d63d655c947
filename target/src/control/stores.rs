//! Stores: made, opened, closed.
//!
//! ```text
//!  create: format_plan ─► write ─► sync ─► last write ─► sync ─┐
//!  open:   lock ─► label ─► an engine a shard ─► reactors ─► ready ─► exports as kept with disks
//!  close:  consistency point ─► off the reactors ─► lock gone
//! ```

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use lamina_bdev::{
    BLOCK_SIZE, Command, Engine, Error, ErrorKind, FormatParams, LABEL_BYTES, Name, StoreLabel,
    Uuid,
};

use super::check::CheckJob;
use super::device::Device;
use super::state::KnownStore;
use super::turns::Turn;
use super::{Control, absolute, name, now_seconds, random};
use crate::base::Region;
use crate::base::ram::available_bytes;
use crate::log;
use crate::reactor::handle::ShardHandle;
use crate::reactor::shard::Shard;
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
        *super::unpoisoned(self.warnings.lock())
    }

    /// Its own thresholds, or `default`.
    fn set_warnings(&self, own: Option<Thresholds>, default: Thresholds) {
        *super::unpoisoned(self.warnings.lock()) = own;
        for (watch, shard) in self.watches.iter().zip(&self.shards) {
            watch.set(own.unwrap_or(default));
            // A turn of its reactor, which looks; one that is gone needs no look.
            let _ = shard.query(|_| ());
        }
    }

    /// What was set before it was opened again.
    pub(super) fn take_warnings(&self, known: &KnownStore, default: Thresholds) {
        // A state file may say anything.
        let own = known.warnings.as_deref().and_then(|own| Thresholds::new(own).ok());
        if own.is_some() {
            self.set_warnings(own, default);
        }
    }

    /// True if `text` is its name or UUID.
    pub fn is_called(&self, text: &str) -> bool {
        self.name.as_str() == text || self.uuid.to_string() == text.to_ascii_lowercase()
    }
}

/// A store that could not be opened when the daemon started.
pub struct FailedStore {
    /// What the state file says of it.
    pub known: KnownStore,
}

/// Parameters of a new store.
#[derive(Clone, Debug)]
pub struct CreateStore {
    /// Its name.
    pub name: String,
    /// A file, a block device, ram:SIZE, or null:SIZE (keeps metadata and no data, to measure).
    pub path: String,
    /// Bytes, for a new file.
    pub size: Option<u64>,
    /// Shards.
    pub shards: u32,
    /// Bytes of journal a shard; 0 by size.
    pub journal_bytes: u64,
    /// Overwrite what is there.
    pub force: bool,
}

impl Control {
    /// Makes a store and opens it.
    ///
    /// # Errors
    /// `Exists`, `Invalid`, `NoSpace`, `Busy`, `NotFound`, `Io`.
    pub fn create_store(&self, params: &CreateStore) -> Result<Uuid, Error> {
        let _change = self.change()?;
        let name = name(&params.name)?;
        self.refuse_store_name(name)?;
        let (device, new) = self.host.open_new(&params.path, params.size, params.force)?;
        let made = self.format(&device, name, params).and_then(|uuid| {
            self.adopt_store(device, &params.path)?;
            Ok(uuid)
        });
        if made.is_err() && new {
            let _ = std::fs::remove_file(&params.path);
        }
        let uuid = made?;
        let path = absolute(&params.path);
        self.stores_mut().failed.retain(|failed| failed.known.path != path);
        self.remember()?;
        Ok(uuid)
    }

    fn format(&self, device: &Device, name: Name, params: &CreateStore) -> Result<Uuid, Error> {
        let uuid = random::new_uuid();
        let layout = FormatParams {
            uuid,
            name,
            device_bytes: device.size(),
            shards: params.shards,
            journal_bytes: params.journal_bytes,
            time: now_seconds(),
        };
        let plan = lamina_bdev::format_plan(&layout)?;
        self.refuse_without_memory(params.shards)?;
        for (offset, len) in lamina_bdev::fixed_areas(&layout)? {
            device.reserve(offset, len)?;
        }
        let (last, first) = plan.split_last().expect("a format plan has writes");
        for write in first {
            device.write_at(&write.bytes, write.offset)?;
        }
        device.sync()?;
        device.write_at(&last.bytes, last.offset)?;
        device.sync()?;
        Ok(uuid)
    }

    /// Opens the store on `path`, remembers it, and exports what was exported.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `Exists` (open already), `Corrupt`, `Version`, `Invalid`, `Io`.
    pub fn open(&self, path: &str) -> Result<Arc<Store>, Error> {
        let _change = self.change()?;
        let path = absolute(path);
        if let Some(store) = self.open_stores().iter().find(|store| store.path == path) {
            let why = format!("the store {} on {path} is open already", store.name);
            return Err(Error::new(ErrorKind::Exists, why));
        }
        let store = self.open_store(&path)?;
        self.stores_mut().failed.retain(|failed| {
            let other = failed.known.path != path;
            if !other {
                store.take_warnings(&failed.known, self.thresholds);
            }
            other
        });
        self.remember()?;
        Ok(store)
    }

    /// As [`Control::open`], without touching the state file.
    pub(super) fn open_store(&self, path: &str) -> Result<Arc<Store>, Error> {
        self.adopt_store(self.host.open(path)?, path)
    }

    /// Puts the shards of the store on `device` on reactors.
    fn adopt_store(&self, device: Device, path: &str) -> Result<Arc<Store>, Error> {
        let label = read_label(&device, path)?;
        self.refuse_store_name(label.name)?;
        self.refuse_without_memory(label.shards)?;
        if let Some(open) = self.open_stores().iter().find(|open| open.uuid == label.uuid) {
            let why = format!(
                "{path} is a copy of the open store {} on {}: only one of the two can be open",
                open.name, open.path
            );
            return Err(Error::new(ErrorKind::Exists, why));
        }
        let lasting = device.lasting_path();
        let mut store = Store {
            name: label.name,
            uuid: label.uuid,
            path: lasting.clone().unwrap_or_else(|| path.to_string()),
            shards: Vec::new(),
            watches: Vec::new(),
            warnings: Mutex::new(None),
            lasting: lasting.is_some(),
            device: device.clone(),
            check: Mutex::default(),
            turn: Turn::default(),
        };
        for index in 0..label.shards {
            let many = (label.shards > 1).then_some(index);
            let watch = SpaceWatch::new(label.name.to_string(), many, self.thresholds);
            let watch = Arc::new(watch);
            store.watches.push(watch.clone());
            match self.open_shard(&device, &label, index, watch) {
                Ok(shard) => store.shards.push(shard),
                Err(error) => {
                    self.drop_shards(&store);
                    return Err(error);
                }
            }
        }
        log::info(format!("store {} on {} is open", store.name, store.path));
        let store = Arc::new(store);
        // Nobody can have it yet, so this does not wait.
        let _change = self.lock_store(&store);
        self.stores_mut().open.push(store.clone());
        super::changes::drop_leftovers(&store);
        self.restore_exports(&store);
        self.restore_namespaces(&store);
        Ok(store)
    }

    fn open_shard(
        &self,
        device: &Device,
        label: &StoreLabel,
        index: u32,
        watch: Arc<SpaceWatch>,
    ) -> Result<ShardHandle, Error> {
        let offset = u64::from(index)
            .checked_mul(label.region_bytes)
            .and_then(|offset| offset.checked_add(label.first_region));
        let end = offset.and_then(|offset| offset.checked_add(label.region_bytes));
        let (Some(offset), true) = (offset, end.is_some_and(|end| end <= device.size())) else {
            let why = format!("the store {} says it is larger than its device", label.name);
            return Err(Error::new(ErrorKind::Corrupt, why));
        };
        let base = device.base(Region { offset, len: label.region_bytes })?;
        let engine = Box::new(Engine::open(self.engine, base.traits(), label, index));
        let handle = ShardHandle::new(self.host.place_shard()?, self.next_key());
        let what = if label.shards == 1 {
            format!("store {}", label.name)
        } else {
            format!("store {}, shard {index}", label.name)
        };
        let opened =
            handle.open(|key, opened| Shard::new(key, what, engine, base, opened).watched(watch));
        if opened.is_err() {
            // It is of no use, but it is there and holds the lock.
            let _ = handle.close();
        }
        opened.map(|()| handle)
    }

    fn refuse_store_name(&self, name: Name) -> Result<(), Error> {
        if self.open_stores().iter().any(|store| store.name == name) {
            let why =
                format!("a store named {name} is open already: choose another name, or close it");
            return Err(Error::new(ErrorKind::Exists, why));
        }
        Ok(())
    }

    /// Engines take their memory when they are made: with more than there is, the daemon would end,
    /// and all disks with it.
    fn refuse_without_memory(&self, shards: u32) -> Result<(), Error> {
        let need = self.engine.memory_bytes().saturating_mul(u64::from(shards));
        match available_bytes(false) {
            Some(available) if need > available => {
                let why = format!(
                    "{shards} shard(s) take {need} bytes of memory, and {available} are available: use fewer shards, or a smaller --cache-size"
                );
                Err(Error::new(ErrorKind::NoSpace, why))
            }
            Some(_) | None => Ok(()),
        }
    }

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
        let before = stores.failed.len();
        stores.failed.retain(|failed| {
            let known = &failed.known;
            ![&known.name, &known.uuid, &known.path].into_iter().any(|name| name == text)
        });
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
        let _change = self.change()?;
        let store = self.one_store(Some(text))?;
        let own = percents.map(Thresholds::new).transpose();
        let own = own.map_err(|why| Error::new(ErrorKind::Invalid, why))?;
        store.set_warnings(own, self.thresholds);
        self.remember()?;
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

    fn drop_shards(&self, store: &Store) {
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

fn read_label(device: &Device, path: &str) -> Result<StoreLabel, Error> {
    if device.size() < LABEL_BYTES as u64 {
        let why = format!("{path} is not a Lamina store: it has only {} bytes", device.size());
        return Err(Error::new(ErrorKind::Corrupt, why));
    }
    let mut first = vec![0; LABEL_BYTES];
    if let Err(error) = device.read_at(&mut first, 0) {
        // One of the two copies is enough.
        first.fill(0);
        let mut read = 0;
        for (offset, copy) in (0..).step_by(BLOCK_SIZE).zip(first.chunks_mut(BLOCK_SIZE)) {
            read += usize::from(device.read_at(copy, offset).is_ok());
        }
        if read == 0 {
            return Err(error);
        }
    }
    lamina_bdev::read_label(&first, device.size())
        .map_err(|error| Error::new(error.kind, format!("{path}: {error}")))
}

fn no_store(text: &str) -> Error {
    let why = format!("no store {text:?} is open: lamina store list shows those that are");
    Error::new(ErrorKind::NotFound, why)
}

//! Stores are made and opened, without a lock while their device is asked: it may hang.
//!
//! ```text
//!  create: claim ─► format_plan ─► write ─► sync ─► last write ─► sync ─┐
//!  open:   claim ─► lock of the file ───────────────────────────────────┤
//!                                                                       ▼
//!          ready ◄─ reactors ◄─ an engine a shard ◄─ identify ◄──── its label
//!            └─► Control::change(): among the open stores, written down ─► exports as kept
//!  start:  one after the other, and past those that hang
//! ```

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use lamina_bdev::{
    BLOCK_SIZE, Engine, Error, ErrorKind, FormatParams, LABEL_BYTES, Name, StoreLabel, Uuid,
};

use super::coming::Claim;
use super::device::{self, Device};
use super::state::KnownStore;
use super::stores::Store;
use super::{Control, absolute, name, now_seconds, random, unpoisoned};
use crate::base::ram::available_bytes;
use crate::base::{Base, Region};
use crate::events::{self, Severity};
use crate::log;
use crate::reactor::handle::{Opening, ShardHandle};
use crate::reactor::shard::Shard;
use crate::reactor::space_watch::SpaceWatch;

/// How long one store may take at the start before the next one is begun.
const NEXT_AFTER: Duration = Duration::from_secs(1);
/// How long the start waits for stores, all together; those that take longer come later.
const START_PATIENCE: Duration = Duration::from_secs(10);

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
        let name = name(&params.name)?;
        let claim = self.claim_store(&absolute(&params.path), Some(name))?;
        let (device, new) = self.device_of_new(params)?;
        let made = self.format(&device, name, params);
        let made = made.and_then(|()| self.bring_in(&claim, device.clone()));
        // Still claimed and locked: nobody else, in this daemon or another, has it in between.
        if made.is_err() && new {
            device.remove();
        }
        made.map(|store| store.uuid)
    }

    fn device_of_new(&self, params: &CreateStore) -> Result<(Device, bool), Error> {
        let in_memory = device::ends_with_the_daemon(&params.path);
        let _memory = in_memory.then(|| unpoisoned(self.memory.lock()));
        self.host.open_new(&params.path, params.size, params.force)
    }

    fn format(&self, device: &Device, name: Name, params: &CreateStore) -> Result<(), Error> {
        let layout = FormatParams {
            uuid: random::new_uuid(),
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
        device.sync()
    }

    /// Opens the store on `path`, remembers it, and exports what was exported.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `Exists` (open already), `Corrupt`, `Version`, `Invalid`, `Io`.
    pub fn open(&self, path: &str) -> Result<Arc<Store>, Error> {
        let claim = self.claim_store(&absolute(path), None)?;
        let device = self.host.open(&claim.path)?;
        self.bring_in(&claim, device)
    }

    /// Opens the store on `device`.
    fn bring_in(&self, claim: &Claim<'_>, device: Device) -> Result<Arc<Store>, Error> {
        let label = read_label(&device, &claim.path)?;
        claim.identify(label.name, label.uuid)?;
        let store = Arc::new(self.start_store(device, &label, &claim.path)?);
        // Nobody can have it yet, so this does not wait.
        let _turn = self.lock_store(&store);
        if let Err(error) = self.list(claim, &store) {
            self.drop_shards(&store);
            return Err(error);
        }
        log::info(format!("store {} on {} is open", store.name, store.path));
        super::changes::drop_leftovers(&store);
        self.restore_exports(&store);
        self.restore_namespaces(&store);
        Ok(store)
    }

    /// Puts a store among the open ones, and writes that down.
    ///
    /// # Errors
    /// `Busy`: the daemon is stopping. `Io`, `NoSpace`: it cannot be written down. It is not there
    /// then, and still claimed.
    fn list(&self, claim: &Claim<'_>, store: &Arc<Store>) -> Result<(), Error> {
        // Its reactor is asked, which may take a while.
        if let Some(known) = claim.known() {
            store.take_warnings(&known, self.thresholds);
        }
        let _change = self.change()?;
        claim.fulfil(store)
    }

    /// Puts the shards of the store on `device` on reactors, and waits until they are ready.
    fn start_store(&self, device: Device, label: &StoreLabel, path: &str) -> Result<Store, Error> {
        let mut store = Store::new(label, device, path);
        for index in 0..label.shards {
            let many = (label.shards > 1).then_some(index);
            let watch = SpaceWatch::new(label.name.to_string(), many, self.thresholds);
            store.watches.push(Arc::new(watch));
        }
        let (begun, mut failed) = self.begin_shards(&store, label);
        for opening in begun {
            match opening.wait() {
                Ok(shard) => store.shards.push(shard),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        let Some(error) = failed else { return Ok(store) };
        self.drop_shards(&store);
        Err(error)
    }

    /// Makes the engines and hands them over; those that were begun, and what went wrong.
    fn begin_shards(&self, store: &Store, label: &StoreLabel) -> (Vec<Opening>, Option<Error>) {
        let mut begun = Vec::new();
        let mut begin = || -> Result<(), Error> {
            let bases = (0..label.shards).map(|index| base_of(&store.device, label, index));
            let bases = bases.collect::<Result<Vec<Base>, Error>>()?;
            // Nobody else counts on memory, or on a place on a reactor, that is taken here.
            let _memory = unpoisoned(self.memory.lock());
            self.refuse_without_memory(label.shards)?;
            for (index, base) in (0..).zip(bases) {
                begun.push(self.begin_shard(store, label, index, base)?);
            }
            Ok(())
        };
        let failed = begin().err();
        (begun, failed)
    }

    fn begin_shard(
        &self,
        store: &Store,
        label: &StoreLabel,
        index: u32,
        base: Base,
    ) -> Result<Opening, Error> {
        let engine = Box::new(Engine::open(self.engine, base.traits(), label, index));
        let handle = ShardHandle::new(self.host.place_shard()?, self.next_key());
        let what = if label.shards == 1 {
            format!("store {}", label.name)
        } else {
            format!("store {}, shard {index}", label.name)
        };
        let watch = store.watches[index as usize].clone();
        handle.begin(|key, opened| Shard::new(key, what, engine, base, opened).watched(watch))
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

    /// Opens the stores that are listed as failed, one after the other, and past one that hangs:
    /// that one comes later.
    pub(super) fn open_failed(&self) {
        let known: Vec<KnownStore> =
            unpoisoned(self.stores.read()).failed.iter().map(|one| one.known.clone()).collect();
        let end = Instant::now() + START_PATIENCE;
        let (ended, wait) = channel();
        let mut under_way = 0;
        for store in known {
            let (me, ended) = (self.me.upgrade().expect("it is in use"), ended.clone());
            let opener = std::thread::Builder::new().name("store-open".into());
            let begun = opener.spawn(move || {
                me.open_at_start(&store);
                let _ = ended.send(());
            });
            match begun {
                Ok(_) => under_way += 1,
                Err(e) => log::error(format!("no thread to open a store: {e}")),
            }
            under_way -= usize::from(wait.recv_timeout(NEXT_AFTER).is_ok());
        }
        drop(ended);
        while under_way > 0 {
            match wait.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(()) => under_way -= 1,
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    log::warn(format!(
                        "{under_way} store(s) take long to open, or their devices hang; they come later"
                    ));
                    return;
                }
            }
        }
    }

    fn open_at_start(&self, known: &KnownStore) {
        if let Err(error) = self.open(&known.path) {
            let text = format!("the store on {} is not open: {error}", known.path);
            events::push(Severity::Error, &known.name, text);
        }
    }
}

/// The base of one shard.
fn base_of(device: &Device, label: &StoreLabel, index: u32) -> Result<Base, Error> {
    let offset = u64::from(index)
        .checked_mul(label.region_bytes)
        .and_then(|offset| offset.checked_add(label.first_region));
    let end = offset.and_then(|offset| offset.checked_add(label.region_bytes));
    let (Some(offset), true) = (offset, end.is_some_and(|end| end <= device.size())) else {
        let why = format!("the store {} says it is larger than its device", label.name);
        return Err(Error::new(ErrorKind::Corrupt, why));
    };
    device.base(Region { offset, len: label.region_bytes })
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

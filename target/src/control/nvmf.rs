//! Exports to remote hosts: disks become devices of the NVMe service, and are kept as such.
//!
//! ```text
//!  call ─► check ─► service thread (target, listeners) ─► book (state folder)
//!  add namespace:    attach disk ─► route to every reactor ─► target ─► book
//!  remove namespace: target ─► tables to reactors ─► nothing in flight ─► detach ─► book
//!  store opened ─► namespaces of its disks, as the book has them
//!  store closed ─► namespaces of its disks out of the target, not out of the book
//! ```
//!
//! One device stands for a disk or snapshot however many namespaces show it. Whoever changes what
//! is shown holds [`Control::change`]; whoever attaches or detaches, [`Control::change_in`].

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lamina_bdev::{
    Command, DiskId, Error, ErrorKind, Handle, Reply, SnapId, SnapRef, Target, Uuid,
};
use lamina_nvmf::reservation::Kept;
use lamina_nvmf::subsystem::DeviceKey;

use super::blob::Exported;
use super::names::{self, Entity, Found};
use super::nvmf_book::{Book, NamespaceRecord};
use super::nvmf_claims::Saver;
use super::stores::Store;
use super::{Control, unpoisoned};
use crate::log;
use crate::nvmf::devices::Route;
use crate::nvmf::message::GroupMsg;
use crate::nvmf::service::ServiceHandle;
use crate::reactor::handle::{Message, ReactorHandle};

/// How long requests in flight on a disk may take before it is not let go.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long hosts' connections may take to end when the daemon does.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// A namespace of the target, as far as disks are concerned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Shown {
    pub(super) nqn: String,
    pub(super) nsid: u32,
}

/// A disk or snapshot that is open for NVMe queues.
#[derive(Clone)]
pub(super) struct Device {
    pub(super) key: DeviceKey,
    pub(super) store: Arc<Store>,
    pub(super) shard: usize,
    pub(super) disk: DiskId,
    pub(super) dev: Exported,
    pub(super) uuid: Uuid,
    pub(super) alias: String,
    pub(super) bytes: u64,
    pub(super) readonly: bool,
    handle: Handle,
    /// The namespaces that show it.
    pub(super) shown: Vec<Shown>,
    /// It is being let go, and cannot be shown again: requests may still be in flight on it.
    leaving: bool,
}

impl Device {
    /// True if it stands for this disk or a snapshot of it; of `dev`, for that alone.
    fn is_of(&self, store: &Arc<Store>, shard: usize, disk: DiskId, dev: Option<Exported>) -> bool {
        Arc::ptr_eq(&self.store, store)
            && (self.shard, self.disk) == (shard, disk)
            && dev.is_none_or(|dev| dev == self.dev)
    }
}

/// The NVMe side of the daemon.
pub(super) struct Nvmf {
    pub(super) service: ServiceHandle,
    pub(super) book: Arc<Book>,
    thread: Mutex<Option<JoinHandle<()>>>,
    reactors: Vec<Arc<ReactorHandle>>,
    pub(super) devices: Arc<Mutex<Vec<Device>>>,
    /// Uses of each place among the reactors' devices so far; `true`: in use.
    places: Mutex<Vec<(u32, bool)>>,
}

impl Nvmf {
    /// Reads the book and starts the service; nothing is exported yet.
    ///
    /// # Errors
    /// `Corrupt`, `Version`: the book. `Io`.
    pub(super) fn start(
        dir: std::path::PathBuf,
        reactors: Vec<Arc<ReactorHandle>>,
    ) -> Result<Nvmf, Error> {
        let book = Arc::new(Book::open(dir)?);
        let devices: Arc<Mutex<Vec<Device>>> = Arc::default();
        let saver = Saver::start(devices.clone(), book.clone())?;
        let saved = saver.service.clone();
        let save = Box::new(move |save| saver.post(save));
        let (service, thread) = ServiceHandle::start(reactors.clone(), save)?;
        let _ = saved.set(service.clone());
        Ok(Nvmf {
            service,
            book,
            thread: Mutex::new(Some(thread)),
            reactors,
            devices,
            places: Mutex::default(),
        })
    }

    /// The devices now; hold it shortly.
    pub(super) fn devices(&self) -> std::sync::MutexGuard<'_, Vec<Device>> {
        unpoisoned(self.devices.lock())
    }

    /// The device of a disk or snapshot, attached if it is not yet.
    ///
    /// # Errors
    /// `NotFound`, `Io`, `Busy`.
    pub(super) fn attach(&self, found: &Found) -> Result<Device, Error> {
        let disk = found.entity.disk().id;
        let dev = match &found.entity {
            Entity::Disk(_) => Exported::Disk,
            Entity::Snapshot(_, snap) => Exported::Snapshot(snap.snap.snap.0),
        };
        let same = |device: &&Device| {
            Arc::ptr_eq(&device.store, &found.store)
                && (device.shard, device.disk, device.dev) == (found.shard, disk, dev)
                && !device.leaving
        };
        if let Some(device) = self.devices().iter().find(same) {
            return Ok(device.clone());
        }
        let shard = &found.store.shards[found.shard];
        let target = match dev {
            Exported::Disk => Target::Disk(disk),
            Exported::Snapshot(id) => Target::Snapshot(SnapRef { disk, snap: SnapId(id) }),
        };
        let Reply::Handle(handle) = shard.command(Command::Attach(target))? else {
            unreachable!("an attachment is answered with a handle");
        };
        let info = shard.query(move |engine| engine.handle_info(handle))?;
        let (bytes, readonly) =
            info.ok_or_else(|| Error::new(ErrorKind::NotFound, "the attachment is gone again"))?;
        let device = Device {
            key: self.take_place(),
            store: found.store.clone(),
            shard: found.shard,
            disk,
            dev,
            uuid: found.entity.uuid(),
            alias: found.alias(),
            bytes,
            readonly,
            handle,
            shown: Vec::new(),
            leaving: false,
        };
        let (key, reactor) = (device.key, shard.reactor().index());
        let route = Route { key, reactor, shard: shard.key(), handle };
        if let Err(error) = self.tell_all(|done| GroupMsg::AddDevice(route, done)) {
            let _ = shard.command(Command::Detach(handle));
            return Err(error);
        }
        self.service.run(move |core| core.set_home(key, reactor))?;
        self.devices().push(device.clone());
        Ok(device)
    }

    /// Lets a device go that no namespace shows: waits until nothing is in flight on it.
    ///
    /// # Errors
    /// `Io` if requests do not end; it stays attached then.
    pub(super) fn detach_if_unused(&self, key: DeviceKey) -> Result<(), Error> {
        let unused = |device: &&Device| device.key == key && device.shown.is_empty();
        let Some(device) = self.devices().iter().find(unused).cloned() else { return Ok(()) };
        for known in self.devices().iter_mut().filter(|known| known.key == key) {
            known.leaving = true;
        }
        self.tell_all(|done| GroupMsg::RemoveDevice(key, done))?;
        self.service.run(move |core| core.forget_home(key))?;
        self.devices().retain(|device| device.key != key);
        if let Some((_, used)) = unpoisoned(self.places.lock()).get_mut(key.0 as u32 as usize) {
            *used = false;
        }
        let shard = &device.store.shards[device.shard];
        shard.command(Command::Detach(device.handle)).map(|_| ())
    }

    /// Lets devices of a disk (or the one of this snapshot of it) go that could not be when they
    /// were to: their requests hung.
    ///
    /// # Errors
    /// `Io` if they still do.
    pub(super) fn finish_leaving(
        &self,
        store: &Arc<Store>,
        shard: usize,
        disk: DiskId,
        dev: Option<Exported>,
    ) -> Result<(), Error> {
        let its = |device: &&Device| device.leaving && device.is_of(store, shard, disk, dev);
        let keys: Vec<DeviceKey> = self.devices().iter().filter(its).map(|one| one.key).collect();
        keys.into_iter().try_for_each(|key| self.detach_if_unused(key))
    }

    /// A key never used before: place in the low half, its uses in the high half.
    fn take_place(&self) -> DeviceKey {
        let mut places = unpoisoned(self.places.lock());
        let at = match places.iter().position(|(_, used)| !used) {
            Some(at) => at,
            None => {
                places.push((0, false));
                places.len() - 1
            }
        };
        let (uses, used) = &mut places[at];
        *uses += 1;
        *used = true;
        DeviceKey(u64::from(*uses) << 32 | at as u64)
    }

    /// Tells every reactor something, and waits until each has done it.
    fn tell_all(
        &self,
        message: impl Fn(std::sync::mpsc::SyncSender<()>) -> GroupMsg,
    ) -> Result<(), Error> {
        let mut answers = Vec::new();
        for reactor in &self.reactors {
            let (done, answer) = std::sync::mpsc::sync_channel(1);
            reactor.post(Message::Nvmf(message(done)))?;
            answers.push(answer);
        }
        let end = Instant::now() + DRAIN_TIMEOUT;
        for answer in answers {
            answer.recv_timeout(end.saturating_duration_since(Instant::now())).map_err(|_| {
                let seconds = DRAIN_TIMEOUT.as_secs();
                let why = format!("requests of remote hosts are not done after {seconds} s");
                Error::new(ErrorKind::Io, why)
            })?;
        }
        Ok(())
    }

    /// Ends all connections of hosts, and the service. The disks are let go.
    ///
    /// # Errors
    /// `Io`: something does not end.
    pub(super) fn stop(&self) -> Result<(), Error> {
        self.service.run(|core| core.shut_down())?;
        let end = Instant::now() + STOP_TIMEOUT;
        let thread = unpoisoned(self.thread.lock()).take();
        if let Some(thread) = thread {
            while !thread.is_finished() {
                if Instant::now() >= end {
                    let why = "connections of remote hosts do not end";
                    return Err(Error::new(ErrorKind::Io, why));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            let _ = thread.join();
        }
        let devices = std::mem::take(&mut *self.devices());
        for device in devices {
            let key = device.key;
            self.tell_all(|done| GroupMsg::RemoveDevice(key, done))?;
            device.store.shards[device.shard].command(Command::Detach(device.handle))?;
        }
        Ok(())
    }
}

impl Control {
    /// The first namespace that shows a disk (or this snapshot of it), for refusals.
    pub(super) fn shown_as(
        &self,
        store: &Arc<Store>,
        shard: usize,
        disk: DiskId,
        dev: Option<Exported>,
    ) -> Option<(Device, Shown)> {
        let devices = self.nvmf.devices();
        let found = devices
            .iter()
            .find(|device| device.is_of(store, shard, disk, dev) && !device.shown.is_empty())?;
        Some((found.clone(), found.shown[0].clone()))
    }

    /// A disk has another size: hosts are told.
    pub(super) fn resize_namespaces(
        &self,
        store: &Arc<Store>,
        shard: usize,
        disk: DiskId,
        bytes: u64,
    ) -> Result<(), Error> {
        let mut key = None;
        for device in self.nvmf.devices().iter_mut() {
            if Arc::ptr_eq(&device.store, store)
                && (device.shard, device.disk, device.dev) == (shard, disk, Exported::Disk)
            {
                device.bytes = bytes;
                key = Some(device.key);
            }
        }
        match key {
            Some(key) => self.nvmf.service.run(move |core| {
                core.edit(|target| target.resize_device(key, bytes));
            }),
            None => Ok(()),
        }
    }

    /// The first namespace of a store's disks, for refusals.
    pub(super) fn shown_of_store(&self, store: &Arc<Store>) -> Option<(Device, Shown)> {
        let devices = self.nvmf.devices();
        let its = |device: &&Device| Arc::ptr_eq(&device.store, store) && !device.shown.is_empty();
        let found = devices.iter().find(its)?;
        Some((found.clone(), found.shown[0].clone()))
    }

    /// Takes the namespaces of a store's disks out of the target; the book keeps them.
    ///
    /// # Errors
    /// `Io` if requests do not end.
    pub(super) fn hide_store(&self, store: &Arc<Store>) -> Result<(), Error> {
        let devices: Vec<Device> = self
            .nvmf
            .devices()
            .iter()
            .filter(|device| Arc::ptr_eq(&device.store, store))
            .cloned()
            .collect();
        for device in devices {
            self.hide(device.key)?;
            self.nvmf.detach_if_unused(device.key)?;
        }
        Ok(())
    }

    /// Takes the namespaces that show a device out of the target.
    fn hide(&self, key: DeviceKey) -> Result<(), Error> {
        let _change = self.lock_change();
        let mut devices = self.nvmf.devices();
        let Some(device) = devices.iter_mut().find(|device| device.key == key) else {
            return Ok(());
        };
        let shown = std::mem::take(&mut device.shown);
        drop(devices);
        self.nvmf.service.run(move |core| {
            for one in shown {
                // One that is gone already is as it should be.
                let _ = core.edit(|target| target.remove_namespace(&one.nqn, one.nsid));
            }
        })
    }

    /// Adds the namespaces that the book has of a store's disks. The caller has the store's turn.
    pub(super) fn restore_namespaces(&self, store: &Arc<Store>) {
        let uuid = store.uuid.to_string();
        let records = self.nvmf.book.read();
        let its = records.namespaces().filter(|(_, namespace)| namespace.store == uuid);
        for (nqn, namespace) in its {
            match self.restore_namespace(store, nqn, namespace) {
                Ok(()) => log::info(format!(
                    "{} is namespace {} of {nqn} again",
                    namespace.alias, namespace.nsid
                )),
                Err(error) => log::error(format!(
                    "{} is not namespace {} of {nqn} again: {error}",
                    namespace.alias, namespace.nsid
                )),
            }
        }
    }

    fn restore_namespace(
        &self,
        store: &Arc<Store>,
        nqn: &str,
        record: &NamespaceRecord,
    ) -> Result<(), Error> {
        let found = names::find(std::slice::from_ref(store), &record.device)?;
        let spec = super::nvmf_ids::spec_of(record)?;
        // Its base may hang: not with the daemon's lock.
        let device = self.nvmf.attach(&found)?;
        let shown = self.change().and_then(|_change| {
            let kept = self.nvmf.book.read();
            if !kept.namespaces().any(|(of, kept)| of == nqn && kept == record) {
                return Err(Error::new(ErrorKind::NotFound, "it has been taken out meanwhile"));
            }
            self.show(&found, &device, nqn, spec).map(drop)
        });
        if shown.is_err() {
            self.nvmf.detach_if_unused(device.key)?;
        }
        shown
    }

    /// Makes a disk that is attached a namespace, with the reservations that are kept with it.
    /// `spec` lacks only what the device says.
    pub(super) fn show(
        &self,
        found: &Found,
        device: &Device,
        nqn: &str,
        mut spec: lamina_nvmf::subsystem::NamespaceSpec,
    ) -> Result<u32, Error> {
        let alias = found.alias();
        let claims = Kept::from_bytes(&found.entity.disk().claims).map_err(|fault| {
            Error::new(ErrorKind::Corrupt, format!("reservations kept with {alias}: {fault}"))
        })?;
        spec.device = device.key;
        spec.name = device.uuid.to_string();
        spec.disk_uuid = device.uuid;
        spec.bytes = device.bytes;
        spec.readonly |= device.readonly;
        let (name, key) = (nqn.to_string(), device.key);
        // One edit, so that reactors hear of it once: without its reservations, hosts that were
        // fenced off could write.
        let add = move |target: &mut lamina_nvmf::subsystem::Target| {
            let nsid = target.add_namespace(&name, spec)?;
            let added = target.find(&name).and_then(|(_, one)| one.namespace(nsid));
            let image = added.and_then(|namespace| claims.image(&name, namespace.uuid));
            let restored =
                image.map_or(Ok(()), |image| target.restore_reservations(&name, nsid, image));
            if let Err(error) = restored {
                let _ = target.remove_namespace(&name, nsid);
                return Err(error);
            }
            Ok(nsid)
        };
        let nsid = self.nvmf.service.run(move |core| core.edit(add))??;
        for known in self.nvmf.devices().iter_mut().filter(|known| known.key == key) {
            known.shown.push(Shown { nqn: nqn.to_string(), nsid });
        }
        Ok(nsid)
    }

    /// Takes namespaces out of the book of devices; those that are shown less.
    pub(super) fn forget_shown(&self, gone: impl Fn(&Shown) -> bool) -> Vec<Device> {
        let mut less = Vec::new();
        for device in self.nvmf.devices().iter_mut() {
            let before = device.shown.len();
            device.shown.retain(|shown| !gone(shown));
            if device.shown.len() < before {
                less.push(device.clone());
            }
        }
        less
    }

    /// Lets go of devices, unless they are still, or again, shown. Not to be called by who holds
    /// [`Control::change`]: requests in flight on a base that hangs hold this up.
    ///
    /// # Errors
    /// `Io` if requests do not end; `Busy` when the daemon is stopping, which lets go of all.
    pub(super) fn detach_unused(&self, devices: Vec<Device>) -> Result<(), Error> {
        let detach = |device: Device| {
            let _change = self.change_in(&device.store)?;
            self.nvmf.detach_if_unused(device.key)
        };
        // One that hangs keeps no other.
        let ended: Vec<_> = devices.into_iter().map(detach).collect();
        ended.into_iter().collect()
    }
}

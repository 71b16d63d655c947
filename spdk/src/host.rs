//! The SPDK application as a host of the control side: its threads drive shards, its bdevs hold
//! stores, and every disk of an open store is a bdev.
//!
//! ```text
//!  lamina-target's Control ─► Host::open("bdev:Nvme0n1") ─► BaseDevice
//!                          ─► Host::place_shard() ─► Drive on the next thread
//!  show(): disks of the engines ─┬─ new: attach, register
//!                                ├─ gone: unregister, detach
//!                                └─ other: size, name
//! ```

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use lamina_bdev::limits::SEGS_MAX;
use lamina_bdev::{Command, DiskInfo, Error, ErrorKind, Handle, Reply, SECTOR_SIZE, Target, Uuid};
use lamina_target::control::device::{Device, refuse_if_used};
use lamina_target::control::host::{Host, PATH_PREFIX};
use lamina_target::control::{Control, Store};
use lamina_target::log;
use lamina_target::reactor::handle::{ReactorHandle, ShardHandle};

use crate::control::on_app;
use crate::device::{BaseDevice, SharedDevice};
use crate::disk::Backed;
use crate::drive::{Drive, Traffic};
use crate::sys::backend::Spec;
use crate::sys::disk::Disk;
use crate::sys::thread::{Thread, cores};

/// How long a bdev may take to be let go by those who have it open.
const UNREGISTER_TIMEOUT: Duration = Duration::from_secs(30);

/// What drives shards: our threads, and the drives on them.
pub struct Threads {
    threads: Vec<(u32, Thread)>,
    /// By the index of their handle.
    drives: Mutex<Vec<Weak<Drive>>>,
    next: AtomicUsize,
    /// Bytes of a block, for each open bdev of a store.
    blocks: Mutex<Vec<(String, u32)>>,
}

impl Threads {
    /// One thread a core of SPDK.
    ///
    /// # Errors
    /// SPDK has no memory for threads.
    pub fn start() -> Result<Threads, Error> {
        let mut threads = Vec::new();
        for core in cores() {
            let thread = Thread::spawn(&format!("lamina_{core}"), core);
            let thread = thread.ok_or_else(|| Error::new(ErrorKind::Io, "SPDK has no threads"))?;
            threads.push((core, thread));
        }
        let (drives, blocks) = (Mutex::default(), Mutex::default());
        Ok(Threads { threads, drives, next: AtomicUsize::new(0), blocks })
    }

    /// What drives the shard of this handle.
    pub fn drive(&self, shard: &ShardHandle) -> Option<Arc<Drive>> {
        unpoisoned(&self.drives).get(shard.reactor().index())?.upgrade()
    }

    /// How I/O came to that shard.
    pub fn traffic(&self, shard: &ShardHandle) -> Traffic {
        self.drive(shard).map(|drive| drive.traffic()).unwrap_or_default()
    }

    fn device(&self, path: &str) -> Result<Arc<BaseDevice>, Error> {
        let name = path.strip_prefix(PATH_PREFIX).unwrap_or(path);
        let device = BaseDevice::open(name, true)?;
        let mut blocks = unpoisoned(&self.blocks);
        blocks.retain(|(known, _)| known != path);
        blocks.push((path.to_string(), device.block_bytes()));
        Ok(device)
    }

    /// Bytes in a block of the bdev at this path; the disks on it have the same.
    fn block_bytes(&self, path: &str) -> u32 {
        let blocks = unpoisoned(&self.blocks);
        let known = blocks.iter().find(|(known, _)| known == path);
        known.map_or(SECTOR_SIZE as u32, |(_, bytes)| *bytes)
    }

    /// Ends the threads; nothing is driven any more.
    pub fn end(&self) {
        for (_, thread) in &self.threads {
            thread.again().end();
        }
    }
}

/// The threads, as control has them.
pub struct Shared(pub Arc<Threads>);

impl Host for Shared {
    fn place_shard(&self) -> Result<Arc<ReactorHandle>, Error> {
        let threads = &self.0.threads;
        let turn = self.0.next.fetch_add(1, Ordering::Relaxed) % threads.len();
        let (core, home) = &threads[turn];
        let failed = |e: std::io::Error| {
            Error::new(ErrorKind::Io, format!("nothing can drive one more shard: {e}"))
        };
        let drive = Drive::start(home.again()).map_err(failed)?;
        let mut drives = unpoisoned(&self.0.drives);
        let index = drives.len();
        drives.push(Arc::downgrade(&drive));
        Ok(Arc::new(ReactorHandle::of_host(index, *core, drive.mailbox())))
    }

    fn open(&self, path: &str) -> Result<Device, Error> {
        Ok(Device::Host(Arc::new(SharedDevice(self.0.device(path)?))))
    }

    fn open_new(
        &self,
        path: &str,
        size: Option<u64>,
        force: bool,
    ) -> Result<(Device, bool), Error> {
        let device = Device::Host(Arc::new(SharedDevice(self.0.device(path)?)));
        if let Some(size) = size
            && size != device.size()
        {
            let why = format!("{path} has {} bytes, not {size}: leave the size out", device.size());
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        if !force {
            refuse_if_used(device.size(), path, |head| device.read_at(head, 0))?;
        }
        Ok((device, false))
    }
}

/// A disk that is a bdev.
struct Shown {
    uuid: Uuid,
    store: Uuid,
    shard: ShardHandle,
    handle: Handle,
    backed: Backed,
    disk: Disk<Backed>,
    /// As last told.
    alias: String,
    bytes: u64,
}

/// All disks that are bdevs.
#[derive(Default)]
pub struct Shows(Mutex<Vec<Shown>>);

impl Shows {
    /// Makes bdevs of what the engines have: new ones appear, others get their size and name.
    pub fn refresh(&self, control: &Control, threads: &Threads) {
        for store in control.open_stores() {
            for (index, shard) in store.shards.iter().enumerate() {
                let disks = match shard.query(|engine| engine.disks()) {
                    Ok(disks) => disks,
                    Err(error) => {
                        log::error(format!("disks of store {}: {error}", store.name));
                        continue;
                    }
                };
                // One that a stream is being imported into is not whole yet.
                for disk in disks.iter().filter(|disk| !control.is_importing(disk.uuid)) {
                    if let Err(error) = self.show(&store, index, disk, threads) {
                        log::error(format!("{}/{} is no bdev: {error}", store.name, disk.name));
                    }
                }
            }
        }
    }

    fn show(
        &self,
        store: &Store,
        index: usize,
        disk: &DiskInfo,
        threads: &Threads,
    ) -> Result<(), Error> {
        let alias = format!("{}/{}", store.name, disk.name);
        let mut shows = unpoisoned(&self.0);
        if let Some(at) = shows.iter().position(|shown| shown.uuid == disk.uuid) {
            if shows[at].alias == alias && shows[at].bytes == disk.size {
                return Ok(());
            }
            let mut shown = shows.swap_remove(at);
            let bytes = disk.size;
            let shown = on_app(move || {
                shown.disk.resize(bytes);
                shown.disk.rename(&alias);
                (shown.alias, shown.bytes) = (alias, bytes);
                shown
            })?;
            shows.push(shown);
            return Ok(());
        }
        let shard = store.shards[index].clone();
        let gone = || Error::new(ErrorKind::NotFound, "its shard is gone");
        let drive = threads.drive(&shard).ok_or_else(gone)?;
        let Reply::Handle(handle) = shard.command(Command::Attach(Target::Disk(disk.id)))? else {
            unreachable!("an attachment is answered with a handle");
        };
        let backed = Backed::new(drive, handle, store.name.to_string(), index);
        let spec = Spec {
            name: disk.uuid.to_string(),
            alias: alias.clone(),
            uuid: disk.uuid.0,
            block_bytes: threads.block_bytes(&store.path),
            bytes: disk.size,
            segs_max: (SEGS_MAX - 2) as u32,
            write_cache: true,
        };
        let behind = Arc::new(backed.share());
        let registered = on_app(move || Disk::register(&spec, behind))?;
        let made = registered.map_err(|rc| {
            let e = std::io::Error::from_raw_os_error(-rc);
            Error::new(ErrorKind::Io, format!("SPDK does not take it as a bdev: {e}"))
        });
        let made = match made {
            Ok(made) => made,
            Err(error) => {
                let _ = shard.command(Command::Detach(handle));
                return Err(error);
            }
        };
        let (uuid, store, bytes) = (disk.uuid, store.uuid, disk.size);
        shows.push(Shown { uuid, store, shard, handle, backed, disk: made, alias, bytes });
        Ok(())
    }

    /// Makes the bdev of a disk vanish, before the disk is deleted.
    ///
    /// # Errors
    /// `Busy`: somebody uses it.
    pub fn hide_disk(&self, uuid: Uuid) -> Result<(), Error> {
        let mut shows = unpoisoned(&self.0);
        let Some(at) = shows.iter().position(|shown| shown.uuid == uuid) else { return Ok(()) };
        if shows[at].backed.is_used() {
            let why = format!(
                "bdev {} ({uuid}) is in use: end its exports first (vhost_delete_controller, \
                 nvmf_subsystem_remove_ns)",
                shows[at].alias
            );
            return Err(Error::new(ErrorKind::Busy, why));
        }
        let shown = shows.swap_remove(at);
        drop(shows);
        hide(shown)
    }

    /// Makes the bdevs of a store vanish, or all; unless `force`, only if nobody uses them.
    ///
    /// # Errors
    /// `Busy`: somebody uses one, or does not let it go.
    pub fn hide_store(&self, store: Option<Uuid>, force: bool) -> Result<(), Error> {
        let mut shows = unpoisoned(&self.0);
        let of_store = |shown: &Shown| store.is_none_or(|uuid| shown.store == uuid);
        if let Some(used) = shows.iter().find(|s| !force && of_store(s) && s.backed.is_used()) {
            let why = format!("bdev {} is in use: end its exports first, or say force", used.alias);
            return Err(Error::new(ErrorKind::Busy, why));
        }
        let (hidden, kept) = std::mem::take(&mut *shows).into_iter().partition(of_store);
        *shows = kept;
        drop(shows);
        let hidden: Vec<Shown> = hidden;
        hidden.into_iter().try_for_each(hide)
    }
}

/// Unregisters the bdev, waits until nobody has it open, and ends the attachment.
fn hide(shown: Shown) -> Result<(), Error> {
    let (sender, answer) = sync_channel(1);
    let Shown { disk, alias, shard, handle, .. } = shown;
    on_app(move || {
        disk.unregister(move || {
            let _ = sender.try_send(());
        });
    })?;
    answer.recv_timeout(UNREGISTER_TIMEOUT).map_err(|_| {
        let why = format!("bdev {alias} is still held open; it vanishes when it is let go");
        Error::new(ErrorKind::Busy, why)
    })?;
    shard.command(Command::Detach(handle)).map(drop)
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Exports: a disk or snapshot on a vhost-user-blk socket, kept with the disk itself.
//!
//! ```text
//!  attach ─► BlkExport to the reactor ─► socket served ─► blob of the disk    (and back)
//!  store opened ─► blobs of its disks ─► the same exports again
//! ```

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use lamina_bdev::{
    Command, DiskId, DiskInfo, Error, ErrorKind, Handle, Reply, SnapId, SnapRef, Target, Uuid,
};

use super::blob::{self, ExportRecord, Exported};
use super::names::Entity;
use super::sockets::{make_folder, socket_error, socket_path};
use super::stores::Store;
use super::{Control, unpoisoned};
use crate::log;
use crate::nvmf::devices::NVMF_INDEX;
use crate::reactor::handle::ShardHandle;
use crate::vhost::{
    BlkExport, ExportConfig, ExportServer, ExportStatus, QUEUES_MAX, ServeConfig, serve,
};

/// Queues offered unless told otherwise. QEMU refuses to start if it wants more than are offered,
/// and it wants one for each virtual CPU; those not used cost nothing.
const QUEUES_DEFAULT: u16 = 64;

/// An export, up or (after a restart) not.
pub(super) struct Export {
    /// As it is kept with the disk.
    pub(super) record: ExportRecord,
    /// Its store.
    pub(super) store: Arc<Store>,
    /// Index of its shard there.
    pub(super) shard: usize,
    /// The disk, or the disk its snapshot was taken of.
    pub(super) disk: DiskId,
    /// UUID of what it shows.
    pub(super) uuid: Uuid,
    /// What it shows, for people: its name when it was exported.
    pub(super) device_name: String,
    /// Where it listens.
    pub(super) socket: PathBuf,
    /// Its place on the shard.
    index: u16,
    /// Locked shortly, never while something is waited for.
    live: Mutex<Option<Live>>,
    /// Held by whoever takes it down.
    ending: Mutex<()>,
}

/// What is there while an export is up.
struct Live {
    handle: Handle,
    server: ExportServer,
}

/// What a client asks for.
pub(super) struct NewExport<'a> {
    pub(super) ctrlr: &'a str,
    pub(super) device: &'a str,
    pub(super) readonly: bool,
    pub(super) num_queues: Option<u16>,
}

impl Export {
    fn shard_handle(&self) -> &ShardHandle {
        &self.store.shards[self.shard]
    }

    /// The core that serves it.
    pub(super) fn core(&self) -> u32 {
        self.shard_handle().reactor().core()
    }

    /// State of its connection; `None` if it is not up.
    pub(super) fn status(&self) -> Option<ExportStatus> {
        unpoisoned(self.live.lock()).as_ref().map(|live| live.server.status())
    }

    /// Tells requests to come, and the guest, that the disk has another size.
    pub(super) fn resized(&self, bytes: u64) {
        if let Some(live) = &*unpoisoned(self.live.lock()) {
            live.server.resized(bytes);
        }
    }

    /// Brings it up.
    fn bring_up(&self) -> Result<(), Error> {
        let shard = self.shard_handle();
        let target = match self.record.dev {
            Exported::Disk => Target::Disk(self.disk),
            Exported::Snapshot(id) => {
                Target::Snapshot(SnapRef { disk: self.disk, snap: SnapId(id) })
            }
        };
        let Reply::Handle(handle) = shard.command(Command::Attach(target))? else {
            unreachable!("an attachment is answered with a handle");
        };
        match self.serve(handle) {
            Ok(server) => {
                *unpoisoned(self.live.lock()) = Some(Live { handle, server });
                Ok(())
            }
            Err(error) => {
                let _ = shard.command(Command::Detach(handle));
                Err(error)
            }
        }
    }

    fn serve(&self, handle: Handle) -> Result<ExportServer, Error> {
        let shard = self.shard_handle();
        let gone = || Error::new(ErrorKind::NotFound, "the attachment is gone again");
        let info = shard.query(move |engine| engine.handle_info(handle))?;
        let (capacity_bytes, readonly) = info.ok_or_else(gone)?;
        let serial: String = self.uuid.to_string().split('-').collect();
        let config = ExportConfig {
            handle,
            index: self.index,
            capacity_bytes,
            readonly: readonly || self.record.readonly,
            serial: ExportConfig::serial_from(&serial),
            queues_max: self.record.num_queues,
            write_cache: true,
        };
        shard.add_export(self.index, Box::new(BlkExport::new(config.clone())))?;
        let served = serve(
            ServeConfig {
                export: config,
                socket: self.socket.clone(),
                log: Box::new(|line| log::info(line)),
            },
            Box::new({
                let (shard, index) = (shard.clone(), self.index);
                move |message| {
                    if let Err(error) = shard.export_message(index, message) {
                        log::error(format!("an export's message is lost: {error}"));
                    }
                }
            }),
        );
        served.map_err(|e| {
            let _ = shard.remove_export(self.index);
            socket_error(&self.socket, &e)
        })
    }

    /// Takes it down: the connection ends, its requests finish, the socket goes. Nothing happens
    /// if it is down already. A base that hangs holds this up until a command's time is over, so
    /// whoever calls it should not hold [`Control::change`].
    ///
    /// # Errors
    /// `Io` if requests do not end; `Busy` while a shrink of the disk goes on. It can be tried
    /// again.
    pub(super) fn take_down(&self) -> Result<(), Error> {
        let _alone = unpoisoned(self.ending.lock());
        let stopped = unpoisoned(self.live.lock()).as_mut().map(|live| {
            live.server.stop();
            live.handle
        });
        let Some(handle) = stopped else { return Ok(()) };
        // Until it can be tried again its place is taken, and the disk attached.
        self.shard_handle().remove_export(self.index)?;
        let detached = self.shard_handle().command(Command::Detach(handle));
        if !matches!(&detached, Err(error) if error.kind == ErrorKind::Busy) {
            *unpoisoned(self.live.lock()) = None;
        }
        detached.map(|_| ())
    }
}

impl Control {
    /// Exports a disk or snapshot, and keeps that with the disk.
    ///
    /// # Errors
    /// `NotFound`, `Exists` (the name), `Busy` (the socket), `Invalid`, `NoSpace`, `Io`.
    pub(super) fn create_export(&self, new: &NewExport<'_>) -> Result<(), Error> {
        let socket = socket_path(&self.export_dir, new.ctrlr)?;
        let num_queues = new.num_queues.unwrap_or(QUEUES_DEFAULT);
        if !(1..=QUEUES_MAX).contains(&num_queues) {
            let why = format!("an export has 1 to {QUEUES_MAX} queues, not {num_queues}");
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        let (_change, found) = self.change_of(new.device)?;
        let (dev, readonly) = match &found.entity {
            Entity::Disk(_) => (Exported::Disk, new.readonly),
            Entity::Snapshot(_, snap) => (Exported::Snapshot(snap.snap.snap.0), true),
        };
        let disk = found.entity.disk();
        if dev == Exported::Disk && self.is_importing(disk.uuid) {
            let why = format!("a stream is being imported into {}: wait for its end", disk.name);
            return Err(Error::new(ErrorKind::Busy, why));
        }
        let record = ExportRecord { ctrlr: new.ctrlr.into(), dev, readonly, num_queues };
        let mut records = blob::decode(&disk.blob)?;
        // One that could not be restored and was made anew would be there twice.
        records.retain(|kept| kept.ctrlr != record.ctrlr);
        records.push(record.clone());
        let blob = blob::encode(&records)?;
        if !Path::new(new.ctrlr).is_absolute() {
            make_folder(&self.export_dir)?;
        }
        let export = self.enlist(record, &found.store, found.shard, &found.entity, socket)?;
        let kept = export
            .bring_up()
            .and_then(|()| export.shard_handle().command(Command::SetBlob(disk.id, blob)));
        // One that does not end keeps its place, and can be ended later.
        if kept.is_err() && export.take_down().is_ok() {
            self.exports().retain(|other| !Arc::ptr_eq(other, &export));
        }
        kept.map(|_| ())
    }

    /// Puts a new export among the others: from then on its socket and its place are taken.
    ///
    /// # Errors
    /// `Exists` (the socket), `NoSpace`.
    fn enlist(
        &self,
        record: ExportRecord,
        store: &Arc<Store>,
        shard: usize,
        entity: &Entity,
        socket: PathBuf,
    ) -> Result<Arc<Export>, Error> {
        let mut exports = self.exports();
        if let Some(taken) = exports.iter().find(|export| export.socket == socket) {
            let why = format!(
                "{} is exported as {} already: choose another name, or end that export first",
                taken.device_name, taken.record.ctrlr
            );
            return Err(Error::new(ErrorKind::Exists, why));
        }
        let export = Arc::new(Export {
            index: free_index(&exports, store, shard)?,
            record,
            shard,
            disk: entity.disk().id,
            uuid: entity.uuid(),
            device_name: format!("{}/{}", store.name, entity.name()),
            store: store.clone(),
            socket,
            live: Mutex::new(None),
            ending: Mutex::new(()),
        });
        exports.push(export.clone());
        Ok(export)
    }

    /// Ends an export, and forgets it.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub(super) fn delete_export(&self, ctrlr: &str) -> Result<(), Error> {
        let export = self.find_export(ctrlr)?;
        let _change = self.change_in(&export.store)?;
        if !self.exports().iter().any(|other| Arc::ptr_eq(other, &export)) {
            let why = format!("the export {ctrlr:?} has been ended meanwhile");
            return Err(Error::new(ErrorKind::NotFound, why));
        }
        // It stays among the exports, so its name and its disk stay taken.
        export.take_down()?;
        let shard = export.shard_handle();
        let disk = export.disk;
        let blob = shard.query(move |engine| engine.disk_info(disk).map(|known| known.blob))?;
        let mut records = blob::decode(&blob.unwrap_or_default())?;
        records.retain(|record| record.ctrlr != export.record.ctrlr);
        shard.command(Command::SetBlob(disk, blob::encode(&records)?))?;
        self.exports().retain(|other| !Arc::ptr_eq(other, &export));
        Ok(())
    }

    /// The export of this name, or on this socket.
    ///
    /// # Errors
    /// `NotFound`.
    pub(super) fn find_export(&self, ctrlr: &str) -> Result<Arc<Export>, Error> {
        let exports = self.exports();
        let found = exports
            .iter()
            .find(|export| export.record.ctrlr == ctrlr || export.socket.to_str() == Some(ctrlr));
        found.cloned().ok_or_else(|| {
            let why =
                format!("there is no export {ctrlr:?}: lamina export list shows those there are");
            Error::new(ErrorKind::NotFound, why)
        })
    }

    /// Exports of a disk and of its snapshots.
    pub(super) fn exports_of(
        &self,
        store: &Arc<Store>,
        shard: usize,
        disk: DiskId,
    ) -> Vec<Arc<Export>> {
        let of = |export: &&Arc<Export>| {
            Arc::ptr_eq(&export.store, store) && export.shard == shard && export.disk == disk
        };
        self.exports().iter().filter(of).cloned().collect()
    }

    /// Exports again what the disks of a store say was exported. What cannot be is logged and
    /// listed as not connected, and stays with its disk.
    pub(super) fn restore_exports(&self, store: &Arc<Store>) {
        for (shard, handle) in store.shards.iter().enumerate() {
            let kept = handle.query(|engine| {
                let disks = engine.disks().into_iter().filter(|disk| !disk.blob.is_empty());
                let with_snapshots = disks.map(|disk| {
                    let snapshots = engine.snapshots(disk.id);
                    (disk, snapshots)
                });
                with_snapshots.collect::<Vec<_>>()
            });
            let kept = kept.unwrap_or_else(|error| {
                log::error(format!("exports of store {} are not restored: {error}", store.name));
                Vec::new()
            });
            for (disk, snapshots) in kept {
                let records = blob::decode(&disk.blob).unwrap_or_else(|error| {
                    log::error(format!("{}/{}: {error}", store.name, disk.name));
                    Vec::new()
                });
                for record in records {
                    let entity = match record.dev {
                        Exported::Disk => Some(Entity::Disk(disk.clone())),
                        Exported::Snapshot(id) => snapshots
                            .iter()
                            .find(|snap| snap.snap.snap == SnapId(id))
                            .map(|snap| Entity::Snapshot(disk.clone(), *snap)),
                    };
                    self.restore_export(store, shard, &disk, record, entity);
                }
            }
        }
    }

    fn restore_export(
        &self,
        store: &Arc<Store>,
        shard: usize,
        disk: &DiskInfo,
        record: ExportRecord,
        entity: Option<Entity>,
    ) {
        let complain = |error: &Error| {
            let (store, disk, ctrlr) = (&store.name, &disk.name, &record.ctrlr);
            log::error(format!("{store}/{disk} is not exported again as {ctrlr}: {error}"));
        };
        let Some(entity) = entity else {
            return complain(&Error::new(ErrorKind::NotFound, "its snapshot is gone"));
        };
        let enlisted = socket_path(&self.export_dir, &record.ctrlr).and_then(|socket| {
            make_folder(&self.export_dir)?;
            if !(1..=QUEUES_MAX).contains(&record.num_queues) {
                return Err(Error::new(ErrorKind::Corrupt, "its number of queues is not possible"));
            }
            self.enlist(record.clone(), store, shard, &entity, socket)
        });
        let export = match enlisted {
            Ok(export) => export,
            Err(error) => return complain(&error),
        };
        match export.bring_up() {
            Ok(()) => log::info(format!(
                "{} is exported again on {}",
                export.device_name,
                export.socket.display()
            )),
            Err(error) => complain(&error),
        }
    }
}

/// The lowest place on the shard that no export has.
fn free_index(exports: &[Arc<Export>], store: &Arc<Store>, shard: usize) -> Result<u16, Error> {
    let taken = |index: u16| {
        exports.iter().any(|export| {
            Arc::ptr_eq(&export.store, store) && export.shard == shard && export.index == index
        })
    };
    (0..NVMF_INDEX).find(|&index| !taken(index)).ok_or_else(|| {
        Error::new(ErrorKind::NoSpace, "the shard has as many exports as are possible")
    })
}

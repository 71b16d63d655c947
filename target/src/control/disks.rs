//! Disks: made, cloned, resized, renamed, deleted.

use std::sync::Arc;

use lamina_bdev::{Command, DiskInfo, Error, ErrorKind, Name, Reply, Uuid};

use super::names::{self, Entity, Found};
use super::stores::Store;
use super::turns::Changing;
use super::{Control, blob, name, now_seconds, random, snapshots};

impl Control {
    /// What `text` names.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` (several).
    pub(super) fn find(&self, text: &str) -> Result<Found, Error> {
        names::find(&self.open_stores(), text)
    }

    /// UUID of the disk that `text` names; `None` if that is a snapshot.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` (several).
    pub fn disk_uuid(&self, text: &str) -> Result<Option<Uuid>, Error> {
        Ok(match self.find(text)?.entity {
            Entity::Disk(disk) => Some(disk.uuid),
            Entity::Snapshot(..) => None,
        })
    }

    /// The disk that `text` names.
    ///
    /// # Errors
    /// As [`Control::find`]; `Invalid` for a snapshot.
    pub(super) fn find_disk(&self, text: &str) -> Result<(Found, DiskInfo), Error> {
        let found = self.find(text)?;
        let disk = disk_of(&found)?;
        Ok((found, disk))
    }

    /// The same, with the right to change its store.
    ///
    /// # Errors
    /// As [`Control::find_disk`] and [`Control::change_of`].
    pub(super) fn change_of_disk(&self, text: &str) -> Result<(Changing, Found, DiskInfo), Error> {
        let (changing, found) = self.change_of(text)?;
        let disk = disk_of(&found)?;
        Ok((changing, found, disk))
    }

    /// A new empty disk in the shard with the most room.
    ///
    /// # Errors
    /// `Exists`, `Invalid`, `NoSpace`, `NotFound` (the store).
    pub(super) fn create_disk(
        &self,
        text: &str,
        size: u64,
        store: Option<&str>,
    ) -> Result<Uuid, Error> {
        let name = name(text)?;
        let store = self.one_store(store)?;
        let _change = self.change_in(&store)?;
        self.refuse_disk_name(&store, name)?;
        let mut best = (0, 0);
        for (index, shard) in store.shards.iter().enumerate() {
            let free = shard.query(|engine| engine.store_info().free_blocks)?;
            best = best.max((free, index));
        }
        let (_, shard) = best;
        let uuid = random::new_uuid();
        let time = now_seconds();
        store.shards[shard].command(Command::CreateDisk { name, uuid, size, from: None, time })?;
        Ok(uuid)
    }

    /// A new disk that starts as a snapshot is, in the snapshot's shard.
    ///
    /// # Errors
    /// `Exists`, `Invalid`, `NotFound`, `NoSpace`.
    pub(super) fn clone_disk(&self, snapshot: &str, text: &str) -> Result<Uuid, Error> {
        // SPDK's clients may give the new name with the store before it.
        let text = text.split_once('/').map_or(text, |(_, name)| name);
        let name = name(text)?;
        let (_change, found) = self.change_of(snapshot)?;
        let Entity::Snapshot(_, snap) = &found.entity else {
            let why = format!(
                "{} is a disk: take a snapshot of it first, then clone that",
                found.alias()
            );
            return Err(Error::new(ErrorKind::Invalid, why));
        };
        self.refuse_disk_name(&found.store, name)?;
        let uuid = random::new_uuid();
        let (from, time) = (Some(snap.snap), now_seconds());
        let command = Command::CreateDisk { name, uuid, size: 0, from, time };
        found.store.shards[found.shard].command(command)?;
        Ok(uuid)
    }

    /// Gives a disk another size; its guests are told.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`, `NoSpace`.
    pub(super) fn resize_disk(&self, text: &str, size: u64) -> Result<(), Error> {
        let (_change, found, disk) = self.change_of_disk(text)?;
        let shard = &found.store.shards[found.shard];
        shard.command(Command::Resize(disk.id, size))?;
        // The engine rounds up; guests must hear what it made of it.
        let now = shard.query(move |engine| engine.disk_info(disk.id).map(|d| d.size))?;
        for export in self.exports_of(&found.store, found.shard, disk.id) {
            if let (Some(size), blob::Exported::Disk) = (now, export.record.dev) {
                export.resized(size);
            }
        }
        if let Some(size) = now {
            self.resize_namespaces(&found.store, found.shard, disk.id, size)?;
        }
        Ok(())
    }

    /// Gives a disk another name, or a snapshot another label.
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `Invalid`.
    pub(super) fn rename(&self, text: &str, new: &str) -> Result<(), Error> {
        let (_change, found) = self.change_of(text)?;
        let shard = &found.store.shards[found.shard];
        match &found.entity {
            Entity::Disk(disk) => {
                let new = name(new)?;
                self.refuse_disk_name(&found.store, new)?;
                shard.command(Command::RenameDisk(disk.id, new))?;
            }
            Entity::Snapshot(_, snap) => {
                if new.is_empty() {
                    let why = format!("a new name for {} is missing", found.alias());
                    return Err(Error::new(ErrorKind::Invalid, why));
                }
                let label = snapshots::label_of(new)?;
                shard.command(Command::LabelSnapshot(snap.snap, label))?;
            }
        }
        Ok(())
    }

    /// Deletes a disk with all its snapshots, or one snapshot.
    ///
    /// # Errors
    /// `NotFound`; `Busy` while exported.
    pub(super) fn delete(&self, text: &str) -> Result<(), Error> {
        let (_change, found) = self.change_of(text)?;
        let disk = found.entity.disk();
        let exports = self.exports_of(&found.store, found.shard, disk.id);
        let (command, blocking) = match &found.entity {
            Entity::Disk(disk) => (Command::DeleteDisk(disk.id), exports.first()),
            Entity::Snapshot(_, snap) => {
                let shown = blob::Exported::Snapshot(snap.snap.snap.0);
                let blocking = exports.iter().find(|export| export.record.dev == shown);
                (Command::DeleteSnapshot(snap.snap), blocking)
            }
        };
        if let Some(export) = blocking {
            let why = format!(
                "{} is exported as {} ({}): end that export first (lamina export detach {})",
                export.device_name,
                export.record.ctrlr,
                export.socket.display(),
                export.record.ctrlr
            );
            return Err(Error::new(ErrorKind::Busy, why));
        }
        let shown = match &found.entity {
            Entity::Disk(_) => None,
            Entity::Snapshot(_, snap) => Some(blob::Exported::Snapshot(snap.snap.snap.0)),
        };
        if let Some((device, one)) = self.shown_as(&found.store, found.shard, disk.id, shown) {
            let why = format!(
                "{} is namespace {} of {}: take it out first (lamina nvmf remove {} {})",
                device.alias, one.nsid, one.nqn, one.nqn, one.nsid
            );
            return Err(Error::new(ErrorKind::Busy, why));
        }
        self.nvmf.finish_leaving(&found.store, found.shard, disk.id, shown)?;
        match found.store.shards[found.shard].command(command)? {
            Reply::Unit => Ok(()),
            other => unreachable!("a deletion answered {other:?}"),
        }
    }

    /// Names are unique in a shard by the engine's care, and in a store by ours.
    fn refuse_disk_name(&self, store: &Arc<Store>, name: Name) -> Result<(), Error> {
        for shard in &store.shards {
            let taken = shard
                .query(move |engine| engine.disk_names().any(|(_, taken, _)| taken == name))?;
            if taken {
                let why =
                    format!("store {} has a disk {name} already: choose another name", store.name);
                return Err(Error::new(ErrorKind::Exists, why));
            }
        }
        Ok(())
    }
}

fn disk_of(found: &Found) -> Result<DiskInfo, Error> {
    match &found.entity {
        Entity::Disk(disk) => Ok(disk.clone()),
        Entity::Snapshot(..) => {
            let why = format!("{} is a snapshot; a disk is needed here", found.alias());
            Err(Error::new(ErrorKind::Invalid, why))
        }
    }
}

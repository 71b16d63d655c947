//! What an engine has: its disks and their snapshots, as people see them.

use crate::control::{DiskInfo, SnapInfo};
use crate::disk::{Disk, Snap};
use crate::engine::Engine;
use crate::types::{DiskId, Name, SnapId, SnapRef, Uuid};

impl Engine {
    /// Disks that are not being deleted, by slot.
    fn listed(&self) -> impl Iterator<Item = (DiskId, &Disk)> {
        let all = self.disks.iter().enumerate();
        let there = all.filter_map(|(id, disk)| Some((DiskId(id as u32), disk.as_deref()?)));
        there.filter(|(_, disk)| !disk.deleting)
    }

    /// All disks, by slot.
    pub fn disks(&self) -> Vec<DiskInfo> {
        self.listed().map(|(id, disk)| info(id, disk)).collect()
    }

    /// One disk; `None` if there is none in the slot.
    pub fn disk_info(&self, id: DiskId) -> Option<DiskInfo> {
        let disk = self.disks.get(id.0 as usize)?.as_ref()?;
        (!disk.deleting).then(|| info(id, disk))
    }

    /// Slot, name and identity of each disk, by slot: to find one without copying all.
    pub fn disk_names(&self) -> impl Iterator<Item = (DiskId, Name, Uuid)> {
        self.listed().map(|(id, disk)| (id, disk.name, disk.uuid))
    }

    /// The snapshots of this identity (there should be one), without copying any other.
    pub fn snapshots_called(&self, uuid: Uuid) -> impl Iterator<Item = SnapRef> {
        self.listed().flat_map(move |(disk, found)| {
            let called = found.snaps.iter().filter(move |s| s.uuid == uuid && !s.dying);
            called.map(move |s| SnapRef { disk, snap: SnapId(s.id) })
        })
    }

    /// One snapshot; `None` if there is none of that number.
    pub fn snapshot_info(&self, snap: SnapRef) -> Option<SnapInfo> {
        let disk = self.disks.get(snap.disk.0 as usize)?.as_ref()?;
        let found = disk.snap(snap.snap.0).filter(|s| !s.dying && !disk.deleting)?;
        Some(self.snap_info(snap.disk, found))
    }

    /// Names of the disks that were made from a snapshot, by slot.
    pub fn clone_names(&self, snap: SnapRef) -> impl Iterator<Item = Name> {
        let origin = Some((snap.disk.0, snap.snap.0));
        let clones = self.listed().filter(move |(_, d)| d.origin == origin && !d.adopted);
        clones.map(|(_, disk)| disk.name)
    }

    /// The snapshots of a disk, oldest first.
    pub fn snapshots(&self, disk: DiskId) -> Vec<SnapInfo> {
        let Some(found) = self.disks.get(disk.0 as usize).and_then(|d| d.as_ref()) else {
            return Vec::new();
        };
        found
            .snaps
            .iter()
            .filter(|s| !s.dying && !found.deleting)
            .map(|s| self.snap_info(disk, s))
            .collect()
    }

    fn snap_info(&self, disk: DiskId, snap: &Snap) -> SnapInfo {
        SnapInfo {
            snap: SnapRef { disk, snap: SnapId(snap.id) },
            uuid: snap.uuid,
            label: snap.label,
            time: snap.time,
            size: snap.size,
            mapped_blocks: snap.mapped,
            clones: self.clones_of(disk, snap),
            attached: snap.attached,
        }
    }

    /// Disks that were made from the snapshot (those it has inherited from a deleted one excepted).
    fn clones_of(&self, disk: DiskId, snap: &Snap) -> u32 {
        if snap.clones == 0 {
            return 0;
        }
        let clones = self.disks.iter().flatten().filter(|d| !d.deleting && !d.adopted);
        clones.filter(|d| d.origin == Some((disk.0, snap.id))).count() as u32
    }
}

fn info(id: DiskId, disk: &Disk) -> DiskInfo {
    DiskInfo {
        id,
        name: disk.name,
        uuid: disk.uuid,
        size: disk.size,
        mapped_blocks: disk.mapped,
        created: disk.created,
        origin: disk
            .origin
            .filter(|_| !disk.adopted)
            .map(|(disk, snap)| SnapRef { disk: DiskId(disk), snap: SnapId(snap) }),
        snapshots: disk.snaps.iter().filter(|s| !s.dying).count() as u64,
        attached: disk.attached,
        blob: disk.blob.clone(),
        claims: disk.claims.clone(),
    }
}

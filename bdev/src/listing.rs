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

    /// The snapshots of a disk, oldest first.
    pub fn snapshots(&self, disk: DiskId) -> Vec<SnapInfo> {
        let Some(found) = self.disks.get(disk.0 as usize).and_then(|d| d.as_ref()) else {
            return Vec::new();
        };
        found
            .snaps
            .iter()
            .filter(|s| !s.dying && !found.deleting)
            .map(|s| SnapInfo {
                snap: SnapRef { disk, snap: SnapId(s.id) },
                uuid: s.uuid,
                label: s.label,
                time: s.time,
                size: s.size,
                mapped_blocks: s.mapped,
                clones: self.clones_of(disk, s),
                attached: s.attached,
            })
            .collect()
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

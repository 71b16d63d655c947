//! Comparing what the engine lists with the model: after each recovery (where commands cut short
//! leave a choice) and at rest (where they do not).

use std::collections::BTreeMap;

use lamina_bdev::{DiskInfo, SnapInfo, SnapRef, Uuid};

use super::model::{Place, Uid};
use super::world::World;

impl World {
    /// Settles the model on what recovery shows, or finds that it may not show that.
    pub(super) fn reconcile(&mut self) -> Result<(), String> {
        let lossy = std::mem::take(&mut self.model.lossy);
        let mut listed: BTreeMap<Uuid, DiskInfo> =
            self.engine().disks().into_iter().map(|info| (info.uuid, info)).collect();
        let uids: Vec<Uid> = self.model.disks.keys().copied().collect();
        for uid in uids {
            let found = listed.remove(&self.model.disk(uid).uuid);
            let disk = self.model.disk_mut(uid);
            let what = format!("after recovery, disk {uid} ({})", disk.name.now);
            disk.exists
                .settle(found.is_some(), lossy)
                .map_err(|why| format!("{what}: its presence {why}"))?;
            let Some(info) = found else {
                self.model.forget_disk(uid);
                self.doomed.remove(&uid);
                continue;
            };
            disk.id = Some(info.id);
            self.damage.resides(info.id, disk.family);
            disk.name.settle(info.name, lossy).map_err(|why| format!("{what}: its name {why}"))?;
            disk.size.settle(info.size, lossy).map_err(|why| format!("{what}: its size {why}"))?;
            disk.blob.settle(info.blob, lossy).map_err(|why| format!("{what}: its blob {why}"))?;
            let claims = disk.claims.settle(info.claims, lossy);
            claims.map_err(|why| format!("{what}: its claims {why}"))?;
            self.reconcile_snaps(uid, lossy)?;
        }
        if let Some(info) = listed.values().next() {
            return Err(format!("after recovery there is disk {:?}, which is not due", info.name));
        }
        for (uid, size, op) in std::mem::take(&mut self.cut_shrinks) {
            if self.model.disks.get(&uid).is_some_and(|disk| disk.size.now == size) {
                let at = self.model.tick();
                self.model.ops.proven(op, at, lossy);
            }
        }
        self.check_listing()?;
        if self.empty_blocks.is_none() {
            let info = self.engine().store_info();
            self.empty_blocks = Some(info.free_blocks + info.pending_blocks);
        }
        Ok(())
    }

    fn reconcile_snaps(&mut self, uid: Uid, lossy: bool) -> Result<(), String> {
        let id = self.model.disk(uid).id.expect("just found");
        let mut listed: BTreeMap<Uuid, SnapInfo> =
            self.engine().snapshots(id).into_iter().map(|info| (info.uuid, info)).collect();
        let mut snaps: Vec<Uid> =
            self.model.snaps.iter().filter(|(_, s)| s.disk == uid).map(|(snap, _)| *snap).collect();
        snaps.sort_by_key(|snap| self.model.snaps[snap].window.from);
        let mut lost: Option<Uid> = None;
        for snap_uid in snaps {
            let snap = self.model.snap_mut(snap_uid);
            let not_deleted = snap.exists.now && !snap.exists.was_proposed(&false);
            let found = listed.remove(&snap.uuid);
            let what = format!("after recovery, snapshot {snap_uid} of disk {uid}");
            snap.exists
                .settle(found.is_some(), lossy)
                .map_err(|why| format!("{what}: its presence {why}"))?;
            let Some(info) = found else {
                if not_deleted {
                    lost = lost.or(Some(snap_uid));
                }
                continue;
            };
            snap.id = Some(info.snap.snap);
            snap.label
                .settle(info.label, lossy)
                .map_err(|why| format!("{what}: its label {why}"))?;
            let from = snap.window.from;
            if let Some(lost) = lost.filter(|lost| self.model.snaps[lost].window.to < from) {
                return Err(format!("{what} is there, but the older snapshot {lost} is lost"));
            }
        }
        match listed.values().next() {
            Some(info) => Err(format!(
                "after recovery disk {uid} has snapshot {:?} ({:?}), which is not due",
                info.snap, info.label
            )),
            None => {
                self.model.snaps.retain(|_, snap| snap.disk != uid || snap.exists.now);
                Ok(())
            }
        }
    }

    /// Compares all listings with the model; only while no command is in flight.
    pub(super) fn check_listing(&mut self) -> Result<(), String> {
        let mut listed: BTreeMap<Uuid, DiskInfo> = BTreeMap::new();
        let mut count = 0;
        for info in self.engine().disks() {
            count += 1;
            listed.insert(info.uuid, info);
        }
        if count != self.model.live_disks().len()
            || count as u64 != self.engine().store_info().disks
        {
            return Err(format!(
                "{count} disks are listed, the store counts {}, {} are due",
                self.engine().store_info().disks,
                self.model.live_disks().len()
            ));
        }
        for uid in self.model.live_disks() {
            let disk = self.model.disk(uid);
            let Some(info) = listed.get(&disk.uuid) else {
                return Err(format!("disk {uid} ({}) is not listed", disk.name.now));
            };
            let due = DiskInfo {
                id: disk.id.expect("it is there"),
                name: disk.name.now,
                uuid: disk.uuid,
                size: disk.size.now,
                mapped_blocks: info.mapped_blocks,
                created: disk.created,
                origin: disk
                    .origin
                    .filter(|origin| self.model.snaps.contains_key(origin))
                    .map(|origin| self.origin_ref(origin)),
                snapshots: self.model.snaps.values().filter(|s| s.disk == uid).count() as u64,
                attached: self.attached_count(Place::Disk(uid)),
                blob: disk.blob.now.clone(),
                claims: disk.claims.now.clone(),
            };
            if *info != due {
                return Err(format!("disk {uid} is listed as\n    {info:?}, due is\n    {due:?}"));
            }
            self.check_snap_listing(uid)?;
        }
        Ok(())
    }

    fn origin_ref(&self, origin: Uid) -> SnapRef {
        let snap = &self.model.snaps[&origin];
        let disk = self.model.disk(snap.disk).id.expect("it is there");
        SnapRef { disk, snap: snap.id.expect("it is there") }
    }

    fn attached_count(&self, place: Place) -> u32 {
        self.attachments.values().filter(|a| a.place == place).count() as u32
    }

    fn check_snap_listing(&self, uid: Uid) -> Result<(), String> {
        let disk = self.model.disk(uid).id.expect("it is there");
        let listed = self.engine().snapshots(disk);
        if !listed.is_sorted_by_key(|info| info.snap.snap) {
            return Err(format!("the snapshots of disk {uid} are listed out of order"));
        }
        for (snap_uid, snap) in self.model.snaps.iter().filter(|(_, s)| s.disk == uid) {
            let Some(info) = listed.iter().find(|info| info.uuid == snap.uuid) else {
                return Err(format!("snapshot {snap_uid} of disk {uid} is not listed"));
            };
            let due = SnapInfo {
                snap: self.origin_ref(*snap_uid),
                uuid: snap.uuid,
                label: snap.label.now,
                time: snap.time,
                size: snap.size,
                mapped_blocks: info.mapped_blocks,
                clones: self.model.clones(*snap_uid) as u32,
                attached: self.attached_count(Place::Snap(*snap_uid)),
            };
            if *info != due {
                return Err(format!(
                    "snapshot {snap_uid} is listed as\n    {info:?}, due is\n    {due:?}"
                ));
            }
        }
        Ok(())
    }
}

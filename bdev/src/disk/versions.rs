//! The tree of versions: which snapshots and live disks come right before and after one another.
//!
//! ```text
//!  vm: s1 ──── s2 ──── live        A block belongs to a connected piece of this tree: once dropped
//!              ║                   it never comes back. So it is free exactly if the version that
//!  clone:      ╚══ c1 ──── live    drops it has no neighbour that still has it.
//!
//!   s2 deleted: a ghost. It has no map any more, but s1, vm's live and c1 are neighbours through
//!   it. When fewer than two versions come after a ghost, it goes too.
//! ```
//!
//! A snapshot that the reaper is taking apart is like a ghost for the leaves it has passed. One of
//! which a repair has given up something is a neighbour, and connects its neighbours like a ghost.

use crate::disk::{Disk, Root, Snap};
use crate::engine::Engine;

/// A snapshot, or the live version by its epoch: disk slot and number.
pub(crate) type Version = (u32, u64);

/// The versions that may share blocks with one, as roots.
#[derive(Default)]
pub(crate) struct Neighbours {
    pub roots: Vec<Root>,
    /// Some are neighbours through a deleted snapshot only, so that several may drop the same
    /// block between the same two checkpoints.
    pub bridged: bool,
    /// Versions still to be looked at: the first of the disk from this number on.
    stack: Vec<Version>,
}

/// True if the snapshot has its nodes and blocks in leaves up to (not including) `leaf_end`.
fn holds(disk: &Disk, snap: &Snap, leaf_end: u64) -> bool {
    !snap.ghost && (snap.id != disk.reaping || leaf_end > disk.reap_cursor)
}

impl Engine {
    fn known_disk(&self, slot: u32) -> &Disk {
        self.disks[slot as usize].as_ref().expect("a disk with versions exists")
    }

    /// The version before this one.
    fn parent(&self, (slot, epoch): Version) -> Option<Version> {
        let disk = self.known_disk(slot);
        match disk.snaps.partition_point(|s| s.id < epoch) {
            0 => disk.origin.filter(|_| !disk.origin_lost),
            older => Some((slot, disk.snaps[older - 1].id)),
        }
    }

    /// The versions that may have what `version` drops from leaves up to `leaf_end`: those before
    /// it, with `newer` those after it as well. As of the running checkpoint's freeze.
    pub(crate) fn neighbours(
        &self,
        version: Version,
        leaf_end: u64,
        newer: bool,
        found: &mut Neighbours,
    ) {
        found.roots.clear();
        found.bridged = false;
        let mut from = version;
        while let Some(parent) = self.parent(from) {
            let disk = self.known_disk(parent.0);
            let snap = disk.snap(parent.1).expect("a version that others come after exists");
            if holds(disk, snap, leaf_end) {
                found.roots.push(snap.root.unwrap_or_default());
                if !snap.holed {
                    break;
                }
            }
            found.bridged = true;
            self.push_children(parent, Some(from.0), found);
            from = parent;
        }
        if newer {
            self.push_children(version, None, found);
        }
        while let Some((slot, from)) = found.stack.pop() {
            let disk = self.known_disk(slot);
            let at = disk.snaps.partition_point(|s| s.id < from);
            match disk.snaps.get(at).filter(|s| s.id < disk.frozen_epoch) {
                Some(snap) if holds(disk, snap, leaf_end) && !snap.holed => {
                    found.roots.push(snap.root.unwrap_or_default());
                }
                Some(snap) => {
                    if holds(disk, snap, leaf_end) {
                        found.roots.push(snap.root.unwrap_or_default());
                    }
                    found.bridged = true;
                    let snap = (slot, snap.id);
                    self.push_children(snap, None, found);
                }
                None if disk.live_gone => {}
                None if disk.live_reaped() && leaf_end <= disk.reap_cursor => {}
                None => found.roots.push(disk.root),
            }
        }
    }

    /// What comes right after a snapshot, but for what is on disk `except`.
    fn push_children(&self, (slot, id): Version, except: Option<u32>, found: &mut Neighbours) {
        if except != Some(slot) {
            found.stack.push((slot, id + 1));
        }
        let snap = self.known_disk(slot).snap(id);
        if snap.is_none_or(|s| s.clones == 0) {
            return;
        }
        for (clone, disk) in self.disks.iter().enumerate() {
            let clone = clone as u32;
            let origin = disk.as_ref().and_then(|d| d.origin);
            if origin == Some((slot, id)) && except != Some(clone) {
                found.stack.push((clone, 0));
            }
        }
    }

    /// True if a version comes after the snapshot on its own disk.
    fn has_next(&self, (slot, id): Version) -> bool {
        let disk = self.known_disk(slot);
        disk.snaps.last().is_some_and(|s| s.id > id) || !disk.live_gone
    }

    /// Snapshots of `slot` that are about to lose blocks: what their clones share with them is no
    /// longer certain.
    pub(crate) fn unsettle_clones(&mut self, slot: u32, which: impl Fn(u64) -> bool) {
        for disk in self.disks.iter_mut().flatten() {
            if disk.origin.is_some_and(|(origin, snap)| origin == slot && which(snap)) {
                disk.adopted = true;
                disk.dirty = true;
            }
        }
    }

    /// Removes a ghost that connects nothing any more, and those before it that then connect
    /// nothing either.
    pub(crate) fn collapse(&mut self, mut at: Version) {
        loop {
            let disk = self.known_disk(at.0);
            let Some(snap) = disk.snap(at.1).filter(|s| s.ghost) else { return };
            let (clones, next) = (snap.clones, self.has_next(at));
            if clones + u32::from(next) > 1 {
                return;
            }
            let parent = self.parent(at);
            if clones == 1 {
                self.adopt_clone(at, parent);
            }
            self.forget_snapshot(at);
            match parent.filter(|p| clones == 0 && !next && p.0 == at.0) {
                Some(parent) => at = parent,
                None => return,
            }
        }
    }

    /// The only clone of a vanishing ghost comes after what was before the ghost.
    fn adopt_clone(&mut self, ghost: Version, parent: Option<Version>) {
        let mut disks = self.disks.iter_mut().flatten();
        let clone = disks.find(|d| d.origin == Some(ghost)).expect("clones are counted");
        clone.origin = parent;
        clone.adopted = true;
        clone.dirty = true;
        clone.guarded = clone.guarded.max(1);
        if let Some((slot, id)) = parent {
            let disk = self.disks[slot as usize].as_mut().expect("a disk with versions exists");
            disk.snap_mut(id).expect("a version that others come after exists").clones += 1;
        }
    }

    /// Takes a snapshot off its disk's list and out of the log.
    pub(crate) fn forget_snapshot(&mut self, (slot, id): Version) {
        let disk = self.disks[slot as usize].as_mut().expect("a disk with versions exists");
        let at = disk.snaps.partition_point(|s| s.id < id);
        let snap = disk.snaps.remove(at);
        assert_eq!(snap.id, id, "only existing snapshots are forgotten");
        if let Some((block, entry)) = snap.place {
            let block = &mut disk.log[block as usize];
            block.used &= !(1 << entry);
            block.dirty = true;
        }
        disk.guarded = disk.guarded.max(id + 1);
        disk.dirty = true;
        disk.refresh_newest();
    }
}

//! Virtual disks and their snapshots, as the engine keeps them in RAM.
//!
//! A disk's life is divided into **epochs** by its snapshots: snapshot `n` ends epoch `n`. A node
//! knows the epoch it was born in; it is shared exactly if some snapshot from that epoch on still
//! exists. So taking a snapshot touches no node, and deleting one makes nodes writable again.

pub(crate) mod at_once;
pub(crate) mod discard;
pub(crate) mod in_place;
pub(crate) mod read;
pub(crate) mod straight;
pub(crate) mod versions;
pub(crate) mod write;

use crate::error::{Error, ErrorKind};
use crate::format::disk_record::{REAP_LIVE, REAP_NONE, Seal};
use crate::format::node::{NodeRef, Stamp};
use crate::format::pairs::Sums;
use crate::limits::{LEVEL_BITS, LEVEL_MAX};
use crate::types::{Name, Uuid};

/// The root of a tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Root {
    /// Address of the root node; 0 = everything is a hole.
    pub address: u64,
    pub level: u8,
    /// Consistency point that wrote the root node.
    pub generation: u64,
}

impl Root {
    /// What leads to the root node.
    pub fn node(&self) -> NodeRef {
        NodeRef { address: self.address, stamp: Stamp::exactly(self.generation) }
    }

    /// An empty tree that keeps its height.
    pub fn emptied(self) -> Root {
        Root { address: 0, level: self.level, generation: 0 }
    }
}

/// A snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Snap {
    pub id: u64,
    pub uuid: Uuid,
    pub label: Name,
    pub time: u64,
    pub size: u64,
    pub mapped: u64,
    /// `None` until a consistency point has written its tree.
    pub root: Option<Root>,
    /// That consistency point has committed: the tree can be read.
    pub written: bool,
    /// In-place writes that began before it and are not done.
    pub drain: u64,
    /// Deleted; what it alone holds is coming back.
    pub dying: bool,
    /// Deleted and taken apart, but several versions come after it: kept, without a tree, to
    /// connect them (see [`versions`]).
    pub ghost: bool,
    /// A repair has given up something of it, so that what comes before it and what comes after it
    /// may share what it has not.
    pub holed: bool,
    pub attached: u32,
    pub clones: u32,
    /// Block of the snapshot log and entry there.
    pub place: Option<(u32, u8)>,
}

/// A pair of blocks of the snapshot log.
#[derive(Clone, Debug)]
pub(crate) struct LogBlock {
    pub address: u64,
    pub side: usize,
    /// Of the copy that counts; 0 = never written.
    pub generation: u64,
    pub used: u32,
    pub dirty: bool,
    /// Never written: both copies are due.
    pub fresh: bool,
}

impl LogBlock {
    /// One that is still to be written, at a new place.
    pub fn fresh(address: u64) -> LogBlock {
        LogBlock { address, side: 1, generation: 0, used: 0, dirty: true, fresh: true }
    }
}

/// A disk.
pub(crate) struct Disk {
    pub name: Name,
    pub uuid: Uuid,
    /// Bytes presented; during a shrink already the new size.
    pub size: u64,
    /// Bytes in the record: differs from `size` only during a shrink. A snapshot has this size:
    /// what the shrink cuts off is still there in part, and past the end of the snapshot it would
    /// come back in a clone that grows.
    pub record_size: u64,
    pub root: Root,
    /// Number of the next snapshot.
    pub epoch: u64,
    /// Newest snapshot that still counts, 0 if there is none.
    pub newest: u64,
    /// Nodes born before this may belong to a version whose deletion has not committed yet: until
    /// then its blocks stay as they are, since a crash would bring it back.
    pub guarded: u64,
    pub mapped: u64,
    pub created: u64,
    pub origin: Option<(u32, u64)>,
    /// The snapshot it was cloned from is deleted or about to be: `origin` is what came before it.
    pub adopted: bool,
    /// The disk or snapshot that `origin` names could not be opened.
    pub origin_lost: bool,
    /// Consistency point that made it: older nodes in its tree are another disk's.
    pub born: u64,
    /// Sorted by id.
    pub snaps: Vec<Snap>,
    pub log: Vec<LogBlock>,
    /// Over the generations of its blocks.
    pub log_sums: Sums,
    /// Acknowledged writes are lost.
    pub sealed: Option<Seal>,
    pub deleting: bool,
    /// Of a deleted disk: nothing is left of the live tree.
    pub live_gone: bool,
    /// Version being reaped and how far.
    pub reaping: u64,
    pub reap_cursor: u64,
    pub blob: Vec<u8>,
    /// Of remote hosts.
    pub claims: Vec<u8>,
    pub attached: u32,
    pub resizing: bool,
    /// In-place writes in flight.
    pub in_place: u64,
    /// Its record must be written by the next checkpoint.
    pub dirty: bool,
    /// Record copy that counts; a fresh one gets both.
    pub side: usize,
    pub fresh: bool,
    /// As of the running checkpoint's freeze.
    pub frozen_epoch: u64,
    pub frozen_mapped: u64,
    /// Traffic of the live disk.
    pub traffic: Traffic,
}

/// Counters of one disk.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Reads done.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes done.
    pub writes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Discards and write-zeroes done.
    pub discards: u64,
    /// Bytes discarded or zeroed.
    pub discard_bytes: u64,
}

impl Disk {
    pub fn new(name: Name, uuid: Uuid, size: u64, created: u64) -> Disk {
        Disk {
            name,
            uuid,
            size,
            record_size: size,
            root: Root::default(),
            epoch: 1,
            newest: 0,
            guarded: 0,
            mapped: 0,
            created,
            origin: None,
            adopted: false,
            origin_lost: false,
            born: 0,
            snaps: Vec::new(),
            log: Vec::new(),
            log_sums: Sums::default(),
            sealed: None,
            deleting: false,
            live_gone: false,
            reaping: REAP_NONE,
            reap_cursor: 0,
            blob: Vec::new(),
            claims: Vec::new(),
            attached: 0,
            resizing: false,
            in_place: 0,
            dirty: true,
            side: 1,
            fresh: true,
            frozen_epoch: 1,
            frozen_mapped: 0,
            traffic: Traffic::default(),
        }
    }

    pub fn snap(&self, id: u64) -> Option<&Snap> {
        self.snaps.binary_search_by_key(&id, |s| s.id).ok().map(|i| &self.snaps[i])
    }

    pub fn snap_mut(&mut self, id: u64) -> Option<&mut Snap> {
        self.snaps.binary_search_by_key(&id, |s| s.id).ok().map(|i| &mut self.snaps[i])
    }

    /// Refuses what would show or change a disk of which acknowledged writes are lost: the live one
    /// (`None`) or one of its snapshots.
    pub fn whole(&self, snap: Option<u64>) -> Result<(), Error> {
        let Some(seal) = self.sealed.filter(|s| snap.is_none_or(|id| id >= s.epoch)) else {
            return Ok(());
        };
        let text = format!(
            "disk {} is sealed: {}; delete it, clone an older snapshot, or accept the loss with `lamina check --repair --cut-off`",
            self.name,
            seal.text()
        );
        Err(Error::new(ErrorKind::Corrupt, text))
    }

    /// After a change of `snaps`.
    pub fn refresh_newest(&mut self) {
        self.newest = self.snaps.last().map_or(0, |s| s.id);
    }

    /// Nodes born before this are shared: an older version has them too.
    pub fn floor(&self) -> u64 {
        if self.newest > 0 { self.newest + 1 } else { u64::from(self.origin.is_some()) }
    }

    /// True if the version before the live one is deleted, or has holes: whether a block dropped
    /// from the live tree is free then depends on its neighbours, which only the next checkpoint
    /// can look at.
    pub fn ambiguous(&self) -> bool {
        self.snaps.last().map_or(self.adopted, |s| s.dying || s.holed)
    }

    /// The same for the version that epoch `epoch` wrote, and a node whose leaves end before
    /// `leaf_end`: where the reaper has passed, a deleted snapshot does not count.
    pub fn older(&self, epoch: u64, leaf_end: u64) -> Older {
        let older = self.snaps.partition_point(|s| s.id < epoch);
        let passed = |s: &Snap| s.id == self.reaping && leaf_end <= self.reap_cursor;
        let newest = self.snaps[..older].iter().rev().find(|s| !passed(s) || s.clones > 0);
        match newest {
            Some(s) => Older { floor: s.id + 1, certain: !s.ghost && !s.holed && !passed(s) },
            None if self.origin.is_some() => Older { floor: 1, certain: !self.adopted },
            None => Older { floor: 0, certain: true },
        }
    }

    /// True while the live version of a deleted disk still holds leaves up to `leaf_end`.
    pub fn live_reaped(&self) -> bool {
        self.reaping == REAP_LIVE
    }
}

/// What stands before a version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Older {
    /// Nodes born before this may not be changed: an older version, or one that descends from it,
    /// may have them.
    pub floor: u64,
    /// An older version has them for certain.
    pub certain: bool,
}

/// Level the root must have for leaf `index` to be below it.
pub(crate) fn level_for(index: u64) -> u8 {
    let mut level = 0;
    while index >> (LEVEL_BITS * u32::from(level)) != 0 {
        level += 1;
    }
    assert!(level <= LEVEL_MAX, "a leaf lies past the largest disk");
    level
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_grow_by_nine_bits() {
        let at = |i| level_for(i);
        assert_eq!([at(0), at(1), at(511), at(512), at(262_143), at(262_144)], [0, 1, 1, 2, 2, 3]);
        assert_eq!(level_for((1 << 27) - 1), 3);
    }

    #[test]
    fn the_snapshot_being_reaped_counts_only_ahead_of_the_cursor() {
        let mut disk = Disk::new(Name::EMPTY, Uuid([0; 16]), 1 << 30, 0);
        for id in [2, 5, 9] {
            disk.snaps.push(Snap {
                id,
                uuid: Uuid([0; 16]),
                label: Name::EMPTY,
                time: 0,
                size: 0,
                mapped: 0,
                root: None,
                written: false,
                drain: 0,
                dying: false,
                ghost: false,
                holed: false,
                attached: 0,
                clones: 0,
                place: None,
            });
        }
        disk.refresh_newest();
        let floors = |disk: &Disk, at: &[u64]| {
            at.iter().map(|&e| disk.older(e, 100).floor).collect::<Vec<_>>()
        };
        assert_eq!(floors(&disk, &[1, 2, 3, 9, 10]), [0, 0, 3, 6, 10]);
        assert_eq!(disk.floor(), 10);
        disk.reaping = 9;
        disk.reap_cursor = 50;
        disk.snaps[2].dying = true;
        assert!(disk.ambiguous());
        let sure = |floor, certain| Older { floor, certain };
        assert_eq!([50, 51].map(|end| disk.older(10, end)), [sure(6, true), sure(10, true)]);
        // With clones it still connects them, where the reaper has passed too.
        disk.snaps[2].clones = 1;
        assert_eq!([50, 51].map(|end| disk.older(10, end)), [sure(10, false), sure(10, true)]);
        disk.snaps[2].ghost = true;
        assert_eq!(disk.older(10, 51), sure(10, false));
        // One with holes holds its floor, but nothing for certain.
        (disk.snaps[2].ghost, disk.snaps[2].holed) = (false, true);
        assert_eq!(disk.older(10, 51), sure(10, false));
        // A clone: its origin counts, for certain until that is deleted.
        disk.snaps.clear();
        disk.refresh_newest();
        disk.origin = Some((4, 4));
        assert_eq!((disk.floor(), disk.ambiguous(), disk.older(10, 1)), (1, false, sure(1, true)));
        disk.adopted = true;
        assert_eq!((disk.floor(), disk.ambiguous(), disk.older(10, 1)), (1, true, sure(1, false)));
    }
}

//! Recovery's replay: one journal record at a time, applied to the trees as the last consistency
//! point left them.
//!
//! What was acknowledged is never skipped because something else is broken: where the map is
//! damaged, a new leaf takes the record and says of everything else in it that it is lost. A node
//! that cannot be read counts as damaged if the device answers for another block at the same time;
//! else the store does not open, since the device may come back.

use crate::engine::Engine;
use crate::format::journal::Record;
use crate::format::node;
use crate::limits::{LEVEL_BITS, LINKS, WRITE_RETRIES};
use crate::map::node_cache::{Key, State};
use crate::map::radix::Found;
use crate::recover::Recovery;

/// Why a record was not applied.
pub(crate) enum Unapplied {
    /// It cannot be right: skipped.
    Unlawful(String),
    /// The device fails: it must not be skipped, since it was acknowledged.
    Unreadable(String),
}

/// Where a record's leaf is.
enum Leaf {
    /// In this slot, pinned.
    Here(u32),
    /// Nothing is mapped there.
    Absent,
    /// Something has to be read first.
    Wait,
}

impl Engine {
    /// Applies one record. Ok(false): something has to be read first.
    pub(crate) fn replay(
        &mut self,
        record: &Record,
        recovery: &Recovery,
    ) -> Result<bool, Unapplied> {
        let (disk, vba, len, pba) = match *record {
            Record::Snapshot { disk, uuid, time, label, .. } => {
                self.replay_disk(disk)?;
                self.enter_snapshot(disk, uuid, label, time);
                return Ok(true);
            }
            Record::Write { disk, vba, pba, len, .. } => (disk, vba, u64::from(len), Some(pba)),
            Record::Discard { disk, vba, len } => (disk, vba, u64::from(len), None),
        };
        self.replay_disk(disk)?;
        let found = self.disks[disk as usize].as_ref().expect("checked");
        let in_leaf = vba % LINKS as u64 + len <= LINKS as u64 && len > 0;
        let blocks = found.record_size >> 12;
        if !in_leaf || vba.saturating_add(len) > blocks {
            let why = format!("blocks {vba} and up lie outside disk {}", found.name);
            return Err(Unapplied::Unlawful(why));
        }
        if let Some(pba) = pba
            && !self.replay_bitmap(pba, len, recovery)?
        {
            return Ok(false);
        }
        let slot = match self.replay_leaf(disk, vba >> LEVEL_BITS, recovery)? {
            Leaf::Here(slot) => slot,
            Leaf::Wait => return Ok(false),
            Leaf::Absent if pba.is_none() => return Ok(true),
            Leaf::Absent => self.fresh_leaf(disk, vba >> LEVEL_BITS),
        };
        let claimed = pba.is_none_or(|pba| (pba..pba + len).all(|b| self.space.claim(b)));
        if claimed {
            self.apply(slot, disk, vba, pba, len);
        }
        self.cache.unpin(slot);
        match pba.filter(|_| !claimed) {
            None => Ok(true),
            Some(pba) => {
                let why = format!("of blocks {pba} to {} one has two owners", pba + len - 1);
                Err(Unapplied::Unlawful(why))
            }
        }
    }

    fn replay_disk(&self, disk: u32) -> Result<(), Unapplied> {
        let found = self.disks.get(disk as usize).and_then(|d| d.as_ref());
        match found {
            Some(found) if !found.deleting => Ok(()),
            _ => Err(Unapplied::Unlawful(format!("disk number {disk} is not available"))),
        }
    }

    /// Makes sure that the blocks of a record can be claimed. Ok(false): the bitmap is being read.
    fn replay_bitmap(
        &mut self,
        pba: u64,
        len: u64,
        recovery: &Recovery,
    ) -> Result<bool, Unapplied> {
        if !self.lawful_run(pba, len) {
            let why = format!("physical blocks {pba} and up are out of bounds");
            return Err(Unapplied::Unlawful(why));
        }
        let extent = self.space.geometry.extent_of(pba).expect("lawful") as usize;
        if self.space.loaded(extent) || self.space.load_fresh(extent) {
            return Ok(true);
        }
        if recovery.bitmap_failures >= WRITE_RETRIES {
            if recovery.device_gone {
                let why =
                    format!("the bitmap of extent {extent} cannot be read: the device is gone");
                return Err(Unapplied::Unreadable(why));
            }
            // What else is free of that extent can be found out otherwise.
            self.bitmap_failures = 0;
            self.give_bitmap_up(extent, false);
            return Ok(true);
        }
        self.space.wanted = Some(extent);
        Ok(false)
    }

    fn replay_leaf(
        &mut self,
        disk: u32,
        leaf: u64,
        recovery: &Recovery,
    ) -> Result<Leaf, Unapplied> {
        if self.cache.spare() <= self.cache_reserve() + 2 {
            // Bounded by the journal: what was dirty at the crash had fitted its cache then.
            self.cache.grow(256);
        }
        let gave_up = recovery.node_failures >= WRITE_RETRIES;
        if gave_up && !self.checkpoint.bad_node_is_damaged() && !recovery.device_answers {
            let name = self.disks[disk as usize].as_ref().expect("checked").name;
            let why = format!(
                "the base device fails to read the map of disk {name}, which acknowledged writes in the journal need"
            );
            return Err(Unapplied::Unreadable(why));
        }
        let found = if gave_up { Found::Lost } else { self.find_leaf(disk, leaf) };
        Ok(match found {
            Found::Hit(slot) => {
                let pinned = self.cache.pin(slot, 0);
                assert!(pinned, "room was made");
                Leaf::Here(slot)
            }
            Found::Absent => Leaf::Absent,
            Found::Loading(_) | Found::NoRoom => Leaf::Wait,
            Found::Lost => Leaf::Here(self.lost_leaf(disk, leaf)),
        })
    }

    /// An empty leaf, pinned.
    fn fresh_leaf(&mut self, disk: u32, leaf: u64) -> u32 {
        let key = Key::new(disk, 0, leaf);
        let slot = self.cache.insert(key, State::Clean, 0).expect("room was made");
        let found = self.disks[disk as usize].as_ref().expect("checked");
        let meta = &mut self.cache.meta[slot as usize];
        meta.birth = found.epoch;
        meta.shared_with = found.newest;
        slot
    }

    /// A leaf in place of one that cannot be had since the map is damaged there, pinned: everything
    /// in it is lost, but for what the journal is about to put there.
    fn lost_leaf(&mut self, disk: u32, leaf: u64) -> u32 {
        let slot = self.fresh_leaf(disk, leaf);
        self.cache.links[slot as usize].fill(node::LOST | node::READ_ONLY);
        let name = self.disks[disk as usize].as_ref().expect("checked").name;
        let first = leaf << LEVEL_BITS;
        let text = format!(
            "disk {name}: the map of its blocks {first} to {} is damaged; what the journal does not hold of them is lost",
            first + LINKS as u64 - 1
        );
        self.event(true, text);
        slot
    }
}

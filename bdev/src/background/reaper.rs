//! The reaper frees what a deleted version alone holds, by walking it next to its neighbours.
//!
//! ```text
//!   older ──── V (deleted) ──── newer      a subtree of V that a neighbour also has, at the
//!                 ║                        same place and address, is skipped whole; what only
//!        walk in leaf order, cursor kept   V has is freed, leaves first
//! ```
//!
//! It runs inside a consistency point, after the point's own nodes are on disk, and sees only trees
//! that no longer change. Its cursor and what it freed commit with the point, so a crash repeats
//! nothing. Leaves below the cursor no longer count the deleted version as sharing them; what the
//! live disk drops meanwhile goes through the checkpoint's undecided list.

use crate::background::walker::{REAPER, Walk};
use crate::disk::Root;
use crate::engine::Engine;
use crate::format::disk_record::{REAP_LIVE, REAP_NONE};
use crate::format::node;
use crate::limits::{LEVEL_BITS, LINKS, REAP_READS_CHECKPOINT};
use crate::pipeline::checkpoint::Step;

impl Engine {
    /// True while a deleted version has not been taken apart.
    pub(crate) fn reaping(&self) -> bool {
        self.to_reap > 0
    }

    /// Recounts the versions that wait for the reaper.
    pub(crate) fn count_reapable(&mut self) {
        let count = |d: &crate::disk::Disk| {
            let dying = d.snaps.iter().filter(|s| s.dying).count();
            if d.deleting { 1 + d.snaps.len() } else { dying }
        };
        let gone = &self.checkpoint.gone;
        let left = self.disks.iter().enumerate().filter(|(i, _)| !gone.contains(&(*i as u32)));
        self.to_reap = left.filter_map(|(_, d)| d.as_ref()).map(|d| count(d)).sum();
    }

    pub(crate) fn begin_reap(&mut self) {
        self.checkpoint.reap_budget = REAP_READS_CHECKPOINT * 8;
        self.walkers[REAPER].reads = 0;
    }

    /// One position of the walk.
    pub(crate) fn reap_step(&mut self) -> Step {
        if self.to_reap == 0
            || self.checkpoint.reap_budget == 0
            || self.walkers[REAPER].reads > REAP_READS_CHECKPOINT
        {
            return Step::Done;
        }
        self.checkpoint.reap_budget -= 1;
        let reapable = |d: &crate::disk::Disk| d.deleting || d.snaps.iter().any(|s| s.dying);
        // One that is under way comes first, so that few are half done.
        let disks = || self.disks.iter().enumerate().filter_map(|(i, d)| Some((i, d.as_ref()?)));
        let chosen = disks()
            .find(|(_, d)| d.reaping != REAP_NONE)
            .or_else(|| {
                disks().find(|(i, d)| reapable(d) && !self.checkpoint.gone.contains(&(*i as u32)))
            })
            .map(|(i, _)| i as u32);
        let Some(id) = chosen else { return Step::Done };
        if self.disks[id as usize].as_ref().expect("found").reaping == REAP_NONE {
            return self.choose_version(id);
        }
        match self.reap_position(id) {
            Ok(()) => Step::Go,
            Err(()) => Step::Wait,
        }
    }

    /// Picks the next version of the disk to take apart, or ends the disk. A snapshot whose tree is
    /// not written yet waits for the next checkpoint.
    fn choose_version(&mut self, id: u32) -> Step {
        let disk = self.disks[id as usize].as_mut().expect("found");
        disk.dirty = true;
        disk.reap_cursor = 0;
        if disk.deleting {
            if disk.root.address != 0 {
                disk.reaping = REAP_LIVE;
            } else if let Some(snap) = disk.snaps.last() {
                disk.reaping = snap.id;
            } else {
                self.disk_gone(id);
            }
            return Step::Go;
        }
        let dying = disk.snaps.iter().find(|s| s.dying && s.root.is_some());
        let Some(snap) = dying else { return Step::Done };
        disk.reaping = snap.id;
        Step::Go
    }

    /// Nothing of the disk is left but its record and log.
    fn disk_gone(&mut self, id: u32) {
        let disk = self.disks[id as usize].as_mut().expect("found");
        for block in std::mem::take(&mut disk.log) {
            self.checkpoint.old_freed.push(block.address, 2);
        }
        let origin = disk.origin;
        self.checkpoint.gone.push(id);
        if let Some((origin, snap)) = origin {
            let origin = self.disks[origin as usize].as_mut().expect("outlives its clones");
            origin.snap_mut(snap).expect("outlives its clones").clones -= 1;
        }
        self.count_reapable();
    }

    /// Roots of the version being reaped and of its neighbours.
    fn reap_roots(&self, id: u32) -> (Root, [Root; 2]) {
        let disk = self.disks[id as usize].as_ref().expect("found");
        let none = Root::default();
        if disk.live_reaped() {
            let older = self.older_root(id, u64::MAX, u64::MAX).unwrap_or(none);
            return (disk.root, [older, none]);
        }
        let at = disk.snaps.partition_point(|s| s.id < disk.reaping);
        let version = disk.snaps[at].root.unwrap_or(none);
        let older = self.older_root(id, disk.reaping, u64::MAX).unwrap_or(none);
        let newer = disk.snaps.get(at + 1).filter(|s| s.id < disk.frozen_epoch);
        let newer = newer.map_or(disk.root, |s| s.root.unwrap_or(none));
        (version, [older, newer])
    }

    fn reap_position(&mut self, id: u32) -> Result<(), ()> {
        let (version, neighbours) = self.reap_roots(id);
        let leaf = self.disks[id as usize].as_ref().expect("found").reap_cursor;
        let end = 1u64 << (LEVEL_BITS * u32::from(version.level));
        if version.address == 0 || leaf >= end {
            self.version_reaped(id);
            return Ok(());
        }
        let mut path: [(u64, u64); 4] = [(0, 0); 4];
        let mut depth = 0;
        let mut address = version.address;
        let mut level = version.level;
        let next = loop {
            let span = LEVEL_BITS * u32::from(level);
            let past = ((leaf >> span) + 1) << span;
            if self.shared_at(neighbours, level, leaf, address)? {
                break past;
            }
            let buffer = match self.walk_node(REAPER, address, level, leaf >> span) {
                Walk::Node(_, buffer) => buffer,
                Walk::Wait => return Err(()),
                Walk::Damaged | Walk::Absent => break past,
            };
            if level == 0 {
                self.reap_leaf(neighbours, leaf, buffer)?;
                self.checkpoint.old_freed.push(address, 1);
                break past;
            }
            path[depth] = (past, address);
            depth += 1;
            level -= 1;
            let child = leaf >> (LEVEL_BITS * u32::from(level));
            address = self.walkers[REAPER].links(buffer)[child as usize % LINKS] & node::ADDRESS;
            if address == 0 {
                break (child + 1) << (LEVEL_BITS * u32::from(level));
            }
        };
        // Nodes whose whole range lies behind go with it, lowest first.
        for &(past, address) in path[..depth].iter().rev() {
            if past <= next {
                self.checkpoint.old_freed.push(address, 1);
            }
        }
        let disk = self.disks[id as usize].as_mut().expect("found");
        disk.reap_cursor = next;
        disk.dirty = true;
        Ok(())
    }

    /// True if a neighbour has the same node in the same place (or cannot be read: then nothing is
    /// freed).
    fn shared_at(
        &mut self,
        neighbours: [Root; 2],
        level: u8,
        leaf: u64,
        address: u64,
    ) -> Result<bool, ()> {
        for root in neighbours {
            match self.walk_address(REAPER, root, level, leaf) {
                Ok(found) if found == address => return Ok(true),
                Ok(_) => {}
                Err(Walk::Wait) => return Err(()),
                Err(_) => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Frees the blocks of a leaf that no neighbour has.
    fn reap_leaf(&mut self, neighbours: [Root; 2], leaf: u64, buffer: usize) -> Result<(), ()> {
        let mut others = [None; 2];
        for (other, root) in others.iter_mut().zip(neighbours) {
            match self.walk(REAPER, root, 0, leaf) {
                Walk::Node(_, buffer) => *other = Some(buffer),
                Walk::Absent => {}
                Walk::Wait => return Err(()),
                // Cannot tell what is shared: leave it all.
                Walk::Damaged => return Ok(()),
            }
        }
        for i in 0..LINKS {
            let block = self.walkers[REAPER].links(buffer)[i] & node::ADDRESS;
            let shared = others
                .iter()
                .flatten()
                .any(|&other| self.walkers[REAPER].links(other)[i] & node::ADDRESS == block);
            if block != 0 && !shared {
                self.checkpoint.old_freed.push(block, 1);
            }
        }
        Ok(())
    }

    /// The version is taken apart: forget it.
    fn version_reaped(&mut self, id: u32) {
        let disk = self.disks[id as usize].as_mut().expect("found");
        if disk.live_reaped() {
            disk.root.address = 0;
        } else {
            let at = disk.snaps.partition_point(|s| s.id < disk.reaping);
            let snap = disk.snaps.remove(at);
            if let Some((block, entry)) = snap.place {
                let block = &mut disk.log[block as usize];
                block.used &= !(1 << entry);
                block.dirty = true;
            }
            disk.guarded = disk.guarded.max(snap.id);
            disk.refresh_newest();
        }
        disk.reaping = REAP_NONE;
        disk.reap_cursor = 0;
        disk.dirty = true;
        self.count_reapable();
    }
}

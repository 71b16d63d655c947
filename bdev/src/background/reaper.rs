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

use crate::base_io::BaseOp;
use crate::disk::Root;
use crate::engine::{Class, Engine, tag};
use crate::format::disk_record::{REAP_LIVE, REAP_NONE};
use crate::format::node;
use crate::limits::{LEVEL_BITS, LINKS, REAP_READS_CHECKPOINT};
use crate::page::PageId;
use crate::pipeline::checkpoint::Step;
use crate::status::BaseError;

/// Buffers: four levels of three trees, and some.
const BUFFERS: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Buffer {
    Empty,
    Loading { address: u64, level: u8, index: u64, page: PageId },
    Node { address: u64, used: u64 },
    Damaged { address: u64, used: u64 },
}

/// Reads immutable nodes by address.
pub(crate) struct Walker {
    state: [Buffer; BUFFERS],
    links: Vec<[u64; LINKS]>,
    clock: u64,
    reads: usize,
    errors: u32,
}

/// Where a walk ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Walk {
    /// A node is being read.
    Wait,
    Absent,
    Damaged,
    /// Address and buffer.
    Node(u64, usize),
}

impl Walker {
    pub fn new() -> Walker {
        Walker {
            state: [Buffer::Empty; BUFFERS],
            links: vec![[0; LINKS]; BUFFERS],
            clock: 0,
            reads: 0,
            errors: 0,
        }
    }

    /// Addresses may be reused from here on.
    pub fn forget(&mut self) {
        for state in &mut self.state {
            if !matches!(state, Buffer::Loading { .. }) {
                *state = Buffer::Empty;
            }
        }
    }

    pub fn links(&self, buffer: usize) -> &[u64; LINKS] {
        &self.links[buffer]
    }
}

impl Engine {
    /// The node at `address`, which must be the one of `level` at `index`.
    fn walk_node(&mut self, address: u64, level: u8, index: u64) -> Walk {
        self.walker.clock += 1;
        let now = self.walker.clock;
        let mut victim = None;
        let mut oldest = u64::MAX;
        for (i, state) in self.walker.state.iter_mut().enumerate() {
            match state {
                Buffer::Loading { .. } => return Walk::Wait,
                Buffer::Node { address: a, used } if *a == address => {
                    *used = now;
                    return Walk::Node(address, i);
                }
                Buffer::Damaged { address: a, used } if *a == address => {
                    *used = now;
                    return Walk::Damaged;
                }
                Buffer::Empty => {
                    victim = Some(i);
                    oldest = 0;
                }
                Buffer::Node { used, .. } | Buffer::Damaged { used, .. } => {
                    if *used < oldest {
                        victim = Some(i);
                        oldest = *used;
                    }
                }
            }
        }
        let Some(page) = self.pages.take_above(self.page_reserve) else { return Walk::Wait };
        let at = victim.expect("there are buffers");
        self.walker.state[at] = Buffer::Loading { address, level, index, page };
        self.walker.reads += 1;
        let addr = self.pages.addr(page);
        self.issue(tag(Class::Walk, 0, at as u32), BaseOp::Read, address, addr, 4096);
        Walk::Wait
    }

    pub(crate) fn walk_read_done(&mut self, at: u32, result: Result<(), BaseError>) {
        let at = at as usize;
        let Buffer::Loading { address, level, index, page } = self.walker.state[at] else {
            panic!("a walk read completed that was never started")
        };
        let used = self.walker.clock;
        self.walker.state[at] = match result {
            // Tried again when it is wanted again, but not for ever.
            Err(_) => {
                self.walker.errors += 1;
                let give_up = self.walker.errors.is_multiple_of(8);
                if give_up { Buffer::Damaged { address, used } } else { Buffer::Empty }
            }
            Ok(()) => {
                let links = &mut self.walker.links[at];
                let bytes = self.pages.bytes(page);
                let read = node::read(bytes, links, self.store, self.shard, address);
                let linkable = |l: &u64| *l == 0 || self.space.geometry.linkable(l & node::ADDRESS);
                match read {
                    Ok(info) if info.level == level && info.index == index => {
                        if links.iter().all(linkable) {
                            Buffer::Node { address, used }
                        } else {
                            Buffer::Damaged { address, used }
                        }
                    }
                    Ok(_) | Err(_) => Buffer::Damaged { address, used },
                }
            }
        };
        if let Buffer::Damaged { .. } = self.walker.state[at] {
            let text = format!(
                "map node at block {address} (level {level}, index {index}) is damaged; space below it is not reclaimed"
            );
            self.event(true, text);
        }
        self.pages.give(page);
    }

    /// The node of `level` above (or at) leaf `leaf` in the tree of `root`.
    pub(crate) fn walk(&mut self, root: Root, level: u8, leaf: u64) -> Walk {
        if root.address == 0
            || level > root.level
            || leaf >> (LEVEL_BITS * u32::from(root.level)) != 0
        {
            return Walk::Absent;
        }
        let mut address = root.address;
        let mut at = root.level;
        loop {
            let index = leaf >> (LEVEL_BITS * u32::from(at));
            let buffer = match self.walk_node(address, at, index) {
                Walk::Node(address, buffer) if at == level => return Walk::Node(address, buffer),
                Walk::Node(_, buffer) => buffer,
                stop => return stop,
            };
            at -= 1;
            let child = leaf >> (LEVEL_BITS * u32::from(at));
            address = self.walker.links(buffer)[child as usize % LINKS] & node::ADDRESS;
            if address == 0 {
                return Walk::Absent;
            }
        }
    }

    /// The address of the node of `level` above leaf `leaf`, without reading that node itself.
    fn walk_address(&mut self, root: Root, level: u8, leaf: u64) -> Result<u64, Walk> {
        if root.address == 0
            || level > root.level
            || leaf >> (LEVEL_BITS * u32::from(root.level)) != 0
        {
            return Ok(0);
        }
        if level == root.level {
            return Ok(root.address);
        }
        match self.walk(root, level + 1, leaf) {
            Walk::Absent => Ok(0),
            Walk::Node(_, buffer) => {
                let child = leaf >> (LEVEL_BITS * u32::from(level));
                Ok(self.walker.links(buffer)[child as usize % LINKS] & node::ADDRESS)
            }
            stop => Err(stop),
        }
    }

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
        self.walker.reads = 0;
    }

    /// One position of the walk.
    pub(crate) fn reap_step(&mut self) -> Step {
        if self.to_reap == 0
            || self.checkpoint.reap_budget == 0
            || self.walker.reads > REAP_READS_CHECKPOINT
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
            let buffer = match self.walk_node(address, level, leaf >> span) {
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
            address = self.walker.links(buffer)[child as usize % LINKS] & node::ADDRESS;
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
            match self.walk_address(root, level, leaf) {
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
            match self.walk(root, 0, leaf) {
                Walk::Node(_, buffer) => *other = Some(buffer),
                Walk::Absent => {}
                Walk::Wait => return Err(()),
                // Cannot tell what is shared: leave it all.
                Walk::Damaged => return Ok(()),
            }
        }
        for i in 0..LINKS {
            let block = self.walker.links(buffer)[i] & node::ADDRESS;
            let shared = others
                .iter()
                .flatten()
                .any(|&other| self.walker.links(other)[i] & node::ADDRESS == block);
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

//! The reaper frees what a deleted version alone holds, by walking it next to its neighbours.
//!
//! ```text
//!   older ──── V (deleted) ──── newer      a subtree of V that a neighbour also has, at the
//!                 ║   ╚════ clones         same place and address, is skipped whole; what only
//!        walk in leaf order, cursor kept   V has is freed, leaves first
//! ```
//!
//! It runs inside a consistency point, after the point's own nodes are on disk, and sees only trees
//! that no longer change. Its cursor and what it freed commit with the point, so a crash repeats
//! nothing. Leaves below the cursor no longer count the deleted version as sharing them; what the
//! live disk drops meanwhile goes through the checkpoint's undecided list (see `settle`). Who its
//! neighbours are says [`crate::disk::versions`]; what remains of a version that several others
//! come after is a ghost.

use crate::background::walker::{REAPER, Walk};
use crate::canary::{Canary, planted};
use crate::disk::versions::Neighbours;
use crate::disk::{Disk, Root};
use crate::engine::Engine;
use crate::format::disk_record::{REAP_LIVE, REAP_NONE};
use crate::format::node::{self, NodeRef};
use crate::limits::{LEVEL_BITS, LINKS, REAP_READS_CHECKPOINT};
use crate::pipeline::checkpoint::Step;

/// The way down to one position of the walk, kept while nodes are being read.
pub(crate) struct Descent {
    /// Disk and version that `neighbours` are of.
    version: Option<(u32, u64)>,
    neighbours: Neighbours,
    /// Under way.
    active: bool,
    stage: Stage,
    level: u8,
    node: NodeRef,
    /// Next neighbour to compare with.
    next: usize,
    /// Nodes above: first leaf behind each, address.
    path: Vec<(u64, u64)>,
    /// Links of the leaf that no neighbour looked at so far has.
    links: Box<[u64; LINKS]>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Does a neighbour have the node?
    Compare,
    /// No: what is below it?
    Open,
    /// It is a leaf: which of its blocks does a neighbour have?
    Leaf,
}

impl Descent {
    pub fn new() -> Descent {
        Descent {
            version: None,
            neighbours: Neighbours::default(),
            active: false,
            stage: Stage::Compare,
            level: 0,
            node: NodeRef::of_link(0),
            next: 0,
            path: Vec::with_capacity(4),
            links: Box::new([0; LINKS]),
        }
    }
}

/// What the reaper has to do on a disk.
fn work(disk: &Disk) -> usize {
    let there = disk.snaps.iter().filter(|s| !s.ghost);
    if disk.deleting {
        there.count() + usize::from(!disk.live_gone) + usize::from(disk.snaps.is_empty())
    } else {
        there.filter(|s| s.dying).count()
    }
}

impl Engine {
    /// True while a deleted version has not been taken apart.
    pub(crate) fn reaping(&self) -> bool {
        // A disk that could not be opened may share blocks with any other: nothing is taken back
        // while it is missing.
        self.to_reap > 0 && !self.bereft
    }

    /// Recounts the versions that wait for the reaper.
    pub(crate) fn count_reapable(&mut self) {
        let gone = &self.checkpoint.gone;
        let left = self.disks.iter().enumerate().filter(|(i, _)| !gone.contains(&(*i as u32)));
        self.to_reap = left.filter_map(|(_, d)| d.as_ref()).map(|d| work(d)).sum();
    }

    pub(crate) fn begin_reap(&mut self) {
        self.checkpoint.reap_budget = REAP_READS_CHECKPOINT * 8;
        self.walkers[REAPER].reads = 0;
        self.checkpoint.reap.version = None;
        self.checkpoint.reap.active = false;
    }

    /// One position of the walk.
    pub(crate) fn reap_step(&mut self) -> Step {
        if !self.reaping()
            || self.checkpoint.reap_budget == 0
            || self.walkers[REAPER].reads > REAP_READS_CHECKPOINT
        {
            return Step::Done;
        }
        self.checkpoint.reap_budget -= 1;
        // One that is under way comes first, so that few are half done.
        let disks = || self.disks.iter().enumerate().filter_map(|(i, d)| Some((i, d.as_ref()?)));
        let chosen = disks()
            .find(|(_, d)| d.reaping != REAP_NONE)
            .or_else(|| {
                disks().find(|(i, d)| work(d) > 0 && !self.checkpoint.gone.contains(&(*i as u32)))
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
        if !disk.deleting {
            let dying = disk.snaps.iter().find(|s| s.dying && !s.ghost && s.root.is_some());
            let Some(snap) = dying else { return Step::Done };
            disk.reaping = snap.id;
            return Step::Go;
        }
        if !disk.live_gone {
            disk.reaping = REAP_LIVE;
        } else if let Some(snap) = disk.snaps.iter().rev().find(|s| !s.ghost) {
            disk.reaping = snap.id;
        } else {
            assert!(disk.snaps.is_empty(), "ghosts alone are no work");
            self.disk_gone(id);
        }
        Step::Go
    }

    /// Nothing of the disk is left but its record and log.
    fn disk_gone(&mut self, id: u32) {
        let disk = self.disks[id as usize].as_mut().expect("found");
        for block in std::mem::take(&mut disk.log) {
            self.checkpoint.old_freed.push(block.address, 2);
        }
        let origin = disk.origin.take().filter(|_| !disk.origin_lost);
        self.checkpoint.gone.push(id);
        if let Some((origin, snap)) = origin {
            let disk = self.disks[origin as usize].as_mut().expect("outlives its clones");
            disk.snap_mut(snap).expect("outlives its clones").clones -= 1;
            self.collapse((origin, snap));
        }
        self.count_reapable();
    }

    /// The tree of the version being reaped; its neighbours are looked up once a checkpoint.
    fn reaped_root(&mut self, id: u32) -> Root {
        let disk = self.disks[id as usize].as_ref().expect("a disk being reaped exists");
        let (root, epoch) = if disk.live_reaped() {
            (disk.root, disk.epoch)
        } else {
            let snap = disk.snap(disk.reaping).expect("a version being reaped exists");
            (snap.root.unwrap_or_default(), snap.id)
        };
        if self.checkpoint.reap.version != Some((id, epoch)) {
            let newer = !disk.live_reaped();
            let mut found = std::mem::take(&mut self.checkpoint.reap.neighbours);
            self.neighbours((id, epoch), u64::MAX, newer, &mut found);
            self.checkpoint.reap.neighbours = found;
            self.checkpoint.reap.version = Some((id, epoch));
        }
        root
    }

    /// One position. Err: a node is being read.
    fn reap_position(&mut self, id: u32) -> Result<(), ()> {
        let root = self.reaped_root(id);
        let leaf = self.disks[id as usize].as_ref().expect("found").reap_cursor;
        let end = 1u64 << (LEVEL_BITS * u32::from(root.level));
        if root.address == 0 || leaf >= end {
            self.version_reaped(id);
            return Ok(());
        }
        let reap = &mut self.checkpoint.reap;
        if !reap.active {
            reap.active = true;
            reap.stage = Stage::Compare;
            (reap.level, reap.node, reap.next) = (root.level, root.node(), 0);
            reap.path.clear();
        }
        let next = loop {
            if let Some(next) = self.descend(leaf)? {
                break next;
            }
        };
        // Nodes whose whole range lies behind go with it, lowest first.
        let checkpoint = &mut self.checkpoint;
        for &(past, address) in checkpoint.reap.path.iter().rev() {
            if past <= next {
                checkpoint.old_freed.push(address, 1);
            }
        }
        checkpoint.reap.active = false;
        let disk = self.disks[id as usize].as_mut().expect("found");
        disk.reap_cursor = next;
        disk.dirty = true;
        Ok(())
    }

    /// One step down to `leaf`. Some: this position is done, go on with that leaf.
    fn descend(&mut self, leaf: u64) -> Result<Option<u64>, ()> {
        let reap = &self.checkpoint.reap;
        let (level, node) = (reap.level, reap.node);
        let address = node.address;
        let span = LEVEL_BITS * u32::from(level);
        let past = ((leaf >> span) + 1) << span;
        match reap.stage {
            Stage::Compare => {
                if self.shared_at(level, leaf, address)? {
                    return Ok(Some(past));
                }
                self.checkpoint.reap.stage = Stage::Open;
                Ok(None)
            }
            Stage::Open => {
                let buffer = match self.walk_node(REAPER, node, level, leaf >> span) {
                    Walk::Node(_, buffer) => buffer,
                    Walk::Wait => return Err(()),
                    Walk::Damaged | Walk::Absent => return Ok(Some(past)),
                };
                let links = self.walkers[REAPER].links(buffer);
                let reap = &mut self.checkpoint.reap;
                reap.next = 0;
                if level == 0 {
                    reap.links.copy_from_slice(links);
                    reap.stage = Stage::Leaf;
                    return Ok(None);
                }
                reap.path.push((past, address));
                reap.level = level - 1;
                reap.stage = Stage::Compare;
                let span = LEVEL_BITS * u32::from(level - 1);
                reap.node = NodeRef::of_link(links[(leaf >> span) as usize % LINKS]);
                Ok((reap.node.address == 0).then_some(((leaf >> span) + 1) << span))
            }
            Stage::Leaf => {
                self.keep_shared(leaf)?;
                for i in 0..LINKS {
                    let block = self.checkpoint.reap.links[i] & node::ADDRESS;
                    if block != 0 && block != node::LOST {
                        self.checkpoint.old_freed.push(block, 1);
                    }
                }
                self.checkpoint.old_freed.push(address, 1);
                Ok(Some(past))
            }
        }
    }

    /// True if a neighbour has the same node in the same place (or cannot be read: then nothing is
    /// freed).
    fn shared_at(&mut self, level: u8, leaf: u64, address: u64) -> Result<bool, ()> {
        loop {
            let reap = &self.checkpoint.reap;
            let Some(&root) = reap.neighbours.roots.get(reap.next) else { return Ok(false) };
            match self.walk_address(REAPER, root, level, leaf) {
                Ok(found) if found == address => return Ok(true),
                Ok(_) => self.checkpoint.reap.next += 1,
                Err(Walk::Wait) => return Err(()),
                Err(_) => return Ok(true),
            }
        }
    }

    /// Strikes out the links of the leaf that a neighbour has.
    fn keep_shared(&mut self, leaf: u64) -> Result<(), ()> {
        if planted(Canary::SharedFreed) {
            return Ok(());
        }
        loop {
            let reap = &self.checkpoint.reap;
            let Some(&root) = reap.neighbours.roots.get(reap.next) else { return Ok(()) };
            match self.walk(REAPER, root, 0, leaf) {
                Walk::Wait => return Err(()),
                Walk::Absent => {}
                // Cannot tell what is shared: leave it all.
                Walk::Damaged => self.checkpoint.reap.links.fill(0),
                Walk::Node(_, buffer) => {
                    let theirs = self.walkers[REAPER].links(buffer);
                    for (own, their) in self.checkpoint.reap.links.iter_mut().zip(theirs) {
                        if (*own ^ *their) & node::ADDRESS == 0 {
                            *own = 0;
                        }
                    }
                }
            }
            self.checkpoint.reap.next += 1;
        }
    }

    /// The version is taken apart: forget it, or keep a ghost of it.
    fn version_reaped(&mut self, id: u32) {
        let disk = self.disks[id as usize].as_mut().expect("found");
        let reaped = std::mem::replace(&mut disk.reaping, REAP_NONE);
        disk.reap_cursor = 0;
        disk.dirty = true;
        if reaped == REAP_LIVE {
            disk.root = disk.root.emptied();
            disk.live_gone = true;
            if let Some(snap) = disk.snaps.last().map(|s| s.id) {
                self.collapse((id, snap));
            }
        } else {
            let snap = disk.snap_mut(reaped).expect("a version being reaped exists");
            snap.dying = true;
            snap.ghost = true;
            snap.root = Some(Root::default());
            let place = snap.place;
            if let Some((block, _)) = place {
                disk.log[block as usize].dirty = true;
            }
            self.collapse((id, reaped));
        }
        self.count_reapable();
    }
}

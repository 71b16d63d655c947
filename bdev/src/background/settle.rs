//! Settles what the trees dropped and some neighbour may still hold: such a block is free exactly
//! if no version next to the one that dropped it has it in the same place.
//!
//! It runs in each consistency point when all trees of the freeze are on disk, before the reaper.

use crate::background::walker::{REAPER, Walk};
use crate::canary::{Canary, planted};
use crate::disk::Root;
use crate::disk::versions::Neighbours;
use crate::engine::Engine;
use crate::format::disk_record::REAP_NONE;
use crate::format::node;
use crate::limits::{CHECKPOINT_SETTLED_STEP, LEVEL_BITS, LINKS};
use crate::pipeline::checkpoint::{Dropped, Step, Undecided};
use std::collections::BTreeSet;

/// How far the running consistency point is.
#[derive(Default)]
pub(crate) struct Settling {
    /// Next neighbour of the current block.
    next: usize,
    /// Version (disk, epoch), and whether the reaper has passed: what `found` is for.
    version: Option<(u32, u64, bool)>,
    found: Neighbours,
    /// Leaf that the reaper has come to, in the one version it is at.
    reaper: Option<u64>,
    /// Freed already: neighbours through a deleted snapshot may both drop a block.
    freed: BTreeSet<u64>,
}

impl Engine {
    pub(crate) fn begin_settling(&mut self) {
        let mut disks = self.disks.iter().flatten();
        let reaped = disks.find(|d| d.reaping != REAP_NONE);
        let settling = &mut self.checkpoint.settling;
        settling.next = 0;
        settling.version = None;
        settling.reaper = reaped.map(|d| d.reap_cursor);
        settling.freed.clear();
    }

    pub(crate) fn undecided_step(&mut self) -> Step {
        for _ in 0..CHECKPOINT_SETTLED_STEP {
            let Some(&entry) = self.checkpoint.old_undecided.get(self.checkpoint.cursor) else {
                return Step::Done;
            };
            let (leaf, leaf_end) = match entry.dropped {
                Dropped::Data { vba } => (vba >> LEVEL_BITS, (vba >> LEVEL_BITS) + 1),
                Dropped::Node { level, index } => {
                    let span = LEVEL_BITS * u32::from(level);
                    (index << span, (index + 1) << span)
                }
            };
            self.find_neighbours(&entry, leaf_end);
            match self.held_by_neighbour(&entry, leaf) {
                Err(()) => return Step::Wait,
                Ok(true) => {}
                Ok(false) => {
                    let settling = &mut self.checkpoint.settling;
                    if !settling.found.bridged || settling.freed.insert(entry.pba) {
                        self.checkpoint.old_freed.push(entry.pba, 1);
                    }
                }
            }
            self.checkpoint.settling.next = 0;
            self.checkpoint.cursor += 1;
        }
        Step::Go
    }

    fn find_neighbours(&mut self, entry: &Undecided, leaf_end: u64) {
        let passed = self.checkpoint.settling.reaper.is_some_and(|leaf| leaf_end <= leaf);
        let version = Some((entry.disk, entry.epoch, passed));
        if self.checkpoint.settling.version == version {
            return;
        }
        let mut found = std::mem::take(&mut self.checkpoint.settling.found);
        self.neighbours((entry.disk, entry.epoch), leaf_end, false, &mut found);
        self.checkpoint.settling.found = found;
        self.checkpoint.settling.version = version;
    }

    /// Err: a node is being read.
    fn held_by_neighbour(&mut self, entry: &Undecided, leaf: u64) -> Result<bool, ()> {
        if planted(Canary::OlderIgnored) {
            return Ok(false);
        }
        // A disk that could not be opened may be a neighbour that nobody knows of.
        if self.bereft {
            return Ok(true);
        }
        loop {
            let settling = &self.checkpoint.settling;
            let Some(&root) = settling.found.roots.get(settling.next) else { return Ok(false) };
            let held = match entry.dropped {
                Dropped::Data { vba } => self.has_data(root, vba, entry.pba)?,
                Dropped::Node { level, .. } => self.has_node(root, level, leaf, entry.pba)?,
            };
            if held {
                return Ok(true);
            }
            self.checkpoint.settling.next += 1;
        }
    }

    /// What cannot be read counts as held: better a block too few than one given out twice; `check`
    /// finds it.
    fn has_data(&mut self, root: Root, vba: u64, pba: u64) -> Result<bool, ()> {
        match self.walk(REAPER, root, 0, vba >> LEVEL_BITS) {
            Walk::Wait => Err(()),
            Walk::Absent => Ok(false),
            Walk::Damaged => Ok(true),
            Walk::Node(_, buffer) => {
                let link = self.walkers[REAPER].links(buffer)[vba as usize % LINKS];
                Ok(link & node::ADDRESS == pba)
            }
        }
    }

    fn has_node(&mut self, root: Root, level: u8, leaf: u64, pba: u64) -> Result<bool, ()> {
        match self.walk_address(REAPER, root, level, leaf) {
            Ok(found) => Ok(found == pba),
            Err(Walk::Wait) => Err(()),
            Err(_) => Ok(true),
        }
    }
}

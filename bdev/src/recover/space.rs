//! Finding out again what is in use, where what said so is lost: a catalogue block, or a bitmap.
//!
//! ```text
//!   catalogue lost ─► its extents are unknown: nothing is given out of them
//!        ├─ the store is small, or what is left is not enough ─► now, before anything is written:
//!        │      walk every tree and log ─► held ─► resolve ─► written by the opening checkpoint
//!        └─ else ─► they stay unknown until `lamina check --repair`
//!   bitmap lost ─► found when space is needed; walked for only if the opening checkpoint has none
//! ```
//!
//! What a committed consistency point holds is what its trees and snapshot logs hold, nothing else:
//! no tree that counts has been written over, and what came after it the journal says. So the walk
//! is exact. Neighbours on the device are read together, as leaves lie in long runs.
//!
//! If something cannot be read, what it held is unknown; then all stays in use that either copy of
//! the extent's bitmap has in use, whichever of the two had counted. An extent of which a copy is
//! damaged as well, or that was used while it had none that counted, stays unknown.
//!
//! Nothing is written here. A crash meanwhile, or before the opening checkpoint has committed,
//! leaves the damage as it was, and the next open does this again.

use super::{LANE_BLOCKS, LANES, Recovery, Stage};
use crate::engine::Engine;
use crate::format::disk_record::REAP_LIVE;
use crate::format::extent::{self, ExtentType};
use crate::format::node::{self, NodeRef};
use crate::format::superblock::Geometry;
use crate::limits::{LEVEL_BITS, LINKS, REBUILD_PAIRS_MAX};
use crate::space::rebuild::Marks;

/// A node to be read.
#[derive(Clone, Copy)]
pub(super) struct Item {
    node: NodeRef,
    level: u8,
    index: u64,
    /// Leaves of its version below this have been taken apart.
    reaped: u64,
}

/// How far it is.
pub(super) struct Rebuild {
    unknown: Vec<usize>,
    /// By extent: it is one of those, and there is hope for it.
    wanted: Vec<bool>,
    geometry: Geometry,
    /// To be read next from the end.
    stack: Vec<Item>,
    /// What the lanes are reading.
    reading: [Vec<Item>; LANES],
    /// Nodes met, by address.
    met: Marks,
    /// In use, of the wanted extents.
    held: Marks,
    /// Of those, nodes and logs.
    metadata: Vec<u32>,
    links: Box<[u64; LINKS]>,
    /// What cannot be read.
    blind: Option<String>,
    /// Extents whose bitmaps have been looked at, since something cannot be read.
    looked: usize,
}

impl Rebuild {
    /// True if the block lies in a wanted extent: then it is in use.
    fn hold(&mut self, block: u64) -> bool {
        let Some(extent) = self.geometry.extent_of(block).map(|e| e as usize) else { return false };
        let at = (block - self.geometry.extent_start(extent as u64)) as usize;
        if self.wanted[extent] {
            self.held.add(extent, at);
        }
        self.wanted[extent]
    }

    fn hold_metadata(&mut self, block: u64) {
        if self.hold(block) {
            let extent = self.geometry.extent_of(block).expect("it was held") as usize;
            self.metadata[extent] += 1;
        }
    }

    /// The next node that has not been met; if one was taken before, only the one behind it.
    fn next(&mut self, before: Option<u64>) -> Option<Item> {
        loop {
            let item = *self.stack.last()?;
            let address = item.node.address;
            if before.is_some_and(|before| address != before + 1) {
                return None;
            }
            self.stack.pop();
            let past = (item.index + 1) << (LEVEL_BITS * u32::from(item.level));
            if past <= item.reaped {
                continue;
            }
            let extent = self.geometry.extent_of(address).expect("links were checked") as usize;
            let at = address - self.geometry.extent_start(extent as u64);
            if !self.met.add(extent, at as usize) {
                self.hold_metadata(address);
                return Some(item);
            }
        }
    }

    /// A node has been read: what does it hold?
    fn open(&mut self, item: &Item) {
        if item.level == 0 {
            for at in 0..LINKS {
                self.hold(self.links[at] & node::ADDRESS);
            }
            return;
        }
        // The first one on top: they lie on the device in this order.
        for at in (0..LINKS).rev() {
            let node = NodeRef::of_link(self.links[at]);
            if !matches!(node.address, 0 | node::LOST) {
                let (level, index) = (item.level - 1, item.index << LEVEL_BITS | at as u64);
                self.stack.push(Item { node, level, index, ..*item });
            }
        }
    }
}

impl Engine {
    /// The live trees as the last consistency point left them.
    pub(super) fn live_trees(&self) -> Vec<Item> {
        let live = self.disks.iter().flatten().filter(|disk| disk.root.address != 0);
        live.map(|disk| Item {
            node: disk.root.node(),
            level: disk.root.level,
            index: 0,
            reaped: if disk.reaping == REAP_LIVE { disk.reap_cursor } else { 0 },
        })
        .collect()
    }

    /// True if it has to be found out what is in use before opening can go on.
    pub(super) fn space_is_missing(&mut self) -> bool {
        let unknown = self.space.unknown().len();
        let small = self.superblock.geometry.catalogue_pairs <= REBUILD_PAIRS_MAX;
        if unknown == 0 || small || self.space.free < 2 * self.reserve() {
            return unknown > 0;
        }
        let text = format!(
            "of {unknown} extents it is not known what is free: nothing is given out of them until `lamina check --repair`"
        );
        self.event(true, text);
        false
    }

    /// Opening has no space to go on with. True: it is being looked for, ask again.
    pub(crate) fn space_is_sought(&mut self) -> bool {
        let Some(recovery) = self.recovery.as_mut() else { return false };
        match recovery.stage {
            Stage::Space => true,
            Stage::Checkpoint if !recovery.sought && !self.space.unknown().is_empty() => {
                recovery.enter(Stage::Space);
                recovery.after_space = Stage::Checkpoint;
                true
            }
            _ => false,
        }
    }

    /// Finds out what is in use of the extents of which that is unknown.
    pub(super) fn recover_space(&mut self, recovery: &mut Recovery) -> bool {
        let mut rebuild = match recovery.rebuild.take() {
            Some(rebuild) => rebuild,
            None => Box::new(self.begin_rebuild(recovery)),
        };
        let known = self.walk_trees(recovery, &mut rebuild)
            && self.look_at_bitmaps(recovery, &mut rebuild)
            // It is of no use, but must not arrive afterwards.
            && self.bitmap_load.is_none();
        if !known {
            recovery.rebuild = Some(rebuild);
            return false;
        }
        self.enter_found(&mut rebuild);
        let next = recovery.after_space;
        recovery.enter(next);
        self.checkpoint.waiting = false;
        self.unpark = true;
        true
    }

    fn begin_rebuild(&self, recovery: &mut Recovery) -> Rebuild {
        recovery.sought = true;
        let geometry = self.superblock.geometry;
        let extents = geometry.extent_count as usize;
        let mut rebuild = Rebuild {
            unknown: self.space.unknown(),
            wanted: (0..extents).map(|extent| self.space.is_unknown(extent)).collect(),
            geometry,
            stack: std::mem::take(&mut recovery.trees),
            reading: Default::default(),
            met: Marks::new(extents),
            held: Marks::new(extents),
            metadata: vec![0; extents],
            links: Box::new([0; LINKS]),
            blind: self
                .lost
                .first()
                .map(|slot| format!("the disk in record slot {slot} is not available")),
            looked: 0,
        };
        for disk in self.disks.iter().flatten() {
            for pair in &disk.log {
                rebuild.hold_metadata(pair.address);
                rebuild.hold_metadata(pair.address + 1);
            }
            // Those that the journal has brought were not there yet.
            let there = disk.snaps.iter().filter(|s| s.place.is_some());
            let trees = there.filter_map(|s| Some((s.id, s.root?)));
            rebuild.stack.extend(trees.filter(|(_, root)| root.address != 0).map(|(id, root)| {
                let reaped = if disk.reaping == id { disk.reap_cursor } else { 0 };
                Item { node: root.node(), level: root.level, index: 0, reaped }
            }));
        }
        rebuild
    }

    /// True: all trees have been walked.
    fn walk_trees(&mut self, recovery: &mut Recovery, rebuild: &mut Rebuild) -> bool {
        for lane in 0..LANES {
            if !rebuild.reading[lane].is_empty()
                && std::mem::take(&mut recovery.lanes[lane].arrived)
            {
                self.nodes_arrived(recovery, rebuild, lane);
            }
        }
        let mut idle = true;
        for lane in 0..LANES {
            if rebuild.reading[lane].is_empty() {
                self.read_nodes(recovery, rebuild, lane);
            }
            idle &= rebuild.reading[lane].is_empty();
        }
        idle
    }

    fn read_nodes(&mut self, recovery: &mut Recovery, rebuild: &mut Rebuild, lane: usize) {
        let mut last = None;
        while rebuild.reading[lane].len() < LANE_BLOCKS
            && let Some(item) = rebuild.next(last)
        {
            last = Some(item.node.address);
            rebuild.reading[lane].push(item);
        }
        if let Some(first) = rebuild.reading[lane].first() {
            let count = rebuild.reading[lane].len();
            self.recover_read(recovery, lane, first.node.address, count);
        }
    }

    fn nodes_arrived(&self, recovery: &Recovery, rebuild: &mut Rebuild, lane: usize) {
        let items = std::mem::take(&mut rebuild.reading[lane]);
        for (at, item) in items.iter().enumerate() {
            let address = item.node.address;
            let gone = recovery.lanes[lane].gone >> at & 1 == 1;
            let (block, links) = (recovery.block(lane, at), &mut rebuild.links);
            let read = node::read(block, links, self.store, self.shard, address);
            let lawful = read.is_ok_and(|info| {
                (info.level, info.index) == (item.level, item.index)
                    && item.node.stamp.fits(info.generation)
                    && node::linkable(links, &rebuild.geometry)
            });
            if lawful && !gone {
                rebuild.open(item);
            } else {
                let text = || format!("the map node at block {address} cannot be used");
                rebuild.blind.get_or_insert_with(text);
            }
        }
    }

    /// Where something cannot be read: what do the bitmaps themselves have in use? True: done.
    fn look_at_bitmaps(&mut self, recovery: &mut Recovery, rebuild: &mut Rebuild) -> bool {
        if rebuild.blind.is_none() {
            return true;
        }
        while let Some(&extent) = rebuild.unknown.get(rebuild.looked) {
            // Of an extent that was used without a bitmap none says anything.
            if self.space.is_untrusted(extent) {
                rebuild.wanted[extent] = false;
                rebuild.looked += 1;
                continue;
            }
            let start = rebuild.geometry.extent_start(extent as u64);
            if !self.have(recovery, start, 2) {
                return false;
            }
            let used = (rebuild.geometry.extent_blocks / 64) as usize;
            let words = &mut rebuild.held.words_mut(extent)[..used];
            let (store, shard, number) = (self.store, self.shard, extent as u64);
            let usable = (0..2).all(|side| {
                let gone = recovery.lanes[0].gone >> side & 1 == 1;
                let (block, at) = (recovery.block(0, side), start + side as u64);
                !gone && extent::add_bitmap(block, store, shard, at, number, words).is_ok()
            });
            rebuild.wanted[extent] = usable;
            rebuild.looked += 1;
        }
        true
    }

    fn enter_found(&mut self, rebuild: &mut Rebuild) {
        let taken = self.taken_since(rebuild);
        let before = self.space.free;
        let mut found = 0;
        for &extent in rebuild.unknown.iter().filter(|&&extent| rebuild.wanted[extent]) {
            let held = rebuild.held.words(extent);
            let all: u32 = held.iter().map(|word| word.count_ones()).sum();
            let kind = match rebuild.metadata[extent] * 2 > all {
                true => ExtentType::Metadata,
                false => ExtentType::Data,
            };
            self.space.resolve(extent, &held, &taken.words(extent), kind);
            found += 1;
        }
        self.space.resolved();
        let (count, free) = (rebuild.unknown.len(), self.space.free - before);
        let text = format!(
            "what is in use of {found} extents was found out again from the maps of all disks: {free} blocks are free"
        );
        self.event(false, text);
        if let Some(why) = &rebuild.blind {
            let text = format!(
                "{why}, so what it holds is not known: what the bitmaps of {found} extents have in use stays so, and nothing is given out of {} others, until `lamina check --repair --cut-off`",
                count - found
            );
            self.event(true, text);
        }
    }

    /// What the journal has brought into those extents, if it has been replayed already. Where it
    /// names a block twice, nothing can be said.
    fn taken_since(&self, rebuild: &mut Rebuild) -> Marks {
        let geometry = rebuild.geometry;
        let mut taken = Marks::new(rebuild.wanted.len());
        for list in [&self.checkpoint.allocated, &self.checkpoint.old_allocated] {
            for (pba, len) in (0..list.len()).filter_map(|at| list.get(at)) {
                for block in pba..pba + len {
                    let extent = geometry.extent_of(block).expect("links were checked") as usize;
                    let at = (block - geometry.extent_start(extent as u64)) as usize;
                    if rebuild.wanted[extent] && taken.add(extent, at) {
                        rebuild.wanted[extent] = false;
                    }
                }
            }
        }
        taken
    }
}

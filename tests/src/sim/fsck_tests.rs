//! Negative controls: what the check is there to find is planted into a healthy image, sealed again
//! so that no checksum gives it away, and must be found.

use super::super::commands::Intent;
use super::super::image::{Header, header_of, seal};
use super::super::pages::Pages;
use super::super::plan::Lie;
use super::super::world::World;
use super::*;
use lamina_bdev::Command;

/// A healthy store at rest, and what lies where.
struct Store {
    world: World,
    pages: Pages,
    healthy: Findings,
    trees: Trees,
    geometry: Geometry,
    catalogue: u64,
}

/// A leaf: its block, and which of its links lead somewhere.
struct Leaf {
    at: u64,
    links: Vec<usize>,
}

impl Store {
    /// The first of the random runs that leaves everything that the tests need.
    fn new() -> Store {
        (1..500).find_map(Store::of).expect("one of 500 stores has snapshots and is undamaged")
    }

    fn of(seed: u64) -> Option<Store> {
        let mut world = World::new(seed, 150, Lie::None, false).expect("a store");
        if world.plan.shards > 1 || world.plan.faults.harm.any() {
            return None;
        }
        world.run().expect("no violation");
        world.calm_down().expect("no violation");
        world.give(Command::Checkpoint, Intent::Checkpoint, None, vec![]);
        world.drain().expect("no violation");
        let image = Image::new(&world.base, &world.label, 0);
        let walk = walk(&image, false, Some(BTreeMap::new())).expect("it is healthy");
        let (superblock, _) = image.superblock().expect("it is healthy");
        let catalogue = u64_at(&superblock, 64 + 8);
        let (healthy, geometry) = (walk.found, walk.geometry);
        let trees = trees(&image, false).expect("it is healthy");
        let pages = world.base.pages.clone();
        let store = Store { world, pages, healthy, trees, geometry, catalogue };
        let wanted = store.has_snapshots() && store.healthy.dying == 0 && store.two_leaves();
        wanted.then_some(store)
    }

    fn image(&self) -> Image<'_> {
        Image::new(&self.world.base, &self.world.label, 0)
    }

    /// Changes a sealed block, if there is one of that kind.
    fn change(&mut self, at: u64, kind: Kind, change: &mut dyn FnMut(&mut Block)) -> bool {
        let place = self.world.label.first_region / 4096 + at;
        if header_of(&self.world.base.pages.share(place)).is_none_or(|(k, _)| k != kind) {
            return false;
        }
        let page = self.world.base.pages.page_mut(place);
        change(page);
        seal(page, kind);
        true
    }

    /// Changes both copies of a pair.
    fn change_pair(&mut self, at: u64, kind: Kind, mut change: impl FnMut(&mut Block)) {
        let copies = [at, at + 1].map(|at| self.change(at, kind, &mut change));
        assert!(copies.contains(&true), "there is a {kind:?} at {at}");
    }

    /// Flips a bit and does not seal again.
    fn flip(&mut self, at: u64) {
        let place = self.world.label.first_region / 4096 + at;
        self.world.base.pages.page_mut(place)[2000] ^= 1;
    }

    fn leaves(&self) -> Vec<Leaf> {
        let mut leaves = Vec::new();
        for (at, page) in &self.trees.nodes {
            let level = header_of(page).map(|(_, Header { level, .. })| level);
            let links = (0..512).filter(|link| ![0, LOST].contains(&link_of(page, *link)));
            let links: Vec<usize> = links.collect();
            if level == Some(0) && links.len() > 1 {
                leaves.push(Leaf { at: *at, links });
            }
        }
        leaves
    }

    /// True if the first two leaves are of different places: no version of one shares with the
    /// other.
    fn two_leaves(&self) -> bool {
        let place = |leaf: &Leaf| header_of(&self.trees.nodes[&leaf.at]).map(|(_, h)| h.index);
        match &self.leaves()[..] {
            [first, second, ..] => place(first) != place(second),
            _ => false,
        }
    }

    /// Makes a link of a leaf lead elsewhere.
    fn relink(&mut self, leaf: &Leaf, number: usize, to: u64) {
        let at = leaf.links[number] * 6;
        self.change(leaf.at, Kind::Node, &mut |page| {
            page[at..at + 6].copy_from_slice(&to.to_le_bytes()[..6]);
        });
    }

    fn linked(&self, leaf: &Leaf, number: usize) -> u64 {
        link_of(&self.trees.nodes[&leaf.at], leaf.links[number])
    }

    fn extent_of(&self, block: u64) -> u64 {
        (block - self.geometry.extents) / self.geometry.extent_blocks
    }

    /// A block that nobody has, in an extent that has a bitmap.
    fn free_block(&self) -> u64 {
        // The one behind the last that is taken.
        let behind = |block: &u64| {
            let inside = self.extent_of(*block) == self.extent_of(*block - 1);
            inside && !self.trees.owners.contains_key(block)
        };
        let mut blocks = self.trees.owners.keys().map(|block| block + 1);
        blocks.rfind(behind).expect("no store is that full")
    }

    /// Enters a block as used or free, in bitmap and count.
    fn enter(&mut self, block: u64, used: bool) {
        let extent = self.extent_of(block);
        let start = self.geometry.extents + extent * self.geometry.extent_blocks;
        let place = (block - start) as usize;
        self.change_pair(start, Kind::Bitmap, |page| {
            let bit = 1 << (place % 8);
            page[64 + place / 8] = page[64 + place / 8] & !bit | if used { bit } else { 0 };
        });
        self.count(extent, |free| if used { free - 1 } else { free + 1 });
    }

    fn count(&mut self, extent: u64, change: impl Fn(u32) -> u32) {
        let pair = extent / CATALOGUE_ENTRIES;
        let at = 64 + (extent % CATALOGUE_ENTRIES) as usize * 16 + 4;
        self.change_pair(self.catalogue + 2 * pair, Kind::Catalogue, |page| {
            let free = u32::from_le_bytes(page[at..at + 4].try_into().expect("four bytes"));
            page[at..at + 4].copy_from_slice(&change(free).to_le_bytes());
        });
    }

    /// The pair of a log block, as the owners know it.
    fn log(&self) -> u64 {
        self.logs().next().expect("there is a snapshot")
    }

    fn logs(&self) -> impl Iterator<Item = u64> {
        let logs = self.trees.owners.iter().filter(|(_, owner)| **owner >> 60 == 8);
        logs.map(|(at, _)| *at)
    }

    /// True if the first snapshot in [`Store::log`] is there.
    fn has_snapshots(&self) -> bool {
        let there = |at| match self.image().pair(at, Kind::SnapshotLog, u64::MAX) {
            Sides::Good(block) => first_entry(&block).is_some_and(|entry| block[entry + 41] == 0),
            Sides::Bad(_) => false,
        };
        self.logs().next().is_some_and(there)
    }

    /// The record of a disk that maps something.
    fn record(&self) -> u64 {
        let mapped = |at: &u64| match self.image().pair(*at, Kind::DiskRecord, u64::MAX) {
            Sides::Good(block) => block[64] == 1 && u64_at(&block, RECORD_MAPPED) > 0,
            Sides::Bad(_) => false,
        };
        let slots = (0..16).map(|slot| self.geometry.records + 2 * slot);
        slots.into_iter().find(mapped).expect("a disk maps something")
    }

    /// Plants something, looks, and takes it away again.
    fn finds(&mut self, what: &str, words: &str, plant: impl FnOnce(&mut Store)) {
        plant(self);
        let found = check(&self.image(), false);
        self.world.base.pages = self.pages.clone();
        let why = found.expect_err(what);
        assert!(why.contains(words), "{what}: {why}");
        assert_eq!(check(&self.image(), false).as_ref(), Ok(&self.healthy), "it is mended again");
    }
}

fn link_of(page: &Block, link: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[..6].copy_from_slice(&page[link * 6..link * 6 + 6]);
    u64::from_le_bytes(bytes) & ADDRESS
}

fn add_one(page: &mut Block, at: usize) {
    let count = u64_at(page, at) + 1;
    page[at..at + 8].copy_from_slice(&count.to_le_bytes());
}

#[test]
fn wrong_ownership_is_found() {
    let mut store = Store::new();
    let free = store.free_block();
    let leaves = store.leaves();
    let (leaf, other) = (&leaves[0], &leaves[1]);
    let (first, node) = (store.linked(leaf, 0), other.at);
    store.finds("a leak", "in use by nobody", |s| s.enter(free, true));
    store.finds("a block in use is free", "is free, but it is", |s| s.enter(first, false));
    store.finds("two blocks in one", "two owners", |s| s.relink(leaf, 1, first));
    store.finds("a block of another leaf", "two owners", |s| s.relink(other, 0, first));
    store.finds("a node as data", "two owners", |s| s.relink(leaf, 0, node));
    store.finds("a link out of the region", "no block of an extent", |s| {
        s.relink(leaf, 0, 1 << 40);
    });
    let head = store.geometry.extents + store.geometry.extent_blocks;
    store.finds("a link to a bitmap", "no block of an extent", |s| s.relink(leaf, 0, head));
    store.finds("a link into the journal", "no block of an extent", |s| s.relink(leaf, 0, 9));
    store.finds("a lost link", "is lost", |s| s.relink(leaf, 0, LOST));
}

fn first_entry(log: &Block) -> Option<usize> {
    (0..LOG_ENTRIES).map(|e| 64 + e * 128).find(|e| u64_at(log, *e) != 0)
}

#[test]
fn wrong_counts_are_found() {
    let mut store = Store::new();
    let (log, record, extent) = (store.log(), store.record(), store.extent_of(store.free_block()));
    // It may be an empty one.
    store.finds("a snapshot that counts wrong", ", but counts", |s| {
        let mut change = |page: &mut Block| {
            let entry = first_entry(page).expect("there is a snapshot");
            assert_eq!(page[entry + 41], 0, "it is there");
            add_one(page, entry + ENTRY_MAPPED);
        };
        s.change_pair(log, Kind::SnapshotLog, &mut change);
    });
    store.finds("a disk that counts wrong", "blocks, but counts", |s| {
        s.change_pair(record, Kind::DiskRecord, |page| add_one(page, RECORD_MAPPED));
    });
    store.finds("a tree cut off", "is empty, but counts", |s| {
        s.change_pair(record, Kind::DiskRecord, |page| {
            page[RECORD_ROOT..RECORD_ROOT + 8].fill(0);
        });
    });
    store.finds("an extent that counts wrong", "free blocks, but has", |s| {
        s.count(extent, |free| free - 1);
    });
    let leaf = &store.leaves()[0];
    store.finds("a hole where data was", "blocks, but counts", |s| s.relink(leaf, 0, 0));
}

#[test]
fn broken_blocks_are_found() {
    let mut store = Store::new();
    let leaves = store.leaves();
    let (leaf, other) = (leaves[0].at, leaves[1].at);
    let bitmap =
        store.geometry.extents + store.extent_of(store.free_block()) * store.geometry.extent_blocks;
    let pairs = [
        ("superblocks", 0, "neither superblock"),
        ("a catalogue", store.catalogue, "catalogue pair"),
        ("a record", store.record(), "disk record"),
        ("a log", store.log(), "snapshot log"),
        ("a bitmap", bitmap, "bitmap of extent"),
    ];
    for (what, at, words) in pairs {
        store.finds(what, words, |s| [at, at + 1].into_iter().for_each(|at| s.flip(at)));
    }
    store.finds("a node that is older", "of point", |s| {
        let place = s.world.label.first_region / 4096 + leaf;
        let page = s.world.base.pages.page_mut(place);
        page[3072 + 48] -= 1;
        seal(page, Kind::Node);
    });
    store.finds("a node", "checksum", |s| s.flip(leaf));
    store.finds("a node elsewhere", "written for block", |s| {
        let first = s.world.label.first_region / 4096;
        let page = s.world.base.pages.share(first + other);
        s.world.base.pages.put(first + leaf, page);
    });
}

#[test]
fn another_mapping_is_another_finding() {
    let mut store = Store::new();
    let (free, leaf) = (store.free_block(), &store.leaves()[0]);
    let first = store.linked(leaf, 0);
    store.relink(leaf, 0, free);
    store.enter(free, true);
    store.enter(first, false);
    let moved = check(&store.image(), false).expect("nothing is wrong with that");
    let due = Findings { mapping: moved.mapping, ..store.healthy.clone() };
    assert_eq!(moved, due);
    assert_ne!(moved.mapping, store.healthy.mapping);
}

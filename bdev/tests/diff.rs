//! Changed blocks: lists between all pairs of snapshots, of one disk and of clones, are what a
//! model says, however they are cut into pages.

mod simple;

use std::collections::BTreeMap;

use lamina_bdev::*;
use simple::{FILE, RAM, Random, Rig};

/// Blocks that are written to: around the ends of leaves and of the first node above them.
const HOT: [u64; 14] =
    [0, 1, 2, 255, 511, 512, 513, 1023, 1024, 4095, 262_143, 262_144, 262_145, 524_287];
/// Sizes in blocks.
const SIZES: [u64; 4] = [300, 1025, 262_145, 524_288];

/// What a disk has: which write each block holds.
#[derive(Clone, Default)]
struct Content {
    blocks: u64,
    tags: BTreeMap<u64, u64>,
}

/// The list in pages of random length; and how many nodes a page may read.
fn listed(
    rig: &mut Rig,
    random: &mut Random,
    base: Option<Handle>,
    view: Handle,
) -> Vec<ChangedExtent> {
    let mut all = Vec::new();
    let mut offset = 0;
    for _ in 0..10_000 {
        let extents_max = 1 + random.below(9) as u32;
        let reads_max = [1, 3, 1000][random.below(3)];
        let query = DiffQuery { base, view, offset, extents_max, reads_max };
        let Reply::Changes(page) = rig.command(Command::Diff(query)).unwrap() else {
            panic!("no changes")
        };
        assert!(page.extents.len() <= extents_max as usize);
        all.extend(page.extents);
        match page.next {
            None => return all,
            Some(next) => {
                assert!(next > offset, "no progress");
                offset = next;
            }
        }
    }
    panic!("a list without end")
}

/// By block, so that the cuts do not matter.
fn blocks(extents: &[ChangedExtent]) -> BTreeMap<u64, ChangeKind> {
    let mut found = BTreeMap::new();
    let mut last = 0;
    for extent in extents {
        assert!(extent.length > 0 && extent.offset >= last, "{extents:?}");
        last = extent.offset + extent.length;
        for block in extent.offset / 4096..last / 4096 {
            found.insert(block, extent.kind);
        }
    }
    found
}

fn due(base: &Content, view: &Content) -> BTreeMap<u64, ChangeKind> {
    let tag = |content: &Content, block| {
        content.tags.get(&block).copied().filter(|_| block < content.blocks)
    };
    let hot = HOT.iter().copied().filter(|block| *block < view.blocks);
    hot.filter_map(|block| match (tag(base, block), tag(view, block)) {
        (old, new) if old == new => None,
        (_, Some(_)) => Some((block, ChangeKind::Data)),
        (_, None) => Some((block, ChangeKind::Hole)),
    })
    .collect()
}

struct Life {
    rig: Rig,
    random: Random,
    disks: Vec<(DiskId, Handle, Content)>,
    snaps: Vec<(SnapRef, Content)>,
    tags: u64,
}

impl Life {
    fn step(&mut self) {
        let at = self.random.below(self.disks.len());
        let dice = self.random.below(100);
        let (disk, handle, content) = &mut self.disks[at];
        let block = HOT[self.random.below(HOT.len())];
        match dice {
            0..50 if block < content.blocks => {
                self.tags += 1;
                content.tags.insert(block, self.tags);
                // Never the same bytes twice is not needed: a list goes by address.
                self.rig.write(*handle, block * 4096, 7, 4096);
            }
            50..62 if block < content.blocks => {
                content.tags.remove(&block);
                let status = self.rig.ranged(*handle, Op::Discard, block * 4096, 4096, &mut []);
                assert_eq!(status, Status::Ok);
            }
            62..84 if self.snaps.len() < 14 => {
                let snap = self.rig.snapshot(*disk, "");
                self.snaps.push((snap, content.clone()));
            }
            84..90 => {
                let blocks = SIZES[self.random.below(SIZES.len())];
                self.rig.command(Command::Resize(*disk, blocks * 4096)).unwrap();
                content.tags.retain(|block, _| *block < blocks);
                content.blocks = blocks;
            }
            90..95 if !self.snaps.is_empty() && self.disks.len() < 5 => {
                let from = self.random.below(self.snaps.len());
                let (snap, content) = self.snaps[from].clone();
                let disk = self.rig.create(&format!("c{}", self.disks.len()), 0, Some(snap));
                let handle = self.rig.attach(Target::Disk(disk));
                self.disks.push((disk, handle, content));
            }
            95..98 if self.snaps.len() > 3 => {
                let (snap, _) = self.snaps.remove(self.random.below(self.snaps.len()));
                self.rig.command(Command::DeleteSnapshot(snap)).unwrap();
            }
            98.. => {
                self.rig.command(Command::Checkpoint).unwrap();
            }
            _ => {}
        }
    }

    /// Every pair, both ways, and each snapshot against nothing.
    fn compare_all(&mut self) {
        let snaps = self.snaps.clone();
        let handles: Vec<Handle> =
            snaps.iter().map(|(snap, _)| self.rig.attach(Target::Snapshot(*snap))).collect();
        for (to, (new, content)) in snaps.iter().enumerate() {
            let found = listed(&mut self.rig, &mut self.random, None, handles[to]);
            assert_eq!(blocks(&found), due(&Content::default(), content), "{new:?}");
            for (from, (old, before)) in snaps.iter().enumerate() {
                let base = Some(handles[from]);
                let found = listed(&mut self.rig, &mut self.random, base, handles[to]);
                assert_eq!(blocks(&found), due(before, content), "{old:?} to {new:?}");
            }
        }
        for handle in handles {
            self.rig.command(Command::Detach(handle)).unwrap();
        }
    }
}

fn life(seed: u64, traits: BaseTraits) {
    let mut rig = Rig::new(24 << 20, traits);
    let random = Random::new(seed);
    let disk = rig.create("d", SIZES[2] * 4096, None);
    let handle = rig.attach(Target::Disk(disk));
    let content = Content { blocks: SIZES[2], ..Content::default() };
    let disks = vec![(disk, handle, content)];
    let mut life = Life { rig, random, disks, snaps: Vec::new(), tags: 0 };
    for at in 0..160 {
        life.step();
        if at % 80 == 79 {
            life.compare_all();
        }
    }
}

#[test]
fn every_pair_of_snapshots_differs_in_what_the_model_says() {
    // LAMINA_SEEDS makes it longer.
    let seeds = std::env::var("LAMINA_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(60);
    for seed in 1..=seeds {
        for traits in [RAM, FILE] {
            let outcome = std::panic::catch_unwind(|| life(seed, traits));
            assert!(outcome.is_ok(), "seed {seed}, {traits:?}");
        }
    }
}

#[test]
fn cost_follows_the_difference_and_live_disks_are_refused() {
    let mut rig = Rig::new(64 << 20, RAM);
    let disk = rig.create("d", 1 << 40, None);
    let live = rig.attach(Target::Disk(disk));
    for i in 0..200u64 {
        rig.write(live, i * (4 << 30), 1, 4096);
    }
    let old = rig.snapshot(disk, "old");
    rig.write(live, 100 * (4 << 30), 2, 4096);
    let new = rig.snapshot(disk, "new");
    let (base, view) = (rig.attach(Target::Snapshot(old)), rig.attach(Target::Snapshot(new)));
    let before = rig.engine.stats().base_reads;
    let query = DiffQuery { base: Some(base), view, offset: 0, extents_max: 100, reads_max: 1000 };
    let Reply::Changes(page) = rig.command(Command::Diff(query)).unwrap() else { panic!() };
    let changed = ChangedExtent { offset: 100 * (4 << 30), length: 4096, kind: ChangeKind::Data };
    assert_eq!((page.extents, page.next), (vec![changed], None));
    let reads = rig.engine.stats().base_reads - before;
    assert!(reads <= 8, "{reads} reads for one changed block");
    for query in [DiffQuery { view: live, ..query }, DiffQuery { base: Some(live), ..query }] {
        assert_eq!(rig.command(Command::Diff(query)).unwrap_err().kind, ErrorKind::Invalid);
    }
    rig.command(Command::Detach(base)).unwrap();
    assert_eq!(rig.command(Command::Diff(query)).unwrap_err().kind, ErrorKind::NotFound);
}

#[test]
fn a_damaged_node_is_an_error_that_names_disk_snapshot_and_block() {
    let mut rig = Rig::new(24 << 20, RAM);
    let disk = rig.create("vm1", 1 << 30, None);
    let live = rig.attach(Target::Disk(disk));
    rig.write(live, 0, 1, 4096);
    let old = rig.snapshot(disk, "good");
    rig.write(live, 4096, 1, 4096);
    let new = rig.snapshot(disk, "bad");
    let (base, view) = (rig.attach(Target::Snapshot(old)), rig.attach(Target::Snapshot(new)));
    let query = DiffQuery { base: Some(base), view, offset: 0, extents_max: 9, reads_max: 99 };
    rig.command(Command::Diff(query)).unwrap();
    // Every node is overwritten with what no node looks like, the data with it.
    for byte in &mut rig.disk[rig.first + (1 << 20)..] {
        *byte ^= 0x55;
    }
    let error = rig.command(Command::Diff(query)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    for word in ["vm1", "block"] {
        assert!(error.message.contains(word), "{}", error.message);
    }
    rig.take_events();
    assert_eq!(rig.read(live, 0, 512).len(), 512, "the cached disk serves on");
}

//! A store to be damaged: several disks, snapshots and clones, with what each must read; and a
//! corrupter that changes bytes anywhere in it and seals the block again.
#![allow(dead_code, reason = "each test that includes this uses a part of it")]

pub mod case;
pub mod journals;
pub mod logs;
pub mod nodes;
pub mod pairs;
pub mod records;
pub mod space;
pub mod superblocks;

use crate::simple::Rig;
use lamina_bdev::check::{
    CheckOptions, ReadBlocks, RepairOptions, Report, WriteBlocks, check, repair,
};
use lamina_bdev::*;

/// Where headers stand.
pub const FRONT: usize = 0;
/// In a map node, behind the links.
pub const NODE: usize = 3072;

/// Behind the header of a node: its birth, and up to where it is shared; then the stamps of its
/// links, 12 bits each.
const STAMPS_AT: usize = NODE + 80;
/// Consistency points that stamps tell apart.
const STAMPS: u64 = 4093;
/// In a disk's record.
pub const ROOT_GENERATION_AT: usize = 2328;

/// A store in memory.
pub struct Image<'a>(pub &'a [u8]);

impl ReadBlocks for Image<'_> {
    fn read(&mut self, block: u64, buf: &mut [u8]) -> Result<(), Error> {
        let at = block as usize * BLOCK_SIZE;
        buf.copy_from_slice(&self.0[at..at + buf.len()]);
        Ok(())
    }
}

/// A store in memory that can be repaired.
pub struct Mended<'a>(pub &'a mut [u8]);

impl ReadBlocks for Mended<'_> {
    fn read(&mut self, block: u64, buf: &mut [u8]) -> Result<(), Error> {
        Image(self.0).read(block, buf)
    }
}

impl WriteBlocks for Mended<'_> {
    fn write(&mut self, block: u64, bytes: &[u8]) -> Result<(), Error> {
        let at = block as usize * BLOCK_SIZE;
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// Repairs; what a check says then, and what was done.
pub fn repaired(disk: &mut [u8], cut_off: bool) -> Result<(Report, Vec<String>), Error> {
    let bytes = disk.len() as u64;
    repair(&mut Mended(disk), bytes, RepairOptions { cut_off }, &mut |_| true)
}

/// What `check` says.
pub fn checked(disk: &[u8]) -> Result<Report, Error> {
    check(&mut Image(disk), disk.len() as u64, CheckOptions::default(), &mut |_| true)
}

/// What a disk or snapshot must read at some places.
#[derive(Clone)]
pub struct Due {
    pub name: &'static str,
    pub target: Target,
    pub bytes: Vec<(u64, Vec<u8>)>,
}

/// The store under damage.
#[derive(Clone)]
pub struct Store {
    pub disk: Vec<u8>,
    /// The same some consistency points earlier: one copy of each kind of pair is newer since.
    pub before: Vec<u8>,
    pub label: StoreLabel,
    pub traits: BaseTraits,
    pub due: Vec<Due>,
}

/// Places that are compared: the first leaves, and one under another level-1 node.
const PLACES: [(u64, usize); 2] = [(0, 3 << 20), (1 << 30, 64 << 10)];

impl Store {
    /// golden (0) with snapshots 1 and 2, vm1 (1) cloned from golden@1 with snapshot 1, vm2 (2)
    /// cloned from vm1@1, solo (3) with snapshots, well (4), a slot that is free again (5); two
    /// levels of nodes above the leaves; and a journal with records to be replayed.
    pub fn new(traits: BaseTraits) -> Store {
        let mut rig = Rig::new(20 << 20, traits);
        let mut due = Vec::new();
        let mut byte = 0u8;
        let mut fill = |rig: &mut Rig, h: Handle, places: &[(u64, usize)]| {
            for &(at, len) in places {
                byte += 1;
                rig.write(h, at, byte, len);
            }
        };
        let golden = rig.create("golden", 3 << 30, None);
        let hg = rig.attach(Target::Disk(golden));
        fill(&mut rig, hg, &[(0, 2 << 20), (1 << 30, 32 << 10)]);
        let g1 = rig.snapshot(golden, "base");
        fill(&mut rig, hg, &[(64 << 10, 64 << 10)]);
        let g2 = rig.snapshot(golden, "later");
        fill(&mut rig, hg, &[(8 << 10, 12 << 10)]);
        let vm1 = rig.create("vm1", 0, Some(g1));
        let h1 = rig.attach(Target::Disk(vm1));
        fill(&mut rig, h1, &[(0, 32 << 10), ((2 << 20) + 8192, 16 << 10)]);
        let v1 = rig.snapshot(vm1, "");
        let vm2 = rig.create("vm2", 0, Some(v1));
        let h2 = rig.attach(Target::Disk(vm2));
        fill(&mut rig, h2, &[(128 << 10, 32 << 10)]);
        let solo = rig.create("solo", 3 << 30, None);
        let hs = rig.attach(Target::Disk(solo));
        fill(&mut rig, hs, &[(0, 1 << 20), (1 << 20, 1 << 20), (1 << 30, 16 << 10)]);
        let s1 = rig.snapshot(solo, "first");
        fill(&mut rig, hs, &[(16 << 10, 32 << 10)]);
        for _ in 0..33 {
            rig.snapshot(solo, "");
        }
        let well = rig.create("well", 3 << 30, None);
        let hw = rig.attach(Target::Disk(well));
        fill(&mut rig, hw, &[(0, 1 << 20), (1 << 30, 64 << 10)]);
        let gone = rig.create("gone", 1 << 30, None);
        rig.settle();
        let before = rig.disk.clone();
        rig.snapshot(solo, "last");
        fill(&mut rig, hw, &[((1 << 30) + (1 << 20), 16 << 10)]);
        rig.command(Command::DeleteDisk(gone)).unwrap();
        rig.settle();
        // Records to be replayed, in several journal blocks.
        for i in 0..20 {
            fill(&mut rig, hs, &[((2 << 20) + i * 8192, 4096)]);
            fill(&mut rig, hw, &[((2 << 20) + i * 4096, 4096)]);
            if i == 10 {
                // So that blocks behind it know that those before it were durable.
                assert_eq!(rig.request(hw, Op::Flush, 0, &mut []), Status::Ok);
            }
        }
        let live = [
            ("golden", Target::Disk(golden)),
            ("golden@1", Target::Snapshot(g1)),
            ("golden@2", Target::Snapshot(g2)),
            ("vm1", Target::Disk(vm1)),
            ("vm2", Target::Disk(vm2)),
            ("solo", Target::Disk(solo)),
            ("solo@1", Target::Snapshot(s1)),
            ("well", Target::Disk(well)),
        ];
        let image = rig.disk.clone();
        for (name, target) in live {
            let handle = rig.attach(target);
            let bytes = PLACES.map(|(at, len)| (at, rig.read(handle, at, len))).to_vec();
            due.push(Due { name, target, bytes });
        }
        Store { disk: image, before, label: rig.label, traits, due }
    }

    pub fn at(&self, block: u64) -> usize {
        self.label.first_region as usize + block as usize * BLOCK_SIZE
    }

    /// A block of the region.
    pub fn block(&self, block: u64) -> &[u8] {
        let at = self.at(block);
        &self.disk[at..at + BLOCK_SIZE]
    }

    pub fn block_mut(&mut self, block: u64) -> &mut [u8] {
        let at = self.at(block);
        &mut self.disk[at..at + BLOCK_SIZE]
    }

    pub fn u64_at(&self, block: u64, at: usize) -> u64 {
        u64::from_le_bytes(self.block(block)[at..at + 8].try_into().unwrap())
    }

    /// Changes a block and seals it again.
    pub fn edit(&mut self, block: u64, header: usize, change: impl FnOnce(&mut [u8])) {
        change(self.block_mut(block));
        self.seal(block, header);
    }

    /// Changes a block and leaves its checksum as it is.
    pub fn rot(&mut self, block: u64, change: impl FnOnce(&mut [u8])) {
        change(self.block_mut(block));
    }

    /// What was last written to a block has never reached it.
    pub fn lose_write(&mut self, block: u64) {
        let at = self.at(block);
        let older = &self.before[at..at + BLOCK_SIZE];
        assert!(older != &self.disk[at..at + BLOCK_SIZE], "block {block} was not written since");
        self.disk[at..at + BLOCK_SIZE].copy_from_slice(older);
    }

    /// Makes the checksum of a block right.
    pub fn seal(&mut self, block: u64, header: usize) {
        let bytes = self.block_mut(block);
        bytes[header + 8..header + 12].fill(0);
        let crc = crc32c::crc32c(bytes);
        bytes[header + 8..header + 12].copy_from_slice(&crc.to_le_bytes());
    }

    /// A field of the superblock.
    pub fn sb(&self, at: usize) -> u64 {
        let newer = u64::from(self.u64_at(1, 48) > self.u64_at(0, 48));
        self.u64_at(newer, at)
    }

    /// Sets a field in both superblocks.
    pub fn set_sb(&mut self, at: usize, value: u64) {
        for copy in 0..2 {
            self.edit(copy, FRONT, |b| put(b, at, value));
        }
    }

    /// The copy of a pair that counts.
    pub fn current(&self, pair: u64) -> u64 {
        let committed = self.sb(48);
        let generation = |block| {
            let good = self.block(block)[..4] == *b"LMNA" && self.u64_at(block, 48) <= committed;
            if good { self.u64_at(block, 48) + 1 } else { 0 }
        };
        if generation(pair + 1) > generation(pair) { pair + 1 } else { pair }
    }

    /// First block of the record pair of a slot.
    pub fn record_pair(&self, slot: u64) -> u64 {
        self.sb(88) + 2 * slot
    }

    pub fn record(&self, slot: u64) -> u64 {
        self.current(self.record_pair(slot))
    }

    pub fn edit_record(&mut self, slot: u64, change: impl FnOnce(&mut [u8])) {
        let block = self.record(slot);
        self.edit(block, FRONT, change);
    }

    /// The newest block of a disk's snapshot log.
    pub fn log(&self, slot: u64) -> u64 {
        self.current(self.u64_at(self.record(slot), 200))
    }

    pub fn root(&self, slot: u64) -> u64 {
        self.u64_at(self.record(slot), 160)
    }

    /// Root of a snapshot, looked up in the whole log.
    pub fn snapshot_root(&self, slot: u64, snap: u64) -> u64 {
        let (block, at) = self.log_entry(slot, snap);
        self.u64_at(block, at + 16)
    }

    /// Block and byte of a snapshot's log entry.
    pub fn log_entry(&self, slot: u64, snap: u64) -> (u64, usize) {
        let mut block = self.log(slot);
        loop {
            for i in 0..31 {
                let at = 64 + i * 128;
                if self.u64_at(block, at) == snap {
                    return (block, at);
                }
            }
            block = self.current(self.u64_at(block, 4032));
        }
    }

    pub fn link(&self, node: u64, i: usize) -> u64 {
        let bytes = &self.block(node)[i * 6..i * 6 + 6];
        let mut wide = [0; 8];
        wide[..6].copy_from_slice(bytes);
        u64::from_le_bytes(wide) & ((1 << 47) - 1)
    }

    /// First node below `node`.
    pub fn child(&self, node: u64, i: usize) -> u64 {
        let link = self.link(node, i);
        assert_ne!(link, 0, "a child was expected there");
        link
    }

    /// Sets a link, with the stamp of the node there if that is one.
    pub fn set_link(&mut self, node: u64, i: usize, to: u64) {
        let generation = if self.is_node(to) { self.u64_at(to, NODE + 48) } else { 0 };
        self.set_link_stamped(node, i, to, generation % STAMPS);
    }

    pub fn set_link_stamped(&mut self, node: u64, i: usize, to: u64, stamp: u64) {
        self.edit(node, NODE, |b| {
            b[i * 6..i * 6 + 6].copy_from_slice(&to.to_le_bytes()[..6]);
            let at = STAMPS_AT + i * 3 / 2;
            let (both, shift) = (u16::from_le_bytes([b[at], b[at + 1]]), i % 2 * 4);
            let both = both & !(0xfff << shift) | (stamp as u16) << shift;
            b[at..at + 2].copy_from_slice(&both.to_le_bytes());
        });
    }

    fn is_node(&self, block: u64) -> bool {
        let there = self.at(block) + BLOCK_SIZE <= self.disk.len();
        there && self.block(block)[NODE..NODE + 4] == *b"LMNA"
    }

    /// Makes the node at `root` the root of a disk's live tree.
    pub fn set_root(&mut self, slot: u64, root: u64) {
        let generation = self.u64_at(root, NODE + 48);
        self.edit_record(slot, |b| {
            put(b, 160, root);
            put(b, ROOT_GENERATION_AT, generation);
        });
    }

    /// Puts an older node of the same place in a node's stead, `points` consistency points older
    /// and without its link `dropped`: what a lost write into a block used again leaves there.
    pub fn make_stale(&mut self, node: u64, points: u64, dropped: usize) {
        let generation = self.u64_at(node, NODE + 48) - points;
        self.edit(node, NODE, |b| {
            b[dropped * 6..dropped * 6 + 6].fill(0);
            put(b, NODE + 48, generation);
        });
    }

    /// Root, level-1 node and leaf 0 of a disk's live tree.
    pub fn path(&self, slot: u64) -> [u64; 3] {
        let root = self.root(slot);
        let inner = self.child(root, 0);
        [root, inner, self.child(inner, 0)]
    }

    /// Address of the bitmap copy that counts, and of its catalogue block and entry, for a block.
    pub fn bitmap_of(&self, block: u64) -> (u64, u64, usize) {
        let (extents, blocks) = (self.sb(120), self.sb(128));
        let extent = (block - extents) / blocks;
        let start = extents + extent * blocks;
        let catalogue = self.current(self.sb(72) + 2 * (extent / 252));
        let entry = 64 + 16 * (extent % 252) as usize;
        let generation = self.u64_at(catalogue, entry + 8);
        let side = u64::from(self.u64_at(start, 48) != generation);
        assert_eq!(self.u64_at(start + side, 48), generation);
        (start + side, catalogue, entry)
    }

    /// Marks a block used or free in its bitmap, and makes the catalogue agree.
    pub fn mark(&mut self, block: u64, used: bool) {
        let (bitmap, catalogue, entry) = self.bitmap_of(block);
        let bit = ((block - self.sb(120)) % self.sb(128)) as usize;
        self.edit(bitmap, FRONT, |b| {
            let byte = &mut b[64 + bit / 8];
            assert_eq!(*byte >> (bit % 8) & 1 == 1, !used, "it says so already");
            *byte ^= 1 << (bit % 8);
        });
        self.edit(catalogue, FRONT, |b| {
            let free = u32::from_le_bytes(b[entry + 4..entry + 8].try_into().unwrap());
            let free = if used { free - 1 } else { free + 1 };
            b[entry + 4..entry + 8].copy_from_slice(&free.to_le_bytes());
        });
    }

    /// A block that is free in the bitmap of `near`'s extent.
    pub fn free_block(&self, near: u64) -> u64 {
        let (bitmap, _, _) = self.bitmap_of(near);
        let blocks = self.sb(128);
        let start = near - (near - self.sb(120)) % blocks;
        let used = |bit: u64| self.block(bitmap)[64 + bit as usize / 8] >> (bit % 8) & 1 == 1;
        start + (0..blocks).rev().find(|&bit| !used(bit)).expect("a free block in that extent")
    }

    /// The block of the journal that holds a sequence number.
    pub fn journal(&self, lsn: u64) -> u64 {
        self.sb(104) + lsn % self.sb(112)
    }

    /// The last block of the journal that was written.
    pub fn last(&self) -> u64 {
        let follows = |lsn: &u64| {
            let block = self.journal(*lsn);
            self.block(block)[..4] == *b"LMNA" && self.u64_at(block, 40) == *lsn
        };
        (self.tail()..).take_while(follows).last().expect("a journal with something in it")
    }

    /// First journal block to be replayed.
    pub fn tail(&self) -> u64 {
        self.sb(144)
    }
}

/// Puts a number into a block.
pub fn put(block: &mut [u8], at: usize, value: u64) {
    block[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Puts a 32-bit number into a block.
pub fn put32(block: &mut [u8], at: usize, value: u32) {
    block[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

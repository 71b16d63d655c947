//! A store that is full, again and again: the right status, earlier data intact byte for byte,
//! discard and delete still work, and space returns exactly.
//!
//! Every mapped block of the model is one reference-counted page, so that what snapshots and clones
//! share is one page here as it is one block there: the number of distinct pages is the number of
//! data blocks that must be taken.
//!
//! `LAMINA_FULL_CYCLES` sets the number of cycles (1,000), `LAMINA_FULL_SEED` the seed.

mod rig;

use std::collections::BTreeSet;
use std::rc::Rc;

use lamina_bdev::*;
use rig::{FILE, RAM, Random, Rig};

const STORE_BYTES: usize = 24 << 20;
/// Of the largest disk; six of them are more than twice the store.
const BLOCKS_MAX: usize = 2048;
const DISKS_MAX: usize = 6;
const SNAPSHOTS_MAX: usize = 4;
/// Blocks of metadata that a version may hold: leaves and a root.
const NODES_MAX: u64 = (BLOCKS_MAX / 512) as u64 + 1;

type Page = Rc<[u8; 4096]>;
type Blocks = Vec<Option<Page>>;

struct Disk {
    id: DiskId,
    handle: Handle,
    live: Blocks,
    snaps: Vec<(SnapRef, Blocks)>,
    origin: Option<SnapRef>,
}

struct World {
    rig: Rig,
    random: Random,
    disks: Vec<Disk>,
    /// What a fresh store has free.
    fresh: u64,
    names: u64,
    /// Times that a request or command was told that there is no space.
    refused: u64,
    actions: [u64; 8],
}

impl World {
    fn new(traits: BaseTraits, seed: u64) -> World {
        let mut rig = Rig::new(STORE_BYTES, traits, false);
        let fresh = rig.settle().free_blocks;
        let (random, disks) = (Random(seed), Vec::new());
        World { rig, random, disks, fresh, names: 0, refused: 0, actions: [0; 8] }
    }

    fn pick(&mut self) -> usize {
        self.random.below(self.disks.len() as u64) as usize
    }

    fn content(&mut self) -> Page {
        let mut page = [0u8; 4096];
        for word in page.chunks_exact_mut(8) {
            word.copy_from_slice(&self.random.next().to_le_bytes());
        }
        Rc::new(page)
    }

    /// A write of whole or partial blocks somewhere. True if it fitted.
    fn write(&mut self, at: usize, blocks_max: u64) -> bool {
        let blocks = self.disks[at].live.len();
        let first = self.random.below(blocks as u64) as usize;
        let count = (1 + self.random.below(blocks_max) as usize).min(blocks - first);
        let (head, tail) = if self.random.chance(20) {
            (self.random.below(4) as usize * 512, self.random.below(4) as usize * 512)
        } else {
            (0, 0)
        };
        let mut new: Vec<Page> = Vec::new();
        for i in 0..count {
            let mut page = self.content();
            let old = self.disks[at].live[first + i].as_deref().unwrap_or(&[0; 4096]);
            let bytes = Rc::get_mut(&mut page).expect("new");
            if i == 0 {
                bytes[..head].copy_from_slice(&old[..head]);
            }
            if i == count - 1 {
                bytes[4096 - tail..].copy_from_slice(&old[4096 - tail..]);
            }
            new.push(page);
        }
        let mut data = Vec::with_capacity(count * 4096);
        new.iter().for_each(|page| data.extend_from_slice(page.as_slice()));
        data.truncate(data.len() - tail);
        data.drain(..head);
        let (handle, offset) = (self.disks[at].handle, (first * 4096 + head) as u64);
        match self.rig.write(handle, offset, data) {
            Status::Ok => {
                for (i, page) in new.into_iter().enumerate() {
                    self.disks[at].live[first + i] = Some(page);
                }
                true
            }
            Status::NoSpace => {
                self.refused += 1;
                let info = self.rig.engine.store_info();
                // The write itself may need a leaf and three nodes above it.
                let short = info.free_blocks < count as u64 + 4;
                assert!(short, "no space for {count} blocks, it says, but: {info:?}");
                self.partly(at, first, new);
                false
            }
            other => panic!("a write on a full store: {other:?}"),
        }
    }

    /// A write failed: each block is as before or as written, and nothing else.
    fn partly(&mut self, at: usize, first: usize, new: Vec<Page>) {
        let handle = self.disks[at].handle;
        let read = self.rig.read(handle, first as u64 * 4096, new.len() * 4096);
        for (i, (page, found)) in new.into_iter().zip(read.chunks(4096)).enumerate() {
            let old = &mut self.disks[at].live[first + i];
            if found == page.as_slice() {
                *old = Some(page);
            } else {
                let intact = found == old.as_deref().unwrap_or(&[0; 4096]).as_slice();
                assert!(intact, "block {} after a failed write", first + i);
            }
        }
    }

    /// Writes until at least 95 % of what can be used is used, often until nothing fits.
    fn fill(&mut self) {
        let brim = self.random.chance(60);
        for _ in 0..4000 {
            let info = self.rig.engine.store_info();
            if !brim && (info.free_blocks + info.pending_blocks) * 20 <= self.fresh {
                return;
            }
            if info.free_blocks * 4 > self.fresh && self.disks.len() < DISKS_MAX {
                self.create(None);
            }
            if self.disks.is_empty() {
                self.create(None);
            }
            let at = self.pick();
            let count = if info.free_blocks > 600 { 300 } else { 24 };
            if !self.write(at, count) && brim && self.one_block_more() {
                return;
            }
        }
    }

    /// Holes take single blocks until not even one fits. True: so it is.
    fn one_block_more(&mut self) -> bool {
        for _ in 0..2000 {
            let at = self.pick();
            if !self.write(at, 1) {
                return true;
            }
        }
        false
    }

    fn create(&mut self, from: Option<(usize, usize)>) {
        self.names += 1;
        let name = format!("d{}", self.names);
        let blocks = 256 + self.random.below((BLOCKS_MAX - 256) as u64) as usize;
        let origin = from.map(|(disk, snap)| self.disks[disk].snaps[snap].0);
        let size = if origin.is_some() { 0 } else { blocks as u64 * 4096 };
        match self.rig.create(&name, size, origin) {
            Ok(id) => {
                let live = match from {
                    None => vec![None; blocks],
                    Some((disk, snap)) => self.disks[disk].snaps[snap].1.clone(),
                };
                let handle = self.rig.attach(Target::Disk(id));
                self.disks.push(Disk { id, handle, live, snaps: Vec::new(), origin });
            }
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
                self.refused += 1;
            }
        }
    }

    fn discard(&mut self, at: usize) {
        let blocks = self.disks[at].live.len();
        let first = self.random.below(blocks as u64) as usize;
        let count = (1 + self.random.below(700) as usize).min(blocks - first);
        let op = if self.random.chance(50) { Op::Discard } else { Op::WriteZeroes };
        let (handle, offset, len) =
            (self.disks[at].handle, first as u64 * 4096, count as u64 * 4096);
        let status = self.rig.clear(handle, op, offset, len);
        assert_eq!(status, Status::Ok, "{op:?} of {count} blocks on a full store");
        self.disks[at].live[first..first + count].fill(None);
    }

    fn snapshot(&mut self, at: usize) {
        if self.disks[at].snaps.len() >= SNAPSHOTS_MAX {
            return;
        }
        match self.rig.snapshot(self.disks[at].id) {
            Ok(snap) => {
                let blocks = self.disks[at].live.clone();
                self.disks[at].snaps.push((snap, blocks));
            }
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
                self.refused += 1;
            }
        }
    }

    fn delete_snapshot(&mut self, at: usize) {
        let count = self.disks[at].snaps.len();
        if count == 0 {
            return;
        }
        let which = self.random.below(count as u64) as usize;
        let snap = self.disks[at].snaps[which].0;
        let cloned = self.disks.iter().any(|disk| disk.origin == Some(snap));
        match self.rig.command(Command::DeleteSnapshot(snap)) {
            Ok(_) => {
                self.disks[at].snaps.remove(which);
            }
            Err(error) => assert!(error.kind == ErrorKind::Busy && cloned, "{error}"),
        }
    }

    fn delete_disk(&mut self, at: usize) {
        let disk = &self.disks[at];
        let (id, handle) = (disk.id, disk.handle);
        let cloned = |snap: &SnapRef| self.disks.iter().any(|disk| disk.origin == Some(*snap));
        let held = disk.snaps.iter().any(|(snap, _)| cloned(snap));
        self.rig.command(Command::Detach(handle)).unwrap();
        match self.rig.command(Command::DeleteDisk(id)) {
            Ok(_) => {
                self.disks.remove(at);
            }
            Err(error) => {
                // A disk of which deleted snapshots have clones is refused too.
                let cloned = held || self.disks.iter().any(|d| d.origin.is_some());
                assert!(error.kind == ErrorKind::Busy && cloned, "{error}");
                self.disks[at].handle = self.rig.attach(Target::Disk(id));
            }
        }
    }

    /// Shrinks must work on a full store: they only free.
    fn resize(&mut self, at: usize) {
        let blocks = 256 + self.random.below((BLOCKS_MAX - 256) as u64) as usize;
        let resize = Command::Resize(self.disks[at].id, blocks as u64 * 4096);
        self.rig.command(resize).unwrap_or_else(|error| panic!("to {blocks} blocks: {error}"));
        self.disks[at].live.resize(blocks, None);
    }

    /// What a disk without snapshots holds can be written again and again, however full the store
    /// is.
    fn overwrite_own(&mut self, at: usize) {
        if !self.disks[at].snaps.is_empty() || self.disks[at].origin.is_some() {
            return;
        }
        // What is being deleted holds its blocks until it is gone.
        self.rig.settle();
        let own: Vec<usize> = (0..self.disks[at].live.len())
            .filter(|&i| self.disks[at].live[i].as_ref().is_some_and(|p| Rc::strong_count(p) == 1))
            .collect();
        for _ in 0..8.min(own.len()) {
            let block = own[self.random.below(own.len() as u64) as usize];
            let page = self.content();
            let offset = block as u64 * 4096;
            let status = self.rig.write(self.disks[at].handle, offset, page.to_vec());
            assert_eq!(status, Status::Ok, "overwriting block {block}, which is the disk's own");
            self.disks[at].live[block] = Some(page);
        }
    }

    fn act(&mut self) {
        if self.disks.is_empty() {
            return;
        }
        let at = self.pick();
        let action = [0, 0, 1, 1, 2, 3, 4, 5, 6, 7][self.random.below(10) as usize];
        self.actions[action] += 1;
        match action {
            0 => self.discard(at),
            1 => self.snapshot(at),
            2 => {
                let snaps = self.disks[at].snaps.len() as u64;
                if snaps > 0 && self.disks.len() < DISKS_MAX {
                    let snap = self.random.below(snaps) as usize;
                    self.create(Some((at, snap)));
                }
            }
            3 => self.delete_snapshot(at),
            4 => self.delete_disk(at),
            5 => self.resize(at),
            6 => self.overwrite_own(at),
            _ => {
                self.write(at, 64);
            }
        }
        self.healthy();
    }

    fn healthy(&mut self) {
        assert_eq!(self.rig.engine.failure(), None);
        for event in self.rig.events() {
            assert!(!event.severe, "{}", event.text);
        }
    }

    fn check_blocks(&mut self, handle: Handle, blocks: &Blocks, what: &str) {
        let read = self.rig.read(handle, 0, blocks.len() * 4096);
        for (i, (found, page)) in read.chunks(4096).zip(blocks).enumerate() {
            let wanted = page.as_deref().unwrap_or(&[0; 4096]);
            assert!(found == wanted.as_slice(), "{what}, block {i}");
        }
    }

    /// Every byte of every disk and snapshot.
    fn check_all(&mut self) {
        for at in 0..self.disks.len() {
            let (handle, live) = (self.disks[at].handle, self.disks[at].live.clone());
            self.check_blocks(handle, &live, &format!("disk {}", self.disks[at].id.0));
            for which in 0..self.disks[at].snaps.len() {
                let (snap, blocks) = self.disks[at].snaps[which].clone();
                let view = self.rig.attach(Target::Snapshot(snap));
                self.check_blocks(view, &blocks, &format!("{snap:?}"));
                self.rig.command(Command::Detach(view)).unwrap();
            }
        }
    }

    /// Blocks taken are data that something holds, and little else.
    fn account(&mut self) {
        let info = self.rig.settle();
        let mut pages = BTreeSet::new();
        let (mut versions, mut mapped) = (0, Vec::new());
        for disk in &self.disks {
            versions += 1 + disk.snaps.len() as u64;
            for blocks in disk.snaps.iter().map(|(_, blocks)| blocks).chain([&disk.live]) {
                pages.extend(blocks.iter().flatten().map(|page| Rc::as_ptr(page).addr()));
            }
            mapped.push((disk.id, disk.live.iter().flatten().count() as u64));
        }
        let used =
            self.rig.engine.store_info().total_blocks - info.free_blocks - info.reserved_blocks;
        let data = pages.len() as u64;
        // Besides trees: two blocks of snapshot log for a disk that ever had a snapshot.
        let most = data + versions * NODES_MAX + 2 * self.disks.len() as u64;
        assert!(
            (data..=most).contains(&used),
            "{used} blocks are taken, {data} hold data, {versions} versions: {info:?}"
        );
        let infos = self.rig.engine.disks();
        for (id, count) in mapped {
            let found = infos.iter().find(|info| info.id == id).expect("listed");
            assert_eq!(found.mapped_blocks, count, "disk {}", id.0);
        }
    }

    /// A SIGKILL and a restart.
    fn kill(mut self) -> World {
        let before = self.rig.settle();
        self.rig = self.rig.reopen();
        for disk in &mut self.disks {
            disk.handle = self.rig.attach(Target::Disk(disk.id));
        }
        let after = self.rig.settle();
        assert_eq!((before.free_blocks, before.disks), (after.free_blocks, after.disks));
        self
    }

    fn delete_everything(&mut self) {
        for _ in 0..2 * DISKS_MAX {
            // Clones before their origins, whatever the order is.
            for at in (0..self.disks.len()).rev() {
                self.delete_disk(at);
            }
            self.rig.settle();
        }
        assert!(self.disks.is_empty());
        let info = self.rig.settle();
        assert_eq!(info.free_blocks, self.fresh, "space returns exactly: {info:?}");
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

fn run(traits: BaseTraits, share: u64) {
    let seed = number("LAMINA_FULL_SEED", 1);
    let cycles = number("LAMINA_FULL_CYCLES", 1000) * share / 100;
    let mut world = World::new(traits, seed);
    for cycle in 1..=cycles {
        world.fill();
        for _ in 0..1 + world.random.below(3) {
            world.act();
        }
        world.account();
        if cycle % 16 == 0 {
            world.check_all();
        }
        if cycle % 40 == 0 {
            world = world.kill();
            world.check_all();
        }
        if cycle % 100 == 0 {
            world.delete_everything();
        }
    }
    world.check_all();
    world.delete_everything();
    assert!(world.refused >= cycles / 2, "the store was full only {} times", world.refused);
    let rare = world.actions.iter().min();
    assert!(rare >= Some(&(cycles / 50)), "{:?}", world.actions);
}

#[test]
fn a_full_store_in_memory_keeps_its_promises() {
    run(RAM, 60);
}

/// Every overwrite needs a fresh block here, and gives one back at a consistency point.
#[test]
fn a_full_store_that_never_overwrites_in_place_keeps_its_promises() {
    run(FILE, 40);
}

/// Fills what `handle` shows until nothing fits.
fn brim(rig: &mut Rig, handle: Handle, bytes: u64) {
    for len in [1 << 20, 4096] {
        for offset in (0..bytes).step_by(len) {
            if rig.write(handle, offset, vec![7; len]) == Status::NoSpace {
                break;
            }
        }
    }
}

/// Metadata is never short, however many snapshots are taken of a full store and however its free
/// space is scattered.
#[test]
fn snapshots_of_many_disks_on_a_full_and_fragmented_store() {
    for fragmented in [false, true] {
        let mut rig = Rig::new(STORE_BYTES, RAM, false);
        let fresh = rig.settle().free_blocks;
        let disks: Vec<DiskId> =
            (0..60).map(|i| rig.create(&format!("s{i}"), 1 << 20, None).unwrap()).collect();
        let handles: Vec<Handle> = disks.iter().map(|&id| rig.attach(Target::Disk(id))).collect();
        for &handle in &handles {
            assert_eq!(rig.write(handle, 0, vec![1; 4096]), Status::Ok);
        }
        let big = rig.create("big", 64 << 20, None).unwrap();
        let handle = rig.attach(Target::Disk(big));
        brim(&mut rig, handle, 64 << 20);
        if fragmented {
            // Every second block of the disk is freed; what is then written fills all but single
            // blocks.
            for block in (1..16 << 8).step_by(2) {
                let status = rig.clear(handle, Op::Discard, block * 4096, 4096);
                assert_eq!(status, Status::Ok);
            }
            rig.settle();
            brim(&mut rig, handle, 64 << 20);
        }
        let mut taken = Vec::new();
        for &disk in &disks {
            match rig.snapshot(disk) {
                Ok(snap) => taken.push(snap),
                Err(error) => assert_eq!(error.kind, ErrorKind::NoSpace, "{error}"),
            }
        }
        assert!(fragmented || taken.len() > 10, "{} snapshots were taken", taken.len());
        rig.settle();
        assert_eq!(rig.engine.failure(), None);
        let mut rig = rig.reopen();
        for snap in &taken {
            rig.command(Command::DeleteSnapshot(*snap)).unwrap();
        }
        for disk in disks.into_iter().chain([big]) {
            rig.command(Command::DeleteDisk(disk)).unwrap();
        }
        assert_eq!(rig.settle().free_blocks, fresh);
        assert_eq!(rig.engine.failure(), None);
    }
}

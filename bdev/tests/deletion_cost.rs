//! What deleting a snapshot costs follows what the snapshot alone holds, not the size of the disk,
//! and what a discard costs follows what is mapped:
//! counted in operations of the base device, which no busy machine can change. (Milliseconds on a
//! full disk of 1 TiB are `lamina-perf deletion`.)

mod rig;

use lamina_bdev::*;
use rig::{FILE, RAM, Rig};

const DISK_BYTES: u64 = 1 << 40;
const LEAF_BYTES: u64 = 512 * 4096;

/// Operations on the base from now until `work` is done and everything has come to rest.
fn cost(rig: &mut Rig, work: impl FnOnce(&mut Rig)) -> (u64, u64) {
    let before = rig.settle();
    let clock = rig.base.clock;
    work(rig);
    let after = rig.settle();
    // The clock counts the beginning and the end of each operation.
    ((rig.base.clock - clock) / 2, after.free_blocks - before.free_blocks)
}

/// A disk of 1 TiB whose map has so many leaves, all over it, none of them in the node cache.
fn disk(traits: BaseTraits, leaves: u64) -> (Rig, DiskId) {
    let mut rig = Rig::new(96 << 20, traits, false);
    let id = rig.create("big", DISK_BYTES, None).unwrap();
    let handle = rig.attach(Target::Disk(id));
    for i in 0..leaves {
        let offset = i * (DISK_BYTES / leaves) / LEAF_BYTES * LEAF_BYTES;
        assert_eq!(rig.write(handle, offset, vec![i as u8; 4096]), Status::Ok);
    }
    // The snapshot log stays when the first snapshot goes.
    let first = rig.snapshot(id).unwrap();
    rig.settle();
    rig.command(Command::DeleteSnapshot(first)).unwrap();
    rig.settle();
    (rig.reopen(), id)
}

/// Operations for deleting a snapshot after which `held` blocks far from each other were written.
fn deletion(traits: BaseTraits, leaves: u64, held: u64) -> u64 {
    let (mut rig, id) = disk(traits, leaves);
    let (idle, _) = cost(&mut rig, |_| {});
    let free = rig.settle().free_blocks;
    let snapshot = rig.snapshot(id).unwrap();
    let handle = rig.attach(Target::Disk(id));
    for i in 0..held {
        let offset = i * (DISK_BYTES / leaves) / LEAF_BYTES * LEAF_BYTES;
        assert_eq!(rig.write(handle, offset, vec![0xbb; 4096]), Status::Ok);
    }
    rig.settle();
    let mut rig = rig.reopen();
    let (operations, back) = cost(&mut rig, |rig| {
        rig.command(Command::DeleteSnapshot(snapshot)).unwrap();
    });
    assert!(back >= held, "{back} blocks came back of {held}");
    assert_eq!(rig.settle().free_blocks, free, "all of it came back");
    operations.saturating_sub(idle)
}

#[test]
fn an_empty_snapshot_costs_the_same_on_a_small_and_on_a_large_map() {
    for traits in [RAM, FILE] {
        let (small, large) = (deletion(traits, 1, 0), deletion(traits, 6000, 0));
        assert!(large <= small + 8, "{small} operations with one leaf, {large} with 6,000");
        assert!(large <= 64, "{large} operations for nothing");
    }
}

#[test]
fn a_snapshot_that_holds_little_costs_little() {
    for traits in [RAM, FILE] {
        let nothing = deletion(traits, 6000, 0);
        for held in [1, 10, 100] {
            // For each block: its path in two versions, a bitmap, and both written again.
            let operations = deletion(traits, 6000, held);
            let limit = nothing + 16 * held + 16;
            assert!(operations <= limit, "{operations} operations for {held} blocks of 6,000");
        }
    }
}

#[test]
fn a_discard_passes_over_holes() {
    const HUGE: u64 = 256 << 40;
    for traits in [RAM, FILE] {
        let mut rig = Rig::new(64 << 20, traits, false);
        let id = rig.create("huge", HUGE, None).unwrap();
        let handle = rig.attach(Target::Disk(id));
        let free = rig.settle().free_blocks;
        let (idle, _) = cost(&mut rig, |_| {});
        let discard = |rig: &mut Rig| {
            assert_eq!(rig.clear(handle, Op::Discard, 0, HUGE), Status::Ok);
        };
        let (operations, _) = cost(&mut rig, discard);
        assert!(operations <= idle + 8, "{operations} operations for a disk that holds nothing");
        let places = [0, 1 << 30, HUGE / 2 + (5 << 21), HUGE - 4096];
        for offset in places {
            assert_eq!(rig.write(handle, offset, vec![1; 4096]), Status::Ok);
        }
        let (operations, _) = cost(&mut rig, discard);
        assert!(operations <= idle + 200, "{operations} operations for four blocks");
        for offset in places {
            assert_eq!(rig.read(handle, offset, 4096), [0; 4096]);
        }
        assert_eq!(rig.settle().free_blocks, free, "all of it came back");
    }
}

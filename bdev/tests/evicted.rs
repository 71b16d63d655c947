//! Leaves that are evicted while something of them still matters: what a compact copy or the disk
//! brings back must mean the same.

mod simple;

use lamina_bdev::*;
use simple::Rig;

const BLOCK: u64 = 4096;
/// Overwrites go in place, but not while a replay would check what is there.
const CACHED: BaseTraits = BaseTraits { volatile_cache: true, atomic_4k: true, atomic_rw: false };

/// Writes every `step`-th of 120 blocks of a new disk.
fn written(name: &str, step: u64) -> (Rig, DiskId, Handle) {
    let mut rig = Rig::new(24 << 20, CACHED);
    let disk = rig.create(name, 8 << 20, None);
    let handle = rig.attach(Target::Disk(disk));
    rig.settle();
    for block in (0..120).step_by(step as usize) {
        rig.write(handle, block * BLOCK, 1, BLOCK as usize);
    }
    (rig, disk, handle)
}

/// A block whose record a replay would still check is not overwritten in place, although its leaf
/// has been written, evicted and brought back, from a compact copy (few runs) or the disk (many).
#[test]
fn an_evicted_leaf_does_not_forget_what_is_unsealed() {
    for step in [1, 2] {
        let (mut reloaded, mut promoted, mut sealed) = (0, 0, 0);
        for left in 0..60 {
            let (mut rig, _, handle) = written("a", step);
            let points = rig.engine.stats().checkpoints;
            // The point stops after so many operations of the base.
            rig.engine.command(1, Command::Checkpoint);
            rig.left = left;
            (0..100).for_each(|_| rig.turn());
            rig.engine.evict_nodes(1000);
            let before = rig.engine.stats();
            rig.left = u64::MAX;
            let mut data = [2u8; BLOCK as usize];
            let seg = Seg { addr: data.as_mut_ptr() as usize, len: data.len() };
            let op = Op::Write;
            let offset = 118 * BLOCK;
            let request = Request { cookie: 9, handle, op, offset, len: BLOCK, fua: false };
            assert!(rig.engine.submit(&request, &[seg]));
            let decided = |stats: Stats| stats.writes_in_place + stats.writes_redirected;
            while decided(rig.engine.stats()) == decided(before) {
                rig.turn();
            }
            let after = rig.engine.stats();
            let in_place = after.writes_in_place > before.writes_in_place;
            let committed = after.checkpoints > points;
            assert_eq!(in_place, committed, "{step}, {left} operations");
            sealed += u32::from(committed);
            reloaded += u32::from(!committed && after.cache_misses > before.cache_misses);
            promoted += u32::from(!committed && after.cache_promotions > before.cache_promotions);
            while rig.engine.next_done().is_none() {
                rig.turn();
            }
            assert_eq!(rig.read(handle, offset, 512), [2; 512]);
        }
        let (from_copy, from_disk) = (promoted > 0, reloaded > 0);
        assert_eq!((from_copy, from_disk, sealed > 0), (step == 1, step == 2, true), "{step}");
    }
}

/// What is read from a compact copy is the leaf as it is, before and after a change of it.
#[test]
fn a_change_goes_through_the_compact_copy() {
    let (mut rig, _, handle) = written("a", 1);
    rig.settle();
    for round in 1..20u8 {
        rig.engine.evict_nodes(1000);
        let before = rig.engine.stats();
        let mut expected = vec![1; 8 * 4096];
        expected[4096 - 512..][..4096].fill(round);
        assert_eq!(rig.read(handle, 512, 8 * 4096), expected);
        let after = rig.engine.stats();
        assert_eq!(after.cache_misses, before.cache_misses);
        rig.write(handle, BLOCK, round + 1, BLOCK as usize);
        rig.settle();
    }
    let stats = rig.engine.stats();
    assert!(stats.cache_compact_hits > 0 && stats.cache_promotions > 10, "{stats:?}");
}

/// A new disk that has the number of a deleted one has nothing of it.
#[test]
fn copies_of_a_deleted_disk_are_not_found() {
    let (mut rig, mut disk, mut handle) = written("a", 1);
    for round in 0..600 {
        rig.write(handle, 0, 7, 2 * BLOCK as usize);
        rig.command(Command::Checkpoint).unwrap();
        rig.engine.evict_nodes(1000);
        assert_eq!(rig.read(handle, 0, 512), [7; 512]);
        rig.command(Command::Detach(handle)).unwrap();
        rig.command(Command::DeleteDisk(disk)).unwrap();
        rig.command(Command::Checkpoint).unwrap();
        let next = rig.create("b", 8 << 20, None);
        assert_eq!(next, disk, "round {round}: the number is used again");
        (disk, handle) = (next, rig.attach(Target::Disk(next)));
        assert_eq!(rig.read(handle, 0, 512), [0; 512], "round {round}");
    }
    assert!(rig.engine.stats().cache_compact_hits >= 600);
}

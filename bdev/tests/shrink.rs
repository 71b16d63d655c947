//! Snapshots taken while a disk shrinks: what the shrink cuts off never comes back, neither past
//! the end of the snapshot nor when a clone of it grows.

mod rig;

use lamina_bdev::*;
use rig::{DISK, FILE, RAM, Random, Rig};

const OLD: u64 = 64 << 20;
const NEW: u64 = 5 << 20;
/// Written before: at each of these, one block.
const STEP: u64 = 128 << 10;

/// Some of what the base was given is done, in any order.
fn some(rig: &mut Rig, random: &mut Random) {
    rig.step();
    for _ in 0..random.below(4) {
        let pending = rig.base.pending.len() as u64;
        if pending > 0 {
            rig.complete(random.below(pending) as usize, Ok(()));
        }
    }
}

/// A snapshot asked for `wait` steps after a shrink; its size as the store lists it.
fn snapshot_in_shrink(rig: &mut Rig, disk: DiskId, wait: u64, random: &mut Random) -> SnapRef {
    let shrink = rig.begin(Command::Resize(disk, NEW));
    (0..wait).for_each(|_| some(rig, random));
    let snapshot = Command::Snapshot { disk, uuid: Uuid([3; 16]), label: Name::EMPTY, time: 9 };
    let snapshot = rig.begin(snapshot);
    let (mut shrunk, mut taken) = (false, None);
    for _ in 0..1_000_000 {
        while let Some((cookie, outcome)) = rig.engine.next_reply() {
            match outcome.expect("both are lawful") {
                Reply::Snapshot(snap) if cookie == snapshot => taken = Some(SnapRef { disk, snap }),
                _ if cookie == shrink => shrunk = true,
                other => panic!("{other:?} was not asked for"),
            }
        }
        if let (true, Some(taken)) = (shrunk, taken) {
            return taken;
        }
        some(rig, random);
    }
    panic!("a shrink and a snapshot never ended");
}

fn life(seed: u64, traits: BaseTraits) -> bool {
    let mut random = Random(seed);
    let mut rig = Rig::new(48 << 20, traits, false);
    let disk = rig.create("d", OLD, None).unwrap();
    let handle = rig.attach(Target::Disk(disk));
    for at in (0..OLD).step_by(STEP as usize) {
        assert_eq!(rig.write(handle, at, vec![7; 4096]), Status::Ok);
    }
    let snap = snapshot_in_shrink(&mut rig, disk, seed % 60, &mut random);
    if random.chance(30) {
        rig = rig.reopen();
    }
    let listed = rig.engine.snapshots(disk);
    let size = listed.iter().find(|s| s.snap == snap).expect("it was taken").size;
    assert!(size == OLD || size == NEW, "a snapshot of {size} bytes");
    rig.command(Command::Checkpoint).unwrap();
    let clone = rig.create("c", 0, Some(snap)).unwrap();
    rig.command(Command::Resize(clone, 2 * OLD)).unwrap();
    let handle = rig.attach(Target::Disk(clone));
    for at in (0..2 * OLD).step_by(STEP as usize) {
        let found = rig.read(handle, at, 4096);
        let kept = found == [7; 4096];
        assert!(kept || found == [0; 4096], "block at {at} is neither old nor empty");
        assert!(!kept || at < size, "{at} is past the end of a snapshot of {size} bytes");
        assert!(kept || at >= NEW, "{at} was not cut off, but is lost");
    }
    size == OLD
}

#[test]
fn what_a_shrink_cuts_off_is_in_no_snapshot_past_its_end() {
    let seeds = std::env::var("LAMINA_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(120);
    let (mut during, mut after) = (0, 0);
    for seed in 0..seeds {
        let early = life(seed, [RAM, FILE, DISK][seed as usize % 3]);
        during += u64::from(early);
        after += u64::from(!early);
    }
    assert!(during > 0 && after > 0, "{during} during the shrink, {after} after it: too tame");
}

//! Random trees of versions: snapshots of clones of snapshots, deleted in any order, through kills.
//! Every version keeps its bytes, and in the end every block is free again.

mod simple;

use std::collections::BTreeMap;

use lamina_bdev::*;
use simple::{FILE, RAM, Random, Rig};

/// Blocks of the little disks: three leaves.
const BLOCKS: usize = 1200;
/// Blocks that are written to, around the ends of the leaves.
const HOT: [usize; 12] = [0, 1, 2, 3, 510, 511, 512, 513, 1022, 1023, 1024, 1025];

type Content = [u8; HOT.len()];

#[derive(Default)]
struct Model {
    disks: BTreeMap<DiskId, (Handle, Content)>,
    snaps: BTreeMap<SnapRef, Content>,
}

fn verify(rig: &mut Rig, handle: Handle, due: &Content, what: &str) {
    for (&block, &byte) in HOT.iter().zip(due) {
        let got = rig.read(handle, block as u64 * 4096, 4096);
        assert!(got.iter().all(|b| *b == byte), "{what}: block {block} is {}, not {byte}", got[0]);
    }
}

/// The counts of mapped blocks that people are shown.
fn verify_counts(rig: &Rig, model: &Model) {
    let due = |content: &Content| content.iter().filter(|byte| **byte != 0).count() as u64;
    for found in rig.engine.disks() {
        assert_eq!(found.mapped_blocks, due(&model.disks[&found.id].1), "{}", found.name);
        for snap in rig.engine.snapshots(found.id) {
            assert_eq!(snap.mapped_blocks, due(&model.snaps[&snap.snap]), "{:?}", snap.snap);
        }
    }
}

fn verify_all(rig: &mut Rig, model: &Model) {
    verify_counts(rig, model);
    for (disk, (handle, due)) in &model.disks {
        verify(rig, *handle, due, &format!("disk {disk:?}"));
    }
    for (snap, due) in &model.snaps {
        let handle = rig.attach(Target::Snapshot(*snap));
        verify(rig, handle, due, &format!("{snap:?}"));
        rig.command(Command::Detach(handle)).unwrap();
    }
}

fn step(rig: &mut Rig, model: &mut Model, random: &mut Random, names: &mut u32) {
    match random.below(100) {
        0..40 => {
            let Some(disk) = random.pick(&model.disks) else { return };
            let (handle, content) = model.disks.get_mut(&disk).unwrap();
            let at = random.below(HOT.len());
            let block = HOT[at] as u64 * 4096;
            if random.below(5) == 0 {
                content[at] = 0;
                assert_eq!(rig.ranged(*handle, Op::Discard, block, 4096, &mut []), Status::Ok);
            } else {
                content[at] = 1 + random.below(255) as u8;
                rig.write(*handle, block, content[at], 4096);
            }
        }
        40..60 => {
            let Some(disk) = random.pick(&model.disks) else { return };
            let snap = rig.snapshot(disk, "");
            model.snaps.insert(snap, model.disks[&disk].1);
        }
        60..74 => {
            let from = random.pick(&model.snaps);
            if model.disks.len() > 7 || (from.is_none() && !model.disks.is_empty()) {
                return;
            }
            *names += 1;
            let size = if from.is_some() { 0 } else { (BLOCKS * 4096) as u64 };
            let disk = rig.create(&format!("d{names}"), size, from);
            let handle = rig.attach(Target::Disk(disk));
            let content = from.map_or([0; HOT.len()], |snap| model.snaps[&snap]);
            model.disks.insert(disk, (handle, content));
        }
        74..88 => {
            let Some(snap) = random.pick(&model.snaps) else { return };
            rig.command(Command::DeleteSnapshot(snap)).unwrap();
            model.snaps.remove(&snap);
        }
        88..94 => {
            let Some(disk) = random.pick(&model.disks) else { return };
            rig.command(Command::Detach(model.disks[&disk].0)).unwrap();
            rig.command(Command::DeleteDisk(disk)).unwrap();
            model.disks.remove(&disk);
            model.snaps.retain(|snap, _| snap.disk != disk);
        }
        94..98 => {
            rig.command(Command::Checkpoint).unwrap();
        }
        _ => verify_all(rig, model),
    }
}

fn life(seed: u64, traits: BaseTraits) {
    let mut rig = Rig::new(24 << 20, traits);
    let empty = rig.settle().free_blocks;
    let (mut model, mut random) = (Model::default(), Random::new(seed));
    let mut names = 0;
    for at in 0..400 {
        step(&mut rig, &mut model, &mut random, &mut names);
        if at % 100 == 99 {
            rig = rig.reopen();
            for (disk, (handle, _)) in &mut model.disks {
                *handle = rig.attach(Target::Disk(*disk));
            }
            verify_all(&mut rig, &model);
        }
    }
    while let Some(disk) = random.pick(&model.disks) {
        rig.command(Command::Detach(model.disks[&disk].0)).unwrap();
        rig.command(Command::DeleteDisk(disk)).unwrap();
        model.disks.remove(&disk);
        model.snaps.retain(|snap, _| snap.disk != disk);
        verify_all(&mut rig, &model);
    }
    for _ in 0..20 {
        rig.settle();
    }
    assert_eq!(rig.settle().free_blocks, empty, "blocks leaked");
    assert_eq!(rig.reopen().settle().free_blocks, empty, "blocks leaked, seen after a restart");
}

#[test]
fn versions_keep_their_bytes_and_give_back_their_blocks_whatever_the_order() {
    // LAMINA_SEEDS makes it longer.
    let seeds = std::env::var("LAMINA_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(150);
    for seed in 1..=seeds {
        for traits in [RAM, FILE] {
            let outcome = std::panic::catch_unwind(|| life(seed, traits));
            assert!(outcome.is_ok(), "seed {seed}, {traits:?}");
        }
    }
}

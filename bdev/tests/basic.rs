//! The engine over a plain vector: the quickest check that its verbs do what they say.

mod simple;

use lamina_bdev::*;
use simple::{FILE, RAM, Rig};

#[test]
fn writes_read_back_at_every_alignment_and_survive_a_kill() {
    for traits in [RAM, FILE] {
        let mut rig = Rig::new(64 << 20, traits);
        let disk = rig.create("a", 1 << 40, None);
        let h = rig.attach(Target::Disk(disk));
        assert_eq!(rig.read(h, 12345 * 512, 8192), vec![0; 8192]);
        rig.write(h, 0, 1, 4096);
        rig.write(h, 512, 2, 512);
        rig.write(h, (2 << 20) - 4096 - 512, 3, 3 << 20);
        rig.write(h, (1 << 40) - 512, 4, 512);
        let check = |rig: &mut Rig, h| {
            let first = rig.read(h, 0, 4096);
            assert_eq!((first[0], first[511], first[512], first[1024]), (1, 1, 2, 1));
            let long = rig.read(h, (2 << 20) - 8192, (3 << 20) + 8192);
            assert!(long[..3584].iter().all(|&b| b == 0));
            assert!(long[3584..3584 + (3 << 20)].iter().all(|&b| b == 3));
            assert!(long[3584 + (3 << 20)..].iter().all(|&b| b == 0));
            assert_eq!(rig.read(h, (1 << 40) - 1024, 1024)[512..], [4; 512]);
        };
        check(&mut rig, h);
        let mut rig = rig.reopen();
        let h = rig.attach(Target::Disk(disk));
        check(&mut rig, h);
        rig.command(Command::Checkpoint).unwrap();
        let mut rig = rig.reopen();
        let h = rig.attach(Target::Disk(disk));
        check(&mut rig, h);
    }
}

#[test]
fn snapshots_and_clones_keep_their_bytes_and_space_returns_exactly() {
    for traits in [RAM, FILE] {
        let mut rig = Rig::new(64 << 20, traits);
        let empty = rig.settle().free_blocks;
        let a = rig.create("a", 8 << 20, None);
        let h = rig.attach(Target::Disk(a));
        rig.write(h, 0, 1, 4 << 20);
        let s1 = rig.snapshot(a, "one");
        rig.write(h, 1 << 20, 2, 1 << 20);
        let s2 = rig.snapshot(a, "two");
        rig.write(h, 0, 3, 4096);
        let b = rig.create("b", 0, Some(s1));
        let hb = rig.attach(Target::Disk(b));
        rig.write(hb, 3 << 20, 4, 4096);
        let s3 = rig.snapshot(b, "");
        let c = rig.create("c", 0, Some(s3));
        for round in 0..2 {
            let h1 = rig.attach(Target::Snapshot(s1));
            let h2 = rig.attach(Target::Snapshot(s2));
            let hc = rig.attach(Target::Disk(c));
            assert_eq!(rig.read(h1, 0, 4 << 20), vec![1; 4 << 20]);
            assert_eq!(rig.read(h2, 1 << 20, 1 << 20), vec![2; 1 << 20]);
            assert_eq!(rig.read(h2, 0, 4096), vec![1; 4096]);
            assert_eq!(rig.read(hc, 3 << 20, 8192)[4095..4097], [4, 1]);
            assert_eq!(rig.request(h1, Op::Write, 0, &mut [0; 512]), Status::ReadOnly);
            if round == 0 {
                rig = rig.reopen();
            } else {
                for handle in [h1, h2, hc] {
                    rig.command(Command::Detach(handle)).unwrap();
                }
            }
        }
        // Snapshots with clones go, and so does the disk that they were of; the clones stay.
        let full = rig.settle().free_blocks;
        for snap in [s1, s2] {
            rig.command(Command::DeleteSnapshot(snap)).unwrap();
        }
        rig.settle();
        assert!(rig.engine.disks().iter().all(|d| d.id != b || d.origin.is_none()));
        rig.command(Command::DeleteDisk(a)).unwrap();
        assert!(rig.settle().free_blocks > full);
        rig = rig.reopen();
        let (hb, hc) = (rig.attach(Target::Disk(b)), rig.attach(Target::Disk(c)));
        for handle in [hb, hc] {
            assert_eq!(rig.read(handle, 0, 3 << 20), vec![1; 3 << 20]);
            assert_eq!(rig.read(handle, 3 << 20, 8192)[4095..4097], [4, 1]);
        }
        // What the two share is free when both have dropped it, and not before.
        rig.command(Command::DeleteSnapshot(s3)).unwrap();
        let before = rig.settle().free_blocks;
        rig.write(hb, 0, 7, 1 << 20);
        assert!(rig.settle().free_blocks < before);
        assert_eq!(rig.read(hc, 0, 1 << 20), vec![1; 1 << 20]);
        rig.write(hc, 0, 8, 1 << 20);
        rig.settle();
        assert_eq!(rig.read(hb, 0, 4 << 20)[(1 << 20) - 1..=1 << 20], [7, 1]);
        for (disk, handle) in [(c, hc), (b, hb)] {
            rig.command(Command::Detach(handle)).unwrap();
            rig.command(Command::DeleteDisk(disk)).unwrap();
            rig.settle();
        }
        assert_eq!(rig.settle().free_blocks, empty);
        let mut rig = rig.reopen();
        assert_eq!(rig.settle().free_blocks, empty);
    }
}

#[test]
fn discard_zeroes_resize_and_a_full_store() {
    for traits in [RAM, FILE] {
        let mut rig = Rig::new(64 << 20, traits);
        let empty = rig.settle().free_blocks;
        let a = rig.create("a", 256 << 20, None);
        let h = rig.attach(Target::Disk(a));
        rig.write(h, 0, 1, 2 << 20);
        assert_eq!(rig.ranged(h, Op::Discard, 512, 2 << 19, &mut []), Status::Ok);
        assert_eq!(rig.read(h, 0, 8192)[4095..4097], [1, 0]);
        assert_eq!(
            rig.ranged(h, Op::WriteZeroes, (1 << 20) + 8192 + 512, 4096, &mut []),
            Status::Ok
        );
        let around = rig.read(h, (1 << 20) + 8192, 8192);
        assert_eq!((around[511], around[512], around[4607], around[4608]), (1, 0, 0, 1));
        rig.command(Command::Resize(a, 1 << 20)).unwrap();
        assert_eq!(rig.request(h, Op::Read, 1 << 20, &mut [0; 512]), Status::OutOfRange);
        rig.command(Command::Resize(a, 128 << 20)).unwrap();
        assert_eq!(rig.read(h, 1 << 20, 1 << 20), vec![0; 1 << 20]);
        let mut at = 0;
        let status = loop {
            let status = rig.request(h, Op::Write, at, &mut vec![9; 1 << 20]);
            if status != Status::Ok {
                break status;
            }
            at += 1 << 20;
        };
        assert_eq!(status, Status::NoSpace);
        assert!(at > 40 << 20, "only {at} bytes fitted");
        assert_eq!(rig.read(h, 0, 1 << 20), vec![9; 1 << 20]);
        assert_eq!(rig.ranged(h, Op::Discard, 0, 128 << 20, &mut []), Status::Ok);
        rig.write(h, 0, 8, 4 << 20);
        rig.command(Command::Detach(h)).unwrap();
        rig.command(Command::DeleteDisk(a)).unwrap();
        assert_eq!(rig.settle().free_blocks, empty);
    }
}

/// Blocks of the device that hold map nodes of `level` at `index` of disk `owner`.
fn nodes(rig: &Rig, owner: u32, level: u8, index: u64) -> Vec<usize> {
    let header = |block: &[u8]| {
        let of = |at: usize, len: usize| &block[3072 + at..3072 + at + len];
        of(0, 4) == b"LMNA"
            && block[3072 + 5] == level
            && of(12, 4) == owner.to_le_bytes()
            && of(40, 8) == index.to_le_bytes()
    };
    let blocks = rig.disk.chunks_exact(4096).enumerate();
    blocks.filter(|(_, block)| header(block)).map(|(at, _)| at * 4096).collect()
}

/// Contract 6: a checkpoint that needs a damaged node replaces it; nothing acknowledged is lost,
/// the rest of what the node led to is an error, and everybody else goes on.
#[test]
fn a_damaged_node_costs_what_is_below_it_and_no_more() {
    const GIB: u64 = 1 << 30;
    let mut rig = Rig::new(64 << 20, RAM);
    let a = rig.create("sick", 400 * GIB, None);
    let b = rig.create("well", 64 << 20, None);
    let (ha, hb) = (rig.attach(Target::Disk(a)), rig.attach(Target::Disk(b)));
    for gib in 0..300 {
        rig.write(ha, gib * GIB, gib as u8, 4096);
    }
    // Too many runs for a compact copy, which would outlive the damage.
    (0..40).for_each(|run| rig.write(ha, (4 << 20) + run * 8192, 77, 4096));
    rig.write(hb, 0, 9, 1 << 20);
    rig.settle();
    // A leaf that is dirty stays in the cache while the node above it goes.
    rig.write(ha, 4096, 1, 4096);
    rig.engine.evict_nodes(1000);
    let found = nodes(&rig, a.0, 1, 0);
    assert!(!found.is_empty());
    for at in found {
        rig.disk[at + 100] ^= 0xff;
    }
    rig.command(Command::Checkpoint).unwrap();
    let events = rig.take_events();
    let told = events.iter().find(|e| e.severe && e.text.contains("is replaced")).expect("told");
    assert!(told.text.contains("sick"), "{}", told.text);
    assert_eq!(rig.engine.failure(), None);
    for round in 0..2 {
        assert_eq!(rig.read(ha, 0, 8192)[4095..4097], [0, 1]);
        assert_eq!(rig.request(ha, Op::Read, 4 << 20, &mut [0; 4096]), Status::Corrupt);
        assert_eq!(rig.request(ha, Op::Write, 4 << 20, &mut [0; 4096]), Status::Corrupt);
        assert_eq!(rig.read(ha, 7 * GIB, 4096), vec![7; 4096]);
        assert_eq!(rig.read(hb, 0, 1 << 20), vec![9 - 2 * round; 1 << 20]);
        rig.write(hb, 0, 7, 1 << 20);
        rig.write(ha, 8192, 2, 4096);
        rig = rig.reopen();
        assert_eq!([rig.attach(Target::Disk(a)), rig.attach(Target::Disk(b))], [ha, hb]);
        rig.take_events();
    }
    rig.command(Command::Detach(ha)).unwrap();
    rig.command(Command::DeleteDisk(a)).unwrap();
    rig.command(Command::Checkpoint).unwrap();
    assert_eq!(rig.engine.failure(), None);
    assert_eq!(rig.read(hb, 0, 4096), vec![7; 4096]);
}

#[test]
fn more_disks_than_are_read_at_once_are_there_again() {
    for traits in [RAM, FILE] {
        let mut rig = Rig::new(64 << 20, traits);
        let disks: Vec<DiskId> = (0..50u8)
            .map(|number| {
                let disk = rig.create(&format!("d{number}"), 1 << 20, None);
                let handle = rig.attach(Target::Disk(disk));
                rig.write(handle, 0, number + 1, 4096);
                disk
            })
            .collect();
        rig.command(Command::Checkpoint).unwrap();
        let mut rig = rig.reopen();
        assert_eq!(rig.engine.disks().len(), disks.len());
        for (disk, byte) in disks.into_iter().zip(1u8..) {
            let handle = rig.attach(Target::Disk(disk));
            assert_eq!(rig.read(handle, 0, 4096), vec![byte; 4096]);
        }
    }
}

/// Blocks on their way back are counted once, whatever the consistency point is about: else a
/// store that empties would seem to fill up again, and warn.
#[test]
fn space_on_its_way_back_is_counted_once() {
    let mut rig = Rig::new(48 << 20, RAM);
    let disk = rig.create("d", 32 << 20, None);
    let handle = rig.attach(Target::Disk(disk));
    rig.write(handle, 0, 7, 24 << 20);
    rig.command(Command::Checkpoint).unwrap();
    let full = rig.engine.space_usage().used_blocks;
    let len = 16 << 20;
    assert_eq!(rig.ranged(handle, Op::Discard, 0, len, &mut []), Status::Ok);
    rig.engine.command(u64::MAX, Command::Checkpoint);
    let mut seen = Vec::new();
    while rig.engine.next_reply().is_none() {
        rig.turn();
        seen.push(rig.engine.space_usage().used_blocks);
    }
    let after = *seen.last().expect("a consistency point takes turns");
    assert!(after + 4000 < full, "{full} blocks were in use, now {after}");
    let least = *seen.iter().min().expect("not empty");
    assert!(least + 8 > after, "{after} blocks are in use, and {least} seemed to be");
}

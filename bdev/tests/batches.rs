//! Records of one turn share journal blocks: each is filled to its last unit before the next one
//! is begun, and none beyond.

mod rig;

use lamina_bdev::*;
use rig::{DISK, FILE, RAM, Rig};

/// Units of a journal block, and of a snapshot's record.
const UNITS: u64 = 122;
const SNAPSHOT_UNITS: u64 = 4;
const DISK_BLOCKS: u64 = 8192;

/// Submits writes of one block each, far enough from each other for a record each, and has their
/// data written; their records wait in a journal block for the end of the turn.
fn write_data(rig: &mut Rig, handle: Handle, places: std::ops::Range<u64>) {
    for place in places {
        let (offset, len) = (place * 8 * 4096, 4096);
        let request = Request { cookie: 0, handle, op: Op::Write, offset, len, fua: false };
        rig.submit(request, vec![place as u8 | 1; 4096]).expect("there are slots");
    }
    rig.start_all();
    while let Some(at) = rig.base.pending.iter().position(|p| p.io.guest) {
        rig.complete(at, Ok(()));
    }
}

fn finish(rig: &mut Rig, writes: u64) {
    let mut done = 0;
    for _ in 0..100 {
        rig.turn();
        while let Some((answer, _)) = rig.next_done() {
            assert_eq!(answer.status, Status::Ok);
            done += 1;
        }
    }
    assert_eq!(done, writes);
}

#[test]
fn a_block_takes_all_the_records_that_fit_and_none_beyond() {
    for traits in [RAM, FILE, DISK] {
        for writes in [1, UNITS - 1, UNITS, UNITS + 1, 2 * UNITS, 2 * UNITS + 1] {
            let mut rig = Rig::with_slots(64 << 20, traits, 512);
            let disk = rig.create("disk", DISK_BLOCKS * 4096, None).unwrap();
            let handle = rig.attach(Target::Disk(disk));
            let before = rig.engine.stats();
            write_data(&mut rig, handle, 0..writes);
            finish(&mut rig, writes);
            let after = rig.engine.stats();
            assert_eq!(after.journal_records - before.journal_records, writes);
            let blocks = after.journal_blocks - before.journal_blocks;
            assert_eq!(blocks, writes.div_ceil(UNITS), "for {writes} records");
            let mut rig = rig.reopen();
            let handle = rig.attach(Target::Disk(disk));
            for place in 0..writes {
                let found = rig.read(handle, place * 8 * 4096, 4096);
                assert!(found == vec![place as u8 | 1; 4096], "write {place} of {writes}");
            }
        }
    }
}

#[test]
fn a_record_of_several_units_is_never_cut() {
    for room in 0..=SNAPSHOT_UNITS + 1 {
        let mut rig = Rig::with_slots(64 << 20, RAM, 512);
        let disk = rig.create("disk", DISK_BLOCKS * 4096, None).unwrap();
        let handle = rig.attach(Target::Disk(disk));
        let before = rig.engine.stats().journal_blocks;
        let writes = UNITS - room;
        write_data(&mut rig, handle, 0..writes);
        let (uuid, label) = (Uuid([3; 16]), Name::EMPTY);
        rig.begin(Command::Snapshot { disk, uuid, label, time: 1 });
        finish(&mut rig, writes);
        let (_, outcome) = rig.engine.next_reply().expect("the snapshot is taken");
        let Ok(Reply::Snapshot(snap)) = outcome else { panic!("{outcome:?}") };
        let blocks = rig.engine.stats().journal_blocks - before;
        assert_eq!(blocks, if room < SNAPSHOT_UNITS { 2 } else { 1 }, "room for {room} units");
        let mut rig = rig.reopen();
        let handle = rig.attach(Target::Snapshot(SnapRef { disk, snap }));
        for place in 0..writes {
            let found = rig.read(handle, place * 8 * 4096, 4096);
            assert!(found == vec![place as u8 | 1; 4096], "write {place} of {writes}");
        }
    }
}

#[test]
fn a_leaf_that_changes_again_and_again_is_written_once() {
    for traits in [RAM, FILE, DISK] {
        let mut rig = Rig::new(64 << 20, traits, false);
        let disk = rig.create("disk", DISK_BLOCKS * 4096, None).unwrap();
        let handle = rig.attach(Target::Disk(disk));
        rig.settle();
        let points = rig.engine.stats().checkpoints;
        for block in 0..80 {
            assert_eq!(rig.write(handle, block * 4096, vec![1; 4096]), Status::Ok);
        }
        assert_eq!(rig.engine.stats().checkpoints, points, "none was due");
        let given = rig.begin(Command::Checkpoint);
        let mut written = 0;
        let done = (0..1000).find_map(|_| {
            rig.step();
            while let Some(pending) = rig.base.pending.first() {
                written += u64::from(pending.io.len) / 4096;
                rig.complete(0, Ok(()));
                rig.start_all();
            }
            rig.engine.next_reply()
        });
        assert!(matches!(done, Some((cookie, Ok(Reply::Unit))) if cookie == given), "{done:?}");
        // The leaf and two nodes above it, bitmaps, catalogue, record, superblocks: for 80 changes.
        assert!(written <= 16, "{written} blocks are written");
    }
}

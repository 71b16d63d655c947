//! Requests whose one base operation the host starts itself: what they keep from happening while
//! they are under way, and that they let it happen afterwards.

mod rig;

use lamina_bdev::*;
use rig::{DISK, FILE, RAM, Random, Rig};

const BLOCK: u64 = 4096;

fn request(handle: Handle, op: Op, block: u64) -> Request {
    Request { cookie: 0, handle, op, offset: block * BLOCK, len: BLOCK, fua: false }
}

fn block_of(byte: u8) -> Vec<u8> {
    vec![byte; BLOCK as usize]
}

/// A disk of which blocks 0 to 15 hold 1 to 16, with no record that is still to be checked.
fn filled(traits: BaseTraits) -> (Rig, DiskId, Handle) {
    let mut rig = Rig::new(24 << 20, traits, false);
    let disk = rig.create("a", 1 << 30, None).unwrap();
    let handle = rig.attach(Target::Disk(disk));
    for block in 0..16 {
        assert_eq!(rig.write(handle, block * BLOCK, block_of(block as u8 + 1)), Status::Ok);
    }
    rig.settle();
    rig.settle();
    (rig, disk, handle)
}

/// All goes on but the oldest operation of the base, until nothing is left to do but to take
/// answers.
fn others(rig: &mut Rig) {
    for _ in 0..100 {
        rig.step();
        while rig.base.pending.len() > 1 {
            rig.complete(1, Ok(()));
            rig.start_all();
        }
        if !rig.engine.busy() {
            return;
        }
    }
}

/// A command that is answered although the oldest operation of the base is not.
fn command(rig: &mut Rig, command: Command) -> Result<Reply, Error> {
    let given = rig.begin(command);
    for _ in 0..100_000 {
        if let Some((cookie, outcome)) = rig.engine.next_reply() {
            assert_eq!(cookie, given);
            return outcome;
        }
        others(rig);
    }
    panic!("it is never answered");
}

/// A write by the usual way, to its end, although the oldest operation of the base is not over.
fn write(rig: &mut Rig, handle: Handle, block: u64, byte: u8) {
    let given = rig.submit(request(handle, Op::Write, block), block_of(byte)).expect("a slot");
    for _ in 0..1000 {
        if let Some((done, _)) = rig.next_done() {
            assert_eq!((done.cookie, done.status), (given, Status::Ok));
            return;
        }
        others(rig);
    }
    panic!("it is never answered");
}

fn only_answer(rig: &mut Rig) -> (Status, Vec<u8>) {
    let (done, data) = rig.next_done().expect("an answer");
    assert!(rig.next_done().is_none(), "one answer");
    (done.status, data)
}

#[test]
fn what_is_read_is_not_overwritten_and_not_given_out_again() {
    for traits in [DISK, FILE, RAM] {
        let (mut rig, _, handle) = filled(traits);
        let read = rig.straight(request(handle, Op::Read, 3), block_of(0)).expect("a hit");
        if !traits.atomic_rw {
            let write = request(handle, Op::Write, 3);
            assert!(rig.straight(write, block_of(9)).is_none(), "not under a read");
        }
        // The block goes elsewhere, or is freed, and the store is written over many times.
        assert_eq!(rig.base.pending.len(), 1);
        let offset = rig.base.pending[0].io.offset as usize + rig.label.first_region as usize;
        if traits.atomic_rw {
            // There an overwrite in place is what the base has promised to keep from mixing.
            let discard = request(handle, Op::Discard, 3);
            rig.submit(discard, Vec::new()).expect("a slot");
            others(&mut rig);
            assert_eq!(rig.next_done().expect("an answer").0.status, Status::Ok);
        } else {
            write(&mut rig, handle, 3, 99);
        }
        for round in 0..3 {
            for block in 16..4096 {
                if block % 512 == 0 {
                    // No more points than can begin with the read under way: they do not wait.
                    rig.begin(Command::Checkpoint);
                    others(&mut rig);
                }
                let write = request(handle, Op::Write, block);
                if rig.submit(write, block_of(round + 100)).is_some() {
                    others(&mut rig);
                    while rig.next_done().is_some() {}
                }
                assert!(rig.base.visible[offset..offset + 4096] == block_of(4), "given out again");
            }
        }
        while rig.engine.next_reply().is_some() {}
        rig.complete(0, Ok(()));
        let mut found = None;
        while let Some((done, data)) = rig.next_done() {
            if done.cookie == read {
                found = Some((done.status, data));
            }
        }
        assert_eq!(found, Some((Status::Ok, block_of(4))));
        // Points that waited for it go on.
        for _ in 0..100 {
            rig.turn();
            while rig.next_done().is_some() || rig.engine.next_reply().is_some() {}
        }
        assert_eq!(rig.settle().pending_blocks, 0);
    }
}

#[test]
fn an_overwrite_keeps_others_off_its_block_and_is_answered_once() {
    let (mut rig, _, handle) = filled(DISK);
    rig.straight(request(handle, Op::Write, 5), block_of(50)).expect("an overwrite");
    assert!(rig.straight(request(handle, Op::Write, 5), block_of(51)).is_none());
    assert!(rig.straight(request(handle, Op::Read, 5), block_of(0)).is_none());
    // They wait by the usual way, unlike those for other blocks.
    let clear = rig.submit(request(handle, Op::Discard, 6), Vec::new()).expect("a slot");
    let after = rig.submit(request(handle, Op::Write, 5), block_of(51)).expect("a slot");
    others(&mut rig);
    let (done, _) = rig.next_done().expect("another block");
    assert_eq!((done.cookie, done.status), (clear, Status::Ok));
    assert!(rig.next_done().is_none(), "the second write waits for the first");
    // Its leaf stays although all that is idle goes.
    rig.engine.evict_nodes(usize::MAX);
    rig.complete(0, Ok(()));
    assert_eq!(only_answer(&mut rig).0, Status::Ok);
    for _ in 0..100 {
        rig.turn();
    }
    let (done, _) = rig.next_done().expect("it has been woken");
    assert_eq!((done.cookie, done.status), (after, Status::Ok));
    assert_eq!(rig.read(handle, 5 * BLOCK, 4096), block_of(51));
    assert_eq!(rig.read(handle, 6 * BLOCK, 4096), block_of(0));
}

#[test]
fn a_snapshot_waits_for_the_overwrites_that_began_before_it() {
    let (mut rig, disk, handle) = filled(DISK);
    rig.straight(request(handle, Op::Write, 5), block_of(50)).expect("an overwrite");
    let (uuid, label) = (Uuid([9; 16]), Name::EMPTY);
    let snapshot = Command::Snapshot { disk, uuid, label, time: 9 };
    let Ok(Reply::Snapshot(snap)) = command(&mut rig, snapshot) else { panic!("no snapshot") };
    assert!(rig.straight(request(handle, Op::Write, 7), block_of(70)).is_none(), "it is shared");
    let view = rig.begin(Command::Attach(Target::Snapshot(SnapRef { disk, snap })));
    for _ in 0..20 {
        rig.wait_ns(2_000_000_000);
        others(&mut rig);
        assert!(rig.engine.next_reply().is_none(), "the snapshot may still change");
    }
    rig.complete(0, Ok(()));
    assert_eq!(only_answer(&mut rig).0, Status::Ok);
    let reply = (0..1000).find_map(|_| {
        rig.turn();
        rig.engine.next_reply()
    });
    let Some((cookie, Ok(Reply::Handle(shown)))) = reply else { panic!("{reply:?}") };
    assert_eq!(cookie, view);
    assert_eq!(rig.read(shown, 5 * BLOCK, 4096), block_of(50), "it was asked for before");
    assert_eq!(rig.write(handle, 5 * BLOCK, block_of(52)), Status::Ok);
    assert_eq!(rig.read(shown, 5 * BLOCK, 4096), block_of(50));
}

#[test]
fn an_attachment_does_not_end_under_a_request() {
    for op in [Op::Read, Op::Write] {
        let (mut rig, _, handle) = filled(DISK);
        rig.straight(request(handle, op, 2), block_of(77)).expect("a hit");
        let refused = command(&mut rig, Command::Detach(handle)).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Busy);
        rig.complete(0, Ok(()));
        let due = if op == Op::Read { block_of(3) } else { block_of(77) };
        assert_eq!(only_answer(&mut rig), (Status::Ok, due));
        rig.command(Command::Detach(handle)).unwrap();
    }
}

#[test]
fn errors_of_the_base_are_the_requests() {
    let (mut rig, _, handle) = filled(DISK);
    let cases = [
        (Op::Read, BaseError::Io, Status::IoError),
        (Op::Write, BaseError::Gone, Status::IoError),
        (Op::Write, BaseError::NoSpace, Status::NoSpace),
    ];
    let reads = rig.engine.stats().reads;
    for (op, error, status) in cases {
        rig.events();
        rig.straight(request(handle, op, 1), block_of(8)).expect("a hit");
        rig.complete(0, Err(error));
        assert_eq!(only_answer(&mut rig).0, status);
        assert_eq!(rig.events().len(), usize::from(status == Status::NoSpace));
        assert!(rig.engine.failure().is_none(), "data is no reason to fail the shard");
    }
    assert_eq!(rig.engine.stats().reads, reads, "what fails is not counted");
    // Nothing is held any more.
    assert_eq!(rig.write(handle, BLOCK, block_of(31)), Status::Ok);
    assert_eq!(rig.read(handle, BLOCK, 4096), block_of(31));
}

#[test]
fn what_needs_more_than_one_operation_goes_the_usual_way() {
    let (mut rig, _, handle) = filled(DISK);
    let read = request(handle, Op::Read, 0);
    let write = request(handle, Op::Write, 0);
    let refused = [
        Request { fua: true, ..write },
        Request { offset: 512, len: 512, ..write },
        Request { offset: 20 * BLOCK, ..write },
        Request { op: Op::Flush, len: 0, ..read },
        Request { op: Op::Discard, ..read },
        Request { offset: 1 << 30, ..read },
        Request { offset: 15 * BLOCK, len: 2 * BLOCK, ..read },
        Request { offset: 511 * BLOCK, len: 2 * BLOCK, ..read },
    ];
    for request in refused {
        let data = vec![0; request.len as usize];
        assert!(rig.straight(request, data).is_none(), "{request:?}");
        assert!(rig.base.pending.is_empty() && rig.next_done().is_none());
    }
    // A hole needs none; a piece of a block, one.
    let hole = Request { offset: 20 * BLOCK, ..read };
    rig.straight(hole, block_of(1)).expect("a hole");
    assert_eq!(only_answer(&mut rig), (Status::Ok, block_of(0)));
    let piece = Request { offset: 4 * BLOCK + 512, len: 1024, ..read };
    rig.straight(piece, vec![0; 1024]).expect("a hit");
    assert_eq!(rig.base.pending[0].io.offset % BLOCK, 512);
    rig.complete(0, Ok(()));
    assert_eq!(only_answer(&mut rig), (Status::Ok, vec![5; 1024]));
}

/// Requests by either way at random, their operations answered in any order, against a register
/// for each block.
#[test]
fn either_way_shows_the_same_blocks() {
    const BLOCKS: u64 = 16;
    for seed in 0..20 {
        let mut random = Random(seed);
        let traits = [DISK, FILE, RAM][seed as usize % 3];
        let (mut rig, _, handle) = filled(traits);
        // By cookie: its block, and for a read what it may show.
        let mut flights: Vec<(u64, u64, Option<u8>)> = Vec::new();
        let mut shown: Vec<u8> = (1..=BLOCKS as u8).collect();
        let (mut next, mut straight) = (20u8, 0);
        for _ in 0..2000 {
            let block = random.below(BLOCKS);
            // One at a time for each block: what is due is then one value.
            if flights.len() < 8 && flights.iter().all(|flight| flight.1 != block) {
                let op = if random.chance(50) { Op::Read } else { Op::Write };
                next = next.wrapping_add(1);
                let data = block_of(next);
                let short = if random.chance(70) {
                    rig.straight(request(handle, op, block), data.clone())
                } else {
                    None
                };
                straight += usize::from(short.is_some());
                let cookie = short.or_else(|| rig.submit(request(handle, op, block), data));
                let due = (op == Op::Read).then_some(shown[block as usize]);
                if op == Op::Write {
                    shown[block as usize] = next;
                }
                flights.push((cookie.expect("there are slots"), block, due));
            }
            if random.chance(40) {
                rig.step();
            }
            if random.chance(2) {
                rig.begin(Command::Checkpoint);
            }
            if random.chance(5) {
                rig.engine.evict_nodes(10);
            }
            if random.chance(60) && !rig.base.pending.is_empty() {
                let at = random.below(rig.base.pending.len() as u64) as usize;
                rig.complete(at, Ok(()));
                rig.start_all();
            }
            while let Some((done, data)) = rig.next_done() {
                assert_eq!(done.status, Status::Ok);
                let at = flights.iter().position(|flight| flight.0 == done.cookie);
                let (_, block, due) = flights.swap_remove(at.expect("it was in flight"));
                assert!(due.is_none_or(|due| data == block_of(due)), "seed {seed} block {block}");
            }
            while rig.engine.next_reply().is_some() {}
        }
        assert!(straight > 100, "seed {seed}: {straight} went the straight way");
    }
}

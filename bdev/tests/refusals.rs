//! What the engine refuses, with which kind of error, and that nothing has changed after it.

mod simple;

use lamina_bdev::*;
use simple::{FILE, RAM, Rig};

const MIB: u64 = 1 << 20;

fn name(text: &str) -> Name {
    if text.is_empty() { Name::EMPTY } else { Name::new(text).unwrap() }
}

fn create(text: &str, number: u8, size: u64, from: Option<SnapRef>) -> Command {
    Command::CreateDisk { name: name(text), uuid: Uuid([number; 16]), size, from, time: 1 }
}

fn snapshot(disk: DiskId, label: &str) -> Command {
    Command::Snapshot { disk, uuid: Uuid([77; 16]), label: name(label), time: 1 }
}

/// A store with disk `a` (attached, 8 MiB, snapshots `one` and `two`, the first attached) and disk
/// `b`.
struct World {
    rig: Rig,
    a: DiskId,
    b: DiskId,
    one: SnapRef,
    two: SnapRef,
}

fn world(traits: BaseTraits) -> World {
    let mut rig = Rig::new(64 << 20, traits);
    let (a, b) = (rig.create("a", 8 * MIB, None), rig.create("b", MIB, None));
    let handle = rig.attach(Target::Disk(a));
    rig.write(handle, 0, 1, 64 << 10);
    let (one, two) = (rig.snapshot(a, "one"), rig.snapshot(a, "two"));
    rig.attach(Target::Snapshot(one));
    rig.settle();
    World { rig, a, b, one, two }
}

/// Everything that a refused command could have changed.
fn state(rig: &Rig) -> (Vec<DiskInfo>, Vec<Vec<SnapInfo>>, u64) {
    let disks = rig.engine.disks();
    let snaps = disks.iter().map(|disk| rig.engine.snapshots(disk.id)).collect();
    (disks, snaps, rig.engine.store_info().free_blocks)
}

#[test]
fn commands_that_cannot_be_are_refused_and_change_nothing() {
    use ErrorKind::*;
    for traits in [RAM, FILE] {
        let World { mut rig, a, b, one, two } = world(traits);
        let nowhere = DiskId(40);
        let no_snap = SnapRef { disk: a, snap: SnapId(900) };
        let cases: Vec<(Command, ErrorKind, &str)> = vec![
            (create("", 1, MIB, None), Invalid, "needs a name"),
            (create("a", 1, MIB, None), Exists, "named a"),
            (create("c", 1, MIB - 4096, None), Invalid, "1 MiB to 256 TiB"),
            (create("c", 1, (256 << 40) + 1, None), Invalid, "1 MiB to 256 TiB"),
            (create("c", 1, u64::MAX, None), Invalid, "1 MiB to 256 TiB"),
            (create("c", 1, 0, None), Invalid, "1 MiB to 256 TiB"),
            (create("c", 1, 4 * MIB, Some(one)), Invalid, "smaller than its snapshot"),
            (create("c", 1, 0, Some(no_snap)), NotFound, "no snapshot number 900"),
            (snapshot(a, "one"), Exists, "labelled one"),
            (snapshot(nowhere, "x"), NotFound, "no disk number 40"),
            (Command::LabelSnapshot(two, name("one")), Exists, "labelled one"),
            (Command::LabelSnapshot(no_snap, name("x")), NotFound, "no snapshot number 900"),
            (Command::RenameDisk(b, name("a")), Exists, "named a"),
            (Command::RenameDisk(b, name("")), Exists, "choose another name"),
            (Command::RenameDisk(nowhere, name("x")), NotFound, "no disk number 40"),
            (Command::Resize(a, 0), Invalid, "1 MiB to 256 TiB"),
            (Command::Resize(a, (256 << 40) + 1), Invalid, "1 MiB to 256 TiB"),
            (Command::Resize(nowhere, MIB), NotFound, "no disk number 40"),
            (Command::DeleteDisk(a), Busy, "disk a is in use"),
            (Command::DeleteDisk(nowhere), NotFound, "no disk number 40"),
            (Command::DeleteSnapshot(one), Busy, "snapshot one of disk a is in use"),
            (Command::DeleteSnapshot(no_snap), NotFound, "no snapshot number 900"),
            (Command::SetBlob(b, vec![0; limits::BLOB_LEN_MAX + 1]), Invalid, "at most"),
            (Command::SetBlob(nowhere, vec![]), NotFound, "no disk number 40"),
            (Command::Attach(Target::Disk(nowhere)), NotFound, "no disk number 40"),
            (Command::Attach(Target::Snapshot(no_snap)), NotFound, "no snapshot number 900"),
            (Command::Detach(Handle(0x7777_0000)), NotFound, "ended already"),
        ];
        for (command, kind, part) in cases {
            let (before, text) = (state(&rig), format!("{command:?}"));
            let Err(refused) = rig.command(command) else { panic!("not refused: {text}") };
            assert_eq!(refused.kind, kind, "{text}: {refused}");
            assert!(refused.to_string().contains(part), "{text}: {refused}");
            assert_eq!(state(&rig), before, "{text}");
        }
        // And what stands right beside is done.
        let full = vec![7; limits::BLOB_LEN_MAX];
        rig.command(Command::SetBlob(b, full.clone())).unwrap();
        rig.command(Command::RenameDisk(b, name("b"))).unwrap();
        rig.command(Command::LabelSnapshot(two, name("two"))).unwrap();
        rig.command(Command::Resize(b, 256 << 40)).unwrap();
        rig.command(create("c", 1, MIB, None)).unwrap();
        let twin = rig.command(create("d", 1, MIB, None)).unwrap_err();
        assert_eq!((twin.kind, twin.message.contains("UUID")), (Exists, true), "{twin}");
        let mut rig = rig.reopen();
        rig.settle();
        let found = rig.engine.disks().into_iter().find(|d| d.id == b).unwrap();
        assert_eq!((found.name, found.size), (name("b"), 256 << 40));
        assert_eq!(found.blob, full);
    }
}

#[test]
fn what_depends_on_work_under_way_is_refused_until_that_is_over() {
    let World { mut rig, a, b, .. } = world(FILE);
    // A second resize, and a deletion, while a shrink is freeing what it cuts off.
    rig.engine.command(1, Command::Resize(a, MIB));
    for (cookie, command) in [(2, Command::Resize(a, 2 * MIB)), (3, snapshot(a, "x"))] {
        rig.engine.command(cookie, command);
    }
    // A label that a snapshot on its way has taken already.
    rig.engine.command(4, snapshot(a, "x"));
    let mut answers = Vec::new();
    for _ in 0..1000 {
        answers.extend(std::iter::from_fn(|| rig.engine.next_reply()));
        rig.turn();
    }
    let mut kinds: Vec<_> = answers.iter().map(|(c, r)| (*c, r.as_ref().err())).collect();
    kinds.sort_by_key(|(cookie, _)| *cookie);
    let kinds: Vec<_> = kinds.into_iter().map(|(c, e)| (c, e.map(|e| e.kind))).collect();
    assert_eq!(
        kinds,
        [(1, None), (2, Some(ErrorKind::Busy)), (3, None), (4, Some(ErrorKind::Exists))]
    );
    assert_eq!(rig.engine.disks().iter().find(|d| d.id == a).unwrap().size, MIB);

    // An attachment stays while requests of it are in flight.
    let handle = rig.attach(Target::Disk(b));
    let mut data = vec![5u8; 4096];
    let seg = Seg { addr: data.as_mut_ptr() as usize, len: data.len() };
    let (op, offset, len) = (Op::Write, 0, 4096);
    let request = Request { cookie: 9, handle, op, offset, len, fua: false };
    assert!(rig.engine.submit(&request, &[seg]));
    rig.engine.command(10, Command::Detach(handle));
    let (cookie, refused) = rig.engine.next_reply().expect("refused at once");
    assert_eq!((cookie, refused.unwrap_err().kind), (10, ErrorKind::Busy));
    while rig.engine.next_done().is_none() {
        rig.turn();
    }
    rig.command(Command::Detach(handle)).unwrap();
    let again = rig.command(Command::Detach(handle)).unwrap_err();
    assert_eq!(again.kind, ErrorKind::NotFound);
    let late = rig.request(handle, Op::Read, 0, &mut [0; 512]);
    assert_eq!(late, Status::Detached);
}

#[test]
fn a_store_that_is_still_being_opened_takes_no_command() {
    let World { rig, .. } = world(RAM);
    let config = Config::default();
    let mut engine = Engine::open(config, rig.traits, &rig.label, 0);
    assert_eq!(engine.state(), EngineState::Opening);
    engine.command(1, Command::Checkpoint);
    let (cookie, refused) = engine.next_reply().expect("refused at once");
    assert_eq!((cookie, refused.unwrap_err().kind), (1, ErrorKind::Busy));
}

#[test]
fn more_snapshots_at_once_than_there_are_slots_are_refused_and_the_others_are_whole() {
    let World { mut rig, a, .. } = world(FILE);
    let before = rig.engine.snapshots(a).len();
    let count = 400;
    for cookie in 0..count {
        rig.engine.command(1000 + cookie, snapshot(a, ""));
    }
    let mut answers = Vec::new();
    for _ in 0..2000 {
        answers.extend(std::iter::from_fn(|| rig.engine.next_reply()));
        rig.turn();
    }
    assert_eq!(answers.len() as u64, count);
    let good = answers.iter().filter(|(_, outcome)| outcome.is_ok()).count();
    let busy = |outcome: &Result<Reply, Error>| {
        outcome.as_ref().is_err_and(|error| error.kind == ErrorKind::Busy)
    };
    assert_eq!(answers.iter().filter(|(_, o)| busy(o)).count(), count as usize - good);
    assert!(good > 50 && good < count as usize, "{good} of {count}");
    assert_eq!(rig.engine.snapshots(a).len(), before + good);
    let mut rig = rig.reopen();
    rig.settle();
    assert_eq!(rig.engine.snapshots(a).len(), before + good);
}

#[test]
fn requests_that_cannot_be_are_refused_with_their_status() {
    let World { mut rig, a, one, .. } = world(RAM);
    let (disk, snap) = (rig.attach(Target::Disk(a)), rig.attach(Target::Snapshot(one)));
    let size = 8 * MIB;
    let cases = [
        (disk, Op::Read, size, 512, Status::OutOfRange),
        (disk, Op::Read, size - 512, 1024, Status::OutOfRange),
        (disk, Op::Write, size - 512, 1024, Status::OutOfRange),
        (disk, Op::Write, u64::MAX - 511, 512, Status::OutOfRange),
        (disk, Op::Write, size - 512, 512, Status::Ok),
        (disk, Op::Read, size - 512, 512, Status::Ok),
        (snap, Op::Write, 0, 512, Status::ReadOnly),
        (snap, Op::Read, 0, 512, Status::Ok),
        (Handle(0x1234_0001), Op::Read, 0, 512, Status::Detached),
    ];
    for (handle, op, offset, len, expected) in cases {
        let mut data = vec![0; len];
        let status = rig.request(handle, op, offset, &mut data);
        assert_eq!(status, expected, "{op:?} of {len} at {offset}");
    }
    for op in [Op::Discard, Op::WriteZeroes] {
        assert_eq!(rig.ranged(snap, op, 0, 4096, &mut []), Status::ReadOnly);
        assert_eq!(rig.ranged(disk, op, size, 4096, &mut []), Status::OutOfRange);
    }
}

#[test]
fn memory_that_cannot_be_counted_is_refused() {
    let mut rig = Rig::new(64 << 20, RAM);
    let disk = rig.create("a", 16 << 30, None);
    let handle = rig.attach(Target::Disk(disk));
    // Never touched: no process has so much at such a place.
    let huge = Seg { addr: 4096, len: 1 << 33 };
    let page = Seg { addr: 4096, len: 4096 };
    let cases: [(Op, u64, Vec<Seg>); 5] = [
        (Op::Read, 1 << 33, vec![huge]),
        (Op::Write, 1 << 33, vec![huge]),
        (Op::Read, 1 << 33, vec![Seg { len: 1 << 32, ..huge }; 2]),
        (Op::Flush, 0, vec![page; limits::SEGS_MAX + 1]),
        (Op::Discard, 4096, vec![page; limits::SEGS_MAX + 1]),
    ];
    for (op, len, segs) in cases {
        let request = Request { cookie: 7, handle, op, offset: 0, len, fua: false };
        assert!(rig.engine.submit(&request, &segs));
        let done = rig.engine.next_done().expect("answered at once");
        assert_eq!((done.cookie, done.status), (7, Status::Invalid), "{op:?}");
    }
}

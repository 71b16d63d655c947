//! `check --repair --cut-off`: what cannot be read, and one of two claims to a block, is given up;
//! everything else stays byte for byte, space comes back to the block, and a power cut during the
//! repair costs nothing more.

mod damage;
mod simple;

use damage::{Due, FRONT, Mended, Store, checked, put, repaired};
use lamina_bdev::check::{ReadBlocks, RepairOptions, WriteBlocks, repair};
use lamina_bdev::*;
use simple::{FILE, RAM, Rig};

/// Slots of the disks of a [`Store`].
const GOLDEN: u64 = 0;
const VM1: u64 = 1;
const VM2: u64 = 2;
const SOLO: u64 = 3;
const WELL: u64 = 4;

/// The store, opened; severe events are what the test is about.
fn open(store: &Store) -> Rig {
    let mut rig = Rig::start(store.disk.clone(), store.label, store.traits);
    rig.cookie = 1 << 40;
    while rig.engine.state() == EngineState::Opening {
        rig.turn();
    }
    assert_eq!(rig.engine.state(), EngineState::Ready, "{:?}", rig.engine.open_error());
    rig
}

fn mend(store: &mut Store, cut_off: bool) -> Vec<String> {
    let (report, done) = repaired(&mut store.disk, cut_off).expect("it can be repaired");
    let texts: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    assert!(report.clean(), "{texts:#?}; {done:#?}");
    let (_, again) = repaired(&mut store.disk, cut_off).unwrap();
    assert!(again.is_empty(), "a second repair did {again:#?}");
    done
}

fn said(done: &[String], words: &[&str]) -> bool {
    done.iter().any(|text| words.iter().all(|word| text.contains(word)))
}

/// How the blocks of a version answer, as (as they were, with errors); anything else fails.
fn answers(rig: &mut Rig, due: &Due) -> Result<(usize, usize), Error> {
    let Reply::Handle(handle) = rig.command(Command::Attach(due.target))? else {
        panic!("no handle")
    };
    let (mut right, mut lost) = (0, 0);
    for (at, bytes) in &due.bytes {
        for (i, block) in bytes.chunks(4096).enumerate() {
            let (mut data, at) = (vec![0x5a; 4096], at + (i as u64) * 4096);
            match rig.request(handle, Op::Read, at, &mut data) {
                Status::Ok => {
                    assert!(data == block, "{} reads other bytes at {at}", due.name);
                    right += 1;
                }
                status => {
                    assert_eq!(status, Status::Corrupt, "{} at {at}", due.name);
                    lost += 1;
                }
            }
        }
    }
    rig.command(Command::Detach(handle)).unwrap();
    Ok((right, lost))
}

/// All versions but these read as they did.
fn assert_others_whole(rig: &mut Rig, store: &Store, but: &[&str]) {
    for due in store.due.iter().filter(|due| !but.contains(&due.name)) {
        let (_, lost) = answers(rig, due).unwrap_or_else(|e| panic!("{}: {e}", due.name));
        assert_eq!(lost, 0, "{}", due.name);
    }
}

fn disk_named(rig: &Rig, name: &str) -> Option<DiskId> {
    let all = rig.engine.disks();
    all.into_iter().find(|disk| disk.name.as_str() == name).map(|disk| disk.id)
}

fn checkpoints(rig: &mut Rig) {
    for _ in 0..10 {
        rig.command(Command::Checkpoint).unwrap();
    }
}

/// Deletes disks one after the other, newest first or oldest first; those that are left read as
/// they did after each. In the end every block is free.
fn delete_all(store: &Store, but: &[&str], oldest_first: bool) {
    let mut rig = open(store);
    let mut names = ["golden", "vm1", "vm2", "solo", "well"];
    if !oldest_first {
        names.reverse();
    }
    for (at, name) in names.iter().enumerate() {
        let Some(disk) = disk_named(&rig, name) else { continue };
        rig.command(Command::DeleteDisk(disk)).unwrap();
        checkpoints(&mut rig);
        for due in &store.due {
            let of = due.name.split('@').next().unwrap();
            if !names[..=at].contains(&of) && !but.contains(&due.name) {
                let (_, lost) = answers(&mut rig, due).unwrap();
                assert_eq!(lost, 0, "{} after {name} was deleted", due.name);
            }
        }
        let report = checked(&rig.disk).unwrap();
        let texts: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        assert!(report.clean(), "after {name} was deleted: {texts:#?}");
    }
    checkpoints(&mut rig);
    let fresh = Rig::new(store.disk.len(), store.traits).settle().free_blocks;
    assert_eq!(rig.engine.store_info().free_blocks, fresh, "blocks leaked");
}

/// Damages both copies of a pair.
fn rot_pair(store: &mut Store, pair: u64) {
    store.rot(pair, |b| b[99] ^= 1);
    store.rot(pair + 1, |b| b[99] ^= 1);
}

fn rot_record(store: &mut Store, slot: u64) {
    let pair = store.record_pair(slot);
    rot_pair(store, pair);
}

fn newest_log(store: &Store, slot: u64) -> u64 {
    store.u64_at(store.record(slot), 200)
}

#[test]
fn clones_of_a_lost_disk_stay_and_space_is_reclaimed_again() {
    for traits in [RAM, FILE] {
        let whole = Store::new(traits);
        let cases: [(u64, &[&str]); 2] =
            [(GOLDEN, &["golden", "golden@1", "golden@2"]), (VM1, &["vm1"])];
        for (slot, gone) in cases {
            let mut store = whole.clone();
            rot_record(&mut store, slot);
            let (report, done) = repaired(&mut store.disk.clone(), false).unwrap();
            assert!(!report.clean() && done.is_empty(), "without cut-off: {done:?}");
            let done = mend(&mut store, true);
            assert!(said(&done, &[&format!("slot {slot}"), "clones stay"]), "{done:#?}");
            let mut rig = open(&store);
            assert_others_whole(&mut rig, &store, gone);
            for due in store.due.iter().filter(|due| gone.contains(&due.name)) {
                assert!(answers(&mut rig, due).is_err(), "{} is there", due.name);
            }
            for oldest_first in [true, false] {
                delete_all(&store, gone, oldest_first);
            }
        }
    }
}

#[test]
fn a_broken_snapshot_log_costs_what_cannot_be_read_of_it_and_nothing_else() {
    for traits in [RAM, FILE] {
        let whole = Store::new(traits);
        let older = whole.u64_at(whole.log(SOLO), 4032);
        let in_newer = (0..31).filter(|i| whole.u64_at(whole.log(SOLO), 64 + i * 128) != 0).count();
        // The older block of two, the newer one, and one of a disk with a clone.
        let cases: [(u64, u64, usize, &[&str]); 3] = [
            (SOLO, older, in_newer, &["solo@1"]),
            (SOLO, newest_log(&whole, SOLO), 0, &["solo@1"]),
            (GOLDEN, newest_log(&whole, GOLDEN), 0, &["golden@1", "golden@2"]),
        ];
        for (slot, pair, kept, gone) in cases {
            let mut store = whole.clone();
            rot_pair(&mut store, pair);
            let done = mend(&mut store, true);
            let name = if slot == SOLO { "solo" } else { "golden" };
            assert!(said(&done, &[name, "snapshot log", "given up"]), "{done:#?}");
            let mut rig = open(&store);
            assert_others_whole(&mut rig, &store, gone);
            let snapshots = rig.engine.snapshots(disk_named(&rig, name).unwrap());
            assert_eq!(snapshots.len(), kept, "snapshots of {name}");
            for oldest_first in [true, false] {
                delete_all(&store, gone, oldest_first);
            }
        }
    }
}

#[test]
fn an_older_copy_of_a_snapshot_log_is_not_believed() {
    let whole = Store::new(RAM);
    let mut store = whole.clone();
    // The newer copy of the newest block is lost; the older one lists fewer snapshots.
    let current = store.log(SOLO);
    store.rot(current, |b| b[99] ^= 1);
    let done = mend(&mut store, true);
    assert!(said(&done, &["solo", "snapshot log", "given up"]), "{done:#?}");
    let mut rig = open(&store);
    assert_others_whole(&mut rig, &store, &[]);
    let kept = rig.engine.snapshots(disk_named(&rig, "solo").unwrap()).len();
    assert_eq!(kept, 31, "those of the older block");
    delete_all(&store, &[], true);
}

type Damage = fn(&mut Store);

/// A block with two owners.
struct Crossed {
    /// Must be said.
    words: [&'static str; 2],
    /// Who loses something; the others lose nothing.
    loser: &'static str,
    damage: Damage,
}

const fn crossed(words: [&'static str; 2], loser: &'static str, damage: Damage) -> Crossed {
    Crossed { words, loser, damage }
}

const CROSSED: &[Crossed] = &[
    crossed(["disk solo", "disk block 3 "], "solo", |s| {
        let ([.., leaf], [.., other]) = (s.path(SOLO), s.path(WELL));
        let data = s.child(other, 3);
        s.set_link(leaf, 3, data);
    }),
    crossed(["disk well", "disk block 3 "], "well", |s| {
        let ([.., leaf], [.., other]) = (s.path(WELL), s.path(SOLO));
        let data = s.child(other, 3);
        s.set_link(leaf, 3, data);
    }),
    crossed(["disk solo", "disk block 9 "], "solo", |s| {
        let [.., leaf] = s.path(SOLO);
        let data = s.child(leaf, 3);
        s.set_link(leaf, 9, data);
    }),
    crossed(["disk well", "disk block 9 "], "well", |s| {
        let ([.., leaf], [root, ..]) = (s.path(WELL), s.path(SOLO));
        s.set_link(leaf, 9, root);
    }),
    crossed(["disk solo", "disk block 9 "], "solo", |s| {
        let ([.., leaf], [root, ..]) = (s.path(SOLO), s.path(WELL));
        s.set_link(leaf, 9, root);
    }),
    crossed(["disk solo", "disk block 9 "], "solo", |s| {
        let ([.., leaf], log) = (s.path(SOLO), newest_log(s, GOLDEN));
        s.set_link(leaf, 9, log);
    }),
    crossed(["disk solo", "level 0"], "solo", |s| {
        let ([_, inner, _], [.., other]) = (s.path(SOLO), s.path(WELL));
        s.set_link(inner, 0, other);
    }),
    crossed(["disk well", "level 0"], "well", |s| {
        let ([_, inner, _], [.., other]) = (s.path(WELL), s.path(SOLO));
        s.set_link(inner, 0, other);
    }),
    crossed(["disk vm1", "level 0"], "vm1", |s| {
        let ([_, inner, _], [.., other]) = (s.path(VM1), s.path(GOLDEN));
        s.set_link(inner, 0, other);
    }),
    crossed(["disk solo", "level 2"], "solo", |s| {
        let root = s.root(WELL);
        s.edit_record(SOLO, |b| put(b, 160, root));
    }),
    crossed(["disk solo, snapshot 1", "level 2"], "solo@1", |s| {
        let (root, (block, at)) = (s.root(WELL), s.log_entry(SOLO, 1));
        s.edit(block, FRONT, |b| put(b, at + 16, root));
    }),
    crossed(["disk solo", "level 0"], "solo", |s| {
        // The leaf of disk blocks 512 to 1023.
        let [_, inner, leaf] = s.path(SOLO);
        s.set_link(inner, 1, leaf);
    }),
];

#[test]
fn a_block_with_two_owners_stays_with_one_and_is_lost_to_the_other() {
    for traits in [RAM, FILE] {
        let whole = Store::new(traits);
        for (at, case) in CROSSED.iter().enumerate() {
            let (mut store, loser) = (whole.clone(), case.loser);
            (case.damage)(&mut store);
            let (report, _) = repaired(&mut store.disk.clone(), false).unwrap();
            assert!(!report.clean(), "case {at}: mended without cut-off");
            let done = mend(&mut store, true);
            let words = [case.words[0], case.words[1], "lost"];
            assert!(said(&done, &words), "case {at}: {done:#?}");
            let mut rig = open(&store);
            // Its snapshots may share the leaf in which it was done.
            let others: Vec<&str> =
                store.due.iter().map(|d| d.name).filter(|n| n.starts_with(loser)).collect();
            assert_others_whole(&mut rig, &store, &others);
            for due in store.due.iter().filter(|due| due.name == loser) {
                let (right, lost) = answers(&mut rig, due).unwrap();
                let all = case.words[1] == "level 2";
                // The last case is about places that are not compared.
                assert!(lost > 0 || at + 1 == CROSSED.len(), "case {at}: nothing is lost");
                assert!(right > 0 || all, "case {at}: all is lost");
                if all {
                    continue;
                }
                // What is written anew is there again.
                let handle = rig.attach(due.target);
                for (from, bytes) in &due.bytes {
                    let status = rig.request(handle, Op::Write, *from, &mut bytes.clone());
                    assert_eq!(status, Status::Ok, "case {at}: {loser} at {from}");
                }
                rig.command(Command::Detach(handle)).unwrap();
                assert_eq!(answers(&mut rig, due).unwrap().1, 0, "case {at}");
            }
            rig.command(Command::Checkpoint).unwrap();
            let report = checked(&rig.disk).unwrap();
            let texts: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
            assert!(report.clean(), "case {at}: {texts:#?}");
            delete_all(&store, &others, at % 2 == 0);
        }
    }
}

#[test]
fn names_and_uuids_are_given_to_one_disk_each_and_nothing_is_lost() {
    let whole = Store::new(RAM);
    let damages: [(&str, &str, Damage); 3] = [
        ("well-2", "now called well-2", |s| {
            let well = s.block(s.record(WELL))[72..136].to_vec();
            s.edit_record(SOLO, |b| b[72..136].copy_from_slice(&well));
        }),
        ("disk-3", "now called disk-3", |s| s.edit_record(SOLO, |b| b[72..136].fill(0))),
        ("solo", "its UUID is now", |s| {
            let uuid = s.block(s.record(SOLO))[136..152].to_vec();
            s.edit_record(WELL, |b| b[136..152].copy_from_slice(&uuid));
        }),
    ];
    for (name, words, damage) in damages {
        let mut store = whole.clone();
        damage(&mut store);
        let done = mend(&mut store, false);
        assert!(said(&done, &[words]), "{done:#?}");
        let mut rig = open(&store);
        assert!(disk_named(&rig, name).is_some(), "no disk is called {name}");
        assert_others_whole(&mut rig, &store, &[]);
    }
}

#[test]
fn disks_that_come_from_nowhere_serve_and_give_back_their_space() {
    let damages: [([&str; 2], Damage); 2] = [
        (["vm2", "comes after snapshot 1 of disk vm1"], |s| {
            s.edit_record(VM2, |b| put(b, 192, 500));
        }),
        (["solo", "no clone"], |s| {
            s.edit_record(SOLO, |b| {
                b[66] = 1;
                b[68..72].copy_from_slice(&99u32.to_le_bytes());
                put(b, 192, 1);
            });
        }),
    ];
    for (words, damage) in damages {
        let mut store = Store::new(RAM);
        damage(&mut store);
        let done = mend(&mut store, true);
        assert!(said(&done, &words), "{done:#?}");
        assert_others_whole(&mut open(&store), &store, &[]);
        delete_all(&store, &[], true);
        delete_all(&store, &[], false);
    }
}

/// A device that stops writing after some writes.
struct Cut<'a> {
    bytes: &'a mut [u8],
    left: u64,
}

impl ReadBlocks for Cut<'_> {
    fn read(&mut self, block: u64, buf: &mut [u8]) -> Result<(), Error> {
        Mended(self.bytes).read(block, buf)
    }
}

impl WriteBlocks for Cut<'_> {
    fn write(&mut self, block: u64, bytes: &[u8]) -> Result<(), Error> {
        if self.left == 0 {
            // Torn: the first sector only.
            let at = block as usize * BLOCK_SIZE;
            self.bytes[at..at + SECTOR_SIZE].copy_from_slice(&bytes[..SECTOR_SIZE]);
            return Err(Error::new(ErrorKind::Io, "power cut"));
        }
        self.left -= 1;
        Mended(self.bytes).write(block, bytes)
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

#[test]
fn a_power_cut_during_the_repair_costs_nothing_more() {
    let whole = Store::new(FILE);
    let cases: [(Damage, &[&str]); 3] = [
        (|s| rot_record(s, GOLDEN), &["golden", "golden@1", "golden@2"]),
        (|s| rot_pair(s, newest_log(s, SOLO)), &["solo", "solo@1"]),
        (CROSSED[1].damage, &["well"]),
    ];
    for (at, (damage, losers)) in cases.into_iter().enumerate() {
        for writes in 0.. {
            assert!(writes < 500, "case {at}: a repair without end");
            let mut store = whole.clone();
            damage(&mut store);
            let bytes = store.disk.len() as u64;
            let mut cut = Cut { bytes: &mut store.disk, left: writes };
            let options = RepairOptions { cut_off: true };
            let done = repair(&mut cut, bytes, options, &mut |_| true).is_ok();
            assert_others_whole(&mut open(&store), &store, losers);
            mend(&mut store, true);
            assert_others_whole(&mut open(&store), &store, losers);
            if done {
                assert!(writes > 5, "case {at}: only {writes} writes");
                break;
            }
        }
    }
}

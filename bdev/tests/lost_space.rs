//! What says which blocks are in use costs no disk when it is lost: the store opens, serves reads
//! and writes, and what is free is found out again, to the block. In stores this small one pair of
//! catalogue blocks is all there is.

mod damage;
mod simple;

use damage::case::{S, W};
use damage::{Due, FRONT, Store, checked, put32, repaired};
use lamina_bdev::*;
use simple::{FILE, RAM, Rig};

/// Turns before opening counts as hung.
const TURNS_MAX: u64 = 100_000;

type Damage = (&'static str, fn(&mut Store));

/// All that can become of the copy that counts, and of the other one with it.
const CATALOGUES: &[Damage] = &[
    ("the newer is rotten", |s| rot(s, s.current(s.sb(72)))),
    ("the newer was never written", |s| s.lose_write(s.current(s.sb(72)))),
    ("both are rotten", |s| {
        rot(s, s.sb(72));
        rot(s, s.sb(72) + 1);
    }),
    ("both are zeros", |s| {
        s.block_mut(s.sb(72)).fill(0);
        s.block_mut(s.sb(72) + 1).fill(0);
    }),
    ("an entry is impossible", |s| {
        let block = s.current(s.sb(72));
        s.edit(block, FRONT, |b| put32(b, 64 + 4, u32::MAX));
    }),
];

fn rot(store: &mut Store, block: u64) {
    store.rot(block, |b| b[99] ^= 1);
}

/// Rots both bitmaps of every extent that has any.
fn rot_bitmaps(store: &mut Store) {
    for extent in 0..store.sb(136) {
        let start = store.sb(120) + extent * store.sb(128);
        for block in [start, start + 1] {
            if store.block(block)[..4] == *b"LMNA" {
                rot(store, block);
            }
        }
    }
}

/// Opens with `left` operations of the base; `Err`: what they have left.
fn opened(disk: Vec<u8>, store: &Store, left: u64) -> Result<Rig, Vec<u8>> {
    let mut rig = Rig::start(disk, store.label, store.traits);
    (rig.left, rig.cookie) = (left, 1 << 40);
    for _ in 0..TURNS_MAX {
        match rig.engine.state() {
            EngineState::Opening if rig.left == 0 => return Err(rig.disk),
            EngineState::Opening => rig.turn(),
            EngineState::Ready => {
                rig.left = u64::MAX;
                return Ok(rig);
            }
            EngineState::Failed => panic!("refused: {:?}", rig.engine.open_error()),
        }
    }
    panic!("opening never ended");
}

fn open(disk: Vec<u8>, store: &Store) -> Rig {
    opened(disk, store, u64::MAX).expect("it opens")
}

/// Everything but `victims` reads as it did.
fn assert_bytes(rig: &mut Rig, store: &Store, victims: &[&str]) {
    let whole = |due: &&Due| !victims.iter().any(|v| due.name.split('@').next() == Some(v));
    for due in store.due.iter().filter(whole) {
        let handle = rig.attach(due.target);
        for (at, bytes) in &due.bytes {
            assert!(rig.read(handle, *at, bytes.len()) == *bytes, "{} at {at}", due.name);
        }
        rig.command(Command::Detach(handle)).unwrap();
    }
}

/// Writes to a disk, away from what is compared, until no block is left; says how many it took.
fn fill(rig: &mut Rig, store: &Store, name: &str) -> u64 {
    let due = store.due.iter().find(|due| due.name == name).expect("it is listed");
    let handle = rig.attach(due.target);
    let mut count = 0;
    loop {
        let offset = (2 << 30) + count * 4096;
        match rig.request(handle, Op::Write, offset, &mut [0xee; 4096]) {
            Status::Ok => count += 1,
            Status::NoSpace => return count,
            other => panic!("block {count}: {other:?}"),
        }
    }
}

fn settled(rig: &mut Rig) -> StoreInfo {
    for _ in 0..6 {
        rig.command(Command::Checkpoint).unwrap();
    }
    rig.engine.store_info()
}

fn findings(disk: &[u8]) -> Vec<String> {
    checked(disk).unwrap().findings.iter().map(ToString::to_string).collect()
}

#[test]
fn a_lost_catalogue_costs_nothing_and_no_block_is_given_out_twice() {
    for traits in [RAM, FILE] {
        let whole = Store::new(traits);
        let mut rig = open(whole.disk.clone(), &whole);
        let due = settled(&mut rig).free_blocks;
        let room = fill(&mut rig, &whole, "well");
        for (name, damage) in CATALOGUES {
            let mut store = whole.clone();
            damage(&mut store);
            let mut rig = open(store.disk.clone(), &store);
            let said: Vec<String> = rig.take_events().into_iter().map(|e| e.text).collect();
            let named = format!("block {})", store.sb(72));
            assert!(said.iter().any(|text| text.contains(&named)), "{name}: {said:?}");
            assert_eq!(settled(&mut rig).free_blocks, due, "{name}");
            assert_eq!(findings(&rig.disk), [""; 0], "{name}");
            assert_eq!(fill(&mut rig, &store, "well"), room, "{name}");
            assert_bytes(&mut rig, &store, &[]);
            settled(&mut rig);
            assert_eq!(findings(&rig.disk), [""; 0], "{name}: full");
            let mut again = open(rig.disk, &store);
            again.events();
            assert_bytes(&mut again, &store, &[]);
        }
    }
}

#[test]
fn a_crash_at_any_operation_while_space_is_found_out_again_costs_nothing() {
    for traits in [RAM, FILE] {
        let whole = Store::new(traits);
        let due = settled(&mut open(whole.disk.clone(), &whole)).free_blocks;
        for (name, damage) in &CATALOGUES[..3] {
            let mut store = whole.clone();
            damage(&mut store);
            let mut crashes = 0;
            while let Err(disk) = opened(store.disk.clone(), &store, crashes) {
                // And once more, somewhere in the second attempt.
                let disk = match opened(disk, &store, crashes * 7 % 100) {
                    Ok(rig) => rig.disk,
                    Err(disk) => disk,
                };
                let mut rig = open(disk, &store);
                if crashes % 8 == 0 {
                    assert_bytes(&mut rig, &store, &[]);
                }
                assert_eq!(settled(&mut rig).free_blocks, due, "{name} after {crashes}");
                assert_eq!(findings(&rig.disk), [""; 0], "{name} after {crashes}");
                crashes += 1;
            }
            assert!(crashes > 50, "{crashes} operations");
        }
    }
}

/// What could not be read is good again after a crash: the bitmaps it names must still be there, or
/// it must be gone itself.
#[test]
fn a_lost_catalogue_that_comes_back_after_a_crash_costs_nothing() {
    for traits in [RAM, FILE] {
        let whole = Store::new(traits);
        let due = settled(&mut open(whole.disk.clone(), &whole)).free_blocks;
        let block = whole.current(whole.sb(72));
        for (name, damage) in [&CATALOGUES[0], &CATALOGUES[2]] {
            let mut store = whole.clone();
            damage(&mut store);
            let (mut left, mut crashes, mut back) = (store.clone(), 0, 0);
            while let Err(disk) = opened(store.disk.clone(), &store, crashes) {
                left.disk = disk;
                if left.block(block) == store.block(block) {
                    left.block_mut(block).copy_from_slice(whole.block(block));
                    back += 1;
                }
                let mut rig = open(std::mem::take(&mut left.disk), &whole);
                assert_eq!(settled(&mut rig).free_blocks, due, "{name} after {crashes}");
                assert_eq!(findings(&rig.disk), [""; 0], "{name} after {crashes}");
                crashes += 1;
            }
            assert!(back > 20 && back < crashes, "{back} of {crashes}");
        }
    }
}

/// With two things damaged, what the second one costs is its disk, as without the first.
#[test]
fn with_a_disk_lost_as_well_the_others_are_served_and_keep_their_blocks() {
    let both: &[Damage] = &[
        ("and a record", |s| {
            rot(s, s.record_pair(S));
            rot(s, s.record_pair(S) + 1);
        }),
        ("and a snapshot log", |s| rot(s, s.log(S))),
        ("and a root", |s| rot(s, s.path(S)[0])),
        ("and a leaf", |s| rot(s, s.path(S)[2])),
        ("and a journal block", |s| rot(s, s.journal(s.tail() + 2))),
    ];
    for traits in [RAM, FILE] {
        let whole = Store::new(traits);
        for ((first, catalogue), (second, damage)) in
            CATALOGUES.iter().flat_map(|c| both.iter().map(move |b| (c, b)))
        {
            let name = format!("{first} {second}");
            let mut store = whole.clone();
            damage(&mut store);
            let other = findings(&store.disk);
            catalogue(&mut store);
            let mut rig = open(store.disk.clone(), &store);
            assert!(rig.take_events().iter().any(|event| event.severe), "{name}");
            assert_bytes(&mut rig, &store, &["solo"]);
            assert!(fill(&mut rig, &store, "well") > 100, "{name}");
            assert_bytes(&mut rig, &store, &["solo"]);
            // Nothing that can still be read of the damaged disk was given to another.
            let found = checked(&rig.disk).unwrap().findings;
            let twice = |f: &&check::Finding| f.kind == check::FindingKind::Shared;
            assert_eq!(found.iter().find(twice), None, "{name}, was {other:?}");
            let mut disk = rig.disk;
            let (report, done) = repaired(&mut disk, true).unwrap();
            assert!(report.clean(), "{name}: {:?}; {done:?}", report.findings);
            let mut rig = open(disk, &store);
            assert_bytes(&mut rig, &store, &["solo"]);
        }
    }
}

/// Every bitmap is gone: the opening consistency point has no space, until it is looked for.
#[test]
fn without_any_bitmap_the_opening_consistency_point_finds_its_space() {
    for traits in [RAM, FILE] {
        let whole = Store::new(traits);
        let due = settled(&mut open(whole.disk.clone(), &whole)).free_blocks;
        let mut store = whole.clone();
        rot_bitmaps(&mut store);
        // Those that were never used need none: it must not find enough in them.
        let catalogue = store.current(store.sb(72));
        let (count, blocks) = (store.sb(136) as usize, store.sb(128) as u32);
        store.edit(catalogue, FRONT, |b| {
            for entry in (0..count).map(|extent| 64 + 16 * extent) {
                if b[entry + 8..entry + 16] == [0; 8] {
                    put32(b, entry + 4, blocks - 3);
                }
            }
        });
        for crash in [u64::MAX, 400, 300, 200, 100] {
            let disk = match opened(store.disk.clone(), &store, crash) {
                Ok(mut rig) => {
                    let found = |e: &Event| e.text.contains("found out again");
                    assert!(rig.take_events().iter().any(found), "it was not short of space");
                    rig.disk
                }
                Err(disk) => disk,
            };
            let mut rig = open(disk, &store);
            assert_eq!(settled(&mut rig).free_blocks, due);
            // Of extents without a free block nobody has asked.
            let other = |text: &String| !text.starts_with("error (bitmap)");
            assert_eq!(findings(&rig.disk).into_iter().find(other), None);
            assert!(fill(&mut rig, &store, "solo") > 100);
            assert_bytes(&mut rig, &store, &[]);
            let (report, _) = repaired(&mut rig.disk.clone(), false).unwrap();
            assert!(report.clean(), "{:?}", report.findings);
        }
    }
}

/// A bitmap that was found to be wrong is written in the catalogue as such; the next open makes
/// it good.
#[test]
fn what_was_found_to_be_wrong_is_found_out_again_at_the_next_open() {
    let mut store = Store::new(FILE);
    let leaf = store.path(W)[2];
    store.mark(leaf, false);
    let mut rig = open(store.disk.clone(), &store);
    let handle = rig.attach(store.due.iter().find(|d| d.name == "well").unwrap().target);
    rig.write(handle, 0, 0x77, 4096);
    settled(&mut rig);
    assert!(rig.take_events().iter().any(|e| e.text.contains("had block")), "it was not noticed");
    let mut rig = open(rig.disk, &store);
    let said: Vec<String> = rig.take_events().into_iter().map(|e| e.text).collect();
    assert!(said.iter().any(|text| text.contains("found out again")), "{said:?}");
    settled(&mut rig);
    assert_eq!(findings(&rig.disk), [""; 0]);
    assert_bytes(&mut rig, &store, &["well"]);
}

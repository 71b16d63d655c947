//! Blocks that the base fails to read when a store is opened: what they cost is the disk they
//! belong to, the others are served; and a disk that can be read again is served again, unless the
//! journal had writes to it that are lost.

mod damage;
mod rig;
mod simple;

use damage::case::{G, S};
use damage::{Due, Store};
use lamina_bdev::*;
use rig::{DISK, FILE, RAM, Rig};

/// Opens a store while no read succeeds that covers one of the blocks of the region.
fn open(image: Vec<u8>, store: &Store, bad: &[u64]) -> Rig {
    open_failing(image, store, |op, block| op == BaseOp::Read && bad.contains(&block))
}

/// The same while no operation succeeds that covers a block with which it `fails`.
fn open_failing(image: Vec<u8>, store: &Store, fails: impl Fn(BaseOp, u64) -> bool) -> Rig {
    Rig::open_failing(image, store.label, store.traits, fails)
}

fn served(rig: &Rig) -> Vec<String> {
    let refused = rig.engine.open_error();
    assert!(refused.is_none(), "{refused:?}");
    rig.engine.disks().iter().map(|disk| disk.name.to_string()).collect()
}

fn assert_bytes(rig: &mut Rig, due: &Due) {
    let handle = rig.attach(due.target);
    for (at, bytes) in &due.bytes {
        assert!(rig.read(handle, *at, bytes.len()) == *bytes, "{} at {at}", due.name);
    }
    rig.command(Command::Detach(handle)).unwrap();
}

fn of<'a>(store: &'a Store, disk: &'static str) -> impl Iterator<Item = &'a Due> {
    store.due.iter().filter(move |due| due.name.split('@').next() == Some(disk))
}

/// Everything but one disk is as it was, and takes writes.
fn assert_others(rig: &mut Rig, store: &Store, but: &str) {
    for disk in ["golden", "vm1", "vm2", "solo", "well"] {
        if disk != but {
            of(store, disk).for_each(|due| assert_bytes(rig, due));
        }
    }
    let well = of(store, "well").next().expect("it is listed");
    let handle = rig.attach(well.target);
    assert_eq!(rig.write(handle, 2 << 30, vec![9; 8192]), Status::Ok);
    assert_eq!(rig.flush(handle), Status::Ok);
    rig.command(Command::Detach(handle)).unwrap();
    rig.settle();
}

#[test]
fn a_disk_that_cannot_be_read_for_once_is_served_again_later() {
    for traits in [RAM, FILE, DISK] {
        let store = Store::new(traits);
        let (record, log) = (store.record_pair(G), store.u64_at(store.record(G), 200));
        for pair in [record, log] {
            // The journal has nothing about golden.
            let mut rig = open(store.disk.clone(), &store, &[pair, pair + 1]);
            assert_eq!(served(&rig), ["vm1", "vm2", "solo", "well"]);
            let said = rig.events();
            let named = format!("block {pair} of the store cannot be read");
            assert!(said.iter().any(|e| e.severe && e.text.contains(&named)), "{said:?}");
            assert_others(&mut rig, &store, "golden");
            let mut rig = open(rig.base.visible, &store, &[]);
            assert_eq!(served(&rig).len(), 5);
            of(&store, "golden").for_each(|due| assert_bytes(&mut rig, due));
            assert_others(&mut rig, &store, "");
        }
    }
}

#[test]
fn a_disk_that_lacks_what_the_journal_had_does_not_come_back() {
    for traits in [RAM, FILE, DISK] {
        let store = Store::new(traits);
        let (record, log) = (store.record_pair(S), store.u64_at(store.record(S), 200));
        for pair in [record, log] {
            let mut rig = open(store.disk.clone(), &store, &[pair, pair + 1]);
            assert_eq!(served(&rig), ["golden", "vm1", "vm2", "well"]);
            let said = rig.events();
            assert!(said.iter().any(|e| e.text.contains("slot 3 lacks")), "{said:?}");
            assert_others(&mut rig, &store, "solo");
            for _ in 0..2 {
                rig = open(rig.base.visible, &store, &[]);
                assert_eq!(served(&rig), ["golden", "vm1", "vm2", "well"], "never without them");
                assert_others(&mut rig, &store, "solo");
            }
            let mut image = rig.base.visible;
            let (report, done) = damage::repaired(&mut image, true).unwrap();
            assert!(report.clean(), "{:?}; {done:?}", report.findings);
            assert_others(&mut open(image, &store, &[]), &store, "solo");
        }
    }
}

#[test]
fn the_catalogue_and_bitmaps_are_not_needed_to_serve_everything() {
    for traits in [RAM, FILE, DISK] {
        let store = Store::new(traits);
        let mut bad = vec![store.sb(72), store.sb(72) + 1];
        let mut rig = open(store.disk.clone(), &store, &bad);
        assert_eq!(served(&rig).len(), 5);
        assert_others(&mut rig, &store, "");
        bad.clear();
        for extent in 0..store.sb(136) {
            let start = store.sb(120) + extent * store.sb(128);
            bad.extend([start, start + 1]);
        }
        let mut rig = open(store.disk.clone(), &store, &bad);
        assert_eq!(served(&rig).len(), 5);
        assert_others(&mut rig, &store, "");
    }
}

/// Of a lost catalogue, one block can be written no more either: the other one is enough.
#[test]
fn a_copy_of_a_lost_catalogue_that_cannot_be_written_is_done_without() {
    for traits in [RAM, FILE, DISK] {
        let store = Store::new(traits);
        let pair = store.sb(72);
        let bad = |op, block| {
            block == pair + 1 && op != BaseOp::Flush || block == pair && op == BaseOp::Read
        };
        let mut rig = open_failing(store.disk.clone(), &store, bad);
        assert_eq!(served(&rig).len(), 5);
        let told = format!("block {}, a lost copy of the catalogue, cannot be written", pair + 1);
        assert!(rig.events().iter().any(|event| event.severe && event.text == told));
        assert_others(&mut rig, &store, "");
    }
}

/// One bad sector under the map of a disk, where the journal has something to put.
#[test]
fn a_map_node_that_cannot_be_read_costs_its_disk_alone() {
    for traits in [RAM, FILE, DISK] {
        let store = Store::new(traits);
        // The journal makes the second leaf.
        let [root, inner, _] = store.path(S);
        for node in [root, inner] {
            let mut rig = open(store.disk.clone(), &store, &[node]);
            assert_eq!(served(&rig).len(), 5, "block {node}");
            let said = rig.events();
            assert!(said.iter().any(|e| e.severe && e.text.contains("disk solo")), "{said:?}");
            assert_others(&mut rig, &store, "solo");
            let solo = of(&store, "solo").next().expect("it is listed");
            let handle = rig.attach(solo.target);
            let (at, due) = (2 << 20, &solo.bytes[0].1[2 << 20..][..4096]);
            assert!(rig.read(handle, at, 4096) == due, "what the journal had is there");
        }
    }
}

#[test]
fn a_base_that_reads_nothing_any_more_is_no_damage() {
    let store = Store::new(FILE);
    let all: Vec<u64> = (0..store.sb(64)).collect();
    let rig = open(store.disk.clone(), &store, &all);
    let why = rig.engine.open_error().expect("refused").to_string();
    assert!(why.contains("cannot be read"), "{why}");
    // It goes away in the middle.
    let later: Vec<u64> = (0..2).chain(store.sb(120)..store.sb(64)).collect();
    for reads in 1..40 {
        let mut rig = Rig::opening(store.disk.clone(), store.label, store.traits, false);
        let mut seen = 0;
        while rig.engine.state() == EngineState::Opening {
            rig.step();
            while let Some(pending) = rig.base.pending.first() {
                seen += u64::from(pending.io.op == BaseOp::Read);
                let gone = seen > reads && later.contains(&(pending.io.offset / 4096));
                rig.complete(0, if gone { Err(BaseError::Gone) } else { Ok(()) });
                rig.start_all();
            }
        }
        if rig.engine.state() == EngineState::Failed {
            assert!(rig.base.visible == store.disk, "nothing was written after {reads} reads");
        }
    }
}

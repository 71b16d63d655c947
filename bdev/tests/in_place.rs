//! Reads whose link is read where it lies: they see what any other read would, and only leaves that
//! were checked are read so.

mod simple;

use std::collections::BTreeMap;

use lamina_bdev::*;
use simple::{RAM, Random, Rig};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 4 * 512;

/// What came of a read as a host on memory tries it.
#[derive(Debug, PartialEq)]
enum Read {
    /// At once.
    Cached(u8),
    /// By a link in place.
    InPlace(u8),
    /// Not without the base.
    No,
}

/// A read of one block, all of whose bytes are to be the same.
fn read(rig: &mut Rig, handle: Handle, block: u64) -> Read {
    let mut data = [0xee; BLOCK as usize];
    let segs = [Seg { addr: data.as_mut_ptr().expose_provenance(), len: data.len() }];
    let request =
        Request { cookie: 1, handle, op: Op::Read, offset: block * BLOCK, len: BLOCK, fua: false };
    let (mut answer, mut in_place) = (rig.engine.at_once(&request, &segs), false);
    if answer == AtOnce::No {
        let Some(at) = rig.engine.link_in_place(&request, &segs) else { return Read::No };
        let at = rig.first + at as usize;
        let word = rig.disk[at..at + 8].try_into().unwrap();
        (answer, in_place) = (rig.engine.read_in_place(&request, &segs, word), true);
    }
    match answer {
        AtOnce::No => return Read::No,
        AtOnce::Zeroed => {}
        AtOnce::Move { offset } => {
            let at = rig.first + offset as usize;
            data.copy_from_slice(&rig.disk[at..at + BLOCK as usize]);
        }
        AtOnce::Kept { .. } => panic!("a read leaves nothing to be written"),
    }
    assert!(data.iter().all(|byte| *byte == data[0]));
    if in_place { Read::InPlace(data[0]) } else { Read::Cached(data[0]) }
}

/// A disk of four leaves in which no two blocks in a row lie in a row, written and evicted.
fn scattered() -> (Rig, DiskId, Handle) {
    let mut rig = Rig::new(32 << 20, RAM);
    let disk = rig.create("a", BLOCKS * BLOCK, None);
    let handle = rig.attach(Target::Disk(disk));
    for at in 0..BLOCKS {
        let block = at * 77 % BLOCKS;
        rig.write(handle, block * BLOCK, block as u8, BLOCK as usize);
    }
    evict(&mut rig);
    (rig, disk, handle)
}

fn evict(rig: &mut Rig) {
    rig.settle();
    rig.engine.evict_nodes(1000);
}

#[test]
fn only_a_leaf_that_was_checked_is_read_in_place() {
    let (mut rig, _, handle) = scattered();
    assert_eq!(read(&mut rig, handle, 5), Read::No, "the way to it is not known");
    let mut data = [0; BLOCK as usize];
    assert_eq!(rig.request(handle, Op::Read, 5 * BLOCK, &mut data), Status::Ok);
    assert_eq!(read(&mut rig, handle, 6), Read::Cached(6), "of the piece that was kept");
    assert_eq!(read(&mut rig, handle, 300), Read::InPlace(44));
    assert_eq!(read(&mut rig, handle, 512), Read::No, "another leaf");
    let stats = rig.engine.stats();
    assert_eq!((stats.cache_in_place, stats.cache_misses), (1, 2));
    // The node above goes, and what was known with it.
    rig.engine.evict_nodes(1000);
    assert_eq!(read(&mut rig, handle, 300), Read::No);
}

#[test]
fn what_is_no_link_is_not_followed() {
    let (mut rig, _, handle) = scattered();
    let mut data = [0; BLOCK as usize];
    assert_eq!(rig.request(handle, Op::Read, 0, &mut data), Status::Ok);
    let segs = [Seg { addr: data.as_mut_ptr().expose_provenance(), len: data.len() }];
    let request =
        Request { cookie: 1, handle, op: Op::Read, offset: 300 * BLOCK, len: BLOCK, fua: false };
    let before = rig.engine.stats();
    // What is lost, the superblock, the head of an extent's, and far outside.
    for link in [(1 << 47) - 1, 1, u64::from(u32::MAX), 1 << 46] {
        assert!(rig.engine.link_in_place(&request, &segs).is_some());
        let answer = rig.engine.read_in_place(&request, &segs, u64::to_le_bytes(link));
        assert_eq!(answer, AtOnce::No, "{link:#x}");
    }
    assert_eq!(rig.engine.stats(), before);
    // Several blocks, a write, a range beyond the end, somebody else's handle.
    let long = Request { len: 2 * BLOCK, ..request };
    let mut two = [0; 2 * BLOCK as usize];
    let both = [Seg { addr: two.as_mut_ptr().expose_provenance(), len: two.len() }];
    assert_eq!(rig.engine.link_in_place(&long, &both), None);
    let write = Request { op: Op::Write, ..request };
    assert_eq!(rig.engine.link_in_place(&write, &segs), None);
    let beyond = Request { offset: BLOCKS * BLOCK, ..request };
    assert_eq!(rig.engine.link_in_place(&beyond, &segs), None);
    let foreign = Request { handle: Handle(handle.0 ^ 1), ..request };
    assert_eq!(rig.engine.link_in_place(&foreign, &segs), None);
}

/// Writes, discards, snapshots, consistency points and evictions between the reads.
#[test]
fn model() {
    let (mut rig, disk, live) = scattered();
    let mut random = Random::new(7);
    let mut content: Vec<u8> = (0..BLOCKS).map(|block| block as u8).collect();
    let mut views: BTreeMap<u32, (Handle, Vec<u8>)> = BTreeMap::new();
    let (mut in_place, mut cached, mut missed) = (0, 0, 0);
    for step in 0..30_000u32 {
        let block = random.below(BLOCKS as usize);
        match random.below(400) {
            0..3 => {
                let byte = step as u8;
                rig.write(live, block as u64 * BLOCK, byte, BLOCK as usize);
                content[block] = byte;
            }
            3 => {
                let (at, mut none) = (block as u64 * BLOCK, []);
                assert_eq!(rig.ranged(live, Op::Discard, at, BLOCK, &mut none), Status::Ok);
                content[block] = 0;
            }
            4..6 => evict(&mut rig),
            6 if views.len() < 3 => {
                let snap = rig.snapshot(disk, "");
                let view = rig.attach(Target::Snapshot(snap));
                views.insert(step, (view, content.clone()));
            }
            7 => {
                if let Some(which) = random.pick(&views) {
                    let (view, _) = views.remove(&which).unwrap();
                    rig.command(Command::Detach(view)).unwrap();
                }
            }
            _ => {
                let view = random.pick(&views).filter(|_| random.below(2) == 0);
                let (handle, expected) = match view.and_then(|which| views.get(&which)) {
                    Some((view, then)) => (*view, then[block]),
                    None => (live, content[block]),
                };
                match read(&mut rig, handle, block as u64) {
                    Read::InPlace(byte) => {
                        (in_place, _) = (in_place + 1, assert_eq!(byte, expected))
                    }
                    Read::Cached(byte) => (cached, _) = (cached + 1, assert_eq!(byte, expected)),
                    Read::No => {
                        let mut data = [0; BLOCK as usize];
                        let at = block as u64 * BLOCK;
                        assert_eq!(rig.request(handle, Op::Read, at, &mut data), Status::Ok);
                        assert_eq!(data, [expected; BLOCK as usize]);
                        missed += 1;
                    }
                }
            }
        }
    }
    assert!(in_place > 2000 && cached > 2000 && missed > 500, "{in_place} {cached} {missed}");
    assert_eq!(rig.engine.stats().cache_in_place, in_place);
}

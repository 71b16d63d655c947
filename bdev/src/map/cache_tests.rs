//! The node cache against models of it: both tiers, the budget, and who gives way to whom.

use super::*;
use std::collections::BTreeMap;

#[test]
fn busy_spans_cover_exactly_their_blocks() {
    for first in [0u16, 1, 63, 64, 65, 300, 511] {
        for count in [1u16, 2, 63, 64, 65, 128, 200, 512] {
            if first + count > 512 {
                continue;
            }
            let mut bits = [0u64; 8];
            spans(first, count).for_each(|(w, m)| bits[w] |= m);
            assert!(count > 1 || spans(first, count).eq([place(first)]));
            for i in 0..512u16 {
                let set = bits[usize::from(i / 64)] >> (i % 64) & 1 == 1;
                assert_eq!(set, (first..first + count).contains(&i));
            }
        }
    }
}

fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *seed >> 33
}

/// A leaf of 1 to 60 runs of data, of which those of more than 37 have no compact copy.
fn content(seed: &mut u64) -> [u64; LINKS] {
    let mut links = [0; LINKS];
    let runs = [1, 2, 6, 20, 60][next(seed) as usize % 5];
    let len = LINKS / runs;
    for run in 0..runs {
        let block = next(seed) % (1 << 40) + 1;
        let links = links[run * len..run * len + len].iter_mut();
        links.zip(block..).for_each(|(link, block)| *link = block);
    }
    links
}

/// Makes a copy a node again, which must be the one that was cached.
fn promoted_as(
    cache: &mut NodeCache,
    copy: u32,
    key: Key,
    links: &[u64; LINKS],
    birth: u64,
) -> u32 {
    let Promoted::Slot(slot) = cache.promote(copy, 4) else { panic!("no room") };
    let m = &cache.meta[slot as usize];
    assert_eq!((m.key, m.birth, m.prev_birth, m.pins), (key, birth, birth, 0));
    assert_eq!((m.state, m.shared_with, m.entry), (State::Clean, birth / 2, NONE));
    assert_eq!((&cache.links[slot as usize], cache.find(key)), (links, Some(slot)));
    slot
}

/// A copy says of a block what is on disk.
fn assert_read(cache: &mut NodeCache, key: Key, first: u16, disk: &[u64; LINKS]) {
    let (run, of_piece) = cache.run_kept(key, first, 1).expect("there is a copy");
    assert!(!of_piece, "a leaf has a copy and pieces");
    let (block, len) = run;
    let links = &disk[usize::from(first)..];
    let last = if block == 0 { 0 } else { block + len as u64 - 1 };
    assert!(len > 0 && (links[0], links[len - 1]) == (block, last));
}

/// What a read of one block leaves of a leaf of many runs: a piece, and no node.
fn read_once(cache: &mut NodeCache, key: Key, index: u16, links: &[u64; LINKS]) -> bool {
    let slot = cache.insert(key, State::Loading, 4).expect("room");
    cache.want_piece(slot, key, index, true);
    let m = &cache.meta[slot as usize];
    assert_eq!((m.whole, m.pieces), (false, 1 << (index / 64)));
    let from = usize::from(index) / 64 * 64;
    let known = cache.has_piece(key, index);
    let kept = known || cache.keep_piece(key, index, links[from..][..64].try_into().unwrap());
    assert_eq!(kept, cache.has_piece(key, index));
    cache.abandon(slot);
    assert_eq!(cache.find(key), None);
    kept
}

/// The pieces there are of a leaf say what is on disk. How many there are.
fn assert_pieces(cache: &mut NodeCache, key: Key, disk: Option<&[u64; LINKS]>) -> u64 {
    let mut found = 0;
    for index in (3..512).step_by(64) {
        let Some(((block, len), true)) = cache.run_kept(key, index, 5) else { continue };
        let links = &disk.expect("what has a piece was read")[usize::from(index)..];
        let last = if block == 0 { 0 } else { block + len as u64 - 1 };
        assert!((1..=5).contains(&len) && (links[0], links[len - 1]) == (block, last));
        found += 1;
    }
    found
}

/// A key that nobody has: cached with what it has on disk, if anything; pinned.
fn inserted(cache: &mut NodeCache, key: Key, (links, birth): &([u64; LINKS], u64)) -> u32 {
    let slot = cache.insert(key, State::Clean, 4).expect("room");
    cache.links[slot as usize] = *links;
    let m = &mut cache.meta[slot as usize];
    (m.birth, m.prev_birth, m.shared_with) = (*birth, *birth, *birth / 2);
    slot
}

/// A cached leaf is changed, and written.
fn change(cache: &mut NodeCache, slot: u32, disk: &mut [u64; LINKS], seed: &mut u64) {
    *disk = content(seed);
    cache.links[slot as usize] = *disk;
}

/// Each way was gone often enough to mean something.
fn assert_tried(cache: &NodeCache, counts: [u64; 6]) {
    let least = [10_000, 3_000, 256, 3_000, 3_000, 1_000];
    assert!(counts.iter().zip(&least).all(|(count, least)| count > least), "{counts:?}");
    assert!(cache.compactions > 3_000 && cache.evictions() > 1000);
    assert!(cache.compact.evictions > 1000);
}

/// A tree's number is another disk's from now on.
fn purge(cache: &mut NodeCache, tree: u32, disk: &mut BTreeMap<u64, ([u64; LINKS], u64)>) {
    cache.purge(tree);
    disk.retain(|key, _| Key(*key).tree() != tree);
}

/// A node is cached as it is on disk.
fn assert_node(cache: &NodeCache, slot: u32, key: Key, (links, birth): &([u64; LINKS], u64)) {
    let m = &cache.meta[slot as usize];
    assert_eq!((m.key, m.birth, &cache.links[slot as usize]), (key, *birth, links));
}

/// So many slots can be had, and now and then everything is looked at.
fn check(cache: &NodeCache, spare: usize, step: u64) {
    assert_eq!(cache.spare(), spare);
    if step.is_multiple_of(64) {
        assert_eq!(cache.compact.check(&cache.links), cache.compact.page_count());
    }
}

/// Both tiers against a map: inserts, evictions, promotions, reads, changes, pins, removals and
/// trees that go and come again.
#[test]
fn model() {
    let slots = 64;
    let mut cache = NodeCache::new(slots);
    // What was ever put under a key, and is on disk so to say.
    let mut disk: BTreeMap<u64, ([u64; LINKS], u64)> = BTreeMap::new();
    let mut pinned: BTreeMap<u64, u32> = BTreeMap::new();
    let (mut seed, mut reads, mut promoted, mut purged) = (1u64, 0, 0, 0);
    let (mut kept, mut pieces, mut dropped) = (0, 0, 0);
    for step in 0..300_000u64 {
        let (tree, index) = (next(&mut seed) as u32 % 5, next(&mut seed) % 400);
        let key = Key::new(tree, 0, index);
        let (kind, copy) = (next(&mut seed) % 8, cache.find_compact(key));
        let room = pinned.len() < slots - 4;
        let found = assert_pieces(&mut cache, key, disk.get(&key.0).map(|(links, _)| links));
        assert!(found == 0 || (cache.find(key), copy) == (None, None), "a leaf and a piece of it");
        pieces += found;
        let cached = cache.find(key);
        assert!(cached.is_some() || !pinned.contains_key(&key.0), "a pinned node was evicted");
        match (cached, copy) {
            (Some(_), Some(_)) => panic!("a leaf is cached beside its copy"),
            (Some(slot), None) => {
                assert_node(&cache, slot, key, &disk[&key.0]);
                if let Some(slot) = pinned.remove(&key.0) {
                    cache.unpin(slot);
                } else if kind == 0 {
                    cache.remove(slot);
                    assert_eq!(cache.find(key), None);
                }
            }
            (None, Some(_)) if kind < 6 => {
                assert_read(&mut cache, key, next(&mut seed) as u16 % 512, &disk[&key.0].0);
                reads += 1;
            }
            (None, Some(copy)) if !room => {
                let refused = (cache.promote(copy, 4), cache.find_compact(key));
                assert_eq!(refused, (Promoted::NoRoom, Some(copy)));
            }
            (None, Some(copy)) => {
                let (links, birth) = disk.get_mut(&key.0).expect("what has a copy was cached");
                let slot = promoted_as(&mut cache, copy, key, links, *birth);
                promoted += 1;
                change(&mut cache, slot, links, &mut seed);
            }
            (None, None) if !room => assert!(cache.insert(key, State::Clean, 4).is_none()),
            (None, None) if kind > 5 && disk.contains_key(&key.0) => {
                let index = next(&mut seed) as u16 % 512;
                kept += u64::from(read_once(&mut cache, key, index, &disk[&key.0].0));
            }
            (None, None) => {
                dropped += found;
                let leaf = disk.entry(key.0).or_insert_with(|| (content(&mut seed), step));
                let slot = inserted(&mut cache, key, leaf);
                if kind == 1 {
                    change(&mut cache, slot, &mut leaf.0, &mut seed);
                }
                match kind {
                    0 => drop(pinned.insert(key.0, slot)),
                    _ => cache.unpin(slot),
                }
            }
        }
        if step % 997 == 0 {
            std::mem::take(&mut pinned).into_values().for_each(|slot| cache.unpin(slot));
            purge(&mut cache, tree, &mut disk);
            purged += 1;
        }
        check(&cache, slots - pinned.len(), step);
    }
    assert_tried(&cache, [reads, promoted, purged, kept, pieces, dropped]);
}

/// So many bytes suffice for the slots with what belongs to them, and few are left over.
#[test]
fn the_budget_is_kept() {
    for bytes in [1 << 20, 3_355_443, 64 << 20, 1 << 30] {
        let slots = NodeCache::slots_in(bytes);
        let (each, table) = (4096 + compact::SLOT_BYTES, compact::table_bytes(slots));
        let taken = slots * each + table;
        assert!(taken <= bytes && taken + bytes / 64 > bytes, "{taken} of {bytes}");
    }
}

/// When all slots are needed for nodes, compact copies give way.
#[test]
fn pages_become_slots_again() {
    let mut cache = NodeCache::new(32);
    let fill = |cache: &mut NodeCache, index: u64| {
        let slot = cache.insert(Key::new(1, 0, index), State::Clean, 0).expect("room");
        (0..LINKS).for_each(|at| cache.links[slot as usize][at] = 1000 * index + at as u64 + 1);
        slot
    };
    for index in 0..300 {
        let slot = fill(&mut cache, index);
        cache.unpin(slot);
    }
    assert!((0..300).all(|index| {
        let key = Key::new(1, 0, index);
        cache.find(key).is_some() != cache.find_compact(key).is_some()
    }));
    assert_eq!((cache.evictions(), cache.spare()), (0, 32));
    for index in 300..332 {
        fill(&mut cache, index);
    }
    assert_eq!((cache.spare(), cache.compact.page_count()), (0, 0));
    assert!(cache.insert(Key::new(1, 0, 5), State::Clean, 0).is_none());
    assert_eq!(cache.evictions(), 300);
}

/// A leaf of each of many disks: none is lost for want of a place in the table.
#[test]
fn many_trees_with_the_same_leaf() {
    let mut cache = NodeCache::new(256);
    for tree in 0..2000 {
        for index in [0, 1, 7] {
            let slot = cache.insert(Key::new(tree, 0, index), State::Clean, 4).expect("room");
            let first = 1000 * (u64::from(tree) + 1);
            (0..LINKS).for_each(|at| cache.links[slot as usize][at] = first + at as u64);
            cache.unpin(slot);
        }
    }
    cache.compact.check(&cache.links);
    let there = |tree: &u32| {
        let keys = [0, 1, 7].map(|index| Key::new(*tree, 0, index));
        keys.iter().all(|key| cache.find(*key).or(cache.find_compact(*key)).is_some())
    };
    assert_eq!((0..2000).filter(there).count(), 2000);
}

/// What is read now takes the place of what was, whatever is full: here it is the table, before the
/// pages are.
#[test]
fn pieces_follow_what_is_read() {
    let mut cache = NodeCache::new(240);
    let links: [u64; LINKS] = std::array::from_fn(|at| 1 + (at as u64 * 77) % 8192);
    let mut read = |from: u64| {
        let mut hits = 0;
        for number in from..from + 4000 {
            let (key, index) = (Key::new(1, 0, number / 8), (number % 8) as u16 * 64);
            match cache.run_kept(key, index, 1) {
                Some(_) => hits += 1,
                // Now and then all pages looked at are in use.
                None => drop(read_once(&mut cache, key, index, &links)),
            }
        }
        hits
    };
    for from in [0, 4000, 8000, 12_000] {
        let hits: Vec<u64> = (0..6).map(|_| read(from)).collect();
        assert!(hits[0] == 0 && hits[5] > 3900, "{from}: {hits:?}");
    }
}

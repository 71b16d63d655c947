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
fn assert_read(cache: &mut NodeCache, copy: u32, first: u16, disk: &[u64; LINKS]) {
    let (block, len) = cache.compact_run(copy, first);
    let links = &disk[usize::from(first)..];
    let last = if block == 0 { 0 } else { block + len as u64 - 1 };
    assert!(len > 0 && (links[0], links[len - 1]) == (block, last));
}

/// A key that nobody has: cached with what it has on disk, if anything; pinned.
fn inserted(cache: &mut NodeCache, key: Key, (links, birth): &([u64; LINKS], u64)) -> u32 {
    let slot = cache.insert(key, State::Clean, 4).expect("room");
    cache.links[slot as usize] = *links;
    let m = &mut cache.meta[slot as usize];
    (m.birth, m.prev_birth, m.shared_with) = (*birth, *birth, *birth / 2);
    slot
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
    for step in 0..300_000u64 {
        let (tree, index) = (next(&mut seed) as u32 % 5, next(&mut seed) % 400);
        let key = Key::new(tree, 0, index);
        let (kind, copy) = (next(&mut seed) % 8, cache.find_compact(key));
        let room = pinned.len() < slots - 4;
        match (cache.find(key), copy) {
            (Some(_), Some(_)) => panic!("a leaf is cached beside its copy"),
            (Some(slot), None) => {
                let (m, (links, birth)) = (&cache.meta[slot as usize], &disk[&key.0]);
                assert_eq!((m.key, m.birth, &cache.links[slot as usize]), (key, *birth, links));
                if let Some(slot) = pinned.remove(&key.0) {
                    cache.unpin(slot);
                } else if kind == 0 {
                    cache.remove(slot);
                    assert_eq!(cache.find(key), None);
                }
            }
            (None, Some(copy)) if kind < 6 => {
                assert_read(&mut cache, copy, next(&mut seed) as u16 % 512, &disk[&key.0].0);
                reads += 1;
            }
            (None, Some(copy)) if !room => {
                assert_eq!(cache.promote(copy, 4), Promoted::NoRoom);
                assert_eq!(cache.find_compact(key), Some(copy));
            }
            (None, Some(copy)) => {
                let (links, birth) = disk.get_mut(&key.0).expect("what has a copy was cached");
                let slot = promoted_as(&mut cache, copy, key, links, *birth);
                promoted += 1;
                // It is changed.
                *links = content(&mut seed);
                cache.links[slot as usize] = *links;
            }
            (None, None) if !room => assert!(cache.insert(key, State::Clean, 4).is_none()),
            (None, None) => {
                assert!(!pinned.contains_key(&key.0), "a pinned node was evicted");
                let new = || (content(&mut seed), step);
                let slot = inserted(&mut cache, key, disk.entry(key.0).or_insert_with(new));
                if kind == 0 {
                    pinned.insert(key.0, slot);
                } else {
                    cache.unpin(slot);
                }
            }
        }
        if step % 997 == 0 {
            std::mem::take(&mut pinned).into_values().for_each(|slot| cache.unpin(slot));
            cache.purge(tree);
            // A new disk of that number.
            disk.retain(|key, _| Key(*key).tree() != tree);
            purged += 1;
        }
        assert_eq!(cache.spare(), slots - pinned.len());
        if step % 64 == 0 {
            assert_eq!(cache.compact.check(&cache.links), cache.compact.page_count());
        }
    }
    assert!(reads > 10_000 && promoted > 3_000 && purged > 256, "{reads} {promoted} {purged}");
    assert!(cache.compactions > 10_000 && cache.evictions() > 1000);
    let gone = cache.compact.evictions;
    assert!(gone > 1000, "{gone}");
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

//! Allocation, sealing and bitmaps of a shard's extents, tried without an engine.

use super::*;

fn space() -> Space {
    let geometry = Geometry {
        region_blocks: 5000,
        extents: 100,
        extent_blocks: 256,
        extent_count: 8,
        catalogue_pairs: 1,
        ..Geometry::default()
    };
    let mut space = Space::new(geometry);
    for i in 0..8 {
        space.entries[i].free = 254;
        space.set_avail(i, 254);
    }
    space
}

#[test]
fn every_block_is_given_out_once_and_comes_back() {
    let mut space = space();
    let mut seen = std::collections::BTreeSet::new();
    let mut turn = 0;
    while let Grant::Run(pba, len) =
        space.allocate(if turn % 3 == 0 { Use::Metadata } else { Use::Data }, 1 + turn % 7)
    {
        turn += 1;
        for block in pba..pba + len {
            assert!(space.geometry.linkable(block) && seen.insert(block));
        }
    }
    assert_eq!(seen.len() as u64, space.capacity());
    assert_eq!((space.free, space.allocate(Use::Data, 1)), (0, Grant::Full));
    for &block in &seen {
        space.release(block, 1);
    }
    assert_eq!(space.free, space.capacity());
}

#[test]
fn pairs_are_found_wherever_two_neighbours_are_free_and_only_there() {
    let mut space = space();
    while let Grant::Run(..) = space.allocate(Use::Data, 7) {}
    assert_eq!(space.allocate_pair(Use::Metadata), Grant::Full);
    let first = |extent: u64| space.geometry.extent_start(extent);
    // Single blocks, the last of one extent and the first of the next, and a pair across words.
    let [end, begin, low] = [first(3) - 1, first(3) + 2, first(5) + 63];
    for block in [first(1) + 10, first(1) + 12, end, begin] {
        space.release(block, 1);
    }
    assert_eq!(space.allocate_pair(Use::Metadata), Grant::Full);
    space.release(low, 2);
    assert_eq!(space.allocate_pair(Use::Metadata), Grant::Run(low, 2));
    assert_eq!((space.allocate_pair(Use::Metadata), space.free), (Grant::Full, 4));
    space.release(low, 2);
    assert_eq!(space.free, 6);
}

#[test]
#[should_panic(expected = "freed twice")]
fn a_double_free_is_a_bug() {
    let mut space = space();
    let Grant::Run(pba, _) = space.allocate(Use::Data, 1) else { panic!("full") };
    space.release(pba, 1);
    space.release(pba, 1);
}

#[test]
fn the_disk_bitmap_changes_only_at_checkpoints_and_alternates_copies() {
    let mut space = space();
    let Grant::Run(pba, 3) = space.allocate(Use::Data, 3) else { panic!("no run") };
    assert_eq!(space.mark(pba, 3, true), Some(3));
    let extent = *space.dirty.last().unwrap();
    let (store, mut a, mut b) = (Uuid([1; 16]), [0; 4096], [0; 4096]);
    let first = space.write_bitmap(extent, &mut a, store, 0, 7);
    assert!(space.dirty.is_empty());
    space.mark(pba, 1, false).unwrap();
    let second = space.write_bitmap(extent, &mut b, store, 0, 8);
    assert_eq!((first % 2 == second % 2, first.abs_diff(second)), (false, 1));
    let mut again = super::tests::space();
    again.dedicate(extent, ExtentType::Data);
    again.entries[extent] = Entry { kind: ExtentType::Data, free: 252, bitmap: 8 };
    again.set_avail(extent, 252);
    assert_eq!(again.free, 8 * 254 - 2);
    let copies = if first < second { [&a, &b] } else { [&b, &a] };
    again.load(extent, copies, store, 0).unwrap();
    assert!(again.claim(pba) && !again.claim(pba + 1));
}

#[test]
fn a_sealed_extent_gives_nothing_out_and_is_not_believed_again() {
    let mut space = space();
    let Grant::Run(pba, 3) = space.allocate(Use::Data, 3) else { panic!("no run") };
    let extent = space.geometry.extent_of(pba).unwrap() as usize;
    space.seal(extent);
    assert_eq!((space.free, space.avail[extent]), (7 * 254, 0));
    space.seal(extent);
    assert_eq!(space.free, 7 * 254, "once is enough");
    space.release(pba, 3);
    assert_eq!(space.free, 7 * 254, "nothing comes back to it");
    assert!(space.entries.iter().all(|e| e.bitmap != extent::UNTRUSTED));
    let before = space.entries[(extent + 1) % 8].free;
    space.mark(pba, 1, false).unwrap();
    assert_eq!(space.entries[extent].bitmap, extent::UNTRUSTED);
    assert_eq!(space.dirty_catalogue(), Some(0));
    let others = (0..8).filter(|&i| i != extent);
    assert!(others.clone().all(|i| space.entries[i].bitmap != extent::UNTRUSTED));
    assert_eq!(space.entries[(extent + 1) % 8].free, before);
    while let Grant::Run(pba, _) = space.allocate(Use::Data, 7) {
        assert_ne!(space.geometry.extent_of(pba), Some(extent as u64));
    }
    assert_eq!(space.free, 0);
}

#[test]
fn extents_whose_bitmaps_are_in_memory_are_counted() {
    let mut space = space();
    assert_eq!(space.unloaded, 8);
    let Grant::Run(pba, _) = space.allocate(Use::Data, 1) else { panic!("no run") };
    assert_eq!(space.unloaded, 7);
    let extent = space.geometry.extent_of(pba).unwrap() as usize;
    assert!(space.loaded(extent) && !space.loaded((extent + 4) % 8));
}

/// What [`Space::choose`] promises, by a walk through everything.
fn chosen_by_hand(space: &Space, kind: Use) -> Option<usize> {
    let all = kind.rooms().into_iter().flat_map(|room| (0..8).map(move |extent| (room, extent)));
    let idle = |extent: usize| !space.current.contains(&Some(extent));
    let lawful = |&(room, extent): &(Room, usize)| {
        space.room(extent, space.avail[extent]) == Some(room) && idle(extent)
    };
    let current = || space.current.iter().flatten().copied().find(|&e| space.avail[e] > 0);
    all.into_iter().find(lawful).map(|(_, extent)| extent).or_else(current)
}

#[test]
fn the_next_extent_is_the_one_that_a_walk_through_all_would_find() {
    let (mut space, mut held, mut random) = (space(), Vec::new(), 5u64);
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        (random >> 33) % below
    };
    for turn in 0..20_000 {
        let kind = if next(4) == 0 { Use::Metadata } else { Use::Data };
        assert_eq!(space.choose(kind), chosen_by_hand(&space, kind), "turn {turn}");
        // Until it is full for a while, and then until it is empty for a while.
        let given_back = if turn / 2500 % 2 == 0 { 2 } else { 6 };
        if next(8) < given_back {
            if !held.is_empty() {
                let (pba, len) = held.swap_remove(next(held.len() as u64) as usize);
                space.release(pba, len);
            }
            continue;
        }
        let grant = if next(8) == 0 {
            space.allocate_pair(kind)
        } else {
            space.allocate(kind, 1 + next(40))
        };
        if let Grant::Run(pba, len) = grant {
            held.push((pba, len));
        }
        let free: u64 = space.avail.iter().map(|&avail| u64::from(avail)).sum();
        assert_eq!(space.free, free);
    }
}

#[test]
fn the_last_free_extent_of_64_tib_is_found_without_a_walk_through_the_full_ones() {
    let extents = crate::limits::EXTENTS_MAX as usize;
    let geometry = Geometry {
        region_blocks: extents as u64 * 16_384,
        extent_blocks: 16_384,
        extent_count: extents as u64,
        catalogue_pairs: 1,
        ..Geometry::default()
    };
    let mut space = Space::new(geometry);
    space.set_avail(extents - 1, 100);
    // A walk each time would look at 2 * 10^12 lines: an hour.
    for _ in 0..1_000_000 {
        assert_eq!(space.choose(Use::Data), Some(extents - 1));
        assert_eq!(space.choose(Use::Metadata), Some(extents - 1));
    }
}

/// What the two bitmaps of each extent say, block by block.
fn bits(space: &Space) -> Vec<(bool, bool)> {
    let of = |words: &[u64], at: usize| words[at / 64] >> (at % 64) & 1 == 1;
    let maps = space.maps.iter().flatten();
    maps.flat_map(|map| (0..256).map(move |at| (of(&map.busy, at), of(&map.disk, at)))).collect()
}

/// Enters all of a run, as a checkpoint does; in how many steps.
fn enter(space: &mut Space, pba: u64, len: u64, used: bool) -> u64 {
    let (mut done, mut steps) = (0, 0);
    while done < len {
        done += space.mark(pba + done, len - done, used).expect("its extent is loaded");
        steps += 1;
    }
    assert_eq!(done, len);
    steps
}

#[test]
fn runs_are_entered_and_given_back_as_block_by_block() {
    let mut random = 11u64;
    let mut below = |limit: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % limit
    };
    let mut space = space();
    (0..8).for_each(|extent| assert!(space.load_fresh(extent)));
    let fresh = bits(&space);
    let mut model = fresh.clone();
    let base = space.geometry.extents;
    let (mut held, mut steps): (Vec<(u64, u64)>, [u64; 4]) = (Vec::new(), [0; 4]);
    for round in 0..3000 {
        if round % 30 == 0 {
            // Long runs again.
            for (pba, len) in held.drain(..) {
                enter(&mut space, pba, len, false);
                space.release(pba, len);
            }
            model.clone_from(&fresh);
        }
        let (pba, len, used) = if held.is_empty() || below(5) < 2 {
            match space.allocate(Use::Data, 1 + below(100)) {
                Grant::Run(pba, len) => (pba, len, true),
                other => {
                    assert_eq!(other, Grant::Full);
                    continue;
                }
            }
        } else {
            // A part of a run, so that words are entered whole, from a bit on, and up to one.
            let (pba, len) = held.swap_remove(below(held.len() as u64) as usize);
            let first = below(len);
            let part = 1 + below(len - first);
            let rest = (pba + first + part, len - first - part);
            held.extend([(pba, first), rest].into_iter().filter(|(_, len)| *len > 0));
            (pba + first, part, false)
        };
        let took = enter(&mut space, pba, len, used);
        steps[took as usize] += 1;
        if used {
            held.push((pba, len));
        } else {
            space.release(pba, len);
        }
        let at = (pba - base) as usize;
        model[at..at + len as usize].fill((used, used));
        assert!(bits(&space) == model, "{len} from {pba}, used: {used}");
        assert_eq!(space.free, model.iter().filter(|(busy, _)| !busy).count() as u64);
    }
    assert!(steps[1..].iter().all(|&times| times > 20), "runs in one to three words: {steps:?}");
}

#[test]
fn what_was_taken_already_is_not_entered_again() {
    let mut space = space();
    let Grant::Run(pba, 100) = space.allocate(Use::Data, 100) else { panic!("no run") };
    assert_eq!(enter(&mut space, pba + 40, 1, true), 1);
    let twice = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        enter(&mut space, pba, 100, true);
    }));
    assert!(twice.is_err(), "a block among others is allocated twice");
}

#[test]
fn a_bitmap_that_had_used_blocks_as_free_is_left_alone_from_then_on() {
    let mut space = space();
    let Grant::Run(pba, 100) = space.allocate(Use::Data, 100) else { panic!("no run") };
    let extent = space.geometry.extent_of(pba).unwrap() as usize;
    // All but one.
    enter(&mut space, pba, 80, true);
    enter(&mut space, pba + 81, 19, true);
    assert_eq!((enter(&mut space, pba, 70, false), space.lie), (2, None));
    enter(&mut space, pba + 70, 30, false);
    assert_eq!((space.lie, space.avail[extent]), (Some((extent, pba + 80)), 0));
    assert_eq!(space.entries[extent].bitmap, extent::UNTRUSTED);
}

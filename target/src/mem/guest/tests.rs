//! Tests of the memory table against files that behave and files that do not.

use rustix::fs::MemfdFlags;

use super::*;

fn file(len: u64) -> File {
    let file = File::from(rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}

fn spec(guest_addr: u64, size: u64, user_addr: u64, offset: u64) -> RegionSpec {
    RegionSpec { guest_addr, size, user_addr, offset }
}

/// A region of its own file.
fn region(guest_addr: u64, size: u64) -> Arc<Region> {
    Region::map(spec(guest_addr, size, 0x7000_0000_0000 + guest_addr, 0), &file(size)).unwrap()
}

/// Host pieces of a range, as offsets into the regions' own memory; None if refused.
fn pieces(memory: &GuestMemory, hint: &mut usize, addr: u64, len: u64) -> Option<Vec<usize>> {
    let mut lengths = Vec::new();
    memory.translate(hint, addr, len, |seg| lengths.push(seg.len)).then_some(lengths)
}

#[test]
fn ranges_are_found_split_and_refused() {
    // | hole | A 64K | B 64K | hole 64K | C 4K | hole
    let (a, b, c) = (0x10000, 0x20000, 0x40000);
    let regions = vec![region(c, 0x1000), region(a, 0x10000), region(b, 0x10000)];
    let memory = GuestMemory::new(regions).unwrap();
    assert_eq!(memory.len(), 3);
    let cases: &[(u64, u64, Option<&[usize]>)] = &[
        (a, 1, Some(&[1])),
        (a, 0x10000, Some(&[0x10000])),
        (a + 0xffff, 1, Some(&[1])),
        (a + 0xffff, 2, Some(&[1, 1])),
        (a, 0x20000, Some(&[0x10000, 0x10000])),
        (c + 0xfff, 1, Some(&[1])),
        (a, 0, None),
        (a - 1, 1, None),
        (a - 1, 2, None),
        (a, 0x20001, None),
        (b + 0xffff, 2, None),
        (c, 0x1001, None),
        (c + 0x1000, 1, None),
        (0x30000, 1, None),
        (0, 1, None),
        (0, u64::MAX, None),
        (u64::MAX, 1, None),
        (u64::MAX, u64::MAX, None),
        (a, u64::MAX, None),
        (a, u64::MAX - a, None),
    ];
    for (addr, len, expected) in cases {
        // Whatever was hit before, and a hint that is nonsense, make no difference.
        for start in [0, 1, 2, 3, usize::MAX] {
            let mut hint = start;
            let found = pieces(&memory, &mut hint, *addr, *len);
            assert_eq!(found.as_deref(), *expected, "{addr:#x} {len:#x} from {start}");
        }
    }
}

#[test]
fn translation_agrees_with_a_plain_model() {
    // Regions of 1 to 4 pages at random places; a byte-wise table says what is where.
    for seed in 1..50u64 {
        let mut state = seed;
        let mut random = move |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % bound
        };
        let mut model = [false; 64];
        let mut regions = Vec::new();
        let mut page = 0;
        while page < 60 {
            let pages = 1 + random(4);
            regions.push(region(page * 4096, pages * 4096));
            model[page as usize..(page + pages) as usize].fill(true);
            page += pages + random(3);
        }
        let memory = GuestMemory::new(regions).unwrap();
        let mut hint = 0;
        for _ in 0..300 {
            let (addr, len) = (random(64 * 4096), 1 + random(3 * 4096));
            let last = (addr + len - 1) / 4096;
            let expected = (addr / 4096..=last).all(|page| model.get(page as usize) == Some(&true));
            let found = pieces(&memory, &mut hint, addr, len);
            assert_eq!(found.is_some(), expected, "seed {seed}: {addr:#x} {len:#x}");
            let sum: usize = found.iter().flatten().sum();
            assert!(!expected || sum as u64 == len, "seed {seed}");
        }
    }
}

#[test]
fn copies_cross_regions_at_any_alignment() {
    let memory = GuestMemory::new(vec![region(0, 4096), region(4096, 4096)]).unwrap();
    for at in 4060..4100u64 {
        let data: Vec<u8> = (0..40).map(|i| (at as u8).wrapping_mul(3) ^ i).collect();
        assert!(memory.write(&mut 0, at, &data));
        let mut back = vec![0; 40];
        assert!(memory.read(&mut 0, at, &mut back));
        assert_eq!(back, data);
    }
    assert!(!memory.read(&mut 0, 8190, &mut [0; 3]));
    assert!(!memory.write(&mut 0, 8190, &[0; 3]));
}

#[test]
fn bad_regions_are_refused_with_a_sentence() {
    let max = u64::MAX;
    for (name, spec, len, words) in [
        ("empty", spec(0, 0, 0, 0), 4096, "is empty"),
        ("guest address wraps", spec(max - 10, 4096, 0, 0), 4096, "wraps"),
        ("user address wraps", spec(0, 4096, max - 10, 0), 4096, "wraps"),
        ("offset wraps", spec(0, 4096, 0, max - 10), 4096, "wraps"),
        ("size of 2^64 - 1", spec(0, max, 0, 0), 4096, "wraps"),
        ("size of 2^62", spec(0, 1 << 62, 0, 0), 4096, "its file has only 4096"),
        ("one byte too long", spec(0, 4097, 0, 0), 4096, "its file has only 4096"),
        ("offset one too far", spec(0, 4096, 0, 1), 4096, "its file has only 4096"),
        ("empty file", spec(0, 1, 0, 0), 0, "its file has only 0"),
    ] {
        let error = Region::map(spec, &file(len)).unwrap_err();
        assert!(error.to_string().contains(words), "{name}: {error}");
    }
    // What is no file at all, and what may not be written.
    let (pipe, _other_end) = std::io::pipe().unwrap();
    let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
    assert!(Region::map(spec(0, 4096, 0, 0), &pipe).is_err());
    let readonly = File::open("/proc/self/exe").unwrap();
    let error = Region::map(spec(0, 4096, 0, 0), &readonly).unwrap_err();
    assert!(error.to_string().contains("cannot map"), "{error}");
}

#[test]
fn tables_change_region_by_region() {
    let memory = GuestMemory::default();
    assert!(memory.is_empty());
    let first = region(0, 8192);
    let memory = memory.with(first.clone()).unwrap();
    for overlapping in [region(0, 4096), region(4096, 4096), region(4096, 8192)] {
        let error = memory.with(overlapping).unwrap_err();
        assert!(error.to_string().contains("overlap"), "{error}");
    }
    let second = region(8192, 4096);
    let both = memory.with(second.clone()).unwrap();
    // The offset is not compared, everything else is.
    let own = first.spec();
    assert!(both.without(&RegionSpec { size: own.size + 1, ..own }).is_err());
    assert!(both.without(&RegionSpec { guest_addr: 1, ..own }).is_err());
    assert!(both.without(&RegionSpec { user_addr: 1, ..own }).is_err());
    let left = both.without(&RegionSpec { offset: 77, ..own }).unwrap();
    assert_eq!(pieces(&left, &mut 0, 0, 1), None);
    assert_eq!(pieces(&left, &mut 0, 8192, 1), Some(vec![1]));
    // The region that stayed is the same mapping.
    assert!(both.write(&mut 0, 8192, b"x"));
    let mut back = [0];
    assert!(left.read(&mut 0, 8192, &mut back));
    assert_eq!(&back, b"x");
}

#[test]
fn too_many_regions_are_refused() {
    let one = file(4096);
    let regions: Vec<_> = (0..REGIONS_MAX as u64 + 1)
        .map(|i| Region::map(spec(i * 4096, 4096, i * 4096, 0), &one).unwrap())
        .collect();
    assert!(GuestMemory::new(regions[1..].to_vec()).is_ok());
    let error = GuestMemory::new(regions).unwrap_err();
    assert!(error.to_string().contains("at most 256"), "{error}");
}

#[test]
fn offsets_need_not_be_pages() {
    let shared = file(16384);
    let whole = Region::map(spec(0, 16384, 0, 0), &shared).unwrap();
    let part = Region::map(spec(0x100_0000, 5000, 0, 4999), &shared).unwrap();
    let memory = GuestMemory::new(vec![whole, part]).unwrap();
    assert!(memory.write(&mut 0, 4999, b"begin"));
    let mut back = [0; 5];
    assert!(memory.read(&mut 0, 0x100_0000, &mut back));
    assert_eq!(&back, b"begin");
}

#[test]
fn spans_lie_in_one_region_and_are_aligned() {
    let user = 0x7000_0000_0000;
    let memory = GuestMemory::new(vec![region(0, 4096), region(4096, 4096)]).unwrap();
    let found =
        |addr: u64, len: usize, align: usize| memory.span_by_user_addr(addr, len, align).is_some();
    assert!(found(user, 4096, 16) && found(user + 8, 8, 8) && found(user + 8190, 2, 2));
    assert!(!found(user, 4097, 16), "crosses into the next region");
    assert!(!found(user + 8, 16, 16), "misaligned");
    assert!(!found(user + 8190, 3, 2) && !found(user - 16, 16, 16) && !found(user, 0, 1));
    assert!(!found(u64::MAX - 15, 32, 16) && !found(u64::MAX, usize::MAX, 1));
    let span = memory.span_by_user_addr(user, 64, 16).unwrap();
    span.write_u64(8, 0x1122_3344_5566_7788);
    assert_eq!(
        (span.read_u32(8), span.read_u16(14), span.read_u8(15)),
        (0x5566_7788, 0x1122, 0x11)
    );
    span.store_release_u16(2, 0xabcd);
    assert_eq!(span.load_acquire_u16(2), 0xabcd);
    assert!(span.part(60, 8).is_none() && span.part(4, 8).is_none());
    assert!(span.part(usize::MAX, 8).is_none() && span.part(8, 0).is_none());
    let mut back = [0; 8];
    assert!(memory.read(&mut 0, 8, &mut back));
    assert_eq!(back, 0x1122_3344_5566_7788u64.to_le_bytes());
    // It outlives the table it was found in.
    drop(memory);
    assert_eq!(span.part(8, 8).unwrap().read_u64(0), 0x1122_3344_5566_7788);
}

#[test]
fn a_window_holds_what_lies_in_its_region_as_a_whole() {
    let (a, b) = (0x10000, 0x20000);
    let memory = GuestMemory::new(vec![region(a, 0x10000), region(b, 0x1000)]).unwrap();
    assert!(memory.window(&mut 0, a - 1).is_none() && memory.window(&mut 1, b + 0x1000).is_none());
    let mut hint = 1;
    let window = memory.window(&mut hint, a + 0xffff).unwrap();
    assert_eq!(hint, 0);
    let mut host = 0;
    assert!(memory.translate(&mut 0, a, 1, |seg| host = seg.addr));
    for (addr, len) in [(a, 1), (a, 0x10000), (a + 0xffff, 1), (a + 7, 100)] {
        let into = (addr - a) as usize;
        assert_eq!(window.seg(addr, len), Some(Seg { addr: host + into, len: len as usize }));
    }
    let bad = [
        (a, 0),
        (a - 1, 1),
        (a - 1, 2),
        (a, 0x10001),
        (a + 0xffff, 2),
        (a + 0x10000, 1),
        (b, 1),
        (0, u64::MAX),
        (a, u64::MAX),
        (u64::MAX, 1),
        (u64::MAX, u64::MAX),
    ];
    for (addr, len) in bad {
        assert_eq!(window.seg(addr, len), None, "{addr:#x} {len:#x}");
    }
    assert!(memory.write(&mut 0, b - 16, &[1, 0, 0, 0, 0, 0, 0, 2, 3, 0, 0, 0, 0, 0, 0, 4]));
    assert_eq!(window.words(b - 16), Some((0x200_0000_0000_0001, 0x400_0000_0000_0003)));
    assert!(window.words(b - 8).is_none() && window.words(a + 4).is_none());
    assert_eq!(memory.line(&mut 0, a + 5), host + 5);
    assert_eq!(memory.line(&mut 0, b + 0x1000), 0);
}

#[test]
fn pairs_of_words_end_with_the_span() {
    let memory = GuestMemory::new(vec![region(0, 4096)]).unwrap();
    let span = memory.span_by_user_addr(0x7000_0000_0000, 40, 8).unwrap();
    span.write_u64(16, 5);
    span.write_u32_pair(24, 6, 7);
    assert_eq!(span.pair(1), Some((5, 7 << 32 | 6)));
    assert!(span.pair(2).is_none() && span.pair(usize::MAX).is_none());
    span.store_ordered_u16(30, 0xabcd);
    assert_eq!(span.load_ordered_u16(30), 0xabcd);
}

#[test]
#[should_panic(expected = "outside")]
fn a_pair_of_values_stays_inside() {
    let memory = GuestMemory::new(vec![region(0, 4096)]).unwrap();
    memory.span_by_user_addr(0x7000_0000_0000, 40, 8).unwrap().write_u32_pair(36, 1, 2);
}

#[test]
#[should_panic(expected = "outside")]
fn a_span_is_never_left() {
    let memory = GuestMemory::new(vec![region(0, 4096)]).unwrap();
    memory.span_by_user_addr(0x7000_0000_0000, 64, 16).unwrap().read_u16(64);
}

#[test]
fn a_file_that_shrinks_is_noticed_and_survived() {
    let shared = file(3 * 4096);
    let region = Region::map(spec(0, 3 * 4096, 0, 0), &shared).unwrap();
    let other = Region::map(spec(1 << 30, 4096, 1 << 30, 0), &file(4096)).unwrap();
    let memory = GuestMemory::new(vec![region, other]).unwrap();
    let untouched = GuestMemory::new(vec![super::tests::region(0, 4096)]).unwrap();
    assert!(memory.write(&mut 0, 0, b"here"));
    shared.set_len(4096).unwrap();
    let mut back = [1; 4];
    assert!(memory.read(&mut 0, 0, &mut back), "what is left is still there");
    assert_eq!(&back, b"here");
    assert!(!memory.damaged());
    assert!(memory.read(&mut 0, 8192, &mut back), "beyond the end: survived");
    assert_eq!(back, [0; 4]);
    assert!(memory.damaged() && !untouched.damaged());
    assert!(memory.write(&mut 0, 8192, b"more"));
    assert!(memory.write(&mut 0, 1 << 30, b"fine"));
}

#[test]
fn many_threads_may_lose_memory_at_once() {
    let threads: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(|| {
                for _ in 0..50 {
                    let shared = file(2 * 4096);
                    let region = Region::map(spec(0, 2 * 4096, 0, 0), &shared).unwrap();
                    let memory = GuestMemory::new(vec![region]).unwrap();
                    shared.set_len(0).unwrap();
                    assert!(memory.write(&mut 0, 4096, &[1; 4096]));
                    assert!(memory.damaged());
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

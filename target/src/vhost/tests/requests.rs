//! Requests that are meant well: every kind, every layout, and what their life can run into.

use std::fs::File;

use lamina_bdev::{Op, Request, Seg, Status};

use super::disk::RamDisk;
use super::driver::{D, GUEST_BASE, REGION_BYTES, into, out, packed_bytes, split_bytes, table};
use super::rig::*;
use crate::reactor::look::look;
use crate::vhost::{ExportMsg, Negotiated, Reply, Submit, Taken};

fn both(test: impl Fn(bool)) {
    for packed in [false, true] {
        test(packed);
    }
}

#[test]
fn reads_and_writes_reach_the_disk_without_a_copy() {
    both(|packed| {
        let mut rig = Rig::new(packed);
        rig.prove(0, 0);
        rig.prove(1, 8);
        rig.prove(0, (DISK_BYTES / 512 - 8) as u64);
        let (request, segs) = rig.disk.seen[0];
        assert_eq!(request.cookie >> 48, u64::from(EXPORT));
        assert_eq!((request.op, request.offset, request.len), (Op::Write, 0, 4096));
        assert_eq!((request.handle, request.fua, segs), (config().handle, false, 1));
    });
}

#[test]
fn answers_on_the_spot_and_later_ones_mix() {
    both(|packed| {
        let mut rig = Rig::new(packed);
        rig.disk.at_once = true;
        for round in 0..40 {
            rig.prove(0, 8 * (round % 3));
            // Three in a batch: on the spot, later, on the spot after waiting for room.
            let before = rig.disk.seen.len();
            rig.offer(0, 1, WRITE, 8, 4096);
            rig.offer(0, 2, FLUSH, 0, 0);
            rig.offer(0, 3, READ, 8, 4096);
            rig.disk.room = 2;
            rig.turn();
            assert_eq!((rig.status(1), rig.status(2), rig.status(3)), (OK, OK, 0xee));
            assert_eq!(rig.export.in_flight(), 1, "what found no room waits");
            rig.disk.room = usize::MAX;
            rig.turn();
            assert_eq!(rig.status(3), OK);
            assert!(rig.export.idle());
            assert_eq!(rig.disk.seen.len(), before + 3);
            let lens: Vec<u32> = std::iter::from_fn(|| rig.used(0)).map(|(_, len)| len).collect();
            assert_eq!(lens, [1, 1, 4097]);
        }
    });
}

/// A disk before which it is seen what the guest of queue 0 knows when a request comes.
struct Watched<'a> {
    disk: &'a mut RamDisk,
    call: &'a File,
    /// Times that bytes were moved, and calls.
    moved: u32,
    called: u64,
    /// Of each request the queue, and the two counts when it came.
    seen: Vec<(u64, u32, u64)>,
}

impl Submit for Watched<'_> {
    fn submit(&mut self, request: &Request, segs: &[Seg]) -> Taken {
        self.called += signals(self.call);
        self.seen.push((request.cookie >> 16 & 0xffff, self.moved, self.called));
        self.disk.submit(request, segs)
    }

    fn finish(&mut self) {
        assert_eq!(self.called + signals(self.call), self.called, "told before bytes have moved");
        self.moved += 1;
    }
}

/// One look at both queues, after these requests were offered; what was seen of each, and the
/// counts at its end.
fn seen_by_look(rig: &mut Rig, offers: &[usize], counts: &mut (u32, u64)) -> Vec<(u64, u32, u64)> {
    for (n, queue) in offers.iter().enumerate() {
        rig.offer(*queue, n as u64, READ, n as u64, 512);
    }
    let Rig { export, disk, calls, .. } = rig;
    let (moved, called) = *counts;
    let mut watched = Watched { disk, call: &calls[0], moved, called, seen: vec![] };
    let took = look(&mut [None, Some(export)], &mut watched, 2);
    assert_eq!(took.chains, offers.len());
    let Watched { moved, called, seen, .. } = watched;
    *counts = (moved, called + signals(&calls[0]));
    seen
}

#[test]
fn a_guest_is_told_before_a_crowded_queue_is_looked_at() {
    both(|packed| {
        let mut rig = Rig::new(packed);
        rig.disk.at_once = true;
        let mut counts = (0, 0);
        let mut look = |offers: &[usize]| {
            let seen = seen_by_look(&mut rig, offers, &mut counts);
            // What is told is whole.
            for queue in 0..2 {
                let told = std::iter::from_fn(|| rig.used(queue)).count();
                assert_eq!(told, offers.iter().filter(|of| **of == queue).count());
            }
            (seen, counts)
        };
        // Nothing is known of queue 1 yet, so that it overlaps.
        let (seen, counts) = look(&[0, 0, 1, 1]);
        assert_eq!((seen, counts), (vec![(0, 0, 0), (0, 0, 0), (1, 0, 0), (1, 0, 0)], (1, 1)));
        // Now it is: bytes are moved, and queue 0 is told.
        let (seen, counts) = look(&[0, 1, 1]);
        assert_eq!((seen, counts), (vec![(0, 1, 1), (1, 2, 2), (1, 2, 2)], (3, 2)));
        let (seen, counts) = look(&[0, 1]);
        assert_eq!((seen, counts), (vec![(0, 3, 2), (1, 4, 3)], (5, 3)));
        // It had one request only: overlapped again.
        let (seen, counts) = look(&[0, 1]);
        assert_eq!((seen, counts), (vec![(0, 5, 3), (1, 5, 3)], (6, 4)));
        // Nobody waits to be told.
        let (seen, counts) = look(&[1, 1]);
        assert_eq!((seen, counts), (vec![(1, 6, 4), (1, 6, 4)], (7, 4)));
        assert_eq!(look(&[1]), (vec![(1, 7, 4)], (8, 4)));
    });
}

#[test]
fn no_guest_is_told_of_what_is_done_later() {
    both(|packed| {
        let (mut rig, mut counts) = (Rig::new(packed), (0, 0));
        for offers in [&[0, 0, 1, 1][..], &[0, 1]] {
            seen_by_look(&mut rig, offers, &mut counts);
            assert_eq!((counts.1, rig.used(0), rig.used(1)), (0, None, None));
        }
        assert_eq!(counts.0, 3, "queue 1 was crowded at the second look");
        rig.turn();
        assert_eq!(std::iter::from_fn(|| rig.used(0)).count(), 3);
        assert_eq!(std::iter::from_fn(|| rig.used(1)).count(), 3);
    });
}

#[test]
fn any_layout_is_understood() {
    both(|packed| {
        let p = parts(1);
        let data = p.data;
        // The same 1 KiB read, cut in every way VERSION_1 allows.
        let layouts: &[(&str, Vec<D>)] = &[
            ("usual", vec![out(p.header, 16), into(data, 1024), into(p.status, 1)]),
            (
                "header 8 + 8",
                vec![out(p.header, 8), out(p.header + 8, 8), into(data, 1024), into(p.status, 1)],
            ),
            (
                "header 1 + 3 + 12",
                vec![
                    out(p.header, 1),
                    out(p.header + 1, 3),
                    out(p.header + 4, 12),
                    into(data, 1024),
                    into(p.status, 1),
                ],
            ),
            ("data and status in one", vec![out(p.header, 16), into(data, 1025)]),
            (
                "status with the last data byte",
                vec![out(p.header, 16), into(data, 1023), into(data + 1023, 2)],
            ),
            (
                "data in four",
                vec![
                    out(p.header, 16),
                    into(data, 1),
                    into(data + 1, 510),
                    into(data + 511, 2),
                    into(data + 513, 511),
                    into(p.status, 1),
                ],
            ),
        ];
        for (name, chain) in layouts {
            let mut rig = Rig::new(packed);
            let expected: Vec<u8> = (0..1024u32).map(|i| i as u8 ^ 0x5a).collect();
            rig.disk.bytes[512..512 + 1024].copy_from_slice(&expected);
            rig.header(p, READ, 1);
            rig.ram.write(data, &[0; 1024]);
            rig.offer_raw(0, chain);
            rig.turn();
            let last = chain.last().unwrap();
            let status = rig.ram.read::<1>(last.addr + u64::from(last.len) - 1);
            assert_eq!(status, [OK], "{name}");
            assert_eq!(rig.used(0).map(|(_, len)| len), Some(1025), "{name}");
            let got = rig.ram.read_vec(data, 1023);
            assert_eq!(got, expected[..1023], "{name}");
        }
    });
}

#[test]
fn a_write_may_follow_its_header_in_one_descriptor() {
    both(|packed| {
        let mut rig = Rig::new(packed);
        let p = parts(1);
        rig.header(p, WRITE, 2);
        rig.ram.write(p.header + 16, &[7; 16]);
        // Header and the first 16 bytes of data, then 496 more elsewhere.
        rig.ram.write(p.data, &[9; 496]);
        rig.offer_raw(0, &[out(p.header, 32), out(p.data, 496), into(p.status, 1)]);
        rig.turn();
        assert_eq!(rig.status(1), OK);
        assert_eq!(rig.disk.bytes[1024..1040], [7; 16]);
        assert_eq!(rig.disk.bytes[1040..1536], [9; 496]);
    });
}

#[test]
fn buffers_across_regions_become_two_segments_and_adjacent_ones_become_one() {
    both(|packed| {
        let mut rig = Rig::new(packed);
        let p = parts(1);
        let border = GUEST_BASE + REGION_BYTES;
        rig.disk.bytes[..1024].fill(0x33);
        rig.header(p, READ, 0);
        rig.offer_raw(0, &[out(p.header, 16), into(border - 512, 1024), into(p.status, 1)]);
        rig.header(parts(2), READ, 0);
        let d = parts(2).data;
        rig.offer_raw(
            0,
            &[out(parts(2).header, 16), into(d, 512), into(d + 512, 512), into(parts(2).status, 1)],
        );
        rig.turn();
        assert_eq!((rig.status(1), rig.status(2)), (OK, OK));
        assert_eq!(rig.ram.read_vec(border - 512, 1024), [0x33; 1024]);
        assert_eq!((rig.disk.seen[0].1, rig.disk.seen[1].1), (2, 1));
    });
}

#[test]
fn indirect_tables_work_longer_than_the_ring_too() {
    both(|packed| {
        let mut rig = Rig::new(packed);
        let p = parts(1);
        rig.header(p, WRITE, 0);
        rig.ram.write(p.data, &(0..60 * 128).map(|i| (i / 128) as u8).collect::<Vec<u8>>());
        // 60 pieces of 128 bytes in descending order of address: none can be merged.
        let mut entries = vec![out(p.header, 16)];
        entries.extend((0..60).rev().map(|i| out(p.data + i * 128, 128)));
        entries.push(into(p.status, 1));
        let at = parts(3).data;
        for (i, entry) in (0u16..).zip(&entries) {
            let more = usize::from(i) + 1 < entries.len();
            let entry = D { flags: entry.flags | u16::from(more && !packed), ..*entry };
            let bytes = if packed { packed_bytes(entry, 0) } else { split_bytes(entry, i + 1) };
            rig.ram.write(at + 16 * u64::from(i), &bytes);
        }
        rig.offer_raw(0, &[table(at, 16 * entries.len() as u32)]);
        rig.turn();
        assert_eq!(rig.status(1), OK);
        assert_eq!(rig.disk.seen[0].1, 60);
        assert_eq!((rig.disk.bytes[0], rig.disk.bytes[128], rig.disk.bytes[59 * 128]), (59, 58, 0));
        assert_eq!(rig.used(0).map(|(_, len)| len), Some(1));
        rig.prove(0, 32);
    });
}

#[test]
fn flush_get_id_and_unknown_types() {
    both(|packed| {
        let mut rig = Rig::new(packed);
        assert_eq!(rig.run(0, 1, FLUSH, 0, 0), (OK, 1));
        assert_eq!(rig.disk.seen[0].0.op, Op::Flush);
        // A sector on a flush means nothing and hurts nothing.
        assert_eq!(rig.run(0, 1, FLUSH, 99, 0), (OK, 1));
        rig.ram.write(parts(1).data, &[0xff; 32]);
        assert_eq!(rig.run(0, 1, GET_ID, 0, 20), (OK, 21));
        assert_eq!(&rig.ram.read::<21>(parts(1).data), b"lamina-test-disk\0\0\0\0\xff");
        assert_eq!(rig.run(0, 1, GET_ID, 0, 6), (OK, 7));
        assert_eq!(rig.run(0, 1, GET_ID, 0, 32), (OK, 21));
        for kind in [2, 3, 7, 9, 14, 15, 24, 1 << 31, u32::MAX] {
            assert_eq!(rig.run(0, 1, kind, 0, 512), (UNSUPP, 1), "type {kind}");
        }
        rig.prove(0, 0);
    });
}

fn ranges(pieces: &[(u64, u32, u32)]) -> Vec<u8> {
    pieces
        .iter()
        .flat_map(|(sector, sectors, flags)| {
            let mut bytes = sector.to_le_bytes().to_vec();
            bytes.extend(sectors.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes
        })
        .collect()
}

#[test]
fn discard_and_write_zeroes_split_into_ranges() {
    both(|packed| {
        let mut rig = Rig::new(packed);
        let end = (DISK_BYTES / 512) as u64;
        let cases: &[(&str, u32, Vec<u8>, u8, usize)] = &[
            ("one", DISCARD, ranges(&[(8, 8, 0)]), OK, 1),
            ("three", DISCARD, ranges(&[(0, 1, 0), (8, 8, 0), (end - 1, 1, 0)]), OK, 3),
            ("zeroes", WRITE_ZEROES, ranges(&[(0, 16, 0)]), OK, 1),
            ("zeroes, unmap", WRITE_ZEROES, ranges(&[(0, 16, 1)]), OK, 1),
            ("sixteen", WRITE_ZEROES, ranges(&[(0, 1, 0); 16]), OK, 16),
            ("seventeen", WRITE_ZEROES, ranges(&[(0, 1, 0); 17]), IOERR, 0),
            ("nothing", DISCARD, ranges(&[(5, 0, 0)]), OK, 0),
            ("no range", DISCARD, vec![], IOERR, 0),
            ("half a range", DISCARD, vec![0; 8], IOERR, 0),
            ("range and a half", DISCARD, vec![0; 24], IOERR, 0),
            ("past the end", DISCARD, ranges(&[(end - 1, 2, 0)]), IOERR, 0),
            ("one good, one bad", DISCARD, ranges(&[(0, 8, 0), (end, 1, 0)]), IOERR, 0),
            ("sector overflow", DISCARD, ranges(&[(u64::MAX / 512 + 1, 8, 0)]), IOERR, 0),
            ("end overflow", DISCARD, ranges(&[(u64::MAX / 512, 8, 0)]), IOERR, 0),
            ("2^32 - 1 sectors", DISCARD, ranges(&[(0, u32::MAX, 0)]), IOERR, 0),
            ("discard with unmap", DISCARD, ranges(&[(0, 8, 1)]), UNSUPP, 0),
            ("reserved flag", WRITE_ZEROES, ranges(&[(0, 8, 2)]), UNSUPP, 0),
            ("all flags", DISCARD, ranges(&[(0, 8, u32::MAX)]), UNSUPP, 0),
        ];
        for (name, kind, data, status, requests) in cases {
            rig.disk.seen.clear();
            rig.ram.write(parts(1).data, if data.is_empty() { &[0] } else { data });
            let result = rig.run(0, 1, *kind, 0, data.len() as u32);
            assert_eq!(result, (*status, 1), "{name}");
            assert_eq!(rig.disk.seen.len(), *requests, "{name}");
        }
        rig.prove(0, 0);
    });
}

#[test]
fn ranges_may_be_cut_anywhere_and_are_cleared_on_disk() {
    let mut rig = Rig::new(false);
    rig.disk.bytes.fill(0xab);
    let p = parts(1);
    rig.header(p, DISCARD, 0);
    rig.ram.write(p.data, &ranges(&[(2, 1, 0), (4, 2, 0)]));
    rig.offer_raw(
        0,
        &[
            out(p.header, 16),
            out(p.data, 5),
            out(p.data + 5, 20),
            out(p.data + 25, 7),
            into(p.status, 1),
        ],
    );
    rig.turn();
    assert_eq!(rig.status(1), OK);
    let seen: Vec<_> = rig.disk.seen.iter().map(|(r, _)| (r.op, r.offset, r.len)).collect();
    assert_eq!(seen, [(Op::Discard, 1024, 512), (Op::Discard, 2048, 1024)]);
    assert_eq!((rig.disk.bytes[1023], rig.disk.bytes[1024], rig.disk.bytes[1536]), (0xab, 0, 0xab));
}

#[test]
fn features_not_negotiated_are_unsupported() {
    let negotiated = Negotiated { discard: false, write_zeroes: false, ..all_features(false) };
    let mut rig = Rig::with(config(), negotiated, 16);
    rig.ram.write(parts(1).data, &ranges(&[(0, 8, 0)]));
    assert_eq!(rig.run(0, 1, DISCARD, 0, 16), (UNSUPP, 1));
    assert_eq!(rig.run(0, 1, WRITE_ZEROES, 0, 16), (UNSUPP, 1));
    assert!(rig.disk.seen.is_empty());
}

#[test]
fn a_read_only_disk_refuses_every_kind_of_write() {
    both(|packed| {
        let mut readonly = config();
        readonly.readonly = true;
        let mut rig = Rig::with(readonly, all_features(packed), 16);
        rig.ram.write(parts(1).data, &ranges(&[(0, 8, 0)]));
        assert_eq!(rig.run(0, 1, WRITE, 0, 512), (IOERR, 1));
        assert_eq!(rig.run(0, 1, DISCARD, 0, 16), (IOERR, 1));
        assert_eq!(rig.run(0, 1, WRITE_ZEROES, 0, 16), (IOERR, 1));
        assert!(rig.disk.seen.is_empty());
        assert_eq!(rig.run(0, 1, READ, 0, 512), (OK, 513));
        assert_eq!(rig.run(0, 1, FLUSH, 0, 0), (OK, 1));
    });
}

#[test]
fn writes_carry_fua_exactly_when_the_driver_cannot_or_need_not_flush() {
    for (flush, config_wce, cache, fua) in [
        (true, true, true, false),
        (true, true, false, true),
        (true, false, false, false),
        (true, false, true, false),
        (false, false, true, true),
        (false, true, true, true),
    ] {
        let negotiated = Negotiated { flush, config_wce, ..all_features(false) };
        let mut rig = Rig::with(config(), negotiated, 16);
        rig.export.message(ExportMsg::WriteCache { on: cache, done: Reply::pair().0 });
        assert_eq!(rig.run(0, 1, WRITE, 0, 512), (OK, 1));
        assert_eq!(rig.run(0, 2, READ, 0, 512), (OK, 513));
        assert_eq!(rig.disk.seen[0].0.fua, fua, "{negotiated:?} {cache}");
        assert!(!rig.disk.seen[1].0.fua);
    }
}

#[test]
fn the_end_of_the_disk_moves_with_a_resize() {
    let mut rig = Rig::new(false);
    let end = (DISK_BYTES / 512) as u64;
    assert_eq!(rig.run(0, 1, READ, end - 1, 1024), (IOERR, 1));
    assert_eq!(rig.run(0, 1, READ, end, 512), (IOERR, 1));
    rig.export.message(ExportMsg::Resize { bytes: 512 * 4, done: Reply::pair().0 });
    assert_eq!(rig.run(0, 1, READ, 4, 512), (IOERR, 1));
    assert_eq!(rig.run(0, 1, READ, 3, 512), (OK, 513));
    rig.export.message(ExportMsg::Resize { bytes: DISK_BYTES as u64, done: Reply::pair().0 });
    assert_eq!(rig.run(0, 1, READ, end - 1, 512), (OK, 513));
}

#[test]
fn every_failure_of_the_engine_is_an_io_error() {
    for status in [
        Status::IoError,
        Status::NoSpace,
        Status::ReadOnly,
        Status::OutOfRange,
        Status::Corrupt,
        Status::Invalid,
        Status::Detached,
    ] {
        let mut rig = Rig::new(true);
        rig.disk.status = status;
        assert_eq!(rig.run(0, 1, READ, 0, 4096), (IOERR, 1), "{status:?}");
        rig.disk.status = Status::Ok;
        rig.prove(0, 0);
    }
}

#[test]
fn a_full_engine_loses_nothing() {
    both(|packed| {
        let mut rig = Rig::new(packed);
        rig.disk.room = 1;
        let ids: Vec<u16> = (0..5).map(|n| rig.offer(0, n, WRITE, n, 512)).collect();
        rig.turn_without_completions();
        rig.turn_without_completions();
        assert_eq!((rig.disk.seen.len(), rig.export.in_flight()), (1, 2));
        assert!(!rig.export.prepare_sleep(), "a request waits for room");
        rig.disk.room = usize::MAX;
        rig.turn();
        let mut back: Vec<u16> = std::iter::from_fn(|| rig.used(0)).map(|(id, _)| id).collect();
        back.sort_unstable();
        let mut ids = ids;
        ids.sort_unstable();
        assert_eq!(back, ids);
        assert_eq!(rig.disk.seen.len(), 5);
    });
}

#[test]
fn a_discard_cut_short_by_a_full_engine_goes_on_where_it_was() {
    both(|packed| {
        let mut rig = Rig::new(packed);
        rig.ram.write(parts(1).data, &ranges(&[(0, 1, 0), (2, 1, 0), (4, 1, 0)]));
        rig.offer(0, 1, DISCARD, 0, 48);
        rig.disk.room = 2;
        // Both pieces that fit are done before the third is accepted: no answer yet.
        rig.turn();
        assert_eq!((rig.used(0), rig.export.in_flight()), (None, 1));
        rig.disk.room = usize::MAX;
        rig.turn();
        assert_eq!(rig.used(0).map(|(_, len)| len), Some(1));
        let offsets: Vec<u64> = rig.disk.seen.iter().map(|(request, _)| request.offset).collect();
        assert_eq!(offsets, [0, 1024, 2048]);
        assert!(rig.export.idle());
    });
}

#[test]
fn one_failed_piece_fails_the_discard() {
    let mut rig = Rig::new(false);
    rig.ram.write(parts(1).data, &ranges(&[(0, 1, 0), (2, 1, 0)]));
    let id = rig.offer(0, 1, DISCARD, 0, 32);
    rig.export.poll_into(&mut rig.disk);
    let (cookie, _) = rig.disk.take_done().unwrap();
    rig.export.complete(cookie, Status::IoError);
    let (cookie, _) = rig.disk.take_done().unwrap();
    rig.export.complete(cookie, Status::Ok);
    rig.export.end_turn();
    assert_eq!(rig.used(0), Some((id, 1)));
    assert_eq!(rig.status(1), IOERR);
}

#[test]
fn a_queue_stops_only_when_drained_and_says_where_it_stands() {
    both(|packed| {
        let mut rig = Rig::new(packed);
        rig.offer(0, 1, WRITE, 0, 512);
        rig.offer(0, 2, WRITE, 1, 512);
        rig.turn_without_completions();
        let answer = rig.stop(0, true);
        rig.offer(0, 3, WRITE, 2, 512);
        rig.turn_without_completions();
        assert!(is_pending(&answer));
        // Queue 1 goes on meanwhile; its turn also finishes queue 0's requests.
        rig.prove(1, 8);
        let stopped = answer.try_recv().unwrap();
        assert!(stopped.queue.is_some() && stopped.fault.is_none());
        assert_eq!(rig.export.queues(), 1);
        // The third request was never taken: the base points at it.
        let expected = if packed { 6 | 0x8000 | (6 | 0x8000) << 16 } else { 2 };
        assert_eq!(stopped.base, expected);
        assert_eq!(rig.disk.seen.iter().filter(|(r, _)| r.offset == 1024).count(), 0);
        let again = rig.stop(0, true);
        assert!(again.try_recv().unwrap().queue.is_none(), "stopped twice is stopped");
    });
}

#[test]
fn memory_stays_until_the_requests_on_it_are_done() {
    both(|packed| {
        let mut rig = Rig::new(packed);
        rig.disk.bytes[..512].fill(0x77);
        rig.offer(0, 1, READ, 0, 512);
        rig.turn_without_completions();
        let memory = super::driver::Ram::map(&rig.ram.files);
        let rings =
            (0..2u16).map(|i| (i, Some(rig.drivers[usize::from(i)].spans(&memory)))).collect();
        let (done, answer) = Reply::pair();
        rig.export.message(ExportMsg::Memory { memory: memory.clone(), rings, done });
        assert!(is_pending(&answer));
        // New requests already run on the new table.
        rig.offer(1, 2, READ, 0, 512);
        rig.export.poll_into(&mut rig.disk);
        let (cookie, status) = rig.disk.take_done_last().unwrap();
        rig.export.complete(cookie, status);
        rig.export.end_turn();
        assert_eq!(rig.status(2), OK);
        assert!(is_pending(&answer));
        rig.turn();
        assert_eq!(answer.try_recv(), Ok(()));
        assert_eq!(rig.status(1), OK);
        assert_eq!(rig.ram.read_vec(parts(1).data, 512), [0x77; 512]);
        rig.memory = memory;
        assert!(rig.used(0).is_some() && rig.used(1).is_some());
        rig.prove(0, 0);
    });
}

#[test]
fn a_disabled_queue_is_left_alone() {
    let mut rig = Rig::new(false);
    let (done, answer) = Reply::pair();
    rig.export.message(ExportMsg::Enable { queue: 0, enabled: false, done });
    answer.try_recv().unwrap();
    rig.offer(0, 1, READ, 0, 512);
    assert!(!rig.turn());
    assert!(rig.export.prepare_sleep());
    let (done, answer) = Reply::pair();
    rig.export.message(ExportMsg::Enable { queue: 0, enabled: true, done });
    answer.try_recv().unwrap();
    rig.export.woken();
    rig.turn();
    assert_eq!(rig.status(1), OK);
}

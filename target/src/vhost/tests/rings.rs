//! The rings themselves: wrapping, order, calls and kicks.

use super::driver::{Calls, Driver, GUEST_BASE};
use super::rig::*;
use crate::vhost::Negotiated;
use crate::vhost::vring::{QUEUE_SIZE_MAX, RingFeatures};

/// A small generator, so that a failing run is a seed.
struct Random(u64);

impl Random {
    fn next(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn event_idx(packed: bool) -> Negotiated {
    let ring = RingFeatures { packed, event_idx: true, indirect: true };
    Negotiated { ring, ..all_features(packed) }
}

#[test]
fn split_indices_wrap() {
    for start in [0xfff0u16, 0xfffe, 0xffff, 0x7ff0] {
        let mut rig = Rig::idle(config(), all_features(false));
        let driver = Driver::new(&rig.ram, GUEST_BASE, 16, all_features(false).ring, start);
        rig.drivers.push(driver);
        rig.start(0, None).unwrap();
        for n in 0..70 {
            assert_eq!(rig.run(0, 1, WRITE, n % 8, 512), (OK, 1), "start {start:#x}, request {n}");
        }
        let stopped = rig.stop(0, true);
        rig.turn();
        assert_eq!(stopped.try_recv().unwrap().base, u32::from(start.wrapping_add(70)));
    }
}

#[test]
fn packed_positions_wrap_with_chains_across_the_end() {
    // Three descriptors a request: in a ring of 16 or 5 every cut at the end occurs.
    for size in [16, 7, 5, 3] {
        let mut rig = Rig::with(config(), all_features(true), size);
        for n in 0..200 {
            assert_eq!(rig.run(0, 1, WRITE, n % 8, 512), (OK, 1), "size {size}, request {n}");
        }
        let stopped = rig.stop(0, true);
        rig.turn();
        let first_lap = (600 / u32::from(size)).is_multiple_of(2);
        let at = (600 % u32::from(size)) | (u32::from(first_lap) << 15);
        assert_eq!(stopped.try_recv().unwrap().base, at | at << 16);
    }
}

#[test]
fn a_queue_goes_on_from_its_base_after_a_stop() {
    for packed in [false, true] {
        let mut rig = Rig::new(packed);
        for round in 0..20 {
            for n in 0..3 {
                assert_eq!(rig.run(0, n, WRITE, n, 512), (OK, 1), "round {round}");
            }
            let stopped = rig.stop(0, true);
            rig.turn();
            let base = stopped.try_recv().unwrap().base;
            assert_eq!(base, rig.drivers[0].base(), "round {round}");
            rig.start(0, None).unwrap();
        }
    }
}

#[test]
fn random_traffic_comes_back_exactly_once_in_any_order() {
    for seed in 1..=40u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let packed = seed % 2 == 0;
        let features = if seed % 3 == 0 { event_idx(packed) } else { all_features(packed) };
        let size = if packed { 3 + random.next(40) as u16 } else { 4 << random.next(4) };
        let mut rig = Rig::with(config(), features, size);
        let mut in_flight: Vec<(u16, u64)> = Vec::new();
        let mut numbers: Vec<u64> = (0..64).collect();
        let mut finished = 0;
        for _ in 0..600 {
            while in_flight.len() < usize::from(size / 3) && random.next(3) > 0 {
                let n = numbers.swap_remove(random.next(numbers.len() as u64) as usize);
                let kind = if random.next(2) == 0 { READ } else { WRITE };
                let len = 512 * (1 + random.next(8)) as u32;
                let id = rig.offer(0, n, kind, random.next(1000), len);
                in_flight.push((id, n));
            }
            rig.export.poll_into(&mut rig.disk);
            for _ in 0..random.next(6) {
                let last = random.next(2) == 0;
                let done = if last { rig.disk.take_done_last() } else { rig.disk.take_done() };
                let Some((cookie, status)) = done else { break };
                rig.export.complete(cookie, status);
            }
            rig.export.end_turn();
            while let Some((id, _)) = rig.used(0) {
                let at = in_flight.iter().position(|(known, _)| *known == id);
                let (_, n) = in_flight.swap_remove(at.unwrap_or_else(|| panic!("seed {seed}")));
                assert_eq!(rig.status(n), OK, "seed {seed}");
                numbers.push(n);
                finished += 1;
            }
            assert!(rig.export.in_flight() as usize <= in_flight.len(), "seed {seed}");
        }
        rig.turn();
        while let Some((id, _)) = rig.used(0) {
            in_flight.retain(|(known, _)| *known != id);
            finished += 1;
        }
        assert!(in_flight.is_empty() && rig.export.idle(), "seed {seed}: {in_flight:?}");
        assert!(finished > 100, "seed {seed}: only {finished}");
    }
}

#[test]
fn one_call_a_turn_and_none_if_not_wanted() {
    for packed in [false, true] {
        let mut rig = Rig::new(packed);
        for n in 0..4 {
            rig.offer(0, n, WRITE, n, 512);
        }
        rig.turn();
        assert_eq!(signals(&rig.calls[0]), 1, "packed {packed}: four used, one call");
        assert_eq!(std::iter::from_fn(|| rig.used(0)).count(), 4);
        rig.drivers[0].want_calls(&rig.ram, Calls::Never);
        rig.run(0, 1, WRITE, 0, 512);
        assert_eq!(signals(&rig.calls[0]), 0);
        rig.drivers[0].want_calls(&rig.ram, Calls::Always);
        rig.run(0, 1, WRITE, 0, 512);
        assert_eq!(signals(&rig.calls[0]), 1);
        rig.turn();
        assert_eq!((signals(&rig.calls[0]), signals(&rig.calls[1])), (0, 0), "nothing to say");
    }
}

#[test]
fn event_index_calls_at_the_entry_asked_for() {
    for packed in [false, true] {
        let mut rig = Rig::with(config(), event_idx(packed), 16);
        // Requests take three descriptors; laps of 16 make the event wrap at every distance.
        let unit = if packed { 3 } else { 1 };
        for round in 0..50 {
            rig.drivers[0].want_calls(&rig.ram, Calls::At(2 * unit));
            signals(&rig.calls[0]);
            for request in 0..4 {
                rig.run(0, 1, WRITE, 0, 512);
                let expected = u64::from(request == 2);
                assert_eq!(
                    signals(&rig.calls[0]),
                    expected,
                    "packed {packed}, round {round}, request {request}"
                );
            }
        }
    }
}

#[test]
fn sleeping_asks_for_kicks_and_misses_none() {
    for packed in [false, true] {
        for features in [all_features(packed), event_idx(packed)] {
            let mut rig = Rig::with(config(), features, 16);
            let unit = if packed { 3 } else { 1 };
            for round in 0..40 {
                // Polling: the driver need not kick (the first entry of a new ring apart, which
                // the event index, zero as it is, always asks for).
                rig.offer(0, 1, WRITE, 0, 512);
                assert!(
                    round == 0 || !rig.drivers[0].kick_wanted(&rig.ram, unit),
                    "{features:?} {round}"
                );
                assert!(!rig.export.prepare_sleep(), "work is waiting");
                rig.turn();
                rig.used(0).unwrap();
                // Asleep: it must.
                assert!(rig.export.prepare_sleep());
                rig.offer(0, 1, WRITE, 0, 512);
                assert!(rig.drivers[0].kick_wanted(&rig.ram, unit), "{features:?} {round}");
                rustix::io::write(&rig.kicks[0], &1u64.to_ne_bytes()).unwrap();
                rig.export.woken();
                assert_eq!(signals(&rig.kicks[0]), 1, "no system call for an edge");
                rig.turn();
                rig.used(0).unwrap();
            }
        }
    }
}

#[test]
fn a_queue_without_a_kick_is_polled_for_ever() {
    let mut rig = Rig::new(false);
    assert_eq!(rig.export.kick_fds().count(), 2);
    let before = rig.export.kick_changes();
    let (done, answer) = crate::vhost::Reply::pair();
    rig.export.message(crate::vhost::ExportMsg::Event {
        queue: 0,
        kind: crate::vhost::EventKind::Kick,
        event: None,
        done,
    });
    assert!(answer.try_recv().unwrap().is_some(), "the old one comes back");
    assert_ne!(rig.export.kick_changes(), before);
    assert_eq!(rig.export.kick_fds().count(), 1);
    assert!(!rig.export.prepare_sleep());
}

#[test]
fn the_largest_ring_takes_no_more_than_a_batch_a_turn() {
    let mut rig = Rig::with(config(), all_features(false), QUEUE_SIZE_MAX);
    for n in 0..40 {
        rig.offer(0, n, WRITE, n, 512);
        rig.offer(1, n + 40, WRITE, n, 512);
    }
    rig.turn();
    assert_eq!(rig.disk.seen.len(), 64, "32 from each of two queues");
    rig.turn();
    assert_eq!(rig.disk.seen.len(), 80);
}

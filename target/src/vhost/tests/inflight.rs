//! The in-flight log: a daemon dies at any step, the next one answers every request exactly once.
//!
//! A "death" here drops the export as it stands: the ring and the log keep what was stored. Deaths
//! between the stores of one publish are made by hand, field by field.

use std::collections::HashMap;
use std::fs::File;

use super::driver::{Driver, GUEST_BASE};
use super::rig::*;
use crate::mem::guest::GuestSpan;
use crate::vhost::vring::{Fault, QUEUE_SIZE_MAX};
use crate::vhost::{BlkExport, ExportMsg, InflightLog, LogShape, Reply};

const SIZE: u16 = 16;
const SHAPE: LogShape = LogShape { queues: 2, queue_size: SIZE };

/// A log as a front-end keeps it.
struct Kept {
    file: File,
    packed: bool,
}

impl Kept {
    fn new(packed: bool) -> Kept {
        Kept { file: InflightLog::create(SHAPE, packed, 4).unwrap(), packed }
    }

    fn map(&self) -> InflightLog {
        InflightLog::map(SHAPE, 4, &self.file, 0, SHAPE.bytes(self.packed)).unwrap()
    }

    /// Queue 0's part, to look into and to break.
    fn raw(&self) -> GuestSpan {
        GuestSpan::map(&self.file, 0, SHAPE.bytes(self.packed)).unwrap()
    }
}

/// A rig with queue 0 running on a log.
fn rig_with_log(kept: &Kept) -> Rig {
    let negotiated = all_features(kept.packed);
    let mut rig = Rig::idle(config(), negotiated);
    let driver = Driver::new(&rig.ram, GUEST_BASE, SIZE, negotiated.ring, 0);
    rig.drivers.push(driver);
    rig.start(0, Some(&kept.map())).unwrap();
    rig
}

/// SIGKILL, and a new daemon on the same ring. The front-end's idea of the base is whatever it is.
fn die_and_restart(rig: &mut Rig, kept: &Kept) -> Result<(), Fault> {
    rig.disk.die();
    rig.export = BlkExport::new(config());
    rig.export.message(ExportMsg::Features(all_features(kept.packed)));
    let (done, answer) = Reply::pair();
    let memory = rig.memory.clone();
    rig.export.message(ExportMsg::Memory { memory, rings: Vec::new(), done });
    answer.try_recv().unwrap();
    rig.start(0, Some(&kept.map()))
}

#[test]
fn what_was_in_flight_is_served_again_in_order_slot_0_included() {
    for packed in [false, true] {
        let kept = Kept::new(packed);
        let mut rig = rig_with_log(&kept);
        // One request of the five is answered before the crash: not the first.
        let ids: Vec<u16> = (0..5).map(|n| rig.offer(0, n, WRITE, 10 + n, 512)).collect();
        assert!(ids.contains(&0), "head 0 is among them");
        rig.export.poll_into(&mut rig.disk);
        rig.export.complete(rig.disk.seen[3].0.cookie, lamina_bdev::Status::Ok);
        rig.export.end_turn();
        assert_eq!(rig.used(0), Some((ids[3], 1)));

        die_and_restart(&mut rig, &kept).unwrap();
        rig.disk.seen.clear();
        let next = rig.offer(0, 7, WRITE, 20, 512);
        rig.turn();
        let sectors: Vec<u64> = rig.disk.seen.iter().map(|(r, _)| r.offset / 512).collect();
        assert_eq!(sectors, [10, 11, 12, 14, 20], "packed {packed}");
        let back: Vec<u16> = std::iter::from_fn(|| rig.used(0)).map(|(id, _)| id).collect();
        assert_eq!(back, [ids[0], ids[1], ids[2], ids[4], next], "packed {packed}");
        assert!((0..5).all(|n| rig.status(n) == OK));
        rig.prove(0, 0);
    }
}

#[test]
fn random_deaths_lose_nothing_and_repeat_nothing() {
    for seed in 1..=120u64 {
        let packed = seed % 2 == 0;
        let mut state = seed;
        let mut random = move |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            (state >> 33) % bound
        };
        let kept = Kept::new(packed);
        let mut rig = rig_with_log(&kept);
        let mut waiting: HashMap<u16, u64> = HashMap::new();
        let mut numbers: Vec<u64> = (0..20).collect();
        let (mut offered, mut answered) = (0, 0);
        for _ in 0..1500 {
            match random(8) {
                0..=2 if waiting.len() < 5 => {
                    let n = numbers.swap_remove(random(numbers.len() as u64) as usize);
                    let id = rig.offer(0, n, WRITE, random(64), 512);
                    assert!(waiting.insert(id, n).is_none());
                    offered += 1;
                }
                // Taken, partly done, published or not, in any combination.
                3 => {
                    rig.export.poll_into(&mut rig.disk);
                }
                4..=5 => {
                    if let Some((cookie, status)) = rig.disk.take_done_last() {
                        rig.export.complete(cookie, status);
                    }
                }
                6 => rig.export.end_turn(),
                _ if random(3) == 0 => die_and_restart(&mut rig, &kept).unwrap(),
                _ => {}
            }
            while let Some((id, len)) = rig.used(0) {
                let n = waiting.remove(&id).unwrap_or_else(|| panic!("seed {seed}: {id} twice"));
                assert_eq!((rig.status(n), len), (OK, 1), "seed {seed}");
                numbers.push(n);
                answered += 1;
            }
        }
        die_and_restart(&mut rig, &kept).unwrap();
        rig.turn();
        while let Some((id, _)) = rig.used(0) {
            assert!(waiting.remove(&id).is_some(), "seed {seed}: {id} twice");
            answered += 1;
        }
        assert!(waiting.is_empty(), "seed {seed}: {waiting:?} never came back");
        assert_eq!(offered, answered, "seed {seed}");
        assert!(offered > 20, "seed {seed}");
    }
}

/// Byte offsets in the split log, as the vhost-user text has them.
mod split {
    pub(super) const LAST_BATCH_HEAD: usize = 12;
    pub(super) const USED_IDX: usize = 14;
    pub(super) fn inflight(head: u16) -> usize {
        16 + 16 * usize::from(head)
    }
    pub(super) fn next(head: u16) -> usize {
        22 + 16 * usize::from(head)
    }
}

#[test]
fn split_death_between_publishing_and_clearing_answers_nothing_twice() {
    // Two requests done and visible to the guest; the crash came before 0, 1 or 2 of the two notes
    // were cleared, and before the log's own index moved.
    for cleared in 0..=2 {
        let kept = Kept::new(false);
        let mut rig = rig_with_log(&kept);
        let ids: Vec<u16> = (0..3).map(|n| rig.offer(0, n, WRITE, n, 512)).collect();
        rig.export.poll_into(&mut rig.disk);
        for i in 0..2 {
            rig.export.complete(rig.disk.seen[i].0.cookie, lamina_bdev::Status::Ok);
        }
        rig.export.end_turn();
        let raw = kept.raw();
        assert_eq!(raw.read_u16(split::USED_IDX), 2);
        raw.write_u16(split::USED_IDX, 0);
        for id in &ids[cleared..2] {
            raw.write_u8(split::inflight(*id), 1);
        }
        die_and_restart(&mut rig, &kept).unwrap();
        rig.disk.seen.clear();
        rig.turn();
        assert_eq!(rig.disk.seen.len(), 1, "cleared {cleared}: only the third is served again");
        let back: Vec<u16> = std::iter::from_fn(|| rig.used(0)).map(|(id, _)| id).collect();
        assert_eq!(back, ids, "cleared {cleared}");
        rig.prove(0, 0);
    }
}

#[test]
fn split_death_before_publishing_serves_again() {
    // Used entries written and linked, but the index was not stored: the guest saw nothing.
    let kept = Kept::new(false);
    let mut rig = rig_with_log(&kept);
    let ids: Vec<u16> = (0..2).map(|n| rig.offer(0, n, WRITE, n, 512)).collect();
    rig.export.poll_into(&mut rig.disk);
    for i in 0..2 {
        rig.export.complete(rig.disk.seen[i].0.cookie, lamina_bdev::Status::Ok);
    }
    assert_eq!(kept.raw().read_u16(split::LAST_BATCH_HEAD), ids[1]);
    assert_eq!(kept.raw().read_u16(split::next(ids[1])), ids[0]);
    die_and_restart(&mut rig, &kept).unwrap();
    rig.disk.seen.clear();
    rig.turn();
    assert_eq!(rig.disk.seen.len(), 2);
    let back: Vec<u16> = std::iter::from_fn(|| rig.used(0)).map(|(id, _)| id).collect();
    assert_eq!(back, ids);
}

/// Byte offsets in the packed log.
mod packed {
    pub(super) const OLD_FREE_HEAD: usize = 14;
    pub(super) const OLD_USED_IDX: usize = 18;
    pub(super) const OLD_USED_WRAP: usize = 21;
    pub(super) fn inflight(entry: u16) -> usize {
        32 + 32 * usize::from(entry)
    }
}

#[test]
fn packed_death_around_publishing_is_settled_by_the_ring() {
    // Requests that fill the ring to every position, so that the wrap bit takes part.
    for laps in 0..12 {
        for (published, cleared) in [(false, false), (true, false), (true, true)] {
            let kept = Kept::new(true);
            let mut rig = rig_with_log(&kept);
            for _ in 0..laps {
                rig.run(0, 1, WRITE, 0, 512);
            }
            let raw = kept.raw();
            let ids: Vec<u16> = (0..3).map(|n| rig.offer(0, n, WRITE, n, 512)).collect();
            rig.disk.seen.clear();
            rig.export.poll_into(&mut rig.disk);
            let old = [packed::OLD_FREE_HEAD, packed::OLD_USED_IDX].map(|at| raw.read_u16(at));
            let old_wrap = raw.read_u8(packed::OLD_USED_WRAP);
            let notes: Vec<u8> = (0..SIZE).map(|i| raw.read_u8(packed::inflight(i))).collect();
            let first = rig.drivers[0].desc + 16 * u64::from(old[1]) + 14;
            let flags = rig.ram.read_u16(first);
            for i in 0..2 {
                rig.export.complete(rig.disk.seen[i].0.cookie, lamina_bdev::Status::Ok);
            }
            rig.export.end_turn();
            // Undo what the dead daemon had not come to.
            raw.write_u16(packed::OLD_FREE_HEAD, old[0]);
            raw.write_u16(packed::OLD_USED_IDX, old[1]);
            raw.write_u8(packed::OLD_USED_WRAP, old_wrap);
            if !cleared {
                for (i, note) in (0..SIZE).zip(&notes) {
                    raw.write_u8(packed::inflight(i), *note);
                }
            }
            if !published {
                rig.ram.write_u16(first, flags);
            }
            die_and_restart(&mut rig, &kept).unwrap();
            rig.disk.seen.clear();
            rig.turn();
            let served = if published { 1 } else { 3 };
            assert_eq!(rig.disk.seen.len(), served, "{laps} {published} {cleared}");
            let mut back: Vec<u16> = std::iter::from_fn(|| rig.used(0)).map(|(id, _)| id).collect();
            assert_eq!(back.len(), 3, "{laps} {published} {cleared}");
            back.sort_unstable();
            let mut ids = ids;
            ids.sort_unstable();
            assert_eq!(back, ids);
            rig.prove(0, 0);
        }
    }
}

#[test]
fn after_an_orderly_stop_the_front_end_says_where_the_ring_stands() {
    for packed in [false, true] {
        let kept = Kept::new(packed);
        let mut rig = rig_with_log(&kept);
        rig.prove(0, 0);
        let answer = rig.stop(0, true);
        rig.turn();
        assert_eq!(answer.try_recv().unwrap().base, rig.drivers[0].base());
        // The guest reboots: a new ring, from the beginning, on the same log.
        rig.drivers[0] = Driver::new(&rig.ram, GUEST_BASE, SIZE, all_features(packed).ring, 0);
        rig.start(0, Some(&kept.map())).unwrap();
        rig.prove(0, 8);
    }
}

#[test]
fn after_our_own_clean_exit_the_log_still_knows() {
    // SIGTERM: drained, but the front-end was told nothing, and its base is stale.
    for packed in [false, true] {
        let kept = Kept::new(packed);
        let mut rig = rig_with_log(&kept);
        rig.prove(0, 0);
        let answer = rig.stop(0, false);
        rig.turn();
        assert!(answer.try_recv().is_ok());
        let mut stale =
            Driver::new(&super::driver::Ram::new(), GUEST_BASE, SIZE, all_features(packed).ring, 0);
        std::mem::swap(&mut rig.drivers[0], &mut stale);
        let _ = rig.start(0, Some(&kept.map())).is_ok();
        std::mem::swap(&mut rig.drivers[0], &mut stale);
        rig.prove(0, 8);
    }
}

#[test]
fn damaged_logs_are_refused() {
    // (what, offset, value) on a log with three requests in flight.
    let split: &[(&str, usize, u16)] =
        &[("version", 8, 2), ("descriptor count", 10, 17), ("batch list leaves the log", 12, 16)];
    let packed: &[(&str, usize, u16)] = &[
        ("version", 8, 0xffff),
        ("descriptor count", 10, 0),
        ("free list leaves the log", 14, 17),
        ("free list begins inside a chain", 14, 1),
        ("used position outside of the ring", 16, 16),
        ("old used position outside of the ring", 18, 0xffff),
        ("free list loops", 32 + 32 * 10 + 2, 9),
        ("free list runs into a chain", 32 + 32 * 10 + 2, 0),
        ("chain of no descriptors", 32 + 6, 0),
        ("chain longer than the ring", 32 + 6, 17),
        ("chain runs into another", 32 + 2, 3),
        ("chain leaves the log", 32 + 2, 0x100),
    ];
    for (is_packed, cases) in [(false, split), (true, packed)] {
        for (name, offset, value) in cases {
            let kept = Kept::new(is_packed);
            let mut rig = rig_with_log(&kept);
            for n in 0..3 {
                rig.offer(0, n, WRITE, n, 512);
            }
            rig.export.poll_into(&mut rig.disk);
            if *offset == 12 {
                // The list is followed only if the ring has moved on.
                kept.raw().write_u16(split::USED_IDX, 0xfff0);
            }
            kept.raw().write_u16(*offset, *value);
            let result = die_and_restart(&mut rig, &kept);
            assert_eq!(result, Err(Fault::InflightLog), "{name}, packed {is_packed}");
        }
    }
}

#[test]
fn scribbling_on_a_log_in_use_hurts_only_its_owner() {
    for seed in 0..60u64 {
        let packed = seed % 2 == 0;
        let kept = Kept::new(packed);
        let mut rig = rig_with_log(&kept);
        let raw = kept.raw();
        let mut state = seed + 1;
        for step in 0..100 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(7);
            let at = (state >> 40) as usize % (raw.len() / 2) * 2;
            raw.write_u16(at, (state >> 20) as u16);
            assert_eq!(rig.run(0, 1, WRITE, 0, 512), (OK, 1), "seed {seed}, step {step}");
        }
        // The next daemon recovers or refuses; it does not fall over.
        let _ = die_and_restart(&mut rig, &kept);
    }
}

#[test]
fn impossible_logs_are_refused() {
    let good = SHAPE;
    for (queues, queue_size) in
        [(0, 16), (5, 16), (1, 0), (1, QUEUE_SIZE_MAX + 1), (u16::MAX, u16::MAX)]
    {
        let shape = LogShape { queues, queue_size };
        assert!(InflightLog::create(shape, false, 4).is_err(), "{shape:?}");
    }
    let file = InflightLog::create(good, false, 4).unwrap();
    let bytes = good.bytes(false);
    for (offset, bytes) in
        [(0, bytes - 1), (0, u64::MAX), (64, bytes), (1, bytes), (u64::MAX - 63, bytes)]
    {
        assert!(InflightLog::map(good, 4, &file, offset, bytes).is_err(), "{offset} {bytes}");
    }
    assert!(InflightLog::map(good, 4, &file, 0, bytes).is_ok());
    // A log for smaller rings or fewer queues than are started.
    let kept = Kept::new(false);
    let mut rig = Rig::idle(config(), all_features(false));
    let driver = Driver::new(&rig.ram, GUEST_BASE, 32, all_features(false).ring, 0);
    rig.drivers.push(driver);
    assert_eq!(rig.start(0, Some(&kept.map())), Err(Fault::InflightLog));
}

#[test]
fn layouts_are_those_of_the_protocol() {
    assert_eq!(LogShape { queues: 1, queue_size: 128 }.bytes(false), 2112);
    assert_eq!(LogShape { queues: 1, queue_size: 128 }.bytes(true), 4160);
    assert_eq!(LogShape { queues: 4, queue_size: 1 }.bytes(false), 4 * 64);
}

//! Memory that is scribbled on, changed while it is read, shrunk, or simply not there.

use super::driver::{D, Driver, GUEST_BASE, REGION_BYTES, Ram, into, out, split_bytes};
use super::rig::*;
use crate::vhost::vring::{DESC_NEXT, DESC_WRITE, Fault};
use crate::vhost::{ExportMsg, Negotiated, Reply};

#[test]
fn rings_over_each_other_and_over_data_do_no_harm() {
    for packed in [false, true] {
        let mut rig = Rig::new(packed);
        // Read from disk over the ring itself: descriptors, available and used alike.
        rig.disk.bytes.fill(0xff);
        let p = parts(1);
        rig.header(p, READ, 0);
        rig.offer_raw(0, &[out(p.header, 16), into(GUEST_BASE, 0xc000), into(p.status, 1)]);
        for _ in 0..50 {
            rig.turn();
        }
        assert_eq!(rig.status(1), OK);
        let answer = rig.stop(0, true);
        rig.turn();
        assert!(answer.try_recv().is_ok());
        rig.disk.bytes.fill(0);
        rig.prove(1, 8);
    }
}

#[test]
fn guest_memory_scribbled_on_at_random_never_brings_the_export_down() {
    for seed in 1..=200u64 {
        let packed = seed % 2 == 0;
        let mut rig = Rig::with(config(), all_features(packed), 8);
        let mut state = seed;
        let mut random = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        for _ in 0..60 {
            // Small values hit flags, indices and ids far more often than noise would.
            let at = match random() % 4 {
                0 => random() % 128,
                1 => 0x8000 + random() % 24,
                2 => 0xa000 + random() % 70,
                _ => 0x4_8000 + random() % 0x60,
            };
            let value = match random() % 3 {
                0 => random() as u16 & 7,
                1 => 1 << (random() % 16),
                _ => random() as u16,
            };
            rig.ram.write_u16(GUEST_BASE + (at & !1), value);
            rig.turn();
        }
        let answer = rig.stop(0, true);
        rig.turn();
        assert!(answer.try_recv().is_ok(), "seed {seed}");
        rig.prove(1, 8);
    }
}

#[test]
fn a_guest_that_changes_descriptors_while_they_are_read_gets_one_reading() {
    let mut rig = Rig::new(false);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let memory = Ram::map(&rig.ram.files);
    let flag = stop.clone();
    let ring = rig.drivers[0].desc;
    rig.drivers[0].write_split(&rig.ram, 1, D { flags: DESC_NEXT | DESC_WRITE, ..into(0, 512) }, 2);
    let flipper = std::thread::spawn(move || {
        let good = split_bytes(D { flags: DESC_NEXT | DESC_WRITE, ..into(parts(1).data, 512) }, 2);
        let bad = split_bytes(
            D { flags: DESC_NEXT | DESC_WRITE, ..into(u64::MAX - 600, 0xffff_fe00) },
            2,
        );
        while !flag.load(std::sync::atomic::Ordering::Relaxed) {
            // Written byte by byte: every mixture of the two can be read.
            assert!(memory.write(&mut 0, ring + 16, &good));
            assert!(memory.write(&mut 0, ring + 16, &bad));
        }
    });
    rig.header(parts(1), READ, 0);
    let (mut good, mut bad) = (0, 0);
    for _ in 0..20_000 {
        let last = D { flags: DESC_NEXT, ..out(parts(1).header, 16) };
        rig.drivers[0].write_split(&rig.ram, 0, last, 1);
        rig.drivers[0].write_split(&rig.ram, 2, into(parts(1).status, 1), 0);
        rig.ram.write(parts(1).status, &[0xee]);
        rig.drivers[0].offer_head(&rig.ram, 0, 1);
        rig.turn();
        match rig.status(1) {
            OK => good += 1,
            IOERR => bad += 1,
            other => panic!("status {other}: {:?}", rig.export.next_stopped()),
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    flipper.join().unwrap();
    assert_eq!(good + bad, 20_000);
}

#[test]
fn memory_shrunk_by_the_front_end_stops_its_queues_and_nothing_else() {
    let mut victim = Rig::new(false);
    let mut other = Rig::new(false);
    victim.prove(0, 0);
    victim.ram.files[0].set_len(0).unwrap();
    // The next touch of the ring would be the end of the daemon.
    victim.turn();
    victim.turn();
    let reasons: Vec<Fault> =
        std::iter::from_fn(|| victim.export.next_stopped()).map(|stopped| stopped.fault).collect();
    assert_eq!(reasons, [Fault::MemoryLost; 2]);
    let answers = [victim.stop(0, false), victim.stop(1, false)];
    victim.turn();
    assert!(answers.iter().all(|answer| answer.try_recv().is_ok()));
    other.prove(0, 0);
}

#[test]
fn a_memory_table_without_the_ring_stops_the_queue() {
    let mut rig = Rig::new(false);
    let memory = Ram::map(&rig.ram.files);
    let rings = vec![(0, None), (1, Some(rig.drivers[1].spans(&memory)))];
    let (done, answer) = Reply::pair();
    rig.export.message(ExportMsg::Memory { memory: memory.clone(), rings, done });
    answer.try_recv().unwrap();
    rig.memory = memory;
    assert_eq!(rig.export.next_stopped().unwrap().fault, Fault::RingUnmapped);
    rig.offer(0, 1, READ, 0, 512);
    rig.turn();
    assert_eq!(rig.used(0), None);
    rig.prove(1, 8);
}

#[test]
fn rings_that_are_not_in_memory_are_not_found() {
    let ram = Ram::new();
    for packed in [false, true] {
        let negotiated: Negotiated = all_features(packed);
        let good = Driver::new(&ram, GUEST_BASE, 16, negotiated.ring, 0).addrs();
        let locate = |addrs| {
            crate::vhost::RingSpans::locate(&ram.memory, &addrs, 16, negotiated.ring).is_some()
        };
        assert!(locate(good));
        for (name, bad) in [
            ("below", good.desc - 0x1000),
            ("above", good.desc + 4 * REGION_BYTES),
            ("across the end of a region", good.desc + REGION_BYTES - 8),
            ("misaligned", good.desc + 1),
            ("at 0", 0),
            ("at the top", u64::MAX - 3),
        ] {
            assert!(!locate(crate::vhost::RingAddrs { desc: bad, ..good }), "desc {name}");
            if name != "across the end of a region" {
                assert!(!locate(crate::vhost::RingAddrs { driver: bad, ..good }), "driver {name}");
                assert!(!locate(crate::vhost::RingAddrs { device: bad, ..good }), "device {name}");
            }
        }
    }
}

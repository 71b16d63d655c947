//! Guests and front-ends that break the rules: what each of it leads to, as tables.

use super::driver::{D, GUEST_BASE, GUEST_END, into, out, packed_bytes, split_bytes, table};
use super::rig::*;
use crate::vhost::vring::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Fault};

/// What has to come of a chain.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Expect {
    /// Answered with this status, one byte written, nothing submitted.
    Status(u8),
    /// The queue stops for this reason, others go on.
    Stops(Fault),
}
use Expect::{Status, Stops};

/// A chain with a header of some type and sector in front of memory.
struct Case {
    name: &'static str,
    kind: u32,
    sector: u64,
    chain: Vec<D>,
    expect: Expect,
}

fn case(name: &'static str, kind: u32, sector: u64, chain: Vec<D>, expect: Expect) -> Case {
    Case { name, kind, sector, chain, expect }
}

/// Chains that are wrong in either format.
fn chains() -> Vec<Case> {
    let p = parts(1);
    let (h, s, d) = (out(p.header, 16), into(p.status, 1), p.data);
    let end = DISK_BYTES as u64 / 512;
    let hole = GUEST_END + 0x1000;
    vec![
        case("read of 0 bytes", READ, 0, vec![h, s], Status(IOERR)),
        case("write of 0 bytes", WRITE, 0, vec![h, s], Status(IOERR)),
        case("read of 511 bytes", READ, 0, vec![h, into(d, 511), s], Status(IOERR)),
        case("write of 513 bytes", WRITE, 0, vec![h, out(d, 513), s], Status(IOERR)),
        case("read into read-only memory", READ, 0, vec![h, out(d, 512), s], Status(IOERR)),
        case("write from write-only memory", WRITE, 0, vec![h, into(d, 512), s], Status(IOERR)),
        case(
            "read with data to write",
            READ,
            0,
            vec![h, out(d, 512), into(d, 512), s],
            Status(IOERR),
        ),
        case(
            "write with room to read",
            WRITE,
            0,
            vec![h, out(d, 512), into(d, 512), s],
            Status(IOERR),
        ),
        case("read past the end", READ, end - 1, vec![h, into(d, 1024), s], Status(IOERR)),
        case("write at the end", WRITE, end, vec![h, out(d, 512), s], Status(IOERR)),
        case("sector times 512 wraps", READ, 1 << 55, vec![h, into(d, 512), s], Status(IOERR)),
        case(
            "sector plus length wraps",
            READ,
            u64::MAX >> 9,
            vec![h, into(d, 512), s],
            Status(IOERR),
        ),
        case("sector 2^64 - 1", WRITE, u64::MAX, vec![h, out(d, 512), s], Status(IOERR)),
        case("empty descriptor as data", READ, 0, vec![h, into(d, 0), s], Status(IOERR)),
        case(
            "empty descriptor as header",
            READ,
            0,
            vec![out(p.header, 0), h, into(d, 512), s],
            Status(IOERR),
        ),
        case(
            "header of 15 bytes",
            READ,
            0,
            vec![out(p.header, 15), into(d, 512), s],
            Status(IOERR),
        ),
        case("no header", READ, 0, vec![into(d, 512), s], Status(IOERR)),
        case("nothing but a status", READ, 0, vec![s], Status(IOERR)),
        case("header in a hole", READ, 0, vec![out(hole, 16), into(d, 512), s], Status(IOERR)),
        case(
            "header runs into a hole",
            READ,
            0,
            vec![out(GUEST_END - 8, 16), into(d, 512), s],
            Status(IOERR),
        ),
        case(
            "header write-only",
            READ,
            0,
            vec![into(p.header, 16), into(d, 512), s],
            Status(IOERR),
        ),
        case("data in a hole", READ, 0, vec![h, into(hole, 512), s], Status(IOERR)),
        case("data ends in a hole", WRITE, 0, vec![h, out(GUEST_END - 511, 512), s], Status(IOERR)),
        case("data below memory", READ, 0, vec![h, into(GUEST_BASE - 1, 512), s], Status(IOERR)),
        case("data at 0", WRITE, 0, vec![h, out(0, 512), s], Status(IOERR)),
        case(
            "data wraps around 2^64",
            READ,
            0,
            vec![h, into(u64::MAX - 255, 512), s],
            Status(IOERR),
        ),
        case("4 GiB - 512 of data", READ, 0, vec![h, into(d, 0xffff_fe00), s], Status(IOERR)),
        case(
            "lengths add up to more than 4 GiB",
            READ,
            0,
            vec![h, into(GUEST_BASE, u32::MAX), into(GUEST_BASE, u32::MAX), s],
            Status(IOERR),
        ),
        case(
            "more data than the disk has",
            WRITE,
            0,
            vec![h, out(GUEST_BASE, 2 << 20), s],
            Status(IOERR),
        ),
        case(
            "readable after writable",
            READ,
            0,
            vec![h, into(d, 512), out(d, 512), s],
            Status(IOERR),
        ),
        case("header after data", WRITE, 0, vec![into(d, 512), h, s], Status(IOERR)),
        case("get id without room", GET_ID, 0, vec![h, s], Status(IOERR)),
        case("discard from write-only memory", DISCARD, 0, vec![h, into(d, 16), s], Status(IOERR)),
        case(
            "discard with room to read",
            DISCARD,
            0,
            vec![h, out(d, 16), into(d, 16), s],
            Status(IOERR),
        ),
        case("SCSI command", 2, 0, vec![h, into(d, 512), s], Status(UNSUPP)),
        case("unknown type", 0x1234, 0, vec![h, s], Status(UNSUPP)),
        case("no status: last is readable", READ, 0, vec![h, out(d, 512)], Stops(Fault::NoStatus)),
        case("no status: header only", FLUSH, 0, vec![h], Stops(Fault::NoStatus)),
        case("status empty", FLUSH, 0, vec![h, into(p.status, 0)], Stops(Fault::NoStatus)),
        case("status readable", FLUSH, 0, vec![h, out(p.status, 1)], Stops(Fault::NoStatus)),
        case("status in a hole", FLUSH, 0, vec![h, into(hole, 1)], Stops(Fault::NoStatus)),
        case(
            "status just past the end",
            READ,
            0,
            vec![h, into(GUEST_END - 512, 513)],
            Stops(Fault::NoStatus),
        ),
        case(
            "status wraps around 2^64",
            READ,
            0,
            vec![h, into(u64::MAX - 3, 16)],
            Stops(Fault::NoStatus),
        ),
        case("table in a hole", READ, 0, vec![table(hole, 48)], Stops(Fault::IndirectAddress)),
        case(
            "table ends in a hole",
            READ,
            0,
            vec![table(GUEST_END - 16, 48)],
            Stops(Fault::IndirectAddress),
        ),
        case(
            "table wraps around 2^64",
            READ,
            0,
            vec![table(u64::MAX - 15, 48)],
            Stops(Fault::IndirectAddress),
        ),
        case("table of 0 bytes", READ, 0, vec![table(d, 0)], Stops(Fault::IndirectLength)),
        case("table of 17 bytes", READ, 0, vec![table(d, 17)], Stops(Fault::IndirectLength)),
        case(
            "table of 2^32 - 16 bytes",
            READ,
            0,
            vec![table(d, 0xffff_fff0)],
            Stops(Fault::IndirectLength),
        ),
        case(
            "table in the middle",
            READ,
            0,
            vec![h, table(d, 48), s],
            Stops(Fault::IndirectNotAllowed),
        ),
    ]
}

/// Checks what `rig` did with the hostile thing on queue 0, then that the others do not notice.
fn check(rig: &mut Rig, name: &str, packed: bool, expect: Expect, id: u16) {
    match expect {
        Status(status) => {
            assert_eq!(rig.used(0), Some((id, 1)), "{name}, packed {packed}");
            assert_eq!(rig.status(1), status, "{name}, packed {packed}");
            assert_eq!(rig.export.next_stopped(), None, "{name}, packed {packed}");
            rig.prove(0, 0);
        }
        Stops(fault) => {
            let stopped = rig.export.next_stopped();
            assert_eq!(
                stopped.map(|stopped| stopped.fault),
                Some(fault),
                "{name}, packed {packed}"
            );
            assert_eq!(rig.used(0), None, "{name}, packed {packed}");
            assert!(!rig.turn(), "{name}: a stopped queue is not looked at again");
            assert_eq!(rig.export.next_stopped(), None, "{name}: said once");
            assert!(rig.export.prepare_sleep(), "{name}: and does not keep anybody awake");
            rig.export.woken();
            let answer = rig.stop(0, true);
            rig.turn();
            assert_eq!(answer.try_recv().unwrap().fault, Some(fault), "{name}");
        }
    }
    rig.prove(1, 8);
}

#[test]
fn hostile_chains() {
    let count = chains().len();
    assert!(count >= 40, "{count} cases");
    for packed in [false, true] {
        for case in chains() {
            let mut rig = Rig::new(packed);
            rig.header(parts(1), case.kind, case.sector);
            // For the table that runs out of memory: its first entry has a next one.
            let more = D { flags: DESC_NEXT, ..out(parts(1).header, 16) };
            rig.ram.write(GUEST_END - 16, &split_bytes(more, 1));
            let id = rig.offer_raw(0, &case.chain);
            rig.turn();
            assert!(rig.disk.seen.is_empty(), "{}, packed {packed}", case.name);
            check(&mut rig, case.name, packed, case.expect, id);
        }
    }
}

#[test]
fn hostile_chains_inside_tables() {
    for packed in [false, true] {
        for case in chains() {
            let mut rig = Rig::new(packed);
            rig.header(parts(1), case.kind, case.sector);
            let at = parts(5).data;
            let entries = case.chain.len() as u16;
            for (i, desc) in (0..).zip(&case.chain) {
                let more = if i + 1 < entries { DESC_NEXT } else { 0 };
                let desc = D { flags: desc.flags | more, ..*desc };
                let bytes = if packed { packed_bytes(desc, 0) } else { split_bytes(desc, i + 1) };
                rig.ram.write(at + 16 * u64::from(i), &bytes);
            }
            let id = rig.offer_raw(0, &[table(at, 16 * u32::from(entries))]);
            rig.turn();
            let nested = case.chain.iter().any(|desc| desc.flags & DESC_INDIRECT != 0);
            let expect = if nested { Stops(Fault::IndirectNested) } else { case.expect };
            check(&mut rig, case.name, packed, expect, id);
        }
    }
}

/// Something done to queue 0 of a split rig.
type Attack = fn(&mut Rig);

#[test]
fn hostile_split_rings() {
    let p = parts(1);
    let cases: &[(&str, Attack, Fault)] = &[
        (
            "descriptor links to itself",
            |rig| {
                rig.drivers[0].write_split(
                    &rig.ram,
                    0,
                    D { flags: DESC_NEXT, ..out(parts(1).header, 16) },
                    0,
                );
                rig.drivers[0].offer_head(&rig.ram, 0, 1);
            },
            Fault::ChainTooLong,
        ),
        (
            "two descriptors link to each other",
            |rig| {
                for (i, next) in [(0, 1), (1, 0)] {
                    rig.drivers[0].write_split(
                        &rig.ram,
                        i,
                        D { flags: DESC_NEXT, ..out(parts(1).header, 16) },
                        next,
                    );
                }
                rig.drivers[0].offer_head(&rig.ram, 0, 1);
            },
            Fault::ChainTooLong,
        ),
        (
            "a cycle as long as the ring",
            |rig| {
                for i in 0..16 {
                    rig.drivers[0].write_split(
                        &rig.ram,
                        i,
                        D { flags: DESC_NEXT, ..out(parts(1).header, 16) },
                        (i + 1) % 16,
                    );
                }
                rig.drivers[0].offer_head(&rig.ram, 3, 1);
            },
            Fault::ChainTooLong,
        ),
        (
            "next is the ring's size",
            |rig| {
                rig.drivers[0].write_split(
                    &rig.ram,
                    0,
                    D { flags: DESC_NEXT, ..out(parts(1).header, 16) },
                    16,
                );
                rig.drivers[0].offer_head(&rig.ram, 0, 1);
            },
            Fault::NextOutOfRange,
        ),
        (
            "next is 0xffff",
            |rig| {
                rig.drivers[0].write_split(
                    &rig.ram,
                    0,
                    D { flags: DESC_NEXT, ..out(parts(1).header, 16) },
                    0xffff,
                );
                rig.drivers[0].offer_head(&rig.ram, 0, 1);
            },
            Fault::NextOutOfRange,
        ),
        (
            "head is the ring's size",
            |rig| rig.drivers[0].offer_head(&rig.ram, 16, 1),
            Fault::HeadOutOfRange,
        ),
        (
            "head is 0xffff",
            |rig| rig.drivers[0].offer_head(&rig.ram, 0xffff, 1),
            Fault::HeadOutOfRange,
        ),
        (
            "index jumps by the size and one",
            |rig| rig.drivers[0].offer_head(&rig.ram, 0, 17),
            Fault::AvailIndex,
        ),
        (
            "index goes back by one",
            |rig| rig.drivers[0].offer_head(&rig.ram, 0, 0xffff),
            Fault::AvailIndex,
        ),
        (
            "table with a next",
            |rig| {
                let desc = D { flags: DESC_INDIRECT | DESC_NEXT, ..out(parts(1).data, 48) };
                rig.drivers[0].write_split(&rig.ram, 0, desc, 1);
                rig.drivers[0].write_split(&rig.ram, 1, into(parts(1).status, 1), 0);
                rig.drivers[0].offer_head(&rig.ram, 0, 1);
            },
            Fault::IndirectNotAllowed,
        ),
        (
            "table that loops",
            |rig| {
                rig.ram.write(
                    parts(1).data,
                    &split_bytes(D { flags: DESC_NEXT, ..out(parts(1).header, 16) }, 0),
                );
                rig.offer_raw(0, &[table(parts(1).data, 48)]);
            },
            Fault::ChainTooLong,
        ),
        (
            "table that links outside",
            |rig| {
                rig.ram.write(
                    parts(1).data,
                    &split_bytes(D { flags: DESC_NEXT, ..out(parts(1).header, 16) }, 3),
                );
                rig.offer_raw(0, &[table(parts(1).data, 48)]);
            },
            Fault::NextOutOfRange,
        ),
        (
            "table that ends with a next",
            |rig| {
                for i in 0..3 {
                    let desc = D { flags: DESC_NEXT | DESC_WRITE, ..out(parts(1).header, 16) };
                    rig.ram.write(parts(1).data + 16 * i, &split_bytes(desc, i as u16 + 1));
                }
                rig.offer_raw(0, &[table(parts(1).data, 48)]);
            },
            Fault::NextOutOfRange,
        ),
    ];
    for (name, attack, fault) in cases {
        let mut rig = Rig::new(false);
        rig.header(p, READ, 0);
        attack(&mut rig);
        rig.turn();
        check(&mut rig, name, false, Stops(*fault), 0);
    }
}

#[test]
fn a_head_offered_twice_stops_the_queue_but_the_first_is_answered() {
    // At once, and again in the turn in which the first is done but not yet published.
    for late in [false, true] {
        let mut rig = Rig::new(false);
        let id = rig.offer(0, 1, WRITE, 0, 512);
        if late {
            rig.export.poll_into(&mut rig.disk);
            let (cookie, status) = rig.disk.take_done().unwrap();
            rig.export.complete(cookie, status);
        }
        rig.drivers[0].offer_head(&rig.ram, id, 1);
        rig.export.poll_into(&mut rig.disk);
        assert_eq!(rig.export.next_stopped().unwrap().fault, Fault::HeadInFlight);
        rig.turn();
        assert_eq!(rig.used(0), Some((id, 1)));
        assert_eq!(rig.status(1), OK);
        assert_eq!(rig.disk.seen.len(), 1);
        rig.prove(1, 8);
    }
}

#[test]
fn a_packed_ring_that_is_all_one_chain_stops_the_queue() {
    // Every descriptor has a next: there is no last one.
    let mut rig = Rig::new(true);
    let chain = [out(parts(1).header, 16); 16];
    rig.offer_raw(0, &chain);
    let at = rig.drivers[0].desc + 16 * 15 + 14;
    let flags = rig.ram.read_u16(at);
    rig.ram.write_u16(at, flags | DESC_NEXT);
    rig.turn();
    check(&mut rig, "all next", true, Stops(Fault::ChainTooLong), 0);
}

#[test]
fn a_packed_ring_that_is_lapped_stops_the_queue() {
    // The driver makes descriptors available again that are in flight: never more than a ring.
    let mut rig = Rig::new(true);
    for n in 0..5 {
        rig.offer(0, n, WRITE, n, 512);
    }
    rig.turn_without_completions();
    assert_eq!(rig.export.in_flight(), 5);
    for index in 0..16u64 {
        // Position 15 is the 16th of this lap, then the wrap bit is off: available is USED alone.
        let lap = if index == 15 { 1 << 7 } else { 1 << 15 };
        let desc = D { flags: lap | DESC_WRITE, ..into(parts(9).status, 1) };
        rig.ram.write(rig.drivers[0].desc + 16 * index, &packed_bytes(desc, 9));
    }
    rig.turn_without_completions();
    assert_eq!(rig.export.next_stopped().unwrap().fault, Fault::ChainTooLong);
    let answer = rig.stop(0, true);
    rig.turn();
    assert!(answer.try_recv().is_ok(), "what was in flight is answered all the same");
    rig.prove(1, 8);
}

#[test]
fn tables_that_were_not_negotiated_stop_the_queue() {
    for packed in [false, true] {
        let mut negotiated = all_features(packed);
        negotiated.ring.indirect = false;
        let mut rig = Rig::with(config(), negotiated, 16);
        rig.offer_raw(0, &[table(parts(1).data, 48)]);
        rig.turn();
        check(&mut rig, "not negotiated", packed, Stops(Fault::IndirectNotAllowed), 0);
    }
}

#[test]
fn packed_ids_are_the_drivers_own_business() {
    // Any 16-bit id is given back as it came, even one that is in flight already.
    let mut rig = Rig::new(true);
    let p = parts(1);
    rig.header(p, FLUSH, 0);
    rig.offer_raw(0, &[out(p.header, 16), into(p.status, 1)]);
    for index in 0..2 {
        rig.ram.write_u16(rig.drivers[0].desc + 16 * index + 12, 0xffff);
    }
    rig.turn();
    assert_eq!(rig.ram.read_u16(rig.drivers[0].desc + 12), 0xffff);
    assert_eq!(rig.status(1), OK);
    assert_eq!(rig.export.next_stopped(), None);
}

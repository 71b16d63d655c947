//! H2CData.

use lamina_nvmf::transport::{Fault, STALL_NS_MAX};
use lamina_nvmf::wire::pdu::{FES_LIMIT_EXCEEDED, FES_OUT_OF_RANGE, FES_SEQUENCE};

use crate::case::*;
use crate::rig::{Cut, Reply, Rig, pattern};

const WHOLE: usize = 24;
const OUT_OF_RANGE: End = End::Fatal(FES_OUT_OF_RANGE, 0, WHOLE);
const LIMIT: End = End::Fatal(FES_LIMIT_EXCEEDED, 0, WHOLE);

lies! { First {
    data_hlen_0: |p, _| set8(p, 2, 0) => field(2, COMMON);
    data_hlen_1: |p, _| set8(p, 2, 1) => field(2, COMMON);
    data_hlen_23: |p, _| set8(p, 2, 23) => field(2, COMMON);
    data_hlen_25: |p, _| set8(p, 2, 25) => field(2, COMMON);
    data_hlen_255: |p, _| set8(p, 2, 255) => field(2, COMMON);
    data_header_digest_flag_lies: |p, _| p[1] ^= 1 => field(1, COMMON);
    data_digest_flag_lies: |p, _| p[1] ^= 2 => field(1, WHOLE);
    data_last_before_the_end: |p, _| p[1] |= 4 => field(1, WHOLE);
    data_success_flag_is_not_looked_at: |p, _| p[1] |= 8 => End::Fine(0);
    data_pdo_0: |p, _| set8(p, 3, 0) => field(3, WHOLE);
    data_pdo_1: |p, _| set8(p, 3, 1) => field(3, WHOLE);
    data_pdo_one_less: |p, _| p[3] -= 1 => field(3, WHOLE);
    data_pdo_one_more: |p, _| p[3] += 1 => field(3, WHOLE);
    data_pdo_four_more: |p, _| p[3] += 4 => field(4, WHOLE);
    data_pdo_255: |p, _| set8(p, 3, 255) => field(3, WHOLE);
    data_plen_0: |p, _| set32(p, 4, 0) => field(4, WHOLE);
    data_plen_1: |p, _| set32(p, 4, 1) => field(4, WHOLE);
    data_plen_23: |p, _| set32(p, 4, 23) => field(4, WHOLE);
    data_plen_ends_with_the_header: |p, b| set32(p, 4, 24 + digest_bytes(b).0) => field(4, WHOLE);
    data_plen_one_less: |p, b| set32(p, 4, plen(b, 8191)) => field(4, WHOLE);
    data_plen_one_more: |p, b| set32(p, 4, plen(b, 8193)) => field(4, WHOLE);
    data_plen_max: |p, _| set32(p, 4, u32::MAX) => field(4, WHOLE);
    data_cccid_of_nobody: |p, _| set16(p, 8, CID + 1) => field(8, WHOLE);
    data_cccid_0: |p, _| set16(p, 8, 0) => field(8, WHOLE);
    data_cccid_max: |p, _| set16(p, 8, 0xffff) => field(8, WHOLE);
    data_ttag_of_another_slot: |p, _| p[10] ^= 1 => field(10, WHOLE);
    data_ttag_of_another_use: |p, _| p[11] ^= 4 => field(10, WHOLE);
    data_ttag_of_no_slot: |p, _| set16(p, 10, 0x03ff) => field(10, WHOLE);
    data_ttag_max: |p, _| set16(p, 10, 0xffff) => field(10, WHOLE);
    data_offset_1: |p, _| set32(p, 12, 1) => OUT_OF_RANGE;
    data_offset_4: |p, _| set32(p, 12, 4) => OUT_OF_RANGE;
    data_offset_of_the_end: |p, _| set32(p, 12, ASKED) => OUT_OF_RANGE;
    data_offset_behind_the_end: |p, _| set32(p, 12, ASKED + 1) => OUT_OF_RANGE;
    data_offset_max: |p, _| set32(p, 12, u32::MAX) => OUT_OF_RANGE;
    data_length_0: |p, _| set32(p, 16, 0) => field(16, WHOLE);
    data_length_1: |p, _| set32(p, 16, 1) => field(4, WHOLE);
    data_length_one_less: |p, _| set32(p, 16, 8191) => field(4, WHOLE);
    data_length_above_maxh2cdata: |p, _| set32(p, 16, MAXH2CDATA + 1) => LIMIT;
    data_length_of_all: |p, _| set32(p, 16, ASKED) => LIMIT;
    data_length_max: |p, _| set32(p, 16, u32::MAX) => LIMIT;
    data_reserved_is_not_looked_at: |p, _| p[20..24].fill(0xff) => End::Fine(0);
} }

lies! { Last {
    last_data_without_the_flag: |p, _| p[1] &= !4 => field(1, WHOLE);
    last_data_overlaps: |p, _| set32(p, 12, 4096) => OUT_OF_RANGE;
    last_data_overlaps_by_one: |p, _| set32(p, 12, 8191) => OUT_OF_RANGE;
    last_data_leaves_a_gap_of_one: |p, _| set32(p, 12, 8193) => OUT_OF_RANGE;
    last_data_leaves_a_gap: |p, _| set32(p, 12, 8196) => OUT_OF_RANGE;
    last_data_starts_again: |p, _| set32(p, 12, 0) => OUT_OF_RANGE;
    last_data_one_past_the_end: |p, b| grow(p, b, 4097) => OUT_OF_RANGE;
    last_data_far_past_the_end: |p, b| grow(p, b, 8192) => OUT_OF_RANGE;
    last_data_length_overflows: |p, _| set32(p, 16, 0xffff_f000) => LIMIT;
    last_data_is_lawful: |_, _| () => End::Fine(ASKED as usize);
} }

/// Length of a PDU with so much data.
fn plen(builder: lamina_nvmf::host::Builder, data: u32) -> u32 {
    let (header, tail) = digest_bytes(builder);
    WHOLE as u32 + header + data + tail
}

/// Says that the PDU has so much data.
fn grow(pdu: &mut Vec<u8>, builder: lamina_nvmf::host::Builder, data: u32) {
    set32(pdu, 16, data);
    set32(pdu, 4, plen(builder, data));
    pdu.resize(plen(builder, data) as usize, 0);
}

#[test]
fn data_that_was_never_asked_for() {
    for builder in digests() {
        for cut in CUTS {
            let (mut rig, _) = prepare(Base::Read, builder, cut);
            let mut pdu = Vec::new();
            builder.h2c_data(&mut pdu, (CID, 0), 0, &pattern(1, 512), true);
            rig.send(&pdu);
            conclude(rig, &pdu, field(10, WHOLE), &format!("{builder:?}, {cut:?}"));
        }
    }
}

#[test]
fn data_for_a_transfer_that_is_over() {
    for builder in digests() {
        let (mut rig, pdu) = prepare(Base::Last, builder, Cut::Whole);
        rig.send(&pdu);
        rig.got.clear();
        rig.send(&pdu);
        conclude(rig, &pdu, field(10, WHOLE), "the same data again");
    }
}

/// The slot is in use again, with another tag.
#[test]
fn data_with_the_tag_of_the_slots_last_use() {
    for builder in digests() {
        let (mut rig, pdu) = prepare(Base::Last, builder, Cut::Whole);
        let old = u16::from_le_bytes([pdu[10], pdu[11]]);
        rig.send(&pdu);
        rig.got.clear();
        rig.replies();
        let new = rig.ask(CID, ASKED);
        assert_eq!((new & 0x3ff, new != old), (old & 0x3ff, true));
        let mut pdu = Vec::new();
        builder.h2c_data(&mut pdu, (CID, old), 0, &pattern(1, 8192), false);
        rig.send(&pdu);
        conclude(rig, &pdu, field(10, WHOLE), "an old tag");
    }
}

/// Two transfers under way, the tags exchanged.
#[test]
fn data_with_the_tag_of_another_command() {
    for builder in digests() {
        let (mut rig, _) = prepare(Base::Read, builder, Cut::Whole);
        let a = rig.ask(1, ASKED);
        let b = rig.ask(2, ASKED);
        assert_ne!(a, b);
        let mut pdu = Vec::new();
        builder.h2c_data(&mut pdu, (1, b), 0, &pattern(1, 8192), false);
        rig.send(&pdu);
        conclude(rig, &pdu, field(8, WHOLE), "a foreign tag");
    }
}

/// A good guess at a tag before the data is asked for: the command has no buffer yet.
#[test]
fn data_that_comes_before_it_is_asked_for() {
    for builder in digests() {
        let (mut rig, _) = prepare(Base::Read, builder, Cut::Whole);
        // All large buffers but the one that is kept for other data.
        let tags: Vec<u16> = (0..3).map(|cid| rig.ask(cid, 20_000)).collect();
        let next = tags[2] + (tags[2] - tags[1]);
        rig.command(&crate::rig::write(CID, lamina_nvmf::wire::Sgl::transport(20_000)), &[]);
        assert!(rig.conn.wants_buffer());
        let mut pdu = Vec::new();
        builder.h2c_data(&mut pdu, (CID, next), 0, &pattern(1, 512), false);
        rig.send(&pdu);
        conclude(rig, &pdu, field(10, WHOLE), "a guessed tag");
    }
}

const SECOND: u64 = 1_000_000_000;

/// A connection whose host has been asked for data at the time 1 s.
fn asked() -> (Rig, u16) {
    let mut rig = Rig::open(limits(), lamina_nvmf::host::Builder::default(), 16);
    let ttag = rig.ask(CID, ASKED);
    rig.conn.expire(SECOND);
    (rig, ttag)
}

#[test]
fn data_that_never_comes_ends_the_connection_in_time() {
    let (mut rig, _) = asked();
    rig.conn.expire(SECOND + STALL_NS_MAX);
    assert_eq!(rig.conn.fatal(), None, "not too early");
    rig.conn.expire(SECOND + STALL_NS_MAX + 1);
    let fault = rig.conn.fatal().copied();
    assert!(matches!(fault, Some(Fault::Ours { fes: FES_SEQUENCE, .. })), "{fault:?}");
    rig.transmit();
    let replies = rig.replies();
    assert!(matches!(replies.last(), Some(Reply::Term { fes: FES_SEQUENCE, .. })), "{replies:?}");
    rig.finish_whole();
}

#[test]
fn data_that_comes_slowly_is_waited_for() {
    let (mut rig, ttag) = asked();
    let mut pdus = Vec::new();
    rig.builder.h2c_data(&mut pdus, (CID, ttag), 0, &pattern(1, 8192), false);
    let mut now = SECOND;
    // A header first, which is no progress by itself; then a byte at a time.
    for piece in [&pdus[..WHOLE], &pdus[WHOLE..WHOLE + 1], &pdus[WHOLE + 1..WHOLE + 2]] {
        rig.send(piece);
        now += STALL_NS_MAX - 10 * SECOND;
        rig.conn.expire(now);
        assert_eq!(rig.conn.fatal(), None);
    }
    now += STALL_NS_MAX + 11 * SECOND;
    rig.conn.expire(now);
    assert!(rig.conn.fatal().is_some(), "not for ever");
    rig.finish_whole();
}

#[test]
fn a_capsule_that_stops_in_its_data_ends_the_connection_in_time() {
    let mut rig = Rig::open(limits(), lamina_nvmf::host::Builder::default(), 16);
    let mut pdu = Vec::new();
    let command = crate::rig::write(CID, lamina_nvmf::wire::Sgl::in_capsule(4096));
    rig.builder.command(&mut pdu, &command, &pattern(1, 4096));
    rig.send(&pdu[..1000]);
    rig.conn.expire(SECOND);
    rig.conn.expire(SECOND + STALL_NS_MAX + 1);
    assert!(rig.conn.fatal().is_some());
    rig.finish_whole();
}

#[test]
fn commands_that_run_for_long_are_not_the_hosts_fault() {
    let mut rig = Rig::open(limits(), lamina_nvmf::host::Builder::default(), 16);
    rig.hold = true;
    rig.command(&crate::rig::read(CID, 4096), &[]);
    for minute in 0..10 {
        rig.conn.expire(SECOND + minute * 60 * SECOND);
    }
    assert_eq!(rig.conn.fatal(), None);
    rig.answer_held();
    rig.finish_whole();
}

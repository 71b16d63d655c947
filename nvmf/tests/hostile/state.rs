//! PDUs that may not come now.

use lamina_nvmf::wire::pdu::FES_SEQUENCE;
use lamina_nvmf::wire::{Completion, Fuse, Sgl, Status};

use crate::case::*;
use crate::rig::{Cut, Reply, Rig, flush, pattern, read, write};

#[test]
fn a_second_icreq() {
    for builder in digests() {
        for cut in CUTS {
            let (mut rig, _) = prepare(Base::Read, builder, cut);
            let mut pdu = Vec::new();
            builder.icreq(&mut pdu, 0, 0);
            rig.send(&pdu);
            conclude(rig, &pdu, sequence(COMMON), &format!("{builder:?}, {cut:?}"));
        }
    }
}

#[test]
fn two_icreqs_at_once() {
    let (mut rig, icreq) = prepare(Base::IcReq, digests().next().expect("none"), Cut::Whole);
    rig.send(&[&icreq[..], &icreq[..]].concat());
    let replies = rig.replies();
    assert!(matches!(replies[..], [Reply::IcResp { .. }, Reply::Term { fes: FES_SEQUENCE, .. }]));
    rig.finish_whole();
}

#[test]
fn a_command_before_the_icreq() {
    for cut in CUTS {
        let mut rig = Rig::new(limits());
        rig.cut = cut;
        let mut pdu = Vec::new();
        rig.builder.command(&mut pdu, &write(CID, Sgl::in_capsule(512)), &pattern(0, 512));
        rig.send(&pdu);
        conclude(rig, &pdu, sequence(COMMON), "before the ICReq");
    }
}

#[test]
fn data_before_the_icreq() {
    for cut in CUTS {
        let mut rig = Rig::new(limits());
        rig.cut = cut;
        let mut pdu = Vec::new();
        rig.builder.h2c_data(&mut pdu, (CID, 0), 0, &pattern(0, 512), true);
        rig.send(&pdu);
        conclude(rig, &pdu, sequence(COMMON), "before the ICReq");
    }
}

fn conflict(cid: u16, sq_head: u16) -> Reply {
    let status = Status::COMMAND_ID_CONFLICT.dnr();
    Reply::Response(Completion { cid, sq_head, ..Completion::status(status) })
}

#[test]
fn an_identifier_of_a_command_that_runs() {
    for builder in digests() {
        for cut in CUTS {
            let (mut rig, _) = prepare(Base::Read, builder, cut);
            rig.hold = true;
            rig.command(&write(CID, Sgl::in_capsule(512)), &pattern(1, 512));
            rig.command(&write(CID, Sgl::in_capsule(512)), &pattern(2, 512));
            rig.command(&write(CID, Sgl::transport(9000)), &[]);
            assert_eq!(rig.replies(), [conflict(CID, 1), conflict(CID, 2)]);
            assert_eq!((rig.held.len(), rig.got[0].data.clone()), (1, pattern(1, 512)));
            rig.answer_held();
            rig.hold = false;
            assert_eq!(rig.replies().len(), 1, "the first one ends as it should");
            // Its identifier can be used again.
            rig.command(&flush(CID), &[]);
            assert_eq!(rig.got.len(), 2);
            rig.finish_whole();
        }
    }
}

#[test]
fn an_identifier_of_a_command_whose_data_is_on_its_way() {
    for builder in digests() {
        let (mut rig, first) = prepare(Base::First, builder, Cut::Whole);
        rig.send(&first);
        rig.command(&write(CID, Sgl::transport(9000)), &[]);
        assert_eq!(rig.replies(), [conflict(CID, 1)]);
        let ttag = u16::from_le_bytes([first[10], first[11]]);
        let mut last = Vec::new();
        builder.h2c_data(&mut last, (CID, ttag), 8192, &pattern(9, 4096), true);
        rig.send(&last);
        assert_eq!(rig.got[0].data[8192..], pattern(9, 4096));
        rig.finish_whole();
    }
}

#[test]
fn an_identifier_of_a_command_whose_answer_is_not_out_yet() {
    let (mut rig, _) = prepare(Base::Read, digests().next().expect("none"), Cut::Whole);
    let mut bytes = Vec::new();
    rig.builder.command(&mut bytes, &read(CID, 512), &[]);
    rig.hold = true;
    rig.send(&bytes);
    let slot = rig.held.pop().expect("it runs");
    rig.conn.respond(slot, Completion::SUCCESS, 0);
    rig.conn.receive_space()[..bytes.len()].copy_from_slice(&bytes);
    rig.conn.received(bytes.len(), &mut rig.pool);
    rig.serve();
    let replies = rig.replies();
    assert!(matches!(replies[..], [Reply::Response(c), _] if c.status.is_ok()), "{replies:?}");
    assert_eq!(replies[1], conflict(CID, 2));
    rig.finish_whole();
}

#[test]
fn more_commands_than_the_queue_holds() {
    for builder in digests() {
        for cut in CUTS {
            let mut rig = Rig::new(limits());
            rig.initialize(builder);
            rig.conn.set_sq(4, true);
            (rig.hold, rig.cut) = (true, cut);
            for cid in 0..4 {
                rig.command(&flush(cid), &[]);
            }
            assert_eq!(rig.held.len(), 4);
            let mut pdu = Vec::new();
            builder.command(&mut pdu, &flush(CID), &[]);
            rig.send(&pdu);
            conclude(rig, &pdu, sequence(72), &format!("{builder:?}, {cut:?}"));
        }
    }
}

#[test]
fn more_commands_than_the_queue_holds_with_data_under_way() {
    let builder = digests().next().expect("none");
    let mut rig = Rig::new(limits());
    rig.initialize(builder);
    rig.conn.set_sq(2, false);
    rig.ask(1, 9000);
    rig.ask(2, 9000);
    let mut pdu = Vec::new();
    builder.command(&mut pdu, &write(CID, Sgl::in_capsule(4096)), &pattern(0, 4096));
    rig.send(&pdu);
    conclude(rig, &pdu, sequence(72), "two transfers, two entries");
}

/// Answers that stood in line before the error are sent, then the termination, then nothing.
#[test]
fn what_was_answered_before_an_error_is_sent() {
    let (mut rig, _) = prepare(Base::Read, digests().next().expect("none"), Cut::Whole);
    rig.hold = true;
    let mut bytes = Vec::new();
    rig.builder.command(&mut bytes, &flush(1), &[]);
    rig.builder.command(&mut bytes, &flush(2), &[]);
    rig.builder.command(&mut bytes, &write(3, Sgl::transport(9000)), &[]);
    rig.send(&bytes);
    rig.replies();
    let second = rig.held.pop().expect("it runs");
    let first = rig.held.pop().expect("it runs");
    rig.conn.respond(first, Completion::SUCCESS, 0);
    let bad = [0xff; 8];
    rig.conn.receive_space()[..8].copy_from_slice(&bad);
    rig.conn.received(8, &mut rig.pool);
    assert!(rig.conn.fatal().is_some() && !rig.conn.is_closed());
    rig.conn.respond(second, Completion::SUCCESS, 0);
    // What still comes in is not looked at.
    assert!(!rig.conn.receive_space().is_empty());
    rig.conn.receive_space()[..72].copy_from_slice(&bytes[..72]);
    rig.conn.received(72, &mut rig.pool);
    rig.serve();
    let replies = rig.replies();
    assert!(
        matches!(&replies[..], [Reply::Response(c), Reply::Term { .. }] if c.cid == 1),
        "{replies:?}"
    );
    assert!(rig.conn.is_closed() && !rig.conn.wants_send());
    rig.finish_whole();
}

/// A fused pair that never becomes whole is given back when the connection ends.
#[test]
fn the_first_of_two_fused_commands_and_nothing_more() {
    let (mut rig, _) = prepare(Base::Read, digests().next().expect("none"), Cut::Whole);
    let first = lamina_nvmf::wire::Command { fuse: Fuse::First, ..write(1, Sgl::in_capsule(512)) };
    rig.command(&first, &pattern(0, 512));
    assert!(rig.got.is_empty());
    assert_eq!(rig.conn.in_flight(), 1);
    rig.finish_whole();
}

/// A host that never reads: what is made ready to be sent stays bounded, whatever it asks for.
#[test]
fn a_host_that_never_reads() {
    let builder = digests().last().expect("all");
    let mut rig = Rig::with_pool(limits(), 200, 200);
    rig.initialize(builder);
    rig.conn.set_sq(128, true);
    rig.hold = true;
    for cid in 0..128 {
        rig.command(&read(cid, 65536), &[]);
    }
    let mut stuck = 0;
    for slot in std::mem::take(&mut rig.held) {
        match rig.conn.take_buffer(65536, &mut rig.pool) {
            Some(buffer) => {
                rig.conn.attach(slot, buffer);
                rig.conn.respond(slot, Completion::SUCCESS, 65536);
            }
            None => {
                stuck += 1;
                rig.held.push(slot);
            }
        }
    }
    assert_eq!(stuck, 128 - limits().buffers.large, "no more than its share");
    let mut slices = Vec::new();
    rig.conn.transmit(&mut slices);
    let ready: usize = slices.iter().map(|slice| slice.len()).sum();
    assert!(ready <= limits().transmit_bytes + 65536 + 64, "{ready}");
    drop(slices);
    rig.finish();
}

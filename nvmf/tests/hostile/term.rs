//! H2CTermReq: never answered, always the end.

use lamina_nvmf::transport::Fault;

use crate::case::*;
use crate::rig::{Rig, flush};

/// The host ends the connection with this PDU, before and after ICReq, amid commands.
fn ends(lie: impl Fn(&mut Vec<u8>), fes: u16, fei: u32) {
    for cut in CUTS {
        for base in [Base::IcReq, Base::Read, Base::First] {
            for builder in digests() {
                let (mut rig, _) = prepare(base, builder, cut);
                rig.hold = true;
                if base != Base::IcReq {
                    rig.command(&flush(9), &[]);
                }
                rig.replies();
                let mut pdu = Vec::new();
                builder.term(&mut pdu, 2, 0x01020304, &[7; 24]);
                lie(&mut pdu);
                rig.send(&pdu);
                gone(rig, fes, fei);
            }
        }
    }
}

fn gone(mut rig: Rig, fes: u16, fei: u32) {
    assert_eq!(rig.conn.fatal(), Some(&Fault::Peers { fes, fei }));
    assert!(rig.conn.is_closed() && rig.conn.next_command().is_none());
    assert!(rig.out.is_empty(), "a termination request is not answered");
    assert_eq!(rig.conn.receive_space().len(), 0);
    rig.finish_whole();
}

#[test]
fn term_says_why() {
    ends(|_| (), 2, 0x01020304);
}

#[test]
fn term_without_a_header_to_show() {
    let short = |p: &mut Vec<u8>| {
        p.truncate(24);
        set32(p, 4, 24);
    };
    ends(short, 2, 0x01020304);
}

#[test]
fn term_hlen_0() {
    ends(|p| set8(p, 2, 0), 0, 0);
}

#[test]
fn term_hlen_23() {
    ends(|p| set8(p, 2, 23), 0, 0);
}

#[test]
fn term_hlen_25() {
    ends(|p| set8(p, 2, 25), 0, 0);
}

#[test]
fn term_hlen_255() {
    ends(|p| set8(p, 2, 255), 0, 0);
}

#[test]
fn term_plen_0() {
    ends(|p| set32(p, 4, 0), 0, 0);
}

#[test]
fn term_plen_23() {
    ends(|p| set32(p, 4, 23), 0, 0);
}

#[test]
fn term_plen_153() {
    ends(|p| set32(p, 4, 153), 0, 0);
}

#[test]
fn term_plen_max() {
    ends(|p| set32(p, 4, u32::MAX), 0, 0);
}

#[test]
fn term_digest_flags_are_not_looked_at() {
    ends(|p| set8(p, 1, 0xff), 2, 0x01020304);
}

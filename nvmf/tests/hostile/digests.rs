//! One bit of a PDU flipped, at every byte.

use lamina_nvmf::host::Builder;
use lamina_nvmf::transport::Fault;
use lamina_nvmf::wire::pdu::{FES_HEADER_DIGEST, FES_INVALID_HEADER_FIELD, FES_SEQUENCE};
use lamina_nvmf::wire::{Completion, Sgl, Status};

use crate::case::*;
use crate::rig::{Cut, Reply, flush, pattern, write};

const BOTH: Builder = Builder { header_digest: true, data_digest: true, cpda: 0 };

/// What a flipped bit of a header under its digest leads to: type, length and digest flag are
/// looked at before the digest (they say where it is), all else is a digest error.
fn header_flips(base: Base, hlen: usize) {
    for at in 0..hlen + 4 {
        for bit in 0..8 {
            let (mut rig, mut pdu) = prepare(base, BOTH, Cut::Every(29));
            pdu[at] ^= 1 << bit;
            rig.send(&pdu);
            let digest = u32::from_le_bytes(pdu[hlen..hlen + 4].try_into().expect("4 bytes"));
            let Some(Fault::Ours { fes, fei, .. }) = rig.conn.fatal() else {
                // A command that became a termination request is one.
                assert!(at == 0 && pdu[0] == 2, "byte {at} bit {bit}: {:?}", rig.conn.fatal());
                rig.finish_whole();
                continue;
            };
            match (at, bit) {
                (0, _) => {
                    assert!([FES_INVALID_HEADER_FIELD, FES_SEQUENCE].contains(fes), "{fes}");
                }
                (1, 0) => assert_eq!((*fes, *fei), (FES_INVALID_HEADER_FIELD, 1)),
                (2, _) => assert_eq!((*fes, *fei), (FES_INVALID_HEADER_FIELD, 2)),
                _ => assert_eq!((*fes, *fei), (FES_HEADER_DIGEST, digest), "byte {at} bit {bit}"),
            }
            assert!(rig.got.iter().all(|got| got.command.cid != CID));
            assert!(rig.conn.is_closed());
            rig.finish_whole();
        }
    }
}

#[test]
fn a_flipped_bit_in_the_header_of_a_write() {
    header_flips(Base::Write, 72);
}

#[test]
fn a_flipped_bit_in_the_header_of_a_read() {
    header_flips(Base::Read, 72);
}

#[test]
fn a_flipped_bit_in_the_header_of_data() {
    header_flips(Base::First, 24);
    header_flips(Base::Last, 24);
}

/// The command fails for this once, its data is never handed on, the connection goes on.
fn fails_alone(mut rig: crate::rig::Rig, at: usize) {
    let status = Status::TRANSIENT_TRANSPORT_ERROR;
    let end = Completion { cid: CID, sq_head: 1, ..Completion::status(status) };
    assert_eq!(rig.replies(), [Reply::Response(end)], "byte {at}");
    assert!(rig.got.is_empty(), "byte {at}: it was handed on");
    rig.command(&flush(1), &[]);
    assert_eq!((rig.got.len(), rig.replies().len()), (1, 1), "byte {at}");
    rig.finish_whole();
}

#[test]
fn a_flipped_bit_in_in_capsule_data() {
    for builder in digests().filter(|b| b.data_digest) {
        let mut whole = Vec::new();
        builder.command(&mut whole, &write(CID, Sgl::in_capsule(200)), &pattern(1, 200));
        let start = 72 + digest_bytes(builder).0 as usize;
        for at in start..whole.len() {
            let (mut rig, _) = prepare(Base::Read, builder, Cut::Every(50 + at % 300));
            let mut pdu = whole.clone();
            pdu[at] ^= 1 << (at % 8);
            rig.send(&pdu);
            fails_alone(rig, at);
        }
    }
}

#[test]
fn a_flipped_bit_in_data_that_was_asked_for() {
    for builder in digests().filter(|b| b.data_digest) {
        let start = 24 + digest_bytes(builder).0 as usize;
        for piece in 0..3u32 {
            for at in start..start + 100 + 4 {
                let (mut rig, _) = prepare(Base::Read, builder, Cut::Whole);
                let ttag = rig.ask(CID, 300);
                let mut all = Vec::new();
                for n in 0..3u32 {
                    let mut pdu = Vec::new();
                    let data = pattern(n, 100);
                    builder.h2c_data(&mut pdu, (CID, ttag), n * 100, &data, n == 2);
                    if n == piece {
                        pdu[at] ^= 1 << (at % 8);
                    }
                    all.extend_from_slice(&pdu);
                }
                rig.send(&all);
                fails_alone(rig, at);
            }
        }
    }
}

/// Large data goes straight into its buffer; its digest is looked at all the same.
#[test]
fn a_flipped_bit_in_data_that_comes_straight_into_its_buffer() {
    for at in [28, 29, 4000, 65536 + 27, 65536 + 28, 65536 + 31] {
        for cut in CUTS {
            let (mut rig, _) = prepare(Base::Read, BOTH, cut);
            let ttag = rig.ask(CID, 65536);
            let mut sent = 0;
            for data in pattern(3, 65536).chunks(8192) {
                let mut pdu = Vec::new();
                let last = sent + 8192 == 65536;
                BOTH.h2c_data(&mut pdu, (CID, ttag), sent, data, last);
                if (at as u32).saturating_sub(sent) < 8192 + 32 && at as u32 >= sent {
                    let here = (at as u32 - sent).min(8192 + 31) as usize;
                    pdu[here.max(28)] ^= 0x10;
                }
                sent += 8192;
                rig.send(&pdu);
            }
            fails_alone(rig, at);
        }
    }
}

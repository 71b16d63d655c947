//! The stream ends anywhere, or goes on for ever without making sense.

use lamina_nvmf::wire::{Sgl, Status};

use crate::case::*;
use crate::rig::{Cut, Random, Reply, Rig, flush, pattern, read, write};

/// A conversation with every kind of PDU; the tag is the one the first slot gets.
fn conversation(builder: lamina_nvmf::host::Builder, ttag: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    builder.icreq(&mut bytes, 0, 0);
    builder.command(&mut bytes, &write(1, Sgl::transport(300)), &[]);
    builder.h2c_data(&mut bytes, (1, ttag), 0, &pattern(1, 200), false);
    builder.command(&mut bytes, &write(2, Sgl::in_capsule(40)), &pattern(2, 40));
    builder.h2c_data(&mut bytes, (1, ttag), 200, &pattern(1, 100), true);
    builder.command(&mut bytes, &read(3, 70), &[]);
    builder.term(&mut bytes, 1, 2, &[1; 24]);
    bytes
}

/// The tag that the first transfer gets.
fn first_tag(builder: lamina_nvmf::host::Builder) -> u16 {
    let (mut rig, _) = prepare(Base::Read, builder, Cut::Whole);
    rig.ask(1, 300)
}

/// As a connection that is reset at each byte: whatever it was in the middle of goes back.
#[test]
fn cut_at_every_byte() {
    for builder in digests() {
        let bytes = conversation(builder, first_tag(builder));
        for hold in [false, true] {
            for end in 0..=bytes.len() {
                let mut rig = Rig::new(limits());
                rig.hold = hold;
                let start = end.min(128);
                rig.send(&bytes[..start]);
                if end > 128 {
                    rig.replies();
                    rig.builder = builder;
                    rig.conn.set_sq(16, true);
                    // The R2T goes out when its command is in: two steps, as a host would.
                    let asked = end.min(128 + 72 + digest_bytes(builder).0 as usize);
                    rig.send(&bytes[128..asked]);
                    rig.send(&bytes[asked..end]);
                }
                assert!(!matches!(
                    rig.conn.fatal(),
                    Some(lamina_nvmf::transport::Fault::Ours { .. })
                ));
                rig.finish_whole();
            }
        }
    }
}

#[test]
fn byte_by_byte() {
    for builder in digests() {
        let bytes = conversation(builder, first_tag(builder));
        let mut rig = Rig::new(limits());
        rig.cut = Cut::Every(1);
        rig.send(&bytes[..128]);
        rig.replies();
        rig.builder = builder;
        rig.conn.set_sq(16, true);
        rig.send(&bytes[128..]);
        let order: Vec<_> = rig.got.iter().map(|g| (g.command.cid, g.data.len())).collect();
        assert_eq!(order, [(2, 40), (1, 300), (3, 0)]);
        let replies = rig.replies();
        let ended = replies.iter().filter(|r| matches!(r, Reply::Response(c) if c.status.is_ok()));
        assert_eq!(ended.count(), 3, "{replies:?}");
        rig.finish_whole();
    }
}

#[test]
fn noise() {
    for seed in 0..500 {
        let mut random = Random(seed);
        let builder = digests().nth(seed as usize % 4).expect("one of four");
        let (mut rig, _) = prepare(Base::Read, builder, Cut::Random(seed));
        let noise: Vec<u8> = (0..600).map(|_| random.below(256) as u8).collect();
        rig.send(&noise);
        assert!(rig.got.is_empty(), "seed {seed}");
        assert!(rig.conn.is_closed(), "seed {seed}");
        rig.finish_whole();
    }
}

/// A lawful conversation with some bytes changed: it ends somehow, with nothing left behind.
#[test]
fn a_conversation_with_changed_bytes() {
    for seed in 0..1500u64 {
        let mut random = Random(seed);
        let builder = digests().nth(seed as usize % 4).expect("one of four");
        let mut bytes = conversation(builder, 0);
        for _ in 0..1 + random.below(3) {
            let at = 128 + random.below(bytes.len() - 128);
            bytes[at] = random.below(256) as u8;
        }
        let mut rig = Rig::new(limits());
        rig.send(&bytes[..128]);
        rig.replies();
        rig.builder = builder;
        rig.conn.set_sq(16, true);
        rig.cut = Cut::Random(seed);
        rig.send(&bytes[128..]);
        rig.replies();
        assert!(rig.got.len() <= 16);
        rig.finish_whole();
    }
}

/// Refused commands, over and over: no slot and no buffer is lost.
#[test]
fn ten_thousand_refused_commands() {
    for builder in digests() {
        let (mut rig, _) = prepare(Base::Read, builder, Cut::Whole);
        for n in 0..2500u32 {
            let length = 1 + n % 9000;
            let sgl = Sgl { length, ..Sgl::in_capsule(0) };
            rig.command(&write(n as u16, sgl), &pattern(0, length.min(8192) / 2 + 1)[..]);
            let replies = rig.replies();
            let [Reply::Response(end)] = replies[..] else { panic!("{n}: {replies:?}") };
            let short = length > length.min(8192) / 2 + 1;
            assert_eq!(end.status == Status::DATA_SGL_LENGTH_INVALID.dnr(), short, "{n}");
        }
        rig.command(&flush(1), &[]);
        assert_eq!(rig.conn.in_flight(), 0);
        rig.finish_whole();
    }
}

//! One PDU made to lie, and what becomes of it: with all kinds of digests, whole and byte by byte.

use lamina_nvmf::host::Builder;
use lamina_nvmf::transport::{Fault, Limits};
use lamina_nvmf::wire::pdu::{FES_INVALID_HEADER_FIELD, FES_SEQUENCE};
use lamina_nvmf::wire::{Sgl, Status};

use crate::rig::{Cut, Reply, Rig, flush, pattern, read, write};

/// Identifier of the command that lies.
pub const CID: u16 = 0x0107;
/// Data of the command that asks for data, and most of a PDU.
pub const ASKED: u32 = 12288;
pub const MAXH2CDATA: u32 = 8192;
/// Bytes of a common header.
pub const COMMON: usize = 8;

/// The PDU before it lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Base {
    IcReq,
    /// A write of 4 KiB in the capsule.
    Write,
    /// A write of 4 bytes in the capsule.
    Tiny,
    /// A read of 4 KiB.
    Read,
    /// The first 8 KiB of data that was asked for.
    First,
    /// The last 4 KiB of it.
    Last,
}

/// What becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// A termination request with this status, this information and so much of the header.
    Fatal(u16, u32, usize),
    /// The command ends with this status, the connection goes on.
    Status(Status),
    /// Nothing is wrong; the command got so much data.
    Fine(usize),
}

/// A wrong field at this offset.
pub const fn field(at: u32, shown: usize) -> End {
    End::Fatal(FES_INVALID_HEADER_FIELD, at, shown)
}

pub const fn sequence(shown: usize) -> End {
    End::Fatal(FES_SEQUENCE, 0, shown)
}

pub fn limits() -> Limits {
    Limits { maxh2cdata: MAXH2CDATA, ..Limits::default() }
}

pub fn digests() -> impl Iterator<Item = Builder> {
    (0..4).map(|n| Builder { header_digest: n & 1 != 0, data_digest: n & 2 != 0, cpda: 0 })
}

pub const CUTS: [Cut; 4] = [Cut::Whole, Cut::Every(1), Cut::Every(13), Cut::Random(5)];

/// Bytes of digests that a PDU with data has behind its header and behind its data.
pub fn digest_bytes(builder: Builder) -> (u32, u32) {
    (4 * u32::from(builder.header_digest), 4 * u32::from(builder.data_digest))
}

pub fn set8(pdu: &mut [u8], at: u32, value: u8) {
    pdu[at as usize] = value;
}

pub fn set16(pdu: &mut [u8], at: u32, value: u16) {
    pdu[at as usize..][..2].copy_from_slice(&value.to_le_bytes());
}

pub fn set32(pdu: &mut [u8], at: u32, value: u32) {
    pdu[at as usize..][..4].copy_from_slice(&value.to_le_bytes());
}

/// A rig where `base` would be right, and `base`.
pub fn prepare(base: Base, builder: Builder, cut: Cut) -> (Rig, Vec<u8>) {
    let mut pdu = Vec::new();
    let mut rig = Rig::new(limits());
    rig.cut = cut;
    if base == Base::IcReq {
        builder.icreq(&mut pdu, 0, 0);
        return (rig, pdu);
    }
    rig.initialize(builder);
    rig.conn.set_sq(16, true);
    let data = pattern(3, 8192);
    match base {
        Base::IcReq => {}
        Base::Write => builder.command(&mut pdu, &write(CID, Sgl::in_capsule(4096)), &data[..4096]),
        Base::Tiny => builder.command(&mut pdu, &write(CID, Sgl::in_capsule(4)), &data[..4]),
        Base::Read => builder.command(&mut pdu, &read(CID, 4096), &[]),
        Base::First | Base::Last => {
            let ttag = rig.ask(CID, ASKED);
            builder.h2c_data(&mut pdu, (CID, ttag), 0, &data, false);
            if base == Base::Last {
                rig.send(&std::mem::take(&mut pdu));
                builder.h2c_data(&mut pdu, (CID, ttag), 8192, &data[..4096], true);
            }
        }
    }
    (rig, pdu)
}

/// Tells the lie and checks its end.
pub fn check(base: Base, lie: impl Fn(&mut Vec<u8>, Builder), end: End) {
    let all = digests().take(if base == Base::IcReq { 1 } else { 4 });
    for builder in all {
        for cut in CUTS {
            let (mut rig, mut pdu) = prepare(base, builder, cut);
            lie(&mut pdu, builder);
            builder.reseal(&mut pdu);
            rig.send(&pdu);
            let context = format!("{builder:?}, {cut:?}");
            conclude(rig, &pdu, end, &context);
        }
    }
}

/// Sends one command more, checks how all of it ended and that nothing is left.
pub fn conclude(mut rig: Rig, pdu: &[u8], end: End, context: &str) {
    let before = rig.got.len();
    if let End::Fatal(fes, fei, shown) = end {
        assert!(rig.conn.is_closed(), "{context}: open, {:?}", rig.conn.fatal());
        let fault = rig.conn.fatal();
        let told =
            matches!(fault, Some(Fault::Ours { fes: s, fei: i, .. }) if (*s, *i) == (fes, fei));
        assert!(told, "{context}: {fault:?}");
        let replies = rig.replies();
        let header = pdu[..shown].to_vec();
        let term = Reply::Term { fes, fei, header };
        assert_eq!(replies.last(), Some(&term), "{context}");
        let terms = replies.iter().filter(|reply| matches!(reply, Reply::Term { .. })).count();
        assert_eq!(terms, 1, "{context}");
        assert!(rig.got.iter().all(|got| got.command.cid != CID), "{context}: it was handed on");
        rig.finish_whole();
        return;
    }
    if !rig.conn.is_initialized() || rig.conn.digests() != digests_of(&rig) {
        panic!("{context}: not open");
    }
    let mine = rig.replies();
    if let End::Status(status) = end {
        let ended = mine
            .iter()
            .any(|reply| matches!(reply, Reply::Response(c) if c.cid == CID && c.status == status));
        assert!(ended, "{context}: {mine:?}");
        assert!(rig.got.iter().all(|got| got.command.cid != CID), "{context}: it was handed on");
    }
    if let End::Fine(len) = end
        && let Some(got) = rig.got.iter().find(|got| got.command.cid == CID)
    {
        assert_eq!(got.data.len(), len, "{context}");
    }
    rig.conn.set_sq(16, true);
    rig.command(&flush(0x7777), &[]);
    assert_eq!(rig.got.len(), before + 1, "{context}: the next command is understood");
    assert!(matches!(rig.replies()[..], [Reply::Response(c)] if c.cid == 0x7777), "{context}");
    assert!(!rig.conn.is_closed(), "{context}");
    rig.finish_whole();
}

fn digests_of(rig: &Rig) -> (bool, bool) {
    let Builder { header_digest, data_digest, .. } = rig.builder;
    (header_digest, data_digest)
}

/// Makes a test of each line.
macro_rules! lies {
    ($base:ident { $($name:ident: $lie:expr => $end:expr;)* }) => {
        $(
            #[test]
            fn $name() {
                check(Base::$base, $lie, $end);
            }
        )*
    };
}
pub(crate) use lies;

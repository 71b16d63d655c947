//! Layout of the PDUs (TCP 1.1, 3.6.2), their types, flags and error codes.

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{RawCommand, RawCompletion};

/// Initialize Connection Request, host to controller.
pub const TYPE_ICREQ: u8 = 0x00;
/// Initialize Connection Response.
pub const TYPE_ICRESP: u8 = 0x01;
/// Host to Controller Terminate Connection Request.
pub const TYPE_H2C_TERM: u8 = 0x02;
/// Controller to Host Terminate Connection Request.
pub const TYPE_C2H_TERM: u8 = 0x03;
/// Command Capsule, host to controller.
pub const TYPE_COMMAND: u8 = 0x04;
/// Response Capsule.
pub const TYPE_RESPONSE: u8 = 0x05;
/// Host to Controller Data Transfer.
pub const TYPE_H2C_DATA: u8 = 0x06;
/// Controller to Host Data Transfer.
pub const TYPE_C2H_DATA: u8 = 0x07;
/// Ready to Transfer, controller to host.
pub const TYPE_R2T: u8 = 0x09;

/// A header digest follows the header.
pub const FLAG_HEADER_DIGEST: u8 = 1 << 0;
/// A data digest follows the data.
pub const FLAG_DATA_DIGEST: u8 = 1 << 1;
/// H2CData, C2HData: the last of its transfer.
pub const FLAG_LAST: u8 = 1 << 2;
/// C2HData: the command has succeeded, no response capsule follows.
pub const FLAG_SUCCESS: u8 = 1 << 3;

/// ICReq and ICResp, DGST: header digests wanted, or on.
pub const DIGEST_HEADER: u8 = 1 << 0;
/// ICReq and ICResp, DGST: data digests wanted, or on.
pub const DIGEST_DATA: u8 = 1 << 1;

/// Bytes of a digest.
pub const DIGEST_BYTES: usize = 4;
/// Longest header of a PDU, bytes.
pub const HEADER_BYTES_MAX: usize = 128;
/// Largest value of HPDA and CPDA: data lies at multiples of 128 bytes.
pub const ALIGNMENT_MAX: u8 = 31;
/// Bytes of an offending header that a termination request may carry.
pub const TERM_DATA_MAX: usize = 128;
/// Least value of MAXH2CDATA, bytes.
pub const MAXH2CDATA_MIN: u32 = 4096;

/// Fatal error: a field of the header is wrong; the error information is its offset.
pub const FES_INVALID_HEADER_FIELD: u16 = 0x01;
/// Fatal error: a PDU that may not come now.
pub const FES_SEQUENCE: u16 = 0x02;
/// Fatal error: the header digest does not match; the error information is the digest received.
pub const FES_HEADER_DIGEST: u16 = 0x03;
/// Fatal error: data outside of what was asked for.
pub const FES_OUT_OF_RANGE: u16 = 0x04;
/// Fatal error: more data in a PDU than MAXH2CDATA (host: more R2Ts than MAXR2T).
pub const FES_LIMIT_EXCEEDED: u16 = 0x05;
/// Fatal error: a parameter that is not supported; the error information is its offset.
pub const FES_UNSUPPORTED: u16 = 0x06;

/// Offsets of fields, as error information names them.
pub mod offset {
    /// PDU-Type.
    pub const TYPE: u32 = 0;
    /// FLAGS.
    pub const FLAGS: u32 = 1;
    /// HLEN.
    pub const HLEN: u32 = 2;
    /// PDO.
    pub const PDO: u32 = 3;
    /// PLEN.
    pub const PLEN: u32 = 4;
    /// PFV of ICReq and ICResp.
    pub const PFV: u32 = 8;
    /// HPDA of ICReq, CPDA of ICResp.
    pub const PDA: u32 = 10;
    /// MAXH2CDATA of ICResp.
    pub const MAXH2CDATA: u32 = 12;
    /// CCCID of H2CData, C2HData and R2T.
    pub const CCCID: u32 = 8;
    /// TTAG of H2CData and R2T.
    pub const TTAG: u32 = 10;
    /// DATAO of H2CData and C2HData, R2TO of R2T.
    pub const DATAO: u32 = 12;
    /// DATAL of H2CData and C2HData, R2TL of R2T.
    pub const DATAL: u32 = 16;
}

/// Common header, 8 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CommonHeader {
    /// One of the `TYPE_` constants.
    pub kind: u8,
    /// `FLAG_` constants.
    pub flags: u8,
    /// Bytes of the header, without digest.
    pub hlen: u8,
    /// Where data begins, bytes from the start of the PDU.
    pub pdo: u8,
    /// Bytes of the PDU with all of it.
    pub plen: U32,
}

/// ICReq.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IcReq {
    /// Common header.
    pub ch: CommonHeader,
    /// Version of the PDU format, 0.
    pub pfv: U16,
    /// Alignment of data sent to the host: dwords, one less.
    pub hpda: u8,
    /// `DIGEST_` constants.
    pub digest: u8,
    /// R2Ts the host takes at a time and command, one less.
    pub maxr2t: U32,
    /// Zero.
    pub reserved: [u8; 112],
}

/// ICResp.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IcResp {
    /// Common header.
    pub ch: CommonHeader,
    /// Version of the PDU format, 0.
    pub pfv: U16,
    /// Alignment of data sent to the controller: dwords, one less.
    pub cpda: u8,
    /// `DIGEST_` constants.
    pub digest: u8,
    /// Most data of an H2CData, bytes.
    pub maxh2cdata: U32,
    /// Zero.
    pub reserved: [u8; 112],
}

/// H2CTermReq and C2HTermReq; up to [`TERM_DATA_MAX`] bytes of the offending header follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TermReq {
    /// Common header.
    pub ch: CommonHeader,
    /// Fatal error status, a `FES_` constant.
    pub fes: U16,
    /// Error information: an offset or a digest.
    pub fei: U32,
    /// Zero.
    pub reserved: [u8; 10],
}

/// CapsuleCmd.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CapsuleCmd {
    /// Common header.
    pub ch: CommonHeader,
    /// Submission queue entry.
    pub command: RawCommand,
}

/// CapsuleResp.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CapsuleResp {
    /// Common header.
    pub ch: CommonHeader,
    /// Completion queue entry.
    pub completion: RawCompletion,
}

/// H2CData, C2HData (without transfer tag) and R2T: they differ in names only.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Transfer {
    /// Common header.
    pub ch: CommonHeader,
    /// Command that the data belongs to.
    pub cccid: U16,
    /// Tag of the transfer, chosen by the controller; zero in C2HData.
    pub ttag: U16,
    /// Where in the command's data it begins, bytes.
    pub offset: U32,
    /// Bytes of it.
    pub length: U32,
    /// Zero.
    pub reserved: [u8; 4],
}

const _: () = assert!(size_of::<CommonHeader>() == 8);
const _: () = assert!(size_of::<IcReq>() == 128);
const _: () = assert!(size_of::<IcResp>() == 128);
const _: () = assert!(size_of::<TermReq>() == 24);
const _: () = assert!(size_of::<CapsuleCmd>() == 72);
const _: () = assert!(size_of::<CapsuleResp>() == 24);
const _: () = assert!(size_of::<Transfer>() == 24);
const _: () = assert!(std::mem::offset_of!(IcReq, hpda) == offset::PDA as usize);
const _: () = assert!(std::mem::offset_of!(IcResp, maxh2cdata) == offset::MAXH2CDATA as usize);
const _: () = assert!(std::mem::offset_of!(Transfer, ttag) == offset::TTAG as usize);
const _: () = assert!(std::mem::offset_of!(Transfer, offset) == offset::DATAO as usize);
const _: () = assert!(std::mem::offset_of!(Transfer, length) == offset::DATAL as usize);

/// Bytes of the header of a PDU of this type, `None` if there is no such type.
pub const fn header_bytes(kind: u8) -> Option<usize> {
    match kind {
        TYPE_ICREQ | TYPE_ICRESP => Some(128),
        TYPE_COMMAND => Some(72),
        TYPE_H2C_TERM | TYPE_C2H_TERM | TYPE_RESPONSE | TYPE_H2C_DATA | TYPE_C2H_DATA
        | TYPE_R2T => Some(24),
        _ => None,
    }
}

/// Where data begins behind `header` bytes (digest included) if it must lie at a multiple of
/// `alignment + 1` dwords (HPDA, CPDA).
pub const fn data_offset(header: usize, alignment: u8) -> usize {
    header.next_multiple_of((alignment as usize + 1) * 4)
}

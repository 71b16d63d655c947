//! The one SGL descriptor that a command carries (Base 2.1, 4.3.2; TCP 1.1, 3.4).

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// SGL descriptor as it lies in a command.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawSgl {
    /// Offset of in-capsule data; reserved for a transport data block.
    pub address: U64,
    /// Bytes.
    pub length: U32,
    /// Zero.
    pub reserved: [u8; 3],
    /// Type (high four bits) and subtype.
    pub identifier: u8,
}

const _: () = assert!(size_of::<RawSgl>() == 16);

/// Data block (0h), subtype offset (1h): the data is in the capsule.
const IN_CAPSULE: u8 = 0x01;
/// Transport data block (5h), subtype NVMe transport (Ah): the data goes by data PDUs.
const TRANSPORT: u8 = 0x5a;

/// Where a command's data is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SglKind {
    /// In the capsule, from this offset of its data.
    InCapsule {
        /// Bytes from the start of the in-capsule data.
        offset: u64,
    },
    /// In data PDUs of their own.
    Transport,
    /// A descriptor that NVMe/TCP does not have; its type and subtype.
    Other(u8),
}

/// SGL descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sgl {
    /// Where the data is.
    pub kind: SglKind,
    /// Bytes.
    pub length: u32,
}

impl Sgl {
    /// Data in the capsule, right at its start.
    pub const fn in_capsule(length: u32) -> Sgl {
        Sgl { kind: SglKind::InCapsule { offset: 0 }, length }
    }

    /// Data by data PDUs.
    pub const fn transport(length: u32) -> Sgl {
        Sgl { kind: SglKind::Transport, length }
    }
}

impl From<&RawSgl> for Sgl {
    fn from(raw: &RawSgl) -> Sgl {
        let kind = match raw.identifier {
            IN_CAPSULE => SglKind::InCapsule { offset: raw.address.get() },
            TRANSPORT => SglKind::Transport,
            other => SglKind::Other(other),
        };
        Sgl { kind, length: raw.length.get() }
    }
}

impl From<&Sgl> for RawSgl {
    fn from(sgl: &Sgl) -> RawSgl {
        let (address, identifier) = match sgl.kind {
            SglKind::InCapsule { offset } => (offset, IN_CAPSULE),
            SglKind::Transport => (0, TRANSPORT),
            SglKind::Other(identifier) => (0, identifier),
        };
        RawSgl {
            address: U64::new(address),
            length: U32::new(sgl.length),
            reserved: [0; 3],
            identifier,
        }
    }
}

//! Completion queue entry (Base 2.1, 4.2).

use zerocopy::byteorder::little_endian::U16;
use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Status;

/// Completion queue entry as it lies in a capsule.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawCompletion {
    /// Dwords 0 and 1: the command's result.
    pub result: [U32; 2],
    /// Submission queue head.
    pub sq_head: U16,
    /// Submission queue identifier; reserved over fabrics.
    pub sq_id: U16,
    /// Command identifier.
    pub cid: U16,
    /// Status in bits 15:1; bit 0, the phase, is reserved over fabrics.
    pub status: U16,
}

const _: () = assert!(size_of::<RawCompletion>() == 16);

/// Completion queue entry, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Completion {
    /// Dword 0.
    pub dw0: u32,
    /// Dword 1.
    pub dw1: u32,
    /// Submission queue head. The transport fills it in where flow control is on; where it is off,
    /// what stands here is sent (FFFFh in the answer to a Connect, else 0).
    pub sq_head: u16,
    /// Command identifier; the transport fills it in.
    pub cid: u16,
    /// How the command ended.
    pub status: Status,
}

impl Completion {
    /// Success without a result.
    pub const SUCCESS: Completion =
        Completion { dw0: 0, dw1: 0, sq_head: 0, cid: 0, status: Status::SUCCESS };

    /// Success with dword 0.
    pub const fn value(dw0: u32) -> Completion {
        Completion { dw0, ..Completion::SUCCESS }
    }

    /// Success with dwords 0 and 1 as one number.
    pub const fn value64(value: u64) -> Completion {
        Completion { dw0: value as u32, dw1: (value >> 32) as u32, ..Completion::SUCCESS }
    }

    /// Just a status.
    pub const fn status(status: Status) -> Completion {
        Completion { status, ..Completion::SUCCESS }
    }
}

impl From<Status> for Completion {
    fn from(status: Status) -> Completion {
        Completion::status(status)
    }
}

impl From<&Completion> for RawCompletion {
    fn from(completion: &Completion) -> RawCompletion {
        RawCompletion {
            result: [U32::new(completion.dw0), U32::new(completion.dw1)],
            sq_head: U16::new(completion.sq_head),
            sq_id: U16::new(0),
            cid: U16::new(completion.cid),
            status: U16::new(completion.status.0 << 1),
        }
    }
}

impl From<&RawCompletion> for Completion {
    fn from(raw: &RawCompletion) -> Completion {
        Completion {
            dw0: raw.result[0].get(),
            dw1: raw.result[1].get(),
            sq_head: raw.sq_head.get(),
            cid: raw.cid.get(),
            status: Status(raw.status.get() >> 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_survives_the_wire() {
        let all = Completion {
            dw0: 0x01020304,
            dw1: 0x05060708,
            sq_head: 0x0910,
            cid: 0x1112,
            status: Status::LBA_OUT_OF_RANGE.dnr(),
        };
        let raw = RawCompletion::from(&all);
        assert_eq!(raw.as_bytes()[..4], [4, 3, 2, 1]);
        assert_eq!(raw.as_bytes()[14..], [0x00, 0x81], "status above the phase bit, DNR on top");
        assert_eq!(Completion::from(&raw), all);
        assert_eq!(Completion::value64(0x0506070801020304).dw1, 0x05060708);
    }
}

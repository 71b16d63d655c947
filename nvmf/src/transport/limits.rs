//! What a connection may do, and how it can end.

use crate::pool::{SMALL_BYTES, ShareMax};
use crate::wire::pdu::{ALIGNMENT_MAX, MAXH2CDATA_MIN};

/// Most entries of a submission queue: ten bits of a transfer tag.
pub const DEPTH_MAX: u16 = 1024;
/// In-capsule data that Connect and other fabrics and admin commands may have on any queue, bytes
/// (TCP 1.1, 3.4.1).
pub const ADMIN_IN_CAPSULE: u32 = 8192;

/// Settings of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Most in-capsule data, bytes; what IOCCSZ says less 64.
    pub in_capsule: u32,
    /// Most data of a command, bytes; what MDTS says.
    pub data_max: u32,
    /// Most data of an H2CData, bytes, a multiple of 4. Not below `data_max`, if hosts shall be
    /// served that do not look at it (Linux before 5.17).
    pub maxh2cdata: u32,
    /// Most data of a C2HData, bytes.
    pub c2h_data_max: u32,
    /// Alignment asked of the host's data: dwords, one less (CPDA).
    pub cpda: u8,
    /// Header digests, if the host wants them.
    pub header_digest: bool,
    /// Data digests, if the host wants them.
    pub data_digest: bool,
    /// A read's last data stands for its completion where that may be (SUCCESS flag).
    pub success_flag: bool,
    /// Bytes of the receive buffer, once the queue is connected.
    pub receive_bytes: usize,
    /// Bytes that are made ready to be sent at a time.
    pub transmit_bytes: usize,
    /// Most data buffers it may have out.
    pub buffers: ShareMax,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            in_capsule: 8192,
            data_max: 128 << 10,
            maxh2cdata: 128 << 10,
            c2h_data_max: 128 << 10,
            cpda: 0,
            header_digest: true,
            data_digest: true,
            success_flag: true,
            receive_bytes: 64 << 10,
            transmit_bytes: 1 << 20,
            buffers: ShareMax { small: 128, large: 32 },
        }
    }
}

impl Limits {
    /// # Panics
    /// A value makes no sense.
    pub(super) fn check(&self) {
        assert!(self.in_capsule >= ADMIN_IN_CAPSULE && self.in_capsule as usize <= SMALL_BYTES);
        assert!(self.data_max >= self.in_capsule);
        assert!(self.maxh2cdata >= MAXH2CDATA_MIN && self.maxh2cdata.is_multiple_of(4));
        assert!(self.c2h_data_max >= 512 && self.cpda <= ALIGNMENT_MAX);
        assert!(self.receive_bytes >= 4096 && self.transmit_bytes >= 4096);
        assert!(self.buffers.small >= 1 && self.buffers.large >= 1);
    }
}

/// Why a connection is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The host broke the protocol and is told so.
    Ours {
        /// Fatal error status, a `FES_` constant of [`crate::wire::pdu`].
        fes: u16,
        /// Fatal error information: an offset in the header, or the header digest received.
        fei: u32,
        /// For people.
        what: &'static str,
    },
    /// The host says that we broke the protocol.
    Peers {
        /// Fatal error status, 0 if its termination request is itself broken.
        fes: u16,
        /// Fatal error information.
        fei: u32,
    },
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Ours { fes, fei, what } => {
                write!(f, "the host broke the protocol: {what} (FES {fes:#04x}, FEI {fei:#x})")
            }
            Fault::Peers { fes, fei } => {
                write!(f, "the host ended the connection (FES {fes:#04x}, FEI {fei:#x})")
            }
        }
    }
}

//! Opcodes, fabrics command types and the identifiers that go with them.

/// Admin commands (Base 2.1, 5).
pub mod admin {
    /// Delete I/O Submission Queue; not over fabrics.
    pub const DELETE_SQ: u8 = 0x00;
    /// Create I/O Submission Queue; not over fabrics.
    pub const CREATE_SQ: u8 = 0x01;
    /// Get Log Page (5.1.12).
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Delete I/O Completion Queue; not over fabrics.
    pub const DELETE_CQ: u8 = 0x04;
    /// Create I/O Completion Queue; not over fabrics.
    pub const CREATE_CQ: u8 = 0x05;
    /// Identify (5.1.13).
    pub const IDENTIFY: u8 = 0x06;
    /// Abort (5.1.1).
    pub const ABORT: u8 = 0x08;
    /// Set Features (5.1.25).
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features (5.1.11).
    pub const GET_FEATURES: u8 = 0x0a;
    /// Asynchronous Event Request (5.1.2).
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0c;
    /// Namespace Management (5.1.21).
    pub const NAMESPACE_MANAGEMENT: u8 = 0x0d;
    /// Firmware Commit (5.1.8).
    pub const FIRMWARE_COMMIT: u8 = 0x10;
    /// Firmware Image Download (5.1.9).
    pub const FIRMWARE_DOWNLOAD: u8 = 0x11;
    /// Device Self-test (5.1.5).
    pub const DEVICE_SELF_TEST: u8 = 0x14;
    /// Namespace Attachment (5.1.20).
    pub const NAMESPACE_ATTACHMENT: u8 = 0x15;
    /// Keep Alive (5.1.14).
    pub const KEEP_ALIVE: u8 = 0x18;
    /// Format NVM (5.1.10).
    pub const FORMAT_NVM: u8 = 0x80;
    /// Security Send (5.1.24).
    pub const SECURITY_SEND: u8 = 0x81;
    /// Security Receive (5.1.23).
    pub const SECURITY_RECEIVE: u8 = 0x82;
    /// Sanitize (5.1.22).
    pub const SANITIZE: u8 = 0x84;
}

/// I/O commands: those of all command sets (Base 2.1, 7) and of the NVM one (NVM 1.1, 3.3).
pub mod nvm {
    /// Flush (Base 7.2).
    pub const FLUSH: u8 = 0x00;
    /// Write (NVM 3.3.6).
    pub const WRITE: u8 = 0x01;
    /// Read (NVM 3.3.4).
    pub const READ: u8 = 0x02;
    /// Write Uncorrectable (NVM 3.3.7).
    pub const WRITE_UNCORRECTABLE: u8 = 0x04;
    /// Compare (NVM 3.3.1).
    pub const COMPARE: u8 = 0x05;
    /// Write Zeroes (NVM 3.3.8).
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management (NVM 3.3.3).
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    /// Verify (NVM 3.3.5).
    pub const VERIFY: u8 = 0x0c;
    /// Reservation Register (Base 7.6).
    pub const RESERVATION_REGISTER: u8 = 0x0d;
    /// Reservation Report (Base 7.8).
    pub const RESERVATION_REPORT: u8 = 0x0e;
    /// Reservation Acquire (Base 7.5).
    pub const RESERVATION_ACQUIRE: u8 = 0x11;
    /// Reservation Release (Base 7.7).
    pub const RESERVATION_RELEASE: u8 = 0x15;
    /// Cancel (Base 7.1).
    pub const CANCEL: u8 = 0x18;
    /// Copy (NVM 3.3.2).
    pub const COPY: u8 = 0x19;
}

/// Fabrics commands (Base 2.1, 6): one opcode, the type is in byte 4.
pub mod fabrics {
    /// Opcode of all of them.
    pub const OPCODE: u8 = 0x7f;
    /// Property Set (6.6).
    pub const PROPERTY_SET: u8 = 0x00;
    /// Connect (6.3).
    pub const CONNECT: u8 = 0x01;
    /// Property Get (6.5).
    pub const PROPERTY_GET: u8 = 0x04;
    /// Authentication Send (6.2).
    pub const AUTHENTICATION_SEND: u8 = 0x05;
    /// Authentication Receive (6.1).
    pub const AUTHENTICATION_RECEIVE: u8 = 0x06;
    /// Disconnect (6.4).
    pub const DISCONNECT: u8 = 0x08;
}

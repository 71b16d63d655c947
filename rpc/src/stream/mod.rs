//! The form of an exported snapshot: a stream of bytes that a pipe can carry and a file can keep.
//!
//! ```text
//!  ┌ header 256 B ┬ record ┬ record ┬ ... ┬ end record ┐     all numbers little-endian
//!  └──────────────┴────────┴────────┴─────┴────────────┘
//!  header:  0 magic "LAMSTRM\n"   8 version u32 = 1   12 header length u32 = 256
//!          16 flags u32: 1 = incremental              20 block size u32 = 4096
//!          24 disk UUID [16]   40 snapshot UUID [16]  56 UUID of the older snapshot [16], or 0
//!          72 size u64, bytes  80 size of the older snapshot u64, or 0   88 time taken u64
//!          96 disk name: length u8, 63 bytes          160 label: length u8, 63 bytes
//!         224 zeros            252 crc32c of bytes 0 to 251
//!  record:  0 magic "LREC"      4 kind u32             8 number u64: 0, 1, 2, ...
//!          16 offset u64       24 length u64          32 crc32c of the payload u32
//!          36 crc32c of bytes 0 to 35
//!          40 payload: `length` bytes for data, abort and end, none otherwise
//!
//!  1 data      the bytes from `offset` on; at most 1 MiB
//!  2 hole      `length` bytes from `offset` on read as zeros
//!  3 progress  all there is to say of bytes before `offset` has been said; `length` 0
//!  4 end       `offset` is the size; payload: data records, data bytes, hole records, hole bytes
//!              (u64 each), crc32c u32 of all bytes of the stream before this record, zeros u32
//!  5 abort     the sender cannot go on: why, as text
//! ```
//!
//! Data and holes are whole blocks, ascending, within the size. What no record speaks of is as it
//! was in the older snapshot, or a hole in a full stream. A stream that breaks off is good up to
//! its last whole record, and the sender can go on from there ([`StreamMark`]).
//!
//! Both sides are pure: bytes in, bytes out. Streams are hostile input: the decoder keeps at most
//! one record, checks every field, and says at which record and byte it found what is wrong.

mod decode;
mod encode;
#[cfg(test)]
mod fuzz;

pub use decode::{Decoder, Event};
pub use encode::Encoder;

use serde::{Deserialize, Serialize};

/// First bytes of a stream.
pub const MAGIC: [u8; 8] = *b"LAMSTRM\n";
/// Version of the form.
pub const VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 256;
/// Bytes of a record without its payload.
pub const RECORD_BYTES: usize = 40;
/// Most bytes of a data record's payload.
pub const DATA_BYTES_MAX: usize = 1 << 20;
/// Bytes of a block.
pub const BLOCK_BYTES: u64 = 4096;
/// Largest size of a disk in a stream: 256 TiB.
pub const SIZE_MAX: u64 = 256 << 40;
/// Longest name, bytes.
pub const NAME_BYTES_MAX: usize = 63;
/// Longest text of an abort record, bytes.
pub const ABORT_BYTES_MAX: usize = 1024;

pub(crate) const RECORD_MAGIC: [u8; 4] = *b"LREC";
pub(crate) const INCREMENTAL: u32 = 1;
pub(crate) const END_BYTES: usize = 40;

/// Kinds of records, as they are on the wire.
pub(crate) mod kind {
    pub const DATA: u32 = 1;
    pub const HOLE: u32 = 2;
    pub const PROGRESS: u32 = 3;
    pub const END: u32 = 4;
    pub const ABORT: u32 = 5;
}

/// What a stream is of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// UUID of the disk.
    pub disk: [u8; 16],
    /// UUID of the snapshot.
    pub snapshot: [u8; 16],
    /// UUID of the older snapshot that an incremental stream begins from.
    pub base: Option<[u8; 16]>,
    /// Bytes presented.
    pub size: u64,
    /// Bytes that the older snapshot presents; 0 without one.
    pub base_size: u64,
    /// When the snapshot was taken, seconds since 1970.
    pub time: u64,
    /// Name of the disk.
    pub disk_name: String,
    /// Label of the snapshot, maybe empty.
    pub label: String,
}

/// What a stream has had so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Data records.
    pub data_records: u64,
    /// Their bytes.
    pub data_bytes: u64,
    /// Hole records.
    pub hole_records: u64,
    /// Their bytes.
    pub hole_bytes: u64,
}

/// A place after a whole record, from which a stream can go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamMark {
    /// Bytes of the stream up to here.
    pub bytes: u64,
    /// Number of the next record.
    pub record: u64,
    /// Byte of the disk up to which all has been said.
    pub offset: u64,
    /// What there was so far.
    pub totals: Totals,
    /// crc32c of the stream up to here.
    pub checksum: u32,
}

/// What is wrong with a stream, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamError {
    /// Number of the record; `None`: the header.
    pub record: Option<u64>,
    /// Byte of the stream at which that begins.
    pub at: u64,
    /// What is wrong.
    pub why: String,
}

impl std::fmt::Display for StreamError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.record {
            Some(record) => write!(f, "record {record} at byte {}: {}", self.at, self.why),
            None => write!(f, "header: {}", self.why),
        }
    }
}

impl std::error::Error for StreamError {}

/// UUIDs as people write them.
pub fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    parts.join("-")
}

#[cfg(test)]
mod tests;

//! The fields of I/O commands (NVM 1.1, 3.3), decoded and checked against a namespace.

use crate::subsystem::{NsEntry, NsTable};
use crate::wire::{Command, Status};

/// Blocks a Copy command's source range may have (MSSRL).
pub const COPY_RANGE_BLOCKS_MAX: u16 = 2048;
/// Blocks a Copy command may copy altogether (MCL).
pub const COPY_BLOCKS_MAX: u32 = 16384;
/// Source ranges of a Copy command (MSRC is one less).
pub const COPY_RANGES_MAX: usize = 128;
/// NSID that stands for all namespaces.
pub const NSID_ALL: u32 = 0xffff_ffff;
/// Bytes of a fused compare-and-write: what the engine changes atomically.
pub const ATOMIC_BYTES: u64 = 4096;

/// A run of logical blocks that lies in its namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Range {
    /// First block.
    pub slba: u64,
    /// Blocks, at least 1.
    pub blocks: u64,
}

impl Range {
    /// Bytes from the start of the namespace.
    pub fn offset(self, ns: &NsEntry) -> u64 {
        self.slba << ns.block_shift
    }

    /// Bytes.
    pub fn len(self, ns: &NsEntry) -> u64 {
        self.blocks << ns.block_shift
    }

    pub fn overlaps(self, other: Range) -> bool {
        self.slba < other.slba + other.blocks && other.slba < self.slba + self.blocks
    }
}

/// What a command does to the namespace, as reservations see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Intent {
    /// Looks at data.
    Read,
    /// Changes data.
    Write,
    /// Changes nothing a read-only namespace protects, but counts as a write for reservations.
    Flush,
}

/// The namespace of `nsid`, if this host may do that to it on this path.
pub(super) fn namespace(table: &NsTable, nsid: u32, intent: Intent) -> Result<&NsEntry, Status> {
    let ns = table.get(nsid).ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.dnr())?;
    permitted(ns, intent)?;
    Ok(ns)
}

/// Path first, then reservation, then write protection.
pub(super) fn permitted(ns: &NsEntry, intent: Intent) -> Result<(), Status> {
    super::status::path(ns.ana)?;
    let allowed = match intent {
        Intent::Read => ns.access.read,
        Intent::Write | Intent::Flush => ns.access.write,
    };
    if !allowed {
        return Err(Status::RESERVATION_CONFLICT.dnr());
    }
    if intent == Intent::Write && ns.readonly {
        return Err(Status::NAMESPACE_IS_WRITE_PROTECTED.dnr());
    }
    Ok(())
}

/// SLBA (command dwords 10 and 11) and NLB (dword 12, zero-based).
pub(super) fn lba_range(command: &Command, ns: &NsEntry) -> Result<Range, Status> {
    in_bounds(command.cdw10_11(), u64::from(command.cdw12 & 0xffff) + 1, ns)
}

/// The range, if it ends within the namespace.
pub(super) fn in_bounds(slba: u64, blocks: u64, ns: &NsEntry) -> Result<Range, Status> {
    match slba.checked_add(blocks) {
        Some(end) if end <= ns.blocks => Ok(Range { slba, blocks }),
        _ => Err(Status::LBA_OUT_OF_RANGE.dnr()),
    }
}

/// FUA, dword 12 bit 30.
pub(super) fn fua(command: &Command) -> bool {
    command.cdw12 & 1 << 30 != 0
}

/// Whether a write must be durable before it is answered: FUA, or the cache is turned off.
pub(super) fn durable(command: &Command, table: &NsTable) -> bool {
    fua(command) || table.write_through
}

/// One 16-byte range of Dataset Management: blocks and first block.
pub(super) fn dsm_range(data: &[u8], index: usize) -> (u64, u64) {
    let entry = &data[index * 16..][..16];
    let blocks = u32::from_le_bytes(entry[4..8].try_into().expect("4 bytes"));
    (u64::from(blocks), u64::from_le_bytes(entry[8..16].try_into().expect("8 bytes")))
}

/// One 32-byte source range of Copy, format 0: blocks and first block.
pub(super) fn copy_range(data: &[u8], index: usize) -> (u64, u64) {
    let entry = &data[index * 32..][..32];
    let blocks = u16::from_le_bytes(entry[16..18].try_into().expect("2 bytes"));
    (u64::from(blocks) + 1, u64::from_le_bytes(entry[8..16].try_into().expect("8 bytes")))
}

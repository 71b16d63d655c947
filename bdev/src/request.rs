//! What an export asks of the engine and what it gets back.
//!
//! Contract. The host promises: `offset` and `len` are what the guest said (the engine checks
//! them); every [`Seg`] points at memory that stays mapped until the request's [`Done`] has been
//! taken; `cookie` means nothing to the engine. The engine promises: exactly one `Done` for each
//! request it accepted.

use crate::engine::{Attached, Engine, Live, VIEW_TREES};
use crate::limits::SEGS_MAX;
use crate::slots::Kind;
use crate::types::SECTOR_SIZE;
use crate::{Handle, Status};

/// One piece of a request's memory. An address, not a reference: guests write to their memory at
/// any time, so no Rust reference to it may exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Seg {
    /// Address in this process.
    pub addr: usize,
    /// Bytes.
    pub len: usize,
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Disk to memory.
    Read,
    /// Memory to disk.
    Write,
    /// All writes acknowledged before this was submitted become durable.
    Flush,
    /// The range may read as anything old or zero afterwards; here: whole blocks are freed and
    /// read as zero, parts of blocks are left as they are.
    Discard,
    /// The range reads as zero afterwards; whole blocks are freed.
    WriteZeroes,
}

/// One guest request.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Given back in [`Done`].
    pub cookie: u64,
    /// Which attached disk or snapshot.
    pub handle: Handle,
    /// What to do.
    pub op: Op,
    /// First byte, a multiple of 512.
    pub offset: u64,
    /// Bytes, a multiple of 512; 0 only for a flush.
    pub len: u64,
    /// Durable before it is done (force unit access).
    pub fua: bool,
}

/// The answer to one [`Request`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Done {
    /// From the request.
    pub cookie: u64,
    /// How it ended.
    pub status: Status,
}

impl Engine {
    /// Whether a request may go on, and whom it is for.
    #[inline]
    pub(crate) fn check(&self, request: &Request, segs: &[Seg]) -> Result<Live, Status> {
        let target = self.attached(request.handle).ok_or(Status::Detached)?;
        let live = Live { tree: target.tree, disk: target.disk };
        if segs.len() > SEGS_MAX {
            return Err(Status::Invalid);
        }
        if request.op == Op::Flush {
            return Ok(live);
        }
        let aligned = (request.offset | request.len).is_multiple_of(SECTOR_SIZE as u64);
        let carries = matches!(request.op, Op::Read | Op::Write);
        // Places in a request's memory have 32 bits.
        let long = carries && request.len > u64::from(u32::MAX);
        if !aligned || request.len == 0 || long {
            return Err(Status::Invalid);
        }
        let end = request.offset.checked_add(request.len).ok_or(Status::OutOfRange)?;
        if end > self.target_size(target) {
            return Err(Status::OutOfRange);
        }
        let bytes = match segs {
            [one] => Some(one.len as u64),
            _ => segs.iter().try_fold(0u64, |sum, seg| sum.checked_add(seg.len as u64)),
        };
        if carries && bytes != Some(request.len) {
            return Err(Status::Invalid);
        }
        if request.op != Op::Read && target.snap != 0 {
            return Err(Status::ReadOnly);
        }
        Ok(live)
    }

    #[inline]
    pub(crate) fn attached(&self, handle: Handle) -> Option<&Attached> {
        let entry = self.attachments.get((handle.0 & 0xffff) as usize)?;
        if u32::from(entry.generation) != handle.0 >> 16 {
            return None;
        }
        entry.target.as_ref()
    }

    #[inline]
    pub(crate) fn target_size(&self, target: &Attached) -> u64 {
        if target.snap != 0 {
            return target.size;
        }
        self.disks[target.disk as usize].as_ref().map_or(0, |disk| disk.size)
    }

    /// Counts a request that has ended well.
    #[inline(always)]
    pub(crate) fn count_done(&mut self, kind: Kind, tree: u32, disk: u32, len: u64) {
        let traffic = match self.disks.get_mut(disk as usize) {
            Some(Some(disk)) if tree < VIEW_TREES => Some(&mut disk.traffic),
            _ => None,
        };
        match kind {
            Kind::Read => {
                self.stats.reads += 1;
                self.stats.read_bytes += len;
                if let Some(traffic) = traffic {
                    traffic.reads += 1;
                    traffic.read_bytes += len;
                }
            }
            Kind::Write => {
                self.stats.writes += 1;
                self.stats.write_bytes += len;
                if let Some(traffic) = traffic {
                    traffic.writes += 1;
                    traffic.write_bytes += len;
                }
            }
            Kind::Discard | Kind::WriteZeroes => {
                self.stats.discards += 1;
                if let Some(traffic) = traffic {
                    traffic.discards += 1;
                    traffic.discard_bytes += len;
                }
            }
            Kind::Flush => self.stats.flushes += 1,
            Kind::Trim | Kind::Snapshot => {}
        }
    }
}

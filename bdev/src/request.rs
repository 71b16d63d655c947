//! What an export asks of the engine and what it gets back.
//!
//! Contract. The host promises: `offset` and `len` are what the guest said (the engine checks
//! them); every [`Seg`] points at memory that stays mapped until the request's [`Done`] has been
//! taken; `cookie` means nothing to the engine. The engine promises: exactly one `Done` for each
//! request it accepted.

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

//! The only words the engine speaks with the world below: operations on the base device.

use crate::{Engine, Seg, Tag};

/// Kind of base operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BaseOp {
    /// Base to memory; all of `len` or an error.
    Read,
    /// Memory to base; all of `len` or an error.
    Write,
    /// Everything written (completed) before this began is durable once it completes.
    Flush,
}

/// One operation the host is to start on the base device and to report with
/// [`crate::Engine::complete`], exactly once, in any order.
///
/// `offset` and `len` are multiples of 512 and lie inside the shard's region. The memory is
/// `first` alone if `first.len == len`; otherwise [`crate::Engine::gather`] lists the segments.
/// It stays valid until the completion has been reported.
#[derive(Clone, Copy, Debug)]
pub struct BaseIo {
    /// To be given back.
    pub tag: Tag,
    /// What to do.
    pub op: BaseOp,
    /// Byte offset inside the shard's region.
    pub offset: u64,
    /// Bytes; 0 for a flush.
    pub len: u32,
    /// The first (mostly the only) piece of memory.
    pub first: Seg,
    /// The memory is a request's own: no metadata, and nothing the engine looks at itself.
    pub guest: bool,
    /// Request slot and byte offset in the request, for `gather`.
    pub(crate) source: (u32, u32),
}

impl BaseIo {
    /// An operation on one piece of memory, as a host's own tests need it.
    pub fn on(tag: Tag, op: BaseOp, offset: u64, memory: Seg) -> BaseIo {
        BaseIo {
            tag,
            op,
            offset,
            len: memory.len as u32,
            first: memory,
            guest: false,
            source: (0, 0),
        }
    }
}

/// For a host that prepares for what it is about to be asked.
impl Engine {
    /// Base operations that [`Engine::next_io`] has not given out yet.
    pub fn waiting_io(&self) -> usize {
        self.io.len()
    }

    /// The operation that [`Engine::next_io`] gives out after `place` others.
    pub fn coming_io(&self, place: usize) -> Option<&BaseIo> {
        self.io.get(place)
    }
}

/// What the engine must know of its base device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BaseTraits {
    /// A completed write can be lost in a power cut until a flush completes. False for RAM.
    pub volatile_cache: bool,
    /// A 4 KiB aligned write is old or new after a power cut, never a mix. If false, the engine
    /// never overwrites a block in place.
    pub atomic_4k: bool,
    /// A read never sees part of a concurrent 4 KiB write (RAM served on the reactor itself). If
    /// false the engine does not overwrite in place under a read in flight.
    pub atomic_rw: bool,
}

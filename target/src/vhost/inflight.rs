//! The in-flight log (INFLIGHT_SHMFD): which chains we hold, in memory the front-end keeps for us.
//!
//! When the daemon dies, requests it had taken from a ring and not returned would be lost: the
//! guest waits for them for ever. So each is noted in shared memory before it is served, the
//! front-end hands the memory to the next daemon, and that one serves them first.
//!
//! ```text
//!  file:  | queue 0 | queue 1 | ...    each: header, one entry a descriptor, padded to 64 bytes
//!
//!  take:     note head ─► serve
//!  return:   used entry ─► link into batch ─► publish ─► clear notes ─► note "published up to"
//!                                   crash here ┘   └ crash here: the link list and the ring's own
//!                                                    index tell which notes are stale
//! ```
//!
//! A note says that a request was taken, not that it was carried out: what is served again may have
//! been served before. A guest sees that only of a write which it has let another write to the same
//! block overtake; `docs/reliability.md` says what is promised then.
//!
//! Only the order of our own stores matters, as a process that is killed loses none of those it has
//! made. A log is *live* from a queue's start until the front-end was told where the ring stands
//! (GET_VRING_BASE): then all is returned, and the next start follows the front-end.

use std::fs::File;

use rustix::fs::{MemfdFlags, SealFlags};

use super::vring::QUEUE_SIZE_MAX;
use crate::mem::guest::{GuestSpan, MemoryError};

/// Version of the layout we write; 0 stands for a log that was never started.
pub(super) const VERSION: u16 = 1;
/// Byte offsets that both layouts share.
pub(super) const AT_VERSION: usize = 8;
pub(super) const AT_DESC_NUM: usize = 10;

/// Regions of queues begin at multiples of this.
const REGION_ALIGN: usize = 64;
const SPLIT_HEADER: usize = 16;
const SPLIT_ENTRY: usize = 16;
const PACKED_HEADER: usize = 32;
const PACKED_ENTRY: usize = 32;

/// Bytes of one queue's region.
fn region_bytes(packed: bool, queue_size: u16) -> usize {
    let (header, entry) =
        if packed { (PACKED_HEADER, PACKED_ENTRY) } else { (SPLIT_HEADER, SPLIT_ENTRY) };
    (header + entry * usize::from(queue_size)).next_multiple_of(REGION_ALIGN)
}

/// Shape of a log: what GET_INFLIGHT_FD asks for and SET_INFLIGHT_FD repeats.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogShape {
    /// Number of queues.
    pub queues: u16,
    /// Descriptors of the largest queue.
    pub queue_size: u16,
}

impl LogShape {
    /// Bytes the whole log takes.
    pub fn bytes(&self, packed: bool) -> u64 {
        region_bytes(packed, self.queue_size) as u64 * u64::from(self.queues)
    }

    fn check(&self, queues_max: u16) -> Result<(), MemoryError> {
        let queues_good = (1..=queues_max).contains(&self.queues);
        let size_good = (1..=QUEUE_SIZE_MAX).contains(&self.queue_size);
        if queues_good && size_good {
            return Ok(());
        }
        Err(MemoryError(format!(
            "an in-flight log for {} queues of {} is not possible: at most {queues_max} of {}",
            self.queues, self.queue_size, QUEUE_SIZE_MAX
        )))
    }
}

/// A mapped log of all queues.
#[derive(Clone, Debug)]
pub struct InflightLog {
    shape: LogShape,
    span: GuestSpan,
}

impl InflightLog {
    /// Makes the memory for a new log, all zero and sealed against resizing.
    ///
    /// # Errors
    /// The shape is beyond our limits, or the kernel refuses the memory.
    pub fn create(shape: LogShape, packed: bool, queues_max: u16) -> Result<File, MemoryError> {
        shape.check(queues_max)?;
        let make = || -> std::io::Result<File> {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = File::from(rustix::fs::memfd_create("lamina-inflight", flags)?);
            file.set_len(shape.bytes(packed))?;
            let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
            rustix::fs::fcntl_add_seals(&file, seals)?;
            Ok(file)
        };
        make().map_err(|error| MemoryError(format!("cannot make an in-flight log: {error}")))
    }

    /// Maps a log the front-end kept. Its contents are checked queue by queue, at their start.
    ///
    /// # Errors
    /// The shape is beyond our limits, `bytes` is too small for it, or the file is.
    pub fn map(
        shape: LogShape,
        queues_max: u16,
        file: &File,
        offset: u64,
        bytes: u64,
    ) -> Result<InflightLog, MemoryError> {
        shape.check(queues_max)?;
        let sizes = shape.bytes(false)..=shape.bytes(true);
        if !sizes.contains(&bytes) || !offset.is_multiple_of(REGION_ALIGN as u64) {
            return Err(MemoryError(format!(
                "an in-flight log of {bytes} bytes at offset {offset} does not fit {} queues of {}",
                shape.queues, shape.queue_size
            )));
        }
        Ok(InflightLog { shape, span: GuestSpan::map(file, offset, bytes)? })
    }

    /// The part of queue `index`; `None` if the log has none for it, is of the other kind, or is
    /// too small for a ring of `size`.
    pub(super) fn queue(&self, index: u16, packed: bool, size: u16) -> Option<GuestSpan> {
        if index >= self.shape.queues || size > self.shape.queue_size {
            return None;
        }
        let bytes = region_bytes(packed, self.shape.queue_size);
        self.span.part(usize::from(index) * bytes, bytes)
    }

    /// Descriptors there is room for, per queue.
    pub(super) fn queue_size(&self) -> u16 {
        self.shape.queue_size
    }
}

//! One virtqueue's ring, split or packed, as a queue sees it.
//!
//! ```text
//!            pop ──► Head + Chain (descriptors, read once)          push_used(head, len)
//!  guest ring ┤                                                       │  (noted, not yet visible)
//!            └─◄── publish: one index (or first flags) store ◄────────┘──► call the guest?
//! ```
//!
//! Everything here is what the guest says and therefore suspect. A rule the guest breaks so that
//! no status byte can be found is a [`Fault`]: the queue stops for good, others go on.

use super::chain::Chain;
use super::vring_packed::PackedRing;
use super::vring_split::SplitRing;
use crate::mem::guest::{GuestMemory, GuestSpan};

/// Largest ring we serve: the most that front-ends configure.
pub const QUEUE_SIZE_MAX: u16 = 1024;

/// A descriptor continues in the next one.
pub(super) const DESC_NEXT: u16 = 1;
/// The device writes to it (otherwise it only reads).
pub(super) const DESC_WRITE: u16 = 2;
/// It points to a table of descriptors.
pub(super) const DESC_INDIRECT: u16 = 4;

/// Bytes of a descriptor, in either format.
pub(super) const DESC_BYTES: usize = 16;

/// One descriptor, read once from guest memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Desc {
    /// Guest-physical address.
    pub(super) addr: u64,
    /// Bytes.
    pub(super) len: u32,
    /// `DESC_*`, and in the packed format two bits more.
    pub(super) flags: u16,
    /// Next index (split) or buffer id (packed).
    pub(super) link: u16,
}

impl Desc {
    /// From the two little-endian words of a split descriptor.
    pub(super) fn split(addr: u64, rest: u64) -> Desc {
        Desc { addr, len: rest as u32, flags: (rest >> 32) as u16, link: (rest >> 48) as u16 }
    }

    /// From the two little-endian words of a packed descriptor.
    pub(super) fn packed(addr: u64, rest: u64) -> Desc {
        Desc { addr, len: rest as u32, flags: (rest >> 48) as u16, link: (rest >> 32) as u16 }
    }

    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// Why a queue stopped: the guest (or its front-end) broke a rule of the ring itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The available index moved by more than the ring holds.
    AvailIndex,
    /// A head that is no index of the ring.
    HeadOutOfRange,
    /// A head made available again before it was used.
    HeadInFlight,
    /// A chain longer than its ring or table: a loop.
    ChainTooLong,
    /// A link outside of the ring or table.
    NextOutOfRange,
    /// An indirect table inside an indirect table.
    IndirectNested,
    /// An indirect descriptor with a next one, or indirect descriptors never negotiated.
    IndirectNotAllowed,
    /// An indirect table of no, a broken, or too great length.
    IndirectLength,
    /// An indirect table that is not in guest memory.
    IndirectAddress,
    /// No writable byte at the end of the chain to put a status in.
    NoStatus,
    /// The in-flight log does not add up.
    InflightLog,
    /// The front-end shrank the guest's memory under us.
    MemoryLost,
    /// After a change of the memory table the ring is no longer in it.
    RingUnmapped,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Fault::AvailIndex => "the available index jumped by more than the ring's size",
            Fault::HeadOutOfRange => "a chain's head is outside of the ring",
            Fault::HeadInFlight => "a chain was made available twice",
            Fault::ChainTooLong => "a descriptor chain loops or is too long",
            Fault::NextOutOfRange => "a descriptor links outside of its table",
            Fault::IndirectNested => "an indirect table points to another one",
            Fault::IndirectNotAllowed => "an indirect descriptor where none is allowed",
            Fault::IndirectLength => "an indirect table has an impossible length",
            Fault::IndirectAddress => "an indirect table is not in guest memory",
            Fault::NoStatus => "a request has no writable status byte in guest memory",
            Fault::InflightLog => "the in-flight log is damaged",
            Fault::MemoryLost => "the front-end shrank the guest's memory",
            Fault::RingUnmapped => "the ring is no longer in the guest's memory",
        })
    }
}

/// A chain taken from a ring and owed back to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Head {
    /// What the guest knows it by: head index (split) or buffer id (packed).
    pub(super) id: u16,
    /// Ring descriptors it takes (packed; 1 if split).
    pub(super) count: u16,
    /// Where the in-flight log keeps it.
    pub(super) track: u16,
}

/// Which optional parts of the ring format were negotiated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RingFeatures {
    /// VIRTIO_F_RING_PACKED.
    pub packed: bool,
    /// VIRTIO_RING_F_EVENT_IDX.
    pub event_idx: bool,
    /// VIRTIO_RING_F_INDIRECT_DESC.
    pub indirect: bool,
}

/// The three parts of a ring, found in guest memory.
#[derive(Clone, Debug)]
pub struct RingSpans {
    /// Descriptor table, or packed ring.
    pub(super) desc: GuestSpan,
    /// Available ring, or the driver's event suppression.
    pub(super) driver: GuestSpan,
    /// Used ring, or the device's event suppression.
    pub(super) device: GuestSpan,
}

/// Where a front-end says the parts of a ring are, in addresses of its own process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingAddrs {
    /// Descriptor table, or packed ring.
    pub desc: u64,
    /// Available ring, or the driver's event suppression.
    pub driver: u64,
    /// Used ring, or the device's event suppression.
    pub device: u64,
}

impl RingSpans {
    /// Finds the ring's parts; `None` if one is not in one region of `memory`, or misaligned.
    pub fn locate(
        memory: &GuestMemory,
        addrs: &RingAddrs,
        size: u16,
        features: RingFeatures,
    ) -> Option<RingSpans> {
        let size = usize::from(size);
        let event = if features.event_idx { 2 } else { 0 };
        let (driver_len, driver_align, device_len) = if features.packed {
            (4, 4, 4)
        } else {
            (4 + 2 * size + event, 2, 4 + 8 * size + event)
        };
        Some(RingSpans {
            desc: memory.span_by_user_addr(addrs.desc, size * DESC_BYTES, 16)?,
            driver: memory.span_by_user_addr(addrs.driver, driver_len, driver_align)?,
            device: memory.span_by_user_addr(addrs.device, device_len, 4)?,
        })
    }
}

/// A ring in either format. See the methods of [`SplitRing`] and [`PackedRing`] for how.
#[derive(Debug)]
pub(super) enum Ring {
    Split(SplitRing),
    Packed(PackedRing),
}

macro_rules! either {
    ($self:ident, $ring:ident => $call:expr) => {
        match $self {
            Ring::Split($ring) => $call,
            Ring::Packed($ring) => $call,
        }
    };
}

impl Ring {
    /// Takes the next chain, in-flight ones of a previous life first. Nothing is available: None.
    pub(super) fn pop(
        &mut self,
        memory: &GuestMemory,
        hint: &mut usize,
        chain: &mut Chain,
    ) -> Result<Option<Head>, Fault> {
        chain.clear();
        let head = match self {
            Ring::Split(ring) => ring.pop(memory, hint, chain)?,
            Ring::Packed(ring) => ring.pop(chain)?,
        };
        if head.is_some() {
            either!(self, ring => chain.expand(memory, hint, ring.table_rules()))?;
        }
        Ok(head)
    }

    /// Notes that a chain is done and `len` bytes of it were written.
    pub(super) fn push_used(&mut self, head: Head, len: u32) {
        either!(self, ring => ring.push_used(head, len));
    }

    /// Makes everything noted visible with one store; true if the guest wants to be called.
    pub(super) fn publish(&mut self) -> bool {
        either!(self, ring => ring.publish())
    }

    /// Asks for kicks (true) or says that we poll (false).
    pub(super) fn want_kicks(&mut self, wanted: bool) {
        either!(self, ring => ring.want_kicks(wanted));
    }

    /// True if a chain is waiting to be taken (or the ring is broken, which pop will say).
    pub(super) fn has_work(&self) -> bool {
        either!(self, ring => ring.has_work())
    }

    /// Chains that wait to be taken; a packed ring does not say how many, so any are all.
    pub(super) fn waiting(&self) -> usize {
        match self {
            Ring::Split(ring) => ring.waiting(),
            Ring::Packed(ring) if ring.has_work() => usize::from(QUEUE_SIZE_MAX),
            Ring::Packed(_) => 0,
        }
    }

    /// What GET_VRING_BASE answers once nothing is in flight.
    pub(super) fn base(&self) -> u32 {
        either!(self, ring => ring.base())
    }

    /// Moves to other mappings of the same memory.
    pub(super) fn remap(&mut self, spans: RingSpans) {
        either!(self, ring => ring.remap(spans));
    }

    /// Ends the in-flight log's say over the next start: all is returned and the front-end was
    /// told where the ring stands.
    pub(super) fn retire_log(&mut self) {
        either!(self, ring => ring.retire_log());
    }
}

/// True if `event` lies in `old..new`, all three being 16-bit indices that wrap.
pub(super) fn event_passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_passed_is_membership_with_wrap() {
        for (event, new, old, expected) in [
            (0, 1, 0, true),
            (1, 1, 0, false),
            (0, 0, 0, false),
            (0xffff, 2, 0xfffe, true),
            (0xfffd, 2, 0xfffe, false),
            (1, 2, 0xfffe, true),
            (2, 2, 0xfffe, false),
        ] {
            assert_eq!(event_passed(event, new, old), expected, "{event} in {old}..{new}");
        }
    }
}

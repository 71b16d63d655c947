//! One queue of a client: requests in fixed slots, each with its header, status and data.
//!
//! ```text
//!  shared memory of a queue:  | ring | slot 0: header, status, range | slot 1 ... | data 0 | ...
//! ```

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::log::Part;
use super::memory::Memory;
use super::ring::{CHAIN_DESCS, Layout, Piece, Ring};

/// Bytes of a slot's header area: header at 0, status at 16, range of a discard at 32.
const HEADER_BYTES: usize = 64;
const STATUS_AT: usize = 16;
const RANGE_AT: usize = 32;
const RANGE_BYTES: u32 = 16;
/// A status that no device writes.
const NO_STATUS: u8 = 0xee;
/// May unmap, in a range of write-zeroes.
const UNMAP: u32 = 1;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

/// A request. Offsets and lengths are in bytes, whole sectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request<'a> {
    /// Read into the slot's buffer.
    Read {
        /// From here.
        offset: u64,
        /// This much.
        len: usize,
    },
    /// Write these bytes.
    Write {
        /// From here on.
        offset: u64,
        /// What.
        data: &'a [u8],
    },
    /// Everything answered before is to survive a power cut.
    Flush,
    /// The range is not needed any more.
    Discard {
        /// From here.
        offset: u64,
        /// This much.
        len: u64,
    },
    /// The range reads as zeros from now on; its space may go.
    WriteZeroes {
        /// From here.
        offset: u64,
        /// This much.
        len: u64,
    },
}

/// A finished request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Done {
    /// Where it was.
    pub slot: u16,
    /// False: the device answered with an error.
    pub good: bool,
}

/// A queue with its slots. It goes on when the device dies: what is on the ring then is answered
/// by the next one.
#[derive(Debug)]
pub struct Queue {
    memory: Arc<Memory>,
    ring: Ring,
    pub(super) layout: Layout,
    pub(super) kick: EventFd,
    headers: usize,
    data: usize,
    data_bytes: usize,
    busy: Vec<bool>,
    in_flight: usize,
}

impl Queue {
    /// Bytes of shared memory for a queue with `slots` slots of `data_bytes` of data each.
    #[must_use]
    pub fn bytes(slots: u16, data_bytes: usize) -> usize {
        let headers = (usize::from(slots) * HEADER_BYTES).next_multiple_of(4096);
        Layout::bytes(Queue::ring_size(slots)) + headers + usize::from(slots) * data_bytes
    }

    /// Descriptors of a ring for `slots` slots.
    #[must_use]
    pub fn ring_size(slots: u16) -> u16 {
        (slots * CHAIN_DESCS).next_power_of_two()
    }

    /// A queue at `offset` of the memory.
    ///
    /// # Errors
    /// No eventfd can be made.
    pub fn new(
        memory: &Arc<Memory>,
        offset: usize,
        slots: u16,
        data_bytes: usize,
        packed: bool,
    ) -> std::io::Result<Queue> {
        let size = Queue::ring_size(slots);
        let layout = Layout::at(offset, size);
        let headers = offset + Layout::bytes(size);
        let data = headers + (usize::from(slots) * HEADER_BYTES).next_multiple_of(4096);
        Ok(Queue {
            memory: memory.clone(),
            ring: Ring::new(memory.clone(), layout, packed),
            layout,
            kick: EventFd::new(0)?,
            headers,
            data,
            data_bytes,
            busy: vec![false; usize::from(slots)],
            in_flight: 0,
        })
    }

    /// A slot that nothing is in.
    #[must_use]
    pub fn free_slot(&self) -> Option<u16> {
        self.busy.iter().position(|busy| !busy).map(|slot| slot as u16)
    }

    /// Slots it has.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.busy.len()
    }

    /// Bytes of data in a request, at most.
    #[must_use]
    pub fn data_capacity(&self) -> usize {
        self.data_bytes
    }

    /// Requests not answered yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Puts a request on the ring and kicks.
    ///
    /// # Panics
    /// If the slot is in use, the data too long, or the eventfd broken.
    pub fn submit(&mut self, slot: u16, request: Request<'_>) {
        assert!(!std::mem::replace(&mut self.busy[usize::from(slot)], true), "slot in use");
        self.in_flight += 1;
        let header = self.headers + usize::from(slot) * HEADER_BYTES;
        let data = self.data + usize::from(slot) * self.data_bytes;
        let (kind, sector) = match request {
            Request::Read { offset, .. } => (T_IN, offset / 512),
            Request::Write { offset, .. } => (T_OUT, offset / 512),
            Request::Flush => (T_FLUSH, 0),
            Request::Discard { .. } => (T_DISCARD, 0),
            Request::WriteZeroes { .. } => (T_WRITE_ZEROES, 0),
        };
        self.memory.write(header, &kind.to_le_bytes());
        self.memory.write(header + 4, &[0; 4]);
        self.memory.write(header + 8, &sector.to_le_bytes());
        self.memory.write(header + STATUS_AT, &[NO_STATUS]);
        let piece = |at: usize, len: usize, device_writes: bool| {
            assert!(len <= self.data_bytes, "longer than a slot's buffer");
            Piece { addr: self.memory.addr(at), len: len as u32, device_writes }
        };
        let middle = match request {
            Request::Read { len, .. } => Some(piece(data, len, true)),
            Request::Write { data: bytes, .. } => {
                let piece = piece(data, bytes.len(), false);
                self.memory.write(data, bytes);
                Some(piece)
            }
            Request::Flush => None,
            Request::Discard { offset, len } => Some(self.range(header, offset, len, 0)),
            Request::WriteZeroes { offset, len } => Some(self.range(header, offset, len, UNMAP)),
        };
        let first = Piece { addr: self.memory.addr(header), len: 16, device_writes: false };
        let status = self.memory.addr(header + STATUS_AT);
        let last = Piece { addr: status, len: 1, device_writes: true };
        match middle {
            Some(middle) => self.ring.offer(slot, &[first, middle, last]),
            None => self.ring.offer(slot, &[first, last]),
        }
        self.kick.write(1).expect("an eventfd takes a kick");
    }

    fn range(&self, header: usize, offset: u64, len: u64, flags: u32) -> Piece {
        let at = header + RANGE_AT;
        self.memory.write(at, &(offset / 512).to_le_bytes());
        self.memory.write(at + 8, &((len / 512) as u32).to_le_bytes());
        self.memory.write(at + 12, &flags.to_le_bytes());
        Piece { addr: self.memory.addr(at), len: RANGE_BYTES, device_writes: false }
    }

    /// The next finished request.
    ///
    /// # Panics
    /// If the device broke the ring's rules: returned what it did not have, or no status.
    pub fn poll(&mut self) -> Option<Done> {
        let slot = self.ring.take_used().unwrap_or_else(|why| panic!("{why}"))?;
        let busy = std::mem::replace(&mut self.busy[usize::from(slot)], false);
        assert!(busy, "slot {slot} was answered twice");
        self.in_flight -= 1;
        let header = self.headers + usize::from(slot) * HEADER_BYTES;
        let [status] = self.memory.take(header + STATUS_AT);
        assert!(status <= 2, "slot {slot} was answered without a status");
        Some(Done { slot, good: status == 0 })
    }

    /// What a finished read brought.
    #[must_use]
    pub fn data(&self, slot: u16, len: usize) -> Vec<u8> {
        assert!(len <= self.data_bytes, "longer than a slot's buffer");
        let mut bytes = vec![0; len];
        self.memory.read(self.data + usize::from(slot) * self.data_bytes, &mut bytes);
        bytes
    }

    pub(super) fn base(&self) -> u16 {
        self.ring.base()
    }

    /// Slots of which the device that wrote `log` and died had taken the request and not returned.
    pub(super) fn held(&self, log: Part<'_>) -> std::io::Result<Vec<u16>> {
        self.ring.held(log)
    }
}

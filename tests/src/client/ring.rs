//! The driver's side of a ring, split or packed, with chains in fixed places.
//!
//! ```text
//!  split:   chain s has descriptors 3s, 3s+1, 3s+2; avail names 3s; used gives 3s back
//!  packed:  chains are written where the ring stands; buffer id s; used gives s back
//! ```
//!
//! A ring lives on when its device dies: nothing here is told about it.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::log::Part;
use super::memory::Memory;

/// Bytes of one descriptor.
const DESC_BYTES: usize = 16;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// Descriptors that every chain may take: header, data, status.
pub const CHAIN_DESCS: u16 = 3;

/// A piece of memory in a chain.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Address, as the device is told.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// True: the device writes it.
    pub device_writes: bool,
}

/// Where the parts of a ring are in the shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Descriptors; a power of two.
    pub size: u16,
    /// Offset of the descriptor table or packed ring.
    pub desc: usize,
    /// Offset of the available ring or the driver's event suppression.
    pub driver: usize,
    /// Offset of the used ring or the device's event suppression.
    pub device: usize,
}

impl Layout {
    /// Bytes of a ring of either kind with its three parts.
    #[must_use]
    pub fn bytes(size: u16) -> usize {
        let size = usize::from(size);
        (size * DESC_BYTES + (6 + 2 * size) + (6 + 8 * size)).next_multiple_of(4096)
    }

    /// The ring at `offset`.
    #[must_use]
    pub fn at(offset: usize, size: u16) -> Layout {
        let count = usize::from(size);
        let driver = offset + count * DESC_BYTES;
        let device = (driver + 6 + 2 * count).next_multiple_of(4);
        Layout { size, desc: offset, driver, device }
    }
}

/// A ring in either format.
#[derive(Debug)]
pub enum Ring {
    /// VIRTIO 1 split ring.
    Split(Split),
    /// VIRTIO 1.1 packed ring.
    Packed(Packed),
}

impl Ring {
    /// An empty ring.
    #[must_use]
    pub fn new(memory: Arc<Memory>, layout: Layout, packed: bool) -> Ring {
        if packed {
            // No calls: the client polls.
            memory.store(layout.driver + 2, 1);
            let chains = vec![0; usize::from(layout.size)];
            let (avail, used) = (Position::START, Position::START);
            Ring::Packed(Packed { memory, layout, avail, used, chains })
        } else {
            memory.store(layout.driver, 1);
            Ring::Split(Split { memory, layout, avail: 0, used: 0 })
        }
    }

    /// Offers chain `slot`, which must not be on the ring.
    pub fn offer(&mut self, slot: u16, pieces: &[Piece]) {
        assert!((1..=usize::from(CHAIN_DESCS)).contains(&pieces.len()), "a chain of 1 to 3");
        match self {
            Ring::Split(ring) => ring.offer(slot, pieces),
            Ring::Packed(ring) => ring.offer(slot, pieces),
        }
        // The device is kicked by a system call after this; it must see what was offered.
        fence(Ordering::SeqCst);
    }

    /// The next chain that the device is done with.
    ///
    /// # Errors
    /// The device returned something that was never offered.
    pub fn take_used(&mut self) -> Result<Option<u16>, String> {
        match self {
            Ring::Split(ring) => ring.take_used(),
            Ring::Packed(ring) => ring.take_used(),
        }
    }

    /// What SET_VRING_BASE should say: all that was returned has been seen, and nothing else was
    /// taken as far as the driver knows.
    #[must_use]
    pub fn base(&self) -> u16 {
        match self {
            Ring::Split(ring) => ring.memory.load(ring.layout.device + 2),
            Ring::Packed(ring) => ring.used.index | u16::from(ring.used.wrap) << 15,
        }
    }

    /// Slots that a dead device held, by its log.
    pub(super) fn held(&self, log: Part<'_>) -> std::io::Result<Vec<u16>> {
        match self {
            Ring::Split(ring) => {
                let heads = log.held_split(ring.memory.load(ring.layout.device + 2))?;
                Ok(heads.into_iter().map(|head| head / CHAIN_DESCS).collect())
            }
            Ring::Packed(ring) => log.held_packed(|index, wrap| {
                let flags = ring.memory.load(ring.at(Position { index, wrap }) + 14);
                [flags & AVAIL != 0, flags & USED != 0] == [wrap, !wrap]
            }),
        }
    }
}

fn put(memory: &Memory, at: usize, piece: &Piece) {
    memory.write(at, &piece.addr.to_le_bytes());
    memory.write(at + 8, &piece.len.to_le_bytes());
}

fn flags(piece: &Piece, last: bool) -> u16 {
    let write = if piece.device_writes { WRITE } else { 0 };
    write | if last { 0 } else { NEXT }
}

/// Driver side of a split ring.
#[derive(Debug)]
pub struct Split {
    memory: Arc<Memory>,
    layout: Layout,
    avail: u16,
    used: u16,
}

impl Split {
    fn offer(&mut self, slot: u16, pieces: &[Piece]) {
        let head = slot * CHAIN_DESCS;
        assert!(head + CHAIN_DESCS <= self.layout.size, "slot {slot} is not in the ring");
        for (index, piece) in (0u16..).zip(pieces) {
            let at = self.layout.desc + usize::from(head + index) * DESC_BYTES;
            put(&self.memory, at, piece);
            let last = usize::from(index) + 1 == pieces.len();
            self.memory.store(at + 12, flags(piece, last));
            self.memory.store(at + 14, head + index + 1);
        }
        let entry = usize::from(self.avail % self.layout.size);
        self.memory.store(self.layout.driver + 4 + 2 * entry, head);
        self.avail = self.avail.wrapping_add(1);
        self.memory.store(self.layout.driver + 2, self.avail);
    }

    fn take_used(&mut self) -> Result<Option<u16>, String> {
        let published = self.memory.load(self.layout.device + 2);
        if published == self.used {
            return Ok(None);
        }
        let ahead = published.wrapping_sub(self.used);
        if ahead > self.layout.size {
            return Err(format!("the used index jumped from {} to {published}", self.used));
        }
        let entry = usize::from(self.used % self.layout.size);
        let id = u32::from_le_bytes(self.memory.take(self.layout.device + 4 + 8 * entry));
        self.used = self.used.wrapping_add(1);
        match u16::try_from(id) {
            Ok(head) if head % CHAIN_DESCS == 0 && head < self.layout.size => {
                Ok(Some(head / CHAIN_DESCS))
            }
            _ => Err(format!("the device returned descriptor {id}, the head of nothing")),
        }
    }
}

/// A place in a packed ring with the wrap bit it has there.
#[derive(Clone, Copy, Debug)]
struct Position {
    index: u16,
    wrap: bool,
}

impl Position {
    const START: Position = Position { index: 0, wrap: true };

    fn step(&mut self, count: u16, size: u16) {
        self.index += count;
        if self.index >= size {
            self.index -= size;
            self.wrap = !self.wrap;
        }
    }
}

/// Driver side of a packed ring.
#[derive(Debug)]
pub struct Packed {
    memory: Arc<Memory>,
    layout: Layout,
    avail: Position,
    used: Position,
    /// Descriptors of each buffer id on the ring; 0: not on it.
    chains: Vec<u16>,
}

impl Packed {
    fn at(&self, position: Position) -> usize {
        self.layout.desc + usize::from(position.index) * DESC_BYTES
    }

    fn offer(&mut self, slot: u16, pieces: &[Piece]) {
        let count = pieces.len() as u16;
        let on_ring: u16 = self.chains.iter().sum();
        assert!(on_ring + count <= self.layout.size, "the ring is full");
        assert_eq!(std::mem::replace(&mut self.chains[usize::from(slot)], count), 0);
        let (first, mut position) = (self.avail, self.avail);
        let mut first_flags = 0;
        for (index, piece) in pieces.iter().enumerate() {
            let at = self.at(position);
            put(&self.memory, at, piece);
            self.memory.store(at + 12, slot);
            let lap = if position.wrap { AVAIL } else { USED };
            let flags = flags(piece, index + 1 == pieces.len()) | lap;
            if index == 0 {
                first_flags = flags;
            } else {
                self.memory.store(at + 14, flags);
            }
            position.step(1, self.layout.size);
        }
        self.avail = position;
        self.memory.store(self.at(first) + 14, first_flags);
    }

    fn take_used(&mut self) -> Result<Option<u16>, String> {
        let at = self.at(self.used);
        let flags = self.memory.load(at + 14);
        let lap = [flags & AVAIL != 0, flags & USED != 0];
        if lap != [self.used.wrap; 2] {
            return Ok(None);
        }
        let id = self.memory.load(at + 12);
        let count = self.chains.get_mut(usize::from(id)).map_or(0, std::mem::take);
        if count == 0 {
            return Err(format!("the device returned buffer {id}, which it was not given"));
        }
        self.used.step(count, self.layout.size);
        Ok(Some(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(packed: bool) -> (Arc<Memory>, Layout, Ring) {
        let memory = Arc::new(Memory::new(8192).unwrap());
        let layout = Layout::at(0, 8);
        (memory.clone(), layout, Ring::new(memory, layout, packed))
    }

    const TWO: [Piece; 2] = [
        Piece { addr: 1, len: 16, device_writes: false },
        Piece { addr: 2, len: 1, device_writes: true },
    ];

    #[test]
    fn a_split_ring_gives_back_what_the_device_returns() {
        let (memory, layout, mut ring) = ring(false);
        for lap in 0..20u16 {
            ring.offer(1, &TWO);
            assert_eq!(memory.load(layout.driver + 2), lap + 1);
            assert_eq!(memory.load(layout.driver + 4 + 2 * usize::from(lap % 8)), 3);
            assert_eq!(ring.take_used(), Ok(None));
            memory.write(layout.device + 4 + 8 * usize::from(lap % 8), &3u32.to_le_bytes());
            memory.store(layout.device + 2, lap + 1);
            assert_eq!(ring.take_used(), Ok(Some(1)));
            assert_eq!(ring.base(), lap + 1);
        }
        memory.write(layout.device + 4 + 8 * 4, &4u32.to_le_bytes());
        memory.store(layout.device + 2, 21);
        assert!(ring.take_used().is_err());
    }

    #[test]
    fn a_packed_ring_gives_back_what_the_device_returns() {
        let (memory, layout, mut ring) = ring(true);
        let (mut index, mut wrap) = (0usize, true);
        for lap in 0..20u16 {
            ring.offer(5, &TWO);
            let at = layout.desc + 16 * index;
            let given = memory.load(at + 14);
            assert_eq!([given & AVAIL != 0, given & USED != 0], [wrap, !wrap], "lap {lap}");
            assert_eq!(ring.take_used(), Ok(None));
            memory.store(at + 14, if wrap { AVAIL | USED } else { 0 });
            assert_eq!(ring.take_used(), Ok(Some(5)));
            (index, wrap) = if index == 6 { (0, !wrap) } else { (index + 2, wrap) };
            assert_eq!(ring.base(), index as u16 | u16::from(wrap) << 15);
        }
        // Used again although it is not on the ring.
        memory.store(layout.desc + 16 * index + 12, 5);
        memory.store(layout.desc + 16 * index + 14, if wrap { AVAIL | USED } else { 0 });
        assert!(ring.take_used().is_err());
    }
}

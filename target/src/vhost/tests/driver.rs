//! A guest's side of a ring, split or packed, as small as it can be and with every field in reach.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::MemfdFlags;

use crate::mem::guest::{GuestMemory, Region, RegionSpec};
use crate::vhost::vring::{
    DESC_INDIRECT, DESC_NEXT, DESC_WRITE, RingAddrs, RingFeatures, RingSpans,
};

/// Where guest memory begins, in guest-physical addresses.
pub(super) const GUEST_BASE: u64 = 0x1_0000_0000;
/// And in the front-end's addresses.
pub(super) const USER_BASE: u64 = 0x7f00_0000_0000;
/// Bytes of the first region; a second, not adjacent in the host, follows it at once.
pub(super) const REGION_BYTES: u64 = 2 << 20;
/// End of the second region: nothing is there.
pub(super) const GUEST_END: u64 = GUEST_BASE + 2 * REGION_BYTES;

/// Shared memory of `len` bytes.
pub(super) fn shared_file(len: u64) -> File {
    named_file("guest", len)
}

/// The same under a name that can be found among the process's descriptors.
pub(super) fn named_file(name: &str, len: u64) -> File {
    let file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}

/// Memory of a test guest: two regions, adjacent for the guest, apart in the host.
pub(super) struct Ram {
    pub(super) files: [File; 2],
    /// The guest's own view.
    pub(super) memory: Arc<GuestMemory>,
}

impl Ram {
    pub(super) fn new() -> Ram {
        Ram::named("guest")
    }

    pub(super) fn named(name: &str) -> Ram {
        let files = [named_file(name, REGION_BYTES), named_file(name, REGION_BYTES)];
        let memory = Ram::map(&files);
        Ram { files, memory }
    }

    pub(super) fn specs() -> [RegionSpec; 2] {
        // A hole in user addresses keeps rings from spanning the two.
        [(0, 0), (REGION_BYTES, 2 * REGION_BYTES)].map(|(guest, user)| RegionSpec {
            guest_addr: GUEST_BASE + guest,
            size: REGION_BYTES,
            user_addr: USER_BASE + user,
            offset: 0,
        })
    }

    /// Maps the memory once more, as a back-end does.
    pub(super) fn map(files: &[File; 2]) -> Arc<GuestMemory> {
        let regions = Ram::specs()
            .into_iter()
            .zip(files)
            .map(|(spec, file)| Region::map(spec, file).unwrap());
        Arc::new(GuestMemory::new(regions.collect()).unwrap())
    }

    pub(super) fn write(&self, addr: u64, data: &[u8]) {
        assert!(self.memory.write(&mut 0, addr, data));
    }

    pub(super) fn read<const N: usize>(&self, addr: u64) -> [u8; N] {
        let mut data = [0; N];
        assert!(self.memory.read(&mut 0, addr, &mut data));
        data
    }

    pub(super) fn read_vec(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        assert!(self.memory.read(&mut 0, addr, &mut data));
        data
    }

    pub(super) fn write_u16(&self, addr: u64, value: u16) {
        self.write(addr, &value.to_le_bytes());
    }

    pub(super) fn read_u16(&self, addr: u64) -> u16 {
        u16::from_le_bytes(self.read(addr))
    }
}

/// A descriptor as a test writes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct D {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
}

/// The device reads it.
pub(super) fn out(addr: u64, len: u32) -> D {
    D { addr, len, flags: 0 }
}

/// The device writes it.
pub(super) fn into(addr: u64, len: u32) -> D {
    D { addr, len, flags: DESC_WRITE }
}

/// It is a table.
pub(super) fn table(addr: u64, len: u32) -> D {
    D { addr, len, flags: DESC_INDIRECT }
}

/// Bytes of a descriptor in a table or a split ring.
pub(super) fn split_bytes(desc: D, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&desc.addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&desc.len.to_le_bytes());
    bytes[12..14].copy_from_slice(&desc.flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

/// The same in the packed format, where id and flags are the other way round.
pub(super) fn packed_bytes(desc: D, id: u16) -> [u8; 16] {
    let mut bytes = split_bytes(desc, 0);
    bytes[12..14].copy_from_slice(&id.to_le_bytes());
    bytes[14..].copy_from_slice(&desc.flags.to_le_bytes());
    bytes
}

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// The driver's side of one ring.
pub(super) struct Driver {
    pub(super) features: RingFeatures,
    pub(super) size: u16,
    /// Guest addresses of the three parts.
    pub(super) desc: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
    /// Split: free-running available index. Packed: next position.
    pub(super) avail: u16,
    avail_wrap: bool,
    used: u16,
    used_wrap: bool,
    /// Free descriptors (split) or buffer ids (packed).
    free: Vec<u16>,
    /// Descriptors of each id in flight.
    chains: Vec<Vec<u16>>,
}

impl Driver {
    /// A fresh ring at `at`, which needs 64 KiB; `start` is its first index (split only).
    pub(super) fn new(ram: &Ram, at: u64, size: u16, features: RingFeatures, start: u16) -> Driver {
        let driver = Driver {
            features,
            size,
            desc: at,
            driver: at + 0x8000,
            device: at + 0xa000,
            avail: if features.packed { 0 } else { start },
            avail_wrap: true,
            used: if features.packed { 0 } else { start },
            used_wrap: true,
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); size.into()],
        };
        ram.write(at, &vec![0; 0x10000]);
        if !features.packed {
            ram.write_u16(driver.driver + 2, start);
            ram.write_u16(driver.device + 2, start);
        }
        driver
    }

    pub(super) fn spans(&self, memory: &GuestMemory) -> RingSpans {
        RingSpans::locate(memory, &self.addrs(), self.size, self.features).unwrap()
    }

    /// Addresses as the front-end gives them.
    pub(super) fn addrs(&self) -> RingAddrs {
        let user = |addr: u64| addr - GUEST_BASE + USER_BASE;
        RingAddrs { desc: user(self.desc), driver: user(self.driver), device: user(self.device) }
    }

    /// For SET_VRING_BASE.
    pub(super) fn base(&self) -> u32 {
        if self.features.packed {
            let half = u32::from(self.avail) | u32::from(self.avail_wrap) << 15;
            half | half << 16
        } else {
            self.avail.into()
        }
    }

    pub(super) fn write_split(&self, ram: &Ram, index: u16, desc: D, next: u16) {
        ram.write(self.desc + 16 * u64::from(index), &split_bytes(desc, next));
    }

    /// Puts `head` into the available ring and moves the index by `step`.
    pub(super) fn offer_head(&mut self, ram: &Ram, head: u16, step: u16) {
        let slot = self.avail % self.size;
        ram.write_u16(self.driver + 4 + 2 * u64::from(slot), head);
        self.avail = self.avail.wrapping_add(step);
        ram.write_u16(self.driver + 2, self.avail);
    }

    /// Makes a chain available; returns the id it will come back with.
    pub(super) fn offer(&mut self, ram: &Ram, chain: &[D]) -> u16 {
        if self.features.packed {
            self.offer_packed(ram, chain)
        } else {
            self.offer_split(ram, chain)
        }
    }

    fn offer_split(&mut self, ram: &Ram, chain: &[D]) -> u16 {
        let indices: Vec<u16> =
            chain.iter().map(|_| self.free.pop().expect("a test offers what fits")).collect();
        for (position, desc) in chain.iter().enumerate() {
            let next = indices.get(position + 1);
            let flags = desc.flags | if next.is_some() { DESC_NEXT } else { 0 };
            let next = next.copied().unwrap_or(0);
            self.write_split(ram, indices[position], D { flags, ..*desc }, next);
        }
        let head = indices[0];
        self.chains[usize::from(head)] = indices;
        self.offer_head(ram, head, 1);
        head
    }

    fn offer_packed(&mut self, ram: &Ram, chain: &[D]) -> u16 {
        let id = self.free.pop().expect("a test offers what fits");
        let mut first = None;
        for (position, desc) in chain.iter().enumerate() {
            let lap = if self.avail_wrap { AVAIL } else { USED };
            let next = if position + 1 < chain.len() { DESC_NEXT } else { 0 };
            let flags = desc.flags | lap | next;
            let at = self.desc + 16 * u64::from(self.avail);
            // As a driver must: the first flags go last.
            let hidden = if position == 0 { ram.read_u16(at + 14) } else { flags };
            ram.write(at, &packed_bytes(D { flags: hidden, ..*desc }, id));
            if position == 0 {
                first = Some((at + 14, flags));
            }
            self.avail += 1;
            if self.avail == self.size {
                self.avail = 0;
                self.avail_wrap = !self.avail_wrap;
            }
        }
        let (at, flags) = first.expect("chains are not empty");
        ram.write_u16(at, flags);
        self.chains[usize::from(id)] = vec![0; chain.len()];
        id
    }

    /// The next chain that came back: id and length.
    pub(super) fn used(&mut self, ram: &Ram) -> Option<(u16, u32)> {
        let (id, len) = if self.features.packed {
            let at = self.desc + 16 * u64::from(self.used);
            let flags = ram.read_u16(at + 14);
            let both = flags & (AVAIL | USED);
            if both != if self.used_wrap { AVAIL | USED } else { 0 } {
                return None;
            }
            let len = u32::from_le_bytes(ram.read(at + 8));
            let id = ram.read_u16(at + 12);
            self.used += self.chains[usize::from(id)].len() as u16;
            if self.used >= self.size {
                self.used -= self.size;
                self.used_wrap = !self.used_wrap;
            }
            self.free.push(id);
            (id, len)
        } else {
            if ram.read_u16(self.device + 2) == self.used {
                return None;
            }
            let at = self.device + 4 + 8 * u64::from(self.used % self.size);
            let id = u32::from_le_bytes(ram.read(at));
            let len = u32::from_le_bytes(ram.read(at + 4));
            self.used = self.used.wrapping_add(1);
            self.free.extend(&self.chains[id as usize]);
            (id as u16, len)
        };
        let chain = std::mem::take(&mut self.chains[usize::from(id)]);
        assert!(!chain.is_empty(), "{id} came back, but was not in flight");
        Some((id, len))
    }

    /// Wants a call: always, never, or (event index) when the chain after next is used.
    pub(super) fn want_calls(&mut self, ram: &Ram, wanted: Calls) {
        match (self.features.packed, wanted) {
            (false, Calls::At(ahead)) => {
                let at = self.driver + 4 + 2 * u64::from(self.size);
                ram.write_u16(at, self.used.wrapping_add(ahead));
            }
            (false, Calls::Always) => ram.write_u16(self.driver, 0),
            (false, Calls::Never) => ram.write_u16(self.driver, 1),
            (true, Calls::At(ahead)) => {
                let sum = self.used + ahead;
                let wrap = if sum >= self.size { !self.used_wrap } else { self.used_wrap };
                ram.write_u16(self.driver, (sum % self.size) | (u16::from(wrap) << 15));
                ram.write_u16(self.driver + 2, 2);
            }
            (true, Calls::Always) => ram.write_u16(self.driver + 2, 0),
            (true, Calls::Never) => ram.write_u16(self.driver + 2, 1),
        }
    }

    /// Does the device want a kick for what was just offered, `count` descriptors or chains ago?
    pub(super) fn kick_wanted(&self, ram: &Ram, count: u16) -> bool {
        if !self.features.packed {
            if !self.features.event_idx {
                return ram.read_u16(self.device) == 0;
            }
            let event = ram.read_u16(self.device + 4 + 8 * u64::from(self.size));
            let old = self.avail.wrapping_sub(count);
            return crate::vhost::vring::event_passed(event, self.avail, old);
        }
        match ram.read_u16(self.device + 2) {
            0 => true,
            1 => false,
            _ => {
                let off_wrap = ram.read_u16(self.device);
                let lap = if (off_wrap >> 15 != 0) == self.avail_wrap { 0 } else { self.size };
                let event = i32::from(off_wrap & 0x7fff) - i32::from(lap);
                let new = i32::from(self.avail);
                (new - i32::from(count)..new).contains(&event)
            }
        }
    }
}

/// When a driver wants to be called.
#[derive(Clone, Copy, Debug)]
pub(super) enum Calls {
    Always,
    Never,
    /// For the used entry (split) or descriptor (packed) that many ahead.
    At(u16),
}

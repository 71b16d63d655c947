//! Steps through a virtqueue: the export's side counted together with a guest that does as little
//! as one can, whose part is the same in each run.
//!
//! ```text
//!  guest: descriptors, available index ─► BlkExport::poll ─► engine ─► complete ─► used index
//! ```
//!
//! Requests are the usual three descriptors (header, one page of data, status) at addresses that
//! stay; only the sector changes.

use std::fs::File;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use lamina_target::mem::guest::{GuestMemory, Region, RegionSpec};
use lamina_target::vhost::{
    BlkExport, ExportConfig, ExportMsg, Negotiated, Queue, QueueSetup, Reply, RingAddrs,
    RingFeatures, RingSpans,
};
use rustix::fs::MemfdFlags;

use crate::engine::rig::Rig;
use crate::store::Verb;

/// Where guest memory begins for the guest, and for its front-end.
const BASE: u64 = 1 << 32;
/// Requests in flight: each has three descriptors of the ring.
const DEPTH: u16 = 32;
const SIZE: u16 = 128;
const MEMORY: u64 = 1 << 20;
/// Where things are in guest memory.
const RING: u64 = 0;
const DRIVER: u64 = 0x4000;
const DEVICE: u64 = 0x8000;
const HEADERS: u64 = 0x1_0000;
const STATUSES: u64 = 0x1_8000;
const DATA: u64 = 0x4_0000;
/// Flags of descriptors.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// An export with one queue, and its guest.
pub struct RingGuest {
    export: BlkExport,
    memory: Arc<GuestMemory>,
    packed: bool,
    /// Next available entry, and next used one.
    avail: u16,
    used: u16,
    /// Packed: place of the next chain and of the next used entry, and their wrap counters.
    place: u16,
    seen: u16,
    wrap: bool,
    seen_wrap: bool,
}

impl RingGuest {
    /// A guest whose disk is the one that `rig` has chosen.
    ///
    /// # Errors
    /// No memory to share.
    pub fn new(rig: &mut Rig, packed: bool) -> Result<RingGuest> {
        let file = File::from(rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC)?);
        file.set_len(MEMORY)?;
        let spec = RegionSpec { guest_addr: BASE, size: MEMORY, user_addr: BASE, offset: 0 };
        let memory = Arc::new(GuestMemory::new(vec![Region::map(spec, &file)?])?);
        let features = RingFeatures { packed, event_idx: true, indirect: true };
        let mut export = BlkExport::new(ExportConfig {
            handle: rig.handle()?,
            index: 0,
            capacity_bytes: rig.disk_bytes()?,
            readonly: false,
            serial: ExportConfig::serial_from("perf"),
            queues_max: 1,
            write_cache: true,
        });
        export.message(ExportMsg::Features(Negotiated {
            ring: features,
            flush: true,
            config_wce: true,
            discard: true,
            write_zeroes: true,
        }));
        let (done, _) = Reply::pair();
        export.message(ExportMsg::Memory { memory: memory.clone(), rings: Vec::new(), done });
        let addrs = RingAddrs { desc: BASE + RING, driver: BASE + DRIVER, device: BASE + DEVICE };
        let spans = RingSpans::locate(&memory, &addrs, SIZE, features).context("a ring")?;
        let setup = QueueSetup {
            index: 0,
            size: SIZE,
            features,
            spans,
            base: if packed { 0x8000_8000 } else { 0 },
            log: None,
            kick: None,
            call: None,
            error: None,
            enabled: true,
        };
        let queue = Queue::new(setup).map_err(|fault| anyhow::anyhow!("{fault}"))?;
        let (done, started) = Reply::pair();
        export.message(ExportMsg::Start { queue, done });
        ensure!(started.try_recv()?.is_ok(), "the queue did not start");
        let (seen, place) = (0, 0);
        let (wrap, seen_wrap, avail, used) = (true, true, 0, 0);
        Ok(RingGuest { export, memory, packed, avail, used, place, seen, wrap, seen_wrap })
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        assert!(self.memory.write(&mut 0, BASE + at, bytes), "inside of the memory");
    }

    fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        assert!(self.memory.read(&mut 0, BASE + at, &mut bytes), "inside of the memory");
        bytes
    }

    /// Offers a page at `offset` of the disk on request `slot`.
    fn offer(&mut self, verb: Verb, slot: u16, offset: u64) {
        let mut header = [0; 16];
        header[0] = u8::from(verb == Verb::Write);
        header[8..].copy_from_slice(&(offset / 512).to_le_bytes());
        let n = u64::from(slot);
        self.put(HEADERS + 16 * n, &header);
        let data = if verb == Verb::Read { WRITE } else { 0 };
        let parts = [
            (HEADERS + 16 * n, 16u32, NEXT),
            (DATA + 4096 * n, 4096, NEXT | data),
            (STATUSES + n, 1, WRITE),
        ];
        if self.packed {
            return self.offer_packed(slot, &parts);
        }
        for (at, (addr, len, flags)) in parts.into_iter().enumerate() {
            let index = 3 * slot + at as u16;
            self.put(RING + 16 * u64::from(index), &desc(addr, len, flags, index + 1));
        }
        self.put(DRIVER + 4 + 2 * u64::from(self.avail % SIZE), &(3 * slot).to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.put(DRIVER + 2, &self.avail.to_le_bytes());
    }

    fn offer_packed(&mut self, slot: u16, parts: &[(u64, u32, u16)]) {
        let mut first = None;
        for &(addr, len, flags) in parts {
            let phase = if self.wrap { AVAIL } else { USED };
            let bytes = desc(addr, len, slot, flags | phase);
            let at = RING + 16 * u64::from(self.place);
            match first {
                // The first one makes the chain available, so it goes last.
                None => first = Some((at, bytes)),
                Some(_) => self.put(at, &bytes),
            }
            self.place += 1;
            if self.place == SIZE {
                (self.place, self.wrap) = (0, !self.wrap);
            }
        }
        let (at, bytes) = first.expect("a chain is not empty");
        self.put(at, &bytes);
    }

    /// Adds the requests that came back to `idle`.
    fn take_used(&mut self, idle: &mut Vec<u16>) {
        if self.packed {
            loop {
                let raw = self.get::<16>(RING + 16 * u64::from(self.seen));
                let flags = u16::from_le_bytes([raw[14], raw[15]]);
                let (avail, used) = (flags & AVAIL != 0, flags & USED != 0);
                if avail != used || used != self.seen_wrap {
                    return;
                }
                idle.push(u16::from_le_bytes([raw[12], raw[13]]));
                self.seen += 3;
                if self.seen >= SIZE {
                    (self.seen, self.seen_wrap) = (self.seen - SIZE, !self.seen_wrap);
                }
            }
        }
        let used = u16::from_le_bytes(self.get(DEVICE + 2));
        while self.used != used {
            let raw = self.get::<4>(DEVICE + 4 + 8 * u64::from(self.used % SIZE));
            idle.push((u32::from_le_bytes(raw) / 3) as u16);
            self.used = self.used.wrapping_add(1);
        }
    }

    /// `count` requests of a page, 32 at a time.
    ///
    /// # Errors
    /// One failed.
    pub fn run(
        &mut self,
        rig: &mut Rig,
        verb: Verb,
        count: u64,
        mut offset: impl FnMut() -> u64,
    ) -> Result<()> {
        let mut idle: Vec<u16> = (0..DEPTH).collect();
        let mut done = Vec::with_capacity(usize::from(DEPTH));
        let mut begun = 0;
        loop {
            while begun < count
                && let Some(slot) = idle.pop()
            {
                self.offer(verb, slot, offset());
                begun += 1;
            }
            if idle.len() == usize::from(DEPTH) {
                return Ok(());
            }
            self.export.poll_into(rig);
            rig.turn_all(&mut done)?;
            for cookie in done.drain(..) {
                self.export.complete(u64::from(cookie), lamina_bdev::Status::Ok);
            }
            self.export.end_turn();
            let before = idle.len();
            self.take_used(&mut idle);
            for slot in &idle[before..] {
                ensure!(self.get::<1>(STATUSES + u64::from(*slot)) == [0], "a request failed");
            }
        }
    }
}

/// A descriptor; the last two fields are flags and next (split) or id and flags (packed).
fn desc(addr: u64, len: u32, third: u16, fourth: u16) -> [u8; 16] {
    let mut raw = [0; 16];
    raw[..8].copy_from_slice(&(BASE + addr).to_le_bytes());
    raw[8..12].copy_from_slice(&len.to_le_bytes());
    raw[12..14].copy_from_slice(&third.to_le_bytes());
    raw[14..].copy_from_slice(&fourth.to_le_bytes());
    raw
}

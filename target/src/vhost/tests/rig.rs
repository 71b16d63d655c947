//! An export, a disk in RAM and a guest with two queues, driven turn by turn.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use lamina_bdev::Handle;
use rustix::event::{EventfdFlags, eventfd};

use super::disk::RamDisk;
use super::driver::{D, Driver, GUEST_BASE, Ram, into, out};
use crate::mem::guest::GuestMemory;
use crate::vhost::vring::{Fault, RingFeatures};
use crate::vhost::{
    BlkExport, EventFd, ExportConfig, ExportMsg, InflightLog, Negotiated, Queue, QueueSetup, Reply,
    StoppedQueue,
};

pub(super) const DISK_BYTES: usize = 1 << 20;
pub(super) const EXPORT: u16 = 7;
pub(super) const READ: u32 = 0;
pub(super) const WRITE: u32 = 1;
pub(super) const FLUSH: u32 = 4;
pub(super) const GET_ID: u32 = 8;
pub(super) const DISCARD: u32 = 11;
pub(super) const WRITE_ZEROES: u32 = 13;
pub(super) const OK: u8 = 0;
pub(super) const IOERR: u8 = 1;
pub(super) const UNSUPP: u8 = 2;

/// Where requests keep their parts in guest memory: `REQUESTS + n * REQUEST_STRIDE`.
const REQUESTS: u64 = GUEST_BASE + 0x4_0000;
const REQUEST_STRIDE: u64 = 0x8000;

/// Guest addresses of one request's parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    pub(super) header: u64,
    pub(super) status: u64,
    pub(super) data: u64,
}

/// The parts of request number `n`, 24 KiB of data each.
pub(super) fn parts(n: u64) -> Parts {
    let base = REQUESTS + n * REQUEST_STRIDE;
    Parts { header: base, status: base + 0x40, data: base + 0x1000 }
}

pub(super) fn config() -> ExportConfig {
    ExportConfig {
        handle: Handle(3),
        index: EXPORT,
        capacity_bytes: DISK_BYTES as u64,
        readonly: false,
        serial: ExportConfig::serial_from("lamina-test-disk"),
        queues_max: 4,
        write_cache: true,
    }
}

pub(super) fn all_features(packed: bool) -> Negotiated {
    Negotiated {
        ring: RingFeatures { packed, event_idx: false, indirect: true },
        flush: true,
        config_wce: true,
        discard: true,
        write_zeroes: true,
    }
}

/// An eventfd, ours and the peer's end.
pub(super) fn event_pair() -> (EventFd, File) {
    let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let twin = File::from(fd.try_clone().unwrap());
    (EventFd::from_peer(File::from(fd)).unwrap(), twin)
}

/// Signals on an eventfd since the last time.
pub(super) fn signals(file: &File) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(file, &mut count) {
        Ok(8) => u64::from_ne_bytes(count),
        _ => 0,
    }
}

pub(super) struct Rig {
    pub(super) ram: Ram,
    pub(super) export: BlkExport,
    pub(super) disk: RamDisk,
    pub(super) drivers: Vec<Driver>,
    pub(super) calls: Vec<File>,
    pub(super) kicks: Vec<File>,
    /// What the export maps; kept, as a session does.
    pub(super) memory: Arc<GuestMemory>,
}

impl Rig {
    /// Two queues of 16, ready.
    pub(super) fn new(packed: bool) -> Rig {
        Rig::with(config(), all_features(packed), 16)
    }

    pub(super) fn with(config: ExportConfig, negotiated: Negotiated, size: u16) -> Rig {
        let mut rig = Rig::idle(config, negotiated);
        for index in 0..2u16 {
            let at = GUEST_BASE + u64::from(index) * 0x1_0000;
            let driver = Driver::new(&rig.ram, at, size, negotiated.ring, 0);
            rig.drivers.push(driver);
            rig.start(index, None).unwrap();
        }
        rig
    }

    /// No queues yet.
    pub(super) fn idle(config: ExportConfig, negotiated: Negotiated) -> Rig {
        let ram = Ram::new();
        let memory = Ram::map(&ram.files);
        let mut rig = Rig {
            export: BlkExport::new(config),
            disk: RamDisk::new(DISK_BYTES),
            drivers: Vec::new(),
            calls: Vec::new(),
            kicks: Vec::new(),
            memory: memory.clone(),
            ram,
        };
        rig.export.message(ExportMsg::Features(negotiated));
        let (done, answer) = Reply::pair();
        rig.export.message(ExportMsg::Memory { memory, rings: Vec::new(), done });
        answer.try_recv().unwrap();
        rig
    }

    /// Starts queue `index` on its driver's ring.
    pub(super) fn start(&mut self, index: u16, log: Option<&InflightLog>) -> Result<(), Fault> {
        let driver = &self.drivers[usize::from(index)];
        let (kick, kick_twin) = event_pair();
        let (call, call_twin) = event_pair();
        let queue = Queue::new(QueueSetup {
            index,
            size: driver.size,
            features: driver.features,
            spans: driver.spans(&self.memory),
            base: driver.base(),
            log,
            kick: Some(kick),
            call: Some(call),
            error: None,
            enabled: true,
        })?;
        let (done, answer) = Reply::pair();
        self.export.message(ExportMsg::Start { queue, done });
        assert!(answer.try_recv().unwrap().is_ok());
        signals(&call_twin);
        self.calls.insert(index.into(), call_twin);
        self.kicks.insert(index.into(), kick_twin);
        Ok(())
    }

    /// Asks a queue to stop.
    pub(super) fn stop(&mut self, queue: u16, retire_log: bool) -> Receiver<StoppedQueue> {
        let (done, answer) = Reply::pair();
        self.export.message(ExportMsg::Stop { queue, retire_log, done });
        answer
    }

    /// A whole turn: all requests are done at its end.
    pub(super) fn turn(&mut self) -> bool {
        let moved = self.export.poll_into(&mut self.disk);
        while let Some((cookie, status)) = self.disk.take_done() {
            assert_eq!(cookie >> 48, u64::from(EXPORT));
            self.export.complete(cookie, status);
        }
        self.export.end_turn();
        moved
    }

    /// A turn in which the disk finishes nothing.
    pub(super) fn turn_without_completions(&mut self) {
        self.export.poll_into(&mut self.disk);
        self.export.end_turn();
    }

    pub(super) fn header(&self, parts: Parts, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.ram.write(parts.header, &header);
        self.ram.write(parts.status, &[0xee]);
    }

    /// Offers the ordinary three-descriptor request and returns its id.
    pub(super) fn offer(&mut self, queue: usize, n: u64, kind: u32, sector: u64, len: u32) -> u16 {
        let parts = parts(n);
        self.header(parts, kind, sector);
        let mut chain = vec![out(parts.header, 16)];
        match kind {
            _ if len == 0 => {}
            READ | GET_ID => chain.push(into(parts.data, len)),
            _ => chain.push(out(parts.data, len)),
        }
        chain.push(into(parts.status, 1));
        self.drivers[queue].offer(&self.ram, &chain)
    }

    /// Offers descriptors as they are.
    pub(super) fn offer_raw(&mut self, queue: usize, chain: &[D]) -> u16 {
        self.drivers[queue].offer(&self.ram, chain)
    }

    pub(super) fn used(&mut self, queue: usize) -> Option<(u16, u32)> {
        self.drivers[queue].used(&self.ram)
    }

    pub(super) fn status(&self, n: u64) -> u8 {
        self.ram.read::<1>(parts(n).status)[0]
    }

    /// Offers, turns once, and returns status and used length.
    pub(super) fn run(
        &mut self,
        queue: usize,
        n: u64,
        kind: u32,
        sector: u64,
        len: u32,
    ) -> (u8, u32) {
        let id = self.offer(queue, n, kind, sector, len);
        self.turn();
        let (back, used_len) = self.used(queue).expect("answered within the turn");
        assert_eq!(back, id);
        assert_eq!(self.used(queue), None);
        (self.status(n), used_len)
    }

    /// Proves that a queue works: writes a pattern and reads it back.
    pub(super) fn prove(&mut self, queue: usize, sector: u64) {
        let pattern: Vec<u8> = (0..4096u32).map(|i| (i as u64 ^ sector) as u8).collect();
        self.ram.write(parts(60).data, &pattern);
        assert_eq!(self.run(queue, 60, WRITE, sector, 4096), (OK, 1));
        self.ram.write(parts(61).data, &[0xaa; 4096]);
        assert_eq!(self.run(queue, 61, READ, sector, 4096), (OK, 4097));
        assert_eq!(self.ram.read_vec(parts(61).data, 4096), pattern);
        assert!(self.export.idle());
    }
}

/// True if nothing has arrived yet.
pub(super) fn is_pending<T>(answer: &Receiver<T>) -> bool {
    matches!(answer.try_recv(), Err(TryRecvError::Empty))
}

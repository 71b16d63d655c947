//! Fuzz targets of what a guest can say: rings of both formats and requests. `cargo test` replays
//! their inputs; `scripts/fuzz` finds new ones.

use std::cell::RefCell;
use std::time::Duration;

use lamina_bdev::{Op, SECTOR_SIZE, Status, limits};

use super::disk::RamDisk;
use super::driver::*;
use super::rig::*;
use crate::vhost::blk::{self, Action, Device, Operands, PIECES_MAX};
use crate::vhost::vring::{DESC_NEXT, DESC_WRITE, Desc, RingFeatures};
use crate::vhost::{BlkExport, ExportConfig, ExportMsg, InflightLog, LogShape, Negotiated, Reply};

/// Bytes of the disk: few, so that a run is short.
const CAPACITY: usize = 64 << 10;
/// Most steps of one input.
const STEPS_MAX: usize = 200;

/// The input, read from its beginning; zeros after its end.
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl Bytes<'_> {
    pub(super) fn done(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub(super) fn half(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// A guest address worth trying.
    pub(super) fn addr(&mut self) -> u64 {
        let (kind, low) = (self.byte() % 10, u64::from(self.half()));
        match kind {
            0..=3 => parts(low % 8).header + (low >> 8) % 64,
            4 => parts(low % 8).data,
            5 => GUEST_BASE + low,
            6 => GUEST_END - low % 4096,
            7 => GUEST_BASE + REGION_BYTES - low % 4096,
            8 => u64::MAX - low,
            _ => low,
        }
    }

    /// A length worth trying.
    pub(super) fn len(&mut self) -> u32 {
        let low = u32::from(self.byte());
        match low {
            0..=127 => low % 36,
            128..=191 => (low - 127) * 512,
            192..=223 => (low - 191) * 16,
            224..=239 => u32::MAX - (low - 224),
            240 => 0xffff_fe00,
            241 => 1 << 31,
            _ => (low - 241) << 16,
        }
    }

    fn desc(&mut self) -> D {
        let (addr, len) = (self.addr(), self.len());
        D { addr, len, flags: u16::from(self.byte()) & 7 }
    }

    fn kind(&mut self) -> u32 {
        const KINDS: [u32; 9] = [READ, WRITE, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, 2, 255, 6];
        KINDS[usize::from(self.byte()) % KINDS.len()]
    }
}

pub(super) fn small_config() -> ExportConfig {
    ExportConfig { capacity_bytes: CAPACITY as u64, ..config() }
}

/// A rig on memory that is used again and again.
fn rig_on(ram: Ram, negotiated: Negotiated) -> Rig {
    let memory = ram.memory.clone();
    let mut rig = Rig {
        export: BlkExport::new(small_config()),
        disk: RamDisk::new(CAPACITY),
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

/// Lets the oldest or youngest request end, or all.
fn complete(rig: &mut Rig, which: u8) {
    let mut left = if which & 3 == 0 { usize::MAX } else { 1 };
    rig.disk.status = if which & 16 != 0 { Status::NoSpace } else { Status::Ok };
    while left > 0 {
        let done = if which & 8 != 0 { rig.disk.take_done() } else { rig.disk.take_done_last() };
        let Some((cookie, status)) = done else { break };
        rig.export.complete(cookie, status);
        left -= 1;
    }
    rig.disk.status = Status::Ok;
    rig.export.end_turn();
}

fn poll(rig: &mut Rig) {
    let before = rig.disk.seen.len();
    rig.export.poll_into(&mut rig.disk);
    assert!(rig.disk.seen.len() - before <= 33 * PIECES_MAX, "a turn is bounded");
    assert!(rig.export.in_flight() <= u32::from(rig.drivers[0].size));
}

/// One thing a guest or the reactor does.
fn step(rig: &mut Rig, input: &mut Bytes<'_>, room: &mut u16) {
    let verb = input.byte();
    let (packed, size) = (rig.drivers[0].features.packed, rig.drivers[0].size);
    let ring = rig.drivers[0].desc;
    match verb % 12 {
        0 | 1 => {
            let (index, desc) = (u16::from(input.byte()) % size, input.desc());
            let extra = input.byte();
            if packed {
                // The lap bits go along.
                let lap = u16::from(extra & 1) << 7 | u16::from(extra & 2) << 14;
                let desc = D { flags: desc.flags | lap, ..desc };
                let bytes = packed_bytes(desc, u16::from(extra >> 2));
                rig.ram.write(ring + 16 * u64::from(index), &bytes);
            } else {
                rig.drivers[0].write_split(&rig.ram, index, desc, u16::from(extra));
            }
        }
        2 => {
            let (place, value) = (input.half(), input.half());
            rig.ram.write_u16(ring + u64::from(place % 0xb000), value);
        }
        3 if packed => {
            let at = ring + 16 * u64::from(u16::from(input.byte()) % size) + 14;
            let flags = rig.ram.read_u16(at) ^ if verb & 0x80 != 0 { 1 << 7 } else { 1 << 15 };
            rig.ram.write_u16(at, flags);
        }
        3 => {
            let head = u16::from(input.byte());
            rig.drivers[0].offer_head(&rig.ram, head, 1 + u16::from(verb >> 6) / 3);
        }
        4 | 5 => {
            let wanted = 1 + u16::from(input.byte() % 4);
            let chain: Vec<D> = (0..wanted).map(|_| input.desc()).collect();
            let chain: Vec<D> = chain
                .into_iter()
                .map(|desc| D { flags: desc.flags & !DESC_NEXT, ..desc })
                .collect();
            if wanted <= *room {
                *room -= wanted;
                rig.offer_raw(0, &chain);
            }
        }
        6 | 7 => {
            let (n, kind, sector) = (u64::from(input.byte() % 8), input.kind(), input.byte());
            let len = input.len();
            if *room >= 3 {
                *room -= 3;
                rig.offer(0, n, kind, u64::from(sector), len);
            }
        }
        8 => {
            let n = u64::from(input.byte() % 8);
            let (kind, sector) = (input.kind(), u64::from(input.half()) << (verb >> 4));
            rig.header(parts(n), kind, sector);
        }
        9 => {
            // Ranges of a discard, or a table of descriptors.
            let at = parts(u64::from(input.byte() % 8)).data;
            let bytes: Vec<u8> = (0..16).map(|_| input.byte()).collect();
            rig.ram.write(at + u64::from(verb >> 4) * 16, &bytes);
        }
        10 => {
            rig.disk.room = if verb & 0x40 != 0 { usize::MAX } else { usize::from(verb >> 4) };
            poll(rig);
            complete(rig, verb >> 4);
        }
        _ => {
            poll(rig);
            if verb & 0x80 != 0 && rig.export.prepare_sleep() {
                rig.export.woken();
            }
            rig.export.end_turn();
        }
    }
}

/// A guest plays on one ring; whatever it does, the export serves the next guest.
fn ring(ram: Ram, packed: bool, input: &[u8]) -> Ram {
    let mut input = Bytes(input);
    let setup = input.byte();
    let features = RingFeatures { packed, event_idx: setup & 1 != 0, indirect: setup & 2 != 0 };
    let size = if packed { [4, 16, 5, 31] } else { [4, 8, 16, 32] }[usize::from(setup >> 2 & 3)];
    ram.write(GUEST_BASE + 0x4_0000, &[0; 0x1000]);
    let mut rig = rig_on(ram, Negotiated { ring: features, ..all_features(packed) });
    let start = if setup & 0x10 != 0 { 0xfffe } else { 0 };
    let driver = Driver::new(&rig.ram, GUEST_BASE, size, features, start);
    rig.drivers.push(driver);
    let log = (setup & 0x20 != 0).then(|| log_of(&mut input, packed, size));
    if rig.start(0, log.as_ref()).is_ok() {
        let mut room = size;
        for _ in 0..STEPS_MAX {
            if input.done() {
                break;
            }
            step(&mut rig, &mut input, &mut room);
        }
        rig.disk.room = usize::MAX;
        let answer = rig.stop(0, setup & 0x40 != 0);
        for _ in 0..4 {
            rig.turn();
        }
        assert!(rig.export.idle(), "nothing is left in flight");
        let stopped = answer.try_recv().expect("a drained queue is handed back");
        assert!(stopped.queue.is_some() && rig.export.queues() == 0);
    }
    let negotiated = all_features(packed);
    rig.export.message(ExportMsg::Features(negotiated));
    rig.drivers = vec![Driver::new(&rig.ram, GUEST_BASE, 16, negotiated.ring, 0)];
    (rig.calls, rig.kicks) = (Vec::new(), Vec::new());
    rig.start(0, None).expect("a lawful ring");
    rig.prove(0, 8);
    rig.ram
}

/// An in-flight log as a hostile front-end would hand it over.
fn log_of(input: &mut Bytes<'_>, packed: bool, size: u16) -> InflightLog {
    let shape = LogShape { queues: 1, queue_size: size };
    let file = InflightLog::create(shape, packed, 4).unwrap();
    let bytes = shape.bytes(packed);
    let count = u64::from(input.byte());
    for _ in 0..count.min(40) {
        let at = u64::from(input.half()) % bytes;
        rustix::io::pwrite(&file, &[input.byte()], at).unwrap();
    }
    InflightLog::map(shape, 4, &file, 0, bytes).unwrap()
}

/// What [`blk::parse`] makes of a chain keeps its promises.
fn request(ram: &Ram, operands: &mut Operands, input: &[u8]) {
    let mut input = Bytes(input);
    let setup = input.byte();
    let device = Device {
        handle: config().handle,
        capacity_bytes: CAPACITY as u64,
        readonly: setup & 1 != 0,
        serial: config().serial,
        negotiated: Negotiated { discard: setup & 2 == 0, ..all_features(false) },
        write_cache: setup & 4 != 0,
    };
    let (kind, sector) = (input.kind(), u64::from(input.half()) << (setup >> 3));
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    ram.write(parts(0).header, &header);
    let pieces: Vec<u8> = (0..32).map(|_| input.byte()).collect();
    ram.write(parts(0).data, &pieces);
    let count = 1 + usize::from(input.byte() % 12);
    let mut descs = Vec::new();
    for _ in 0..count {
        let D { addr, len, flags } = input.desc();
        descs.push(Desc { addr, len, flags: flags & DESC_WRITE, link: 0 });
    }
    let Ok(parsed) = blk::parse(&descs, &ram.memory, &mut 0, &device, operands) else { return };
    assert!(ram.memory.translate(&mut 0, parsed.status_addr, 1, |_| {}), "the status has a place");
    match parsed.action {
        Action::Reply(_) => {}
        Action::Transfer { op: Op::Flush, len, .. } => assert_eq!(len, 0),
        Action::Transfer { op, offset, len, .. } => {
            assert!(op == Op::Read || !device.readonly, "a read-only disk is not written");
            assert!(offset + len <= device.capacity_bytes);
            assert!(len > 0 && (offset | len).is_multiple_of(SECTOR_SIZE as u64));
            assert_eq!(operands.segs.iter().map(|seg| seg.len as u64).sum::<u64>(), len);
            assert!(operands.segs.len() <= limits::SEGS_MAX);
        }
        Action::Pieces { .. } => {
            assert!(!device.readonly && (1..=PIECES_MAX).contains(&operands.pieces.len()));
            for piece in &operands.pieces {
                assert!(piece.len > 0 && piece.offset + piece.len <= device.capacity_bytes);
            }
        }
    }
}

fn check_ring(packed: bool) -> impl Fn(&[u8]) {
    let kept = RefCell::new(None);
    move |input| {
        let ram = kept.take().unwrap_or_else(|| Ram::named("fuzz-ring"));
        let ram = ring(ram, packed, input);
        kept.replace(Some(ram));
    }
}

#[test]
fn split_ring() {
    let run = std::panic::AssertUnwindSafe(check_ring(false));
    bolero::check!(name = "split_ring")
        .with_iterations(200)
        .with_test_time(Duration::MAX)
        .with_shrink_time(Duration::ZERO)
        .for_each(|input: &[u8]| (*run)(input));
}

#[test]
fn packed_ring() {
    let run = std::panic::AssertUnwindSafe(check_ring(true));
    bolero::check!(name = "packed_ring")
        .with_iterations(200)
        .with_test_time(Duration::MAX)
        .with_shrink_time(Duration::ZERO)
        .for_each(|input: &[u8]| (*run)(input));
}

#[test]
fn blk_request() {
    let ram = Ram::named("fuzz-request");
    let kept = std::panic::AssertUnwindSafe((ram, RefCell::new(Operands::new())));
    bolero::check!(name = "blk_request")
        .with_iterations(500)
        .with_test_time(Duration::MAX)
        .with_shrink_time(Duration::ZERO)
        .for_each(|input: &[u8]| {
            let (ram, operands) = &*kept;
            request(ram, &mut operands.borrow_mut(), input);
        });
}

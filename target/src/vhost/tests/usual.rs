//! The short way through [`blk::parse`] says what the long one says, whatever the chain.

use lamina_bdev::{Op, Seg};

use super::driver::*;
use super::rig::*;
use crate::vhost::Negotiated;
use crate::vhost::blk::{self, Action, Answer, Device, Operands};
use crate::vhost::vring::{DESC_WRITE, Desc};

const CHAINS: usize = 20_000;
const CAPACITY: u64 = 64 << 10;

/// Numbers that are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    /// `usual` mostly, else one of the others.
    fn mostly<T: Copy>(&mut self, usual: T, others: &[T]) -> T {
        if self.below(12) > 0 { usual } else { others[self.below(others.len() as u64) as usize] }
    }
}

/// Addresses at which something of a length ends, crosses, or is not there at all.
fn bad_places() -> [u64; 10] {
    let middle = GUEST_BASE + REGION_BYTES;
    let (a, b, c) = (GUEST_BASE - 8, middle - 8, middle - 1);
    [0, a, b, c, middle, GUEST_END - 8, GUEST_END - 1, GUEST_END, u64::MAX, u64::MAX - 15]
}

fn chain(numbers: &mut Numbers, kind: u32) -> Vec<Desc> {
    let (at, bad) = (parts(numbers.below(4)), bad_places());
    let into = if kind == READ { DESC_WRITE } else { 0 };
    let other = [into ^ DESC_WRITE];
    let middle = GUEST_BASE + REGION_BYTES;
    let place = header_place(numbers, at.header);
    let header = Desc {
        addr: numbers.mostly(place, &bad),
        len: numbers.mostly(16, &[0, 8, 15, 17, 32, u32::MAX]),
        flags: numbers.mostly(0, &[DESC_WRITE]),
        link: 0,
    };
    let data = Desc {
        addr: numbers.mostly(at.data, &[at.data + 1, middle - 512, middle - 513, bad[0], bad[8]]),
        len: numbers.mostly(4096, &[0, 1, 511, 512, 1 << 16, 1 << 20, 1 << 30, u32::MAX]),
        flags: numbers.mostly(into, &other),
        link: 0,
    };
    let status = Desc {
        addr: numbers.mostly(at.status, &bad),
        len: numbers.mostly(1, &[0, 2, 513, u32::MAX]),
        flags: numbers.mostly(DESC_WRITE, &[0]),
        link: 0,
    };
    let mut descs = vec![header, data, status];
    match numbers.below(12) {
        0 => drop(descs.remove(numbers.below(3) as usize)),
        1 => descs.insert(numbers.below(4) as usize, data),
        2 => descs.swap(numbers.below(3) as usize, numbers.below(3) as usize),
        _ => {}
    }
    descs
}

/// A header's place: usual, in another region than the data, or at an odd address.
fn header_place(numbers: &mut Numbers, usual: u64) -> u64 {
    match numbers.below(8) {
        0 => GUEST_BASE + REGION_BYTES + 64,
        1 => parts(0).header + 4,
        _ => usual,
    }
}

/// Where a piece lies, said in a way that is the same for each mapping of the same memory.
fn places(ram: &Ram, segs: &[Seg]) -> Vec<(bool, usize, usize)> {
    let mut bases = Vec::new();
    assert!(ram.memory.translate(&mut 0, GUEST_BASE, 2 * REGION_BYTES, |seg| bases.push(seg.addr)));
    let place = |seg: &Seg| {
        let second = (bases[1]..bases[1] + REGION_BYTES as usize).contains(&seg.addr);
        (second, seg.addr - bases[usize::from(second)], seg.len)
    };
    segs.iter().map(place).collect()
}

#[test]
fn the_short_way_says_what_the_long_one_says() {
    // Two memories with the same content, as one request may write into it.
    let rams = [Ram::named("usual"), Ram::named("any")];
    let (mut numbers, mut operands) = (Numbers(0x1234_5678_9abc), Operands::new());
    let (mut short, mut refused, mut faults) = ([0; 2], 0, 0);
    for _ in 0..CHAINS {
        let usual = if numbers.below(2) == 0 { READ } else { WRITE };
        let kind = numbers.mostly(usual, &[FLUSH, GET_ID, DISCARD, 2, 255]);
        let last = CAPACITY / 512 - 8;
        let sector = numbers.below(last + 1);
        let sector = numbers.mostly(sector, &[last, last + 1, 1 << 40, u64::MAX, u64::MAX / 512]);
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        let device = Device {
            handle: config().handle,
            capacity_bytes: CAPACITY,
            readonly: numbers.mostly(false, &[true]),
            serial: config().serial,
            negotiated: Negotiated { discard: true, ..all_features(false) },
            write_cache: numbers.below(2) == 0,
        };
        let descs = chain(&mut numbers, kind);
        for ram in &rams {
            for n in 0..4 {
                ram.write(parts(n).header, &header);
            }
            ram.write(parts(0).header + 4, &header);
            ram.write(GUEST_BASE + REGION_BYTES + 64, &header);
        }
        let hint = numbers.below(3) as usize;
        let memory = &rams[0].memory;
        let usual = blk::parse_usual(&descs, memory, &mut hint.clone(), &device, &mut operands);
        if let Some(parsed) = usual {
            let Action::Transfer { op, .. } = parsed.action else { panic!("not the usual") };
            short[usize::from(op == Op::Write)] += 1;
        }
        let said = blk::parse(&descs, memory, &mut hint.clone(), &device, &mut operands);
        let segs = places(&rams[0], &operands.segs);
        let pieces = operands.pieces.clone();
        let memory = &rams[1].memory;
        let long = blk::parse_any(&descs, memory, &mut hint.clone(), &device, &mut operands);
        assert_eq!(said, long, "{descs:?} {header:?} {device:?}");
        match long {
            Ok(parsed) => {
                assert!(usual.is_none() || usual == Some(parsed));
                refused += usize::from(parsed.action == Action::Reply(Answer::IoError));
                assert_eq!(segs, places(&rams[1], &operands.segs), "{descs:?}");
                assert_eq!(pieces, operands.pieces);
            }
            Err(_) => faults += 1,
        }
    }
    assert!(short[0] > CHAINS / 20 && short[1] > CHAINS / 20, "{short:?} went the short way");
    assert!(refused > CHAINS / 20 && faults > CHAINS / 20, "{refused} refused, {faults} faults");
}

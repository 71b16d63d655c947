//! A journal block: up to 122 units of 32 bytes, each a record or a part of one.
//!
//! ```text
//!  ┌ header (64 B): index = sequence number, generation = incarnation ┐
//!  ├ count, flags, durable, point, promised, before (128 B) ┬ unit 0 ┬ ... ┬ unit 121 ┐
//!  unit: kind 1, units 1, len 2, disk 4, vba 8, pba 8, crc 4, reserved 4
//!  a snapshot takes four units: the first as above (vba = its number), then uuid, time and label
//! ```
//!
//! Each block vouches for those before it: up to where they were durable when it was written, and
//! which disks the five before it and the last durable one were about. So of one block that is lost
//! later, or a few in a row, it can be said that they had been there, and whom they concern.

pub(crate) use super::touched::Touched;
use super::{Block, Damage, HEADER_LEN, Header, Kind, MAGIC, seal, unseal};
use crate::limits::COUNTER_MAX;
use crate::types::{BLOCK_SIZE, Name, Uuid};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a unit.
const UNIT: usize = 32;
/// Units a block holds.
pub(crate) const UNITS_MAX: usize = (BLOCK_SIZE - HEADER_LEN) / UNIT - 4;
/// Blocks before it of which a block says what they were about.
pub(crate) const BEFORE: usize = 5;
/// Units of a snapshot record.
pub(crate) const SNAPSHOT_UNITS: usize = 4;
const UNITS_AT: usize = HEADER_LEN + 4 * UNIT;

const KIND_WRITE: u8 = 1;
const KIND_DISCARD: u8 = 2;
const KIND_SNAPSHOT: u8 = 3;
/// The data of this block's records was durable before the block was written: no checksums.
const FLAG_ORDERED: u16 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHead {
    count: U16,
    flags: U16,
    reserved: U32,
    durable: U64,
    point: U64,
    promised: [u8; 16],
    before: [[u8; 16]; BEFORE],
    reserved2: [u8; 8],
}
const _: () = assert!(size_of::<RawHead>() == 4 * UNIT);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawUnit {
    kind: u8,
    units: u8,
    len: U16,
    disk: U32,
    vba: U64,
    pba: U64,
    crc: U32,
    reserved: U32,
}
const _: () = assert!(size_of::<RawUnit>() == UNIT);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawSnapshot {
    uuid: [u8; 16],
    time: U64,
    reserved: U64,
    label: [u8; 64],
}
const _: () = assert!(size_of::<RawSnapshot>() == UNIT * (SNAPSHOT_UNITS - 1));

/// One journal record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Record {
    /// Virtual blocks `vba ..` of `disk` are now physical blocks `pba ..`.
    Write { disk: u32, vba: u64, pba: u64, len: u16, crc: u32 },
    /// They are holes.
    Discard { disk: u32, vba: u64, len: u16 },
    /// Snapshot `snap` of `disk`.
    Snapshot { disk: u32, snap: u64, uuid: Uuid, time: u64, label: Name },
}

impl Record {
    /// Slot of the disk it is about.
    pub fn disk(&self) -> u32 {
        match *self {
            Record::Write { disk, .. }
            | Record::Discard { disk, .. }
            | Record::Snapshot { disk, .. } => disk,
        }
    }

    /// Units it takes.
    pub fn units(&self) -> usize {
        match self {
            Record::Write { .. } | Record::Discard { .. } => 1,
            Record::Snapshot { .. } => SNAPSHOT_UNITS,
        }
    }

    /// Puts the record at unit `at` of a block that is not sealed yet.
    #[inline(always)]
    pub fn write(&self, block: &mut Block, at: usize) {
        assert!(at + self.units() <= UNITS_MAX, "a journal block overflowed");
        let (kind, disk, vba, pba, len, crc) = match *self {
            Record::Write { disk, vba, pba, len, crc } => (KIND_WRITE, disk, vba, pba, len, crc),
            Record::Discard { disk, vba, len } => (KIND_DISCARD, disk, vba, 0, len, 0),
            Record::Snapshot { disk, snap, .. } => (KIND_SNAPSHOT, disk, snap, 0, 0, 0),
        };
        let raw = RawUnit {
            kind,
            units: self.units() as u8,
            len: U16::new(len),
            disk: U32::new(disk),
            vba: U64::new(vba),
            pba: U64::new(pba),
            crc: U32::new(crc),
            reserved: U32::new(0),
        };
        let start = UNITS_AT + at * UNIT;
        block[start..start + UNIT].copy_from_slice(raw.as_bytes());
        if let Record::Snapshot { uuid, time, label, .. } = *self {
            let (time, label) = (U64::new(time), label.to_bytes());
            let rest = RawSnapshot { uuid: uuid.0, time, reserved: U64::new(0), label };
            let end = start + UNIT * SNAPSHOT_UNITS;
            block[start + UNIT..end].copy_from_slice(rest.as_bytes());
        }
    }

    /// Reads the record at unit `at`.
    fn read(block: &Block, at: usize, count: usize) -> Result<Record, Damage> {
        let start = UNITS_AT + at * UNIT;
        let raw =
            RawUnit::read_from_bytes(&block[start..start + UNIT]).map_err(|_| Damage::Content)?;
        let (disk, vba, pba) = (raw.disk.get(), raw.vba.get(), raw.pba.get());
        let len = raw.len.get();
        let record = match raw.kind {
            KIND_WRITE => Record::Write { disk, vba, pba, len, crc: raw.crc.get() },
            KIND_DISCARD => Record::Discard { disk, vba, len },
            KIND_SNAPSHOT if at + SNAPSHOT_UNITS <= count => {
                let end = start + UNIT * SNAPSHOT_UNITS;
                let rest = RawSnapshot::read_from_bytes(&block[start + UNIT..end])
                    .map_err(|_| Damage::Content)?;
                let label = Name::from_bytes(&rest.label).ok_or(Damage::Content)?;
                let (uuid, time) = (Uuid(rest.uuid), rest.time.get());
                Record::Snapshot { disk, snap: vba, uuid, time, label }
            }
            _ => return Err(Damage::Content),
        };
        if usize::from(raw.units) != record.units() {
            return Err(Damage::Content);
        }
        Ok(record)
    }
}

/// The frame of a journal block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Frame {
    /// Sequence number.
    pub lsn: u64,
    pub incarnation: u64,
    /// Units in use.
    pub count: usize,
    /// Journal blocks below this, and the data their records name, were durable when it was
    /// written; never above its own number.
    pub durable: u64,
    /// Consistency point that had committed by then.
    pub point: u64,
    /// Disks of the blocks before it, the last one first.
    pub before: [Touched; BEFORE],
    /// Disks of the last durable block.
    pub promised: Touched,
    /// No checksums: the base loses nothing that it completed.
    pub ordered: bool,
}

/// Seals a block whose records are in place.
pub(crate) fn finish(block: &mut Block, frame: &Frame, store: Uuid, shard: u16, address: u64) {
    block[UNITS_AT + frame.count * UNIT..].fill(0);
    let raw = RawHead {
        count: U16::new(frame.count as u16),
        flags: U16::new(if frame.ordered { FLAG_ORDERED } else { 0 }),
        reserved: U32::new(0),
        durable: U64::new(frame.durable),
        point: U64::new(frame.point),
        before: frame.before.map(Touched::to_bytes),
        promised: frame.promised.to_bytes(),
        reserved2: [0; 8],
    };
    block[HEADER_LEN..UNITS_AT].copy_from_slice(raw.as_bytes());
    let header = Header {
        kind: Kind::Journal,
        level: 0,
        owner: 0,
        store,
        shard,
        address,
        index: frame.lsn,
        generation: frame.incarnation,
    };
    seal(block, &header);
}

/// Opens a journal block.
pub(crate) fn open(block: &Block, store: Uuid, shard: u16, address: u64) -> Result<Frame, Damage> {
    let header = unseal(block, Kind::Journal, store, shard, address)?;
    let raw =
        RawHead::read_from_bytes(&block[HEADER_LEN..UNITS_AT]).map_err(|_| Damage::Content)?;
    let count = usize::from(raw.count.get());
    if count > UNITS_MAX || raw.durable.get() > header.index || header.index >= COUNTER_MAX {
        return Err(Damage::Content);
    }
    Ok(Frame {
        lsn: header.index,
        incarnation: header.generation,
        count,
        durable: raw.durable.get(),
        point: raw.point.get(),
        before: raw.before.map(Touched::from_bytes),
        promised: Touched::from_bytes(raw.promised),
        ordered: raw.flags.get() & FLAG_ORDERED != 0,
    })
}

/// What a block whose checksum is wrong says of itself: that it is journal block `lsn` of this
/// incarnation, about these disks. It was written once, and is torn or rotten.
pub(crate) fn claims(
    block: &Block,
    store: Uuid,
    lsn: u64,
    incarnation: u64,
) -> Option<Result<Touched, Damage>> {
    let header = super::RawHeader::read_from_bytes(&block[..HEADER_LEN]).ok()?;
    let same = header.magic == MAGIC
        && header.kind == Kind::Journal as u8
        && header.store == store.0
        && (header.index.get(), header.generation.get()) == (lsn, incarnation);
    if !same {
        return None;
    }
    let head = RawHead::read_from_bytes(&block[HEADER_LEN..UNITS_AT]).ok()?;
    let (count, mut touched) = (usize::from(head.count.get()), Touched::default());
    let whole = if count <= UNITS_MAX {
        records(block, count, |record| touched.add(record.disk()))
    } else {
        Err(Damage::Content)
    };
    Some(whole.map(|()| touched))
}

/// Calls `f` for each record of an opened block.
pub(crate) fn records(
    block: &Block,
    count: usize,
    mut f: impl FnMut(Record),
) -> Result<(), Damage> {
    let mut at = 0;
    while at < count {
        let record = Record::read(block, at, count)?;
        at += record.units();
        f(record);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_all_kinds_read_back_in_order() {
        let label = Name::new("nightly").unwrap();
        let wrote = [
            Record::Write { disk: 1, vba: 2, pba: 3, len: 4, crc: 5 },
            Record::Snapshot { disk: 1, snap: 9, uuid: Uuid([3; 16]), time: 8, label },
            Record::Discard { disk: 2, vba: 1 << 36, len: 512 },
        ];
        let mut block = [0xff; BLOCK_SIZE];
        let mut count = 0;
        for record in &wrote {
            record.write(&mut block, count);
            count += record.units();
        }
        let mut frame = Frame { lsn: 77, incarnation: 2, count, ordered: true, ..Frame::default() };
        (frame.durable, frame.point) = (70, 6);
        frame.before[3].add(9);
        frame.promised.add(4);
        finish(&mut block, &frame, Uuid([1; 16]), 0, 500);
        assert_eq!(open(&block, Uuid([1; 16]), 0, 500), Ok(frame));
        let mut read = Vec::new();
        records(&block, count, |r| read.push(r)).unwrap();
        assert_eq!(read, wrote);
        assert_eq!(records(&block, count - 1, |_| ()), Ok(()));
        assert!(records(&block, 3, |_| ()).is_err(), "a snapshot cut short");
        assert!(records(&block, count + 1, |_| ()).is_err(), "an empty unit");
    }
}

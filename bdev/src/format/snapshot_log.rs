//! A block of a disk's snapshot log: up to 31 snapshots, and the block before it.

use super::{Block, Damage, HEADER_LEN, Header, Kind, seal};
use crate::limits::{DISK_BYTES_MAX, LEVEL_MAX, POINTS_MAX};
use crate::types::{BLOCK_SIZE, Name, Uuid};
use zerocopy::byteorder::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Snapshots in a block.
pub(crate) const ENTRIES: usize = 31;
const ENTRY: usize = 128;
const PREVIOUS_AT: usize = HEADER_LEN + ENTRIES * ENTRY;
const _: () = assert!(PREVIOUS_AT + 8 <= BLOCK_SIZE);

/// One snapshot in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LogEntry {
    pub snap: u64,
    pub uuid: Uuid,
    pub label: Name,
    pub time: u64,
    pub root: u64,
    pub root_level: u8,
    /// Consistency point that wrote the root node.
    pub root_generation: u64,
    pub size: u64,
    pub mapped: u64,
    /// Deleted; its space is coming back.
    pub dying: bool,
    /// Nothing is left of it but its place between other versions.
    pub ghost: bool,
    /// A repair has given up something of it: what came before may have what comes after has.
    pub holed: bool,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    snap: U64,
    time: U64,
    root: U64,
    size: U64,
    mapped: U64,
    root_level: u8,
    dying: u8,
    root_generation: [u8; 6],
    uuid: [u8; 16],
    label: [u8; 64],
}
const _: () = assert!(size_of::<RawEntry>() == ENTRY);
const _: () = assert!(POINTS_MAX == 1 << 48, "their numbers have six bytes");

/// Where a log block stands.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub disk: u32,
    /// Its number in the log, from 0.
    pub number: u64,
    pub address: u64,
    /// Pair of the block before it, 0 for the first.
    pub previous: u64,
    pub generation: u64,
}

/// Writes a log block.
pub(crate) fn write(
    block: &mut Block,
    entries: &[Option<LogEntry>; ENTRIES],
    place: &Place,
    store: Uuid,
    shard: u16,
) {
    block.fill(0);
    for (i, entry) in entries.iter().enumerate() {
        let Some(e) = entry else { continue };
        let raw = RawEntry {
            snap: U64::new(e.snap),
            time: U64::new(e.time),
            root: U64::new(e.root),
            size: U64::new(e.size),
            mapped: U64::new(e.mapped),
            root_level: e.root_level,
            dying: u8::from(e.dying) | u8::from(e.ghost) << 1 | u8::from(e.holed && !e.ghost) << 2,
            root_generation: e.root_generation.to_le_bytes()[..6].try_into().expect("6 bytes"),
            uuid: e.uuid.0,
            label: e.label.to_bytes(),
        };
        let at = HEADER_LEN + i * ENTRY;
        block[at..at + ENTRY].copy_from_slice(raw.as_bytes());
    }
    block[PREVIOUS_AT..PREVIOUS_AT + 8].copy_from_slice(&place.previous.to_le_bytes());
    let header = Header {
        kind: Kind::SnapshotLog,
        level: 0,
        owner: place.disk,
        store,
        shard,
        address: place.address,
        index: place.number,
        generation: place.generation,
    };
    seal(block, &header);
}

/// Reads an unsealed log block: its entries and the pair before it.
pub(crate) fn read(block: &Block) -> Result<([Option<LogEntry>; ENTRIES], u64), Damage> {
    let mut entries = [None; ENTRIES];
    for (i, entry) in entries.iter_mut().enumerate() {
        let at = HEADER_LEN + i * ENTRY;
        let raw = RawEntry::read_from_bytes(&block[at..at + ENTRY]).map_err(|_| Damage::Content)?;
        if raw.snap.get() == 0 {
            continue;
        }
        // A ghost is deleted and has no tree.
        let ghost = raw.dying & 2 != 0;
        let size = raw.size.get();
        if raw.root_level > LEVEL_MAX
            || size > DISK_BYTES_MAX
            || !size.is_multiple_of(BLOCK_SIZE as u64)
            || raw.dying > 7
            || (ghost && (raw.dying != 3 || raw.root.get() != 0))
        {
            return Err(Damage::Content);
        }
        *entry = Some(LogEntry {
            snap: raw.snap.get(),
            uuid: Uuid(raw.uuid),
            label: Name::from_bytes(&raw.label).ok_or(Damage::Content)?,
            time: raw.time.get(),
            root: raw.root.get(),
            root_level: raw.root_level,
            root_generation: {
                let mut wide = [0; 8];
                wide[..6].copy_from_slice(&raw.root_generation);
                u64::from_le_bytes(wide)
            },
            size,
            mapped: raw.mapped.get(),
            dying: raw.dying & 1 != 0,
            ghost,
            holed: raw.dying & 4 != 0,
        });
    }
    let previous = block[PREVIOUS_AT..PREVIOUS_AT + 8].try_into().expect("8 bytes");
    Ok((entries, u64::from_le_bytes(previous)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_entries_read_back() {
        let entry = LogEntry {
            snap: 3,
            uuid: Uuid([2; 16]),
            label: Name::new("before").unwrap(),
            time: 4,
            root: 5,
            root_level: 1,
            root_generation: POINTS_MAX - 1,
            size: 1 << 20,
            mapped: 6,
            dying: true,
            ghost: false,
            holed: true,
        };
        let mut entries = [None; ENTRIES];
        entries[7] = Some(entry);
        let place = Place { disk: 1, number: 2, address: 30, previous: 20, generation: 9 };
        let mut block = [0; BLOCK_SIZE];
        write(&mut block, &entries, &place, Uuid([1; 16]), 0);
        assert_eq!(read(&block), Ok((entries, 20)));
        block[HEADER_LEN + 7 * ENTRY + 40] = 9;
        assert_eq!(read(&block), Err(Damage::Content));
    }
}

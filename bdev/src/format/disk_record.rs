//! The record of a disk: a pair of blocks in the record area.

use super::pairs::{RawSums, Sums};
use super::{Block, Damage, Header, Kind, payload, payload_mut, seal};
use crate::limits::{BLOB_LEN_MAX, CLAIMS_LEN_MAX, COUNTER_MAX, DISK_BYTES_MAX, LEVEL_MAX};
use crate::types::{BLOCK_SIZE, Name, Uuid};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What the record's slot holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum State {
    /// The slot is free.
    Free = 0,
    Live = 1,
    /// Deleted; its space is coming back.
    Deleting = 2,
}

/// No version is being reaped.
pub(crate) const REAP_NONE: u64 = 0;
/// The live tree is being reaped.
pub(crate) const REAP_LIVE: u64 = u64::MAX;

/// Acknowledged writes of the disk are lost: nobody uses it, nor its snapshots from there on, until
/// the loss has been accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seal {
    /// The journal block that had them.
    pub lsn: u64,
    /// Snapshots with this number and above may lack them too.
    pub epoch: u64,
}

impl Seal {
    /// For people.
    pub fn text(self) -> String {
        format!("acknowledged writes in journal block {} are lost", self.lsn)
    }
}

/// A disk's record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct DiskRecord {
    pub state: State,
    pub name: Name,
    pub uuid: Uuid,
    pub size: u64,
    /// Address of the root node, 0 if the disk is empty.
    pub root: u64,
    pub root_level: u8,
    /// Consistency point that wrote the root node.
    pub root_generation: u64,
    /// Number the next snapshot gets.
    pub epoch: u64,
    pub mapped: u64,
    pub created: u64,
    /// Disk slot and snapshot number this is a clone of.
    pub origin: Option<(u32, u64)>,
    /// Not the snapshot it was cloned from: that one is deleted, or about to be.
    pub adopted: bool,
    /// Consistency point that made the disk.
    pub born: u64,
    /// Newest block pair of the snapshot log, 0 if none.
    pub log_head: u64,
    pub log_blocks: u64,
    /// Over the generations of its blocks.
    pub log_sums: Sums,
    pub sealed: Option<Seal>,
    /// Which version is being reaped ([`REAP_NONE`], [`REAP_LIVE`] or a snapshot's number).
    pub reaping: u64,
    /// Leaves below this index have been reaped.
    pub reap_cursor: u64,
    pub blob: Vec<u8>,
    /// What remote hosts claim of it.
    pub claims: Vec<u8>,
}

impl DiskRecord {
    /// An unused slot.
    pub fn free() -> DiskRecord {
        DiskRecord {
            state: State::Free,
            name: Name::EMPTY,
            uuid: Uuid([0; 16]),
            size: 0,
            root: 0,
            root_level: 0,
            root_generation: 0,
            epoch: 0,
            mapped: 0,
            created: 0,
            origin: None,
            adopted: false,
            born: 0,
            log_head: 0,
            log_blocks: 0,
            log_sums: Sums::default(),
            sealed: None,
            reaping: REAP_NONE,
            reap_cursor: 0,
            blob: Vec::new(),
            claims: Vec::new(),
        }
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRecord {
    state: u8,
    root_level: u8,
    has_origin: u8,
    adopted: u8,
    origin_disk: U32,
    name: [u8; 64],
    uuid: [u8; 16],
    size: U64,
    root: U64,
    epoch: U64,
    mapped: U64,
    created: U64,
    origin_snap: U64,
    log_head: U64,
    log_blocks: U64,
    reaping: U64,
    reap_cursor: U64,
    born: U64,
    blob_len: U16,
    claims_len: U16,
    reserved2: [u8; 4],
    blob: [u8; BLOB_LEN_MAX],
    log_sums: RawSums,
    sealed_lsn: U64,
    sealed_epoch: U64,
    root_generation: U64,
    /// Zeros in stores made before there were any.
    claims: [u8; CLAIMS_LEN_MAX],
}
const _: () = assert!(size_of::<RawRecord>() + super::HEADER_LEN <= BLOCK_SIZE);

/// Writes the record of `slot` for `address`.
pub(crate) fn write(
    block: &mut Block,
    record: &DiskRecord,
    slot: u32,
    store: Uuid,
    shard: u16,
    address: u64,
    generation: u64,
) {
    block.fill(0);
    let raw = payload_mut::<RawRecord>(block);
    raw.state = record.state as u8;
    raw.root_level = record.root_level;
    if let Some((disk, snap)) = record.origin {
        raw.has_origin = 1;
        raw.origin_disk = U32::new(disk);
        raw.origin_snap = U64::new(snap);
    }
    raw.adopted = u8::from(record.adopted);
    raw.born = U64::new(record.born);
    raw.name = record.name.to_bytes();
    raw.uuid = record.uuid.0;
    raw.size = U64::new(record.size);
    raw.root = U64::new(record.root);
    raw.root_generation = U64::new(record.root_generation);
    raw.epoch = U64::new(record.epoch);
    raw.mapped = U64::new(record.mapped);
    raw.created = U64::new(record.created);
    raw.log_head = U64::new(record.log_head);
    raw.log_blocks = U64::new(record.log_blocks);
    raw.log_sums = record.log_sums.raw();
    if let Some(seal) = record.sealed {
        (raw.sealed_lsn, raw.sealed_epoch) = (U64::new(seal.lsn), U64::new(seal.epoch));
    }
    raw.reaping = U64::new(record.reaping);
    raw.reap_cursor = U64::new(record.reap_cursor);
    raw.blob_len = U16::new(record.blob.len() as u16);
    raw.blob[..record.blob.len()].copy_from_slice(&record.blob);
    raw.claims_len = U16::new(record.claims.len() as u16);
    raw.claims[..record.claims.len()].copy_from_slice(&record.claims);
    let (kind, index) = (Kind::DiskRecord, u64::from(slot));
    seal(block, &Header { kind, level: 0, owner: slot, store, shard, address, index, generation });
}

/// Reads an unsealed record.
pub(crate) fn read(block: &Block) -> Result<DiskRecord, Damage> {
    let raw = payload::<RawRecord>(block);
    let state = match raw.state {
        0 => State::Free,
        1 => State::Live,
        2 => State::Deleting,
        _ => return Err(Damage::Content),
    };
    let blob_len = usize::from(raw.blob_len.get());
    let claims_len = usize::from(raw.claims_len.get());
    let name = Name::from_bytes(&raw.name).ok_or(Damage::Content)?;
    let size = raw.size.get();
    let lawful = blob_len <= BLOB_LEN_MAX
        && claims_len <= CLAIMS_LEN_MAX
        && raw.root_level <= LEVEL_MAX
        && size <= DISK_BYTES_MAX
        && size.is_multiple_of(BLOCK_SIZE as u64)
        && (raw.epoch.get() >= 1 || state == State::Free)
        && raw.epoch.get() < COUNTER_MAX
        && raw.mapped.get() <= DISK_BYTES_MAX / BLOCK_SIZE as u64;
    if !lawful {
        return Err(Damage::Content);
    }
    Ok(DiskRecord {
        state,
        name,
        uuid: Uuid(raw.uuid),
        size,
        root: raw.root.get(),
        root_level: raw.root_level,
        root_generation: raw.root_generation.get(),
        epoch: raw.epoch.get(),
        mapped: raw.mapped.get(),
        created: raw.created.get(),
        origin: (raw.has_origin == 1).then_some((raw.origin_disk.get(), raw.origin_snap.get())),
        adopted: raw.adopted == 1,
        born: raw.born.get(),
        log_head: raw.log_head.get(),
        log_blocks: raw.log_blocks.get(),
        log_sums: Sums::of(raw.log_sums),
        sealed: (raw.sealed_lsn.get() != 0)
            .then(|| Seal { lsn: raw.sealed_lsn.get(), epoch: raw.sealed_epoch.get() }),
        reaping: raw.reaping.get(),
        reap_cursor: raw.reap_cursor.get(),
        blob: raw.blob[..blob_len].to_vec(),
        claims: raw.claims[..claims_len].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_impossible_ones_do_not() {
        let record = DiskRecord {
            state: State::Live,
            name: Name::new("vm1").unwrap(),
            uuid: Uuid([4; 16]),
            size: 1 << 30,
            root: 77,
            root_level: 2,
            root_generation: 6,
            epoch: 5,
            mapped: 9,
            created: 3,
            origin: Some((2, 8)),
            adopted: true,
            born: 4,
            log_head: 600,
            log_blocks: 1,
            log_sums: Sums { sum: 11, mix: 12 },
            sealed: Some(Seal { lsn: 99, epoch: 4 }),
            reaping: 3,
            reap_cursor: 12,
            blob: b"hello".to_vec(),
            claims: vec![0xa5; CLAIMS_LEN_MAX],
        };
        let mut block = [0; BLOCK_SIZE];
        write(&mut block, &record, 6, Uuid([1; 16]), 0, 40, 2);
        assert_eq!(read(&block), Ok(record.clone()));
        for odd in [
            DiskRecord { size: 1000, ..record.clone() },
            DiskRecord { root_level: 4, ..record.clone() },
            DiskRecord { epoch: 0, ..record },
        ] {
            write(&mut block, &odd, 6, Uuid([1; 16]), 0, 40, 2);
            assert_eq!(read(&block), Err(Damage::Content));
        }
    }
}

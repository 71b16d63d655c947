//! The store on its base device. Structs only: what the bytes mean, never when they are written.
//!
//! ```text
//!  device   ┌ label ┬ label ┬ ... ┬ region of shard 0 ┬ region of shard 1 ┬ ... ┐
//!           0       1             16
//!
//!  region   ┌ superblock A ┬ superblock B ┬ catalogue ┬ disk records ┬ journal ┬ extent 0 ┬ ... ┐
//!  (blocks) 0              1              2 (pairs)     (pairs)        (ring)
//!
//!  extent   ┌ bitmap A ┬ bitmap B ┬ blocks: data, or metadata (nodes, snapshot-log pairs) ┐
//! ```
//!
//! Every metadata block carries the same 64-byte [`Header`]: what it is, of which store and shard,
//! where it belongs, who owns it, which consistency point wrote it, and a crc32c over all of it.
//! In a node the header follows the 512 links; elsewhere it comes first.
//!
//! A **pair** is two blocks side by side written in turn: the copy with the highest generation not
//! above the superblock's counts, so an unfinished consistency point changes nothing. Which
//! generation that must be is committed as well ([`pairs`]): for catalogue and disk records by the
//! superblock, for a snapshot log by its disk's record. An older copy is damage.
//!
//! A superblock that cannot be written any more is kept in the first block of the last record
//! slot, as long as no disk has that: a reader that finds A and B different looks there, too.

pub(crate) mod disk_record;
pub(crate) mod extent;
#[cfg(test)]
mod fuzz;
pub(crate) mod journal;
pub(crate) mod label;
pub(crate) mod node;
pub(crate) mod pairs;
pub(crate) mod snapshot_log;
pub(crate) mod superblock;
pub(crate) mod touched;

use crate::canary::{Canary, planted};
use crate::types::{BLOCK_SIZE, Uuid};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version of the whole format. A store of another version is refused in one sentence.
pub const FORMAT_VERSION: u16 = 2;
/// First bytes of every metadata block.
pub(crate) const MAGIC: [u8; 4] = *b"LMNA";
/// Bytes of a header.
pub(crate) const HEADER_LEN: usize = 64;
/// One block of bytes.
pub(crate) type Block = [u8; BLOCK_SIZE];

/// What a metadata block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    Label = 1,
    Superblock = 2,
    Catalogue = 3,
    DiskRecord = 4,
    Journal = 5,
    Bitmap = 6,
    Node = 7,
    SnapshotLog = 8,
}

impl Kind {
    /// Where the header stands in a block of this kind.
    fn header_at(self) -> usize {
        match self {
            Kind::Node => node::HEADER_AT,
            Kind::Label
            | Kind::Superblock
            | Kind::Catalogue
            | Kind::DiskRecord
            | Kind::Journal
            | Kind::Bitmap
            | Kind::SnapshotLog => 0,
        }
    }
}

/// The header as it lies on disk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 4],
    kind: u8,
    level: u8,
    version: U16,
    crc: U32,
    owner: U32,
    store: [u8; 16],
    address: U64,
    index: U64,
    generation: U64,
    shard: U16,
    reserved: [u8; 6],
}
const _: () = assert!(size_of::<RawHeader>() == HEADER_LEN);

/// Identity of a metadata block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub kind: Kind,
    pub level: u8,
    /// Disk number for nodes, records and logs; 0 elsewhere.
    pub owner: u32,
    pub store: Uuid,
    pub shard: u16,
    /// Its own block number in the region.
    pub address: u64,
    /// Its place among its kind: node index, record slot, journal sequence number, ...
    pub index: u64,
    /// Consistency point (or journal incarnation) that wrote it.
    pub generation: u64,
}

/// Why a block is not what it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Damage {
    Magic,
    Version(u16),
    Checksum,
    Kind,
    Store,
    Address,
    Identity,
    Stale,
    Content,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Damage::Magic => f.write_str("no Lamina metadata here"),
            Damage::Version(v) => {
                write!(f, "format version {v}, this program knows {FORMAT_VERSION}")
            }
            Damage::Checksum => f.write_str("checksum does not match (torn or rotten)"),
            Damage::Kind => f.write_str("metadata of another kind"),
            Damage::Store => f.write_str("belongs to another store or shard"),
            Damage::Address => f.write_str("was written for another address (misdirected)"),
            Damage::Identity => {
                f.write_str("belongs to another owner, index or generation (stale)")
            }
            Damage::Stale => f.write_str(
                "is from another consistency point than what leads to it says (a write was lost)",
            ),
            Damage::Content => f.write_str("holds impossible values"),
        }
    }
}

/// Writes `header` into `block` and seals the whole with its checksum.
pub(crate) fn seal(block: &mut Block, header: &Header) {
    let at = header.kind.header_at();
    let mut raw = RawHeader {
        magic: MAGIC,
        kind: header.kind as u8,
        level: header.level,
        version: U16::new(FORMAT_VERSION),
        crc: U32::new(0),
        owner: U32::new(header.owner),
        store: header.store.0,
        address: U64::new(header.address),
        index: U64::new(header.index),
        generation: U64::new(header.generation),
        shard: U16::new(header.shard),
        reserved: [0; 6],
    };
    block[at..at + HEADER_LEN].copy_from_slice(raw.as_bytes());
    raw.crc = U32::new(crate::crc32c::crc32c(block));
    block[at..at + HEADER_LEN].copy_from_slice(raw.as_bytes());
}

/// Checks that `block` is an intact block of `kind` written for `address` of this store and shard;
/// owner, index, level and generation are the caller's to compare.
pub(crate) fn unseal(
    block: &Block,
    kind: Kind,
    store: Uuid,
    shard: u16,
    address: u64,
) -> Result<Header, Damage> {
    let at = kind.header_at();
    let raw = RawHeader::read_from_bytes(&block[at..at + HEADER_LEN]).map_err(|_| Damage::Magic)?;
    if raw.magic != MAGIC {
        return Err(Damage::Magic);
    }
    if raw.version.get() != FORMAT_VERSION {
        return Err(Damage::Version(raw.version.get()));
    }
    let trusted = kind == Kind::Journal && planted(Canary::ReplayTorn);
    if raw.crc.get() != checksum(block, at) && !trusted {
        return Err(Damage::Checksum);
    }
    if raw.kind != kind as u8 {
        return Err(Damage::Kind);
    }
    if raw.store != store.0 || raw.shard.get() != shard {
        return Err(Damage::Store);
    }
    if raw.address.get() != address {
        return Err(Damage::Address);
    }
    Ok(Header {
        kind,
        level: raw.level,
        owner: raw.owner.get(),
        store,
        shard,
        address,
        index: raw.index.get(),
        generation: raw.generation.get(),
    })
}

/// The generation that a block says it is of, whose header comes first.
pub(crate) fn generation_of(block: &Block) -> u64 {
    RawHeader::read_from_bytes(&block[..HEADER_LEN]).map_or(0, |raw| raw.generation.get())
}

/// crc32c of the block with the checksum field of the header at `at` taken as zero.
pub(crate) fn checksum(block: &Block, at: usize) -> u32 {
    let crc_at = at + 8;
    let crc = crate::crc32c::crc32c(&block[..crc_at]);
    let crc = crate::crc32c::crc32c_append(crc, &[0; 4]);
    crate::crc32c::crc32c_append(crc, &block[crc_at + 4..])
}

/// The payload of a block whose header comes first.
pub(crate) fn payload<T: FromBytes + KnownLayout + Immutable + Unaligned>(block: &Block) -> &T {
    T::ref_from_prefix(&block[HEADER_LEN..]).expect("payloads fit a block").0
}

/// The payload of a block whose header comes first, to be filled in before sealing.
pub(crate) fn payload_mut<T: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned>(
    block: &mut Block,
) -> &mut T {
    T::mut_from_prefix(&mut block[HEADER_LEN..]).expect("payloads fit a block").0
}

/// Which copy of a pair counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Side {
    /// 0 or 1: the copy that counts.
    pub current: usize,
    /// The other copy is from a consistency point that never committed: rewrite the pair soon, or
    /// that copy will look lawful once the counter has passed it.
    pub stale_other: bool,
}

/// Picks the copy of a pair with the highest generation not above `committed`.
pub(crate) fn pick_side(
    headers: [Result<Header, Damage>; 2],
    committed: u64,
) -> Result<(Side, Header), Damage> {
    let lawful = |h: Header| h.generation <= committed || planted(Canary::PairUncommitted);
    let usable = |h: &Result<Header, Damage>| h.is_ok_and(lawful);
    let stale = |h: &Result<Header, Damage>| h.is_ok_and(|h| h.generation > committed);
    let current = match (usable(&headers[0]), usable(&headers[1])) {
        (true, true) => {
            let newer = headers[1]?.generation > headers[0]?.generation;
            usize::from(newer)
        }
        (true, false) => 0,
        (false, true) => 1,
        (false, false) => return Err(headers[0].err().unwrap_or(Damage::Identity)),
    };
    let stale_other = stale(&headers[1 - current]) && !planted(Canary::PairStale);
    Ok((Side { current, stale_other }, headers[current]?))
}

/// Which copy of a pair is written next if neither can be used: one that a point which never
/// committed has left, so that there are never two of those.
pub(crate) fn next_side(copies: &[Result<Header, Damage>; 2], committed: u64) -> usize {
    usize::from(copies[1].is_ok_and(|h| h.generation > committed))
}

/// The point that a pair proves to have committed after `committed`, if it does. A point that is
/// not committed yet overwrites only the copy that does not count; and its number is at most two
/// above, since a recovery leaves one out.
pub(crate) fn proof_of_later(copies: &[Result<Header, Damage>; 2], committed: u64) -> Option<u64> {
    let generations = copies.map(|c| c.map_or(0, |h| h.generation));
    let [low, high] = [generations[0].min(generations[1]), generations[0].max(generations[1])];
    (low > committed || high > committed + 2).then_some(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: Kind, generation: u64) -> Header {
        let store = Uuid([7; 16]);
        Header { kind, level: 1, owner: 3, store, shard: 2, address: 99, index: 5, generation }
    }

    #[test]
    fn a_sealed_block_opens_and_every_flipped_bit_is_seen() {
        for kind in [Kind::Node, Kind::Bitmap] {
            let mut block = [0xa5u8; BLOCK_SIZE];
            let wrote = header(kind, 8);
            seal(&mut block, &wrote);
            assert_eq!(unseal(&block, kind, wrote.store, 2, 99), Ok(wrote));
            for bit in (0..BLOCK_SIZE * 8).step_by(61) {
                block[bit / 8] ^= 1 << (bit % 8);
                assert!(unseal(&block, kind, wrote.store, 2, 99).is_err(), "bit {bit}");
                block[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn misdirected_foreign_and_other_kinds_are_named() {
        let mut block = [0u8; BLOCK_SIZE];
        let wrote = header(Kind::Bitmap, 8);
        seal(&mut block, &wrote);
        let open = |kind, store, shard, at| unseal(&block, kind, store, shard, at).unwrap_err();
        assert_eq!(open(Kind::Catalogue, wrote.store, 2, 99), Damage::Kind);
        assert_eq!(open(Kind::Bitmap, Uuid([8; 16]), 2, 99), Damage::Store);
        assert_eq!(open(Kind::Bitmap, wrote.store, 1, 99), Damage::Store);
        assert_eq!(open(Kind::Bitmap, wrote.store, 2, 98), Damage::Address);
        assert_eq!(unseal(&[0; BLOCK_SIZE], Kind::Bitmap, wrote.store, 2, 99), Err(Damage::Magic));
    }

    #[test]
    fn the_committed_copy_of_a_pair_counts() {
        let at = |generation| Ok(header(Kind::Bitmap, generation));
        let bad = Err(Damage::Checksum);
        let pick = |a, b| pick_side([a, b], 10).map(|(side, _)| (side.current, side.stale_other));
        assert_eq!(pick(at(9), at(10)), Ok((1, false)));
        assert_eq!(pick(at(9), at(11)), Ok((0, true)));
        assert_eq!(pick(at(11), at(4)), Ok((1, true)));
        assert_eq!(pick(bad, at(4)), Ok((1, false)));
        assert_eq!(pick(bad, at(11)), Err(Damage::Checksum));
    }

    #[test]
    fn a_lost_pair_never_gets_two_copies_that_were_not_committed() {
        let at = |generation| Ok(header(Kind::Catalogue, generation));
        let bad = Err(Damage::Checksum);
        for mut copies in [[at(11), bad], [bad, at(11)], [bad, bad]] {
            for _ in 0..3 {
                // A recovery that is cut off, again and again.
                copies[next_side(&copies, 10)] = at(12);
                assert_eq!(proof_of_later(&copies, 10), None, "{copies:?}");
            }
        }
    }

    #[test]
    fn a_pair_shows_that_its_superblock_was_lost() {
        let at = |generation| Ok(header(Kind::DiskRecord, generation));
        let bad = Err(Damage::Checksum);
        let later = |a, b| proof_of_later(&[a, b], 10);
        // Checkpoints 11, and 12 after a recovery, may have been cut off.
        assert_eq!(later(at(9), at(11)), None);
        assert_eq!(later(at(12), at(3)), None);
        assert_eq!(later(bad, at(12)), None);
        assert_eq!(later(at(12), at(11)), Some(12));
        assert_eq!(later(at(9), at(13)), Some(13));
        assert_eq!(later(at(13), bad), Some(13));
    }
}

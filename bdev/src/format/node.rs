//! A radix node: 512 links of 48 bits, then a 1 KiB header.
//!
//! ```text
//!  0                          3072             3136                        4096
//!  ┌ link 0 ┬ link 1 ┬ ... 511 ┬ header (64 B)  ┬ birth, shared_with, zero    ┐
//!  └ 6 bytes, little-endian ───┴────────────────┴─────────────────────────────┘
//!   link: bit 47 = read-only (everything below is shared with an older version), 0-46 = block,
//!         all ones = what was here is lost
//! ```

use super::superblock::Geometry;
use super::{Block, Damage, HEADER_LEN, Header, Kind, seal, unseal};
use crate::limits::{LEVEL_MAX, LINKS};
use crate::types::Uuid;
use zerocopy::byteorder::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Where the header stands.
pub(crate) const HEADER_AT: usize = LINKS * 6;
const EXTRA_AT: usize = HEADER_AT + HEADER_LEN;
const EXTRA_LEN: usize = size_of::<RawExtra>();

/// Bit 47: everything below is shared with an older version.
pub(crate) const READ_ONLY: u64 = 1 << 47;
/// Bits 0-46.
pub(crate) const ADDRESS: u64 = READ_ONLY - 1;
/// The block of a link to what a damaged node had led to: reads and writes there are errors.
pub(crate) const LOST: u64 = ADDRESS;
/// All that lies on disk; bits above are the cache's own.
pub(crate) const ON_DISK: u64 = READ_ONLY | ADDRESS;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawExtra {
    birth: U64,
    shared_with: U64,
}

/// What a node says of itself beside its links.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NodeInfo {
    pub level: u8,
    /// Disk that wrote it.
    pub owner: u32,
    /// Index among the nodes of its level.
    pub index: u64,
    /// Consistency point that wrote it.
    pub generation: u64,
    /// Epoch of the disk in which this node became its own: snapshots numbered from here on hold
    /// it too.
    pub birth: u64,
    /// Newest snapshot there was when the node was copied: its read-only links are shared with
    /// that one.
    pub shared_with: u64,
}

/// True if a node may have such links in a region of that geometry.
pub(crate) fn linkable(links: &[u64; LINKS], geometry: &Geometry) -> bool {
    let mut blocks = links.iter().map(|link| link & ADDRESS);
    blocks.all(|block| block == 0 || block == LOST || geometry.linkable(block))
}

/// Writes a node for `address`; returns false if no link is set (the caller drops such nodes).
pub(crate) fn write(
    block: &mut Block,
    links: &[u64; LINKS],
    info: &NodeInfo,
    store: Uuid,
    shard: u16,
    address: u64,
) {
    for (bytes, link) in block[..HEADER_AT].chunks_exact_mut(6).zip(links) {
        bytes.copy_from_slice(&(link & ON_DISK).to_le_bytes()[..6]);
    }
    block[HEADER_AT..].fill(0);
    let extra = RawExtra { birth: U64::new(info.birth), shared_with: U64::new(info.shared_with) };
    block[EXTRA_AT..EXTRA_AT + EXTRA_LEN].copy_from_slice(extra.as_bytes());
    let header = Header {
        kind: Kind::Node,
        level: info.level,
        owner: info.owner,
        store,
        shard,
        address,
        index: info.index,
        generation: info.generation,
    };
    seal(block, &header);
}

/// Reads the node at `address` into `links`.
pub(crate) fn read(
    block: &Block,
    links: &mut [u64; LINKS],
    store: Uuid,
    shard: u16,
    address: u64,
) -> Result<NodeInfo, Damage> {
    let header = unseal(block, Kind::Node, store, shard, address)?;
    if header.level > LEVEL_MAX {
        return Err(Damage::Content);
    }
    for (link, bytes) in links.iter_mut().zip(block[..HEADER_AT].chunks_exact(6)) {
        let low = u32::from_le_bytes(bytes[..4].try_into().expect("4 bytes"));
        let high = u16::from_le_bytes(bytes[4..].try_into().expect("2 bytes"));
        *link = u64::from(low) | u64::from(high) << 32;
        // What is lost can be neither overwritten nor freed.
        *link |= if *link & ADDRESS == LOST { READ_ONLY } else { 0 };
    }
    let extra = RawExtra::read_from_bytes(&block[EXTRA_AT..EXTRA_AT + EXTRA_LEN])
        .map_err(|_| Damage::Content)?;
    Ok(NodeInfo {
        level: header.level,
        owner: header.owner,
        index: header.index,
        generation: header.generation,
        birth: extra.birth.get(),
        shared_with: extra.shared_with.get(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::BLOCK_SIZE;

    #[test]
    fn links_keep_48_bits_and_lose_the_caches_own() {
        let mut links = [0u64; LINKS];
        for (i, link) in links.iter_mut().enumerate() {
            *link = (i as u64 * 0x1_2345_6789_abcd) ^ (i as u64) << 40;
        }
        let info =
            NodeInfo { level: 2, owner: 4, index: 6, generation: 8, birth: 3, shared_with: 1 };
        let (store, mut block, mut out) = (Uuid([1; 16]), [0; BLOCK_SIZE], [0; LINKS]);
        write(&mut block, &links, &info, store, 0, 55);
        assert_eq!(read(&block, &mut out, store, 0, 55), Ok(info));
        for (a, b) in links.iter().zip(out) {
            assert_eq!(a & ON_DISK, b);
        }
        assert_eq!(read(&block, &mut out, store, 0, 56), Err(Damage::Address));
    }
}

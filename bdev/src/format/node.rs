//! A radix node: 512 links of 48 bits, then a 1 KiB header.
//!
//! ```text
//!  0                          3072        3136     3152                3920              4096
//!  ┌ link 0 ┬ link 1 ┬ ... 511 ┬ header    ┬ birth, ┬ stamp 0 ┬ ... 511 ┬ zero            ┐
//!  │ 6 bytes, little-endian    │ (64 B)    │ shared │ 12 bits, two in   │ (room for 2 bits│
//!  │                           │           │ _with  │ three bytes       │  a link)        │
//!  └───────────────────────────┴───────────┴────────┴───────────────────┴─────────────────┘
//!   link: bit 47 = read-only (everything below is shared with an older version), 0-46 = block,
//!         all ones = what was here is lost
//! ```
//!
//! A link to a node carries a [`Stamp`]: which consistency point wrote that node. So an older node
//! of the same place at the same address, as a lost write leaves it, does not pass for the newer
//! one. In RAM the stamp stands above the 48 bits of the link. A leaf's links have none.

use super::superblock::Geometry;
use super::{Block, Damage, HEADER_LEN, Header, Kind, seal, unseal};
use crate::canary::{Canary, planted};
use crate::limits::{LEVEL_MAX, LINKS};
use crate::types::{BLOCK_SIZE, Uuid};
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
/// All of a link that lies among the links; in a leaf, bits above are the cache's own.
pub(crate) const ON_DISK: u64 = READ_ONLY | ADDRESS;
/// Where a link in RAM has its stamp.
const STAMP_SHIFT: u32 = 48;
const STAMP_BITS: u64 = 0xfff << STAMP_SHIFT;
const STAMPS_AT: usize = EXTRA_AT + EXTRA_LEN;
const STAMPS_LEN: usize = LINKS / 2 * 3;
const _: () = assert!(STAMPS_AT + STAMPS_LEN + LINKS / 4 <= BLOCK_SIZE, "two bits a link are left");
/// In RAM, of a link to a leaf: the leaf has been read from there and checked.
pub(crate) const CHECKED: u64 = 1 << 63;
const _: () = assert!(CHECKED & (ON_DISK | STAMP_BITS) == 0);
/// Points that stamps tell apart: a prime, so that no round number of points between two writes to
/// one block makes them look alike.
const STAMPS: u64 = 4093;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawExtra {
    birth: U64,
    shared_with: U64,
}

/// Which consistency point must have written a node, as far as what leads there says: all of its
/// number for a root, the number modulo [`STAMPS`] for a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stamp(u64);

/// A stamp of a link; its remainder is in the low bits.
const OF_LINK: u64 = 1 << 63;

impl Stamp {
    /// A node of that very point.
    pub fn exactly(generation: u64) -> Stamp {
        Stamp(generation & !OF_LINK)
    }

    /// True if a node of that consistency point may be the one that is meant.
    pub fn fits(self, generation: u64) -> bool {
        if planted(Canary::StaleNode) {
            return true;
        }
        match self.0 & OF_LINK {
            0 => self.0 == generation,
            _ => self.0 & !OF_LINK == generation % STAMPS,
        }
    }

    /// True if a node may fit both.
    pub fn agrees(self, other: Stamp) -> bool {
        match (self.0 & OF_LINK, other.0 & OF_LINK) {
            (0, _) => other.fits(self.0),
            (_, 0) => self.fits(other.0),
            _ => self == other,
        }
    }

    /// The newest point up to `last` that fits, if any does.
    pub fn newest(self, last: u64) -> Option<u64> {
        let rest = self.0 & !OF_LINK;
        match self.0 & OF_LINK {
            0 => (rest <= last).then_some(rest),
            _ if rest >= STAMPS => None,
            _ => Some(last.checked_sub(rest)? / STAMPS * STAMPS + rest),
        }
    }
}

/// What leads to a node: where it is, and when it must have been written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NodeRef {
    /// 0 = there is none, or [`LOST`].
    pub address: u64,
    pub stamp: Stamp,
}

impl NodeRef {
    /// Of a link in RAM of a node above the leaves.
    pub fn of_link(link: u64) -> NodeRef {
        let stamp = Stamp((link & STAMP_BITS) >> STAMP_SHIFT | OF_LINK);
        NodeRef { address: link & ADDRESS, stamp }
    }

    /// True if both lead to the same node.
    pub fn same(self, other: NodeRef) -> bool {
        self.address == other.address && self.stamp.agrees(other.stamp)
    }
}

/// The link to a node at `address` that consistency point `generation` wrote; 0 if there is none.
pub(crate) fn link_to(address: u64, generation: u64) -> u64 {
    match address {
        0 | LOST => address,
        _ => address | (generation % STAMPS) << STAMP_SHIFT,
    }
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
pub(crate) fn linkable<const N: usize>(links: &[u64; N], geometry: &Geometry) -> bool {
    let lawful = |block| block == LOST || geometry.linkable(block);
    links.iter().map(|link| link & ADDRESS).all(|block| block == 0 || lawful(block))
}

/// Writes a node for `address`.
pub(crate) fn write(
    block: &mut Block,
    links: &[u64; LINKS],
    info: &NodeInfo,
    store: Uuid,
    shard: u16,
    address: u64,
) {
    // Whole words, each over the end of the one before, the last into what comes next.
    for (place, link) in links.iter().enumerate() {
        block[6 * place..6 * place + 8].copy_from_slice(&(link & ON_DISK).to_le_bytes());
    }
    block[HEADER_AT..].fill(0);
    let extra = RawExtra { birth: U64::new(info.birth), shared_with: U64::new(info.shared_with) };
    block[EXTRA_AT..EXTRA_AT + EXTRA_LEN].copy_from_slice(extra.as_bytes());
    if info.level > 0 {
        write_stamps(block, links);
    }
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

fn write_stamps(block: &mut Block, links: &[u64; LINKS]) {
    let stamps = block[STAMPS_AT..STAMPS_AT + STAMPS_LEN].chunks_exact_mut(6);
    for (bytes, four) in stamps.zip(links.chunks_exact(4)) {
        let stamp = |i: usize| (four[i] & STAMP_BITS) >> STAMP_SHIFT << (12 * i);
        let all = stamp(0) | stamp(1) | stamp(2) | stamp(3);
        bytes.copy_from_slice(&all.to_le_bytes()[..6]);
    }
}

/// Puts the stamps above the links that lead to a node.
fn read_stamps(block: &Block, links: &mut [u64; LINKS]) {
    let stamps = block[STAMPS_AT..STAMPS_AT + STAMPS_LEN].chunks_exact(3);
    for (bytes, two) in stamps.zip(links.chunks_exact_mut(2)) {
        let both = u64::from(bytes[0]) | u64::from(bytes[1]) << 8 | u64::from(bytes[2]) << 16;
        for (link, stamp) in two.iter_mut().zip([both & 0xfff, both >> 12]) {
            if !matches!(*link & ADDRESS, 0 | LOST) {
                *link |= stamp << STAMP_SHIFT;
            }
        }
    }
}

/// Reads the node at `address` into `links`.
pub(crate) fn read(
    block: &Block,
    links: &mut [u64; LINKS],
    store: Uuid,
    shard: u16,
    address: u64,
) -> Result<NodeInfo, Damage> {
    let info = info(block, store, shard, address)?;
    read_links(block, links, info.level);
    Ok(info)
}

/// Takes the links of a node over that has been checked.
pub(crate) fn read_links(block: &Block, links: &mut [u64; LINKS], level: u8) {
    for (place, link) in links.iter_mut().enumerate() {
        let raw = link_at(block, place);
        // What is lost can be neither overwritten nor freed.
        *link = raw | if raw & ADDRESS == LOST { READ_ONLY } else { 0 };
    }
    if level > 0 {
        read_stamps(block, links);
    }
}

/// A link as it lies on disk.
#[inline]
fn link_at(block: &Block, place: usize) -> u64 {
    link_of(block[6 * place..6 * place + 8].try_into().expect("8 bytes"))
}

/// The link at the head of a whole word, of which the upper bytes are the next link's, or come
/// after the last.
#[inline]
pub(crate) fn link_of(word: [u8; 8]) -> u64 {
    u64::from_le_bytes(word) & ON_DISK
}

/// Where in a node's block that word of a link is, bytes.
#[inline]
pub(crate) fn link_offset(place: u16) -> u64 {
    assert!(usize::from(place) < LINKS);
    6 * u64::from(place)
}

/// Where `N` links of a leaf from `first` on lead: blocks, 0 for a hole, or [`LOST`].
pub(crate) fn addresses<const N: usize>(block: &Block, first: usize) -> [u64; N] {
    let bytes = &block[6 * first..6 * (first + N) + 2];
    std::array::from_fn(|n| {
        let word: [u8; 8] = bytes[6 * n..6 * n + 8].try_into().expect("8 bytes");
        u64::from_le_bytes(word) & ADDRESS
    })
}

/// True if the links of a leaf make more than `most` runs of blocks, or holes.
pub(crate) fn has_more_runs(block: &Block, most: usize) -> bool {
    let (mut expected, mut runs) = (u64::MAX, 0);
    for place in 0..LINKS {
        let link = link_at(block, place);
        runs += usize::from(link != expected);
        if runs > most {
            return true;
        }
        expected = link + u64::from(link & ADDRESS != 0);
    }
    false
}

/// Checks the node at `address`, all but its links, and tells what it is.
pub(crate) fn info(
    block: &Block,
    store: Uuid,
    shard: u16,
    address: u64,
) -> Result<NodeInfo, Damage> {
    let header = unseal(block, Kind::Node, store, shard, address)?;
    if header.level > LEVEL_MAX {
        return Err(Damage::Content);
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

    const STORE: Uuid = Uuid([1; 16]);

    fn info(level: u8) -> NodeInfo {
        NodeInfo { level, owner: 4, index: 6, generation: 8, birth: 3, shared_with: 1 }
    }

    fn header_of(info: &NodeInfo) -> Header {
        let NodeInfo { level, owner, index, generation, .. } = *info;
        Header {
            kind: Kind::Node,
            level,
            owner,
            store: STORE,
            shard: 0,
            address: 55,
            index,
            generation,
        }
    }

    /// Links of all sorts, with bits of the cache's own above.
    fn links() -> [u64; LINKS] {
        let mut links = [0u64; LINKS];
        for (i, link) in links.iter_mut().enumerate() {
            *link = (i as u64 * 0x1_2345_6789_abcd) ^ (i as u64) << 40;
        }
        (links[7], links[8]) = (0, LOST | READ_ONLY);
        links
    }

    #[test]
    fn links_of_a_leaf_keep_48_bits_and_lose_the_caches_own() {
        let (links, mut block, mut out) = (links(), [0; BLOCK_SIZE], [0; LINKS]);
        write(&mut block, &links, &info(0), STORE, 0, 55);
        assert_eq!(read(&block, &mut out, STORE, 0, 55), Ok(info(0)));
        for (a, b) in links.iter().zip(out) {
            assert_eq!(a & ON_DISK, b);
        }
        assert_eq!(read(&block, &mut out, STORE, 0, 56), Err(Damage::Address));
    }

    #[test]
    fn links_to_nodes_keep_their_stamps() {
        let (mut links, mut block, mut out) = (links(), [0; BLOCK_SIZE], [0; LINKS]);
        for (i, link) in links.iter_mut().enumerate().filter(|(_, l)| **l & ADDRESS != LOST) {
            *link = link_to(*link & ADDRESS, i as u64 * 977) | *link & READ_ONLY;
        }
        write(&mut block, &links, &info(2), STORE, 0, 55);
        assert_eq!(read(&block, &mut out, STORE, 0, 55), Ok(info(2)));
        assert_eq!(links, out);
        for (i, &link) in
            links.iter().enumerate().filter(|(_, l)| !matches!(**l & ADDRESS, 0 | LOST))
        {
            let NodeRef { address, stamp } = NodeRef::of_link(link);
            assert_eq!(address, link & ADDRESS);
            assert!(stamp.fits(i as u64 * 977) && !stamp.fits(i as u64 * 977 + 1));
        }
        assert!(block[STAMPS_AT + STAMPS_LEN..].iter().all(|b| *b == 0), "room for later");
    }

    #[test]
    fn holes_and_losses_have_no_stamp_whatever_lies_there() {
        let (mut block, mut out) = ([0; BLOCK_SIZE], [0; LINKS]);
        let mut links = [0; LINKS];
        links[1] = LOST | READ_ONLY;
        write(&mut block, &links, &info(1), STORE, 0, 55);
        block[STAMPS_AT..].fill(0xff);
        let header = header_of(&info(1));
        seal(&mut block, &header);
        assert_eq!(read(&block, &mut out, STORE, 0, 55), Ok(info(1)));
        assert_eq!(links, out);
    }

    #[test]
    fn a_stamp_tells_points_apart() {
        let link = |generation| NodeRef::of_link(link_to(99, generation)).stamp;
        for generation in [1u64, 2, 4092, 4093, 4094, 1 << 20, (1 << 48) - 1] {
            // Surely where they are near, and at every power of two.
            for older in generation.saturating_sub(STAMPS - 1)..generation {
                assert!(!link(generation).fits(older) && !link(older).fits(generation));
            }
            for back in (0..48).filter_map(|bit| generation.checked_sub(1 << bit)) {
                assert!(!link(generation).fits(back));
            }
            assert!(link(generation).fits(generation));
            let exact = Stamp::exactly(generation);
            assert!(exact.fits(generation) && !exact.fits(generation + STAMPS));
            assert!(exact.agrees(link(generation)) && link(generation).agrees(exact));
            assert!(!exact.agrees(Stamp::exactly(generation + 1)));
            assert!(!exact.agrees(link(generation + 1)) && !link(generation + 1).agrees(exact));
        }
    }

    #[test]
    fn the_newest_point_that_fits_is_the_newest() {
        for last in [0u64, 1, 5, 4092, 4093, 4094, 9000] {
            for generation in (0..9001).step_by(41) {
                let stamp = NodeRef::of_link(link_to(99, generation)).stamp;
                let newest = (0..=last).rev().find(|g| stamp.fits(*g));
                assert_eq!(stamp.newest(last), newest);
                let exact = Stamp::exactly(generation).newest(last);
                assert_eq!(exact, (generation <= last).then_some(generation));
            }
        }
        // A remainder that no number has.
        assert_eq!(NodeRef::of_link(99 | 0xfff << STAMP_SHIFT).stamp.newest(1 << 40), None);
    }
}

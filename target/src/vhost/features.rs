//! What the device offers: feature bits and the configuration space.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::{VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::blk::{PIECE_SECTORS_MAX, PIECES_MAX};
use super::vring::RingFeatures;

/// VHOST_USER_F_PROTOCOL_FEATURES, in the same word as the device's features.
pub(super) const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Bytes of a configuration space as the protocol carries it.
pub(super) const CONFIG_BYTES: usize = 256;
/// Where the write-cache switch is in it.
pub(super) const CONFIG_WCE_AT: usize = 32;

/// Data segments a driver may use in one request: fits a ring of 128, header and status included,
/// for drivers without indirect descriptors.
const SEG_MAX: u32 = 126;
/// log2 of the 512-byte sectors in a 4 KiB block.
const PHYSICAL_BLOCK_EXP: u8 = 3;
const SECTORS_A_BLOCK: u32 = 1 << PHYSICAL_BLOCK_EXP;

/// A feature word with one bit set.
const fn bit(number: u32) -> u64 {
    1 << number
}

/// Everything we can do for a disk, in one word.
pub(super) fn offered(readonly: bool, queues_max: u16) -> u64 {
    let mut features = bit(VIRTIO_F_VERSION_1)
        | bit(VIRTIO_F_RING_PACKED)
        | bit(VIRTIO_RING_F_EVENT_IDX)
        | bit(VIRTIO_RING_F_INDIRECT_DESC)
        | bit(VIRTIO_BLK_F_SEG_MAX)
        | bit(VIRTIO_BLK_F_BLK_SIZE)
        | bit(VIRTIO_BLK_F_TOPOLOGY)
        | bit(VIRTIO_BLK_F_FLUSH)
        | bit(VIRTIO_BLK_F_CONFIG_WCE)
        | PROTOCOL_FEATURES;
    if queues_max > 1 {
        features |= bit(VIRTIO_BLK_F_MQ);
    }
    if readonly {
        features |= bit(VIRTIO_BLK_F_RO);
    } else {
        features |= bit(VIRTIO_BLK_F_DISCARD) | bit(VIRTIO_BLK_F_WRITE_ZEROES);
    }
    features
}

/// What a driver accepted, taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Negotiated {
    /// Ring format.
    pub ring: RingFeatures,
    /// VIRTIO_BLK_F_FLUSH: the driver knows of a volatile cache.
    pub flush: bool,
    /// VIRTIO_BLK_F_CONFIG_WCE: the driver may switch it.
    pub config_wce: bool,
    /// VIRTIO_BLK_F_DISCARD.
    pub discard: bool,
    /// VIRTIO_BLK_F_WRITE_ZEROES.
    pub write_zeroes: bool,
}

impl Negotiated {
    /// From the feature word a driver accepted.
    pub fn from_bits(bits: u64) -> Negotiated {
        let has = |number: u32| bits & bit(number) != 0;
        Negotiated {
            ring: RingFeatures {
                packed: has(VIRTIO_F_RING_PACKED),
                event_idx: has(VIRTIO_RING_F_EVENT_IDX),
                indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
            },
            flush: has(VIRTIO_BLK_F_FLUSH),
            config_wce: has(VIRTIO_BLK_F_CONFIG_WCE),
            discard: has(VIRTIO_BLK_F_DISCARD),
            write_zeroes: has(VIRTIO_BLK_F_WRITE_ZEROES),
        }
    }

    /// Must each write be durable before it is done? A driver that does not know FLUSH cannot ask
    /// for it; one that switched the cache off does not have to.
    pub fn writes_through(&self, write_cache: bool) -> bool {
        !self.flush || (self.config_wce && !write_cache)
    }
}

/// The configuration space (`struct virtio_blk_config`), zero where we have nothing to say.
pub(super) fn config_space(
    capacity_bytes: u64,
    write_cache: bool,
    queues_max: u16,
) -> [u8; CONFIG_BYTES] {
    let mut space = [0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(capacity_bytes / 512).to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &512u32.to_le_bytes());
    // Topology: block exponent, offset of the first, least and best transfer in sectors.
    put(24, &[PHYSICAL_BLOCK_EXP, 0]);
    put(26, &(SECTORS_A_BLOCK as u16).to_le_bytes());
    put(28, &SECTORS_A_BLOCK.to_le_bytes());
    put(CONFIG_WCE_AT, &[u8::from(write_cache)]);
    put(34, &queues_max.to_le_bytes());
    // Discard, then write-zeroes: sectors and segments at most, alignment or may-unmap.
    put(36, &PIECE_SECTORS_MAX.to_le_bytes());
    put(40, &(PIECES_MAX as u32).to_le_bytes());
    put(44, &SECTORS_A_BLOCK.to_le_bytes());
    put(48, &PIECE_SECTORS_MAX.to_le_bytes());
    put(52, &(PIECES_MAX as u32).to_le_bytes());
    put(56, &[1]);
    space
}

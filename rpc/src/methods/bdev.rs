//! Disks and snapshots as SPDK's block devices.

use serde::{Deserialize, Serialize};

use crate::schema::method;

method! {
    /// Disks and snapshots as block devices; a device's name is its UUID.
    BdevGetBdevs = "bdev_get_bdevs" -> Vec<Bdev>;
    required {}
    optional {
        /// The disk or snapshot; all if left out.
        name: String,
        /// Milliseconds to wait for it; accepted, a disk is there as soon as its store is open.
        timeout: u64,
    }
}

method! {
    /// Counters of disks since they were opened.
    BdevGetIostat = "bdev_get_iostat" -> Iostat;
    required {}
    optional {
        /// The disk; all if neither this nor names is given.
        name: String,
        /// Several disks.
        names: Vec<String>,
        /// Only false: counters are not kept by channel.
        per_channel: bool,
        /// Only "none": counters are never reset.
        reset_mode: String,
    }
}

/// A disk or snapshot as a block device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bdev {
    /// Its UUID.
    pub name: String,
    /// "store/disk", or "store/disk@label" (without a label "store/disk@number").
    pub aliases: Vec<String>,
    /// "Lamina disk".
    pub product_name: String,
    /// Bytes in the smallest addressable unit: 512.
    pub block_size: u64,
    /// Its size in blocks of block_size.
    pub num_blocks: u64,
    /// Its UUID.
    pub uuid: String,
    /// True while it is exported.
    pub claimed: bool,
    /// What it can do.
    pub supported_io_types: IoTypes,
    /// What only a device of this kind has.
    pub driver_specific: DriverSpecific,
}

/// Kinds of I/O, as SPDK names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "SPDK's own words, each a kind of I/O")]
pub struct IoTypes {
    pub read: bool,
    pub write: bool,
    pub unmap: bool,
    pub flush: bool,
    pub reset: bool,
    pub nvme_admin: bool,
    pub nvme_io: bool,
    pub nvme_io_md: bool,
    pub write_zeroes: bool,
    pub zcopy: bool,
    pub get_zone_info: bool,
    pub zone_management: bool,
    pub zone_append: bool,
    pub compare: bool,
    pub compare_and_write: bool,
    pub abort: bool,
    pub seek_hole: bool,
    pub seek_data: bool,
    pub copy: bool,
    pub nvme_iov_md: bool,
}

impl IoTypes {
    /// What a disk can do.
    pub fn disk() -> IoTypes {
        IoTypes {
            read: true,
            write: true,
            unmap: true,
            flush: true,
            reset: true,
            write_zeroes: true,
            ..IoTypes::default()
        }
    }

    /// What a snapshot can do: it is read-only.
    pub fn snapshot() -> IoTypes {
        IoTypes { read: true, reset: true, ..IoTypes::default() }
    }
}

/// What only a device of this kind has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverSpecific {
    /// Its place in store and descent.
    pub lvol: LvolSpecific,
}

/// A disk's or snapshot's place in store and descent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LvolSpecific {
    /// UUID of its store.
    pub lvol_store_uuid: String,
    /// File or device of its store.
    pub base_bdev: String,
    /// Always true.
    pub thin_provision: bool,
    /// Blocks of 4 KiB mapped.
    pub num_allocated_clusters: u64,
    /// True for a snapshot.
    pub snapshot: bool,
    /// True for a disk that was made from a snapshot.
    pub clone: bool,
    /// The snapshot it was made from, as "disk@label" or "disk@number".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_snapshot: Option<String>,
    /// Names of the disks that are clones of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clones: Option<Vec<String>>,
}

/// Answer of [`BdevGetIostat`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Iostat {
    /// Ticks a second: 1,000,000,000.
    pub tick_rate: u64,
    /// When the counters were read, in ticks of a clock that never goes back.
    pub ticks: u64,
    /// One a disk.
    pub bdevs: Vec<BdevIostat>,
}

/// Counters of one disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BdevIostat {
    /// Its UUID.
    pub name: String,
    /// Bytes read.
    pub bytes_read: u64,
    /// Reads.
    pub num_read_ops: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Writes.
    pub num_write_ops: u64,
    /// Bytes discarded.
    pub bytes_unmapped: u64,
    /// Discards.
    pub num_unmap_ops: u64,
}

//! Disks and snapshots with what SPDK's form has no word for.

use serde::{Deserialize, Serialize};

use crate::schema::method;

method! {
    /// The disks, or one of them.
    LaminaDiskInfo = "lamina_disk_info" -> Vec<DiskInfo>;
    required {}
    optional {
        /// The disk; all if left out.
        name: String,
    }
}

method! {
    /// The snapshots of a disk, oldest first.
    LaminaSnapshotList = "lamina_snapshot_list" -> Vec<SnapshotInfo>;
    required {
        /// The disk.
        disk: String,
    }
    optional {}
}

method! {
    /// A new label for a snapshot.
    LaminaSnapshotLabel = "lamina_snapshot_label" -> bool;
    required {
        /// The snapshot.
        snapshot: String,
        /// Its label; "" takes the label away.
        label: String,
    }
    optional {}
}

/// A disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskInfo {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Name of its store.
    pub store: String,
    /// The shard of the store that owns it.
    pub shard: u32,
    /// Bytes presented.
    pub size: u64,
    /// Bytes mapped in the live disk (shared ones included).
    pub mapped: u64,
    /// Seconds since 1970.
    pub created: u64,
    /// The snapshot it is a clone of, as "disk@label" or "disk@number".
    pub origin: Option<String>,
    /// Number of its snapshots.
    pub snapshots: u64,
    /// Users of the live disk: exports.
    pub attached: u32,
    /// Socket paths of its exports.
    pub exports: Vec<String>,
}

/// A snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Name of the disk it was taken of.
    pub disk: String,
    /// Its number there: 1, 2, 3, in the order taken.
    pub id: u64,
    /// Its label, or "".
    pub label: String,
    /// Its UUID.
    pub uuid: String,
    /// Seconds since 1970.
    pub time: u64,
    /// Bytes presented: the disk's size when it was taken.
    pub size: u64,
    /// Bytes mapped in it.
    pub mapped: u64,
    /// Disks that are clones of it.
    pub clones: u32,
    /// Read-only users: exports.
    pub attached: u32,
}

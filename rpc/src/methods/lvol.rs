//! Disks under SPDK's names for logical volumes: a store is an lvstore, a disk an lvol.

use serde::{Deserialize, Serialize};

use crate::RpcError;
use crate::schema::method;

/// Bytes in a MiB, the unit of `size_in_mib`.
const MIB: u64 = 1 << 20;

method! {
    /// The open stores in SPDK's form.
    BdevLvolGetLvstores = "bdev_lvol_get_lvstores" -> Vec<Lvstore>;
    required {}
    optional {
        /// Name of the store; all if left out.
        lvs_name: String,
        /// UUID of the store, instead of its name.
        uuid: String,
    }
}

method! {
    /// A new disk, all zeros, taking no space until it is written. Answers its UUID.
    BdevLvolCreate = "bdev_lvol_create" -> String;
    required {
        /// Name of the disk.
        lvol_name: String,
    }
    optional {
        /// Bytes; either this or size_in_mib.
        size: u64,
        /// MiB; either this or size.
        size_in_mib: u64,
        /// Name of the store; may be left out when one store is open.
        lvs_name: String,
        /// UUID of the store, instead of its name.
        uuid: String,
        /// Accepted; every disk is thin.
        thin_provision: bool,
        /// Accepted; a disk reads zeros until it is written whatever this says.
        clear_method: String,
    }
}

impl BdevLvolCreate {
    /// The size asked for, bytes.
    ///
    /// # Errors
    /// Neither or both of `size` and `size_in_mib`, or too large for 64 bits (EINVAL).
    pub fn bytes(&self) -> Result<u64, RpcError> {
        bytes(self.size, self.size_in_mib)
    }
}

method! {
    /// A new disk that starts as a snapshot is. Answers its UUID.
    BdevLvolClone = "bdev_lvol_clone" -> String;
    required {
        /// The snapshot.
        snapshot_name: String,
        /// Name of the new disk.
        clone_name: String,
    }
    optional {}
}

method! {
    /// A snapshot of a disk; I/O goes on. Answers its UUID.
    BdevLvolSnapshot = "bdev_lvol_snapshot" -> String;
    required {
        /// The disk.
        lvol_name: String,
    }
    optional {
        /// Label of the snapshot; none if left out.
        snapshot_name: String,
    }
}

method! {
    /// A new size for a disk, attached or not. What a shrink cuts off is gone.
    BdevLvolResize = "bdev_lvol_resize" -> bool;
    required {
        /// The disk.
        name: String,
    }
    optional {
        /// Bytes; either this or size_in_mib.
        size: u64,
        /// MiB; either this or size.
        size_in_mib: u64,
    }
}

impl BdevLvolResize {
    /// The size asked for, bytes.
    ///
    /// # Errors
    /// Neither or both of `size` and `size_in_mib`, or too large for 64 bits (EINVAL).
    pub fn bytes(&self) -> Result<u64, RpcError> {
        bytes(self.size, self.size_in_mib)
    }
}

method! {
    /// A new name for a disk, or a new label for a snapshot.
    BdevLvolRename = "bdev_lvol_rename" -> bool;
    required {
        /// The disk or snapshot.
        old_name: String,
        /// Its new name.
        new_name: String,
    }
    optional {}
}

method! {
    /// Deletes a disk with all its snapshots, or one snapshot. Refused while exported. Clones
    /// stay as they are.
    BdevLvolDelete = "bdev_lvol_delete" -> bool;
    required {
        /// The disk or snapshot.
        name: String,
    }
    optional {}
}

method! {
    /// Disks and snapshots in SPDK's form.
    BdevLvolGetLvols = "bdev_lvol_get_lvols" -> Vec<Lvol>;
    required {}
    optional {
        /// Name of the store; all if left out.
        lvs_name: String,
        /// UUID of the store, instead of its name.
        lvs_uuid: String,
    }
}

/// A store in SPDK's form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lvstore {
    /// Its UUID.
    pub uuid: String,
    /// Its name.
    pub name: String,
    /// Its file or device.
    pub base_bdev: String,
    /// Clusters altogether.
    pub total_data_clusters: u64,
    /// Clusters that can still be written.
    pub free_clusters: u64,
    /// Bytes in the smallest addressable unit: 512.
    pub block_size: u64,
    /// Bytes in the unit of allocation: 4096.
    pub cluster_size: u64,
}

/// A disk or snapshot in SPDK's form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lvol {
    /// "store/disk" or "store/disk@label".
    pub alias: String,
    /// Its UUID.
    pub uuid: String,
    /// "disk" or "disk@label".
    pub name: String,
    /// Always true.
    pub is_thin_provisioned: bool,
    /// True for a snapshot.
    pub is_snapshot: bool,
    /// True for a disk that was made from a snapshot.
    pub is_clone: bool,
    /// False: a disk that cannot be opened is not listed.
    pub is_degraded: bool,
    /// The store it is in.
    pub lvs: LvolStore,
}

/// The store of an [`Lvol`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LvolStore {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
}

/// Takes one of the two ways to say a size.
fn bytes(size: Option<u64>, size_in_mib: Option<u64>) -> Result<u64, RpcError> {
    match (size, size_in_mib) {
        (Some(bytes), None) => Ok(bytes),
        (None, Some(mib)) => mib.checked_mul(MIB).ok_or_else(|| {
            RpcError::invalid_argument(format!("a size of {mib} MiB does not fit 64 bits"))
        }),
        (Some(_), Some(_)) => {
            Err(RpcError::invalid_argument("both size and size_in_mib are given; give one of them"))
        }
        (None, None) => Err(RpcError::invalid_argument("give size (bytes) or size_in_mib (MiB)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_said_in_one_way() {
        assert_eq!(bytes(Some(5), None), Ok(5));
        assert_eq!(bytes(None, Some(3)), Ok(3 << 20));
        for bad in [(None, None), (Some(1), Some(1)), (None, Some(u64::MAX))] {
            assert_eq!(bytes(bad.0, bad.1).unwrap_err().code, -22, "{bad:?}");
        }
    }
}

//! Exports over vhost-user-blk, under SPDK's names.

use serde::{Deserialize, Serialize};

use crate::schema::method;

method! {
    /// Exports a disk (or a snapshot, read-only) on a Unix socket. Kept with the disk: after a
    /// restart of the daemon it is exported again.
    VhostCreateBlkController = "vhost_create_blk_controller" -> bool;
    required {
        /// The socket: a file name in the daemon's socket folder, or an absolute path.
        ctrlr: String,
        /// The disk or snapshot.
        dev_name: String,
    }
    optional {
        /// True: the guest cannot write. Always so for a snapshot.
        readonly: bool,
        /// Accepted; packed rings are always offered.
        packed_ring: bool,
        /// Queues offered to the guest.
        num_queues: u16,
        /// Accepted; a disk is served by the reactor of its shard.
        cpumask: String,
        /// Accepted; only vhost_user_blk.
        transport: String,
    }
}

method! {
    /// The exports, or one of them.
    VhostGetControllers = "vhost_get_controllers" -> Vec<VhostController>;
    required {}
    optional {
        /// Name of the export; all if left out.
        name: String,
    }
}

method! {
    /// Ends an export, and forgets it.
    VhostDeleteController = "vhost_delete_controller" -> bool;
    required {
        /// Name of the export.
        ctrlr: String,
    }
    optional {}
}

/// An export.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VhostController {
    /// Its name, as it was given.
    pub ctrlr: String,
    /// The cores that serve it, as a mask in hexadecimal.
    pub cpumask: String,
    /// Always 0: completions are not held back.
    pub delay_base_us: u32,
    /// Always 60000, SPDK's default.
    pub iops_threshold: u32,
    /// Path of its socket.
    pub socket: String,
    /// What it exports.
    pub backend_specific: VhostBackend,
    /// True while a virtual machine is connected.
    pub connected: bool,
    /// Queues in use, or offered when nothing is connected.
    pub queues: u32,
}

/// What an export exports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VhostBackend {
    /// A disk.
    pub block: VhostBlock,
}

/// The disk of an export.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VhostBlock {
    /// UUID of the disk or snapshot.
    pub bdev: String,
    /// True: the guest cannot write.
    pub readonly: bool,
    /// "vhost_user_blk".
    pub transport: String,
}

//! Stores: making, opening, closing, and looking at them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::schema::method;

method! {
    /// Makes a store on a file, a block device or RAM, and opens it. Answers its UUID.
    LaminaStoreCreate = "lamina_store_create" -> String;
    required {
        /// Name of the store.
        name: String,
        /// A file, a block device, or "ram:SIZE" for a store in memory that ends with the daemon.
        path: String,
    }
    optional {
        /// Bytes; needed for a file that does not exist yet.
        size: u64,
        /// Parts that work on their own core each; 1 if left out.
        shards: u32,
        /// Bytes of journal a shard.
        journal_size: u64,
        /// True: overwrite a store that is there already.
        force: bool,
    }
}

method! {
    /// Opens a store that was made before, and exports again what was exported.
    LaminaStoreOpen = "lamina_store_open" -> StoreOpened;
    required {
        /// The file or block device.
        path: String,
    }
    optional {}
}

method! {
    /// Closes a store after a consistency point; refused while its disks are exported.
    LaminaStoreClose = "lamina_store_close" -> bool;
    required {
        /// Name or UUID of the store.
        name: String,
    }
    optional {
        /// True: end the exports of its disks first.
        force: bool,
    }
}

method! {
    /// The open stores, or one of them.
    LaminaStoreInfo = "lamina_store_info" -> Vec<StoreInfo>;
    required {}
    optional {
        /// Name or UUID of the store; all if left out.
        name: String,
    }
}

method! {
    /// Writes a consistency point now: recovery after it has nothing to replay.
    LaminaCheckpoint = "lamina_checkpoint" -> bool;
    required {}
    optional {
        /// Name or UUID of the store; all if left out.
        store: String,
    }
}

method! {
    /// Counters of every shard and every reactor, since the daemon started.
    LaminaStats = "lamina_stats" -> Stats;
    required {}
    optional {}
}

method! {
    /// Disks and snapshots with their descent.
    LaminaTree = "lamina_tree" -> Vec<StoreTree>;
    required {}
    optional {
        /// Name or UUID of the store; all if left out.
        store: String,
    }
}

/// Answer of [`LaminaStoreOpen`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreOpened {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
}

/// A store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreInfo {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Its file or device.
    pub path: String,
    /// Parts that work on their own core each.
    pub shards: u32,
    /// Bytes on the base device.
    pub size: u64,
    /// Bytes that a guest may still write now.
    pub free: u64,
    /// Bytes freed whose return waits for a consistency point.
    pub pending: u64,
    /// Bytes kept back so that metadata can always be written.
    pub reserved: u64,
    /// Bytes that its disks present to guests, together.
    pub presented: u64,
    /// Bytes of journal.
    pub journal_size: u64,
    /// Bytes of journal in use.
    pub journal_used: u64,
    /// Consistency points committed since the store was made.
    pub checkpoints: u64,
    /// Disks.
    pub disks: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// "opening", "online", "failed".
    pub state: String,
    /// Percent of the space that can be used that is used, in the fullest shard; 100: full.
    #[serde(default)]
    pub used_percent: u32,
    /// The threshold whose warning holds now, in percent; null: there is room.
    #[serde(default)]
    pub warning: Option<u32>,
}

/// Answer of [`LaminaStats`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// One a store.
    pub stores: Vec<StoreStats>,
    /// One a core.
    pub reactors: Vec<ReactorStats>,
}

/// Counters of one store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStats {
    /// Its name.
    pub name: String,
    /// Counters of each shard by name, as the engine has them.
    pub shards: Vec<BTreeMap<String, u64>>,
}

/// Counters of one reactor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReactorStats {
    /// The core it runs on.
    pub core: u32,
    /// Nanoseconds in turns that found work.
    pub busy_ns: u64,
    /// Nanoseconds in turns that found none, or asleep.
    pub idle_ns: u64,
    /// Times it went to sleep.
    pub sleeps: u64,
    /// Times it was woken.
    pub wakes: u64,
    /// Turns of its loop.
    pub turns: u64,
}

/// One store of [`LaminaTree`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreTree {
    /// Its name.
    pub store: String,
    /// Its UUID.
    pub uuid: String,
    /// Its disks.
    pub disks: Vec<TreeDisk>,
}

/// A disk in the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeDisk {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Bytes presented.
    pub size: u64,
    /// Bytes mapped in the live disk (shared ones included).
    pub mapped: u64,
    /// The snapshot it is a clone of.
    pub origin: Option<TreeOrigin>,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<TreeSnapshot>,
}

/// The snapshot that a disk is a clone of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeOrigin {
    /// Name of the disk it was taken of.
    pub disk: String,
    /// Its number there.
    pub snapshot: u64,
}

/// A snapshot in the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeSnapshot {
    /// Its number in its disk.
    pub id: u64,
    /// Its label, or "".
    pub label: String,
    /// Seconds since 1970.
    pub time: u64,
    /// Bytes mapped in it.
    pub mapped: u64,
    /// Names of the disks that are clones of it.
    pub clones: Vec<String>,
}

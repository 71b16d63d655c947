//! What must be found after a power cut.

use std::collections::BTreeSet;

use lamina_bdev::Uuid;

use super::image::{PAGE, Page, hash_page};
use crate::sim::pattern;

/// What a block holds: for each sector the number of the change it came from, 0 for zeros.
pub type Value = [u32; 8];

/// Whether something is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// It must not be.
    No,
    /// It was under way, or is not durable.
    May,
    /// It must be.
    Must,
}

impl Presence {
    /// True if it may be there, or not be there, as `found` says.
    pub fn allows(self, found: bool) -> bool {
        match self {
            Presence::No => !found,
            Presence::May => true,
            Presence::Must => found,
        }
    }
}

/// One block.
pub struct BlockDue {
    /// Its number.
    pub block: u64,
    /// What it may hold, with the hash of its bytes.
    pub allowed: Vec<(Value, u64)>,
}

/// The bytes of a block that holds `value`.
pub fn bytes_of(value: &Value, block: u64) -> Page {
    let mut page = [0; PAGE];
    for (sector, (number, bytes)) in value.iter().zip(page.chunks_exact_mut(512)).enumerate() {
        if *number != 0 {
            pattern::fill(bytes, *number, block * 8 + sector as u64);
        }
    }
    page
}

impl BlockDue {
    /// A block that may hold any of `values`.
    pub fn new(block: u64, values: BTreeSet<Value>) -> BlockDue {
        let hashed = |value: Value| (value, hash_page(&bytes_of(&value, block)));
        BlockDue { block, allowed: values.into_iter().map(hashed).collect() }
    }
}

/// One snapshot.
pub struct SnapDue {
    /// Its identity.
    pub uuid: Uuid,
    /// Whether it is there.
    pub presence: Presence,
    /// Its deletion has been asked for.
    pub may_be_deleted: bool,
    /// Bytes.
    pub size: u64,
    /// Its blocks.
    pub blocks: Vec<BlockDue>,
}

/// One disk.
pub struct DiskDue {
    /// Its identity.
    pub uuid: Uuid,
    /// Whether it is there.
    pub presence: Presence,
    /// Sizes it may have.
    pub sizes: Vec<u64>,
    /// Its blocks.
    pub blocks: Vec<BlockDue>,
    /// Its snapshots, in the order taken.
    pub snaps: Vec<SnapDue>,
}

/// Everything.
pub struct Due {
    /// The disks.
    pub disks: Vec<DiskDue>,
    /// Differs where what is due differs.
    pub signature: u64,
}

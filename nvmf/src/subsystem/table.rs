//! What an I/O queue knows of namespaces: an immutable table made for one controller.
//!
//! ```text
//!  service thread: Target ──make──► Arc<NsTable> ──message──► reactor: IoQueue looks nsid up
//!  (every change makes a new one; a queue never sees half a change)
//! ```

use super::{AnaState, DeviceKey, Subsystem};
use crate::reservation::{Access, HostId};
use crate::subsystem::Listener;

/// One namespace as one controller may use it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NsEntry {
    /// Its number.
    pub nsid: u32,
    /// The disk.
    pub device: DeviceKey,
    /// Logical blocks.
    pub blocks: u64,
    /// log2 of the logical block, bytes: 9 or 12.
    pub block_shift: u8,
    /// Writes are refused.
    pub readonly: bool,
    /// State of its ANA group on this controller's listener.
    pub ana: AnaState,
    /// What the reservation lets this controller's host do.
    pub access: Access,
}

/// All namespaces of a controller, indexed by nsid - 1.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NsTable {
    entries: Vec<Option<NsEntry>>,
    /// The host turned the volatile write cache off: every write is durable when it is answered.
    pub write_through: bool,
    /// Grows with each table made, so a reactor can say which it has.
    pub version: u64,
}

impl NsTable {
    /// The view of `subsystem` for a host that came through `listener`.
    pub fn make(
        subsystem: &Subsystem,
        listener: Option<&Listener>,
        host: &HostId,
        version: u64,
    ) -> NsTable {
        let last = subsystem.namespaces().map(|n| n.nsid).max().unwrap_or(0);
        let mut entries = vec![None; last as usize];
        for namespace in subsystem.namespaces() {
            let ana = listener.map_or(AnaState::Inaccessible, |l| l.state(namespace.ana_group));
            entries[namespace.nsid as usize - 1] = Some(NsEntry {
                nsid: namespace.nsid,
                device: namespace.device,
                blocks: namespace.blocks,
                block_shift: namespace.block_shift,
                readonly: namespace.readonly,
                ana,
                access: namespace.reservations.access(host),
            });
        }
        NsTable { entries, write_through: false, version }
    }

    /// The namespace of that number. 0 and ffffffffh are nobody's.
    pub fn get(&self, nsid: u32) -> Option<&NsEntry> {
        self.entries.get((nsid as usize).checked_sub(1)?)?.as_ref()
    }

    /// All namespaces.
    pub fn iter(&self) -> impl Iterator<Item = &NsEntry> {
        self.entries.iter().flatten()
    }
}

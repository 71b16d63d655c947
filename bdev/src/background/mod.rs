//! Work that nobody waits for: giving back what deleted snapshots and disks held.

pub(crate) mod reaper;
pub(crate) mod settle;
pub(crate) mod walker;

//! Work beside the requests: giving back what deleted snapshots and disks held, listing changes.

pub(crate) mod diff;
pub(crate) mod hold;
pub(crate) mod reaper;
pub(crate) mod settle;
pub(crate) mod walker;

//! The commit pipeline.
//!
//! ```text
//!  data written ─► record in the open batch ─► journal block written ─► in order: map changed
//!                                                        │
//!      checkpoint: freeze ─► nodes ─► bitmaps ─► records ─► superblock ─► journal trimmed
//! ```
//!
//! Watermarks of journal blocks: `tail` (checkpointed) <= `flushed` (durable) <= `applied`.

pub(crate) mod checkpoint;
pub(crate) mod checkpoint_io;
pub(crate) mod checkpoint_nodes;
mod checkpoint_order;
mod checkpoint_pace;
pub(crate) mod checkpoint_state;
pub(crate) mod checkpoint_system;
pub(crate) mod flush;
pub(crate) mod journal;
mod log_pairs;
pub(crate) mod starved;
pub(crate) mod superblocks;

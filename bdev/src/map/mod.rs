//! The map: which physical block holds a virtual block.
//!
//! ```text
//!  (tree, level, index) ──hash──► cache slot ──► 512 links      a leaf hit: one probe, one link
//!         miss: the nearest cached ancestor, else the root, gives the address; read it, go on down
//! ```
//!
//! Keys are logical, so a hit never walks. Upper nodes are needed by misses and by the checkpoint
//! only: a write changes a leaf in RAM, and the checkpoint links it into its parents. A leaf that
//! is evicted leaves a compact copy behind if it is made of a few runs; of any other leaf, reads
//! keep the pieces they came for.

pub(crate) mod adopt;
pub(crate) mod compact;
pub(crate) mod key;
pub(crate) mod node_cache;
pub(crate) mod piece_cache;
pub(crate) mod pieces;
pub(crate) mod radix;
mod reading;
pub(crate) mod runs;

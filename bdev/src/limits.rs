//! Every bound of the engine in one place, with the relations between them proved at compile time.

use crate::types::BLOCK_SIZE;

/// Links in a radix node.
pub const LINKS: usize = 512;
/// Address bits a level.
pub const LEVEL_BITS: u32 = 9;
/// Highest level a root may have: 0 is a leaf (2 MiB), 3 is 256 TiB.
pub const LEVEL_MAX: u8 = 3;
/// Smallest disk, bytes.
pub const DISK_BYTES_MIN: u64 = 1 << 20;
/// Largest disk, bytes.
pub const DISK_BYTES_MAX: u64 = 256 << 40;
/// Most segments of one request.
pub const SEGS_MAX: usize = 258;
/// Longest host blob kept with a disk, bytes.
pub const BLOB_LEN_MAX: usize = 2048;
/// Longest note of remote hosts' claims kept with a disk, bytes.
pub const CLAIMS_LEN_MAX: usize = 1728;
/// Most physical runs one part of a write may be scattered over; a write that needs more is cut.
pub const RUNS_MAX: usize = 8;
/// Base reads one request keeps in flight.
pub const READ_WINDOW: u32 = 32;
/// Slots beyond the configured ones, for commands and internal work.
pub const SLOTS_INTERNAL: usize = 64;
/// Journal blocks written at the same time.
pub const JOURNAL_WINDOW: usize = 16;
/// Blocks in one buffer of the checkpoint writer: its longest sequential write.
pub const CHUNK_BLOCKS: usize = 32;
/// Buffers of the checkpoint writer.
pub const CHUNKS: usize = 8;
/// Steps a checkpoint takes in one turn if nothing else is to be done, or if somebody waits for it.
pub const CHECKPOINT_STEPS_TURN: usize = 16;
/// Nanoseconds from one node of a checkpoint to the next, beside requests.
pub const CHECKPOINT_NODE_NS: u64 = 100_000;
/// Nanoseconds in which all nodes of a checkpoint are written beside requests, however many.
pub const CHECKPOINT_SPREAD_NS: u64 = 1_000_000_000;
/// Nodes of a checkpoint that are not spread over time.
pub const CHECKPOINT_NODES_AT_ONCE: usize = 16;
/// Requests of a turn for each step it takes beside them.
pub const REQUESTS_A_STEP: usize = 8;
/// Turns without a request after which a checkpoint has the shard to itself.
pub const QUIET_TURNS: u32 = 64;
/// Blocks that one step enters into bitmaps, or gives back: scattered, about as long as one node
/// takes.
pub const CHECKPOINT_BITS_STEP: u64 = 64;
/// Dropped blocks that one step settles.
pub const CHECKPOINT_SETTLED_STEP: usize = 16;
/// Node reads the reaper may do within one checkpoint.
pub const REAP_READS_CHECKPOINT: usize = 512;
/// Single-block metadata writes a checkpoint keeps in flight.
pub const SYSTEM_WRITES: usize = 16;
/// Pages for node reads of the checkpoint and the reaper, beyond those of the requests.
pub const SYSTEM_READS: usize = 8;
/// Most extents in one reply of changed blocks.
pub const DIFF_EXTENTS_MAX: u32 = 16_384;
/// Most node reads for one reply of changed blocks.
pub const DIFF_READS_MAX: u32 = 4096;
/// Places a list of changed blocks looks at in one turn.
pub const DIFF_STEPS_TURN: usize = 16;
/// Lists of changed blocks that may wait.
pub const DIFFS_MAX: usize = 64;
/// Retries of a metadata write before the shard is declared failed.
pub const WRITE_RETRIES: u8 = 4;
/// Reads of a bitmap that may fail one after the other.
pub const BITMAP_RETRIES: u32 = 64;
/// Cache slots only the checkpoint may take.
pub const CACHE_RESERVE: usize = 24;
/// Blocks a changed leaf may cost at a checkpoint: itself and the nodes above it.
pub const NODES_A_LEAF: u64 = 1 + LEVEL_MAX as u64;
/// Smallest node cache, bytes.
pub const CACHE_BYTES_MIN: usize = 1 << 20;
/// Largest node cache, bytes.
pub const CACHE_BYTES_MAX: usize = 256 << 30;
/// Blocks in the largest extent: what one bitmap block can describe.
pub const EXTENT_BLOCKS_MAX: u64 = 16384;
/// Blocks in the smallest extent.
pub const EXTENT_BLOCKS_MIN: u64 = 256;
/// Extents a shard may have (64 TiB).
pub const EXTENTS_MAX: u64 = 1 << 20;
/// Catalogue pairs (of 15.75 GiB) of a shard that finds out what is in use each time it opens and
/// does not know; a larger one only if it is short of space.
pub const REBUILD_PAIRS_MAX: u64 = 8;
/// Blocks at the head of an extent: two copies of its bitmap.
pub const EXTENT_HEAD_BLOCKS: u64 = 2;
/// Disk records a shard may have.
pub const DISKS_MAX: u64 = 65_535;
/// No counter of consistency points, journal blocks or epochs gets this far.
pub const COUNTER_MAX: u64 = 1 << 56;
/// No store gets to a consistency point of this number: at a thousand a second, 8,900 years.
pub const POINTS_MAX: u64 = 1 << 48;
/// Attachments at one time.
pub const ATTACHMENTS_MAX: usize = 65_535;
/// Smallest region of a shard, bytes.
pub const REGION_BYTES_MIN: u64 = 16 << 20;
/// Most shards of a store.
pub const SHARDS_MAX: u32 = 256;
/// Nanoseconds between two tries of a metadata write for which the base has no space.
pub const STARVED_RETRY_NS: u64 = 250_000_000;
/// Nanoseconds after which a dirty shard makes a consistency point anyway.
pub const CHECKPOINT_INTERVAL_NS: u64 = 5_000_000_000;

const _: () = assert!(LINKS == 1 << LEVEL_BITS);
const _: () = assert!(LINKS * 8 == BLOCK_SIZE);
const _: () = assert!(EXTENT_BLOCKS_MAX / 8 + 64 <= BLOCK_SIZE as u64);
const _: () =
    assert!(DISK_BYTES_MAX == (1u64 << (LEVEL_BITS * (LEVEL_MAX as u32 + 1))) * BLOCK_SIZE as u64);
const _: () = assert!(CACHE_BYTES_MIN / BLOCK_SIZE > 4 * CACHE_RESERVE);

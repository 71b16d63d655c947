//! Counters: plain integers that the owning thread bumps.

/// Counters since the engine was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Read requests done.
    pub reads: u64,
    /// Write requests done.
    pub writes: u64,
    /// Flush requests done.
    pub flushes: u64,
    /// Discard and write-zeroes requests done.
    pub discards: u64,
    /// Bytes read by requests.
    pub read_bytes: u64,
    /// Bytes written by requests.
    pub write_bytes: u64,
    /// Parts of writes that went in place.
    pub writes_in_place: u64,
    /// Parts of writes that went to fresh blocks.
    pub writes_redirected: u64,
    /// Parts that covered less than a block.
    pub writes_partial: u64,
    /// Base reads started.
    pub base_reads: u64,
    /// Base writes started.
    pub base_writes: u64,
    /// Base flushes started.
    pub base_flushes: u64,
    /// Journal blocks written.
    pub journal_blocks: u64,
    /// Journal records written.
    pub journal_records: u64,
    /// Lookups answered from the node cache.
    pub cache_hits: u64,
    /// Nodes read.
    pub cache_misses: u64,
    /// Nodes and compact copies evicted, but for leaves of which a compact copy was made.
    pub cache_evictions: u64,
    /// Leaves evicted of which a compact copy was made.
    pub cache_compactions: u64,
    /// Reads answered from compact copies of leaves; hits too.
    pub cache_compact_hits: u64,
    /// Pieces of leaves of many runs that were kept for reads.
    pub cache_pieces: u64,
    /// Reads answered from such pieces; compact hits too.
    pub cache_piece_hits: u64,
    /// Reads whose link was read where it lies, on a base that is memory.
    pub cache_in_place: u64,
    /// Compact copies that were made nodes again, for a write or a read of several runs; hits too.
    pub cache_promotions: u64,
    /// Consistency points committed.
    pub checkpoints: u64,
    /// Snapshots taken.
    pub snapshots: u64,
    /// Times a request had to wait for space, journal room or memory.
    pub parked: u64,
    /// Journal records applied at open.
    pub replayed_records: u64,
    /// Journal records dropped at open because their data was lost in a power cut before any flush.
    pub dropped_records: u64,
}

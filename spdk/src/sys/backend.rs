//! What stands behind a bdev of ours, and what a new one is like.

use std::cell::Cell;

use serde_json::Value;

use super::bdev_io::BdevIo;

/// What a bdev of ours does.
pub trait Backend: Send + Sync + 'static {
    /// Takes an I/O on the thread that it came from.
    fn submit(&self, channel: &ChannelState, io: BdevIo);
    /// Takes an I/O that [`super::disk::forward`] brought to this thread.
    fn arrived(&self, io: BdevIo);
    /// The bdev below is done with what [`super::below::start`] has given it: how it went.
    fn below_done(&self, io: BdevIo, good: bool);
    /// The calling thread is going to use it.
    fn channel_opened(&self);
    /// The calling thread no longer uses it.
    fn channel_closed(&self);
    /// What people are told of it.
    fn info(&self) -> Value;
}

/// What is kept with a channel, for its thread alone.
#[derive(Default)]
pub struct ChannelState {
    /// I/O sent to another thread since the last look.
    pub sent: Cell<u64>,
    /// What [`crate::drive::Drive`] had counted at that look.
    pub seen: Cell<u64>,
}

/// What a new bdev is like.
pub struct Spec {
    /// Its name.
    pub name: String,
    /// Its other name.
    pub alias: String,
    /// Its identity.
    pub uuid: [u8; 16],
    /// Bytes in a block.
    pub block_bytes: u32,
    /// Bytes.
    pub bytes: u64,
    /// Most pieces of memory of one I/O.
    pub segs_max: u32,
    /// Completed writes need a flush to be durable.
    pub write_cache: bool,
}

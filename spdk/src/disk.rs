//! A disk as a bdev: where its I/O goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use lamina_bdev::Handle;
use serde_json::{Value, json};

use crate::drive::Drive;
use crate::sys::backend::{Backend, ChannelState};
use crate::sys::bdev_io::BdevIo;

/// What stands behind a bdev of ours.
pub struct Backed(Arc<Behind>);

struct Behind {
    drive: Arc<Drive>,
    handle: Handle,
    store: String,
    shard: usize,
    /// I/O that the shard has; counted on its thread alone.
    in_flight: AtomicU32,
    /// Channels to it, on any thread.
    channels: AtomicU32,
}

impl Backed {
    /// The attachment `handle` of the shard that `drive` drives.
    pub fn new(drive: Arc<Drive>, handle: Handle, store: String, shard: usize) -> Backed {
        let (in_flight, channels) = (AtomicU32::new(0), AtomicU32::new(0));
        Backed(Arc::new(Behind { drive, handle, store, shard, in_flight, channels }))
    }

    /// Its attachment.
    pub fn handle(&self) -> Handle {
        self.0.handle
    }

    /// Another share in it.
    pub fn share(&self) -> Backed {
        Backed(self.0.clone())
    }

    /// True if a thread has a channel to it.
    pub fn is_used(&self) -> bool {
        self.0.channels.load(Ordering::Relaxed) > 0
    }

    /// One more I/O. On the shard's thread.
    pub fn began(&self) {
        let now = self.0.in_flight.load(Ordering::Relaxed);
        self.0.in_flight.store(now + 1, Ordering::Relaxed);
    }

    /// One I/O less. On the shard's thread.
    pub fn ended(&self) {
        let now = self.0.in_flight.load(Ordering::Relaxed);
        assert!(now > 0, "an I/O ended that had not begun");
        self.0.in_flight.store(now - 1, Ordering::Relaxed);
    }

    /// True if the shard has no I/O of it. On the shard's thread.
    pub fn is_idle(&self) -> bool {
        self.0.in_flight.load(Ordering::Relaxed) == 0
    }
}

impl Backend for Backed {
    fn submit(&self, channel: &ChannelState, io: BdevIo) {
        self.0.drive.submit(self, channel, io);
    }

    fn arrived(&self, io: BdevIo) {
        self.0.drive.arrived(self, io);
    }

    fn below_done(&self, io: BdevIo, good: bool) {
        self.0.drive.below_done(self, io, good);
    }

    fn channel_opened(&self) {
        self.0.channels.fetch_add(1, Ordering::Relaxed);
        self.0.drive.channel_opened();
    }

    fn channel_closed(&self) {
        self.0.drive.channel_closed();
        self.0.channels.fetch_sub(1, Ordering::Relaxed);
    }

    fn info(&self) -> Value {
        let traffic = self.0.drive.traffic();
        json!({
            "store": self.0.store,
            "shard": self.0.shard,
            "thread": self.0.drive.owner_name(),
            "io_local": traffic.local,
            "io_sent": traffic.sent,
            "moves": traffic.moves,
        })
    }
}

//! vhost-user-blk exports: a disk as a guest's virtio-blk device, without a copy.
//!
//! ```text
//!              front-end (QEMU, libblkio, ...)
//!                 │ unix socket: messages, fds            guest memory: rings, data
//!  ┌──────────────▼──────────────┐                            ▲ │
//!  │ socket ─► session           │ a thread an export:        │ │
//!  │   mmap, checks, eventfds    │ may block                  │ │
//!  └──────────────┬──────────────┘                            │ ▼
//!       ExportMsg │  ▲ Reply                ┌─────────────────┴──────────────────────┐
//!                 ▼  │                      │ BlkExport ─ Queue ─ Ring (split/packed)│
//!             reactor's inbox ────────────► │   chain ─► blk::parse ─► engine.submit │
//!                                           │   used  ◄── complete ◄── engine        │
//!                                           └────────────────────────────────────────┘
//! ```
//!
//! Life of a connection: features, memory table, in-flight log, then for each queue size, base,
//! addresses, call, kick (starts it), enable; at the end GET_VRING_BASE or a closed socket stops
//! queues, which are drained first. The next connection is served after that.
//!
//! Rules: descriptors are read once into owned values; an address is translated by
//! [`crate::mem::guest`] before it is used; what allocates, maps or frees happens on the session's
//! thread; a queue whose guest breaks the ring stops alone.

mod blk;
mod chain;
mod epochs;
mod eventfd;
mod export;
mod features;
mod handler;
mod inflight;
mod inflight_packed;
mod inflight_split;
mod message;
mod queue;
mod session;
mod socket;
mod vring;
mod vring_packed;
mod vring_split;

#[cfg(test)]
mod tests;

pub use eventfd::EventFd;
pub use export::{BlkExport, ExportConfig, QUEUES_MAX, QueueStopped, SERIAL_BYTES, Took};
pub use features::Negotiated;
pub use inflight::{InflightLog, LogShape};
pub use message::{EventKind, ExportMsg, Reply, StoppedQueue};
pub use queue::{BATCH_MAX, Queue, QueueSetup, Submit, Taken};
pub use socket::{ExportServer, ExportStatus, ServeConfig, serve};
pub use vring::{Fault, QUEUE_SIZE_MAX, RingAddrs, RingFeatures, RingSpans};

//! laminad: pinned reactors that serve virtual disks, and the control threads around them.
//!
//! ```text
//!  guest ring ──► vhost ──► engine (lamina-bdev) ──► base (RAM, io_uring)
//!      ▲                      │   one reactor thread a core, polling   │
//!      └──── completions ◄────┴────────────────────────────────────────┘
//!                    ▲ mailbox (bounded)
//!  JSON-RPC ──► control: stores, disks, snapshots, exports (may block)
//! ```
//!
//! Whatever may block (opening files, mapping guest memory, RPC, logs) runs on control threads;
//! a reactor only polls, and sleeps when there is nothing to poll.

pub mod base;
pub mod check;
pub mod config;
pub mod control;
pub mod eventfd;
pub mod events;
pub mod log;
pub mod mem;
pub mod nvmf;
pub mod reactor;
pub mod signals;
#[cfg(test)]
pub(crate) mod testing;
pub mod vhost;

//! The safe layer over SPDK: everything here, and nothing outside, holds raw pointers.
//!
//! ```text
//!  thread    threads, messages, pollers      bdev_io   an I/O to be answered, once
//!  owned     data of one thread at a time    disk      a bdev of ours, its channels
//!  channel   a bdev below, its descriptor    dma       memory that devices can reach
//!  base_io   I/O on a bdev below             lent      a bdev below that is memory
//!  below     I/O handed to the bdev below    json, rpc, app
//! ```
//!
//! Handles are neither `Copy` nor `Clone`, and what SPDK wants back is given back when they are
//! dropped, on the thread that SPDK wants it on.

pub mod app;
pub mod backend;
pub mod base_io;
pub mod bdev_io;
pub mod below;
pub mod channel;
pub mod disk;
pub mod dma;
pub mod json;
pub mod lent;
pub mod owned;
pub mod rpc;
pub mod thread;

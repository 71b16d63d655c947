//! NVMe over TCP: listeners, the service thread, and the I/O queues on reactors.
//!
//! ```text
//!  listener ─ accept ─► service thread (core, door, deliver): handshakes, admin queues,
//!  controllers
//!                          │ Adopt: an I/O queue moves, socket and all
//!                          ▼
//!                       reactor: group ─► queue ─► devices ─► engine of the shard
//!                                                     └─ another reactor's disk: by message
//! ```
//!
//! The protocol itself is in `lamina-nvmf`, which has no sockets, threads or clock; everything here
//! is about those.

mod computing;
mod conn;
pub mod core;
mod deliver;
pub mod devices;
mod door;
mod entrance;
pub mod group;
mod keys;
pub mod link;
pub mod listener;
pub mod low_water;
pub mod message;
mod pace;
mod peers;
pub mod poller;
pub mod queue;
pub mod service;
pub mod stats;
pub mod stream;
pub mod tls;
pub mod transport;
pub mod usage;

use lamina_nvmf::controller::Limits;
use lamina_nvmf::pool::Pool;

/// How many connections there may be, and how long they may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one address: at most half of what there is for all, of controllers too.
    pub connections_of_address: usize,
    /// Connections that have no queue yet; the oldest goes when one more comes. One address has
    /// half of them.
    pub half_open: usize,
    /// Time from accepting a connection to its Connect, nanoseconds.
    pub handshake_ns: u64,
    /// Time for a last answer, nanoseconds.
    pub farewell_ns: u64,
}

/// Most small and large buffers of the service thread: two of each for 4096 connections.
const SERVICE_BUFFERS: (usize, usize) = (8192, 8192);
/// Most small and large buffers of a reactor, for 2048 connections.
const GROUP_BUFFERS: (usize, usize) = (8192, 4096);

fn pool(buffers: (usize, usize)) -> Pool {
    Pool::new(buffers.0, buffers.1, Limits::default().data_bytes_max as usize)
}

/// Buffers of the service thread's connections; their memory is made when it is needed.
fn pool_of_service() -> Pool {
    pool(SERVICE_BUFFERS)
}

/// The same for a reactor's.
pub fn pool_of_group() -> Pool {
    pool(GROUP_BUFFERS)
}

impl Default for Caps {
    fn default() -> Caps {
        Caps {
            connections: 8192,
            connections_of_address: 2048,
            half_open: 1024,
            handshake_ns: 5_000_000_000,
            farewell_ns: 1_000_000_000,
        }
    }
}

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

pub mod core;
mod deliver;
pub mod devices;
mod door;
pub mod group;
mod keys;
pub mod link;
pub mod listener;
pub mod message;
pub mod poller;
pub mod queue;
pub mod service;
pub mod stats;
pub mod stream;
pub mod tls;

use lamina_nvmf::controller::Limits;
use lamina_nvmf::pool::Pool;

/// How many connections there may be, and how long they may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one address.
    pub connections_of_address: usize,
    /// Connections that have no queue yet; the oldest goes when one more comes.
    pub half_open: usize,
    /// Time from accepting a connection to its Connect, nanoseconds.
    pub handshake_ns: u64,
    /// Time for a last answer, nanoseconds.
    pub farewell_ns: u64,
    /// Most bytes of one command.
    pub data_bytes_max: u32,
}

/// Most small and large buffers of the service thread; connections there take two and one each.
const SERVICE_BUFFERS: (usize, usize) = (8192, 4096);
/// Most small and large buffers of a reactor.
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

/// What a connection may do.
fn transport_limits() -> lamina_nvmf::transport::Limits {
    let limits = Limits::default();
    lamina_nvmf::transport::Limits {
        in_capsule: limits.in_capsule_bytes,
        data_max: limits.data_bytes_max,
        maxh2cdata: limits.data_bytes_max,
        c2h_data_max: limits.data_bytes_max,
        ..lamina_nvmf::transport::Limits::default()
    }
}

impl Default for Caps {
    fn default() -> Caps {
        Caps {
            connections: 8192,
            connections_of_address: 4096,
            half_open: 1024,
            handshake_ns: 5_000_000_000,
            farewell_ns: 1_000_000_000,
            data_bytes_max: Limits::default().data_bytes_max,
        }
    }
}

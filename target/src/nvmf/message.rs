//! What the service thread, the reactors' groups and control threads tell each other.
//!
//! ```text
//!  control ── Run ─► service thread ── Adopt, Table, Reply, Close ─► group of a reactor
//!                          ▲ ───────── Gone, Command, Acknowledged ──────┘   │ ▲
//!  control ── AddDevice, RemoveDevice ─► every group            Job, Finished│ │ group of another
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;

use lamina_bdev::{Status, Uuid};
use lamina_nvmf::SlotId;
use lamina_nvmf::controller::{AuthWorked, Reply};
use lamina_nvmf::subsystem::{DeviceKey, NsTable};
use lamina_nvmf::wire::Command;

use super::core::Core;
use super::devices::{Job, Origin, Route};
use super::link::Link;
use super::stream::Stream;
use super::usage::QueueUsage;
use crate::reactor::handle::ReactorHandle;
use crate::reactor::mailbox::Mailbox;

/// Names a connection for as long as the daemon runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct ConnectionId(pub u64);

/// What all queues of a controller share with the service thread.
#[derive(Debug, Default)]
pub struct QueueShared {
    heard_ns: AtomicU64,
}

impl QueueShared {
    /// A command came at `now_ns`.
    pub fn hear(&self, now_ns: u64) {
        // Only the newest time counts, and nothing else hangs on it.
        self.heard_ns.store(now_ns, Ordering::Relaxed);
    }

    /// When a command last came.
    pub fn heard_ns(&self) -> u64 {
        self.heard_ns.load(Ordering::Relaxed)
    }
}

/// An I/O queue on its way to a reactor.
pub struct Adopted {
    /// Its connection.
    pub id: ConnectionId,
    /// The socket and the protocol's state.
    pub link: Link,
    /// Entries of the queue.
    pub entries: u16,
    /// Most bytes of one command.
    pub data_bytes_max: u32,
    /// The namespaces it may use.
    pub table: Arc<NsTable>,
    /// Its controller's.
    pub shared: Arc<QueueShared>,
    /// Where it shows what it has moved.
    pub usage: Arc<QueueUsage>,
}

/// What a group has to know of the others.
pub struct Peers {
    /// All reactors; the group's own among them.
    pub reactors: Vec<Arc<ReactorHandle>>,
    /// The service thread's inbox.
    pub service: Arc<Mailbox<ServiceMsg>>,
}

/// What a group is told.
pub enum GroupMsg {
    /// Begin: the group exists from now on.
    Start(Box<Peers>),
    /// Serve this I/O queue from now on.
    Adopt(Box<Adopted>),
    /// Use these namespaces from now on.
    Table {
        /// The connection.
        id: ConnectionId,
        /// The namespaces.
        table: Arc<NsTable>,
        /// Finish what is in flight before saying that it is done.
        drain: bool,
        /// What to acknowledge with.
        token: Option<u64>,
    },
    /// The service thread's answer to a command.
    Reply {
        /// The connection.
        id: ConnectionId,
        /// The command.
        slot: SlotId,
        /// The answer.
        reply: Reply,
    },
    /// End this connection.
    Close(ConnectionId),
    /// It is this late: end connections whose hosts owe data for too long.
    Expire(u64),
    /// This disk can be reached from now on.
    AddDevice(Route, SyncSender<()>),
    /// This disk can no longer be reached; told when nothing is in flight on it.
    RemoveDevice(DeviceKey, SyncSender<()>),
    /// A job of another reactor's connection on a disk here.
    Job(Job),
    /// The end of a job that was given to another reactor.
    Finished(Origin, Status),
}

/// What runs on the service thread on behalf of a control thread.
pub type Run = Box<dyn FnOnce(&mut Core) + Send>;

/// Reservations of a namespace that are to be kept, or forgotten.
pub struct Save {
    /// Its subsystem.
    pub nqn: String,
    /// Its number.
    pub nsid: u32,
    /// Its identity.
    pub uuid: Uuid,
    /// The disk or snapshot it shows.
    pub device: DeviceKey,
    /// What to keep; `None`: nothing.
    pub image: Option<Vec<u8>>,
    /// What the service thread is told when it is done.
    pub token: u64,
}

/// What the service thread is told.
pub enum ServiceMsg {
    /// Run this.
    Run(Run),
    /// The connection of an I/O queue has ended; with its socket, if the host is still to read why.
    Gone(ConnectionId, Option<Box<Stream>>),
    /// A command of an I/O queue that is the service thread's to carry out.
    Command {
        /// The connection.
        id: ConnectionId,
        /// The command's slot there.
        slot: SlotId,
        /// The command.
        command: Command,
        /// The data that came with it.
        data: Vec<u8>,
        /// Bytes that its SGL describes.
        data_len: u32,
    },
    /// A computation for an authentication is done.
    Computed(AuthWorked),
    /// A table is in use.
    Acknowledged(u64),
    /// Reservations are durable with their disk, or (`false`) could not be made so.
    Saved(u64, bool),
    /// End the thread.
    Stop,
}

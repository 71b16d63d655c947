//! Controllers: what a host talks to on its admin queue.
//!
//! ```text
//!  Connect ──► Service ──► Controller {properties, features, events}    one a host connection
//!  admin   ──► Service::admin ──► Answer
//!  I/O queue: reservation, fabrics ──► Service::queue_command ──► Answer
//!  management: Service::edit(|target| ..) ─┐
//!  time:       Service::tick ──────────────┴──► Action: respond to a held command,
//!                                   hand tables out, save reservations, close connections
//! ```
//!
//! A single owner (the service thread) calls all of it, so there is no lock. After every call the
//! owner drains [`Service::next_action`]. Time is an argument: nanoseconds of a monotonic clock.

mod admin;
mod authenticate;
mod connect;
mod events;
mod features;
mod identify;
mod identify_ns;
mod log;
mod log_ana;
mod log_discovery;
mod one;
mod page;
mod property;
mod quiesce;
mod reserve;
mod service;

use std::net::IpAddr;

use crate::SlotId;
use crate::subsystem::{Nqn, PortId, SubsystemId};
use crate::wire::Completion;

pub use authenticate::{AuthWork, AuthWorked, RandomSource};
pub use one::Controller;
pub use service::Service;

/// Names a controller for as long as the daemon runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct ControllerKey(pub u64);

/// What controllers offer; what Identify says and commands are held to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Most bytes a command moves; a power of two, at least 4096 (MDTS).
    pub data_bytes_max: u32,
    /// Most bytes of data inside a command capsule, a multiple of 16 (IOCCSZ).
    pub in_capsule_bytes: u32,
    /// Most entries of an I/O queue (CAP.MQES, MAXCMD).
    pub queue_entries_max: u16,
    /// Most entries of an admin queue (ASQSZ of the discovery log).
    pub admin_entries_max: u16,
    /// Most I/O queues of a controller.
    pub io_queues_max: u16,
    /// Most controllers of all subsystems together.
    pub controllers_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            data_bytes_max: 128 << 10,
            in_capsule_bytes: 8 << 10,
            queue_entries_max: 1024,
            admin_entries_max: 1024,
            io_queues_max: 128,
            controllers_max: 4096,
        }
    }
}

impl Limits {
    /// # Panics
    /// A value makes no sense.
    fn check(&self) {
        assert!(self.data_bytes_max.is_power_of_two() && self.data_bytes_max >= 4096);
        assert!(self.in_capsule_bytes.is_multiple_of(16));
        assert!(self.io_queues_max >= 1 && self.controllers_max >= 1);
        assert!(self.queue_entries_max >= 2 && self.admin_entries_max >= 32);
    }
}

/// Where a connection came from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The port it was accepted on.
    pub port: PortId,
    /// This end's address, for the discovery log of a port that listens on all addresses.
    pub local: IpAddr,
    /// The names the TLS handshake proved, if it runs over TLS.
    pub tls: Option<TlsIdentity>,
}

/// Whom a TLS pre-shared key belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsIdentity {
    /// The host.
    pub host: Nqn,
    /// The subsystem.
    pub subsystem: Nqn,
}

/// A Connect that succeeded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Connected {
    /// The controller made (admin queue) or found (I/O queue).
    pub controller: ControllerKey,
    /// Its subsystem.
    pub subsystem: SubsystemId,
    /// 0: admin queue.
    pub qid: u16,
    /// Entries of the submission queue.
    pub entries: u16,
    /// Submission queue flow control is on.
    pub flow_control: bool,
    /// The queue takes nothing but authentication commands ([`Service::authenticate`]) until
    /// [`Service::is_trusted`].
    pub authenticate: bool,
    /// To send.
    pub completion: Completion,
}

/// An answer to one command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    /// The completion.
    pub completion: Completion,
    /// Data that goes first; empty for none.
    pub data: Vec<u8>,
}

/// What becomes of a command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Send this.
    Reply(Reply),
    /// Send this once every [`Action::Publish`] and [`Action::Save`] of this call is done: tables
    /// acknowledged by the reactors, reservations durable.
    ReplyAfterActions(Reply),
    /// Nothing yet: the computation of this number comes from [`Service::next_work`], and what
    /// [`Service::computed`] makes of it is the answer.
    Later(u64),
    /// Nothing yet: an [`Action::Respond`] follows, or the queue ends.
    Hold,
}

/// What the owner must do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// A held command of the admin queue is done.
    Respond {
        /// Whose admin queue.
        controller: ControllerKey,
        /// Which command.
        slot: SlotId,
        /// Its answer.
        reply: Reply,
    },
    /// The host has given a held command's identifier to another command: it gets no answer.
    Forget {
        /// Whose admin queue.
        controller: ControllerKey,
        /// Which command.
        slot: SlotId,
    },
    /// The controller's [`Service::table`] has changed: give it to its I/O queues.
    Publish {
        /// Whose.
        controller: ControllerKey,
        /// Acknowledge only when the commands in flight are done (Preempt and Abort).
        drain: bool,
    },
    /// A namespace's reservations must be saved with its disk, or forgotten.
    Save {
        /// Its subsystem.
        subsystem: SubsystemId,
        /// Its number.
        nsid: u32,
        /// What to keep; `None`: nothing.
        image: Option<Vec<u8>>,
    },
    /// Close this I/O queue's connection.
    CloseQueue {
        /// Whose.
        controller: ControllerKey,
        /// Which.
        qid: u16,
    },
    /// The controller has ended: close all its connections. It must not be named again.
    CloseController {
        /// Which.
        controller: ControllerKey,
        /// Why, for the log.
        reason: &'static str,
    },
}

/// What was moved on behalf of a subsystem, for the SMART log: Read and Compare, and Write (NVM
/// 1.1,
/// 4.1.4.2), each when it has succeeded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Bytes read by hosts.
    pub bytes_read: u64,
    /// Bytes written by hosts.
    pub bytes_written: u64,
    /// Read commands.
    pub reads: u64,
    /// Write commands.
    pub writes: u64,
    /// Commands that failed since data could not be read or written, or was damaged.
    pub media_errors: u64,
}

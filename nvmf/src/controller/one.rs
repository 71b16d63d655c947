//! One controller: the state behind an association between a host and a subsystem.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use super::authenticate::Proof;
use super::events::Events;
use super::features::Features;
use super::property::CC_ENABLE;
use super::quiesce::Wait;
use crate::reservation::HostId;
use crate::subsystem::{Nqn, PortId, SubsystemId};
use crate::wire::{Command, Status};

/// Entries of the error log (ELPE is one less).
pub(super) const ERRORS_MAX: usize = 16;
/// A controller that is not enabled, or a discovery controller without a keep-alive timer that is
/// silent, ends after this long (Base 2.1, 3.5: two minutes).
pub(super) const IDLE_NS_MAX: u64 = 120 * SECOND_NS;
/// Nanoseconds in a second.
pub(super) const SECOND_NS: u64 = 1_000_000_000;
/// CSTS.RDY.
pub(super) const CSTS_READY: u32 = 1;
/// CSTS.CFS: the controller cannot do what it was told to.
pub(super) const CSTS_FATAL: u32 = 1 << 1;
/// CSTS.SHST.
pub(super) const CSTS_SHUTDOWN_MASK: u32 = 3 << 2;
/// CSTS.SHST: shutdown goes on.
pub(super) const CSTS_SHUTTING_DOWN: u32 = 1 << 2;
/// CSTS.SHST: shutdown complete.
pub(super) const CSTS_SHUT_DOWN: u32 = 2 << 2;

/// One entry of the error log.
#[derive(Clone, Copy, Debug)]
pub(super) struct ErrorEntry {
    pub count: u64,
    pub sqid: u16,
    pub cid: u16,
    pub status: Status,
    pub nsid: u32,
}

/// An I/O queue the controller knows of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Queue {
    /// Entries of its submission queue.
    pub entries: u16,
    /// It has authenticated, or need not.
    pub trusted: bool,
    /// Since when it has to authenticate, if it is not trusted.
    pub(super) untrusted_ns: u64,
}

/// A controller.
pub struct Controller {
    /// The subsystem.
    pub subsystem: SubsystemId,
    /// Its number in the subsystem.
    pub cntlid: u16,
    /// The host.
    pub host: Nqn,
    /// The host's identifier.
    pub host_id: HostId,
    /// The port its connections come through.
    pub port: PortId,
    /// This end's address of the admin connection.
    pub local: IpAddr,
    pub(super) discovery: bool,
    /// The admin queue has authenticated, or need not.
    pub(super) trusted: bool,
    /// Since when it has to authenticate, if it is not trusted.
    pub(super) untrusted_ns: u64,
    /// By queue.
    pub(super) authentications: BTreeMap<u16, Proof>,
    pub(super) cc: u32,
    pub(super) csts: u32,
    /// A change of `csts` that has to wait.
    pub(super) wait: Option<Wait>,
    /// Connections of I/O queues, also of those that are gone for the host and not yet for us.
    pub(super) connections: u32,
    /// Keep-alive timeout, milliseconds; 0: none.
    pub(super) kato_ms: u32,
    /// When the host was last heard.
    pub(super) heard_ns: u64,
    /// When it was connected or disabled.
    pub(super) disabled_ns: u64,
    pub(super) queues: BTreeMap<u16, Queue>,
    pub(super) features: Features,
    pub(super) events: Events,
    pub(super) errors: VecDeque<ErrorEntry>,
    pub(super) error_count: u64,
    /// Time with commands outstanding on I/O queues.
    pub(super) busy_ns: u64,
}

impl Controller {
    /// Enabled and not shut down: it takes commands.
    pub fn is_ready(&self) -> bool {
        let state = self.csts & (CSTS_READY | CSTS_SHUTDOWN_MASK);
        self.cc & CC_ENABLE != 0 && state == CSTS_READY && self.wait.is_none()
    }

    /// Its I/O queues.
    pub fn queues(&self) -> impl Iterator<Item = (u16, Queue)> {
        self.queues.iter().map(|(qid, queue)| (*qid, *queue))
    }

    pub(super) fn forget_queue(&mut self, qid: u16) {
        self.queues.remove(&qid);
        self.authentications.remove(&qid);
    }

    /// Keep-alive timeout, milliseconds; 0: none.
    pub fn kato_ms(&self) -> u32 {
        self.kato_ms
    }

    /// Whether it serves the discovery log instead of namespaces.
    pub fn is_discovery(&self) -> bool {
        self.discovery
    }

    /// Why it must end now, if it must.
    pub(super) fn expired(&self, now_ns: u64) -> Option<&'static str> {
        let silent = now_ns.saturating_sub(self.heard_ns);
        // Commands count (TBKAS): the timer that finds one at its end runs once more, so a host may
        // be silent for almost two timeouts (Base 2.1, 3.9.4.2). Hosts make use of that.
        if self.kato_ms != 0 && silent > 2 * u64::from(self.kato_ms) * 1_000_000 {
            return Some("keep-alive timeout");
        }
        if self.kato_ms == 0 && self.discovery && silent > IDLE_NS_MAX {
            return Some("silent discovery controller");
        }
        let disabled = now_ns.saturating_sub(self.disabled_ns);
        if !self.is_ready() && disabled > IDLE_NS_MAX {
            return Some("not enabled for two minutes");
        }
        None
    }

    /// Enters a failed command in the error log.
    pub(super) fn note_error(&mut self, sqid: u16, command: &Command, status: Status) {
        self.error_count += 1;
        if self.errors.len() == ERRORS_MAX {
            self.errors.pop_back();
        }
        let (count, cid, nsid) = (self.error_count, command.cid, command.nsid);
        self.errors.push_front(ErrorEntry { count, sqid, cid, status, nsid });
    }
}

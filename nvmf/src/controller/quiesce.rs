//! Old commands and new beginnings: a controller is not said to be reset, shut down or ready while
//! an engine may still carry out writes of queues that its host takes for gone.
//!
//! ```text
//!  CC.EN 1 -> 0   ─► queues close ─► all have left ─► CSTS.RDY 0
//!  CC.SHN         ─► queues close ─► all have left ─► CSTS.SHST complete
//!  CC.EN 0 -> 1   ─► those of the host's earlier associations have left ─► CSTS.RDY 1
//!                        └─ not within CAP.TO: CSTS.CFS, and the host begins anew
//! ```
//!
//! Sources: Base 2.1, 3.1.4.6 (CSTS), 3.5 and 3.6 (initialization, shutdown), 3.7.2 (reset).

use super::one::{CSTS_FATAL, CSTS_READY, CSTS_SHUT_DOWN, CSTS_SHUTDOWN_MASK, CSTS_SHUTTING_DOWN};
use super::property::{CC_ENABLE, CC_SHUTDOWN_MASK, READY_TIMEOUT_NS};
use super::{Controller, ControllerKey, Service};
use crate::reservation::HostId;
use crate::subsystem::{Nqn, SubsystemId};

/// What a controller is on its way to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Goal {
    Ready,
    Disabled,
    ShutDown,
}

/// A change of state that waits for queues to leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wait {
    pub goal: Goal,
    pub since_ns: u64,
}

/// An association that has ended before its queues have left.
#[derive(Debug)]
pub(super) struct Departed {
    subsystem: SubsystemId,
    host: Nqn,
    host_id: HostId,
    connections: u32,
}

impl Departed {
    /// Of a controller that ends; `None` if nothing of it is left.
    pub fn of(controller: Controller) -> Option<Departed> {
        let Controller { subsystem, host, host_id, connections, .. } = controller;
        (connections > 0).then_some(Departed { subsystem, host, host_id, connections })
    }
}

impl Service {
    /// The connection of an I/O queue is gone, and no engine works for it any more: to be called
    /// once for each I/O queue whose Connect has succeeded, also if its controller has ended since.
    pub fn queue_left(&mut self, key: ControllerKey, now_ns: u64) {
        if let Some(controller) = self.controllers.get_mut(&key) {
            let left = controller.connections.checked_sub(1);
            controller.connections = left.expect("a queue leaves once");
            return self.settle(key, now_ns);
        }
        let departed = self.departed.get_mut(&key).expect("its queues have not all left");
        departed.connections -= 1;
        if departed.connections == 0 {
            self.departed.remove(&key);
            self.settle_all(now_ns);
        }
    }

    /// Looks again at all controllers that wait.
    pub(super) fn settle_all(&mut self, now_ns: u64) {
        let waiting = self.controllers.iter().filter(|(_, c)| c.wait.is_some());
        for key in waiting.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.settle(key, now_ns);
        }
    }

    /// Begins a change of state; it may be over at once.
    pub(super) fn head_for(&mut self, key: ControllerKey, goal: Goal, now_ns: u64) {
        self.own(key).wait = Some(Wait { goal, since_ns: now_ns });
        self.settle(key, now_ns);
    }

    /// Ends a change of state if nothing is in its way any more.
    fn settle(&mut self, key: ControllerKey, now_ns: u64) {
        let controller = &self.controllers[&key];
        let Some(wait) = controller.wait else { return };
        let earlier = |departed: &Departed| {
            departed.subsystem == controller.subsystem
                && (&departed.host, departed.host_id) == (&controller.host, controller.host_id)
        };
        let free = controller.connections == 0
            && (wait.goal != Goal::Ready || !self.departed.values().any(earlier));
        let controller = self.own(key);
        if !free {
            if now_ns.saturating_sub(wait.since_ns) > READY_TIMEOUT_NS {
                controller.csts |= CSTS_FATAL;
            }
            return;
        }
        controller.wait = None;
        let shut_down = controller.cc & CC_SHUTDOWN_MASK != 0;
        match wait.goal {
            Goal::Ready => controller.csts = CSTS_READY,
            Goal::Disabled if shut_down => controller.csts = CSTS_SHUT_DOWN,
            Goal::Disabled => controller.csts = 0,
            Goal::ShutDown => {
                controller.csts &= !(CSTS_SHUTDOWN_MASK | CSTS_FATAL);
                controller.csts |= CSTS_SHUT_DOWN;
            }
        }
        if wait.goal == Goal::Disabled && !shut_down && controller.cc & CC_ENABLE != 0 {
            // The host did not wait for RDY to go to 0.
            self.head_for(key, Goal::Ready, now_ns);
        }
    }

    /// I/O queues are to end on behalf of the host; SHST says how far that is.
    pub(super) fn begin_shutdown(&mut self, key: ControllerKey, now_ns: u64) {
        self.close_queues(key);
        let controller = self.own(key);
        controller.csts |= CSTS_SHUTTING_DOWN;
        controller.disabled_ns = now_ns;
        // A reset that goes on ends in both.
        if controller.wait.is_none_or(|wait| wait.goal != Goal::Disabled) {
            self.head_for(key, Goal::ShutDown, now_ns);
        }
    }
}

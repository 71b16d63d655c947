//! Data that a host owes and does not send: buffers are kept for it, so not for ever.
//!
//! The clock of a command's data begins when [`Connection::expire`] first sees that data is due,
//! and anew whenever some has come. The specification names no fatal error for data that does not
//! come; the PDU that was due is missing, so it is a sequence error.

use crate::wire::pdu::FES_SEQUENCE;

use super::receive::crime;
use super::slots::Stage;
use super::{Connection, SlotId};

/// The longest that data under way, or asked for with an R2T, may not move, nanoseconds. Hosts give
/// a command up after as long.
pub const STALL_NS_MAX: u64 = 30_000_000_000;

/// Where a command's data stood when it last moved, as far as is known.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    received: u32,
    since_ns: Option<u64>,
}

impl Connection {
    /// Ends the connection if data that a host owes has not moved for [`STALL_NS_MAX`]: a sequence
    /// error. To be called once a second or so; costs nothing if no data is due.
    pub fn expire(&mut self, now_ns: u64) {
        if self.is_over() || self.in_flight() == self.running() {
            return;
        }
        let stalled = |conn: &mut Connection, id: SlotId| {
            let slot = conn.slots.get_mut(id);
            let due = match slot.stage {
                Stage::CapsuleData => true,
                // Before the R2T has been sent it is we who are late.
                Stage::Transfer => slot.asked,
                _ => false,
            };
            let received = slot.received;
            let progress = &mut slot.progress;
            match progress.since_ns {
                Some(since_ns) if due && progress.received == received => {
                    now_ns.saturating_sub(since_ns) > STALL_NS_MAX
                }
                _ => {
                    *progress = Progress { received, since_ns: due.then_some(now_ns) };
                    false
                }
            }
        };
        for id in self.slots.ids() {
            if stalled(self, id) {
                let what = "the data of a command has not come";
                return self.fail(crime(FES_SEQUENCE, 0, what));
            }
        }
    }
}

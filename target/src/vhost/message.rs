//! What a session (control thread) says to its export (reactor), and how it hears back.
//!
//! Everything that takes memory is made by the session and travels in the message; everything that
//! is to be freed travels back in the reply.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::eventfd::EventFd;
use super::features::Negotiated;
use super::queue::Queue;
use super::vring::{Fault, RingSpans};
use crate::mem::guest::GuestMemory;

/// The reactor's end of an answer that is given once. Sending never waits.
#[derive(Debug)]
pub struct Reply<T>(SyncSender<T>);

impl<T> Reply<T> {
    /// A reply and where it will arrive.
    pub fn pair() -> (Reply<T>, Receiver<T>) {
        let (sender, receiver) = sync_channel(1);
        (Reply(sender), receiver)
    }

    /// Answers. If nobody waits any more the answer is dropped here.
    pub fn send(self, value: T) {
        let _ = self.0.try_send(value);
    }
}

/// Which of a queue's event descriptors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// From the guest: there is work.
    Kick,
    /// To the guest: work is done.
    Call,
    /// To the front-end: the ring is broken.
    Error,
}

/// A queue that is no longer served. Dropped by the session, which frees its memory.
#[derive(Debug)]
pub struct StoppedQueue {
    /// For GET_VRING_BASE: where the ring stands.
    pub base: u32,
    /// Why it had stopped by itself before, if it had.
    pub fault: Option<Fault>,
    /// What is left of it; `None` if it was not running.
    pub queue: Option<Box<Queue>>,
}

/// A message to an export. The reactor gives it to [`super::BlkExport::message`] unread.
#[derive(Debug)]
pub enum ExportMsg {
    /// A new memory table; rings of running queues move along. `None` for a queue: it is not in
    /// the new memory and stops. Answered when no request uses the old table any more.
    Memory {
        /// The table.
        memory: Arc<GuestMemory>,
        /// Where each running queue is in it.
        rings: Vec<(u16, Option<RingSpans>)>,
        /// Answered once the old table is out of use.
        done: Reply<()>,
    },
    /// What the driver accepted.
    Features(Negotiated),
    /// The driver switched the write cache. Answered at once, so that what it asks for next comes
    /// after it.
    WriteCache {
        /// On, or every write is durable before it is done.
        on: bool,
        /// Answered at once.
        done: Reply<()>,
    },
    /// The disk has another size. Answered at once: only then the guest may hear of it, and ask for
    /// what is new.
    Resize {
        /// Bytes.
        bytes: u64,
        /// Answered at once.
        done: Reply<()>,
    },
    /// Serve a queue. Answered with the queue if one of that index is still running.
    Start {
        /// The queue, ready.
        queue: Box<Queue>,
        /// `Err` gives it back.
        done: Reply<Result<(), Box<Queue>>>,
    },
    /// Take nothing more from a queue. Answered when all it had taken is returned to the guest.
    Stop {
        /// Index of the queue.
        queue: u16,
        /// The front-end will be told where the ring stands, so the in-flight log has no more say.
        retire_log: bool,
        /// Answered once drained.
        done: Reply<StoppedQueue>,
    },
    /// SET_VRING_ENABLE.
    Enable {
        /// Index of the queue.
        queue: u16,
        /// Serve it or leave it alone.
        enabled: bool,
        /// Answered at once, so that the front-end's next step comes after it.
        done: Reply<()>,
    },
    /// Another event descriptor for a running queue. Answered with the old one.
    Event {
        /// Index of the queue.
        queue: u16,
        /// Which.
        kind: EventKind,
        /// The new one; `None` if there is to be none.
        event: Option<EventFd>,
        /// Gives the old one back.
        done: Reply<Option<EventFd>>,
    },
}

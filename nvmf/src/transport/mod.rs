//! One NVMe/TCP connection, one queue pair: bytes in, commands out; answers in, bytes out.
//!
//! ```text
//!  receive_slices ─► bytes ─► received ─► header ─┬─► slot ─► next_command ─► (whoever serves it)
//!                                │                │                                │
//!                                └─ data straight into the slot's buffer           ▼
//!  transmit ◄─ iovecs ◄─ PDU headers, data slices ◄─ queue ◄─────────────────── respond
//!      └─ transmitted ─► slot free, buffer back to the pool
//! ```
//!
//! Each turn of whoever drives it: receive, [`Connection::received`]; [`Connection::next_command`]
//! until there is none; [`Connection::respond`] for what is done; [`Connection::transmit`], send,
//! [`Connection::transmitted`]; [`Connection::resume`] if it [`Connection::is_paused`] (then look
//! for commands again).
//!
//! - Nothing is allocated after [`Connection::set_sq`] (the pool makes a buffer at its first use),
//!   nothing grows with what the host does.
//! - Data is copied once at most: what came with a header into the receive buffer, to its buffer.
//! - Until [`Connection::set_sq`] one command is parsed at a time: a host that goes on before its
//!   Connect is answered waits.
//! - Fused commands come out of [`Connection::next_command`] one right after the other, once both
//!   are complete. One that comes out alone has no other half.
//! - A fatal error ([`Connection::fatal`]) ends parsing; what was answered before is still sent,
//!   then the termination request, then [`Connection::is_closed`]. The driver gives it a deadline.

mod greeting;
mod incoming;
mod input;
mod limits;
mod receive;
mod send;
mod slots;
mod stall;

use std::collections::VecDeque;
use std::io::IoSlice;

pub use crate::SlotId;
use crate::pool::{Buffer, Claim, Pool, Share};
use crate::wire::{Command, Completion, Direction};

pub use greeting::{GREETING_BYTES, Greeting, greeting};
use incoming::Incoming;
use input::Input;
pub use limits::{ADMIN_IN_CAPSULE, DEPTH_MAX, Fault, Limits};
use send::Output;
use slots::{Slots, Stage};
pub use stall::STALL_NS_MAX;

/// Commands in flight before the queue is connected.
const SLOTS_FIRST: u16 = 2;
/// Bytes of the receive buffer before the queue is connected: the longest header fits often.
const RECEIVE_FIRST: usize = 4096;

/// How far the connection has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Waits for the ICReq.
    New,
    /// Digests and alignments are agreed on.
    Open,
    /// Ended by the driver.
    Closed,
}

/// What is agreed on with ICReq and ICResp.
#[derive(Clone, Copy, Debug, Default)]
struct Agreed {
    header_digest: bool,
    data_digest: bool,
    /// Alignment that the host asks for (HPDA).
    hpda: u8,
}

/// What the next bytes are.
#[derive(Clone, Copy, Debug)]
enum Expect {
    Header,
    Data(Incoming),
    Digest(Incoming),
}

/// Why parsing has stopped before the end of what came in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pause {
    /// In-capsule data and no buffer for it.
    Buffer,
    /// The command before it is not answered yet, see [`Connection::set_sq`].
    Turn,
}

/// Submission queue.
#[derive(Clone, Copy, Debug)]
struct Queue {
    size: u16,
    head: u16,
    flow_control: bool,
    /// Parse a command only when none is in flight.
    one_by_one: bool,
}

/// An empty vector in the memory of one that was used before: [`Connection::transmit`] borrows the
/// connection as long as the slices live, this makes room for the next turn without allocating.
pub fn recycle<'a>(mut slices: Vec<IoSlice<'_>>) -> Vec<IoSlice<'a>> {
    slices.clear();
    // Nothing is left to be mapped; the standard library collects in place.
    slices.into_iter().map(|_| IoSlice::new(&[])).collect()
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    limits: Limits,
    state: State,
    agreed: Agreed,
    queue: Queue,
    input: Input,
    expect: Expect,
    pause: Option<Pause>,
    slots: Slots,
    /// Commands that wait for a buffer before their data is asked for, in order.
    waiting: VecDeque<SlotId>,
    output: Output,
    fault: Option<Fault>,
    share: Option<Share>,
}

impl Connection {
    /// A connection nothing has come in on yet.
    ///
    /// # Panics
    /// The limits make no sense.
    pub fn new(limits: Limits) -> Connection {
        limits.check();
        Connection {
            limits,
            state: State::New,
            agreed: Agreed::default(),
            queue: Queue { size: SLOTS_FIRST, head: 0, flow_control: true, one_by_one: true },
            input: Input::new(RECEIVE_FIRST),
            expect: Expect::Header,
            pause: None,
            slots: Slots::new(SLOTS_FIRST),
            waiting: VecDeque::with_capacity(usize::from(SLOTS_FIRST)),
            output: Output::new(SLOTS_FIRST),
            fault: None,
            share: None,
        }
    }

    /// Takes a place in the pool whose buffers it will use; false if the pool has none left. To be
    /// called before anything is received, and again after [`Connection::leave`].
    #[must_use]
    pub fn join(&mut self, pool: &mut Pool) -> bool {
        assert!(pool.bytes_max() >= self.limits.data_max as usize, "buffers hold a command's data");
        if self.share.is_none() {
            self.share = pool.join(self.limits.buffers);
        }
        self.share.is_some()
    }

    /// Gives its place in the pool up, to move to another thread.
    ///
    /// # Panics
    /// It is not quiet.
    pub fn leave(&mut self, pool: &mut Pool) {
        assert!(self.is_quiet(), "no command is in flight");
        if let Some(share) = self.share.take() {
            pool.leave(share);
        }
    }

    /// No command in flight and nothing to send: it may move to another thread.
    pub fn is_quiet(&self) -> bool {
        self.in_flight() == 0 && !self.wants_send()
    }

    /// Size of the submission queue and whether the host wants flow control: to be called when a
    /// Connect succeeds, before it is answered. Allocates for so many commands. From then on
    /// commands come many at a time.
    ///
    /// # Panics
    /// The size is below 2 or above [`DEPTH_MAX`], or more commands are in flight.
    pub fn set_sq(&mut self, size: u16, flow_control: bool) {
        assert!((2..=DEPTH_MAX).contains(&size), "{size} entries");
        assert!(self.in_flight() <= usize::from(size));
        let head = self.queue.head % size;
        self.queue = Queue { size, head, flow_control, one_by_one: false };
        let slots = size.max(SLOTS_FIRST);
        self.slots.grow(slots);
        self.slots.track_cids();
        self.waiting.reserve_exact(usize::from(slots) - self.waiting.len());
        self.output.grow(slots);
        self.input.grow(self.limits.receive_bytes);
    }

    /// Whether only one command is to be parsed at a time, for a queue that is connected and not
    /// yet authenticated. Before [`Connection::set_sq`] it is so.
    pub fn set_one_by_one(&mut self, one_by_one: bool) {
        self.queue.one_by_one = one_by_one;
    }

    /// The next complete command, with its data if it has any to the controller.
    pub fn next_command(&mut self) -> Option<SlotId> {
        if self.is_over() { None } else { self.slots.next_ready() }
    }

    /// The command in a slot.
    pub fn command(&self, slot: SlotId) -> &Command {
        &self.slots.get(slot).command
    }

    /// The command in flight with this identifier: what an Abort names.
    pub fn find(&self, cid: u16) -> Option<SlotId> {
        self.slots.by_cid(cid)
    }

    /// Bytes of data the command came with, or at most wants.
    pub fn data_len(&self, slot: SlotId) -> u32 {
        self.slots.get(slot).data_len
    }

    /// Which way its data goes.
    pub fn direction(&self, slot: SlotId) -> Direction {
        self.slots.get(slot).command.direction()
    }

    /// The command's buffer, if it has one.
    pub fn data(&self, slot: SlotId) -> Option<&Buffer> {
        self.slots.get(slot).buffer.as_ref()
    }

    /// The command's buffer, if it has one.
    pub fn data_mut(&mut self, slot: SlotId) -> Option<&mut Buffer> {
        self.slots.get_mut(slot).buffer.as_mut()
    }

    /// A buffer on this connection's account, to be attached or given back; `None` if none can be
    /// had now.
    pub fn take_buffer(&mut self, len: u32, pool: &mut Pool) -> Option<Buffer> {
        let share = self.share.as_mut().expect("the connection has joined the pool");
        pool.take_for(share, len as usize, Claim::Other)
    }

    /// Takes back a buffer of [`Connection::take_buffer`] that was not attached, before the command
    /// that it was for is answered.
    pub fn give_buffer(&mut self, buffer: Buffer, pool: &mut Pool) {
        let share = self.share.as_mut().expect("a buffer's connection has a share");
        pool.give_from(share, buffer);
    }

    /// Gives a command that runs a buffer for its answer. It goes back to the pool when the answer
    /// has been sent.
    ///
    /// # Panics
    /// The command does not run, or has a buffer.
    pub fn attach(&mut self, slot: SlotId, buffer: Buffer) {
        let slot = self.slots.get_mut(slot);
        assert!(slot.stage == Stage::Running && slot.buffer.is_none(), "{slot:?}");
        slot.buffer = Some(buffer);
    }

    /// Ends a command. `data_len` bytes of its buffer go to the host first (0: none); with an error
    /// status none do. The transport fills in the identifier and, with flow control, the queue
    /// head.
    ///
    /// # Panics
    /// The command does not run, or the data is more than it asked for or its buffer holds.
    pub fn respond(&mut self, slot: SlotId, answer: Completion, data_len: u32) {
        self.slots.answered(slot);
        let entry = self.slots.get_mut(slot);
        entry.answer = answer;
        entry.answer_len = if answer.status.is_ok() { data_len } else { 0 };
        if entry.answer_len > 0 {
            let held = entry.buffer.as_ref().map_or(0, Buffer::capacity);
            assert!(entry.command.direction() == Direction::ToHost, "{:?}", entry.command);
            assert!(data_len <= entry.data_len && data_len as usize <= held, "{data_len} bytes");
        }
        if !self.is_over() {
            self.output.push_answer(slot);
        }
    }

    /// A command that runs may be answered late or never (an event request): its identifier is not
    /// guarded any more. Some hosts forget such commands when they shut down, and use the
    /// identifier for another.
    pub fn park(&mut self, slot: SlotId) {
        self.slots.disown_cid(slot);
    }

    /// Ends a command that runs without an answer, since its host has forgotten it.
    ///
    /// # Panics
    /// It does not run.
    pub fn forget(&mut self, slot: SlotId, pool: &mut Pool) {
        self.slots.answered(slot);
        self.queue.head = (self.queue.head + 1) % self.queue.size;
        self.end_slot(slot, pool);
    }

    /// The connection's bytes that can go now, in order, after what `out` has. It holds no more
    /// than some 200 slices and [`Limits::transmit_bytes`] (more by one PDU) at a time.
    pub fn transmit<'a>(&'a mut self, out: &mut Vec<IoSlice<'a>>) {
        self.encode();
        self.output.slices(&self.slots, out);
    }

    /// So many bytes have been sent. Answers that are out give their buffers back, and commands of
    /// this connection that wait for one get them.
    ///
    /// # Panics
    /// More bytes than [`Connection::transmit`] gave out.
    pub fn transmitted(&mut self, bytes: usize, pool: &mut Pool) {
        if self.state == State::Closed {
            return self.close(pool);
        }
        let mut left = bytes;
        while let Some(ended) = self.output.advance(&mut left) {
            self.end_slot(ended, pool);
        }
        assert!(left == 0, "no more bytes are sent than there were");
        self.feed(pool);
    }

    /// There are bytes to send.
    pub fn wants_send(&self) -> bool {
        self.state != State::Closed && !self.output.is_empty()
    }

    /// Parsing has stopped for want of a buffer, or since the command before is not answered yet.
    /// [`Connection::resume`] goes on.
    pub fn is_paused(&self) -> bool {
        self.pause.is_some()
    }

    /// A command waits for a buffer: [`Connection::resume`] when the pool has some again.
    pub fn wants_buffer(&self) -> bool {
        self.pause == Some(Pause::Buffer) || !self.waiting.is_empty()
    }

    /// What ended the connection.
    pub fn fatal(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// Nothing comes in or goes out any more: the socket can be closed.
    pub fn is_closed(&self) -> bool {
        match self.fault {
            _ if self.state == State::Closed => true,
            Some(Fault::Peers { .. }) => true,
            Some(Fault::Ours { .. }) => self.output.is_empty(),
            None => false,
        }
    }

    /// ICReq and ICResp have been exchanged.
    pub fn is_initialized(&self) -> bool {
        self.state == State::Open
    }

    /// Whether header digests and data digests are on.
    pub fn digests(&self) -> (bool, bool) {
        (self.agreed.header_digest, self.agreed.data_digest)
    }

    /// Commands in flight, from their capsule to the last byte of their answer.
    pub fn in_flight(&self) -> usize {
        self.slots.in_flight()
    }

    /// Commands handed out by [`Connection::next_command`] and not answered.
    pub fn running(&self) -> usize {
        self.slots.running()
    }

    /// Ends the connection: nothing is received or sent any more. Buffers go back except those of
    /// commands that run; each of these is still to be answered, then this called again. When none
    /// runs it has also left the pool, and may be dropped.
    pub fn close(&mut self, pool: &mut Pool) {
        self.state = State::Closed;
        self.output.clear();
        self.waiting.clear();
        self.slots.forget_order();
        self.expect = Expect::Header;
        for slot in self.slots.ids() {
            if !matches!(self.slots.get(slot).stage, Stage::Free | Stage::Running) {
                self.end_slot(slot, pool);
            }
        }
        if self.in_flight() == 0 {
            self.leave(pool);
        }
    }

    fn end_slot(&mut self, slot: SlotId, pool: &mut Pool) {
        if let Some(buffer) = self.slots.end(slot) {
            let share = self.share.as_mut().expect("a buffer's connection has a share");
            pool.give_from(share, buffer);
        }
    }

    /// Nothing is parsed any more.
    fn is_over(&self) -> bool {
        self.fault.is_some() || self.state == State::Closed
    }
}

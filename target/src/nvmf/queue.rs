//! One I/O queue on its reactor: the link, the commands on it, and what they wait for.
//!
//! ```text
//!  link ─► command ─► IoQueue ─┬─ work ─► buffer? ─► job (given to the group) ─► work_done ─┐
//!    ▲                         └─ forward ─► service thread ─► reply                        │
//!    └──────────────── response ◄───────────────────────────────────────────────────────────┘
//! ```
//!
//! A queue that is to end takes nothing new, but stays until its jobs are done: engines write into
//! its buffers.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use lamina_bdev::Status;
use lamina_nvmf::SlotId;
use lamina_nvmf::controller::{Reply, Usage};
use lamina_nvmf::io::{IoQueue, Memory, Step, Work, WorkOp};
use lamina_nvmf::pool::{Buffer, Pool};
use lamina_nvmf::subsystem::NsTable;
use lamina_nvmf::transport::Fault;
use lamina_nvmf::wire::opcode::fabrics;

use super::devices::{Job, Origin};
use super::link::{Link, data_of};
use super::message::{Adopted, ConnectionId, QueueShared, ServiceMsg};
use super::stats::GroupStats;
use super::usage::{self, QueueUsage};

/// How far a Disconnect has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Departure {
    /// There is none.
    None,
    /// The service thread has it; nothing new begins.
    Asked(SlotId),
    /// Answered: the connection ends when that is sent.
    Answered,
}

/// An I/O queue.
pub struct Queue {
    /// Its connection.
    pub id: ConnectionId,
    /// The socket and the protocol's state.
    pub link: Link,
    /// It is on the group's list of those to look at.
    pub active: bool,
    reactor: usize,
    place: u32,
    io: IoQueue<Buffer>,
    table: Arc<NsTable>,
    shared: Arc<QueueShared>,
    /// Jobs given and not done.
    in_flight: u32,
    /// Work that waits for a buffer.
    waiting: VecDeque<Work>,
    /// Answers of the service thread that wait for a buffer.
    replies: VecDeque<(SlotId, Reply)>,
    forwards: VecDeque<ServiceMsg>,
    /// Commands that the service thread has.
    forwarded: Vec<SlotId>,
    /// Tables to acknowledge when nothing is in flight; nothing new begins before that.
    draining: Vec<Option<u64>>,
    acknowledged: VecDeque<u64>,
    /// Commands may have been held back by what has been drained since.
    drained: bool,
    /// Commands answered since the last send.
    completed: u64,
    /// What commands have moved.
    tally: Usage,
    usage: Arc<QueueUsage>,
    departure: Departure,
    closing: bool,
}

impl Queue {
    /// A queue that has just come to `reactor`, at `place` of its group.
    pub fn new(adopted: Adopted, reactor: usize, place: u32) -> Queue {
        Queue {
            id: adopted.id,
            link: adopted.link,
            active: false,
            reactor,
            place,
            io: IoQueue::new(adopted.entries, adopted.data_bytes_max),
            table: adopted.table,
            shared: adopted.shared,
            in_flight: 0,
            waiting: VecDeque::new(),
            replies: VecDeque::new(),
            forwards: VecDeque::new(),
            forwarded: Vec::new(),
            draining: Vec::new(),
            acknowledged: VecDeque::new(),
            drained: false,
            completed: 0,
            tally: Usage::default(),
            usage: adopted.usage,
            departure: Departure::None,
            closing: false,
        }
    }

    /// Takes what has come and starts it: jobs go to `given`. True if there was anything.
    pub fn receive(&mut self, now_ns: u64, pool: &mut Pool, given: &mut Vec<Job>) -> bool {
        let mut worked = self.retry(pool, given);
        if self.closing {
            return worked;
        }
        self.drained = false;
        worked |= self.link.receive(pool);
        if self.link.broken {
            self.close(pool);
            return true;
        }
        worked | self.start(now_ns, pool, given)
    }

    /// Begins the commands that are complete.
    fn start(&mut self, now_ns: u64, pool: &mut Pool, given: &mut Vec<Job>) -> bool {
        let mut started = false;
        while self.draining.is_empty() && self.departure == Departure::None {
            let connection = &mut self.link.connection;
            let Some(slot) = connection.next_command() else { break };
            let (data, len) = (data_of(connection, slot), connection.data_len(slot));
            let step = self.io.start(slot, connection.command(slot), len, data, &self.table);
            self.step(slot, step, pool, given);
            started = true;
        }
        if started {
            self.shared.hear(now_ns);
        }
        started
    }

    /// Tries again what waited for a buffer.
    fn retry(&mut self, pool: &mut Pool, given: &mut Vec<Job>) -> bool {
        let before = self.waiting.len() + self.replies.len();
        for _ in 0..self.replies.len() {
            let Some((slot, reply)) = self.replies.pop_front() else { break };
            self.reply(slot, reply, pool);
        }
        for _ in 0..self.waiting.len() {
            let Some(work) = self.waiting.pop_front() else { break };
            if !self.give(work, pool, given) {
                self.waiting.push_front(work);
                break;
            }
        }
        self.waiting.len() + self.replies.len() < before
    }

    /// Does what the queue of commands wants next.
    fn step(&mut self, slot: SlotId, step: Step, pool: &mut Pool, given: &mut Vec<Job>) {
        match step {
            Step::Submit(work) => {
                // In line: what came first gets the next buffer. What needs none goes on, since it
                // may hold those that are waited for.
                let in_line = !self.waiting.is_empty() && self.needs_buffer(&work);
                if in_line || !self.give(work, pool, given) {
                    self.waiting.push_back(work);
                }
            }
            Step::Forward => {
                let connection = &self.link.connection;
                let data = data_of(connection, slot).to_vec();
                let (command, data_len) = (*connection.command(slot), connection.data_len(slot));
                self.forwarded.push(slot);
                if command.fctype() == Some(fabrics::DISCONNECT) {
                    self.departure = Departure::Asked(slot);
                }
                let id = self.id;
                let command = ServiceMsg::Command { id, slot, command, data, data_len };
                self.forwards.push_back(command);
            }
            Step::Wait => {}
        }
        self.step_responses(pool);
    }

    fn step_responses(&mut self, pool: &mut Pool) {
        while let Some(response) = self.io.next_response() {
            if let Some(buffer) = self.io.take_scratch(response.slot) {
                self.link.connection.give_buffer(buffer, pool);
            }
            // Also when it is closed: the slot is free again then.
            let connection = &mut self.link.connection;
            let (slot, status) = (response.slot, response.completion.status);
            let opcode = connection.command(slot).opcode;
            usage::count(&mut self.tally, opcode, status, connection.data_len(slot).into());
            connection.respond(slot, response.completion, response.data_len);
            self.completed += 1;
        }
    }

    fn needs_buffer(&self, work: &Work) -> bool {
        match work.memory {
            Memory::None => false,
            Memory::Data(slot) => self.link.connection.data(slot).is_none(),
            Memory::Scratch => !self.io.has_scratch(work.slot),
        }
    }

    /// Makes a job of work. False: there is no buffer for it.
    fn give(&mut self, work: Work, pool: &mut Pool, given: &mut Vec<Job>) -> bool {
        let connection = &mut self.link.connection;
        let addr = match work.memory {
            Memory::None => 0,
            Memory::Data(slot) => {
                if work.op == WorkOp::Read && connection.data(slot).is_none() {
                    let Some(buffer) = connection.take_buffer(work.len as u32, pool) else {
                        return false;
                    };
                    connection.attach(slot, buffer);
                }
                let buffer = connection.data_mut(slot).expect("a command with data has a buffer");
                assert!(buffer.capacity() as u64 >= work.len, "the buffer holds the data");
                buffer.addr_mut().expose_provenance()
            }
            Memory::Scratch => {
                if !self.io.has_scratch(work.slot) {
                    let buffer = connection.take_buffer(work.len as u32, pool);
                    let Some(buffer) = buffer else { return false };
                    self.io.lend(work.slot, buffer);
                }
                let buffer = self.io.scratch_mut(work.slot).expect("it was lent by now");
                assert!(buffer.capacity() as u64 >= work.len, "the buffer holds the data");
                buffer.addr_mut().expose_provenance()
            }
        };
        self.in_flight += 1;
        given.push(Job {
            origin: Origin { reactor: self.reactor, connection: self.place, slot: work.slot },
            device: work.device,
            op: work.op,
            gate: work.gate,
            offset: work.offset,
            len: work.len,
            fua: work.fua,
            addr,
        });
        true
    }

    /// A job has ended.
    pub fn work_done(
        &mut self,
        slot: SlotId,
        status: Status,
        pool: &mut Pool,
        given: &mut Vec<Job>,
    ) {
        self.in_flight = self.in_flight.checked_sub(1).expect("a job ends once");
        self.go_on(slot, status, pool, given);
    }

    fn go_on(&mut self, slot: SlotId, status: Status, pool: &mut Pool, given: &mut Vec<Job>) {
        let data = data_of(&self.link.connection, slot);
        let step = self.io.done(slot, status, data, &self.table);
        self.step(slot, step, pool, given);
    }

    /// The service thread's answer to a command.
    pub fn reply(&mut self, slot: SlotId, reply: Reply, pool: &mut Pool) {
        if self.closing {
            return;
        }
        if self.departure == Departure::Asked(slot) {
            // The last answer of the queue: whatever came before it is answered first.
            let earlier = self.in_flight > 0 || !self.waiting.is_empty();
            if earlier || self.forwarded.iter().any(|other| *other != slot) {
                return self.replies.push_back((slot, reply));
            }
            let well = reply.completion.status.is_ok();
            self.departure = if well { Departure::Answered } else { Departure::None };
            // A refused one has stopped what came behind it.
            self.drained |= !well;
        }
        let connection = &mut self.link.connection;
        let len = reply.data.len().min(connection.data_len(slot) as usize);
        if len > 0 {
            let Some(mut buffer) = connection.take_buffer(len as u32, pool) else {
                return self.replies.push_back((slot, reply));
            };
            buffer.as_mut_slice()[..len].copy_from_slice(&reply.data[..len]);
            connection.attach(slot, buffer);
        }
        connection.respond(slot, reply.completion, len as u32);
        self.forwarded.retain(|forwarded| *forwarded != slot);
    }

    /// Uses another table from now on; acknowledged at once, or after what is in flight.
    pub fn use_table(&mut self, table: Arc<NsTable>, drain: bool, token: Option<u64>) {
        self.table = table;
        // Also if it is to end: what is in flight still writes.
        if drain && (!self.closing || self.in_flight > 0) {
            self.draining.push(token);
        } else {
            self.acknowledged.extend(token);
        }
    }

    /// Ends the queue: nothing new begins, nothing more is sent.
    pub fn close(&mut self, pool: &mut Pool) {
        if self.closing {
            return;
        }
        self.closing = true;
        self.replies.clear();
        for slot in std::mem::take(&mut self.forwarded) {
            let status = lamina_nvmf::wire::Status::ABORTED_SQ_DELETION;
            self.link.connection.respond(slot, status.into(), 0);
        }
        self.io.close();
        // What waited for a buffer never began, and what would follow it does not begin either.
        let mut given = Vec::new();
        for work in std::mem::take(&mut self.waiting) {
            self.go_on(work.slot, Status::Detached, pool, &mut given);
        }
        while let Some(job) = given.pop() {
            self.in_flight -= 1;
            self.go_on(job.origin.slot, Status::Detached, pool, &mut given);
        }
        self.step_responses(pool);
        assert!(self.waiting.is_empty(), "nothing begins on a closed queue");
        self.link.connection.close(pool);
    }

    /// Sends what there is to send, once a turn. True if anything went.
    pub fn send(
        &mut self,
        pool: &mut Pool,
        pieces: &mut Vec<IoSlice<'static>>,
        stats: &GroupStats,
    ) -> bool {
        if self.in_flight == 0 && self.waiting.is_empty() && !self.draining.is_empty() {
            self.acknowledged.extend(self.draining.drain(..).flatten());
            self.drained = true;
        }
        if self.closing {
            return false;
        }
        let in_flight = self.link.connection.in_flight() as u32;
        if self.completed > 0 || in_flight > 0 || self.usage.is_busy() {
            self.usage.show(&self.tally, in_flight);
        }
        let sent = self.link.send(pool, pieces);
        stats.completed(std::mem::take(&mut self.completed));
        if self.departure == Departure::Answered && self.link.is_flushed() {
            self.close(pool);
        }
        // The reason of a fatal error has been sent, or cannot be: then nobody listens.
        let fatal = self.link.connection.fatal().is_some();
        if self.link.broken || fatal && (self.link.is_flushed() || !self.link.writable) {
            self.close(pool);
        }
        sent
    }

    /// The next command for the service thread.
    pub fn next_forward(&mut self) -> Option<ServiceMsg> {
        self.forwards.pop_front()
    }

    /// The next table that is in use.
    pub fn next_acknowledged(&mut self) -> Option<u64> {
        self.acknowledged.pop_front()
    }

    /// There is something to do that no edge, job or message will announce.
    pub fn wants_turn(&self) -> bool {
        if self.closing {
            return false;
        }
        let link = &self.link;
        // What waits for a buffer stops nothing that comes in: it may be the data of those that
        // hold the buffers.
        let held = !self.draining.is_empty() || self.departure != Departure::None;
        let stopped = held || link.connection.is_paused();
        self.drained || link.readable && !stopped || link.writable && link.connection.wants_send()
    }

    /// It waits for a buffer.
    pub fn is_starved(&self) -> bool {
        !self.waiting.is_empty()
            || !self.replies.is_empty()
            || !self.closing && self.link.connection.wants_buffer()
    }

    /// It is to end, and nothing uses its buffers any more.
    pub fn may_leave(&self) -> bool {
        self.closing && self.in_flight == 0
    }

    /// Ends it if the host owes data for too long. True: it has to send why.
    pub fn expire(&mut self, now_ns: u64) -> bool {
        if self.closing {
            return false;
        }
        self.link.connection.expire(now_ns);
        self.link.connection.fatal().is_some()
    }

    /// The host was told why its connection ends.
    pub fn has_reason(&self) -> bool {
        let fault = self.link.connection.fatal();
        !self.link.broken && matches!(fault, Some(Fault::Ours { .. }))
    }

    /// Gives everything back.
    pub fn retire(&mut self, pool: &mut Pool) {
        assert!(self.may_leave(), "engines may still write into its buffers");
        self.acknowledged.extend(self.draining.drain(..).flatten());
        self.link.connection.close(pool);
        assert!(self.link.connection.in_flight() == 0, "everything was answered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvmf::stream::Stream;
    use lamina_nvmf::transport::{Connection, Limits};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_queue_that_ends_is_drained_of_what_it_has_in_flight() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _host = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, peer) = listener.accept().unwrap();
        let stream = Stream::new(socket, peer);
        let mut pool = Pool::new(2, 2, 128 << 10);
        let mut link = Link::new(stream, Connection::new(Limits::default()));
        assert!(link.connection.join(&mut pool));
        let adopted = Adopted {
            id: ConnectionId(1),
            link,
            entries: 16,
            data_bytes_max: 128 << 10,
            table: Arc::default(),
            shared: Arc::default(),
            usage: Arc::default(),
        };
        let mut queue = Queue::new(adopted, 0, 0);
        // An engine has a write of it.
        queue.in_flight = 1;
        queue.close(&mut pool);
        queue.use_table(Arc::default(), true, Some(7));
        assert_eq!(queue.next_acknowledged(), None, "its host could still change a block");
        queue.in_flight = 0;
        queue.retire(&mut pool);
        assert_eq!(queue.next_acknowledged(), Some(7));
        // What has nothing in flight does no harm.
        queue.use_table(Arc::default(), true, Some(8));
        assert_eq!(queue.next_acknowledged(), Some(8));
    }
}

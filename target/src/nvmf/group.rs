//! The NVMe queues of one reactor: polled each turn.
//!
//! ```text
//!  receive:  edges ─► sockets ─► connection ─► IoQueue ─► job ─┬─ disk here: engine
//!                                                              └─ other reactor: message
//!  (the shards' turns: engines work)
//!  finish:   engines' answers ─► IoQueue ─► next job, or response ─► one send a connection
//! ```
//!
//! A connection that has nothing to do costs nothing: only those on the list of active ones are
//! looked at. It gets there by an edge of its socket, the end of a job or a message.

use std::collections::{HashMap, VecDeque};
use std::io::IoSlice;
use std::os::fd::RawFd;
use std::sync::Arc;

use lamina_bdev::Status;
use lamina_nvmf::SlotId;
use lamina_nvmf::controller::Reply;
use lamina_nvmf::pool::Pool;
use lamina_nvmf::subsystem::NsTable;

use super::devices::{Devices, Engines, Job, Origin, Place};
use super::message::{Adopted, ConnectionId, GroupMsg, Peers, ServiceMsg};
use super::poller::Poller;
use super::queue::Queue;
use super::stats::GroupStats;
use crate::log;
use crate::reactor::REACTORS_MAX;
use crate::reactor::handle::Message;

/// Room for messages that wait for room in another mailbox; it grows.
const OUTBOX_START: usize = 64;

/// Everything a reactor does for NVMe.
pub struct Group {
    reactor: usize,
    peers: Peers,
    poller: Poller,
    queues: Vec<Option<Box<Queue>>>,
    free: Vec<u32>,
    places: HashMap<ConnectionId, u32>,
    /// Queues to look at in the next turn.
    active: Vec<u32>,
    looking: Vec<u32>,
    /// Queues that wait for a buffer.
    starved: Vec<u32>,
    devices: Devices,
    pool: Pool,
    /// For other reactors and the service thread, whose mailboxes were full.
    outbox: VecDeque<Outgoing>,
    given: Vec<Job>,
    pieces: Vec<IoSlice<'static>>,
    stats: Arc<GroupStats>,
}

enum Outgoing {
    Reactor(usize, GroupMsg),
    Service(ServiceMsg),
}

impl Group {
    /// No queues yet.
    ///
    /// # Errors
    /// No epoll set.
    pub fn new(reactor: usize, peers: Peers, pool: Pool) -> std::io::Result<Group> {
        let stats = peers.reactors[reactor].nvmf_stats();
        Ok(Group {
            reactor,
            peers,
            poller: Poller::new()?,
            queues: Vec::new(),
            free: Vec::new(),
            places: HashMap::new(),
            active: Vec::new(),
            looking: Vec::new(),
            starved: Vec::new(),
            devices: Devices::new(reactor),
            pool,
            outbox: VecDeque::with_capacity(OUTBOX_START),
            given: Vec::new(),
            pieces: Vec::new(),
            stats,
        })
    }

    /// Signalled when a socket has something for us.
    pub fn fd(&self) -> RawFd {
        self.poller.fd()
    }

    /// Does what a message says.
    pub fn message(&mut self, message: GroupMsg, engines: &mut impl Engines) {
        match message {
            GroupMsg::Start(_) => unreachable!("the reactor has made the group of it"),
            GroupMsg::Adopt(adopted) => self.adopt(*adopted),
            GroupMsg::Table { id, table, drain, token } => self.table(id, table, drain, token),
            GroupMsg::Reply { id, slot, reply } => self.reply(id, slot, reply),
            GroupMsg::Close(id) => {
                if let Some(&place) = self.places.get(&id) {
                    let queue = self.queues[place as usize].as_mut().expect("as above");
                    queue.close(&mut self.pool);
                    self.activate(place);
                }
            }
            GroupMsg::Expire(now_ns) => {
                for place in 0..self.queues.len() {
                    let queue = self.queues[place].as_mut();
                    if queue.is_some_and(|queue| queue.expire(now_ns)) {
                        self.activate(place as u32);
                    }
                }
            }
            GroupMsg::AddDevice(route, added) => {
                self.devices.add(route);
                let _ = added.try_send(());
            }
            GroupMsg::RemoveDevice(key, gone) => self.devices.remove(key, gone),
            GroupMsg::Job(job) => {
                self.stats.remote_job();
                self.devices.start(job, engines);
            }
            GroupMsg::Finished(origin, status) => self.work_done(origin, status),
        }
    }

    fn queue(&mut self, place: u32) -> &mut Queue {
        self.queues[place as usize].as_mut().expect("a queue's place is its own until it is gone")
    }

    fn activate(&mut self, place: u32) {
        let queue = self.queues[place as usize].as_mut().expect("as above");
        if !queue.active {
            queue.active = true;
            self.active.push(place);
        }
    }

    fn adopt(&mut self, adopted: Adopted) {
        let id = adopted.id;
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                self.queues.push(None);
                (self.queues.len() - 1) as u32
            }
        };
        let added = self.poller.add(&adopted.link.stream, u64::from(place));
        let mut queue = Box::new(Queue::new(adopted, self.reactor, place));
        if let Err(e) = added {
            log::error(format!("a connection cannot be watched: {e}"));
            queue.close(&mut self.pool);
        } else if !queue.link.connection.join(&mut self.pool) {
            log::warn("a host's queue is closed: its reactor has as many as it can take");
            queue.close(&mut self.pool);
        }
        self.queues[place as usize] = Some(queue);
        self.places.insert(id, place);
        self.stats.queue_added();
        self.activate(place);
    }

    fn table(&mut self, id: ConnectionId, table: Arc<NsTable>, drain: bool, token: Option<u64>) {
        match self.places.get(&id) {
            Some(&place) => {
                self.queue(place).use_table(table, drain, token);
                self.activate(place);
            }
            // Gone: nothing of it can do any harm.
            None => self.acknowledge(token),
        }
    }

    fn acknowledge(&mut self, token: Option<u64>) {
        if let Some(token) = token {
            self.outbox.push_back(Outgoing::Service(ServiceMsg::Acknowledged(token)));
        }
    }

    fn reply(&mut self, id: ConnectionId, slot: SlotId, reply: Reply) {
        if let Some(&place) = self.places.get(&id) {
            let queue = self.queues[place as usize].as_mut().expect("as above");
            queue.reply(slot, reply, &mut self.pool);
            self.activate(place);
        }
    }

    fn work_done(&mut self, origin: Origin, status: Status) {
        let queue = self.queues[origin.connection as usize].as_mut().expect("as above");
        queue.work_done(origin.slot, status, &mut self.pool, &mut self.given);
        self.activate(origin.connection);
    }

    /// True if it has no queue, and nothing to pass on.
    pub fn is_unused(&self) -> bool {
        self.queues.len() == self.free.len() && self.active.is_empty() && self.outbox.is_empty()
    }

    /// Takes what hosts have sent and starts it. True if there was anything to do.
    pub fn receive(&mut self, now_ns: u64, engines: &mut impl Engines) -> bool {
        let mut worked = self.flush_outbox();
        worked |= self.devices.retry(engines);
        if self.queues.len() == self.free.len() && self.active.is_empty() {
            return worked;
        }
        worked |= self.look();
        std::mem::swap(&mut self.active, &mut self.looking);
        for at in 0..self.looking.len() {
            let place = self.looking[at];
            let queue = self.queues[place as usize].as_mut().expect("as above");
            worked |= queue.receive(now_ns, &mut self.pool, &mut self.given);
            self.start_given(engines);
        }
        // They stay on the list until the end of the turn, where they may send.
        std::mem::swap(&mut self.active, &mut self.looking);
        worked
    }

    /// Asks the kernel which sockets have something. True if any has.
    fn look(&mut self) -> bool {
        let edges = self.poller.wait(0).expect("epoll_wait on our own set");
        let mut any = false;
        for edge in edges {
            // An edge may be that of a socket closed since, and its place another's: looking at
            // that one once more does no harm.
            let Some(Some(queue)) = self.queues.get_mut(edge.id as usize) else { continue };
            queue.link.edge(edge);
            if !queue.active {
                queue.active = true;
                self.active.push(edge.id as u32);
            }
            any = true;
        }
        any
    }

    /// Starts the work that queues have given.
    fn start_given(&mut self, engines: &mut impl Engines) {
        for job in self.given.drain(..) {
            match self.devices.place(job.device) {
                // A disk that is gone is answered in the same way.
                Place::Here | Place::Gone => self.devices.start(job, engines),
                Place::Reactor(reactor) => {
                    self.outbox.push_back(Outgoing::Reactor(reactor, GroupMsg::Job(job)));
                }
            }
        }
    }

    /// Takes an engine's answer; [`Group::finish`] goes on from there.
    pub fn done(&mut self, cookie: u64, status: Status, engines: &mut impl Engines) {
        self.devices.done(cookie, status, engines);
    }

    /// Passes answers on, to hosts with one send each. True if there was anything to do.
    pub fn finish(&mut self, engines: &mut impl Engines) -> bool {
        let mut worked = false;
        while let Some((origin, status)) = self.devices.next_finished() {
            worked = true;
            if origin.reactor == self.reactor {
                self.work_done(origin, status);
                self.start_given(engines);
            } else {
                let message = GroupMsg::Finished(origin, status);
                self.outbox.push_back(Outgoing::Reactor(origin.reactor, message));
            }
        }
        std::mem::swap(&mut self.active, &mut self.looking);
        while let Some(place) = self.looking.pop() {
            worked |= self.end_turn(place);
        }
        if worked {
            // Buffers may have come back.
            while let Some(place) = self.starved.pop() {
                if self.queues[place as usize].is_some() {
                    self.activate(place);
                }
            }
        }
        self.stats.set_blocked(self.devices.blocked() as u64);
        worked | self.flush_outbox()
    }

    /// Sends, and sees whether the queue is to stay active, or at all.
    fn end_turn(&mut self, place: u32) -> bool {
        let queue = self.queues[place as usize].as_mut().expect("as above");
        queue.active = false;
        let worked = queue.send(&mut self.pool, &mut self.pieces, &self.stats);
        while let Some(command) = queue.next_forward() {
            self.outbox.push_back(Outgoing::Service(command));
        }
        while let Some(token) = queue.next_acknowledged() {
            self.outbox.push_back(Outgoing::Service(ServiceMsg::Acknowledged(token)));
        }
        if queue.may_leave() {
            self.remove(place);
            return true;
        }
        let queue = self.queues[place as usize].as_mut().expect("as above");
        if queue.wants_turn() {
            self.activate(place);
        } else if queue.is_starved() {
            self.starved.push(place);
        }
        worked
    }

    fn remove(&mut self, place: u32) {
        let mut queue = self.queues[place as usize].take().expect("as above");
        let id = queue.id;
        queue.retire(&mut self.pool);
        while let Some(token) = queue.next_acknowledged() {
            self.outbox.push_back(Outgoing::Service(ServiceMsg::Acknowledged(token)));
        }
        self.free.push(place);
        self.places.remove(&id);
        self.starved.retain(|starved| *starved != place);
        self.stats.queue_removed();
        // The host is still to read why.
        let told = queue.has_reason() && self.poller.remove(&queue.link.stream).is_ok();
        let stream = told.then(|| Box::new(queue.link.stream));
        self.outbox.push_back(Outgoing::Service(ServiceMsg::Gone(id, stream)));
    }

    /// Posts what is to be posted; what finds a full mailbox waits, in order. True if anything
    /// went.
    fn flush_outbox(&mut self) -> bool {
        if self.outbox.is_empty() {
            return false;
        }
        let mut any = false;
        let mut full = [false; REACTORS_MAX + 1];
        for _ in 0..self.outbox.len() {
            let Some(outgoing) = self.outbox.pop_front() else { break };
            let to = match outgoing {
                Outgoing::Reactor(reactor, _) => reactor,
                Outgoing::Service(_) => REACTORS_MAX,
            };
            match if full[to] { Some(outgoing) } else { self.post(outgoing) } {
                Some(back) => {
                    full[to] = true;
                    self.outbox.push_back(back);
                }
                None => any = true,
            }
        }
        any
    }

    /// Gives it back if there is no room.
    fn post(&self, outgoing: Outgoing) -> Option<Outgoing> {
        match outgoing {
            Outgoing::Reactor(reactor, message) => {
                match self.peers.reactors[reactor].try_post(Message::Nvmf(message)) {
                    Ok(()) => None,
                    Err(Message::Nvmf(message)) => Some(Outgoing::Reactor(reactor, message)),
                    Err(_) => unreachable!("what was posted comes back"),
                }
            }
            Outgoing::Service(message) => {
                self.peers.service.try_post(message).err().map(Outgoing::Service)
            }
        }
    }

    /// Called before the reactor sleeps. False: there is something to do.
    pub fn prepare_sleep(&mut self) -> bool {
        self.active.is_empty() && self.outbox.is_empty() && !self.look()
    }
}

//! One front-end's connection: the state of the protocol, and what it makes the export do.
//!
//! Runs on the export's own thread. Everything the front-end says is checked here; the reactor gets
//! finished values only. Waits for the reactor are bounded, except at the end of a connection: the
//! guest's memory may not be unmapped, nor another front-end served, before the last request on it
//! has been answered.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::eventfd::EventFd;
use super::features::{self, Negotiated};
use super::inflight::InflightLog;
use super::message::{EventKind, ExportMsg, Reply, StoppedQueue};
use super::queue::{Queue, QueueSetup};
use super::socket::Shared;
use super::vring::{QUEUE_SIZE_MAX, RingAddrs, RingSpans};
use crate::mem::guest::{GuestMemory, Region};

/// How long a front-end's message may wait for requests in flight before we give up on it.
const DRAIN_WAIT: Duration = Duration::from_secs(60);
/// How often to look whether an old memory table is out of use.
const RETIRED_POLL: Duration = Duration::from_millis(10);
/// How often a wait without a bound is mentioned in the log.
const REMIND: Duration = Duration::from_secs(10);

/// What a front-end has said of one ring.
#[derive(Debug, Default)]
struct RingState {
    size: u16,
    addrs: Option<RingAddrs>,
    base: u32,
    enabled: bool,
    started: bool,
    /// Held until the ring starts; the running queue owns them from then on.
    kick: Option<EventFd>,
    call: Option<EventFd>,
    error: Option<EventFd>,
}

/// A connection's state.
pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    offered: u64,
    accepted: u64,
    memory: Arc<GuestMemory>,
    /// Tables that a request may still use although we stopped waiting for it. The reactor's
    /// references to them are never the last ones.
    retired: Vec<Arc<GuestMemory>>,
    rings: Vec<RingState>,
    pub(super) log: Option<InflightLog>,
}

/// An error with a sentence.
pub(super) fn refuse<T>(text: impl Into<String>) -> io::Result<T> {
    Err(io::Error::other(text.into()))
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>) -> Session {
        let config = &shared.config;
        let offered = features::offered(config.readonly, config.queues_max);
        let rings = std::iter::repeat_with(RingState::default).take(config.queues_max.into());
        Session {
            offered,
            accepted: 0,
            memory: Arc::new(GuestMemory::default()),
            retired: Vec::new(),
            rings: rings.collect(),
            log: None,
            shared,
        }
    }

    /// Sends a message and waits for its answer.
    fn ask<T>(&self, make: impl FnOnce(Reply<T>) -> ExportMsg) -> io::Result<T> {
        let (reply, answer) = Reply::pair();
        (self.shared.post)(make(reply));
        match answer.recv_timeout(DRAIN_WAIT) {
            Ok(value) => Ok(value),
            Err(RecvTimeoutError::Timeout) => refuse(format!(
                "requests in flight were not done within {} seconds",
                DRAIN_WAIT.as_secs()
            )),
            Err(RecvTimeoutError::Disconnected) => refuse("the export is shutting down"),
        }
    }

    pub(super) fn offered(&self) -> u64 {
        self.offered
    }

    fn negotiated(&self) -> Negotiated {
        Negotiated::from_bits(self.accepted)
    }

    pub(super) fn is_packed(&self) -> bool {
        self.negotiated().ring.packed
    }

    /// SET_FEATURES.
    pub(super) fn accept_features(&mut self, features: u64) -> io::Result<()> {
        let unknown = features & !self.offered;
        if unknown != 0 {
            return refuse(format!("features {unknown:#x} were accepted but never offered"));
        }
        let running = self.rings.iter().any(|ring| ring.started);
        if running && Negotiated::from_bits(features) != self.negotiated() {
            return refuse("features changed while queues are running");
        }
        self.accepted = features;
        // Without the protocol's own feature bit rings are enabled from the start.
        if features & features::PROTOCOL_FEATURES == 0 {
            self.rings.iter_mut().for_each(|ring| ring.enabled = true);
        }
        self.shared.update_status(|status| status.features = features);
        (self.shared.post)(ExportMsg::Features(self.negotiated()));
        Ok(())
    }

    /// Back to before negotiation (RESET_DEVICE).
    pub(super) fn reset(&mut self) -> io::Result<()> {
        self.stop_all()?;
        self.accepted = 0;
        self.shared.set_write_cache(self.shared.config.write_cache);
        self.shared.update_status(|status| status.features = 0);
        (self.shared.post)(ExportMsg::Features(self.negotiated()));
        Ok(())
    }

    /// Adds a region to the guest's memory.
    pub(super) fn add_region(&mut self, region: Arc<Region>) -> io::Result<()> {
        let memory = self.memory.with(region).map_err(io::Error::other)?;
        self.use_memory(memory)
    }

    pub(super) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Makes `memory` the guest's memory, rings of running queues included, and waits until nothing
    /// uses the table before it.
    pub(super) fn use_memory(&mut self, memory: GuestMemory) -> io::Result<()> {
        self.retired.retain(|memory| Arc::strong_count(memory) > 1);
        let memory = Arc::new(memory);
        let ring_features = self.negotiated().ring;
        let rings = (0u16..)
            .zip(&self.rings)
            .filter(|(_, ring)| ring.started)
            .map(|(index, ring)| {
                let locate =
                    |addrs: &RingAddrs| RingSpans::locate(&memory, addrs, ring.size, ring_features);
                (index, ring.addrs.as_ref().and_then(locate))
            })
            .collect();
        let new = memory.clone();
        let old = std::mem::replace(&mut self.memory, memory);
        let result = self.ask(|done| ExportMsg::Memory { memory: new, rings, done });
        if result.is_err() {
            self.retired.push(old);
        }
        result
    }

    fn ring(&mut self, index: u32) -> io::Result<&mut RingState> {
        let count = self.rings.len();
        match self.rings.get_mut(index as usize) {
            Some(ring) => Ok(ring),
            None => refuse(format!("queue {index} does not exist, there are {count}")),
        }
    }

    /// A ring that is not running, as size, addresses and base can only be set then.
    fn resting_ring(&mut self, index: u32) -> io::Result<&mut RingState> {
        let ring = self.ring(index)?;
        if ring.started {
            return refuse(format!("queue {index} is running and cannot be changed"));
        }
        Ok(ring)
    }

    pub(super) fn set_size(&mut self, index: u32, size: u32) -> io::Result<()> {
        match u16::try_from(size) {
            Ok(size) if (1..=QUEUE_SIZE_MAX).contains(&size) => {
                self.resting_ring(index)?.size = size;
                Ok(())
            }
            _ => refuse(format!("queue size {size} is not possible: 1 to {QUEUE_SIZE_MAX}")),
        }
    }

    pub(super) fn set_addrs(&mut self, index: u32, addrs: RingAddrs) -> io::Result<()> {
        let ring = self.ring(index)?;
        if ring.started && ring.addrs == Some(addrs) {
            return Ok(());
        }
        self.resting_ring(index)?.addrs = Some(addrs);
        Ok(())
    }

    pub(super) fn set_base(&mut self, index: u32, base: u32) -> io::Result<()> {
        self.resting_ring(index)?.base = base;
        Ok(())
    }

    /// GET_VRING_BASE: stops the queue and says where it stands.
    pub(super) fn take_base(&mut self, index: u32) -> io::Result<u32> {
        if self.ring(index)?.started {
            let queue = index as u16;
            let stopped = self.ask(|done| ExportMsg::Stop { queue, retire_log: true, done })?;
            self.put_to_rest(queue, stopped);
        }
        Ok(self.ring(index)?.base)
    }

    /// Takes note of a stopped queue. What it owned is freed here.
    fn put_to_rest(&mut self, index: u16, stopped: StoppedQueue) {
        let ring = &mut self.rings[usize::from(index)];
        ring.started = false;
        if let Some(mut queue) = stopped.queue {
            ring.base = stopped.base;
            ring.call = queue.set_event(EventKind::Call, None);
            ring.error = queue.set_event(EventKind::Error, None);
        }
        self.count_running();
    }

    fn count_running(&self) {
        let running = self.rings.iter().filter(|ring| ring.started).count();
        self.shared.update_status(|status| status.queues = running);
    }

    fn stop_all(&mut self) -> io::Result<()> {
        for index in 0..self.rings.len() as u32 {
            self.take_base(index)?;
        }
        Ok(())
    }

    /// SET_VRING_KICK, CALL, ERR. A kick starts the ring.
    pub(super) fn set_event(
        &mut self,
        index: u32,
        kind: EventKind,
        file: Option<File>,
    ) -> io::Result<()> {
        let event = file.map(EventFd::from_peer).transpose()?;
        let ring = self.ring(index)?;
        if ring.started {
            let queue = index as u16;
            self.ask(|done| ExportMsg::Event { queue, kind, event, done })?;
            return Ok(());
        }
        match kind {
            EventKind::Call => ring.call = event,
            EventKind::Error => ring.error = event,
            EventKind::Kick => {
                ring.kick = event;
                return self.start(index);
            }
        }
        Ok(())
    }

    fn start(&mut self, index: u32) -> io::Result<()> {
        let features = self.negotiated().ring;
        let memory = self.memory.clone();
        let log = self.log.clone();
        let ring = self.ring(index)?;
        let (Some(addrs), size @ 1..) = (ring.addrs, ring.size) else {
            return refuse(format!("queue {index} was started before its size and addresses"));
        };
        if !features.packed && !size.is_power_of_two() {
            return refuse(format!("the size of split queue {index}, {size}, is no power of two"));
        }
        let Some(spans) = RingSpans::locate(&memory, &addrs, size, features) else {
            return refuse(format!("queue {index} does not lie in the guest's memory"));
        };
        let setup = QueueSetup {
            index: index as u16,
            size,
            features,
            spans,
            base: ring.base,
            log: log.as_ref(),
            kick: ring.kick.take(),
            call: ring.call.take(),
            error: ring.error.take(),
            enabled: ring.enabled,
        };
        let queue = Queue::new(setup)
            .map_err(|fault| io::Error::other(format!("queue {index} cannot start: {fault}")))?;
        // If no answer comes the queue may run all the same, and has to be stopped at the end.
        self.ring(index)?.started = true;
        if self.ask(|done| ExportMsg::Start { queue, done })?.is_err() {
            self.ring(index)?.started = false;
            return refuse(format!("queue {index} still has requests of an earlier connection"));
        }
        self.count_running();
        Ok(())
    }

    pub(super) fn enable(&mut self, index: u32, enabled: bool) -> io::Result<()> {
        let ring = self.ring(index)?;
        ring.enabled = enabled;
        if ring.started {
            let queue = index as u16;
            self.ask(|done| ExportMsg::Enable { queue, enabled, done })?;
        }
        Ok(())
    }

    /// The configuration space as it is now.
    pub(super) fn config_space(&self) -> [u8; features::CONFIG_BYTES] {
        features::config_space(
            self.shared.capacity_bytes.load(Ordering::Acquire),
            self.shared.write_cache.load(Ordering::Acquire),
            self.shared.config.queues_max,
        )
    }

    /// The connection has ended: stops and drains everything, however long it takes.
    pub(super) fn close(&mut self) {
        for index in 0..self.rings.len() as u16 {
            if !self.rings[usize::from(index)].started {
                continue;
            }
            let (done, answer) = Reply::pair();
            (self.shared.post)(ExportMsg::Stop { queue: index, retire_log: false, done });
            if let Some(stopped) = self.wait_for_ever(&answer) {
                self.put_to_rest(index, stopped);
            }
        }
        let (done, answer) = Reply::pair();
        let memory = Arc::new(GuestMemory::default());
        (self.shared.post)(ExportMsg::Memory { memory: memory.clone(), rings: Vec::new(), done });
        if self.wait_for_ever(&answer).is_some() {
            self.memory = memory;
        }
        // Tables we once stopped waiting for: the reactor must not be the last to hold one.
        while self.retired.iter().any(|memory| Arc::strong_count(memory) > 1) {
            std::thread::sleep(RETIRED_POLL);
        }
    }

    /// Waits for the reactor; `None` if it is gone, and with it whatever used the memory.
    fn wait_for_ever<T>(&self, answer: &Receiver<T>) -> Option<T> {
        let begun = Instant::now();
        loop {
            match answer.recv_timeout(REMIND) {
                Ok(value) => return Some(value),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => (self.shared.log)(&format!(
                    "{}: the front-end is gone, requests are still in flight after {} s",
                    self.shared.socket.display(),
                    begun.elapsed().as_secs()
                )),
            }
        }
    }
}

//! The reactor's side of one export: polls its rings, feeds the engine, answers the guest.

use std::os::fd::{AsRawFd, RawFd};

use lamina_bdev::{Engine, Handle, Status};

use super::blk::Device;
use super::epochs::Epochs;
use super::features::Negotiated;
use super::message::{ExportMsg, StoppedQueue};
use super::queue::{BATCH_MAX, Queue, Submit};
use super::vring::Fault;

/// Most queues of one export.
pub const QUEUES_MAX: u16 = 256;
/// Bytes of the serial number a guest can ask for.
pub const SERIAL_BYTES: usize = 20;
/// Bits of a cookie below the export's index: queue and slot.
const COOKIE_SHIFT: u32 = 48;

/// What an export is made with. The session ([`super::serve`]) gets the same.
#[derive(Clone, Debug)]
pub struct ExportConfig {
    /// The attached disk or snapshot.
    pub handle: Handle,
    /// Number of this export on its reactor: the top 16 bits of its cookies.
    pub index: u16,
    /// Size of the disk, bytes.
    pub capacity_bytes: u64,
    /// Writes are refused.
    pub readonly: bool,
    /// Serial number shown to the guest, zero-padded.
    pub serial: [u8; SERIAL_BYTES],
    /// Queues a front-end may use, 1 to [`QUEUES_MAX`].
    pub queues_max: u16,
    /// Whether the write cache is on before the driver says anything. If off, every write is
    /// durable before it is done.
    pub write_cache: bool,
}

impl ExportConfig {
    /// A serial number from text: its first [`SERIAL_BYTES`] bytes.
    pub fn serial_from(text: &str) -> [u8; SERIAL_BYTES] {
        let mut serial = [0; SERIAL_BYTES];
        for (place, byte) in serial.iter_mut().zip(text.bytes()) {
            *place = byte;
        }
        serial
    }
}

/// A queue stopped because of what its guest or front-end did: worth a line in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueStopped {
    /// Index of the queue.
    pub queue: u16,
    /// Why.
    pub fault: Fault,
}

impl std::fmt::Display for QueueStopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "queue {} stopped: {}; reset the guest's device to use it again",
            self.queue, self.fault
        )
    }
}

/// What was taken from queues.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Took {
    /// Requests.
    pub chains: usize,
    /// Queues that had any.
    pub queues: usize,
    /// Some queue fills as fast, or nearly, as it is emptied, or waits for the engine.
    pub more: bool,
}

/// One export, owned and polled by one reactor. Nothing here blocks, locks or allocates, except on
/// the way of a control message.
///
/// A turn is: [`message`](Self::message) for each message, [`poll`](Self::poll), the engine's turn
/// with [`complete`](Self::complete) for each of its answers, [`end_turn`](Self::end_turn).
#[derive(Debug)]
pub struct BlkExport {
    cookie_base: u64,
    device: Device,
    epochs: Epochs,
    /// By index; most are `None`.
    queues: Vec<Option<Box<Queue>>>,
    /// Indices of those that are not, so that a turn touches only these.
    running: Vec<u16>,
    in_flight: u32,
    kick_changes: u64,
    /// The guests were asked for kicks.
    asleep: bool,
    stopped: Vec<QueueStopped>,
}

impl AsMut<BlkExport> for BlkExport {
    fn as_mut(&mut self) -> &mut BlkExport {
        self
    }
}

impl BlkExport {
    /// An export without a guest yet.
    ///
    /// # Panics
    /// If `queues_max` is not 1 to [`QUEUES_MAX`].
    pub fn new(config: ExportConfig) -> BlkExport {
        assert!((1..=QUEUES_MAX).contains(&config.queues_max));
        let queues = usize::from(config.queues_max);
        BlkExport {
            cookie_base: u64::from(config.index) << COOKIE_SHIFT,
            device: Device {
                handle: config.handle,
                capacity_bytes: config.capacity_bytes,
                readonly: config.readonly,
                serial: config.serial,
                negotiated: Negotiated::default(),
                write_cache: config.write_cache,
            },
            epochs: Epochs::new(),
            queues: std::iter::repeat_with(|| None).take(queues).collect(),
            running: Vec::with_capacity(queues),
            in_flight: 0,
            kick_changes: 0,
            asleep: false,
            stopped: Vec::with_capacity(queues),
        }
    }

    /// Takes what guests made available, a bounded batch from each queue, and submits it. True if
    /// anything was taken.
    pub fn poll(&mut self, engine: &mut Engine) -> bool {
        self.poll_into(engine)
    }

    /// The same, into whatever takes requests.
    pub fn poll_into(&mut self, engine: &mut impl Submit) -> bool {
        let mut chains = 0;
        for place in 0..self.queues_running() {
            chains += self.poll_queue(place, engine, BATCH_MAX).chains;
        }
        chains > 0
    }

    /// Queues that run: those at places `0..` of [`BlkExport::poll_queue`], until the turn ends.
    pub fn queues_running(&self) -> usize {
        self.running.len()
    }

    /// True if the queue at that place had several requests when it was last looked at.
    pub fn is_crowded(&self, place: usize) -> bool {
        let queue = &self.queues[usize::from(self.running[place])];
        queue.as_ref().is_some_and(|queue| queue.is_crowded())
    }

    /// Takes what one queue's guest made available, at most `batch` chains, and submits it; says
    /// how many were taken.
    pub fn poll_queue(&mut self, place: usize, engine: &mut impl Submit, batch: usize) -> Took {
        let index = self.running[place];
        let Some(queue) = &mut self.queues[usize::from(index)] else { return Took::default() };
        let before = queue.in_flight();
        let polled = queue.poll(&self.device, &mut self.epochs, self.cookie_base, engine, batch);
        self.in_flight = self.in_flight - before + queue.in_flight();
        queue.note_taken(polled.taken);
        let took = Took {
            chains: polled.taken,
            queues: usize::from(polled.taken > 0),
            more: polled.taken > 1 && queue.waiting() * 4 >= polled.taken * 3 || queue.is_held_up(),
        };
        // Memory that was lost reads as zeroes, which looks like any fault, or none.
        let fault = match self.epochs.current().damaged() {
            true => queue.fail(Fault::MemoryLost),
            false => polled.fault.and_then(|fault| queue.fail(fault)),
        };
        if let Some(fault) = fault {
            self.stopped.push(QueueStopped { queue: index, fault });
        }
        took
    }

    /// Takes an engine's answer to one of this export's requests.
    ///
    /// # Panics
    /// If the request is not in flight: the engine answers each exactly once.
    pub fn complete(&mut self, cookie: u64, status: Status) {
        assert_eq!(cookie & (0xffff << COOKIE_SHIFT), self.cookie_base, "another export's cookie");
        let (queue, slot) = ((cookie >> 16) as u32, cookie as u16);
        let queue = self
            .queues
            .get_mut((queue & 0xffff) as usize)
            .and_then(Option::as_mut)
            .expect("a queue stays until its requests are answered");
        let before = queue.in_flight();
        queue.complete(slot, status, &mut self.epochs);
        self.in_flight = self.in_flight - before + queue.in_flight();
    }

    /// Publishes what is finished: one store a queue, at most one call.
    pub fn publish(&mut self) {
        for index in &self.running {
            if let Some(queue) = &mut self.queues[usize::from(*index)] {
                queue.publish();
            }
        }
    }

    /// Publishes what was finished since the last time: one store a queue, at most one call. Hands
    /// back queues that were stopped and are drained now.
    pub fn end_turn(&mut self) {
        let mut position = 0;
        while let Some(index) = self.running.get(position).copied() {
            let place = &mut self.queues[usize::from(index)];
            let Some(queue) = place else { unreachable!("running queues exist") };
            queue.publish();
            if !queue.is_drained() {
                position += 1;
                continue;
            }
            self.running.swap_remove(position);
            self.kick_changes += 1;
            if let Some(queue) = place.take() {
                queue.hand_back();
            }
        }
    }

    /// Does what a session asks for.
    pub fn message(&mut self, msg: ExportMsg) {
        match msg {
            ExportMsg::Memory { memory, rings, done } => {
                for (index, spans) in rings {
                    let Some(queue) = self.queue(index) else { continue };
                    match spans {
                        Some(spans) => queue.remap(spans),
                        None => self.stop_by_fault(index, Fault::RingUnmapped),
                    }
                }
                self.epochs.replace(memory, done);
            }
            ExportMsg::Features(negotiated) => self.device.negotiated = negotiated,
            ExportMsg::WriteCache { on, done } => {
                self.device.write_cache = on;
                done.send(());
            }
            ExportMsg::Resize { bytes, done } => {
                self.device.capacity_bytes = bytes;
                done.send(());
            }
            ExportMsg::Start { queue, done } => match self.start(queue) {
                Ok(()) => done.send(Ok(())),
                Err(queue) => done.send(Err(queue)),
            },
            ExportMsg::Stop { queue, retire_log, done } => match self.queue(queue) {
                Some(queue) => queue.stop(done, retire_log),
                None => done.send(StoppedQueue { base: 0, fault: None, queue: None }),
            },
            ExportMsg::Enable { queue, enabled, done } => {
                if let Some(queue) = self.queue(queue) {
                    queue.set_enabled(enabled);
                }
                done.send(());
            }
            ExportMsg::Event { queue, kind, event, done } => {
                self.kick_changes += 1;
                match self.queue(queue) {
                    Some(queue) => done.send(queue.set_event(kind, event)),
                    None => done.send(event),
                }
            }
        }
    }

    fn queue(&mut self, index: u16) -> Option<&mut Queue> {
        self.queues.get_mut(usize::from(index))?.as_deref_mut()
    }

    fn stop_by_fault(&mut self, index: u16, fault: Fault) {
        if let Some(fault) = self.queue(index).and_then(|queue| queue.fail(fault)) {
            self.stopped.push(QueueStopped { queue: index, fault });
        }
    }

    fn start(&mut self, mut queue: Box<Queue>) -> Result<(), Box<Queue>> {
        let index = queue.index();
        match self.queues.get_mut(usize::from(index)) {
            Some(place @ None) => {
                queue.begin();
                *place = Some(queue);
                self.running.push(index);
                self.kick_changes += 1;
                Ok(())
            }
            _ => Err(queue),
        }
    }

    /// Asks all guests for kicks, then looks once more. False: work is waiting, do not sleep (the
    /// guests were told that we poll again).
    #[must_use]
    pub fn prepare_sleep(&mut self) -> bool {
        self.want_kicks(true);
        let waiting = self
            .running
            .iter()
            .filter_map(|index| self.queues[usize::from(*index)].as_ref())
            .any(|queue| queue.has_work());
        if waiting {
            self.want_kicks(false);
        }
        self.asleep = !waiting;
        !waiting
    }

    /// After a sleep, whatever ended it: takes the wish for kicks back and polls from here on. The
    /// kicks themselves stay uncounted in their eventfds, a system call each saved: whoever sleeps
    /// waits for edges ([`kick_fds`](Self::kick_fds)).
    pub fn woken(&mut self) {
        if std::mem::take(&mut self.asleep) {
            self.want_kicks(false);
        }
    }

    fn want_kicks(&mut self, wanted: bool) {
        for index in &self.running {
            if let Some(queue) = &mut self.queues[usize::from(*index)] {
                queue.want_kicks(wanted);
            }
        }
    }

    /// Descriptors to wait for while asleep, edge-triggered: nobody reads them. They belong to the
    /// export: valid until [`kick_changes`](Self::kick_changes) changes.
    pub fn kick_fds(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.running
            .iter()
            .filter_map(|index| self.queues[usize::from(*index)].as_ref())
            .filter_map(|queue| queue.kick().map(AsRawFd::as_raw_fd))
    }

    /// Changes whenever [`kick_fds`](Self::kick_fds) may have. A descriptor that has left the list
    /// may be closed (and its number reused) at any time after.
    pub fn kick_changes(&self) -> u64 {
        self.kick_changes
    }

    /// Requests taken from guests and not answered yet.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// True if nothing is in flight.
    pub fn idle(&self) -> bool {
        self.in_flight == 0
    }

    /// Number of queues being served (or drained).
    pub fn queues(&self) -> usize {
        self.running.len()
    }

    /// The next queue that was stopped by a fault, for the log.
    pub fn next_stopped(&mut self) -> Option<QueueStopped> {
        self.stopped.pop()
    }
}

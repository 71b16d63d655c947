//! One connection to a vhost-user-blk socket: the crate `virtio-driver`, which knows nothing of
//! Lamina, polling one split ring.

use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use virtio_driver::{
    QueueNotifier, VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue,
    VirtioBlkReqBuf, VirtioFeatureFlags, VirtioTransport,
};

use crate::clock;
use crate::memory::Memory;
use crate::store::Verb;

/// Descriptors: three for each of 64 requests, and then a power of two.
const QUEUE_SIZE: u16 = 256;
/// Polls between looks at the clock while nothing comes.
const POLLS: u32 = 4096;
/// A request that takes longer is not going to be answered.
const PATIENCE_NS: u64 = 20_000_000_000;

/// A connected queue. The queue goes before the transport that owns its memory.
pub struct Connection {
    queue: VirtioBlkQueue<'static, u32>,
    notifier: Box<dyn QueueNotifier>,
    transport: Box<VhostUser<VirtioBlkConfig, VirtioBlkReqBuf>>,
    in_flight: u32,
    submitted: bool,
    polls: u32,
    /// When the last request was answered, or the first look at the clock since.
    quiet_since: Option<u64>,
}

impl Connection {
    /// Connects and lends `memory`, which must be shared, to the target.
    ///
    /// # Errors
    /// Nobody listens, or the target does not do what the client needs.
    pub fn open(socket: &Path, memory: &Memory) -> Result<Connection> {
        let path = socket.to_str().context("the socket's path is not text")?;
        let features = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
        let blk = VirtioBlkFeatureFlags::FLUSH | VirtioBlkFeatureFlags::MQ;
        let transport = VhostUser::new(path, features.bits() | blk.bits());
        let mut transport = Box::new(transport.with_context(|| format!("connecting to {path}"))?);
        let mut queues = VirtioBlkQueue::setup_queues(&mut *transport, 1, QUEUE_SIZE)?;
        let mut queue = queues.pop().context("no queue was set up")?;
        queue.set_used_notif_enabled(false);
        let file = memory.file().context("memory of a client must be shared")?;
        let (addr, len) = (memory.addr(0, memory.len()), memory.len());
        transport.map_mem_region(addr, len, file.as_raw_fd(), 0)?;
        let notifier = transport.get_submission_notifier(0);
        Ok(Connection {
            queue,
            notifier,
            transport,
            in_flight: 0,
            submitted: false,
            polls: 0,
            quiet_since: None,
        })
    }

    /// Bytes of the disk, as the target says.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn disk_bytes(&self) -> Result<u64> {
        Ok(u64::from(self.transport.get_config()?.capacity) * 512)
    }

    /// Puts a request on the ring; `slot` comes back from [`Connection::turn`].
    ///
    /// # Errors
    /// The ring is full.
    pub fn submit(&mut self, verb: Verb, slot: u32, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match verb {
            Verb::Read => self.queue.read(offset, buffer, slot)?,
            Verb::Write => self.queue.write(offset, buffer, slot)?,
        }
        self.in_flight += 1;
        self.submitted = true;
        Ok(())
    }

    /// The same for a flush.
    ///
    /// # Errors
    /// The ring is full.
    pub fn flush(&mut self, slot: u32) -> Result<()> {
        self.queue.flush(slot)?;
        self.in_flight += 1;
        self.submitted = true;
        Ok(())
    }

    /// Requests that are not answered.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Kicks if need be and takes what is done.
    ///
    /// # Errors
    /// A request failed, or none is answered any more.
    pub fn turn(&mut self, done: &mut Vec<u32>) -> Result<()> {
        if std::mem::take(&mut self.submitted) && self.queue.avail_notif_needed() {
            self.notifier.notify()?;
        }
        let before = done.len();
        for completion in self.queue.completions() {
            ensure!(completion.ret == 0, "a request failed with error {}", -completion.ret);
            done.push(completion.context);
        }
        self.in_flight -= (done.len() - before) as u32;
        if done.len() > before || self.in_flight == 0 {
            self.quiet_since = None;
            return Ok(());
        }
        std::hint::spin_loop();
        self.polls = self.polls.wrapping_add(1);
        if self.polls.is_multiple_of(POLLS) {
            let now = clock::wall_ns();
            let since = *self.quiet_since.get_or_insert(now);
            if now - since > PATIENCE_NS {
                bail!("{} requests have no answer after 20 s", self.in_flight);
            }
        }
        Ok(())
    }
}

/// Connects as soon as somebody listens.
///
/// # Errors
/// Nobody does within ten seconds, or the connection does not come about.
pub fn open_soon(socket: &Path, memory: &Memory) -> Result<Connection> {
    let end = clock::wall_ns() + 10_000_000_000;
    while !socket.exists() {
        if clock::wall_ns() > end {
            return Err(anyhow!("no socket {} after 10 s", socket.display()));
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Connection::open(socket, memory)
}

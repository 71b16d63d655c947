//! What control threads hold of a reactor and of a shard on it: post, wait (bounded), answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use lamina_bdev::{Command, Engine, Error, ErrorKind, Reply};

use super::client_io::IoJob;
use super::counters::{Counters, Snapshot};
use super::mailbox::Mailbox;
use super::shard::{RetiredShard, Shard, ShardKey};
use crate::nvmf::message::GroupMsg;
use crate::nvmf::stats::GroupStats;
use crate::vhost::{BlkExport, ExportMsg};

/// A question that takes no I/O.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// A command waits for base I/O, a consistency point at most.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// Recovery reads a journal and writes a consistency point.
const OPEN_TIMEOUT: Duration = Duration::from_secs(300);

/// What runs on a reactor to look at an engine.
pub type Look = Box<dyn FnOnce(&Engine) + Send>;

/// What a reactor is told.
pub enum Message {
    /// Drive this shard from now on.
    AddShard(Box<Shard>),
    /// Let it go when nothing is in flight.
    RemoveShard(ShardKey, SyncSender<RetiredShard>),
    /// Run a command on its engine.
    Command(ShardKey, Command, SyncSender<Result<Reply, Error>>),
    /// Run a request of a control thread.
    Io(ShardKey, Box<IoJob>),
    /// Look at its engine.
    Look(ShardKey, Look),
    /// Poll this export from now on.
    AddExport(ShardKey, u16, Box<BlkExport>),
    /// Pass a message on to an export.
    Export(ShardKey, u16, ExportMsg),
    /// Let the export go when nothing is in flight.
    RemoveExport(ShardKey, u16, SyncSender<Option<Box<BlkExport>>>),
    /// For its NVMe queues.
    Nvmf(GroupMsg),
    /// End the thread.
    Stop,
}

/// One reactor, seen from outside.
pub struct ReactorHandle {
    pub(super) mailbox: Arc<Mailbox<Message>>,
    pub(super) counters: Arc<Counters>,
    pub(super) core: u32,
    pub(super) index: usize,
    /// Shards it drives: control's own count, to place the next one.
    pub(super) shards: AtomicUsize,
    pub(super) nvmf: Arc<GroupStats>,
}

impl ReactorHandle {
    /// A handle of something that another host drives: it takes what is in `mailbox`.
    pub fn of_host(index: usize, core: u32, mailbox: Arc<Mailbox<Message>>) -> ReactorHandle {
        let (counters, shards, nvmf) = (Arc::default(), AtomicUsize::new(0), Arc::default());
        ReactorHandle { mailbox, counters, core, index, shards, nvmf }
    }

    /// The core it is pinned to.
    pub fn core(&self) -> u32 {
        self.core
    }

    /// Its place among the reactors.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Shards it drives.
    pub fn shards(&self) -> usize {
        self.shards.load(Ordering::Relaxed)
    }

    /// Its counters now.
    pub fn counters(&self) -> Snapshot {
        self.counters.snapshot()
    }

    /// Counters of its NVMe queues.
    pub fn nvmf_stats(&self) -> Arc<GroupStats> {
        self.nvmf.clone()
    }

    /// Puts a message in its mailbox without waiting, from another reactor.
    ///
    /// # Errors
    /// Gives the message back if there is no room now.
    #[expect(clippy::result_large_err, reason = "what was posted comes back whole")]
    pub fn try_post(&self, message: Message) -> Result<(), Message> {
        self.mailbox.try_post(message)
    }

    /// Puts a message in its mailbox.
    ///
    /// # Errors
    /// `Io` if the reactor takes no messages.
    pub fn post(&self, message: Message) -> Result<(), Error> {
        self.mailbox.post(message).map_err(|_| {
            let why = format!("reactor {} takes no messages; restart laminad", self.index);
            Error::new(ErrorKind::Io, why)
        })
    }

    fn wait<T>(&self, answer: &Receiver<T>, timeout: Duration) -> Result<T, Error> {
        answer.recv_timeout(timeout).map_err(|e| match e {
            RecvTimeoutError::Timeout => {
                let (index, seconds) = (self.index, timeout.as_secs());
                let why = format!("reactor {index} has not answered for {seconds} s; try again");
                Error::new(ErrorKind::Io, why)
            }
            RecvTimeoutError::Disconnected => {
                Error::new(ErrorKind::Busy, "the store or export is not open (any more)")
            }
        })
    }
}

/// One shard, seen from outside.
#[derive(Clone)]
pub struct ShardHandle {
    reactor: Arc<ReactorHandle>,
    key: ShardKey,
}

/// A shard whose engine is being opened.
#[must_use = "nobody else takes it off its reactor if that fails"]
pub struct Opening {
    shard: ShardHandle,
    answer: Receiver<Result<(), Error>>,
    end: Instant,
}

impl Opening {
    /// Waits until the engine is ready.
    ///
    /// # Errors
    /// What opening failed with; the shard is off its reactor then, or goes when its base answers.
    pub fn wait(self) -> Result<ShardHandle, Error> {
        let Opening { shard, answer, end } = self;
        let left = end.saturating_duration_since(Instant::now());
        let opened = answer.recv_timeout(left).unwrap_or_else(|_| {
            let seconds = OPEN_TIMEOUT.as_secs();
            let why = format!("the store is not ready after {seconds} s: its device may hang");
            Err(Error::new(ErrorKind::Io, why))
        });
        if opened.is_err() {
            // It is of no use, but it is there and holds the lock.
            let _ = shard.close();
        }
        opened.map(|()| shard)
    }
}

impl ShardHandle {
    /// The shard `key` that is (or is going to be) on `reactor`.
    pub fn new(reactor: Arc<ReactorHandle>, key: ShardKey) -> ShardHandle {
        ShardHandle { reactor, key }
    }

    /// The reactor it is on.
    pub fn reactor(&self) -> &ReactorHandle {
        &self.reactor
    }

    /// Its name on the reactor.
    pub fn key(&self) -> ShardKey {
        self.key
    }

    /// Hands a shard over; its engine opens by itself.
    ///
    /// # Errors
    /// `Io` if the reactor takes no messages.
    pub fn begin(
        self,
        make: impl FnOnce(ShardKey, SyncSender<Result<(), Error>>) -> Shard,
    ) -> Result<Opening, Error> {
        let (opened, answer) = sync_channel(1);
        self.reactor.post(Message::AddShard(Box::new(make(self.key, opened))))?;
        self.reactor.shards.fetch_add(1, Ordering::Relaxed);
        Ok(Opening { shard: self, answer, end: Instant::now() + OPEN_TIMEOUT })
    }

    /// Takes the shard off its reactor and drops it on this thread.
    ///
    /// # Errors
    /// `Io` if I/O in flight does not end; `Busy` if the shard is not there.
    pub fn close(&self) -> Result<(), Error> {
        let (gone, answer) = sync_channel(1);
        self.reactor.post(Message::RemoveShard(self.key, gone))?;
        self.reactor.shards.fetch_sub(1, Ordering::Relaxed);
        drop(self.reactor.wait(&answer, COMMAND_TIMEOUT)?);
        Ok(())
    }

    /// Runs a command; when this returns `Ok` it is durable.
    ///
    /// # Errors
    /// The engine's, or `Io` if there is no answer in time (it may still happen).
    pub fn command(&self, command: Command) -> Result<Reply, Error> {
        let (reply, answer) = sync_channel(1);
        self.reactor.post(Message::Command(self.key, command, reply))?;
        self.reactor.wait(&answer, COMMAND_TIMEOUT)?
    }

    /// Starts a request; its answer comes through the channel that it carries.
    ///
    /// # Errors
    /// `Io` if the reactor takes no messages.
    pub fn start_io(&self, job: Box<IoJob>) -> Result<(), Error> {
        self.reactor.post(Message::Io(self.key, job))
    }

    /// Runs `look` on the reactor, between two turns: it must be short.
    ///
    /// # Errors
    /// `Busy` if the shard is gone, `Io` without an answer in time.
    pub fn query<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Engine) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = sync_channel(1);
        let look: Look = Box::new(move |engine| {
            let _ = reply.try_send(look(engine));
        });
        self.reactor.post(Message::Look(self.key, look))?;
        self.reactor.wait(&answer, QUERY_TIMEOUT)
    }

    /// Puts an export on the shard.
    ///
    /// # Errors
    /// `Io` if the reactor takes no messages.
    pub fn add_export(&self, index: u16, export: Box<BlkExport>) -> Result<(), Error> {
        self.reactor.post(Message::AddExport(self.key, index, export))
    }

    /// Passes a message on to an export.
    ///
    /// # Errors
    /// `Io` if the reactor takes no messages.
    pub fn export_message(&self, index: u16, message: ExportMsg) -> Result<(), Error> {
        self.reactor.post(Message::Export(self.key, index, message))
    }

    /// Takes an export off when its requests are done, and drops it on this thread. Nothing happens
    /// if it is not there.
    ///
    /// # Errors
    /// `Io` if requests do not end; `Busy` if the shard is gone.
    pub fn remove_export(&self, index: u16) -> Result<(), Error> {
        let (gone, answer) = sync_channel(1);
        self.reactor.post(Message::RemoveExport(self.key, index, gone))?;
        drop(self.reactor.wait(&answer, COMMAND_TIMEOUT)?);
        Ok(())
    }
}

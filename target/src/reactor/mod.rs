//! Reactors: one pinned thread a core, polling its shards, asleep when there is nothing to poll.
//!
//! ```text
//!          ┌────────────────────────────────────────────────────────────┐
//!          ▼                                                            │
//!   mailbox ─► NVMe queues ─► shard turns ─► NVMe answers ─┐
//!          ┌───────────────────────────────────────────────┘
//!          └───────────────┬─ worked, or idle for less than idle_us ───┤
//!                           └─ prepare_sleep: guests and rings signal   │
//!                              again; look once more ─┬─ work ──────────┤
//!                                                     └─ epoll_wait ────┘
//!                                 kicks, completions, mailbox, deadline
//! ```
//!
//! No kick is lost: signals are turned on first, then everything is looked at once more, and an
//! eventfd signalled in between ends the wait at once. Exports whose kicks have ended a sleep are
//! served before the other hundred are looked at: a guest that wakes us waits for nobody's rings.

pub mod affinity;
pub mod client_io;
pub mod clock;
pub mod counters;
pub mod epoll;
pub mod feed;
pub mod handle;
pub mod idle;
pub(crate) mod look;
pub mod mailbox;
mod past_outbox;
mod rest;
pub mod shard;
pub mod space_watch;

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;

use lamina_bdev::{Error, ErrorKind, Status};

use crate::log;
use crate::nvmf::group::Group;
use crate::nvmf::message::GroupMsg;
use counters::{Counters, Snapshot};
use epoll::Epoll;
use handle::{Message, ReactorHandle};
use idle::{IdlePolicy, Served, timeout_ms};
use mailbox::Mailbox;
use shard::{Shard, ShardKey, Shards};

/// Messages in a mailbox.
const MAILBOX_CAPACITY: usize = 256;
/// Messages taken in one turn.
const MESSAGES_PER_TURN_MAX: usize = 32;
/// Looks at the rings of a shard in one turn.
const LOOKS_MAX: usize = 16;
/// Reactors of one daemon.
pub const REACTORS_MAX: usize = 256;

/// Stands for what is not a kick in the data of the epoll set.
const NO_KICK: u64 = u64::MAX;

/// The position of the shard and the index of the export whose kick this is.
fn kicked(data: u64) -> Option<(usize, u16)> {
    (data != NO_KICK).then_some(((data >> 16) as usize, data as u16))
}

/// How a reactor is to run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The core to stay on.
    pub core: u32,
    /// Microseconds of fruitless polling before sleep.
    pub idle_us: u32,
    /// Never sleep.
    pub busy_poll: bool,
}

/// A reactor, on its own thread.
struct Reactor {
    index: usize,
    mailbox: Arc<Mailbox<Message>>,
    shared: Arc<Counters>,
    counted: Snapshot,
    #[expect(clippy::vec_box, reason = "shards are large and come boxed in their message")]
    shards: Vec<Box<Shard>>,
    /// Its NVMe queues; `None` before the NVMe service has begun.
    group: Option<Box<Group>>,
    nvmf_dones: Vec<(u64, Status)>,
    epoll: Epoll,
    /// What is watched, and what its signals are told as; kept from rebuild to rebuild of the set.
    fds: Vec<(RawFd, u64)>,
    /// Shards (by position) and exports whose kicks have ended a sleep.
    kicked: Vec<(usize, u16)>,
    /// The set of shards has changed since the epoll set was made.
    shards_changed: bool,
    idle: IdlePolicy,
    stopping: bool,
}

/// Starts reactor number `index`.
///
/// # Errors
/// `Io`: no eventfd, no epoll set, no thread.
pub fn start(
    index: usize,
    settings: Settings,
) -> Result<(Arc<ReactorHandle>, JoinHandle<()>), Error> {
    assert!(index < REACTORS_MAX);
    let failed =
        |e: std::io::Error| Error::new(ErrorKind::Io, format!("reactor {index} cannot start: {e}"));
    let reactor = Reactor::new(index, &settings).map_err(failed)?;
    let (mailbox, shared) = (reactor.mailbox.clone(), reactor.shared.clone());
    let thread = std::thread::Builder::new().name(format!("reactor{index}"));
    let core = settings.core;
    let thread = thread.spawn(move || {
        if let Err(e) = affinity::pin_to(core) {
            log::warn(format!("reactor {index} is not pinned to core {core}: {e}"));
        }
        reactor.run();
    });
    let (shards, nvmf) = (AtomicUsize::new(0), Arc::default());
    let handle = ReactorHandle { mailbox, counters: shared, core, index, shards, nvmf };
    Ok((Arc::new(handle), thread.map_err(failed)?))
}

impl Reactor {
    fn new(index: usize, settings: &Settings) -> std::io::Result<Reactor> {
        Ok(Reactor {
            index,
            mailbox: Arc::new(Mailbox::new(MAILBOX_CAPACITY)?),
            shared: Arc::default(),
            counted: Snapshot::default(),
            shards: Vec::with_capacity(16),
            group: None,
            nvmf_dones: Vec::with_capacity(256),
            epoll: Epoll::new()?,
            fds: Vec::with_capacity(64),
            kicked: Vec::with_capacity(epoll::EVENTS_MAX),
            shards_changed: true,
            idle: IdlePolicy::new(settings.idle_us, settings.busy_poll),
            stopping: false,
        })
    }

    fn run(mut self) {
        let mut now = clock::now_ns();
        while !self.stopping {
            let worked = self.turn(now);
            let end = clock::now_ns();
            let spent = end.saturating_sub(now);
            now = end;
            self.counted.turns += 1;
            if worked {
                self.counted.busy_ns += spent;
                self.idle.worked(now);
            } else {
                self.counted.idle_ns += spent;
                if self.idle.wants_sleep(now) {
                    (now, _) = self.rest(now);
                }
            }
            self.shared.publish(&self.counted);
        }
    }

    /// Sleeps, if there is really nothing to do, and notes how that ended; the time then.
    fn rest(&mut self, now: u64) -> (u64, Option<Served>) {
        let slept = self.sleep(now);
        let woke = clock::now_ns();
        self.counted.idle_ns += woke.saturating_sub(now);
        self.idle.slept(slept, woke);
        (woke, slept)
    }

    /// One turn over everything. True if there was anything to do.
    fn turn(&mut self, now_ns: u64) -> bool {
        let mut worked = false;
        for _ in 0..MESSAGES_PER_TURN_MAX {
            let Some(message) = self.mailbox.take() else { break };
            self.handle(message);
            worked = true;
        }
        if let Some(group) = &mut self.group {
            worked |= group.receive(now_ns, &mut Shards(&mut self.shards));
        }
        let mut leaving = false;
        // Who has the reactor to himself may look at his rings more than once.
        let others = self.group.as_ref().is_some_and(|group| !group.is_unused());
        let looks = if self.shards.len() == 1 && !others { LOOKS_MAX } else { 1 };
        let mailbox = &self.mailbox;
        for shard in &mut self.shards {
            worked |= shard.turn_with(now_ns, looks, || mailbox.is_empty());
            leaving |= shard.may_leave();
            shard.take_nvmf_dones(&mut self.nvmf_dones);
        }
        if let Some(group) = &mut self.group {
            let engines = &mut Shards(&mut self.shards);
            for (cookie, status) in self.nvmf_dones.drain(..) {
                group.done(cookie, status, engines);
            }
            worked |= group.finish(engines);
        }
        if leaving {
            self.retire();
        }
        worked
    }

    fn retire(&mut self) {
        while let Some(at) = self.shards.iter().position(|shard| shard.may_leave()) {
            self.shards.swap_remove(at).retire();
            self.shards_changed = true;
        }
    }

    fn shard(&mut self, key: ShardKey) -> Option<&mut Shard> {
        self.shards.iter_mut().find(|shard| shard.key == key).map(|shard| &mut **shard)
    }

    /// Does what a message says. One for a shard that is gone is dropped, and with it its reply
    /// channel: the sender sees that at once.
    fn handle(&mut self, message: Message) {
        match message {
            Message::AddShard(mut shard) => {
                assert!(self.shard(shard.key).is_none(), "a shard comes once");
                if shard.adopt() {
                    self.shards.push(shard);
                    self.shards_changed = true;
                }
            }
            Message::RemoveShard(key, gone) => {
                if let Some(shard) = self.shard(key) {
                    shard.remove(gone);
                }
            }
            Message::Command(key, command, reply) => {
                if let Some(shard) = self.shard(key) {
                    shard.command(command, reply);
                }
            }
            Message::Io(key, job) => {
                if let Some(shard) = self.shard(key) {
                    shard.client_io(job);
                }
            }
            Message::Look(key, look) => {
                if let Some(shard) = self.shard(key) {
                    look(shard.engine());
                }
            }
            Message::AddExport(key, index, export) => {
                if let Some(shard) = self.shard(key) {
                    shard.add_export(index, export);
                    self.shards_changed = true;
                }
            }
            Message::Export(key, index, message) => {
                if let Some(shard) = self.shard(key) {
                    shard.export_message(index, message);
                }
            }
            Message::RemoveExport(key, index, gone) => {
                if let Some(shard) = self.shard(key) {
                    shard.remove_export(index, gone);
                    self.shards_changed = true;
                }
            }
            Message::Nvmf(message) => self.nvmf(message),
            Message::Stop => self.stopping = true,
        }
    }

    fn nvmf(&mut self, message: GroupMsg) {
        match (message, &mut self.group) {
            (GroupMsg::Start(peers), _) => {
                let pool = crate::nvmf::pool_of_group();
                // Without an epoll set here, messages are dropped, and their senders see that.
                match Group::new(self.index, *peers, pool) {
                    Ok(group) => self.group = Some(Box::new(group)),
                    Err(e) => log::error(format!("no NVMe queues on a reactor: {e}")),
                }
                self.shards_changed = true;
            }
            (message, Some(group)) => group.message(message, &mut Shards(&mut self.shards)),
            (_, None) => {}
        }
    }

    /// Sleeps until there is something to do, if there is really nothing; `None` if it did not.
    fn sleep(&mut self, now_ns: u64) -> Option<Served> {
        let deadline = self.shards.iter().filter_map(|shard| shard.deadline_ns(now_ns)).min();
        let timeout = timeout_ms(deadline, now_ns);
        if timeout == 0 {
            return None;
        }
        let changed = self.shards_changed || self.shards.iter().any(|shard| shard.watch_changed());
        if changed && !self.watch_again() {
            return None;
        }
        let mut quiet = true;
        for shard in &mut self.shards {
            quiet &= shard.prepare_sleep();
        }
        if let Some(group) = &mut self.group {
            quiet &= group.prepare_sleep();
        }
        let mut slept = None;
        if quiet && self.mailbox.is_empty() {
            self.counted.sleeps += 1;
            self.counted.asleep = true;
            self.shared.publish(&self.counted);
            let events = self.epoll.wait(timeout).expect("epoll_wait on our own set");
            self.counted.asleep = false;
            self.counted.wakes += u64::from(events.len() > 0);
            self.kicked.extend(events.filter_map(kicked));
            let mut served = false;
            for (shard, export) in self.kicked.drain(..) {
                // A message may have come first that what the guest asks relies on, like a resize.
                if self.mailbox.is_empty() {
                    served |= self.shards[shard].serve(export);
                }
            }
            slept = Some(Served(served));
        }
        for shard in &mut self.shards {
            shard.woken();
        }
        slept
    }

    /// Makes the epoll set anew. Taking single descriptors out would be wrong: a number that an
    /// export has closed may by now be another export's. False if it cannot be made.
    fn watch_again(&mut self) -> bool {
        self.fds.clear();
        self.fds.push((self.mailbox.wake_fd(), NO_KICK));
        for (position, shard) in self.shards.iter_mut().enumerate() {
            let export = |index: u16| (position as u64) << 16 | u64::from(index);
            shard.watch(|fd, index| self.fds.push((fd, index.map_or(NO_KICK, export))));
        }
        self.fds.extend(self.group.as_ref().map(|group| (group.fd(), NO_KICK)));
        let made = Epoll::new().and_then(|mut epoll| {
            for &(fd, data) in &self.fds {
                epoll.add(fd, data)?;
            }
            Ok(epoll)
        });
        match made {
            Ok(epoll) => {
                self.epoll = epoll;
                self.shards_changed = false;
                true
            }
            // Out of descriptors or kernel memory: not asleep is slow but right.
            Err(e) => {
                log::error(format!("no epoll set, polling on: {e}"));
                self.shards_changed = true;
                false
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;

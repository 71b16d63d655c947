//! What a reactor drives for one shard of a store: engine, base and exports, a step a turn.
//!
//! ```text
//!  base.poll ─► engine.complete      1. what the device has finished
//!  look ─► engine.submit             2. what guests ask; they are told of what is done at once
//!  engine.tick                       3. commit batches close, background work goes a step on
//!  engine.next_io ─► base.submit     4. (RAM answers at once: round again, bounded)
//!  engine.next_done ─► export.complete
//!  base.enter                        5. one system call
//!  exports.end_turn                  6. guests are told of the rest
//! ```

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use lamina_bdev::limits::SEGS_MAX;
use lamina_bdev::{
    BaseOp, Command, Engine, EngineState, Error, ErrorKind, Reply, Request, Seg, Status,
};

use super::client_io::{CLIENT_INDEX, ClientIo, IoJob};
use super::feed::{Ahead, Feed};
use super::look::look;
use super::rest::Rest;
use super::space_watch::SpaceWatch;
use crate::base::{Base, Operation, Submitted};
use crate::events::{self, Severity};
use crate::log;
use crate::nvmf::devices::{Engines, NVMF_INDEX};
use crate::vhost::{BATCH_MAX, BlkExport, ExportMsg, Submit, Taken};

/// Rounds of engine and base in one turn; what is left goes into the next.
const ROUNDS_MAX: usize = 16;
/// Rounds in which queues that share a shard are polled in one turn, each for a part of a batch.
const FAIR_ROUNDS: usize = 8;
/// Turns for which queues count as sharing the shard after two of them had something at once.
const SHARED_TURNS: u32 = 64;
/// Turns from one look at how full the shard is to the next; one comes before sleep as well.
const WATCH_TURNS: u32 = 16;
/// Log events taken from an engine in one turn.
const EVENTS_MAX: usize = 8;
/// Where the export's index is in a request's cookie.
const EXPORT_SHIFT: u32 = 48;

/// Names a shard in messages; never used twice in the life of a daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShardKey(pub u32);

/// A shard that its reactor has let go: to be dropped where blocking is allowed.
pub struct RetiredShard {
    /// The engine, with nothing in flight.
    pub engine: Box<Engine>,
    /// The base, with nothing in flight.
    pub base: Base,
}

/// An export in its place.
struct ExportSlot {
    export: Box<BlkExport>,
    /// Set while it is being removed: who gets it when nothing is in flight.
    leaving: Option<SyncSender<Option<Box<BlkExport>>>>,
    /// Its change counter when the epoll set was made.
    watched: u64,
}

impl AsMut<BlkExport> for ExportSlot {
    fn as_mut(&mut self) -> &mut BlkExport {
        &mut self.export
    }
}

/// A shard on its reactor.
pub struct Shard {
    /// Its name.
    pub key: ShardKey,
    /// For the log.
    label: String,
    pub(super) engine: Box<Engine>,
    base: Base,
    exports: Vec<Option<ExportSlot>>,
    clients: ClientIo,
    /// Answers to NVMe jobs, until the group takes them.
    nvmf_dones: Vec<(u64, Status)>,
    /// NVMe jobs that the engine has.
    pub(super) nvmf_in_flight: usize,
    /// Told once, when the engine is ready or has failed.
    opening: Option<SyncSender<Result<(), Error>>>,
    /// Set while the shard is being removed.
    leaving: Option<SyncSender<RetiredShard>>,
    commands: Vec<(u64, SyncSender<Result<Reply, Error>>)>,
    next_cookie: u64,
    segs: Vec<Seg>,
    ahead: Ahead,
    turns: u32,
    watch: Option<Arc<SpaceWatch>>,
    /// Leaves rings alone for a while, so that more requests come together.
    rest: Rest,
    /// Turns for which queues still count as sharing the shard.
    shared_turns: u32,
}

impl Shard {
    /// A shard whose engine is opening; `opened` is told how that ends.
    pub fn new(
        key: ShardKey,
        label: String,
        engine: Box<Engine>,
        base: Base,
        opened: SyncSender<Result<(), Error>>,
    ) -> Shard {
        Shard {
            key,
            label,
            engine,
            base,
            exports: Vec::new(),
            clients: ClientIo::default(),
            nvmf_dones: Vec::with_capacity(256),
            nvmf_in_flight: 0,
            opening: Some(opened),
            leaving: None,
            commands: Vec::with_capacity(16),
            next_cookie: 0,
            segs: Vec::with_capacity(SEGS_MAX),
            ahead: Ahead::default(),
            turns: 0,
            watch: None,
            rest: Rest::default(),
            shared_turns: 0,
        }
    }

    /// The same, told to `watch` how full it is, and its events noted as those of that store.
    #[must_use]
    pub fn watched(mut self, watch: Arc<SpaceWatch>) -> Shard {
        self.watch = Some(watch);
        self
    }

    /// For queries.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Makes the calling thread the base's driver. False: the shard is of no use; its opener has
    /// been told.
    pub fn adopt(&mut self) -> bool {
        match self.base.adopt() {
            Ok(()) => true,
            Err(e) => {
                let error = Error::new(ErrorKind::Io, format!("{}: no ring: {e}", self.label));
                if let Some(opening) = self.opening.take() {
                    let _ = opening.try_send(Err(error));
                }
                false
            }
        }
    }

    /// One turn. True if there was anything to do.
    pub fn turn(&mut self, now_ns: u64) -> bool {
        self.turn_with(now_ns, 1, || true)
    }

    /// The same, with up to `looks` looks at the rings if nothing else is to be done: a guest that
    /// has one request at a time waits for the rest of the turn, which takes longer than a request.
    /// `again` is asked before each but the first: no, if a message has come meanwhile.
    pub fn turn_with(&mut self, now_ns: u64, looks: usize, again: impl Fn() -> bool) -> bool {
        // What NVMe queues have asked for.
        self.feed().finish();
        let mut worked = self.collect();
        if self.engine.state() == EngineState::Ready {
            // What has to be waited for comes with the rest of the turn.
            let alone = self.base.in_flight() == 0
                && self.nvmf_in_flight == 0
                && self.clients.is_idle()
                && self.commands.is_empty()
                && !self.engine.busy();
            worked |= self.poll_exports(now_ns, if alone { looks } else { 1 }, again);
            if looks == 1 {
                // Turns take longer where others have theirs.
                self.rest.end();
            }
            self.assert_moved();
            worked |= self.clients.pump(&mut self.engine);
        }
        // What RAM can finish now still gets into the batch that the tick closes.
        if self.drain() {
            worked = true;
            // Nobody waits for the rest of the turn who need not.
            for slot in self.exports.iter_mut().flatten() {
                slot.export.publish();
            }
        }
        self.assert_moved();
        self.engine.tick(now_ns);
        worked |= self.drain();
        worked |= self.base.enter();
        worked |= self.collect();
        worked |= self.tell();
        for slot in self.exports.iter_mut().flatten() {
            slot.export.end_turn();
        }
        worked
    }

    /// Takes what guests ask for, and tells them of what was done at once: that does not wait for
    /// the rest of the turn, nor, where several queues are in use, for a batch of another one.
    fn poll_exports(&mut self, now_ns: u64, looks: usize, again: impl Fn() -> bool) -> bool {
        if self.rest.goes_on(now_ns, self.engine.busy()) {
            return false;
        }
        let Shard { engine, base, ahead, segs, exports, .. } = self;
        let mut feed = Feed { engine, base, ahead, segs };
        let shared = self.shared_turns > 0;
        self.shared_turns = self.shared_turns.saturating_sub(1);
        let (looks, batch) = match shared {
            true => (FAIR_ROUNDS, BATCH_MAX / FAIR_ROUNDS),
            false => (looks, BATCH_MAX),
        };
        let (mut chains, mut more) = (0, false);
        for _ in 0..looks {
            let took = look(exports, &mut feed, batch);
            chains += took.chains;
            more = took.more;
            if took.queues > 1 {
                self.shared_turns = SHARED_TURNS;
                self.rest.shared(now_ns);
            }
            let go_on = match shared {
                true => took.chains > 0,
                // One request at a time is what a short way back helps.
                false => chains <= 1 && !feed.engine.busy() && again(),
            };
            if !go_on {
                break;
            }
        }
        if !shared {
            self.rest.after(now_ns, chains, !more);
        }
        chains > 0
    }

    /// The engine does nothing that could let others see what has been answered and not moved.
    fn assert_moved(&self) {
        assert!(self.ahead.is_empty(), "requests were answered whose bytes have not been moved");
    }

    fn feed(&mut self) -> Feed<'_> {
        let Shard { engine, base, ahead, segs, .. } = self;
        Feed { engine, base, ahead, segs }
    }

    /// Takes the answers of the base.
    fn collect(&mut self) -> bool {
        let mut worked = false;
        while let Some((tag, result)) = self.base.poll() {
            self.engine.complete(tag, result);
            worked = true;
        }
        worked |= self.dones();
        worked
    }

    /// Starts what the engine wants started; RAM answers at once, so that there may be more.
    fn drain(&mut self) -> bool {
        let mut worked = false;
        for _ in 0..ROUNDS_MAX {
            let started = self.start();
            let done = self.dones();
            if !started && !done {
                return worked;
            }
            worked = true;
        }
        true
    }

    fn start(&mut self) -> bool {
        let mut started = false;
        while self.base.has_room() {
            let Some(io) = self.engine.next_io() else { break };
            started = true;
            self.segs.clear();
            if io.op != BaseOp::Flush {
                if io.first.len == io.len as usize {
                    self.segs.push(io.first);
                } else {
                    self.engine.gather(&io, &mut self.segs);
                }
            }
            match self.base.submit(&Operation::from(&io), &self.segs) {
                Submitted::Done(result) => self.engine.complete(io.tag, result),
                Submitted::Queued => {}
            }
        }
        started
    }

    /// Gives finished requests back to their exports.
    fn dones(&mut self) -> bool {
        let mut worked = false;
        while let Some(done) = self.engine.next_done() {
            let index = (done.cookie >> EXPORT_SHIFT) as usize;
            worked = true;
            if index == usize::from(CLIENT_INDEX) {
                self.clients.complete(done);
                continue;
            }
            if index == usize::from(NVMF_INDEX) {
                self.nvmf_in_flight -= 1;
                self.nvmf_dones.push((done.cookie, done.status));
                continue;
            }
            let slot = self.exports.get_mut(index).and_then(Option::as_mut);
            // An export leaves only with nothing in flight.
            let slot = slot.expect("a request of an export that is gone");
            slot.export.complete(done.cookie, done.status);
        }
        worked
    }

    /// Replies to control threads, log events, farewells.
    fn tell(&mut self) -> bool {
        let mut worked = false;
        while let Some((cookie, result)) = self.engine.next_reply() {
            let at = self.commands.iter().position(|(known, _)| *known == cookie);
            let (_, reply) = self.commands.swap_remove(at.expect("a reply to no command"));
            // Whoever asked may have stopped waiting.
            let _ = reply.try_send(result);
            worked = true;
        }
        for _ in 0..EVENTS_MAX {
            let Some(event) = self.engine.next_event() else { break };
            let severity = if event.severe { Severity::Error } else { Severity::Info };
            let store = self.watch.as_ref().map_or(self.label.as_str(), |watch| watch.store());
            events::push(severity, store, event.text);
            worked = true;
        }
        self.turns = self.turns.wrapping_add(1);
        if self.turns.is_multiple_of(WATCH_TURNS) {
            self.watch_space();
        }
        if self.opening.is_some() {
            worked |= self.tell_opener();
        }
        for entry in &mut self.exports {
            if let Some(slot) = entry {
                while let Some(stopped) = slot.export.next_stopped() {
                    log::warn(format!("{}: an export's {stopped}", self.label));
                }
            }
            if let Some(slot) = entry
                && slot.leaving.is_some()
                && slot.export.in_flight() == 0
            {
                let slot = entry.take().expect("looked at just now");
                let leaving = slot.leaving.expect("looked at just now");
                let _ = leaving.try_send(Some(slot.export));
                worked = true;
            }
        }
        worked
    }

    /// Tells the watch how full the shard is.
    fn watch_space(&self) {
        if let Some(watch) = &self.watch
            && self.engine.state() == EngineState::Ready
        {
            watch.look(self.engine.space_usage());
        }
    }

    fn tell_opener(&mut self) -> bool {
        let result = match self.engine.state() {
            EngineState::Opening => return false,
            EngineState::Ready => Ok(()),
            EngineState::Failed => Err(self.engine.open_error().cloned().unwrap_or_else(|| {
                Error::new(ErrorKind::Corrupt, format!("{} could not be opened", self.label))
            })),
        };
        if let Some(opening) = self.opening.take() {
            let _ = opening.try_send(result);
        }
        true
    }

    /// Hands a command to the engine; `reply` is told how it ends.
    pub fn command(&mut self, command: Command, reply: SyncSender<Result<Reply, Error>>) {
        if self.engine.state() != EngineState::Ready || self.leaving.is_some() {
            let why = format!("{} is not open (any more)", self.label);
            let _ = reply.try_send(Err(Error::new(ErrorKind::Busy, why)));
            return;
        }
        self.feed().finish();
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        self.commands.push((cookie, reply));
        self.engine.command(cookie, command);
    }

    /// Takes a request of a control thread; dropped, which its sender sees, if the shard leaves.
    pub fn client_io(&mut self, job: Box<IoJob>) {
        if self.leaving.is_none() {
            self.clients.take(job);
        }
    }

    /// Carries out what was answered and waits for its bytes: before the base is given away.
    pub fn finish(&mut self) {
        self.feed().finish();
    }

    /// Its base, for a host that moves shards between threads.
    pub fn base_mut(&mut self) -> &mut Base {
        &mut self.base
    }

    /// Gives a request to the engine at once; its cookie says [`NVMF_INDEX`] as its place. `None`:
    /// the engine is not ready; `Some(false)`: it is full.
    pub fn submit(&mut self, request: &Request, segs: &[Seg]) -> Option<bool> {
        if self.engine.state() != EngineState::Ready {
            return None;
        }
        let taken = self.feed().submit(request, segs);
        match taken {
            Taken::No => return Some(false),
            Taken::Later => self.nvmf_in_flight += 1,
            Taken::Done => self.nvmf_dones.push((request.cookie, Status::Ok)),
        }
        Some(true)
    }

    /// Moves the answers to requests that came by [`Shard::submit`] to `dones`.
    pub fn take_nvmf_dones(&mut self, dones: &mut Vec<(u64, Status)>) {
        dones.append(&mut self.nvmf_dones);
    }

    /// Puts an export in its place. Panics if the place is taken: control hands places out.
    pub fn add_export(&mut self, index: u16, export: Box<BlkExport>) {
        assert!(index < NVMF_INDEX, "the last places stand for NVMe and for control threads");
        let index = usize::from(index);
        if self.exports.len() <= index {
            self.exports.resize_with(index + 1, || None);
        }
        assert!(self.exports[index].is_none(), "the place of an export is taken");
        self.exports[index] = Some(ExportSlot { export, leaving: None, watched: 0 });
    }

    /// Passes a message on; one for an export that is gone is dropped.
    pub fn export_message(&mut self, index: u16, message: ExportMsg) {
        if let Some(Some(slot)) = self.exports.get_mut(usize::from(index)) {
            slot.export.message(message);
        }
    }

    /// Sends the export to `gone` once nothing of it is in flight; `None` if it is not there.
    pub fn remove_export(&mut self, index: u16, gone: SyncSender<Option<Box<BlkExport>>>) {
        match self.exports.get_mut(usize::from(index)) {
            Some(Some(slot)) => slot.leaving = Some(gone),
            Some(None) | None => {
                let _ = gone.try_send(None);
            }
        }
    }

    /// Lets the shard go to `gone` as soon as [`Shard::is_quiet`].
    pub fn remove(&mut self, gone: SyncSender<RetiredShard>) {
        self.leaving = Some(gone);
        self.clients.drop_waiting();
    }

    /// True if the shard is to leave and can.
    pub fn may_leave(&self) -> bool {
        self.leaving.is_some()
            && self.ahead.is_empty()
            && self.nvmf_dones.is_empty()
            && self.base.in_flight() == 0
            && self.commands.is_empty()
            && self.clients.is_idle()
            && self.nvmf_in_flight == 0
            && self.exports.iter().all(Option::is_none)
    }

    /// Ends the shard's time here. Panics unless [`Shard::may_leave`].
    pub fn retire(mut self) {
        assert!(self.may_leave());
        let leaving = self.leaving.take().expect("asserted");
        let retired = RetiredShard { engine: self.engine, base: self.base };
        // If nobody waits any more, it is dropped here: nothing is in flight.
        let _ = leaving.try_send(retired);
    }

    /// When the engine wants a tick although nothing happens; now if it is busy.
    pub fn deadline_ns(&self, now_ns: u64) -> Option<u64> {
        if self.engine.busy() { Some(now_ns) } else { self.engine.deadline_ns() }
    }

    /// Tells everybody below that the reactor is about to sleep. False if anyone has work.
    pub fn prepare_sleep(&mut self) -> bool {
        self.watch_space();
        let mut quiet = self.base.prepare_sleep();
        for slot in self.exports.iter_mut().flatten() {
            quiet &= slot.export.prepare_sleep();
        }
        quiet
    }

    /// The reverse of [`Shard::prepare_sleep`], also if that said false.
    pub fn woken(&mut self) {
        self.rest.end();
        self.base.woken();
        for slot in self.exports.iter_mut().flatten() {
            slot.export.woken();
        }
    }

    /// True if descriptors to watch have changed since [`Shard::watch`].
    pub fn watch_changed(&self) -> bool {
        self.exports.iter().flatten().any(|slot| slot.watched != slot.export.kick_changes())
    }

    /// Tells the descriptors whose signals must end a sleep: those of exports with their index.
    pub fn watch(&mut self, mut tell: impl FnMut(RawFd, Option<u16>)) {
        if let Some(fd) = self.base.wake_fd() {
            tell(fd, None);
        }
        for (index, slot) in self.exports.iter_mut().enumerate() {
            let Some(slot) = slot else { continue };
            slot.watched = slot.export.kick_changes();
            slot.export.kick_fds().for_each(|fd| tell(fd, Some(index as u16)));
        }
    }

    /// Takes what one export's guest asks, and answers what can be answered at once; true if there
    /// was anything. The turn that follows does the rest.
    pub fn serve(&mut self, index: u16) -> bool {
        let Shard { engine, base, ahead, segs, exports, .. } = self;
        let place = usize::from(index)..usize::from(index) + 1;
        let Some(export) = exports.get_mut(place) else { return false };
        if engine.state() != EngineState::Ready {
            return false;
        }
        let mut feed = Feed { engine, base, ahead, segs };
        if look(export, &mut feed, BATCH_MAX).chains == 0 {
            return false;
        }
        if self.drain()
            && let Some(Some(slot)) = self.exports.get_mut(usize::from(index))
        {
            // Before the other hundred are looked at, whose lines are in no cache by now.
            slot.export.publish();
        }
        self.base.enter();
        true
    }
}

/// The engines of a reactor, for its NVMe queues.
pub struct Shards<'a>(pub &'a mut Vec<Box<Shard>>);

impl Engines for Shards<'_> {
    fn submit(&mut self, shard: ShardKey, request: &Request, segs: &[Seg]) -> Option<bool> {
        self.0.iter_mut().find(|known| known.key == shard)?.submit(request, segs)
    }
}

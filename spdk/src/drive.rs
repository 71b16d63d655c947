//! What drives one shard on SPDK's threads, and follows its I/O from one to another.
//!
//! ```text
//!  submit on the owning thread ─► engine, as a call          (counted: local)
//!       └─ one operation, nothing in its way ─► base, as a call ─► its answer is the I/O's
//!  submit on another thread ─► message ─► owner ─► engine    (counted: sent)
//!       └─ mostly such: "come here" ─► owner stops starting base I/O ─► none in flight
//!                                  ─► channel given back ─► owner = that thread ─► channel there
//!  poller ─► mailbox of control, shard's turn, answers
//! ```
//!
//! A shard begins on a thread of ours, and goes back there when the last channel on a foreign
//! thread closes, since that thread may end.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use lamina_bdev::limits::SEGS_MAX;
use lamina_bdev::{Handle, Op, Request, Seg, Status, Straight, Tag};
use lamina_target::base::{Base, HandedOn};
use lamina_target::log;
use lamina_target::nvmf::devices::NVMF_INDEX;
use lamina_target::reactor::clock;
use lamina_target::reactor::handle::Message;
use lamina_target::reactor::mailbox::Mailbox;
use lamina_target::reactor::shard::Shard;

use crate::disk::Backed;
use crate::sys::backend::ChannelState;
use crate::sys::bdev_io::{Answer, BdevIo, IoList, Kind, set_tag, tag_of};
use crate::sys::disk::{backend, forward};
use crate::sys::owned::Owned;
use crate::sys::thread::{Polled, Poller, Thread};

/// Messages taken in one turn.
const MESSAGES_PER_TURN_MAX: usize = 32;
/// Messages in a mailbox.
const MAILBOX_CAPACITY: usize = 256;
/// I/O from another thread after which it looks whether the shard should come to it.
const LOOK_AFTER: u64 = 64;
/// It should, if fewer than this came on the owning thread meanwhile.
const LOCAL_FEW: u64 = LOOK_AFTER / 2;
/// Where an I/O's place is in the engine's cookie.
const PLACE: u64 = (NVMF_INDEX as u64) << 48;
const NUMBER: u64 = (1 << 48) - 1;

/// How I/O came to a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// On the owning thread: a call.
    pub local: u64,
    /// On other threads: a message each.
    pub sent: u64,
    /// Times the shard went to another thread.
    pub moves: u64,
}

/// See the picture above.
pub struct Drive {
    me: Weak<Drive>,
    home: Thread,
    mailbox: Arc<Mailbox<Message>>,
    core: Owned<Core>,
    /// I/O that the base answered while the core was at work.
    late: Owned<IoList>,
    /// Counted by the owner alone.
    local: AtomicU64,
    sent: AtomicU64,
    moves: AtomicU64,
    /// A move is under way.
    moving: AtomicBool,
    /// The owner has no channel left, and is not home.
    lonely: AtomicBool,
    /// Channels by the number of their thread. The owner changes under this lock alone.
    channels: Mutex<Vec<(u64, usize)>>,
}

/// What belongs to the owning thread.
struct Core {
    shard: Option<Box<Shard>>,
    poller: Option<Poller>,
    /// I/O that the engine had no room for.
    waiting: IoList,
    /// I/O that goes to the base itself, which had no room for it, and where there.
    refused: Option<(u64, u64)>,
    /// Resets that wait for what is in flight on their disk.
    resets: IoList,
    segs: Vec<Seg>,
    dones: Vec<(u64, Status)>,
    /// Who asked the shard to come, with the poller that is to drive it there.
    asked: Option<(Thread, Poller)>,
    /// The base has no channel of this thread yet.
    adopt_due: bool,
}

impl Drive {
    /// A drive without a shard yet, on `home`.
    ///
    /// # Errors
    /// No eventfd.
    pub fn start(home: Thread) -> std::io::Result<Arc<Drive>> {
        let mailbox = Arc::new(Mailbox::new(MAILBOX_CAPACITY)?);
        let core = Core {
            shard: None,
            poller: None,
            waiting: IoList::default(),
            refused: None,
            resets: IoList::default(),
            segs: Vec::with_capacity(SEGS_MAX),
            dones: Vec::with_capacity(256),
            asked: None,
            adopt_due: false,
        };
        let drive = Arc::new_cyclic(|me| Drive {
            me: me.clone(),
            core: Owned::new(&home, core),
            late: Owned::new(&home, IoList::default()),
            home,
            mailbox,
            local: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            moves: AtomicU64::new(0),
            moving: AtomicBool::new(false),
            lonely: AtomicBool::new(false),
            channels: Mutex::default(),
        });
        let begun = drive.clone();
        drive.home.send(move || {
            let poller = Poller::register(begun.clone());
            assert!(poller.is_some(), "SPDK has no memory for a poller");
            begun.core.with(|core| core.poller = poller);
        });
        Ok(drive)
    }

    /// Where control's messages go.
    pub fn mailbox(&self) -> Arc<Mailbox<Message>> {
        self.mailbox.clone()
    }

    /// How I/O came.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            local: self.local.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
            moves: self.moves.load(Ordering::Relaxed),
        }
    }

    /// Name of the thread that owns it now.
    pub fn owner_name(&self) -> String {
        self.with_owner(Thread::name)
    }

    /// Takes an I/O on the thread that it came from.
    pub fn submit(&self, disk: &Backed, channel: &ChannelState, io: BdevIo) {
        if self.core.is_here() {
            // One writer: no need for an atomic addition.
            self.local.store(self.local.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            self.begin(disk, io);
            return;
        }
        self.sent.fetch_add(1, Ordering::Relaxed);
        channel.sent.set(channel.sent.get() + 1);
        if channel.sent.get() >= LOOK_AFTER {
            let local = self.local.load(Ordering::Relaxed);
            if local.wrapping_sub(channel.seen.get()) < LOCAL_FEW
                && !self.moving.swap(true, Ordering::AcqRel)
            {
                self.fetch();
            }
            channel.sent.set(0);
            channel.seen.set(local);
        }
        self.send_on(io);
    }

    /// Takes an I/O that was sent here; the shard may have gone on meanwhile.
    pub fn arrived(&self, disk: &Backed, io: BdevIo) {
        if self.core.is_here() {
            self.begin(disk, io);
        } else {
            self.send_on(io);
        }
    }

    /// Sends an I/O to the owner.
    fn send_on(&self, io: BdevIo) {
        self.with_owner(|owner| forward::<Backed>(io, owner));
    }

    /// Runs `work` while the owner stays the owner: a thread that is none any more may end.
    fn with_owner<R>(&self, work: impl FnOnce(&Thread) -> R) -> R {
        let _channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        work(&self.core.owner())
    }

    fn begin(&self, disk: &Backed, io: BdevIo) {
        let (io, aborted) = self.core.with(|core| core.begin(disk, io));
        if let Some(aborted) = aborted {
            backend::<Backed>(&aborted).ended();
            aborted.complete(Answer::Aborted);
        }
        if let Some((io, answer)) = io {
            io.complete(answer);
        }
    }

    /// The base is done with an I/O that was handed on to it.
    pub fn below_done(&self, disk: &Backed, io: BdevIo, good: bool) {
        // The shard does not move while anything is in flight.
        let status = self.core.try_with(|core| core.ended(&io, good));
        if let Some(status) = status {
            disk.ended();
            io.complete(Answer::Engine(status));
            return;
        }
        io.set_good(good);
        self.late.with(|late| late.push_back(io));
    }

    /// Answers what came back while the core was at work. True if there was any.
    fn answer_late(&self) -> bool {
        let mut any = false;
        while let Some(io) = self.late.with(IoList::pop_front) {
            let status = self.core.with(|core| core.ended(&io, io.good()));
            backend::<Backed>(&io).ended();
            io.complete(Answer::Engine(status));
            any = true;
        }
        any
    }

    /// Asks the owner for the shard, from the thread that it is to come to. `moving` is set.
    fn fetch(&self) {
        let me = self.me.upgrade().expect("called through a share");
        let (Some(poller), Some(here)) = (Poller::register(me.clone()), Thread::current()) else {
            self.moving.store(false, Ordering::Release);
            return;
        };
        let come = move || {
            // Nobody else moves it, so it is still here; it may have ended.
            me.core.with(|core| match &mut core.shard {
                Some(shard) => {
                    pause(shard, true);
                    core.asked = Some((here, poller));
                }
                None => drop(poller),
            });
        };
        self.with_owner(|owner| owner.send(come));
    }

    /// The calling thread is going to use a disk of this shard.
    pub fn channel_opened(&self) {
        let Some(here) = Thread::current() else { return };
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        match channels.iter_mut().find(|(id, _)| *id == here.id()) {
            Some((_, count)) => *count += 1,
            None => channels.push((here.id(), 1)),
        }
        if self.core.is_here() {
            self.lonely.store(false, Ordering::Relaxed);
        }
    }

    /// The calling thread no longer uses one of its disks.
    pub fn channel_closed(&self) {
        let Some(here) = Thread::current() else { return };
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, count)) = channels.iter_mut().find(|(id, _)| *id == here.id()) {
            *count -= 1;
        }
        channels.retain(|(_, count)| *count > 0);
        let left = channels.iter().any(|(id, _)| *id == here.id());
        if !left && self.core.is_here() && !self.home.is_current() {
            self.lonely.store(true, Ordering::Relaxed);
        }
    }

    /// The owner's thread may end: home again.
    fn go_home(&self) {
        if self.moving.swap(true, Ordering::AcqRel) {
            return;
        }
        self.lonely.store(false, Ordering::Relaxed);
        let me = self.me.upgrade().expect("called through a share");
        self.home.send(move || me.fetch());
    }

    /// Hands the shard over if somebody asked, and nothing is in flight.
    fn hand_over(&self) {
        let to = self.core.with(|core| {
            let shard = core.shard.as_mut()?;
            shard.finish();
            if let Base::Host(base) = shard.base_mut() {
                if base.in_flight() > 0 {
                    return None;
                }
                base.release();
                base.pause(false);
            }
            let (to, poller) = core.asked.take()?;
            core.adopt_due = true;
            // The old one goes here and now; allowed within its own round.
            core.poller = Some(poller);
            Some(to)
        });
        if let Some(to) = to {
            self.moves.fetch_add(1, Ordering::Relaxed);
            // Under the lock: a channel that closes there now is counted here, or sees the shard.
            let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
            let used = channels.iter().any(|(id, _)| *id == to.id());
            self.lonely.store(!used && to.id() != self.home.id(), Ordering::Relaxed);
            self.late.give(&to);
            self.core.give(&to);
            drop(channels);
            self.moving.store(false, Ordering::Release);
            log::debug(format!("a shard is now on thread {}", to.name()));
        }
    }
}

fn pause(shard: &mut Shard, paused: bool) {
    if let Base::Host(base) = shard.base_mut() {
        base.pause(paused);
    }
}

impl Polled for Drive {
    fn poll(&self) -> bool {
        if !self.core.is_here() {
            // Asked for the shard, and it is not here yet.
            return false;
        }
        let late = self.answer_late();
        let (mut worked, mut dones, asked) = self.core.with(|core| {
            let worked = core.turn(&self.mailbox) | late;
            (worked, std::mem::take(&mut core.dones), core.asked.is_some())
        });
        // Whoever is told may come with the next I/O at once, so nothing is borrowed here.
        for (cookie, status) in dones.drain(..) {
            let io = BdevIo::from_engine(cookie & NUMBER);
            backend::<Backed>(&io).ended();
            io.complete(Answer::Engine(status));
            worked = true;
        }
        let reset = self.core.with(|core| {
            // Those whom these told may have come with I/O that is over already.
            dones.append(&mut core.dones);
            core.dones = dones;
            core.next_reset()
        });
        if let Some(reset) = reset {
            reset.complete(Answer::Engine(Status::Ok));
        }
        if asked {
            self.hand_over();
        } else if self.lonely.load(Ordering::Relaxed) {
            self.go_home();
        }
        worked
    }
}

/// What is to be answered at once: an I/O, and one that it aborted.
type Begun = (Option<(BdevIo, Answer)>, Option<BdevIo>);

impl Core {
    fn begin(&mut self, disk: &Backed, io: BdevIo) -> Begun {
        match io.kind() {
            None => (Some((io, Answer::Failed)), None),
            Some(_) if self.shard.is_none() => (Some((io, Answer::Failed)), None),
            Some(Kind::Reset) => {
                // Answered in a turn, once nothing is in flight on its disk.
                self.resets.push_back(io);
                (None, None)
            }
            Some(Kind::Abort) => {
                // What the engine has cannot be called back.
                let aborted = self.waiting.take(|waiting| io.aborts(waiting));
                let found = aborted.is_some();
                let answer = if found { Answer::Engine(Status::Ok) } else { Answer::Failed };
                (Some((io, answer)), aborted)
            }
            Some(kind) => {
                disk.began();
                self.take(disk.handle(), kind, io);
                (None, None)
            }
        }
    }

    /// Gives an I/O to the engine, or lets it wait behind others.
    fn take(&mut self, handle: Handle, kind: Kind, io: BdevIo) {
        let refused = if self.waiting.is_empty() { self.give(handle, kind, io) } else { Some(io) };
        if let Some(io) = refused {
            self.waiting.push_back(io);
        }
    }

    /// Gives an I/O to the engine; back if that has no room for it.
    fn give(&mut self, handle: Handle, kind: Kind, io: BdevIo) -> Option<BdevIo> {
        if self.shard.is_none() {
            return Some(io);
        }
        let (op, len) = match kind {
            Kind::Read => (Op::Read, io.bytes()),
            Kind::Write => (Op::Write, io.bytes()),
            Kind::Unmap => (Op::Discard, io.bytes()),
            Kind::WriteZeroes => (Op::WriteZeroes, io.bytes()),
            Kind::Flush | Kind::Reset | Kind::Abort => (Op::Flush, 0),
        };
        self.segs.clear();
        let carries = matches!(op, Op::Read | Op::Write);
        if carries {
            io.segs(&mut self.segs);
        }
        let offset = if op == Op::Flush { 0 } else { io.offset() };
        let number = io.into_engine();
        assert!(number & !NUMBER == 0, "an address of more than 48 bits");
        let request = Request { cookie: PLACE | number, handle, op, offset, len, fua: false };
        if carries && self.go_straight(&request, number) {
            return None;
        }
        let shard = self.shard.as_mut()?;
        match shard.submit(&request, &self.segs) {
            Some(true) => None,
            Some(false) | None => Some(BdevIo::from_engine(number)),
        }
    }

    /// Takes an I/O to the base at once, if that is all there is to it.
    fn go_straight(&mut self, request: &Request, number: u64) -> bool {
        let Some(shard) = &mut self.shard else { return false };
        let Base::Host(base) = shard.base_mut() else { return false };
        // Not past those that wait for the base already.
        let room = base.room();
        if room == 0 || room <= shard.engine().waiting_io() {
            return false;
        }
        match shard.straight(request, &self.segs) {
            Straight::No => false,
            Straight::Zeroed => {
                self.dones.push((request.cookie, Status::Ok));
                true
            }
            Straight::Start { tag, offset } => {
                set_tag(number, tag.0);
                self.hand_on(number, offset);
                true
            }
        }
    }

    /// Hands an I/O on to the base, as its operation from byte `offset` on.
    fn hand_on(&mut self, number: u64, offset: u64) {
        let shard = self.shard.as_mut().expect("it has I/O");
        let Base::Host(base) = shard.base_mut() else { unreachable!("a base of this host") };
        match base.hand_on(number, offset) {
            HandedOn::Started => {}
            HandedOn::NotNow => self.refused = Some((number, offset)),
            HandedOn::Failed(error) => {
                let status = shard.ended(Tag(tag_of(number)), Err(error));
                self.dones.push((PLACE | number, status));
            }
        }
    }

    /// The base is done with an I/O that was handed on to it: how that is to be answered.
    fn ended(&mut self, io: &BdevIo, good: bool) -> Status {
        let shard = self.shard.as_mut().expect("it has I/O");
        let Base::Host(base) = shard.base_mut() else { unreachable!("a base of this host") };
        let result = base.handed_back(good);
        shard.ended(Tag(io.tag()), result)
    }

    /// One turn. True if there was anything to do.
    fn turn(&mut self, mailbox: &Mailbox<Message>) -> bool {
        let mut worked = false;
        for _ in 0..MESSAGES_PER_TURN_MAX {
            let Some(message) = mailbox.take() else { break };
            self.handle(message);
            worked = true;
        }
        let Some(shard) = &mut self.shard else { return worked };
        if self.adopt_due {
            self.adopt_due = !shard.adopt();
        }
        if let Some((number, offset)) = self.refused.take() {
            self.hand_on(number, offset);
        }
        let Some(shard) = &mut self.shard else { return worked };
        worked |= shard.turn(clock::now_ns());
        shard.take_nvmf_dones(&mut self.dones);
        // Whatever waits and is given now is answered in a later turn.
        let leaving = shard.may_leave() && self.waiting.is_empty();
        while let Some(io) = self.waiting.pop_front() {
            let disk = backend::<Backed>(&io);
            let kind = io.kind().expect("looked at when it came");
            let handle = disk.handle();
            if let Some(io) = self.give(handle, kind, io) {
                self.waiting.push_front(io);
                break;
            }
            worked = true;
        }
        if leaving {
            self.retire();
        }
        worked
    }

    /// Does what a message says. One that is not for a shard of this host is dropped, and with it
    /// its reply channel: the sender sees that at once.
    fn handle(&mut self, message: Message) {
        match (message, &mut self.shard) {
            (Message::AddShard(mut shard), place) => {
                assert!(place.is_none(), "a drive has one shard");
                if shard.adopt() {
                    *place = Some(shard);
                }
            }
            (Message::RemoveShard(_, gone), Some(shard)) => shard.remove(gone),
            (Message::Command(_, command, reply), Some(shard)) => shard.command(command, reply),
            (Message::Io(_, job), Some(shard)) => shard.client_io(job),
            (Message::Look(_, look), Some(shard)) => look(shard.engine()),
            _ => {}
        }
    }

    /// The end: no disk of the shard is there any more.
    fn retire(&mut self) {
        let Some(mut shard) = self.shard.take() else { return };
        shard.finish();
        if let Base::Host(base) = shard.base_mut() {
            base.release();
        }
        shard.retire();
        self.asked = None;
        self.poller = None;
    }

    /// A reset whose disk has nothing in flight.
    fn next_reset(&mut self) -> Option<BdevIo> {
        if self.resets.is_empty() {
            return None;
        }
        self.resets.take(|reset| backend::<Backed>(reset).is_idle())
    }
}

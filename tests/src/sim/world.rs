//! The host: one production engine, one simulated base device, clients, commands, and crashes.
//!
//! ```text
//!  turn:  base events due ─▶ commands, requests ─▶ tick ─▶ start base I/O ─▶ take answers
//!           ▲                                                                    │
//!           └── crash? else virtual time jumps to the next thing that happens ◀──┘
//! ```
//!
//! Nothing here reads a clock or draws chance but from the seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lamina_bdev::{
    BaseIo, BaseOp, Config, Done, Engine, FormatParams, Handle, LABEL_BYTES, Name, Seg, StoreLabel,
    Tag, Uuid, fixed_areas, format_plan, read_label,
};

use super::base::Base;
use super::commands::{Intent, Pending};
use super::damage::Damage;
use super::held::Held;
use super::model::{Model, Place, Uid};
use super::ops::NEVER;
use super::pattern::OpId;
use super::plan::{Faults, Lie, Plan};
use super::power::Crash;
use super::requests::{Errand, Flight};
use super::rng::{Rng, mix};
use super::swift::{Own, Swift};
use super::trace::Trace;
use super::{CacheUse, regressions};

/// Virtual time within which everything must end once faults have stopped, ns.
const PATIENCE_NS: u64 = 600_000_000_000;
/// Makes the second stream of chance another one.
const LATE: u64 = 0x1A7E;
/// Turns within which it must end.
const PATIENCE_TURNS: u64 = 400_000;
/// Turns in a row that may change nothing.
const STILL_TURNS: u64 = 20_000;
/// Both superblocks, at the start of a region.
const SUPERBLOCKS_BYTES: u64 = 8192;

/// A handle that requests may use.
#[derive(Clone, Copy, Debug)]
pub struct Attachment {
    /// What it shows.
    pub place: Place,
    /// The engine's name for it.
    pub handle: Handle,
    /// Requests in flight on it.
    pub in_flight: usize,
    /// No new requests: it is to be detached.
    pub closing: bool,
}

/// Everything of one run.
pub struct World {
    pub(super) seed: u64,
    pub(super) plan: Plan,
    pub(super) lie: Lie,
    pub(super) rng: Rng,
    pub(super) trace: Trace,
    pub(super) base: Base,
    pub(super) model: Model,
    pub(super) config: Config,
    pub(super) engine: Option<Engine>,
    pub(super) label: StoreLabel,
    pub(super) now: u64,
    pub(super) step: u64,
    pub(super) issued: u64,
    pub(super) crashes: u64,
    cache: CacheUse,
    cookies: u64,
    // Requests.
    pub(super) flights: BTreeMap<u64, Flight>,
    pub(super) parked: Option<Flight>,
    /// Carried out by the engine, to be moved by the host; and those that were.
    pub(super) swift: Vec<Swift>,
    pub(super) swift_dones: Vec<Done>,
    /// Operations of requests that the host is to start itself.
    pub(super) own: Vec<Own>,
    pub(super) errands: VecDeque<Errand>,
    pub(super) shrinks: Vec<(Place, u64, u64)>,
    pub(super) scratch: Vec<u8>,
    next_issue: u64,
    willing: bool,
    // Commands.
    pub(super) pending: BTreeMap<u64, Pending>,
    pub(super) half_done: Vec<Intent>,
    pub(super) cut_shrinks: Vec<(Uid, u64, OpId)>,
    pub(super) attachments: BTreeMap<u32, Attachment>,
    pub(super) attachment_count: u32,
    pub(super) doomed: BTreeSet<Uid>,
    pub(super) disks_to_make: usize,
    // This life of the engine.
    pub(super) recovered: bool,
    /// Opened, but not ticked yet.
    pub(super) fresh: bool,
    progress: (u64, u64),
    pub(super) nested: u32,
    pub(super) next_crash: u64,
    /// That crash is a kill, and aimed at the writing of a superblock.
    pub(super) aimed: bool,
    /// The flush that this life began first, and whether one has succeeded.
    pub(super) first_flush: (Option<Tag>, bool),
    pub(super) flush_failed_at: u64,
    pub(super) errors_seen: u32,
    pub(super) no_space_seen: u64,
    /// The faults have stopped and what they had touched has ended: an error needs a reason.
    pub(super) healthy: bool,
    /// No more requests, crashes and faults but what the last phase asks for.
    pub(super) calm: bool,
    /// Damage done to metadata, and whom it may hurt.
    pub(super) damage: Damage,
    /// Free and pending blocks of the empty store.
    pub(super) empty_blocks: Option<u64>,
    segs: Vec<Seg>,
    /// A hold under way.
    pub(super) held: Option<Held>,
    /// The other shards of the device, if they run too.
    pub(super) mates: Vec<World>,
    /// It is one of them.
    pub(super) is_mate: bool,
    /// As one of them: the store must be opened again.
    pub(super) wishes_crash: bool,
}

impl World {
    /// A formatted store on a fresh device, its engine about to open.
    ///
    /// # Errors
    /// The store could not be made.
    pub fn new(seed: u64, ops: u64, lie: Lie, log: bool) -> Result<World, String> {
        let mut rng = Rng::new(seed);
        let mut late = Rng::new(mix(seed ^ LATE));
        let mut plan = Plan::draw(&mut rng, &mut late, ops);
        // What known seeds have shown, they have shown without these.
        if regressions().iter().any(|(known, _)| *known == seed) {
            (plan.squeeze, plan.straight) = ((0, 0), false);
        } else if late.chance(100) {
            plan.comb(&mut late);
        } else if late.chance(60) {
            plan.forget(&mut late);
        }
        if lie != Lie::None {
            plan.faults = Faults::default();
        }
        plan.all_shards &= lie == Lie::None || lie == Lie::Alone;
        match lie {
            Lie::None => {}
            Lie::Flush | Lie::Tear => {
                plan.traits.volatile_cache = true;
                plan.traits.atomic_4k |= lie == Lie::Tear;
                plan.power_permille = 1000;
                plan.crash_every = 150;
            }
            Lie::Forget => (plan.power_permille, plan.crash_every) = (0, 150),
            Lie::Alone => {
                (plan.faults.flush, plan.traits.volatile_cache) = (300, true);
                plan.all_shards = plan.shards > 1;
            }
        }
        let rubbish = plan.rubbish.then(|| rng.next());
        let mut base = Base::new(plan.traits, rubbish, rng.next());
        let label = format(&plan, &mut base, seed)?;
        let trace = Trace::new(log);
        trace.line(0, || format!("seed {seed}: {plan:#?}"));
        let mut world = World::on(seed, plan, lie, (rng, trace, base), label);
        world.open();
        world.make_mates();
        Ok(world)
    }

    /// One shard of a formatted store, its engine not open yet.
    pub(super) fn on(
        seed: u64,
        plan: Plan,
        lie: Lie,
        (rng, trace, base): (Rng, Trace, Base),
        label: StoreLabel,
    ) -> World {
        let config = plan.config;
        let disks_to_make = plan.disks;
        World {
            seed,
            plan,
            lie,
            rng,
            trace,
            base,
            model: Model::default(),
            config,
            engine: None,
            label,
            now: 0,
            step: 0,
            issued: 0,
            crashes: 0,
            cache: CacheUse::default(),
            cookies: 0,
            flights: BTreeMap::new(),
            parked: None,
            swift: Vec::new(),
            swift_dones: Vec::new(),
            own: Vec::new(),
            errands: VecDeque::new(),
            shrinks: Vec::new(),
            scratch: Vec::new(),
            next_issue: 0,
            willing: true,
            pending: BTreeMap::new(),
            half_done: Vec::new(),
            cut_shrinks: Vec::new(),
            attachments: BTreeMap::new(),
            attachment_count: 0,
            doomed: BTreeSet::new(),
            disks_to_make,
            recovered: false,
            fresh: true,
            progress: (0, 0),
            nested: 0,
            next_crash: NEVER,
            aimed: false,
            first_flush: (None, false),
            flush_failed_at: NEVER,
            errors_seen: 0,
            no_space_seen: 0,
            healthy: false,
            calm: false,
            damage: Damage::default(),
            empty_blocks: None,
            segs: Vec::new(),
            held: None,
            mates: Vec::new(),
            is_mate: false,
            wishes_crash: false,
        }
    }

    pub(super) fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("the engine lives between open and crash")
    }

    pub(super) fn engine_mut(&mut self) -> &mut Engine {
        self.engine.as_mut().expect("the engine lives between open and crash")
    }

    /// A fresh cookie for a request or command.
    pub(super) fn new_cookie(&mut self) -> u64 {
        self.cookies += 1;
        self.cookies
    }

    /// Until all operations have been given.
    ///
    /// # Errors
    /// The first violation.
    pub fn run(&mut self) -> Result<(), String> {
        let unfinished = |w: &World| w.issued < w.plan.ops || !w.recovered;
        while unfinished(self) || self.mates.iter().any(unfinished) {
            self.turn()?;
            if self.step > PATIENCE_TURNS * 10 {
                return Err(format!("only {} operations after {} turns", self.issued, self.step));
            }
        }
        Ok(())
    }

    /// One turn of the host's loop.
    pub(super) fn turn(&mut self) -> Result<(), String> {
        self.act()?;
        let open = self.all_recovered();
        self.each_mate(World::act)?;
        if !open && self.all_recovered() {
            self.all_open();
            self.draw_next_crash();
        }
        if self.base.happened >= self.next_crash || self.reopening_due() || self.mates_wish() {
            let power = !self.aimed && self.rng.chance(self.plan.power_permille);
            self.crash(if power { Crash::Power } else { Crash::Kill })?;
            return Ok(());
        }
        self.pass_time()
    }

    /// The turn of one shard: everything but the passing of time.
    fn act(&mut self) -> Result<(), String> {
        self.step += 1;
        super::note_step(self.step);
        self.deliver();
        if self.recovered {
            self.issue()?;
        }
        let (permille, most) = self.plan.squeeze;
        if permille > 0 && self.rng.chance(permille) {
            self.engine_mut().evict_nodes(most);
            if self.plan.forgets {
                self.engine_mut().forget_copies();
            }
        }
        let now = self.now;
        self.fresh = false;
        self.move_all();
        self.engine_mut().tick(now);
        self.start_io()?;
        self.take_events()?;
        self.take_dones()?;
        self.take_replies()?;
        self.watch_state()?;
        self.watch_hold();
        self.watch_progress()
    }

    /// Something must happen now and then, or the engine turns for nothing.
    fn watch_progress(&mut self) -> Result<(), String> {
        let mark = self.base.happened + self.cookies + self.model.clock;
        if mark != self.progress.0 {
            self.progress = (mark, self.step);
        }
        if self.step - self.progress.1 < STILL_TURNS {
            return Ok(());
        }
        Err(self.stuck("nothing has happened for many turns"))
    }

    fn stuck(&self, why: &str) -> String {
        let engine = self.engine();
        let requests: Vec<u64> = self.flights.keys().copied().collect();
        let commands: Vec<u64> = self.pending.keys().copied().collect();
        format!(
            "{why}: requests {requests:?} and commands {commands:?} are in flight, {} base \
             operations; engine {:?}, busy {}, deadline {:?}, now {}",
            self.base.in_flight(),
            engine.state(),
            engine.busy(),
            engine.deadline_ns(),
            self.now
        )
    }

    fn deliver(&mut self) {
        let batch = self.rng.pick(&[1, 4, 1000]);
        for _ in 0..batch {
            let Some((tag, result)) = self.base.poll(self.now) else { return };
            self.first_flush.1 |= result.is_ok() && self.first_flush.0 == Some(tag);
            let now = self.now;
            self.trace.note("complete", [tag.0, u64::from(result.is_ok()), 0]);
            self.trace.line(now, || format!("  base: {tag:?} {result:?}"));
            if result.is_err() && self.base.injected.flushes > 0 && self.flush_failed_at == NEVER {
                self.flush_failed_at = self.model.tick();
            }
            self.take_harm();
            if let Some(done) = self.engine_mut().ended(tag, result) {
                self.swift_dones.push(done);
            }
        }
    }

    fn issue(&mut self) -> Result<(), String> {
        if self.calm {
            // Only what the last phase has asked for.
            while !self.errands.is_empty() || self.parked.is_some() {
                if !self.issue_request()? {
                    break;
                }
            }
            return Ok(());
        }
        self.issue_chores()?;
        if self.now < self.next_issue || self.issued >= self.plan.ops {
            return Ok(());
        }
        let before = self.issued;
        for _ in 0..self.rng.between(1, self.plan.burst) {
            if self.rng.chance(self.plan.command_permille) {
                self.issue_command();
            } else if !self.issue_request()? {
                break;
            }
        }
        self.willing = self.issued > before;
        if self.plan.pause_ns > 0 && self.willing {
            self.next_issue = self.now + self.rng.around(self.plan.pause_ns);
        }
        Ok(())
    }

    /// Starts what the engine wants of the base.
    fn start_io(&mut self) -> Result<(), String> {
        self.start_own(true)?;
        while let Some(io) = self.engine_mut().next_io() {
            let mut segs = std::mem::take(&mut self.segs);
            if io.first.len == io.len as usize {
                segs.clear();
                segs.push(io.first);
            } else {
                self.engine().gather(&io, &mut segs);
            }
            self.start_one(&io, &segs)?;
            self.segs = segs;
        }
        Ok(())
    }

    /// Starts one base operation, which must keep to the rules.
    pub(super) fn start_one(&mut self, io: &BaseIo, segs: &[Seg]) -> Result<(), String> {
        let region = self.label.first_region + u64::from(self.plan.shard) * self.label.region_bytes;
        let bytes: usize = segs.iter().map(|seg| seg.len).sum();
        let flush = io.op == BaseOp::Flush;
        let aligned = io.offset.is_multiple_of(512) && io.len.is_multiple_of(512);
        let end = io.offset.checked_add(u64::from(io.len));
        let inside = end.is_some_and(|end| end <= self.label.region_bytes);
        if !aligned || !inside || bytes != io.len as usize || flush != (io.len == 0) {
            return Err(format!("a base operation against the rules: {io:?}, {bytes} bytes"));
        }
        self.check_settled(io)?;
        let now = self.now;
        self.trace.note("io", [io.op as u64, io.offset, u64::from(io.len)]);
        self.trace.line(now, || {
            format!("  base: {:?} start {:?} {:#x}+{:#x}", io.tag, io.op, io.offset, io.len)
        });
        self.base.start(io, region + io.offset, segs, now);
        if io.op == BaseOp::Write && io.offset < SUPERBLOCKS_BYTES {
            self.aim();
        }
        Ok(())
    }

    fn take_events(&mut self) -> Result<(), String> {
        while let Some(event) = self.engine_mut().next_event() {
            self.damage.hear(&event.text);
            let now = self.now;
            self.trace.line(now, || {
                format!("engine{}: {}", if event.severe { " (severe)" } else { "" }, event.text)
            });
            // A cut alone leaves nothing that recovery could complain of.
            let injected = self.base.injected;
            let harmed = injected.any() || injected.no_space() || self.plan.faults.harm.any();
            if event.severe && !self.recovered && !harmed {
                return Err(format!("recovery says: {}", event.text));
            }
        }
        Ok(())
    }

    /// Virtual time goes to the next thing that happens.
    fn pass_time(&mut self) -> Result<(), String> {
        // Not for ever: a run out of bytes instead of a seed may draw the same again and again.
        let idle = self.plan.idle_ticks && self.step - self.progress.1 < STILL_TURNS / 20;
        if self.any_busy() || idle && self.rng.chance(300) {
            self.now += self.rng.between(200, 3_000);
            return Ok(());
        }
        let wanted = [self.base.next_time(), self.wants_time()];
        let theirs: Vec<Option<u64>> = self.mates.iter().map(World::wants_time).collect();
        if !self.calm && self.plan.leap_permille > 0 && self.rng.chance(self.plan.leap_permille) {
            let second = 1_000_000_000;
            self.now += self.rng.pick(&[1, 60, 3600, 30 * 86_400]) * second;
        }
        let waits = wanted.into_iter().chain(theirs).flatten().min();
        if self.base.is_stuck() && (waits.is_none() || self.rng.chance(5)) {
            self.now += self.rng.between(1, 300) * 1_000_000_000;
            self.base.relent(self.now);
            return Ok(());
        }
        match waits {
            Some(at) => self.now = self.now.max(at),
            None if self.answered() && self.mates.iter().all(World::answered) => {}
            None => {
                return Err(self.stuck("there is nothing to wait for"));
            }
        }
        self.now += self.rng.below(200);
        Ok(())
    }

    /// When the engine or the clients want to go on.
    fn wants_time(&self) -> Option<u64> {
        let may_issue = self.recovered && !self.calm && self.issued < self.plan.ops;
        let could_issue = may_issue && (self.willing || self.next_issue > self.now);
        let issue = could_issue.then_some(self.next_issue);
        self.engine().deadline_ns().into_iter().chain(issue).min()
    }

    fn answered(&self) -> bool {
        self.recovered && self.flights.is_empty() && self.pending.is_empty()
    }

    /// True if some shard would get on with something at once.
    fn any_busy(&self) -> bool {
        let busy = |w: &World| w.fresh || w.engine().busy();
        busy(self) || self.mates.iter().any(busy)
    }

    /// Nothing is in flight above or below.
    pub(super) fn idle(&self) -> bool {
        self.recovered
            && self.flights.is_empty()
            && self.parked.is_none()
            && self.pending.is_empty()
            && self.errands.is_empty()
            && self.base.in_flight() == 0
    }

    /// Turns until nothing is in flight and the engine rests.
    pub(super) fn drain(&mut self) -> Result<(), String> {
        let (step, now) = (self.step, self.now);
        while !self.idle() || !self.mates.iter().all(World::idle) || self.any_busy() {
            self.turn()?;
            if self.step - step > PATIENCE_TURNS || self.now - now > PATIENCE_NS {
                return Err(self.stuck("it does not come to rest"));
            }
        }
        Ok(())
    }

    /// The hash over all events so far.
    pub fn hash(&self) -> u64 {
        self.mates.iter().fold(self.trace.hash(), |hash, mate| mix(hash ^ mate.hash()))
    }

    /// Turns so far.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Crashes so far.
    pub fn crash_count(&self) -> u64 {
        self.crashes
    }

    /// Ends the run without a crash of its own.
    pub fn close(mut self) -> Trace {
        // The engine goes before the memory of requests in flight.
        self.end_engine();
        self.trace
    }

    /// What the node cache did, in all lives so far.
    pub fn cache_use(&self) -> CacheUse {
        let mut all = self.cache;
        all.add(self.engine.as_ref().map(|engine| engine.stats().into()).unwrap_or_default());
        all
    }

    pub(super) fn end_engine(&mut self) {
        self.cache = self.cache_use();
        self.engine = None;
    }
}

/// Writes a new store onto the device.
fn format(plan: &Plan, base: &mut Base, seed: u64) -> Result<StoreLabel, String> {
    let params = FormatParams {
        uuid: Uuid(std::array::from_fn(|i| (seed >> (i % 8 * 8)) as u8 ^ i as u8)),
        name: Name::new("simulated").expect("a lawful name"),
        device_bytes: plan.device_bytes,
        shards: plan.shards,
        journal_bytes: plan.journal_bytes,
        time: 1_700_000_000,
    };
    let writes = format_plan(&params).map_err(|error| format!("format: {error}"))?;
    base.reserved = fixed_areas(&params).map_err(|error| format!("areas: {error}"))?;
    for write in writes {
        let end = write.offset + write.bytes.len() as u64;
        if write.offset % 4096 != 0 || write.bytes.len() % 4096 != 0 || end > plan.device_bytes {
            return Err(format!("format writes {} bytes at {}", write.bytes.len(), write.offset));
        }
        base.install(write.offset, &write.bytes);
    }
    let mut first = vec![0; LABEL_BYTES];
    base.peek(0, &mut first);
    let label =
        read_label(&first, plan.device_bytes).map_err(|error| format!("read_label: {error}"))?;
    let end = label.first_region + u64::from(plan.shards) * label.region_bytes;
    if end > plan.device_bytes || label.shards != plan.shards {
        return Err(format!("the label does not fit the device: {label:?}"));
    }
    Ok(label)
}

//! The lives of the engine: opening, watching its state, and how each life ends.
//!
//! ```text
//!  open ─▶ recovering ─▶ ready ─▶ crash (kill, power cut, reopening after errors) ─▶ image seen ─┐
//!    ▲          └── crash again, up to NESTED_MAX deep ──────────────────────────────▶┤
//!    └──────────────────────────────────────────────────────────────────────────────┘
//! ```

use lamina_bdev::{BaseIo, BaseOp, Engine, EngineState, ErrorKind};

use super::fsck::{self, Findings};
use super::image::Image;
use super::ops::NEVER;
use super::plan::{Faults, Lie};
use super::power::Crash;
use super::world::World;

/// Crashes within one recovery, at most.
const NESTED_MAX: u32 = 4;

impl World {
    /// Opens the engine on what the device holds.
    pub(super) fn open(&mut self) {
        self.recovered = false;
        self.healthy = false;
        self.flush_failed_at = NEVER;
        self.errors_seen = 0;
        self.first_flush = (None, false);
        let faults =
            if self.calm || self.nested > 1 { Faults::default() } else { self.plan.faults };
        // The first opening is not under test: it measures the empty store.
        let faults = if self.all_measured() { faults } else { Faults::default() };
        self.set_faults(faults);
        if self.rng.chance(200) {
            self.config.cache_bytes = self.rng.pick(&[1, 2, 4]) << 20;
        }
        let (config, traits, shard) = (self.config, self.plan.traits, self.plan.shard);
        self.engine = Some(Engine::open(config, traits, &self.label, shard));
        self.fresh = true;
        self.draw_next_crash();
    }

    pub(super) fn draw_next_crash(&mut self) {
        let every = self.plan.crash_every;
        (self.next_crash, self.aimed) = (NEVER, false);
        if self.calm || every == 0 || !self.all_measured() {
            return;
        }
        let wait = if self.all_recovered() {
            self.rng.around(every)
        } else if self.nested < NESTED_MAX && self.rng.chance(self.plan.nested_permille) {
            self.rng.between(1, 60)
        } else {
            return;
        };
        self.next_crash = self.base.happened + wait;
    }

    /// A superblock is being written: some plans kill the daemon before it is durable.
    pub(super) fn aim(&mut self) {
        let rate = self.plan.aimed_permille;
        if rate == 0 || self.calm || !self.all_measured() || self.nested >= NESTED_MAX {
            return;
        }
        let due = self.base.happened + self.rng.between(1, 6);
        if due < self.next_crash && self.rng.chance(rate) {
            (self.next_crash, self.aimed) = (due, true);
        }
    }

    /// What a life has read may still be in the device's cache: it must be durable before anything
    /// is written on top of it.
    ///
    /// # Errors
    /// The operation is a write, and comes too early.
    pub(super) fn check_settled(&mut self, io: &BaseIo) -> Result<(), String> {
        let (first, done) = &mut self.first_flush;
        match io.op {
            BaseOp::Flush => *first = first.or(Some(io.tag)),
            BaseOp::Write if self.plan.traits.volatile_cache && !*done => {
                return Err(format!("recovery writes before it has flushed: {io:?}"));
            }
            BaseOp::Read | BaseOp::Write => {}
        }
        Ok(())
    }

    /// No crash is due any more.
    pub(super) fn forget_crash(&mut self) {
        self.next_crash = NEVER;
    }

    /// After errors the host reopens the store, sooner or later.
    pub(super) fn reopening_due(&mut self) -> bool {
        let errors = self.errors_seen;
        if self.lie == Lie::Alone {
            return errors >= 1000;
        }
        errors >= 100 || errors > 0 && self.recovered && self.rng.chance(2 + 5 * errors)
    }

    pub(super) fn watch_state(&mut self) -> Result<(), String> {
        match (self.engine().state(), self.recovered) {
            (EngineState::Opening, false) | (EngineState::Ready, true) => Ok(()),
            (EngineState::Ready, false) => {
                self.recovered = true;
                if self.all_recovered() {
                    self.all_open();
                }
                let now = self.now;
                self.trace.note("ready", [self.crashes, 0, 0]);
                self.trace.line(now, || "the store is open".to_string());
                self.reconcile()?;
                // Not before: the first reconciliation says that there is something to lose.
                if self.all_recovered() {
                    self.draw_next_crash();
                }
                if !self.calm && self.rng.chance(300) {
                    self.wish_reads();
                }
                Ok(())
            }
            (EngineState::Failed, false) => self.judge_failed_open(),
            (state, _) => Err(format!("the engine is {state:?} after it was ready")),
        }
    }

    /// All shards are open: the faults of the plan begin.
    pub(super) fn all_open(&mut self) {
        self.nested = 0;
        self.set_faults(if self.calm { Faults::default() } else { self.plan.faults });
    }

    fn judge_failed_open(&mut self) -> Result<(), String> {
        let error = self.engine().open_error().cloned();
        let Some(error) = error else {
            return Err("opening failed without an error".to_string());
        };
        let injected = self.base.injected;
        if error.kind != ErrorKind::Io || !injected.any() && !injected.no_space() {
            return Err(format!("opening failed: {:?}: {error}", error.kind));
        }
        self.crash(Crash::Kill)
    }

    /// The engine is about to die, for the `nested`th time before it was open.
    pub(super) fn fall(&mut self, nested: u32) {
        self.crashes += 1;
        self.nested = nested;
        self.wishes_crash = false;
        self.propose_pending();
    }

    /// The engine has died; `lossy` if the device may have lost completed writes.
    pub(super) fn bury(&mut self, crash: Crash, lossy: bool) -> Result<(), String> {
        let now = self.now;
        self.trace.note("crash", [crash as u64, u64::from(lossy), self.base.happened]);
        self.end_engine();
        self.flights.clear();
        self.parked = None;
        self.errands.clear();
        self.attachments.clear();
        self.shrinks.clear();
        self.held = None;
        self.model.crash(lossy);
        let clock = self.model.clock;
        self.trace.line(now, || format!("event {clock} crash: {crash:?}, lossy: {lossy}"));
        if self.nested > NESTED_MAX * 4 {
            return Err("it never opens".to_string());
        }
        self.check_image()?;
        self.rehearse()?;
        self.ruin()
    }

    /// Reads the store as it lies on the device, with a reader of our own.
    pub(super) fn check_image(&mut self) -> Result<Findings, String> {
        let image = Image::new(&self.base, &self.label, self.plan.shard);
        let findings =
            fsck::check(&image, self.damage.done()).map_err(|why| format!("image: {why}"))?;
        self.trace.note("image", [findings.generation, findings.free, findings.mapping]);
        Ok(findings)
    }
}

//! The lives of the engine: opening, watching its state, and how each life ends.
//!
//! ```text
//!  open ─▶ recovering ─▶ ready ─▶ crash (kill, power cut, reopening after errors) ─▶ image seen ─┐
//!    ▲          └── crash again, up to NESTED_MAX deep ──────────────────────────────▶┤
//!    └──────────────────────────────────────────────────────────────────────────────┘
//! ```

use lamina_bdev::{Engine, EngineState, ErrorKind};

use super::fsck::{self, Findings};
use super::image::Image;
use super::ops::NEVER;
use super::plan::Faults;
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
        let faults =
            if self.calm || self.nested > 1 { Faults::default() } else { self.plan.faults };
        // The first opening is not under test: it measures the empty store.
        let faults = if self.empty_blocks.is_none() { Faults::default() } else { faults };
        self.base.behave(self.plan.latency, faults, self.lie);
        if self.rng.chance(200) {
            self.config.cache_bytes = self.rng.pick(&[1, 2, 8]) << 20;
        }
        let (config, traits, shard) = (self.config, self.plan.traits, self.plan.shard);
        self.engine = Some(Engine::open(config, traits, &self.label, shard));
        self.fresh = true;
        self.draw_next_crash();
    }

    fn draw_next_crash(&mut self) {
        let every = self.plan.crash_every;
        self.next_crash = NEVER;
        if self.calm || every == 0 || self.empty_blocks.is_none() {
            return;
        }
        let wait = if self.recovered {
            self.rng.around(every)
        } else if self.nested < NESTED_MAX && self.rng.chance(self.plan.nested_permille) {
            self.rng.between(1, 60)
        } else {
            return;
        };
        self.next_crash = self.base.happened + wait;
    }

    /// No crash is due any more.
    pub(super) fn forget_crash(&mut self) {
        self.next_crash = NEVER;
    }

    /// After errors the host reopens the store, sooner or later.
    pub(super) fn reopening_due(&mut self) -> bool {
        let errors = self.errors_seen;
        errors >= 100 || errors > 0 && self.recovered && self.rng.chance(2 + 5 * errors)
    }

    pub(super) fn watch_state(&mut self) -> Result<(), String> {
        match (self.engine().state(), self.recovered) {
            (EngineState::Opening, false) | (EngineState::Ready, true) => Ok(()),
            (EngineState::Ready, false) => {
                self.recovered = true;
                self.nested = 0;
                self.base.behave(self.plan.latency, self.current_faults(), self.lie);
                let now = self.now;
                self.trace.note("ready", [self.crashes, 0, 0]);
                self.trace.line(now, || "the store is open".to_string());
                self.reconcile()?;
                // Not before: the first reconciliation says that there is something to lose.
                self.draw_next_crash();
                if !self.calm && self.rng.chance(300) {
                    self.wish_reads();
                }
                Ok(())
            }
            (EngineState::Failed, false) => self.judge_failed_open(),
            (state, _) => Err(format!("the engine is {state:?} after it was ready")),
        }
    }

    fn current_faults(&self) -> Faults {
        if self.calm { Faults::default() } else { self.plan.faults }
    }

    fn judge_failed_open(&mut self) -> Result<(), String> {
        let error = self.engine().open_error().cloned();
        let Some(error) = error else {
            return Err("opening failed without an error".to_string());
        };
        if error.kind != ErrorKind::Io || !self.base.injected.any() {
            return Err(format!("opening failed: {:?}: {error}", error.kind));
        }
        self.crash(Crash::Kill)
    }

    /// The engine dies; what is left is opened again.
    pub(super) fn crash(&mut self, crash: Crash) -> Result<(), String> {
        self.crashes += 1;
        self.nested += u32::from(!self.recovered);
        self.propose_pending();
        let lossy = self.base.crash(crash);
        let now = self.now;
        self.trace.note("crash", [crash as u64, u64::from(lossy), self.base.happened]);
        self.engine = None;
        self.flights.clear();
        self.parked = None;
        self.errands.clear();
        self.attachments.clear();
        self.shrinks.clear();
        self.model.crash(lossy);
        let clock = self.model.clock;
        self.trace.line(now, || format!("event {clock} crash: {crash:?}, lossy: {lossy}"));
        if self.nested > NESTED_MAX * 4 {
            return Err("it never opens".to_string());
        }
        self.check_image()?;
        self.open();
        Ok(())
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

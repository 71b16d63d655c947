//! Power cuts, enumerated: short workloads on the production engine over a recording RAM device,
//! then every state that a cut may leave, recovered and compared with what was promised.
//!
//! ```text
//!  workload (1-3 letters) ─▶ engine ─▶ log of writes and flushes ─▶ cuts: certain + uncertain
//!          │                                                             │ states
//!        facts ──────────▶ due at the cut ──────▶ judge ◀── recover ◀────┘   (and cuts of the
//!                                                   └─ open again: no change    recovery itself)
//! ```
//!
//! The rules that name the states are in `states.rs`; the alphabet is in `script.rs`.

mod due;
mod facts;
mod host;
mod image;
mod judge;
mod log;
mod script;
mod states;

use std::cell::RefCell;
use std::collections::HashSet;

use lamina_bdev::BaseTraits;

use due::Due;
use facts::check_flushes;
use host::{Host, Order};
use image::{Image, Pool};
use judge::Judge;
use log::{Cut, Log};
pub use script::Letter;
use script::{Player, START, prelude};
pub use states::Thorough;
use states::{Shape, apply, nested_shapes, shapes};

use crate::sim::rng::{Rng, mix};

/// The base device and the host of a workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setting {
    /// Completed writes may be lost until a flush.
    pub volatile: bool,
    /// 4 KiB writes do not tear.
    pub atomic: bool,
    /// Each request is answered before the next is given; else all are given at once, and the base
    /// completes its operations newest first.
    pub patient: bool,
}

/// A word over the alphabet, in a setting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Workload {
    /// Where.
    pub setting: Setting,
    /// What.
    pub letters: Vec<Letter>,
}

impl Setting {
    /// All of them.
    pub fn all() -> Vec<Setting> {
        let both = [true, false];
        let mut found = Vec::new();
        for volatile in both {
            for atomic in both {
                found.extend(both.map(|patient| Setting { volatile, atomic, patient }));
            }
        }
        found
    }

    fn traits(self) -> BaseTraits {
        BaseTraits { volatile_cache: self.volatile, atomic_4k: self.atomic, atomic_rw: false }
    }

    fn name(self) -> String {
        let cache = if self.volatile { "cache" } else { "steady" };
        let tears = if self.atomic { "whole" } else { "torn" };
        let pace = if self.patient { "serial" } else { "burst" };
        format!("{cache}-{tears}-{pace}")
    }
}

impl Workload {
    /// Its name, as `--only` takes it: `cache-torn-burst:write+snapshot`.
    pub fn name(&self) -> String {
        let letters: Vec<_> = self.letters.iter().map(|letter| letter.name()).collect();
        format!("{}:{}", self.setting.name(), letters.join("+"))
    }

    /// The workload of a name.
    pub fn parse(name: &str) -> Option<Workload> {
        let (setting, letters) = name.split_once(':')?;
        let setting = Setting::all().into_iter().find(|s| s.name() == setting)?;
        let letter = |word: &str| Letter::ALL.into_iter().find(|letter| letter.name() == word);
        let letters = letters.split('+').map(letter).collect::<Option<Vec<Letter>>>()?;
        Some(Workload { setting, letters })
    }

    /// All words of `length` letters in all settings.
    pub fn all(length: u32) -> Vec<Workload> {
        let count = Letter::ALL.len().pow(length);
        let word = |mut at: usize| {
            let mut letters = Vec::new();
            for _ in 0..length {
                letters.push(Letter::ALL[at % Letter::ALL.len()]);
                at /= Letter::ALL.len();
            }
            letters.reverse();
            letters
        };
        let in_all = |letters: Vec<Letter>| {
            let settings = Setting::all().into_iter();
            settings.map(move |setting| Workload { setting, letters: letters.clone() })
        };
        (0..count).flat_map(|at| in_all(word(at))).collect()
    }

    /// Word number `number` of the endless random sequence of three-letter words.
    pub fn random(number: u64) -> Workload {
        let mut rng = Rng::new(mix(number));
        let setting = rng.pick(&Setting::all());
        let letters = (0..3).map(|_| rng.pick(&Letter::ALL)).collect();
        Workload { setting, letters }
    }
}

/// What to try.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Which states of what is uncertain.
    pub thorough: Thorough,
    /// Cut the recovery of one state in so many.
    pub nested: u64,
    /// Cuts within cuts.
    pub depth: usize,
    /// Kill the daemon at one moment in so many, and cut the power while it recovers; 0: never.
    pub kills: u64,
    /// One state in so many gets all checks: owners of all blocks, space of a store emptied.
    pub all: u64,
    /// Only this state.
    pub only: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        let thorough = Thorough { subsets: 12, random: 256 };
        Options { thorough, nested: 8, depth: 1, kills: 1, all: 16, only: None }
    }
}

/// What came of a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Different states tried.
    pub states: u64,
    /// States that equalled one tried before.
    pub repeated: u64,
    /// Most uncertain blocks at one moment.
    pub uncertain_max: usize,
    /// The state and what is wrong with it.
    pub violations: Vec<(u64, String)>,
}

/// Violations after which a workload is left.
const VIOLATIONS_MAX: usize = 3;

thread_local! {
    static AT: RefCell<(String, u64)> = const { RefCell::new((String::new(), 0)) };
}

/// The workload and the state that this thread is at, for a panic's report.
pub fn current() -> (String, u64) {
    AT.with_borrow(|at| at.clone())
}

/// One workload being tried.
struct Trial<'a> {
    pool: &'a mut Pool,
    judge: Judge,
    options: Options,
    tears: bool,
    volatile: bool,
    seen: HashSet<u64>,
    number: u64,
    outcome: Outcome,
}

/// Plays a workload and tries its states.
pub fn run(workload: &Workload, options: &Options) -> Outcome {
    AT.set((workload.name(), 0));
    match try_run(workload, options) {
        Ok(outcome) => outcome,
        Err(why) => Outcome { violations: vec![(0, why)], ..Outcome::default() },
    }
}

fn try_run(workload: &Workload, options: &Options) -> Result<Outcome, String> {
    let (mut pool, setting) = (Pool::new(), workload.setting);
    let (store, facts) = prelude(&mut pool, setting.traits())?;
    let order = if setting.patient { Order::Together } else { Order::Newest };
    let (traits, log) = (setting.traits(), Log::new(START));
    let host = Host::open(&mut pool, store.image, &store.label, traits, order, log)?;
    let mut player = Player::new(host, facts, setting.patient);
    player.attach_all(&mut pool)?;
    player.rest(&mut pool)?;
    let start = player.host.image.clone();
    player.host.begin_log();
    for letter in &workload.letters {
        player.play(&mut pool, *letter)?;
    }
    player.rest(&mut pool)?;
    player.host.log.note();
    let (mut facts, log) = (player.facts, player.host.log);
    check_flushes(&facts, &log)?;
    let judge = Judge::new(store.label, setting.traits(), store.empty_blocks);
    let (tears, volatile) = (!setting.atomic, setting.volatile);
    let cuts = log.cuts(&pool, &start, volatile);
    let mut trial = Trial {
        pool: &mut pool,
        judge,
        options: *options,
        tears,
        volatile,
        seen: HashSet::new(),
        number: 0,
        outcome: Outcome::default(),
    };
    for cut in &cuts {
        let due = facts.due(cut.at);
        let ways = shapes(&cut.uncertain, tears, options.thorough);
        trial.cut(cut, &ways, &due, 0);
        if volatile && mix(cut.at as u64).is_multiple_of(options.kills.max(1)) {
            trial.kill(cut, &facts.due_after_kill(cut.at), &due);
        }
    }
    Ok(trial.outcome)
}

impl Trial<'_> {
    /// Enough has been found.
    fn over(&self) -> bool {
        self.outcome.violations.len() >= VIOLATIONS_MAX
    }

    /// All states of one cut.
    fn cut(&mut self, cut: &Cut, ways: &[Shape], due: &Due, depth: usize) {
        self.outcome.uncertain_max = self.outcome.uncertain_max.max(cut.uncertain.len());
        let mut image = cut.certain.clone();
        for shape in ways {
            if self.over() {
                return;
            }
            let mark = self.pool.mark();
            image.become_copy(&cut.certain);
            apply(self.pool, &mut image, &cut.uncertain, *shape);
            if self.seen.insert(image.hash() ^ due.signature) {
                self.state(&image, cut, *shape, due, depth);
            } else {
                self.outcome.repeated += 1;
            }
            self.pool.drop_after(mark);
        }
    }

    /// The daemon dies, the device does not; then, at any moment of the recovery, power is cut.
    fn kill(&mut self, cut: &Cut, killed: &Due, due: &Due) {
        if self.over() || self.options.kills == 0 {
            return;
        }
        let mark = self.pool.mark();
        let shape = Shape { keep: u128::MAX, torn: None };
        let mut image = cut.certain.clone();
        apply(self.pool, &mut image, &cut.uncertain, shape);
        self.number += 1;
        self.outcome.states += 1;
        AT.with_borrow_mut(|at| at.1 = self.number);
        match self.judge.judge(self.pool, image, &cut.uncertain, killed, true) {
            Ok(recovered) => {
                for inner in recovered.log.cuts(self.pool, &cut.certain, true) {
                    let ways = shapes(&inner.uncertain, self.tears, self.options.thorough);
                    self.cut(&inner, &ways, due, self.options.depth);
                }
            }
            Err(why) => self.accuse(self.number, format!("killed: {why}"), cut, shape, 0),
        }
        self.pool.drop_after(mark);
    }

    fn state(&mut self, image: &Image, cut: &Cut, shape: Shape, due: &Due, depth: usize) {
        self.number += 1;
        let number = self.number;
        AT.with_borrow_mut(|at| at.1 = number);
        let wanted = self.options.only.is_none_or(|only| only == number);
        self.outcome.states += 1;
        let chosen = |every: u64| every > 0 && (mix(image.hash()) >> 8).is_multiple_of(every);
        let nested = depth < self.options.depth && (depth > 0 || chosen(self.options.nested));
        if !wanted && !nested {
            return;
        }
        match self.judge.judge(self.pool, image.clone(), &[], due, chosen(self.options.all)) {
            Ok(recovered) if nested => {
                for inner in recovered.log.cuts(self.pool, image, self.volatile) {
                    let ways = nested_shapes(&inner.uncertain, self.tears);
                    self.cut(&inner, &ways, due, depth + 1);
                }
            }
            Ok(_) => {}
            Err(why) => self.accuse(number, why, cut, shape, depth),
        }
    }

    fn accuse(&mut self, number: u64, why: String, cut: &Cut, shape: Shape, depth: usize) {
        let units: Vec<String> = cut
            .uncertain
            .iter()
            .enumerate()
            .map(|(at, unit)| {
                let kept = if shape.keep >> at & 1 == 1 { "+" } else { "-" };
                let torn = shape.torn.filter(|(torn, _)| *torn == at);
                let torn = torn.map_or(String::new(), |(_, sectors)| format!("~{sectors}"));
                let kind = if unit.metadata { "m" } else { "d" };
                format!("{kept}{kind}{}{torn}", unit.block)
            })
            .collect();
        let text = format!(
            "{why}\n    cut at {} (depth {depth}), uncertain: {}",
            cut.at % START,
            units.join(" ")
        );
        self.outcome.violations.push((number, text));
    }
}

//! `sim`: runs the simulator over a range of seeds on some threads, or one seed with its log.
//!
//! A panic of the engine is a violation of its seed. Release builds abort on a panic, so the hook
//! reports it, hands the thread's work to a new one and never returns.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use clap::{Parser, ValueEnum};
use lamina_tests::sim::{CacheUse, Lie, Options, Outcome, current, regressions, run_seed};

/// After so many violations no new seed is begun.
const VIOLATIONS_MAX: u64 = 200;

/// Runs the production engine over a simulated base device, with crashes, and checks everything.
#[derive(Parser, Debug)]
#[command(
    after_help = "Examples:\n  sim --seeds 2000\n  sim --seed 17 --log    one seed, every event"
)]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Requests and commands in one run.
    #[arg(long, default_value_t = 300)]
    ops: u64,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Only this seed.
    #[arg(long)]
    seed: Option<u64>,
    /// With --seed: print each event.
    #[arg(long, requires = "seed")]
    log: bool,
    /// Print the hash over all events of each seed.
    #[arg(long)]
    trace_hash: bool,
    /// Print a line for each seed.
    #[arg(long)]
    verbose: bool,
    /// Plant each known bug in the engine and see how many seeds it takes to find it.
    #[cfg(feature = "canaries")]
    #[arg(long)]
    canaries: bool,
    /// With --canaries: only those whose name holds this.
    #[cfg(feature = "canaries")]
    #[arg(long, requires = "canaries")]
    canary: Option<String>,
    /// Let the base device break a promise; violations are then what is hoped for.
    #[arg(long, value_enum, default_value_t = LieArgument::None)]
    lie: LieArgument,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LieArgument {
    /// An honest device.
    None,
    /// Flushes do nothing.
    Flush,
    /// 4 KiB writes tear in spite of a promise.
    Tear,
    /// Completed writes are lost when the daemon dies.
    Forget,
    /// Of several shards only one is told that a flush has failed.
    Alone,
}

impl LieArgument {
    fn lie(self) -> Lie {
        match self {
            LieArgument::None => Lie::None,
            LieArgument::Flush => Lie::Flush,
            LieArgument::Tear => Lie::Tear,
            LieArgument::Forget => Lie::Forget,
            LieArgument::Alone => Lie::Alone,
        }
    }
}

/// What a worker says.
enum Message {
    Finished(u64, Outcome),
    /// Job, seed and step, and what the panic said.
    Panicked(u64, (u64, u64), String),
}

/// Seeds still to run.
struct Work {
    jobs: Vec<(u64, Options)>,
    next: AtomicU64,
}

impl Work {
    fn take(&self) -> Option<u64> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        (index < self.jobs.len() as u64).then_some(index)
    }

    fn stop(&self) {
        self.next.store(self.jobs.len() as u64, Ordering::Relaxed);
    }
}

thread_local! {
    static JOB: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}

fn work_on(work: &Work, sender: &Sender<Message>) {
    while let Some(index) = work.take() {
        JOB.set(Some(index));
        let (seed, options) = work.jobs[index as usize];
        let outcome = run_seed(seed, &options);
        JOB.set(None);
        if sender.send(Message::Finished(index, outcome)).is_err() {
            return;
        }
    }
}

fn spawn(work: &Arc<Work>, sender: &Sender<Message>) {
    let (work, sender) = (work.clone(), sender.clone());
    thread::spawn(move || work_on(&work, &sender));
}

/// Reports panics of workers as messages; the thread that panicked never wakes again.
fn install_hook(sender: &Sender<Message>) {
    let default = std::panic::take_hook();
    let sender = Mutex::new(sender.clone());
    std::panic::set_hook(Box::new(move |info| {
        let Some(job) = JOB.get() else { return default(info) };
        let text = info.to_string();
        if let Ok(sender) = sender.lock() {
            let _ = sender.send(Message::Panicked(job, current(), text));
        }
        loop {
            thread::park();
        }
    }));
}

/// Counts of a whole run.
#[derive(Default)]
struct Totals {
    crashes: u64,
    steps: u64,
    violations: u64,
    cache: CacheUse,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.seed {
        return run_one(&arguments, seed);
    }
    #[cfg(feature = "canaries")]
    if arguments.canaries {
        return run_canaries(&arguments);
    }
    let plain = Options { ops: arguments.ops, lie: arguments.lie.lie(), log: false };
    let mut jobs: Vec<(u64, Options)> = Vec::new();
    if plain.lie == Lie::None {
        let again = |(seed, ops): (u64, u64)| (seed, Options { ops, ..plain });
        jobs.extend(regressions().into_iter().map(again));
    }
    let old = jobs.len() as u64;
    let range = arguments.first..arguments.first.saturating_add(arguments.seeds);
    jobs.extend(range.map(|seed| (seed, plain)));
    println!("sim: {old} known seeds, {} seeds of {} operations", arguments.seeds, arguments.ops);
    let totals = run_all(&arguments, jobs);
    println!("sim: {} turns", totals.steps);
    let CacheUse { misses, evictions, compactions, compact_hits, promotions, .. } = totals.cache;
    let CacheUse { pieces, piece_hits, in_place, .. } = totals.cache;
    println!(
        "sim: node cache: {misses} nodes read, {evictions} evicted, {compactions} leaves packed, \
         {pieces} pieces kept, {compact_hits} reads from compact copies ({piece_hits} of them from \
         pieces), {promotions} copies made nodes again, {in_place} links read in place"
    );
    println!(
        "sim: {} seeds, {} crashes, {} violations",
        arguments.seeds, totals.crashes, totals.violations
    );
    if totals.violations > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[cfg(feature = "canaries")]
fn run_canaries(arguments: &Arguments) -> ExitCode {
    let options = Options { ops: arguments.ops, ..Options::default() };
    let only = arguments.canary.as_deref();
    let caught = lamina_tests::sim::run_canaries(arguments.seeds, arguments.jobs, &options, only);
    if caught { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_all(arguments: &Arguments, jobs: Vec<(u64, Options)>) -> Totals {
    let (sender, receiver) = channel();
    install_hook(&sender);
    let work = Arc::new(Work { jobs, next: AtomicU64::new(0) });
    let mut totals = Totals::default();
    let workers = arguments.jobs.max(1).min(work.jobs.len());
    let mut waiting: std::collections::BTreeSet<u64> = (0..work.jobs.len() as u64).collect();
    (0..workers).for_each(|_| spawn(&work, &sender));
    while !waiting.is_empty() {
        let Ok(message) = receiver.recv() else { break };
        match message {
            Message::Finished(index, outcome) => {
                waiting.remove(&index);
                totals.crashes += outcome.crashes;
                totals.steps += outcome.steps;
                totals.cache.add(outcome.cache);
                report(arguments, work.jobs[index as usize].1.ops, &outcome, &mut totals);
            }
            Message::Panicked(index, (seed, step), text) => {
                waiting.remove(&index);
                let outcome = Outcome {
                    seed,
                    crashes: 0,
                    steps: step,
                    hash: 0,
                    cache: CacheUse::default(),
                    violation: Some(format!("panic: {text}")),
                };
                report(arguments, work.jobs[index as usize].1.ops, &outcome, &mut totals);
                spawn(&work, &sender);
            }
        }
        if totals.violations >= VIOLATIONS_MAX {
            println!("sim: {VIOLATIONS_MAX} violations, no more seeds are begun");
            work.stop();
            break;
        }
    }
    totals
}

fn report(arguments: &Arguments, ops: u64, outcome: &Outcome, totals: &mut Totals) {
    if arguments.verbose || arguments.trace_hash {
        println!(
            "seed {}: {} turns, {} crashes, trace {:016x}",
            outcome.seed, outcome.steps, outcome.crashes, outcome.hash
        );
    }
    if let Some(why) = &outcome.violation {
        totals.violations += 1;
        println!("VIOLATION in seed {} at step {}: {why}", outcome.seed, outcome.steps);
        println!("    again, with all events: sim --seed {} --ops {ops} --log", outcome.seed);
    }
}

/// One seed on this thread; a panic shows as itself.
fn run_one(arguments: &Arguments, seed: u64) -> ExitCode {
    let options = Options { ops: arguments.ops, lie: arguments.lie.lie(), log: arguments.log };
    let outcome = run_seed(seed, &options);
    let mut totals = Totals { crashes: outcome.crashes, ..Totals::default() };
    let shown = Arguments { trace_hash: true, ..Arguments::parse() };
    report(&shown, arguments.ops, &outcome, &mut totals);
    println!("sim: 1 seeds, {} crashes, {} violations", totals.crashes, totals.violations);
    if totals.violations > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

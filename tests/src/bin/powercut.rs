//! `powercut`: tries every state that a power cut may leave of short workloads.
//!
//! A panic of the engine is a violation. Release builds abort on a panic, so the hook reports it,
//! hands the thread's work to a new one and never returns.

use std::os::unix::process::CommandExt;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use clap::Parser;
use lamina_tests::powercut::{Options, Outcome, Thorough, Workload, current, run};

/// After so many violations no new workload is begun.
const VIOLATIONS_MAX: usize = 50;

/// Cuts the power of the production engine at every moment of short workloads.
#[derive(Parser, Debug)]
#[command(after_help = "Examples:\n  powercut\n  powercut --subsets 12 --nested 1 --seq3 3000\n  \
                        powercut --only cache-torn-serial:write+snapshot --state 17")]
struct Arguments {
    /// Try at least so many states: random three-letter workloads are added until it is so.
    #[arg(long, default_value_t = 500_000)]
    states: u64,
    /// Random three-letter workloads at least.
    #[arg(long, default_value_t = 300)]
    seq3: u64,
    /// All subsets of up to so many uncertain blocks.
    #[arg(long, default_value_t = 8)]
    subsets: usize,
    /// Of more: so many subsets at random.
    #[arg(long, default_value_t = 64)]
    random: usize,
    /// Cut also the recovery of one state in so many (of each one after one-letter workloads);
    /// 0: none.
    #[arg(long, default_value_t = 24)]
    nested: u64,
    /// Cuts within cuts within cuts.
    #[arg(long, default_value_t = 1)]
    depth: usize,
    /// Kill the daemon at one moment in so many (at each one of one-letter workloads), and cut the
    /// power while it recovers; 0: never.
    #[arg(long, default_value_t = 12)]
    kills: u64,
    /// One state in so many gets all checks: owners of all blocks, space of a store emptied.
    #[arg(long, default_value_t = 16)]
    all: u64,
    /// Plant a bug of this name in the engine.
    #[cfg(feature = "canaries")]
    #[arg(long)]
    canary: Option<String>,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Only this workload.
    #[arg(long)]
    only: Option<String>,
    /// With --only: only this state.
    #[arg(long, requires = "only")]
    state: Option<u64>,
    /// Print a line for each workload.
    #[arg(long)]
    verbose: bool,
}

enum Message {
    Finished(usize, Outcome),
    Panicked((String, u64), String),
}

/// Workloads still to try.
struct Work {
    workloads: Vec<(Workload, Options)>,
    next: AtomicUsize,
    #[cfg(feature = "canaries")]
    canary: Option<lamina_bdev::canary::Canary>,
}

thread_local! {
    static JOB: std::cell::Cell<Option<usize>> = const { std::cell::Cell::new(None) };
}

fn work_on(work: &Work, sender: &Sender<Message>) {
    #[cfg(feature = "canaries")]
    lamina_bdev::canary::plant(work.canary);
    loop {
        let index = work.next.fetch_add(1, Ordering::Relaxed);
        let Some((workload, options)) = work.workloads.get(index) else { return };
        JOB.set(Some(index));
        let outcome = run(workload, options);
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
        if JOB.get().is_none() {
            return default(info);
        }
        let text = info.to_string();
        if let Ok(sender) = sender.lock() {
            let _ = sender.send(Message::Panicked(current(), text));
        }
        loop {
            thread::park();
        }
    }));
}

#[derive(Default)]
struct Totals {
    states: u64,
    repeated: u64,
    violations: usize,
    uncertain_max: usize,
}

impl Arguments {
    #[cfg(feature = "canaries")]
    fn planted(&self) -> Option<lamina_bdev::canary::Canary> {
        let name = self.canary.as_ref()?;
        let mut all = lamina_bdev::canary::Canary::ALL.iter();
        Some(*all.find(|canary| format!("{canary:?}") == *name).expect("a canary of that name"))
    }

    fn options(&self, length: usize) -> Options {
        let thorough = Thorough { subsets: self.subsets, random: self.random };
        let every = |many: u64| if length == 1 { many.min(1) } else { many };
        let (nested, kills) = (every(self.nested), every(self.kills));
        Options { thorough, nested, depth: self.depth, kills, all: self.all, only: self.state }
    }

    fn workloads(&self) -> Result<Vec<(Workload, Options)>, String> {
        let with_options = |w: Workload| {
            let options = self.options(w.letters.len());
            (w, options)
        };
        if let Some(name) = &self.only {
            let workload = Workload::parse(name).ok_or(format!("there is no workload {name:?}"))?;
            return Ok(vec![with_options(workload)]);
        }
        let fixed = Workload::all(1).into_iter().chain(Workload::all(2));
        let random = (0..self.seq3).map(Workload::random);
        Ok(fixed.chain(random).map(with_options).collect())
    }
}

fn run_all(arguments: &Arguments, workloads: Vec<(Workload, Options)>, totals: &mut Totals) {
    let (sender, receiver) = channel();
    install_hook(&sender);
    let count = workloads.len();
    let work = Arc::new(Work {
        workloads,
        next: AtomicUsize::new(0),
        #[cfg(feature = "canaries")]
        canary: arguments.planted(),
    });
    (0..arguments.jobs.clamp(1, count.max(1))).for_each(|_| spawn(&work, &sender));
    for _ in 0..count {
        let Ok(message) = receiver.recv() else { break };
        match message {
            Message::Finished(index, outcome) => {
                let name = work.workloads[index].0.name();
                if arguments.verbose {
                    println!(
                        "{name}: {} states, {} repeated, at most {} blocks uncertain",
                        outcome.states, outcome.repeated, outcome.uncertain_max
                    );
                }
                totals.states += outcome.states;
                totals.repeated += outcome.repeated;
                totals.uncertain_max = totals.uncertain_max.max(outcome.uncertain_max);
                for (state, why) in &outcome.violations {
                    accuse(arguments, totals, &name, *state, why);
                }
            }
            Message::Panicked((name, state), text) => {
                totals.states += state;
                accuse(arguments, totals, &name, state, &format!("panic: {text}"));
                spawn(&work, &sender);
            }
        }
        if totals.violations >= VIOLATIONS_MAX {
            println!("powercut: {VIOLATIONS_MAX} violations, no more workloads are begun");
            work.next.store(count, Ordering::Relaxed);
            break;
        }
    }
}

fn accuse(arguments: &Arguments, totals: &mut Totals, name: &str, state: u64, why: &str) {
    totals.violations += 1;
    println!("VIOLATION in {name}, state {state}: {why}");
    let Arguments { subsets, random, nested, depth, kills, all, .. } = arguments;
    println!(
        "    again: powercut --only {name} --state {state} --subsets {subsets} --random {random} \
         --nested {nested} --depth {depth} --kills {kills} --all {all}"
    );
}

/// glibc gives big pieces of memory back at once, which costs more than all else here: starts the
/// program again with that turned off. Another C library does not mind.
fn keep_memory() {
    const TUNABLES: &str = "GLIBC_TUNABLES";
    if std::env::var_os(TUNABLES).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let keep = "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=1073741824";
    let mut again = std::process::Command::new(program);
    // Comes back only if it fails; then this run is slower, that is all.
    let _ = again.args(std::env::args_os().skip(1)).env(TUNABLES, keep).exec();
}

fn main() -> ExitCode {
    keep_memory();
    let arguments = Arguments::parse();
    let workloads = match arguments.workloads() {
        Ok(workloads) => workloads,
        Err(why) => {
            eprintln!("powercut: {why}");
            return ExitCode::FAILURE;
        }
    };
    println!("powercut: {} workloads", workloads.len());
    let mut totals = Totals::default();
    let mut more = arguments.seq3;
    run_all(&arguments, workloads, &mut totals);
    while arguments.only.is_none() && totals.violations == 0 && totals.states < arguments.states {
        let batch = (more..more + 50).map(|n| (Workload::random(n), arguments.options(3)));
        more += 50;
        run_all(&arguments, batch.collect(), &mut totals);
    }
    println!(
        "powercut: {} states repeated one tried before; at most {} blocks uncertain at once",
        totals.repeated, totals.uncertain_max
    );
    println!("powercut: {} states, {} violations", totals.states, totals.violations);
    if totals.violations > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

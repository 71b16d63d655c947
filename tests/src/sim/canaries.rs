//! The canaries: each planted bug of the engine is run through the simulator, seed by seed, until
//! one seed finds it. A bug that is never found shows where the checks are blind.
//!
//! ```text
//!  canary ─▶ plant ─▶ seed 1, 2, 3, ... ─▶ violation or panic: caught     (a thread each)
//!                                    └──── none of all seeds: survived
//! ```

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use lamina_bdev::canary::{Canary, plant};

use super::{Options, current, run_seed};
use crate::powercut;

/// A seed that is still running after so many looks, a second apart, hangs. By looks and not by the
/// clock: whoever stops this process for a while stops its looks as well.
const LOOKS_MAX: u32 = 120;

/// After so many seeds the power cuts of one-letter workloads get their turn.
const SEEDS_BEFORE_CUTS: u64 = 500;

/// What came of one canary.
struct Verdict {
    canary: usize,
    /// Seeds run.
    seeds: u64,
    /// What the seed that caught it said.
    caught: Option<String>,
    took: Duration,
}

/// Canaries still to run, and where each thread is.
struct Work {
    seeds: u64,
    options: Options,
    chosen: Vec<Canary>,
    next: AtomicUsize,
    /// By canary: when it began, the seed it is at and how often it was seen there.
    at: Vec<Mutex<Option<(Instant, u64, u32)>>>,
}

thread_local! {
    static JOB: Cell<Option<usize>> = const { Cell::new(None) };
}

fn work_on(work: &Work, sender: &Sender<Verdict>) {
    loop {
        let canary = work.next.fetch_add(1, Ordering::Relaxed);
        let Some(planted) = work.chosen.get(canary) else { return };
        JOB.set(Some(canary));
        plant(Some(*planted));
        let begun = Instant::now();
        let mut verdict = Verdict { canary, seeds: 0, caught: None, took: Duration::ZERO };
        while verdict.seeds < work.seeds && verdict.caught.is_none() {
            verdict.seeds += 1;
            *work.at[canary].lock().expect("no thread dies") = Some((begun, verdict.seeds, 0));
            if verdict.seeds == SEEDS_BEFORE_CUTS {
                // That takes longer than a seed may.
                *work.at[canary].lock().expect("no thread dies") = None;
                verdict.caught = by_power_cuts();
                if verdict.caught.is_some() {
                    break;
                }
            }
            verdict.caught = run_seed(verdict.seeds, &work.options).violation;
            if verdict.caught.is_some() {
                // What the sound engine does as well proves nothing.
                plant(None);
                if run_seed(verdict.seeds, &work.options).violation.is_some() {
                    verdict.caught = None;
                }
                plant(Some(*planted));
            }
        }
        JOB.set(None);
        plant(None);
        verdict.took = begun.elapsed();
        *work.at[canary].lock().expect("no thread dies") = None;
        if sender.send(verdict).is_err() {
            return;
        }
    }
}

/// One-letter workloads of [`crate::powercut`], which reach what seeds seldom do.
fn by_power_cuts() -> Option<String> {
    let options = powercut::Options::default();
    let options =
        powercut::Options { thorough: powercut::Thorough { subsets: 8, random: 64 }, ..options };
    powercut::Workload::all(1).iter().find_map(|workload| {
        let (state, why) = powercut::run(workload, &options).violations.into_iter().next()?;
        Some(format!("powercut: {}, state {state}: {why}", workload.name()))
    })
}

fn spawn(work: &Arc<Work>, sender: &Sender<Verdict>) {
    let (work, sender) = (work.clone(), sender.clone());
    thread::spawn(move || work_on(&work, &sender));
}

/// A panic of the engine catches the canary. Release builds abort on a panic, so the thread that
/// panicked never wakes again.
fn install_hook(work: &Arc<Work>, sender: &Sender<Verdict>) {
    let default = std::panic::take_hook();
    let (sender, work) = (Mutex::new(sender.clone()), work.clone());
    std::panic::set_hook(Box::new(move |info| {
        let Some(canary) = JOB.get() else { return default(info) };
        let text = info.to_string().replace('\n', " ");
        let begun = work.at[canary].lock().ok().and_then(|at| *at).map(|(begun, ..)| begun);
        let took = begun.map_or(Duration::ZERO, |begun| begun.elapsed());
        let caught = Some(format!("assertion: {text}"));
        if let Ok(sender) = sender.lock() {
            let _ = sender.send(Verdict { canary, seeds: current().0, caught, took });
        }
        loop {
            thread::park();
        }
    }));
}

/// Looks where each thread is: a canary whose seed does not end, if there is one.
fn stuck(work: &Work) -> Option<Verdict> {
    let mut found = None;
    for (canary, at) in work.at.iter().enumerate() {
        let mut at = at.lock().expect("no thread dies");
        let Some((begun, seeds, looks)) = at.as_mut() else { continue };
        *looks += 1;
        if *looks > LOOKS_MAX && found.is_none() {
            let caught = Some("liveness: the seed does not end".to_string());
            found = Some(Verdict { canary, seeds: *seeds, caught, took: begun.elapsed() });
            *at = None;
        }
    }
    found
}

/// Which check a message comes from.
fn oracle(message: &str) -> &'static str {
    let table = [
        ("powercut:", "power cuts enumerated"),
        ("assertion:", "assertion of the engine"),
        ("recover twice:", "recovery twice as once"),
        ("ruin:", "what is damaged is an error"),
        ("List(", "changed blocks"),
        ("was held", "held trees"),
        ("liveness:", "liveness"),
        ("come to rest", "liveness"),
        ("nothing has happened", "liveness"),
        ("nothing to wait for", "liveness"),
        ("never opens", "liveness"),
        ("all is deleted", "space comes back"),
        ("mapped blocks", "count of mapped blocks"),
        (" of Snap(", "snapshot bytes"),
        ("Corrupt", "metadata intact"),
        (" of Disk(", "block as a register"),
        ("recovery says", "words of recovery"),
        ("image:", "owners of blocks"),
        ("after recovery", "list of disks and snapshots"),
        ("listed", "list of disks and snapshots"),
        ("opening failed", "recovery"),
        ("before it has flushed", "order of recovery"),
        ("is due", "answers"),
    ];
    let found = table.iter().find(|(words, _)| message.contains(words));
    found.map_or("another check", |(_, name)| name)
}

/// The message without what only a person who has the log can use.
fn short(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    let line = line.rsplit_once(" panicked at ").map_or(line, |(_, rest)| rest);
    line.chars().take(90).collect()
}

fn report(work: &Work, verdict: &Verdict) {
    let canary = work.chosen[verdict.canary];
    let name = format!("{canary:?}");
    let seconds = verdict.took.as_secs_f64();
    match &verdict.caught {
        Some(why) => println!(
            "| {name} | {} | {} | {} | {seconds:.1} | {} |",
            canary.text(),
            oracle(why),
            verdict.seeds,
            short(why)
        ),
        None => println!("| {name} | {} | SURVIVED | {} | {seconds:.1} | |", canary.text(), {
            verdict.seeds
        }),
    }
}

/// Runs all canaries (or those whose name holds `only`) and prints a table. True: all were caught.
pub fn run_canaries(seeds: u64, jobs: usize, options: &Options, only: Option<&str>) -> bool {
    let wanted = |canary: &&Canary| only.is_none_or(|only| format!("{canary:?}").contains(only));
    let chosen: Vec<Canary> = Canary::ALL.iter().filter(wanted).copied().collect();
    let count = chosen.len();
    let at = (0..count).map(|_| Mutex::new(None)).collect();
    let work = Arc::new(Work { seeds, options: *options, chosen, next: AtomicUsize::new(0), at });
    let (sender, receiver) = channel();
    install_hook(&work, &sender);
    println!("| canary | the planted bug | caught by | seeds | seconds | what it said |");
    println!("|---|---|---|---|---|---|");
    (0..jobs.clamp(1, count.max(1))).for_each(|_| spawn(&work, &sender));
    let (mut judged, mut survivors) = (vec![false; count], 0);
    while judged.contains(&false) {
        let verdict = match receiver.recv_timeout(Duration::from_secs(1)) {
            Ok(verdict) => verdict,
            Err(RecvTimeoutError::Timeout) => match stuck(&work) {
                Some(verdict) => verdict,
                None => continue,
            },
            Err(RecvTimeoutError::Disconnected) => break,
        };
        if std::mem::replace(&mut judged[verdict.canary], true) {
            continue;
        }
        report(&work, &verdict);
        survivors += usize::from(verdict.caught.is_none());
        let lost = verdict.caught.as_ref().is_some_and(|why| {
            why.starts_with("assertion:") || why.starts_with("liveness: the seed")
        });
        if lost {
            // Its thread is parked, or runs for ever.
            spawn(&work, &sender);
        }
    }
    println!("canaries: {} caught, {survivors} survived {seeds} seeds", count - survivors);
    survivors == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_tell_their_oracle() {
        assert_eq!(oracle("block 5 of Snap(3): sector 1 ..."), "snapshot bytes");
        assert_eq!(
            oracle("assertion: panicked at x: block 5 is freed twice"),
            oracle("assertion:")
        );
        assert_eq!(oracle("something new"), "another check");
    }
}

//! Several clients write, read, discard and flush the same blocks at once, through a daemon that is
//! killed meanwhile: every 4 KiB block must be a linearizable register, but for what
//! [`lamina_tests::replays`] allows a death, and without deaths but for nothing.
//!
//! ```text
//!  client 0 ─ queue 0 ─┐                     per block: writes (unique tags, 0 for a discard)
//!  client 1 ─ queue 1 ─┼─▶ laminad ✗ ✗ ✗     and reads with the times they were asked for and
//!  client 2 ─ queue 2 ─┘        │            answered ──▶ lamina_tests::register
//!                      in-flight log ✗ ──▶ which requests the next daemon carries out again
//! ```
//!
//! `LAMINA_LINEAR_SECONDS` sets how long they run, `LAMINA_SEED` the seed, `LAMINA_LINEAR_BLOCKS`
//! the longest request. With `LAMINA_LINEAR_STRICT=1` a request carried out twice is a failure, and
//! its story is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use lamina_tests::client::{Device, Options};
use lamina_tests::contend::{BLOCKS, BLOCKS_MAX, Contender, History, Seen};
use lamina_tests::guest::{Daemon, MIB};
use lamina_tests::load::Rng;
use lamina_tests::number;
use lamina_tests::register::{self, Refusal};
use lamina_tests::replays::{self, Death};
use lamina_tests::tagged::BLOCK;

const CLIENTS: u16 = 4;
/// Requests of one client in flight.
const SLOTS: u16 = 4;
const KILLS_MIN: usize = 4;
const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon, its disk, and clients at work on it.
struct Contest {
    daemon: Daemon,
    device: Device,
    start: Instant,
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<History>>,
}

impl Contest {
    fn begin(packed: bool, seed: u64) -> Contest {
        let daemon = Daemon::with_store(128 * MIB);
        daemon.create_disk("vm", 4);
        let socket = daemon.export_queues("vm", false, CLIENTS);
        let data_bytes = BLOCKS_MAX * BLOCK;
        let options =
            Options { queues: CLIENTS, slots: SLOTS, data_bytes, packed, ..Options::default() };
        let device = Device::connect(&socket, options).unwrap_or_else(|why| panic!("{why}"));
        let blocks_max = number("LAMINA_LINEAR_BLOCKS", BLOCKS_MAX as u64) as usize;
        let (start, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let clients = (0..usize::from(CLIENTS))
            .map(|index| {
                let queue = device.queue(index);
                let contender = Contender::new(index, queue, seed, blocks_max, start);
                let stop = stop.clone();
                std::thread::spawn(move || contender.run(&stop))
            })
            .collect();
        Contest { daemon, device, start, stop, clients }
    }

    /// Kills the daemon, looks what it held, and waits for the next one.
    fn kill(&mut self) -> Death {
        self.daemon.kill();
        let at = self.start.elapsed().as_nanos() as u64;
        let held = self.device.held();
        self.daemon.spawn();
        self.device.reconnect(PATIENCE).unwrap_or_else(|why| panic!("{why}"));
        self.daemon.wait_until_ready();
        Death { at, held }
    }

    fn end(self) -> History {
        self.stop.store(true, Ordering::Relaxed);
        let mut histories = vec![Vec::new(); BLOCKS];
        for client in self.clients {
            let history = client.join().expect("a client saw no error and no torn block");
            histories.iter_mut().zip(history).for_each(|(all, one)| all.extend(one));
        }
        histories
    }
}

/// One line for requests that came back after a death.
fn tell(block: usize, seen: &Seen) {
    let (client, action, last) = (seen.client, seen.operation.action, seen.first + seen.count - 1);
    println!("block {block}: {action:x?} of client {client}, blocks {} to {last}", seen.first);
}

/// Where a block that is no register is first seen not to be.
fn strict_story(history: &[Seen], deaths: &[Death]) -> String {
    let operations: Vec<_> = history.iter().map(|seen| seen.operation).collect();
    match register::check(0, &operations) {
        Err(Refusal::Unexplained { index, before }) => {
            replays::story(history, deaths, &operations[index], before)
        }
        other => panic!("it was refused before: {other:?}"),
    }
}

fn contend(packed: bool, kills: bool, seed: u64, seconds: u64) {
    let mut contest = Contest::begin(packed, seed);
    let (mut rng, mut deaths) = (Rng::new(seed), Vec::new());
    let mut snapshots = 0;
    // On a busy machine it takes longer to come to enough deaths.
    let enough = |deaths: &[Death]| !kills || deaths.len() >= KILLS_MIN;
    while contest.start.elapsed() < Duration::from_secs(seconds) || !enough(&deaths) {
        sleep(Duration::from_millis(rng.between(20, 600)));
        if rng.below(3) == 0 {
            snapshots += 1;
            contest.daemon.snapshot("vm", &format!("s{snapshots}"));
        }
        if kills {
            deaths.push(contest.kill());
        }
    }
    let histories = contest.end();
    let operations: usize = histories.iter().map(Vec::len).sum();
    let strict = number("LAMINA_LINEAR_STRICT", 0) != 0;
    let (begun, mut replayed) = (Instant::now(), 0);
    for (block, history) in histories.iter().enumerate() {
        let judged = replays::check(history, &deaths);
        let again = judged.unwrap_or_else(|story| panic!("seed {seed}, block {block}: {story}"));
        for &index in &again {
            tell(block, &history[index]);
        }
        replayed += again.len();
        if strict && !again.is_empty() {
            panic!("seed {seed}, block {block}: {}", strict_story(history, &deaths));
        }
    }
    let held: usize = deaths.iter().map(|death| death.held.len()).sum();
    println!(
        "{operations} operations on {BLOCKS} blocks by {CLIENTS} clients of {SLOTS} requests, {} \
         kills with {held} requests held, {replayed} seen to be carried out twice; checked in {:?}",
        deaths.len(),
        begun.elapsed()
    );
    assert!(operations > 200, "{operations} operations");
    assert!(!kills || held > 0, "{} kills, {held} held", deaths.len());
}

#[test]
fn blocks_are_registers_on_split_rings() {
    contend(false, false, number("LAMINA_SEED", 1), number("LAMINA_LINEAR_SECONDS", 2));
}

#[test]
fn blocks_are_registers_on_packed_rings() {
    contend(true, false, number("LAMINA_SEED", 1) + 1, number("LAMINA_LINEAR_SECONDS", 2));
}

#[test]
fn only_what_was_held_comes_back_after_a_kill_on_split_rings() {
    contend(false, true, number("LAMINA_SEED", 1), number("LAMINA_LINEAR_SECONDS", 5));
}

#[test]
fn only_what_was_held_comes_back_after_a_kill_on_packed_rings() {
    contend(true, true, number("LAMINA_SEED", 1) + 1, number("LAMINA_LINEAR_SECONDS", 5));
}

//! Several clients write, read, discard and flush the same blocks at once, through a daemon that is
//! killed meanwhile: every 4 KiB block must be a linearizable register.
//!
//! ```text
//!  client 0 ─ queue 0 ─┐                     per block: writes (unique tags, 0 for a discard)
//!  client 1 ─ queue 1 ─┼─▶ laminad ✗ ✗ ✗     and reads with the times they were asked for and
//!  client 2 ─ queue 2 ─┘                     answered ──▶ lamina_tests::register
//! ```
//!
//! `LAMINA_LINEAR_SECONDS` sets how long they run, `LAMINA_SEED` the seed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lamina_tests::client::{self, Device, Options, Queue, Request};
use lamina_tests::guest::{Daemon, MIB};
use lamina_tests::load::Rng;
use lamina_tests::number;
use lamina_tests::register::{self, Action, Operation};
use lamina_tests::tagged::{self, BLOCK, BLOCK_SECTORS};

/// Blocks that all clients share.
const BLOCKS: usize = 96;
/// Blocks in one request, at most.
const BLOCKS_MAX: usize = 64;
const CLIENTS: u16 = 3;
/// Requests of one client in flight.
const SLOTS: u16 = 2;
const PATIENCE: Duration = Duration::from_secs(30);

/// Operations of one client on each block.
type History = Vec<Vec<Operation>>;

#[derive(Clone, Copy)]
enum Kind {
    Write(u64),
    Read,
    Flush,
}

#[derive(Clone, Copy)]
struct Job {
    kind: Kind,
    first: usize,
    count: usize,
    begin: u64,
}

struct Contender {
    queue: Arc<Mutex<Queue>>,
    rng: Rng,
    tag: u64,
    jobs: Vec<Option<Job>>,
    history: History,
    start: Instant,
}

impl Contender {
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn submit(&mut self, slot: u16) {
        let count = [1, 1, 2, 4, 16, BLOCKS_MAX][self.rng.index(6)];
        let first = self.rng.index(BLOCKS - count + 1);
        let (offset, len) = ((first * BLOCK) as u64, count * BLOCK);
        let chance = self.rng.below(100);
        let mut data = Vec::new();
        let (kind, request) = match chance {
            0..40 => {
                self.tag += 1;
                let (sector, sectors) = (first * BLOCK_SECTORS, count * BLOCK_SECTORS);
                data = tagged::run_of(self.tag, sector as u64, sectors as u64);
                (Kind::Write(self.tag), Request::Write { offset, data: &data })
            }
            40..45 => (Kind::Write(0), Request::Discard { offset, len: len as u64 }),
            45..50 => (Kind::Write(0), Request::WriteZeroes { offset, len: len as u64 }),
            50..53 => (Kind::Flush, Request::Flush),
            _ => (Kind::Read, Request::Read { offset, len }),
        };
        let begin = self.now();
        client::lock(&self.queue).submit(slot, request);
        self.jobs[usize::from(slot)] = Some(Job { kind, first, count, begin });
        drop(data);
    }

    /// Takes one answer; false if there is none.
    fn collect(&mut self) -> bool {
        let Some(done) = client::lock(&self.queue).poll() else { return false };
        let end = Some(self.now());
        assert!(done.good, "a request failed");
        let job = self.jobs[usize::from(done.slot)].take().expect("a slot with a job");
        let blocks = job.first..job.first + job.count;
        match job.kind {
            Kind::Flush => {}
            Kind::Write(tag) => {
                let action = Action::Write(tag);
                let operation = Operation { begin: job.begin, end, action, sure: true };
                blocks.for_each(|block| self.history[block].push(operation));
            }
            Kind::Read => {
                let bytes = client::lock(&self.queue).data(done.slot, job.count * BLOCK);
                for (block, bytes) in blocks.zip(bytes.chunks_exact(BLOCK)) {
                    let state = tagged::state_of(bytes, (block * BLOCK_SECTORS) as u64);
                    let state = state.unwrap_or_else(|why| panic!("block {block}: {why}"));
                    assert_eq!(state, [state[0]; 8], "block {block} is a mix of writes");
                    let action = Action::Read(state[0]);
                    self.history[block].push(Operation {
                        begin: job.begin,
                        end,
                        action,
                        sure: true,
                    });
                }
            }
        }
        true
    }

    fn run(mut self, stop: &AtomicBool) -> History {
        let begun = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let answered = self.collect();
            let free = client::lock(&self.queue).free_slot();
            if let Some(slot) = free {
                self.submit(slot);
            } else if !answered {
                sleep(Duration::from_micros(30));
            }
        }
        let end = Instant::now() + PATIENCE;
        while client::lock(&self.queue).in_flight() > 0 {
            if !self.collect() {
                assert!(Instant::now() < end, "no answer; running for {:?}", begun.elapsed());
                sleep(Duration::from_micros(30));
            }
        }
        self.history
    }
}

/// A request that was in flight when the daemon died is done again by the next one, which cannot
/// know how far the first had got: it may have happened before the death as well.
fn add_first_tries(history: &mut Vec<Operation>, deaths: &[u64]) {
    let mut tries = Vec::new();
    for operation in history.iter() {
        let end = operation.end.expect("all requests were answered");
        let over = |death: &&u64| (operation.begin..end).contains(*death);
        if matches!(operation.action, Action::Write(_)) {
            for death in deaths.iter().filter(over) {
                tries.push(Operation { end: Some(*death), sure: false, ..*operation });
            }
        }
    }
    history.extend(tries);
}

fn contend(packed: bool, seed: u64, seconds: u64) {
    let mut daemon = Daemon::with_store(128 * MIB);
    daemon.create_disk("vm", 4);
    let socket = daemon.export_queues("vm", false, CLIENTS);
    let data_bytes = BLOCKS_MAX * BLOCK;
    let options = Options { queues: CLIENTS, slots: SLOTS, data_bytes, packed };
    let mut device = Device::connect(&socket, options).unwrap_or_else(|why| panic!("{why}"));
    let (start, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|index| {
            let contender = Contender {
                queue: device.queue(index.into()),
                rng: Rng::new(seed * 100 + u64::from(index)),
                tag: u64::from(index) << 40,
                jobs: vec![None; SLOTS.into()],
                history: vec![Vec::new(); BLOCKS],
                start,
            };
            let stop = stop.clone();
            std::thread::spawn(move || contender.run(&stop))
        })
        .collect();
    let (mut rng, mut kills, mut deaths) = (Rng::new(seed), 0, Vec::new());
    while start.elapsed() < Duration::from_secs(seconds) {
        sleep(Duration::from_millis(rng.between(100, 1200)));
        if rng.below(3) == 0 {
            daemon.snapshot("vm", &format!("s{kills}"));
        }
        daemon.kill();
        deaths.push(start.elapsed().as_nanos() as u64);
        kills += 1;
        daemon.spawn();
        device.reconnect(PATIENCE).unwrap_or_else(|why| panic!("{why}"));
        daemon.wait_until_ready();
    }
    stop.store(true, Ordering::Relaxed);
    let mut histories = vec![Vec::new(); BLOCKS];
    for client in clients {
        let history = client.join().expect("a client saw no error and no torn block");
        histories.iter_mut().zip(history).for_each(|(all, one)| all.extend(one));
    }
    let operations: usize = histories.iter().map(Vec::len).sum();
    let begun = Instant::now();
    histories.iter_mut().for_each(|history| add_first_tries(history, &deaths));
    for (block, history) in histories.iter().enumerate() {
        register::check(0, history)
            .unwrap_or_else(|why| panic!("seed {seed}, block {block}, {kills} kills: {why}"));
    }
    println!(
        "{operations} operations on {BLOCKS} blocks by {CLIENTS} clients with {kills} kills are \
         linearizable; checked in {:?}",
        begun.elapsed()
    );
    assert!(operations > 2_000 && kills > 2, "{operations} operations, {kills} kills");
}

#[test]
fn blocks_are_linearizable_registers_on_split_rings() {
    contend(false, number("LAMINA_SEED", 1), number("LAMINA_LINEAR_SECONDS", 6));
}

#[test]
fn blocks_are_linearizable_registers_on_packed_rings() {
    contend(true, number("LAMINA_SEED", 1) + 1, number("LAMINA_LINEAR_SECONDS", 6));
}

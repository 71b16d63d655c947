//! The real daemon dies by SIGKILL under a client that checks everything, hundreds of times: while
//! it serves, while it recovers, while a snapshot is taken, while the memory table changes; with
//! split and packed rings. The client sees no error, and no request is lost or answered twice.
//!
//! `LAMINA_KILLS` sets the number of deaths, `LAMINA_SEED` the seed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lamina_tests::client::{Device, Options};
use lamina_tests::disk::Running;
use lamina_tests::guest::{Daemon, MIB};
use lamina_tests::load::{After, Client, Model, Rng, Snapshots, check_disk, lock};
use lamina_tests::number;

const DISK_MIB: u64 = 16;
const DISK_BLOCKS: usize = (DISK_MIB as usize) << 8;
const SNAPSHOTS_MAX: usize = 3;
const QUEUES: u16 = 2;
const PATIENCE: Duration = Duration::from_secs(30);
/// Time from a listening daemon to the first answered request, at most: a noisy machine's bound.
const FIRST_IO_TIME_MAX: Duration = Duration::from_secs(5);

/// What the daemon is doing when it dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scene {
    Serving,
    Recovering,
    Snapshot,
    MemoryTable,
}

struct Run {
    daemon: Daemon,
    device: Option<Device>,
    snapshots: Snapshots,
    progress: Vec<Arc<AtomicU64>>,
    rng: Rng,
    kills: u64,
    first_io: Vec<Duration>,
}

impl Run {
    fn answers(&self) -> u64 {
        self.progress.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    fn kill(&mut self) {
        self.daemon.kill();
        self.kills += 1;
    }

    /// Changes the memory table again and again on a thread until the daemon is dead.
    fn kill_while_memory_changes(&mut self) {
        let mut device = self.device.take().expect("the device is ours");
        let begun = Arc::new(AtomicBool::new(false));
        let (seen, seed) = (begun.clone(), self.rng.next());
        let changer = std::thread::spawn(move || {
            let (mut rng, mut changes) = (Rng::new(seed), 0);
            loop {
                let result = if rng.below(2) == 0 {
                    device.set_memory_table()
                } else {
                    device.add_and_remove_region()
                };
                seen.store(true, Ordering::Relaxed);
                if result.is_err() {
                    return (device, changes);
                }
                changes += 1;
            }
        });
        while !begun.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(1));
        }
        sleep(Duration::from_micros(self.rng.below(50_000)));
        assert!(!changer.is_finished(), "the memory table cannot be changed");
        self.kill();
        let (device, changes) = changer.join().expect("changes end with an error");
        assert!(changes > 0, "the memory table changed before the daemon died");
        self.device = Some(device);
    }

    /// One death and what comes after it.
    fn round(&mut self, scene: Scene) {
        sleep(Duration::from_millis(self.rng.between(20, 250)));
        match scene {
            Scene::Serving => self.kill(),
            Scene::Recovering => {
                self.kill();
                self.daemon.spawn();
                sleep(Duration::from_millis(self.rng.below(60)));
                self.kill();
            }
            Scene::Snapshot => {
                while self.snapshots.len() >= SNAPSHOTS_MAX {
                    self.snapshots.delete_one(&self.daemon, &mut self.rng);
                }
                let begun = self.snapshots.begin(&self.daemon);
                sleep(Duration::from_micros(self.rng.below(3000)));
                self.kill();
                self.snapshots.end(begun);
            }
            Scene::MemoryTable => self.kill_while_memory_changes(),
        }
        // Everything the dead daemon answered has been seen before the next one is there.
        sleep(Duration::from_millis(5));
        let before = self.answers();
        self.daemon.spawn();
        let device = self.device.as_mut().expect("the device is ours");
        let mut took = device.reconnect(PATIENCE).unwrap_or_else(|why| panic!("{why}"));
        let connected = Instant::now();
        while self.answers() == before {
            assert!(connected.elapsed() < PATIENCE, "no I/O after the restart");
            std::thread::yield_now();
        }
        took += connected.elapsed();
        assert!(took < FIRST_IO_TIME_MAX, "first I/O {took:?} after the daemon listens");
        self.first_io.push(took);
        self.daemon.wait_until_ready();
    }
}

fn killed(packed: bool, kills: u64, seed: u64) {
    let daemon = Daemon::with_store(256 * MIB);
    daemon.create_disk("vm", DISK_MIB);
    let socket = daemon.export_queues("vm", false, QUEUES);
    let options = Options { queues: QUEUES, packed, ..Options::default() };
    let device = Device::connect(&socket, options).unwrap_or_else(|why| panic!("{why}"));
    let model = Arc::new(Mutex::new(Model::new(DISK_BLOCKS)));
    let clients: Vec<Client> = (0..u64::from(QUEUES))
        .map(|index| {
            let queue = device.queue(index as usize);
            Client::new(queue, model.clone(), seed * 10 + index, index << 40)
        })
        .collect();
    let progress = clients.iter().map(Client::progress).collect();
    let clients: Vec<Running> = clients.into_iter().map(Running::new).collect();
    let snapshots = Snapshots::new("vm", model.clone());
    let (rng, first_io) = (Rng::new(seed), Vec::new());
    let device = Some(device);
    let mut run = Run { daemon, device, snapshots, progress, rng, kills: 0, first_io };
    let scenes = [Scene::Serving, Scene::Recovering, Scene::Snapshot, Scene::MemoryTable];
    for scene in scenes.into_iter().cycle() {
        if run.kills >= kills {
            break;
        }
        run.round(scene);
    }
    let (mut changes, mut reads) = (0, 0);
    for client in clients {
        let mut client = client.stop();
        client.drain(PATIENCE);
        assert_eq!(client.counts.errors, 0, "the client saw an error");
        changes += client.counts.changes;
        reads += client.counts.reads;
    }
    let device = run.device.as_ref().expect("the device is ours");
    check_disk(&device.queue(0), DISK_BLOCKS, |block, found| lock(&model).check_read(block, found))
        .unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    let checked = run.snapshots.check(&run.daemon, After::Kill);
    checked.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    run.first_io.sort_unstable();
    let at = |permille: usize| run.first_io[(run.first_io.len() - 1) * permille / 1000];
    println!(
        "{} rings: {} kills, {changes} changes, {reads} reads, no error; first I/O after the \
         daemon listens: median {:?}, p99 {:?}, longest {:?}",
        if packed { "packed" } else { "split" },
        run.kills,
        at(500),
        at(990),
        at(1000)
    );
}

#[test]
fn killed_with_split_rings() {
    killed(false, number("LAMINA_KILLS", 60) / 2, number("LAMINA_SEED", 1));
}

#[test]
fn killed_with_packed_rings() {
    killed(true, number("LAMINA_KILLS", 60) / 2, number("LAMINA_SEED", 1) + 1);
}

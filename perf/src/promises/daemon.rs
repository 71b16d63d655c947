//! laminad with its clients on vhost-user sockets: flush storms, sleep, memory.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Options, goal};
use crate::clock;
use crate::daemon::{Daemon, Settings};
use crate::goals::Goal;
use crate::histogram::Histogram;
use crate::memory::Memory;
use crate::random::Random;
use crate::store::{BUFFER_BYTES, DEPTH_MAX, Verb};
use crate::vhost::client::{Connection, open_soon};
use crate::vhost::folder::Folder;

const DISK: u64 = 64 << 20;
const SECOND: u64 = 1_000_000_000;
/// Writers of a storm.
const WRITERS: u32 = 32;
/// Writes and flushes of a storm that the client goes on with between looks at its readers.
const STORM_STEPS: usize = 2;

/// What a daemon is started with.
pub struct Setup {
    /// Bytes of its store.
    pub bytes: u64,
    /// In a file, not in RAM.
    pub in_file: bool,
    /// Bytes of its node cache, if not the default.
    pub cache_bytes: Option<u64>,
}

impl Setup {
    /// With the usual cache.
    fn of(bytes: u64, in_file: bool) -> Setup {
        Setup { bytes, in_file, cache_bytes: None }
    }
}

/// A daemon with a store.
pub struct Served {
    daemon: Daemon,
    // Goes after the daemon.
    _folder: Folder,
}

impl Served {
    /// A store in a file, or in RAM.
    ///
    /// # Errors
    /// The daemon does not start, or refuses the store.
    pub fn start(options: &Options, setup: &Setup) -> Result<Served> {
        let Setup { bytes, in_file, cache_bytes } = *setup;
        let folder = Folder::new(&options.folder())?;
        let mut daemon = Daemon::start(&Settings {
            program: options.daemon.clone(),
            cores: options.target_core.to_string(),
            cache_bytes,
            ..Settings::default()
        })?;
        let mut store = json!({"name": "perf", "path": format!("ram:{bytes}")});
        if in_file {
            store["path"] = folder.path("store").display().to_string().into();
            store["size"] = bytes.into();
        }
        daemon.call("lamina_store_create", &store)?;
        Ok(Served { daemon, _folder: folder })
    }

    /// The path of a socket of the daemon's.
    pub fn path(&self, name: &str) -> PathBuf {
        self.daemon.path(name)
    }

    /// A disk, exported: its socket's name.
    ///
    /// # Errors
    /// It is refused.
    pub fn disk(&mut self, number: usize, bytes: u64) -> Result<String> {
        let name = format!("disk{number}");
        self.daemon.call("bdev_lvol_create", &json!({"lvol_name": name, "size": bytes}))?;
        let socket = self.daemon.path(&name).display().to_string();
        let export = json!({"ctrlr": socket, "dev_name": name});
        self.daemon.call("vhost_create_blk_controller", &export)?;
        Ok(name)
    }

    fn connect(&mut self, number: usize, memory: &Memory) -> Result<Connection> {
        let name = self.disk(number, DISK)?;
        open_soon(&self.daemon.path(&name), memory)
    }

    /// A consistency point.
    ///
    /// # Errors
    /// It fails.
    pub fn settle(&mut self) -> Result<Value> {
        self.daemon.call("lamina_checkpoint", &json!({}))
    }
}

/// Requests over one connection: writers that flush after every write, or readers.
struct Stream {
    connection: Connection,
    memory: Memory,
    random: Random,
    /// Of each slot: what it waits for, and since when.
    slots: Vec<(Waits, u64)>,
    /// Done, and not gone on with yet.
    done: Vec<u32>,
    /// Reads, or writes with their flush.
    ended: u64,
    times: Histogram,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Waits {
    Read,
    Write,
    Flush,
}

impl Stream {
    fn open(served: &mut Served, number: usize) -> Result<Stream> {
        let memory = Memory::shared(DEPTH_MAX * BUFFER_BYTES)?;
        let connection = served.connect(number, &memory)?;
        let random = Random::new(number as u64 + 1);
        let (slots, done, times) = (Vec::new(), Vec::new(), Histogram::default());
        let mut stream = Stream { connection, memory, random, slots, done, ended: 0, times };
        stream.fill()?;
        Ok(stream)
    }

    /// Every block written, so that a load moves data.
    fn fill(&mut self) -> Result<()> {
        for offset in (0..DISK).step_by(BUFFER_BYTES) {
            let buffer = self.memory.piece(0, BUFFER_BYTES);
            self.connection.submit(Verb::Write, 0, offset, buffer)?;
            while self.done.is_empty() {
                self.connection.turn(&mut self.done)?;
            }
            self.done.clear();
        }
        Ok(())
    }

    /// Begins with so many slots.
    fn begin(&mut self, first: Waits, count: u32) -> Result<()> {
        (self.ended, self.times) = (0, Histogram::default());
        self.slots = vec![(first, 0); count as usize];
        (0..count).try_for_each(|slot| self.start(slot))
    }

    fn start(&mut self, slot: u32) -> Result<()> {
        let (waits, since) = &mut self.slots[slot as usize];
        *since = clock::wall_ns();
        let verb = match waits {
            Waits::Read => Verb::Read,
            Waits::Write => Verb::Write,
            Waits::Flush => return self.connection.flush(slot),
        };
        let offset = self.random.below(DISK / 4096) * 4096;
        let buffer = self.memory.piece(slot as usize * BUFFER_BYTES, 4096);
        self.connection.submit(verb, slot, offset, buffer)
    }

    /// Takes what is done; goes on with it unless it is to end. True while something is in flight.
    fn turn(&mut self, go_on: bool) -> Result<bool> {
        self.turn_of(usize::MAX, go_on)
    }

    /// The same with at most so many of what is done; the others come next time.
    fn turn_of(&mut self, most: usize, go_on: bool) -> Result<bool> {
        self.connection.turn(&mut self.done)?;
        let mut done = std::mem::take(&mut self.done);
        for slot in done.drain(..most.min(done.len())) {
            let (waits, since) = &mut self.slots[slot as usize];
            let next = match *waits {
                Waits::Write => Waits::Flush,
                Waits::Flush => Waits::Write,
                Waits::Read => Waits::Read,
            };
            let half = *waits == Waits::Write;
            *waits = next;
            if !half {
                self.ended += 1;
                self.times.add(clock::wall_ns() - *since);
            }
            if half || go_on {
                self.start(slot)?;
            }
        }
        self.done = done;
        Ok(self.connection.in_flight() > 0 || !self.done.is_empty())
    }

    /// Writes and flushes a second.
    fn storm(&mut self, writers: u32, time_ns: u64) -> Result<f64> {
        self.begin(Waits::Write, writers)?;
        let begun = clock::wall_ns();
        while clock::wall_ns() - begun < time_ns {
            self.turn(true)?;
        }
        let rate = self.ended as f64 * SECOND as f64 / (clock::wall_ns() - begun) as f64;
        while self.turn(false)? {}
        Ok(rate)
    }
}

/// Writes with a flush each, of 32 writers to one, on a file.
pub fn flush(options: &Options) -> Result<Vec<Goal>> {
    let mut served = Served::start(options, &Setup::of(1 << 30, true))?;
    clock::on_core(options.client_core, || -> Result<Vec<Goal>> {
        let mut stream = Stream::open(&mut served, 0)?;
        served.settle()?;
        let mut gains = Vec::new();
        for _ in 0..options.rounds {
            let one = stream.storm(1, SECOND)?;
            gains.push(stream.storm(WRITERS, SECOND)? / one);
        }
        let what = "writes with a flush each on a file: rate of 32 writers to one";
        Ok(vec![goal(what, gains, "", 4.0, true)?])
    })?
}

/// p99 of reads beside another disk's flushes, to reads alone.
pub fn neighbour(options: &Options) -> Result<Vec<Goal>> {
    let mut goals = Vec::new();
    for (in_file, base) in [(false, "RAM"), (true, "file")] {
        let mut served = Served::start(options, &Setup::of(1 << 30, in_file))?;
        goals.push(clock::on_core(options.client_core, || -> Result<Goal> {
            let mut reads = Stream::open(&mut served, 0)?;
            let mut writes = Stream::open(&mut served, 1)?;
            served.settle()?;
            let mut ratios = Vec::new();
            for _ in 0..options.rounds {
                // The client is one thread: while it sees to one stream, the other has to wait. So
                // it looks at the readers' queue after every few steps of the storm.
                let mut client = Histogram::default();
                let mut read = |storm: bool| -> Result<[f64; 3]> {
                    writes.begin(Waits::Write, if storm { WRITERS } else { 0 })?;
                    reads.begin(Waits::Read, 4)?;
                    let begun = clock::wall_ns();
                    while clock::wall_ns() - begun < SECOND {
                        reads.turn(true)?;
                        let turn = clock::wall_ns();
                        writes.turn_of(STORM_STEPS, true)?;
                        if storm {
                            client.add(clock::wall_ns() - turn);
                        }
                    }
                    while reads.turn(false)? | writes.turn(false)? {}
                    let us = |q| reads.times.quantile(q) as f64 / 1000.0;
                    Ok([us(0.5), us(0.99), writes.ended as f64 / 1000.0])
                };
                let [median, alone, _] = read(false)?;
                let [beside_median, beside, storm] = read(true)?;
                ratios.push(beside / alone);
                eprintln!(
                    "goals: reads on {base}: median {median:.1} us alone, {beside_median:.1} us \
                     beside {storm:.0} k writes with flushes a second; p99 {alone:.1} us and \
                     {beside:.1} us; a look at the storm takes the client {:.1} us (p99 {:.1})",
                    client.quantile(0.5) as f64 / 1000.0,
                    client.quantile(0.99) as f64 / 1000.0
                );
            }
            let what = format!("p99 of reads while a neighbour storms flushes, to none ({base})");
            goal(&what, ratios, "", 2.0, false)
        })??);
    }
    Ok(goals)
}

/// What 100 disks with a client each take while nobody asks for anything, and how long a read takes
/// that wakes the reactor.
pub fn idle(options: &Options) -> Result<Vec<Goal>> {
    let mut served = Served::start(options, &Setup::of(1 << 30, false))?;
    let memory = Memory::shared(BUFFER_BYTES)?;
    let mut connections = Vec::new();
    for number in 0..100 {
        connections.push(served.connect(number, &memory)?);
    }
    served.settle()?;
    std::thread::sleep(Duration::from_secs(1));
    let mut shares = Vec::new();
    for _ in 0..options.rounds {
        let (cpu, wall) = (clock::process_cpu_ns(served.daemon.pid())?, clock::wall_ns());
        std::thread::sleep(Duration::from_secs(1));
        let spent = clock::process_cpu_ns(served.daemon.pid())? - cpu;
        shares.push(spent as f64 * 100.0 / (clock::wall_ns() - wall) as f64);
    }
    let woken = clock::on_core(options.client_core, || wake(&mut connections, memory))??;
    let core = options.target_core;
    let thread = clock::on_core(options.client_core, || wake_thread(core))??;
    eprintln!("goals: waking a thread of core {core} takes {thread:.0} us without any daemon");
    Ok(vec![
        goal("idle daemon with 100 disks and clients, of a core", shares, " %", 1.0, false)?,
        goal("a read that wakes the reactor, median", vec![woken], " us", 30.0, false)?,
        goal(
            "... beyond what waking a bare thread takes",
            vec![(woken - thread).max(0.0)],
            " us",
            30.0,
            false,
        )?,
    ])
}

/// Median time until a thread that sleeps on another core has taken a byte, microseconds: what this
/// machine takes by itself.
fn wake_thread(core: usize) -> Result<f64> {
    let (mut ours, mut theirs) = UnixStream::pair()?;
    let taken = Arc::new(AtomicU64::new(0));
    let seen = taken.clone();
    let sleeper = std::thread::spawn(move || -> Result<()> {
        clock::pin(core)?;
        let mut byte = [0];
        while theirs.read(&mut byte)? > 0 {
            seen.fetch_add(1, Ordering::Release);
        }
        Ok(())
    });
    let mut times = Histogram::default();
    for number in 1..=200 {
        std::thread::sleep(Duration::from_millis(3));
        let begun = clock::wall_ns();
        ours.write_all(&[0])?;
        while taken.load(Ordering::Acquire) < number && !sleeper.is_finished() {
            std::hint::spin_loop();
        }
        times.add(clock::wall_ns() - begun);
    }
    drop(ours);
    sleeper.join().map_err(|_| anyhow::anyhow!("the sleeping thread has ended"))??;
    Ok(times.quantile(0.5) as f64 / 1000.0)
}

/// Median time of a read after some idle milliseconds, microseconds.
fn wake(connections: &mut [Connection], mut memory: Memory) -> Result<f64> {
    let (mut times, mut done) = (Histogram::default(), Vec::new());
    for _ in 0..5 {
        for connection in &mut *connections {
            std::thread::sleep(Duration::from_millis(3));
            let begun = clock::wall_ns();
            connection.submit(Verb::Read, 0, 0, memory.piece(0, 4096))?;
            while done.is_empty() {
                connection.turn(&mut done)?;
            }
            done.clear();
            times.add(clock::wall_ns() - begun);
        }
    }
    Ok(times.quantile(0.5) as f64 / 1000.0)
}

/// What an exported disk of 512 GiB takes of the daemon's memory.
pub fn memory(options: &Options) -> Result<Vec<Goal>> {
    const DISKS: usize = 20;
    let mut served = Served::start(options, &Setup::of(64 << 30, true))?;
    let resident = |served: &Served| -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", served.daemon.pid()))?;
        let field = |name: &str| -> Option<u64> {
            let line = status.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        let kib = field("VmRSS:").context("no VmRSS")? + field("HugetlbPages:").unwrap_or(0);
        Ok(kib)
    };
    // The first one makes what all share.
    served.disk(0, 512 << 30)?;
    let before = resident(&served)?;
    for number in 1..=DISKS {
        served.disk(number, 512 << 30)?;
    }
    let after = resident(&served)?;
    ensure!(after >= before, "memory has shrunk meanwhile");
    let each = (after - before) as f64 / 1024.0 / DISKS as f64;
    Ok(vec![goal("memory of an idle exported disk of 512 GiB", vec![each], " MiB", 3.0, false)?])
}

//! What hostile connections cost a well-behaved one: its latency alone, and under each kind of
//! attack.
//!
//! ```text
//!  tenant:    one queue, 4 KiB random reads, a few in flight ─────────────► p50, p99
//!  attacker:  a thread beside it: half-open sockets, readers that never read, writers of a byte
//!             now and then, garbage ─────────────────────────────────────► the same daemon
//! ```
//!
//! Quiet runs and attacks take turns, so that a machine that is slow for a while is slow for both.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Options;
use super::daemon::{Daemon, Queue};
use super::load::{Case, Lane, Measured, run};
use crate::clock;
use crate::random::Random;

/// The tenant's load.
const TENANT: Case =
    Case { name: "4k randread qd4", write: false, bytes: 4096, depth: 4, queues: 1 };
/// What a reader that never reads asks for.
const GREED: Case =
    Case { name: "128k reads", write: false, bytes: 128 << 10, depth: 100, queues: 1 };
/// The tenant's p99 may grow this much.
const FACTOR_MAX: f64 = 2.0;
/// How often an attacker acts.
const BEAT: Duration = Duration::from_millis(2);
/// Longest wait for the daemon to be rid of attackers.
const REST: Duration = Duration::from_secs(30);
/// Sockets that say nothing, all the time; and new ones a beat.
const HALF_OPEN: usize = 2000;
const HALF_OPEN_BEAT: usize = 2;
/// Hosts that ask for much and read nothing.
const NEVER_READ: usize = 24;
/// Sockets that send a byte each a beat.
const SLOW_WRITERS: usize = 64;

/// Kinds of attack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Attack {
    HalfOpen,
    NeverRead,
    SlowWriters,
    Garbage,
    All,
}

impl Attack {
    const EACH: [Attack; 5] =
        [Attack::HalfOpen, Attack::NeverRead, Attack::SlowWriters, Attack::Garbage, Attack::All];

    fn name(self) -> &'static str {
        match self {
            Attack::HalfOpen => "2,000 half-open sockets, 1,000 new a second",
            Attack::NeverRead => "24 hosts that never read their data",
            Attack::SlowWriters => "64 sockets that send 500 bytes a second",
            Attack::Garbage => "garbage, 500 connections a second",
            Attack::All => "all of these at once",
        }
    }

    fn includes(self, part: Attack) -> bool {
        self == part || self == Attack::All
    }
}

/// What an attacker holds.
struct Attacker {
    address: SocketAddr,
    attack: Attack,
    half_open: std::collections::VecDeque<TcpStream>,
    hosts: Vec<(Queue, Queue)>,
    writers: Vec<(TcpStream, usize)>,
    random: Random,
}

impl Attacker {
    /// Everything that is to be there before the tenant is measured.
    fn new(daemon: &Daemon, attack: Attack) -> Result<Attacker> {
        let address = daemon.address();
        let mut attacker = Attacker {
            address,
            attack,
            half_open: Default::default(),
            hosts: Vec::new(),
            writers: Vec::new(),
            random: Random::new(7),
        };
        if attack.includes(Attack::HalfOpen) {
            for _ in 0..HALF_OPEN {
                attacker.half_open.push_back(TcpStream::connect(address)?);
            }
        }
        if attack.includes(Attack::NeverRead) {
            for _ in 0..NEVER_READ {
                let (admin, mut queue) = daemon.other_host()?;
                for at in 0..u64::from(GREED.depth) {
                    queue.submit(&GREED, at * GREED.bytes as u64)?;
                }
                queue.send()?;
                attacker.hosts.push((admin, queue));
            }
        }
        Ok(attacker)
    }

    /// One beat. What the daemon refuses or closes is what it should.
    fn act(&mut self) {
        if self.attack.includes(Attack::HalfOpen) {
            for _ in 0..HALF_OPEN_BEAT {
                self.half_open.extend(TcpStream::connect(self.address));
                if self.half_open.len() > HALF_OPEN {
                    self.half_open.pop_front();
                }
            }
        }
        if self.attack.includes(Attack::SlowWriters) {
            self.write_slowly();
        }
        if self.attack.includes(Attack::Garbage)
            && let Ok(mut socket) = TcpStream::connect(self.address)
        {
            let mut bytes = [0; 4096];
            bytes.iter_mut().for_each(|byte| *byte = self.random.below(256) as u8);
            // Every other one begins like the protocol.
            if self.random.below(2) == 0 {
                bytes[..8].copy_from_slice(&IC_HEADER);
            }
            let _ = socket.write_all(&bytes);
        }
    }

    fn write_slowly(&mut self) {
        while self.writers.len() < SLOW_WRITERS {
            let Ok(socket) = TcpStream::connect(self.address) else { break };
            let _ = socket.set_nonblocking(true);
            self.writers.push((socket, 0));
        }
        self.writers.retain_mut(|(socket, at)| {
            let byte = IC_HEADER.get(*at).copied().unwrap_or(0);
            *at += 1;
            match socket.write(&[byte]) {
                Ok(sent) => sent > 0,
                Err(e) => e.kind() == ErrorKind::WouldBlock,
            }
        });
    }
}

/// Common header of an ICReq.
const IC_HEADER: [u8; 8] = [0, 0, 128, 0, 128, 0, 0, 0];

/// The tenant's latency while `attack` goes on.
fn attacked(daemon: &mut Daemon, attack: Attack, options: &Options) -> Result<Measured> {
    let mut attacker = Attacker::new(daemon, attack)?;
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let thread = std::thread::spawn(move || {
        while !told.load(Ordering::Relaxed) {
            attacker.act();
            std::thread::sleep(BEAT);
        }
    });
    let measured = measure(daemon, options);
    stop.store(true, Ordering::Relaxed);
    thread.join().ok().context("the attacker has panicked")?;
    measured
}

fn measure(daemon: &mut Daemon, options: &Options) -> Result<Measured> {
    let mut queues = daemon.queues(&TENANT)?;
    run(&mut queues, &TENANT, options.size, (options.seconds * 1e9) as u64)
}

/// Waits until the daemon has no more connections than before.
fn rest(daemon: &mut Daemon, before: u64) -> Result<()> {
    let end = Instant::now() + REST;
    loop {
        let now = daemon.connections()?;
        if now <= before {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{now} connections are left of {before}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The best of several runs: the machine's own hiccups are not the daemon's.
fn best(old: Option<Measured>, new: Measured) -> Measured {
    match old {
        Some(old) if old.p99_ns <= new.p99_ns => old,
        _ => new,
    }
}

/// Runs the attacks; true if none more than doubles the tenant's p99.
///
/// # Errors
/// It could not be measured, or attackers stay for ever.
pub fn main(options: &Options) -> Result<bool> {
    let mut daemon = Daemon::start(options)?;
    clock::pin(options.client_core).context("pinning the tenant")?;
    let before = daemon.connections()?;
    let mut alone = None;
    let mut rows: Vec<(Attack, Option<Measured>)> =
        Attack::EACH.iter().map(|attack| (*attack, None)).collect();
    for round in 0..options.runs {
        for (attack, measured) in &mut rows {
            eprintln!("nvmf: round {}, {}", round + 1, attack.name());
            alone = Some(best(alone, measure(&mut daemon, options)?));
            rest(&mut daemon, before)?;
            *measured = Some(best(measured.take(), attacked(&mut daemon, *attack, options)?));
            rest(&mut daemon, before)?;
        }
    }
    let alone = alone.context("no rounds")?;
    let rows: Vec<(Attack, Measured)> =
        rows.into_iter().filter_map(|(attack, measured)| Some((attack, measured?))).collect();
    let factor = |m: &Measured| m.p99_ns as f64 / alone.p99_ns as f64;
    match options.json {
        true => {
            let rows = rows.iter().map(|(attack, m)| {
                json!({"attack": attack.name(), "per_second": m.per_second, "p50_ns": m.p50_ns,
                    "p99_ns": m.p99_ns, "alone_p50_ns": alone.p50_ns,
                    "alone_p99_ns": alone.p99_ns, "factor": factor(m)})
            });
            println!("{:#}", Value::Array(rows.collect()));
        }
        false => print(&alone, &rows, options),
    }
    Ok(rows.iter().all(|(_, m)| factor(m) <= FACTOR_MAX))
}

fn print(alone: &Measured, rows: &[(Attack, Measured)], options: &Options) {
    println!(
        "A well-behaved host ({}) beside hostile ones, target on core {}, client on core {}",
        TENANT.name, options.target_core, options.client_core
    );
    println!("{:<46}{:>10}{:>10}{:>10}{:>10}", "attack", "ops/s", "p50 us", "p99 us", "p99 x");
    let line = |name: &str, m: &Measured| {
        println!(
            "{name:<46}{:>10.0}{:>10.1}{:>10.1}{:>10.2}",
            m.per_second,
            m.p50_ns as f64 / 1000.0,
            m.p99_ns as f64 / 1000.0,
            m.p99_ns as f64 / alone.p99_ns as f64
        );
    };
    line("none", alone);
    rows.iter().for_each(|(attack, m)| line(attack.name(), m));
}

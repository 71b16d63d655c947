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
//!
//! Attacker and tenant share a core here, and all of them the machine. What that alone costs is
//! measured too ("elsewhere"): the same attack on a listener of another process, which takes
//! connections now and then, all there are at once, and closes them. Hosts that never read have
//! nothing like it there.

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
use super::sink::Sink;
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
/// How often an attacker acts, and how many times then. It shares a core with the tenant, and each
/// time that it wakes up all that the tenant has in flight waits; one on another machine would do
/// no such thing. So it acts seldom, and much.
const BEAT: Duration = Duration::from_millis(10);
const ACTS: usize = 5;
/// Longest wait for the daemon to be rid of attackers.
const REST: Duration = Duration::from_secs(30);
/// Sockets that say nothing, all the time; and new ones an act.
const HALF_OPEN: usize = 2000;
const HALF_OPEN_ACT: usize = 2;
/// Hosts that ask for much and read nothing.
const NEVER_READ: usize = 24;
/// Sockets that send a byte each an act.
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
    fn new(daemon: &Daemon, attack: Attack, sink: Option<&Sink>) -> Result<Attacker> {
        let address = sink.map_or(daemon.address(), Sink::address);
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
        if attack.includes(Attack::NeverRead) && sink.is_none() {
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

    /// Acts once. What the daemon refuses or closes is what it should.
    fn act(&mut self) {
        if self.attack.includes(Attack::HalfOpen) {
            for _ in 0..HALF_OPEN_ACT {
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
            let _ = socket.set_nodelay(true);
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

/// The tenant's latency while `attack` goes on, against the daemon or against something else.
fn attacked(
    daemon: &mut Daemon,
    attack: Attack,
    options: &Options,
    sink: Option<&Sink>,
) -> Result<Measured> {
    let mut attacker = Attacker::new(daemon, attack, sink)?;
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let thread = std::thread::spawn(move || {
        while !told.load(Ordering::Relaxed) {
            (0..ACTS).for_each(|_| attacker.act());
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

/// What an attack costs.
struct Row {
    attack: Attack,
    /// On the daemon.
    daemon: Option<Measured>,
    /// On something else.
    machine: Option<Measured>,
}

/// Runs the attacks; true if none more than doubles the tenant's p99.
///
/// # Errors
/// It could not be measured, or attackers stay for ever.
pub fn main(options: &Options) -> Result<bool> {
    let mut daemon = Daemon::start(options)?;
    let sink = Sink::start()?;
    clock::pin(options.client_core).context("pinning the tenant")?;
    let before = daemon.connections()?;
    let mut alone = None;
    let mut rows = Attack::EACH.map(|attack| Row { attack, daemon: None, machine: None });
    for round in 0..options.runs {
        for Row { attack, daemon: measured, machine } in &mut rows {
            eprintln!("nvmf: round {}, {}", round + 1, attack.name());
            alone = Some(best(alone, measure(&mut daemon, options)?));
            rest(&mut daemon, before)?;
            let new = attacked(&mut daemon, *attack, options, None)?;
            *measured = Some(best(measured.take(), new));
            rest(&mut daemon, before)?;
            if *attack != Attack::NeverRead {
                let new = attacked(&mut daemon, *attack, options, Some(&sink))?;
                *machine = Some(best(machine.take(), new));
                rest(&mut daemon, before)?;
            }
        }
    }
    let alone = alone.context("no rounds")?;
    match options.json {
        true => println!("{:#}", as_json(&alone, &rows)),
        false => print(&alone, &rows, options),
    }
    Ok(rows.iter().all(|row| row.daemon.is_none_or(|m| factor(&m, &alone) <= FACTOR_MAX)))
}

fn factor(measured: &Measured, alone: &Measured) -> f64 {
    measured.p99_ns as f64 / alone.p99_ns as f64
}

fn as_json(alone: &Measured, rows: &[Row]) -> Value {
    let rows = rows.iter().filter_map(|row| {
        let m = row.daemon?;
        let machine = row.machine.map(|machine| machine.p99_ns);
        Some(json!({"attack": row.attack.name(), "per_second": m.per_second, "p50_ns": m.p50_ns,
            "p99_ns": m.p99_ns, "alone_p50_ns": alone.p50_ns, "alone_p99_ns": alone.p99_ns,
            "factor": factor(&m, alone), "elsewhere_p99_ns": machine}))
    });
    Value::Array(rows.collect())
}

fn print(alone: &Measured, rows: &[Row], options: &Options) {
    println!(
        "A well-behaved host ({}) beside hostile ones, target on core {}, client on core {}",
        TENANT.name, options.target_core, options.client_core
    );
    println!(
        "{:<46}{:>10}{:>10}{:>10}{:>10}{:>13}",
        "attack", "ops/s", "p50 us", "p99 us", "p99 x", "elsewhere x"
    );
    let line = |name: &str, m: &Measured, machine: Option<Measured>| {
        let machine = machine.map_or(String::from("-"), |m| format!("{:.2}", factor(&m, alone)));
        println!(
            "{name:<46}{:>10.0}{:>10.1}{:>10.1}{:>10.2}{machine:>13}",
            m.per_second,
            m.p50_ns as f64 / 1000.0,
            m.p99_ns as f64 / 1000.0,
            factor(m, alone)
        );
    };
    line("none", alone, None);
    for row in rows {
        if let Some(measured) = &row.daemon {
            line(row.attack.name(), measured, row.machine);
        }
    }
}

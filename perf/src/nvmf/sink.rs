//! A listener that does as little as can be done: what attacking it costs a tenant of the daemon is
//! the machine's own share.
//!
//! It is a process of its own, since a thread of the attacker's would be given its core.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::vhost::process::Process;

/// How often it looks.
const INTERVAL: Duration = Duration::from_millis(10);
/// How long a connection lives.
const LIFE: Duration = Duration::from_secs(2);

/// The process.
pub struct Sink {
    address: SocketAddr,
    _process: Process,
}

impl Sink {
    /// Starts it; it ends with this value.
    ///
    /// # Errors
    /// No process, no socket.
    pub fn start() -> Result<Sink> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["nvmf", "--sink"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = Process::new(command.spawn().context("starting the sink")?);
        let stdout = process.child().stdout.take().context("no standard output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.trim_end().parse().with_context(|| format!("sink: {line:?}"))?;
        Ok(Sink { address, _process: process })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The process itself: tells where it listens, takes connections, reads nothing, closes them later.
///
/// # Errors
/// No socket.
pub fn main() -> Result<bool> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    // Room for all that come between two looks.
    rustix::net::listen(&listener, 4096)?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{}", listener.local_addr()?)?;
    stdout.flush()?;
    let mut sockets: std::collections::VecDeque<(Instant, TcpStream)> = Default::default();
    loop {
        while let Ok((socket, _)) = listener.accept() {
            sockets.push_back((Instant::now(), socket));
        }
        while sockets.front().is_some_and(|(since, _)| since.elapsed() > LIFE) {
            sockets.pop_front();
        }
        std::thread::sleep(INTERVAL);
    }
}

//! The limit: a thread that takes as many bytes as a request has, and answers with as many as the
//! answer has.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result, ensure};

use super::load::{Case, Lane};
use crate::clock;

/// Bytes of a command capsule and of a response capsule.
const CAPSULE: usize = 72;
const RESPONSE: usize = 24;
/// First bytes of a connection: how long requests and answers are.
const HELLO: usize = 16;
/// Most bytes of one system call: many requests go together, as they do with the initiator.
const CHUNK: usize = 256 << 10;

/// The other side.
pub struct Echo {
    address: SocketAddr,
}

/// Bytes of a request and its answer.
fn sizes(case: &Case) -> (usize, usize) {
    match case.write {
        true => (CAPSULE + case.bytes, RESPONSE),
        false => (CAPSULE, RESPONSE + case.bytes),
    }
}

/// Reads or writes nothing if it would block.
fn moved(result: std::io::Result<usize>) -> Result<usize> {
    match result {
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(0),
        Ok(0) => Err(anyhow::anyhow!("the connection is closed")),
        result => Ok(result?),
    }
}

impl Echo {
    /// Starts the thread on `core`; it ends with this process.
    ///
    /// # Errors
    /// No socket.
    pub fn start(core: usize) -> Result<Echo> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        std::thread::spawn(move || {
            if let Err(error) = clock::pin(core) {
                eprintln!("nvmf: the echo is not on core {core}: {error}");
            }
            serve(&listener);
        });
        Ok(Echo { address })
    }

    /// Connections for a case.
    ///
    /// # Errors
    /// No connection.
    pub fn streams(&self, case: &Case) -> Result<Vec<Stream>> {
        let (request, answer) = sizes(case);
        let one = |_| -> Result<Stream> {
            let mut socket = TcpStream::connect(self.address)?;
            socket.set_nodelay(true)?;
            let mut hello = [0; HELLO];
            hello[..8].copy_from_slice(&(request as u64).to_le_bytes());
            hello[8..].copy_from_slice(&(answer as u64).to_le_bytes());
            socket.write_all(&hello).context("greeting the echo")?;
            socket.set_nonblocking(true)?;
            let free = (0..case.depth).rev().collect();
            let (out, buffer) = (vec![0x5a; CHUNK], vec![0; CHUNK]);
            let flight = VecDeque::with_capacity(usize::from(case.depth));
            Ok(Stream {
                socket,
                out,
                buffer,
                request,
                answer,
                to_send: 0,
                received: 0,
                free,
                flight,
            })
        };
        (0..case.queues).map(one).collect()
    }
}

/// One connection of the echo.
struct Peer {
    socket: TcpStream,
    request: usize,
    answer: usize,
    received: usize,
    to_send: usize,
}

fn serve(listener: &TcpListener) {
    let mut peers: Vec<Peer> = Vec::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        if let Ok((socket, _)) = listener.accept() {
            let mut hello = [0; HELLO];
            let mut greet = || -> Result<Peer> {
                socket.set_nodelay(true)?;
                (&socket).read_exact(&mut hello)?;
                socket.set_nonblocking(true)?;
                let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| hello[at + i]));
                let (request, answer) = (word(0) as usize, word(8) as usize);
                ensure!(request > 0 && answer > 0, "empty requests");
                let socket = socket.try_clone()?;
                Ok(Peer { socket, request, answer, received: 0, to_send: 0 })
            };
            peers.extend(greet());
        }
        peers.retain_mut(|peer| turn(peer, &mut buffer).is_ok());
        if peers.is_empty() {
            // Between two cases the daemon has the core.
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

fn turn(peer: &mut Peer, buffer: &mut [u8]) -> Result<()> {
    peer.received += moved((&peer.socket).read(buffer))?;
    peer.to_send += peer.received / peer.request * peer.answer;
    peer.received %= peer.request;
    if peer.to_send > 0 {
        let part = peer.to_send.min(buffer.len());
        peer.to_send -= moved((&peer.socket).write(&buffer[..part]))?;
    }
    Ok(())
}

/// A connection to the echo.
pub struct Stream {
    socket: TcpStream,
    out: Vec<u8>,
    buffer: Vec<u8>,
    request: usize,
    answer: usize,
    to_send: usize,
    received: usize,
    free: Vec<u16>,
    /// Answers come in order.
    flight: VecDeque<u16>,
}

impl Lane for Stream {
    fn submit(&mut self, _: &Case, _: u64) -> Result<u16> {
        let number = self.free.pop().context("room for a request")?;
        self.flight.push_back(number);
        self.to_send += self.request;
        Ok(number)
    }

    fn poll(&mut self, done: &mut Vec<u16>) -> Result<()> {
        while self.to_send > 0 {
            let part = self.to_send.min(self.out.len());
            let sent = moved((&self.socket).write(&self.out[..part]))?;
            if sent == 0 {
                break;
            }
            self.to_send -= sent;
        }
        self.received += moved((&self.socket).read(&mut self.buffer))?;
        while self.received >= self.answer {
            self.received -= self.answer;
            let number = self.flight.pop_front().context("an answer to nothing")?;
            self.free.push(number);
            done.push(number);
        }
        Ok(())
    }
}

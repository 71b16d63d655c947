//! One connection: a socket and an initiator's queue.

use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use lamina_nvmf::host::{Done, Failure, Initiator, Options, Payload};
use lamina_nvmf::tls_psk::TlsKey;
use lamina_nvmf::wire::opcode::nvm;
use lamina_nvmf::wire::{Command, Status};
use lamina_target::nvmf::tls::TlsStream;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);
const RECEIVE_BYTES: usize = 256 << 10;

/// Why there is no answer.
#[derive(Debug)]
pub enum Lost {
    /// The other side has closed the connection.
    Closed,
    /// The socket has failed.
    Io(io::Error),
    /// What came is not the protocol, or ends it.
    Broken(Failure),
    /// Nothing came in time.
    Timeout,
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Lost {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Lost::Timeout,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Lost::Closed,
            _ => Lost::Io(error),
        }
    }
}

/// What carries the bytes.
enum Channel {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Channel::Plain(_)) { "Plain" } else { "Tls" })
    }
}

impl Channel {
    /// Waits for bytes.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Channel::Plain(socket) => socket.read(buffer),
            Channel::Tls(tls) => patiently(|| tls.read(buffer)),
        }
    }

    /// Sends some bytes.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Channel::Plain(socket) => socket.write(bytes),
            Channel::Tls(tls) => patiently(|| tls.write_vectored(&[IoSlice::new(bytes)])),
        }
    }

    /// Sends the rest of what it has taken.
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Channel::Plain(_) => Ok(()),
            Channel::Tls(tls) => patiently(|| match tls.flush()? {
                true => Ok(()),
                false => Err(io::ErrorKind::WouldBlock.into()),
            }),
        }
    }
}

/// Tries until it does not block any more.
fn patiently<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {
                std::thread::sleep(Duration::from_micros(100));
            }
            outcome => return outcome,
        }
    }
}

/// A connection.
#[derive(Debug)]
pub struct Queue {
    channel: Channel,
    initiator: Initiator,
    buffer: Vec<u8>,
    done: Vec<Done>,
}

impl Queue {
    /// Connects and initialises the protocol.
    ///
    /// # Errors
    /// No connection, or one that ends.
    pub fn open(address: SocketAddr, options: Options) -> Result<Queue, Lost> {
        Queue::silent(address, options)?.initialise()
    }

    /// The same inside TLS.
    ///
    /// # Errors
    /// No connection, no handshake, or one that ends.
    pub fn open_secure(
        address: SocketAddr,
        options: Options,
        keys: &[TlsKey],
    ) -> Result<Queue, Lost> {
        let mut queue = Queue::silent(address, options)?;
        let Channel::Plain(socket) = queue.channel else { unreachable!("just made") };
        let mut tls = TlsStream::connect(socket, keys)?;
        patiently(|| match tls.handshake()? {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        })?;
        queue.channel = Channel::Tls(Box::new(tls));
        queue.initialise()
    }

    fn initialise(mut self) -> Result<Queue, Lost> {
        let queue = &mut self;
        while !queue.initiator.is_open() {
            queue.step()?;
        }
        Ok(self)
    }

    /// Connects, and says nothing yet: the ICReq goes out with what comes next.
    ///
    /// # Errors
    /// No connection.
    pub fn silent(address: SocketAddr, options: Options) -> Result<Queue, Lost> {
        let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let buffer = vec![0; RECEIVE_BYTES];
        let (channel, initiator) = (Channel::Plain(socket), Initiator::new(options));
        Ok(Queue { channel, initiator, buffer, done: Vec::new() })
    }

    /// The socket, for what no host should do with it.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        match &self.channel {
            Channel::Plain(socket) => socket,
            Channel::Tls(tls) => tls.socket(),
        }
    }

    /// The protocol's state.
    pub fn initiator(&mut self) -> &mut Initiator {
        &mut self.initiator
    }

    /// Sends what is to be sent.
    ///
    /// # Errors
    /// The socket.
    pub fn flush(&mut self) -> Result<(), Lost> {
        while !self.initiator.output().is_empty() {
            let sent = self.channel.write(self.initiator.output())?;
            self.initiator.sent(sent);
        }
        self.channel.flush()?;
        Ok(())
    }

    /// Sends what is to be sent, then waits for bytes and takes them.
    ///
    /// # Errors
    /// The connection is over.
    pub fn step(&mut self) -> Result<(), Lost> {
        self.flush()?;
        let bytes = self.channel.read(&mut self.buffer)?;
        if bytes == 0 {
            return Err(Lost::Closed);
        }
        self.initiator.receive(&self.buffer[..bytes]).map_err(Lost::Broken)?;
        while let Some(done) = self.initiator.next_done() {
            self.done.push(done);
        }
        // Data that was asked for goes at once.
        self.flush()
    }

    /// Submits a command; it goes out with the next step.
    ///
    /// # Panics
    /// If too many are in flight.
    pub fn submit(&mut self, command: Command, payload: Payload) -> u16 {
        self.initiator.submit(command, payload).expect("room for a command")
    }

    /// The next command that is over, whichever it is.
    ///
    /// # Errors
    /// The connection is over.
    pub fn next_end(&mut self) -> Result<Done, Lost> {
        while self.done.is_empty() {
            self.step()?;
        }
        Ok(self.done.remove(0))
    }

    /// Waits for the end of one command; others are kept.
    ///
    /// # Errors
    /// The connection is over.
    pub fn wait(&mut self, cid: u16) -> Result<Done, Lost> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.done.iter().position(|done| done.cid == cid) {
                return Ok(self.done.remove(at));
            }
            if Instant::now() > end {
                return Err(Lost::Timeout);
            }
            self.step()?;
        }
    }

    /// True if that command is over, without waiting longer than `patience`.
    ///
    /// # Errors
    /// The connection is over.
    pub fn is_done(&mut self, cid: u16, patience: Duration) -> Result<bool, Lost> {
        self.socket().set_read_timeout(Some(patience))?;
        let stepped = match self.done.iter().any(|done| done.cid == cid) {
            true => Ok(()),
            false => self.step(),
        };
        self.socket().set_read_timeout(Some(PATIENCE))?;
        match stepped {
            Ok(()) | Err(Lost::Timeout) => Ok(self.done.iter().any(|done| done.cid == cid)),
            Err(lost) => Err(lost),
        }
    }

    /// Carries a command out.
    ///
    /// # Errors
    /// The connection is over.
    pub fn run(&mut self, command: Command, payload: Payload) -> Result<Done, Lost> {
        let cid = self.submit(command, payload);
        self.wait(cid)
    }

    /// Carries a command out that must succeed; its data.
    ///
    /// # Panics
    /// If it does not.
    pub fn must(&mut self, command: Command, payload: Payload) -> Vec<u8> {
        let done = self.run(command, payload).unwrap_or_else(|e| panic!("{command:?}: {e:?}"));
        let status = done.completion.status;
        assert!(status == Status::SUCCESS, "{command:?} ended with {status:?}");
        match done.payload {
            Payload::None => Vec::new(),
            Payload::Out(data) | Payload::In(data) => data,
        }
    }

    /// Reads blocks (512 bytes each).
    ///
    /// # Panics
    /// If that does not succeed.
    pub fn read(&mut self, nsid: u32, lba: u64, blocks: u16) -> Vec<u8> {
        self.must(rw(nvm::READ, nsid, lba, blocks), Payload::In(vec![0; usize::from(blocks) * 512]))
    }

    /// Writes blocks (512 bytes each).
    ///
    /// # Panics
    /// If that does not succeed.
    pub fn write(&mut self, nsid: u32, lba: u64, data: &[u8]) {
        let blocks = u16::try_from(data.len() / 512).expect("not that long");
        self.must(rw(nvm::WRITE, nsid, lba, blocks), Payload::Out(data.to_vec()));
    }

    /// Makes writes durable.
    ///
    /// # Panics
    /// If that does not succeed.
    pub fn flush_disk(&mut self, nsid: u32) {
        self.must(Command { opcode: nvm::FLUSH, nsid, ..Command::default() }, Payload::None);
    }
}

/// A command with an LBA and a number of blocks (at least one).
#[must_use]
pub fn rw(opcode: u8, nsid: u32, lba: u64, blocks: u16) -> Command {
    Command {
        opcode,
        nsid,
        cdw10: lba as u32,
        cdw11: (lba >> 32) as u32,
        cdw12: u32::from(blocks) - 1,
        ..Command::default()
    }
}

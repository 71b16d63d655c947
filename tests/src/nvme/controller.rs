//! A host's controller: admin queue, I/O queues, what hosts ask first.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lamina_nvmf::host::{Done, Options, Payload};
use lamina_nvmf::tls_psk::TlsKey;
use lamina_nvmf::wire::opcode::{admin, fabrics};
use lamina_nvmf::wire::{Command, Status};

use super::{Lost, Queue};

/// Bytes of Connect data.
const CONNECT_BYTES: usize = 1024;
/// Property offsets.
const CC: u32 = 0x14;
const CSTS: u32 = 0x1c;
/// CC: enabled, 4 KiB pages, 64- and 16-byte entries.
const CC_ENABLE: u32 = 1 | 6 << 16 | 4 << 20;

/// CAP.TO.
const READY_TIMEOUT: Duration = Duration::from_secs(15);

/// Who connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub nqn: String,
    /// Its identifier.
    pub id: [u8; 16],
}

impl Host {
    /// Host number `n` of the test.
    #[must_use]
    pub fn new(n: u8) -> Host {
        Host { nqn: format!("nqn.2014-08.org.example:host{n}"), id: [n; 16] }
    }
}

/// What a connection needs to know of the other end.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Where it listens.
    pub address: SocketAddr,
    /// The subsystem.
    pub subsystem: String,
    /// Who connects.
    pub host: Host,
    /// How.
    pub options: Options,
    /// Keep-alive timeout, milliseconds; 0: none.
    pub kato_ms: u32,
    /// Submission queue flow control.
    pub flow_control: bool,
    /// The connection runs inside TLS with one of these.
    pub tls_keys: Vec<TlsKey>,
}

impl Connection {
    /// The plain case.
    #[must_use]
    pub fn new(address: SocketAddr, subsystem: &str) -> Connection {
        Connection {
            address,
            subsystem: subsystem.into(),
            host: Host::new(1),
            options: Options::default(),
            kato_ms: 0,
            flow_control: false,
            tls_keys: Vec::new(),
        }
    }

    /// A Connect command and its data.
    #[must_use]
    pub fn connect_command(&self, qid: u16, cntlid: u16, entries: u16) -> (Command, Vec<u8>) {
        let mut data = vec![0; CONNECT_BYTES];
        data[..16].copy_from_slice(&self.host.id);
        data[16..18].copy_from_slice(&cntlid.to_le_bytes());
        data[256..256 + self.subsystem.len()].copy_from_slice(self.subsystem.as_bytes());
        data[512..512 + self.host.nqn.len()].copy_from_slice(self.host.nqn.as_bytes());
        let attributes: u32 = if self.flow_control { 0 } else { 1 << 2 };
        let command = Command {
            opcode: fabrics::OPCODE,
            nsid: u32::from(fabrics::CONNECT),
            cdw10: u32::from(qid) << 16,
            cdw11: u32::from(entries - 1) | attributes << 16,
            cdw12: self.kato_ms,
            ..Command::default()
        };
        (command, data)
    }

    /// Opens a queue; its Connect's end.
    ///
    /// # Errors
    /// The connection is over.
    pub fn open_queue(&self, qid: u16, cntlid: u16, entries: u16) -> Result<(Queue, Done), Lost> {
        let mut queue = match self.tls_keys.is_empty() {
            true => Queue::open(self.address, self.options)?,
            false => Queue::open_secure(self.address, self.options, &self.tls_keys)?,
        };
        let (command, data) = self.connect_command(qid, cntlid, entries);
        let done = queue.run(command, Payload::Out(data))?;
        Ok((queue, done))
    }
}

/// An enabled controller.
#[derive(Debug)]
pub struct Controller {
    /// How it was reached.
    pub connection: Connection,
    /// Its id.
    pub cntlid: u16,
    /// Its admin queue.
    pub admin: Queue,
}

impl Controller {
    /// Connects the admin queue and enables the controller.
    ///
    /// # Errors
    /// The connection is over; `Ok(Err)`: Connect was refused.
    pub fn try_connect(connection: Connection) -> Result<Result<Controller, Status>, Lost> {
        let (admin, done) = connection.open_queue(0, 0xffff, 32)?;
        if done.completion.status != Status::SUCCESS {
            return Ok(Err(done.completion.status));
        }
        let cntlid = done.completion.dw0 as u16;
        let mut controller = Controller { connection, cntlid, admin };
        controller.set_property(CC, CC_ENABLE);
        // Not at once where writes of an earlier association of this host are still under way.
        controller.wait_for_status(1, 1);
        Ok(Ok(controller))
    }

    /// Waits, as long as CAP.TO lets a host wait, until the bits of `mask` in CSTS are `value`.
    ///
    /// # Panics
    /// They are not in time.
    pub fn wait_for_status(&mut self, mask: u32, value: u32) {
        let end = Instant::now() + READY_TIMEOUT;
        loop {
            let status = self.property(CSTS);
            if status & mask == value {
                return;
            }
            assert!(Instant::now() < end, "CSTS is {status:#x}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The same, which must succeed.
    ///
    /// # Panics
    /// If it does not.
    #[must_use]
    pub fn connect(connection: Connection) -> Controller {
        let connected = Controller::try_connect(connection);
        connected.expect("a connection").unwrap_or_else(|status| panic!("Connect: {status:?}"))
    }

    /// Reads a property of 4 bytes.
    pub fn property(&mut self, offset: u32) -> u32 {
        let command = Command {
            opcode: fabrics::OPCODE,
            nsid: u32::from(fabrics::PROPERTY_GET),
            cdw11: offset,
            ..Command::default()
        };
        let done = self.admin.run(command, Payload::None).expect("an answer");
        assert_eq!(done.completion.status, Status::SUCCESS);
        done.completion.dw0
    }

    /// Writes a property of 4 bytes.
    pub fn set_property(&mut self, offset: u32, value: u32) {
        let command = Command {
            opcode: fabrics::OPCODE,
            nsid: u32::from(fabrics::PROPERTY_SET),
            cdw11: offset,
            cdw12: value,
            ..Command::default()
        };
        self.admin.must(command, Payload::None);
    }

    /// Asks for I/O queues; how many are granted.
    ///
    /// # Panics
    /// If that fails.
    pub fn ask_queues(&mut self, queues: u16) -> u16 {
        let asked = u32::from(queues - 1);
        let command = Command {
            opcode: admin::SET_FEATURES,
            cdw10: 7,
            cdw11: asked << 16 | asked,
            ..Command::default()
        };
        let done = self.admin.run(command, Payload::None).expect("an answer");
        assert_eq!(done.completion.status, Status::SUCCESS);
        (done.completion.dw0 as u16).min((done.completion.dw0 >> 16) as u16) + 1
    }

    /// Opens an I/O queue that must open.
    ///
    /// # Panics
    /// If it does not.
    #[must_use]
    pub fn io_queue(&self, qid: u16, entries: u16) -> Queue {
        let (queue, done) =
            self.connection.open_queue(qid, self.cntlid, entries).expect("a connection");
        assert_eq!(done.completion.status, Status::SUCCESS, "Connect of queue {qid}");
        queue
    }

    /// Identify.
    pub fn identify(&mut self, cns: u8, nsid: u32) -> Vec<u8> {
        let command =
            Command { opcode: admin::IDENTIFY, nsid, cdw10: cns.into(), ..Command::default() };
        self.admin.must(command, Payload::In(vec![0; 4096]))
    }

    /// Active namespaces.
    pub fn namespaces(&mut self) -> Vec<u32> {
        let list = self.identify(2, 0);
        let numbers = list.chunks(4).map(|b| u32::from_le_bytes(b.try_into().expect("4 bytes")));
        numbers.take_while(|nsid| *nsid != 0).collect()
    }

    /// A log page.
    pub fn log(&mut self, page: u8, bytes: usize) -> Vec<u8> {
        let dwords = (bytes / 4 - 1) as u32;
        let command = Command {
            opcode: admin::GET_LOG_PAGE,
            cdw10: u32::from(page) | (dwords & 0xffff) << 16,
            cdw11: dwords >> 16,
            ..Command::default()
        };
        self.admin.must(command, Payload::In(vec![0; bytes]))
    }

    /// Asks to be told of an event; the identifier of the request.
    pub fn ask_event(&mut self) -> u16 {
        let command = Command { opcode: admin::ASYNC_EVENT_REQUEST, ..Command::default() };
        let cid = self.admin.submit(command, Payload::None);
        self.admin.flush().expect("an open connection");
        cid
    }

    /// Keep-alive.
    ///
    /// # Errors
    /// The connection is over.
    pub fn keep_alive(&mut self) -> Result<Done, Lost> {
        self.admin.run(Command { opcode: admin::KEEP_ALIVE, ..Command::default() }, Payload::None)
    }
}

/// Blocks of a namespace, out of its Identify data (NSZE).
///
/// # Panics
/// If the data is short.
#[must_use]
pub fn namespace_blocks(identify: &[u8]) -> u64 {
    u64::from_le_bytes(identify[..8].try_into().expect("8 bytes"))
}

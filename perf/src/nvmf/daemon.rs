//! laminad with a disk in RAM as a namespace, and our initiator's queues on it.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command as Program, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lamina_nvmf::host::{Done, Initiator, Options as HostOptions, Payload};
use lamina_nvmf::wire::opcode::{admin, fabrics, nvm};
use lamina_nvmf::wire::{Command, Status};
use lamina_rpc::Client;
use serde_json::{Value, json};

use super::Options;
use super::load::{Case, Lane};
use crate::vhost::folder::Folder;
use crate::vhost::process::Process;

const SUBSYSTEM: &str = "nqn.2016-06.io.spdk:cnode1";
const HOST: &str = "nqn.2014-08.org.example:perf";
/// Entries of the I/O queues: room for every depth.
const ENTRIES: u16 = 128;

/// A running daemon and a host's controller on it.
pub struct Daemon {
    address: SocketAddr,
    cntlid: u16,
    _admin: Queue,
    client: Client,
    _process: Process,
    _folder: Folder,
}

impl Daemon {
    /// Starts it, fills a disk and connects the admin queue.
    ///
    /// # Errors
    /// It does not start, or refuses something.
    pub fn start(options: &Options) -> Result<Daemon> {
        let folder = Folder::new(&std::env::temp_dir())?;
        let program = match &options.daemon {
            Some(path) => path.clone(),
            None => std::env::current_exe()?.with_file_name("laminad"),
        };
        let socket = folder.path("rpc");
        let mut command = Program::new(&program);
        command.arg("--rpc-socket").arg(&socket);
        command.arg("--state-dir").arg(folder.path("state"));
        command.arg("--export-dir").arg(folder.path("run"));
        command.args(["--cores", &options.target_core.to_string(), "--log-level", "warn"]);
        if options.busy_poll {
            command.arg("--busy-poll");
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let child = child.with_context(|| format!("starting {}", program.display()))?;
        let mut process = Process::new(child);
        let stdout = process.child().stdout.take().context("no standard output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line.trim_end() == "laminad: ready", "{} did not start", program.display());
        let mut client = Client::connect_within(&socket, Duration::from_secs(60))?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut call = |method: &str, params: Value| -> Result<Value> {
            client.call_raw(method, &params).with_context(|| format!("{method} {params}"))
        };
        let path = format!("ram:{}", options.size * 2 + (256 << 20));
        call("lamina_store_create", json!({"name": "perf", "path": path}))?;
        call("bdev_lvol_create", json!({"lvol_name": "disk", "size": options.size}))?;
        call("nvmf_create_subsystem", json!({"nqn": SUBSYSTEM, "allow_any_host": true}))?;
        let namespace = json!({"nqn": SUBSYSTEM, "namespace": {"bdev_name": "disk"}});
        call("nvmf_subsystem_add_ns", namespace)?;
        let listen = json!({"trtype": "TCP", "traddr": "127.0.0.1",
            "trsvcid": address.port().to_string()});
        let listener = json!({"nqn": SUBSYSTEM, "listen_address": listen});
        call("nvmf_subsystem_add_listener", listener)?;
        let (mut admin, cntlid) = Queue::connect(address, 0, 0xffff)?;
        admin.enable()?;
        let mut daemon =
            Daemon { address, cntlid, _admin: admin, client, _process: process, _folder: folder };
        daemon.fill(options.size)?;
        Ok(daemon)
    }

    /// Writes the whole disk: reads shall find something.
    fn fill(&mut self, size: u64) -> Result<()> {
        let case = Case { name: "fill", write: true, bytes: 128 << 10, depth: 1, queues: 1 };
        let (mut queue, _) = Queue::connect(self.address, 1, self.cntlid)?;
        let mut done = Vec::new();
        for offset in (0..size).step_by(case.bytes) {
            queue.submit(&case, offset)?;
            while done.is_empty() {
                queue.poll(&mut done)?;
            }
            done.clear();
        }
        Ok(())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that it has now.
    ///
    /// # Errors
    /// It does not answer.
    pub fn connections(&mut self) -> Result<u64> {
        let stats = self.client.call_raw("nvmf_get_stats", &json!({}))?;
        stats["connections"].as_u64().context("a number of connections")
    }

    /// A controller of another host: its admin queue and an I/O queue.
    ///
    /// # Errors
    /// It is refused.
    pub fn other_host(&self) -> Result<(Queue, Queue)> {
        controller(self.address)
    }

    /// I/O queues for a case.
    ///
    /// # Errors
    /// They are refused.
    pub fn queues(&mut self, case: &Case) -> Result<Vec<Queue>> {
        let connect = |qid| -> Result<Queue> {
            // Those of the case before end when the daemon sees that they are closed.
            for _ in 0..1000 {
                match Queue::connect(self.address, qid, self.cntlid) {
                    Ok((queue, _)) => return Ok(queue),
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
            bail!("queue {qid} is refused")
        };
        (1..=case.queues).map(connect).collect()
    }
}

/// A host's controller on a target's [`SUBSYSTEM`]: its admin queue and an I/O queue.
///
/// # Errors
/// It is refused.
pub fn controller(address: SocketAddr) -> Result<(Queue, Queue)> {
    let (mut admin, cntlid) = Queue::connect(address, 0, 0xffff)?;
    admin.enable()?;
    let (mut queue, _) = Queue::connect(address, 1, cntlid)?;
    queue.block_bytes = admin.block_bytes_of_namespace()?;
    Ok((admin, queue))
}

/// One queue, polled.
pub struct Queue {
    socket: TcpStream,
    initiator: Initiator,
    buffer: Vec<u8>,
    /// Data to write or to read into, kept for the next request.
    spare: Vec<Vec<u8>>,
    /// Of the namespace.
    block_bytes: u64,
}

impl Queue {
    fn connect(address: SocketAddr, qid: u16, cntlid: u16) -> Result<(Queue, u16)> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let options = HostOptions { depth: ENTRIES - 1, ..HostOptions::default() };
        let (initiator, buffer) = (Initiator::new(options), vec![0; 256 << 10]);
        let mut queue = Queue { socket, initiator, buffer, spare: Vec::new(), block_bytes: 512 };
        while !queue.initiator.is_open() {
            queue.step()?;
        }
        let mut data = vec![0; 1024];
        data[..16].fill(9);
        data[16..18].copy_from_slice(&cntlid.to_le_bytes());
        data[256..256 + SUBSYSTEM.len()].copy_from_slice(SUBSYSTEM.as_bytes());
        data[512..512 + HOST.len()].copy_from_slice(HOST.as_bytes());
        let entries = if qid == 0 { 32 } else { ENTRIES };
        let connect = Command {
            opcode: fabrics::OPCODE,
            nsid: u32::from(fabrics::CONNECT),
            cdw10: u32::from(qid) << 16,
            // Without flow control of the submission queue.
            cdw11: u32::from(entries - 1) | 1 << 18,
            ..Command::default()
        };
        let done = queue.carry_out(connect, Payload::Out(data))?;
        Ok((queue, done.completion.dw0 as u16))
    }

    fn enable(&mut self) -> Result<()> {
        let enable = Command {
            opcode: fabrics::OPCODE,
            nsid: u32::from(fabrics::PROPERTY_SET),
            cdw11: 0x14,
            cdw12: 1 | 6 << 16 | 4 << 20,
            ..Command::default()
        };
        self.carry_out(enable, Payload::None)?;
        let queues =
            Command { opcode: admin::SET_FEATURES, cdw10: 7, cdw11: 7 << 16 | 7, ..enable };
        self.carry_out(Command { nsid: 0, cdw12: 0, ..queues }, Payload::None)?;
        Ok(())
    }

    /// What Identify Namespace says of namespace 1 (NVM Command Set 1.1, 4.1.5.1): FLBAS and the
    /// data size of that format.
    fn block_bytes_of_namespace(&mut self) -> Result<u64> {
        let identify = Command { opcode: admin::IDENTIFY, nsid: 1, ..Command::default() };
        let done = self.carry_out(identify, Payload::In(vec![0; 4096]))?;
        let Payload::In(data) = done.payload else { bail!("no data came with Identify") };
        let format = usize::from(data[26] & 0xf);
        let shift = data[128 + 4 * format + 2];
        ensure!((9..=16).contains(&shift), "blocks of 2^{shift} bytes");
        Ok(1 << shift)
    }

    fn carry_out(&mut self, command: Command, payload: Payload) -> Result<Done> {
        self.initiator.submit(command, payload).context("room for a command")?;
        loop {
            self.step()?;
            if let Some(done) = self.initiator.next_done() {
                ensure!(done.completion.status == Status::SUCCESS, "{:?}", done.completion);
                return Ok(done);
            }
        }
    }

    /// Sends what can be sent without waiting, and reads nothing.
    ///
    /// # Errors
    /// The connection is over.
    pub fn send(&mut self) -> Result<()> {
        while !self.initiator.output().is_empty() {
            match self.socket.write(self.initiator.output()) {
                Ok(sent) => self.initiator.sent(sent),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Sends and receives what can be without waiting.
    fn step(&mut self) -> Result<()> {
        self.send()?;
        match self.socket.read(&mut self.buffer) {
            Ok(0) => bail!("the daemon has closed the connection"),
            Ok(bytes) => match self.initiator.receive(&self.buffer[..bytes]) {
                Ok(()) => Ok(()),
                Err(failure) => bail!("{failure:?}"),
            },
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

impl Lane for Queue {
    fn submit(&mut self, case: &Case, offset: u64) -> Result<u16> {
        let mut data = self.spare.pop().unwrap_or_default();
        data.resize(case.bytes, 0x5a);
        let (opcode, payload) = match case.write {
            true => (nvm::WRITE, Payload::Out(data)),
            false => (nvm::READ, Payload::In(data)),
        };
        let lba = offset / self.block_bytes;
        let command = Command {
            opcode,
            nsid: 1,
            cdw10: lba as u32,
            cdw11: (lba >> 32) as u32,
            cdw12: (case.bytes as u64 / self.block_bytes - 1) as u32,
            ..Command::default()
        };
        self.initiator.submit(command, payload).context("room for a request")
    }

    fn poll(&mut self, done: &mut Vec<u16>) -> Result<()> {
        self.step()?;
        while let Some(ended) = self.initiator.next_done() {
            ensure!(ended.completion.status == Status::SUCCESS, "{:?}", ended.completion);
            if let Payload::Out(data) | Payload::In(data) = ended.payload {
                self.spare.push(data);
            }
            done.push(ended.cid);
        }
        Ok(())
    }
}

//! Steps of an NVMe/TCP queue: capsules in, answers out, with nobody behind who takes time.
//!
//! ```text
//!  a batch of capsules ─► Connection ─► IoQueue ─► work (carried out by saying so)
//!  nothing is sent     ◄─ iovecs     ◄─ responses ◄─┘
//! ```
//!
//! The host's part (putting a batch of finished bytes into the receive buffer) is in the count, and
//! the same in each run.

use std::io::IoSlice;

use anyhow::{Context, Result, anyhow, ensure};
use lamina_bdev::Uuid;
use lamina_nvmf::SlotId;
use lamina_nvmf::host::Builder;
use lamina_nvmf::io::{IoQueue, Step, Work, WorkOp};
use lamina_nvmf::pool::{Buffer, Pool};
use lamina_nvmf::subsystem::{
    Address, DeviceKey, NamespaceSpec, Nqn, NsTable, SubsystemSpec, Target,
};
use lamina_nvmf::transport::{Connection, Limits, recycle};
use lamina_nvmf::wire::opcode::nvm;
use lamina_nvmf::wire::{Command, Direction, Sgl};

use crate::store::Verb;

/// Commands in flight.
const DEPTH: u16 = 32;
const BLOCK: u32 = 4096;
const NQN: &str = "nqn.2026-01.io.lamina:perf";

/// A queue on its connection.
pub struct CapsuleHost {
    connection: Connection,
    queue: IoQueue<Buffer>,
    table: NsTable,
    pool: Pool,
    work: Vec<Work>,
    slices: Vec<IoSlice<'static>>,
}

/// A table with one namespace of so many bytes.
fn table(bytes: u64) -> Result<NsTable> {
    let plain = |error: lamina_bdev::Error| anyhow!("{error}");
    let mut target = Target::new();
    let mut spec = SubsystemSpec::new(Nqn::new(NQN).map_err(plain)?);
    spec.allow_any_host = true;
    let id = target.add_subsystem(spec).map_err(plain)?;
    let disk = NamespaceSpec::new(DeviceKey(1), "disk", Uuid([1; 16]), bytes);
    target.add_namespace(NQN, disk).map_err(plain)?;
    let address = Address::parse(None, "127.0.0.1", "4420").map_err(plain)?;
    let port = target.add_listener(NQN, &address, false).map_err(plain)?;
    let subsystem = target.get(id).context("the subsystem just made")?;
    Ok(NsTable::make(subsystem, subsystem.listener(port), &[7; 16], 1))
}

impl CapsuleHost {
    /// A connected queue on a namespace of so many bytes.
    ///
    /// # Errors
    /// The subsystem does not come about.
    pub fn new(bytes: u64) -> Result<CapsuleHost> {
        let limits = Limits::default();
        let mut pool = Pool::new(2 * usize::from(DEPTH), 4, limits.data_max as usize);
        let mut connection = Connection::new(limits);
        ensure!(connection.join(&mut pool), "the pool has room for a connection");
        let mut hello = Vec::new();
        Builder::default().icreq(&mut hello, 0, 0);
        let mut host = CapsuleHost {
            connection,
            queue: IoQueue::new(DEPTH, limits.data_max),
            table: table(bytes)?,
            pool,
            work: Vec::with_capacity(usize::from(DEPTH)),
            slices: Vec::with_capacity(256),
        };
        host.take(&hello);
        host.send();
        host.connection.set_sq(DEPTH, false);
        Ok(host)
    }

    /// `count` requests of a block each, 32 at a time.
    ///
    /// # Errors
    /// One is refused.
    pub fn run(&mut self, verb: Verb, count: u64, mut offset: impl FnMut() -> u64) -> Result<()> {
        let (opcode, data) = match verb {
            Verb::Read => (nvm::READ, Vec::new()),
            Verb::Write => (nvm::WRITE, vec![0x5a; BLOCK as usize]),
        };
        let mut bytes = Vec::with_capacity(usize::from(DEPTH) * 5000);
        let mut begun = 0;
        while begun < count {
            bytes.clear();
            for cid in 0..(count - begun).min(u64::from(DEPTH)) as u16 {
                let lba = offset() / 512;
                let sgl = match verb {
                    Verb::Read => Sgl::transport(BLOCK),
                    Verb::Write => Sgl::in_capsule(BLOCK),
                };
                let command = Command {
                    opcode,
                    cid,
                    nsid: 1,
                    sgl,
                    cdw10: lba as u32,
                    cdw11: (lba >> 32) as u32,
                    cdw12: BLOCK / 512 - 1,
                    ..Command::default()
                };
                Builder::default().command(&mut bytes, &command, &data);
                begun += 1;
            }
            self.batch(&bytes)?;
        }
        Ok(())
    }

    /// Everything of `bytes` in, every command answered, everything out.
    fn batch(&mut self, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = self.take(rest);
            rest = &rest[taken..];
            while let Some(slot) = self.connection.next_command() {
                self.start(slot)?;
            }
            for at in 0..self.work.len() {
                let slot = self.work[at].slot;
                let data = self.connection.data(slot).map_or(&[][..], Buffer::as_slice);
                let step = self.queue.done(slot, lamina_bdev::Status::Ok, data, &self.table);
                ensure!(step == Step::Wait, "a command of one step has {step:?} as its second");
                self.answer()?;
            }
            self.work.clear();
            self.send();
            self.connection.resume(&mut self.pool);
        }
        ensure!(self.connection.in_flight() == 0, "a command has no answer");
        Ok(())
    }

    /// Gives the connection as many bytes as it takes.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let (straight, buffered) = self.connection.receive_slices();
        let first = bytes.len().min(straight.len());
        straight[..first].copy_from_slice(&bytes[..first]);
        let second = (bytes.len() - first).min(buffered.len());
        buffered[..second].copy_from_slice(&bytes[first..first + second]);
        self.connection.received(first + second, &mut self.pool);
        first + second
    }

    fn start(&mut self, slot: SlotId) -> Result<()> {
        let connection = &mut self.connection;
        let len = connection.data_len(slot);
        let data = match connection.direction(slot) {
            Direction::ToController => {
                &connection.data(slot).context("data came with it")?.as_slice()[..len as usize]
            }
            _ => &[],
        };
        let step = self.queue.start(slot, connection.command(slot), len, data, &self.table);
        let Step::Submit(work) = step else { return Err(anyhow!("{step:?} for a command")) };
        if work.op == WorkOp::Read {
            let buffer = connection.take_buffer(work.len as u32, &mut self.pool);
            connection.attach(slot, buffer.context("a buffer for a read")?);
        }
        self.work.push(work);
        Ok(())
    }

    fn answer(&mut self) -> Result<()> {
        while let Some(response) = self.queue.next_response() {
            ensure!(response.completion.status.is_ok(), "{:?}", response.completion);
            self.connection.respond(response.slot, response.completion, response.data_len);
        }
        Ok(())
    }

    fn send(&mut self) {
        while self.connection.wants_send() {
            let mut slices = recycle(std::mem::take(&mut self.slices));
            self.connection.transmit(&mut slices);
            let count = slices.iter().map(|slice| slice.len()).sum();
            self.slices = recycle(slices);
            self.connection.transmitted(count, &mut self.pool);
        }
    }
}

//! An engine, RAM for a base, and a loop as a reactor has it: requests, and the copies of the RAM
//! alone, go through the reactor's own pipeline.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use lamina_bdev::limits::SEGS_MAX;
use lamina_bdev::{
    BaseIo, BaseOp, Command, Config, DiskId, Engine, EngineState, FormatParams, Handle,
    LABEL_BYTES, Name, Op, Reply, Request, Seg, SnapId, SnapRef, Status, Target, Uuid, format_plan,
    read_label,
};

use lamina_target::base::{Base, NullBase, Operation, RamBase, RamDevice, Region, Submitted};
use lamina_target::reactor::feed::{Ahead, Feed};
use lamina_target::vhost::{Submit, Taken};

use crate::clock;
use crate::memory::Memory;
use crate::store::{BUFFER_BYTES, DEPTH_MAX, Disk, Store, Took, Verb};

/// Rounds of engine and base in one turn.
const ROUNDS_MAX: usize = 16;
/// Cookies of commands begin here; those of requests are buffer slots.
const COMMANDS: u64 = 1 << 32;

/// Where requests go.
#[derive(Clone, Copy)]
enum Chosen {
    Disk(usize),
    /// Straight to the RAM.
    Raw,
}

/// A request on the RAM alone.
#[derive(Clone, Copy)]
struct RawRequest {
    verb: Verb,
    slot: u32,
    offset: u64,
    len: u32,
}

/// Engine, base and buffers.
pub struct Rig {
    engine: Box<Engine>,
    device: Arc<RamDevice>,
    /// The engine's.
    region: Region,
    base: Base,
    ahead: Ahead,
    buffers: Memory,
    segs: Vec<Seg>,
    disks: Vec<Option<(DiskId, Handle)>>,
    /// Slots of requests that were done at once.
    done: Vec<u32>,
    chosen: Chosen,
    raw: Vec<RawRequest>,
    commands: u64,
    reply: Option<(u64, Result<Reply, lamina_bdev::Error>)>,
    /// Snapshot asked for: its cookie and when.
    asked: Option<(u64, u64)>,
    took: Option<Took>,
    newest: Option<SnapRef>,
    /// The engine's clock, if it does not follow the machine's.
    ticks: Option<u64>,
}

impl Rig {
    /// A new store in `bytes` of RAM.
    ///
    /// # Errors
    /// Not that much memory, or the engine does not open what it formatted.
    pub fn new(bytes: u64) -> Result<Rig> {
        let ram = Memory::private(bytes as usize)
            .with_context(|| format!("{bytes} bytes of RAM for a store: use a smaller --size"))?;
        Rig::on(ram, Config::default())
    }

    /// A new store in memory that reads as zeros.
    ///
    /// # Errors
    /// The engine does not open what it formatted.
    pub fn on(ram: Memory, config: Config) -> Result<Rig> {
        let bytes = ram.len() as u64;
        let params = FormatParams {
            uuid: Uuid([0x4c; 16]),
            name: Name::new("perf").map_err(|why| anyhow!(why))?,
            device_bytes: bytes,
            shards: 1,
            journal_bytes: 0,
            time: 0,
        };
        let device = Arc::new(ram.into_device());
        for write in format_plan(&params)? {
            device.write_at(&write.bytes, write.offset);
        }
        let mut first = vec![0; LABEL_BYTES];
        device.read_at(&mut first, 0);
        let label = read_label(&first, bytes)?;
        let region = Region { offset: label.first_region, len: label.region_bytes };
        let base = RamBase::new(device.clone(), region);
        let mut rig = Rig {
            engine: Box::new(Engine::open(config, base.traits(), &label, 0)),
            device,
            region,
            base: Base::Ram(base),
            ahead: Ahead::default(),
            buffers: Memory::private(DEPTH_MAX * BUFFER_BYTES)?,
            segs: Vec::with_capacity(SEGS_MAX),
            disks: Vec::new(),
            done: Vec::with_capacity(DEPTH_MAX),
            chosen: Chosen::Raw,
            raw: Vec::with_capacity(DEPTH_MAX),
            commands: COMMANDS,
            reply: None,
            asked: None,
            took: None,
            newest: None,
            ticks: None,
        };
        while rig.engine.state() == EngineState::Opening {
            rig.drive(&mut Vec::new())?;
        }
        if let Some(error) = rig.engine.open_error() {
            bail!("the new store does not open: {error}");
        }
        Ok(rig)
    }

    /// From now on the content of requests stays where it is: what remains is the engine's own
    /// time. Metadata is written and read as ever.
    pub fn leave_data(&mut self) {
        self.feed().finish();
        self.base = Base::Null(NullBase::new(self.device.clone(), self.region));
    }

    /// The attachment of the chosen disk.
    ///
    /// # Errors
    /// None is chosen.
    pub fn handle(&self) -> Result<Handle> {
        self.disk().map(|(_, handle)| handle)
    }

    /// Bytes of the chosen disk.
    ///
    /// # Errors
    /// None is chosen.
    pub fn disk_bytes(&self) -> Result<u64> {
        let info = self.engine.handle_info(self.handle()?);
        info.map(|(bytes, _)| bytes).context("that disk is not attached")
    }

    /// One turn; adds the cookies of what is done to `done`.
    ///
    /// # Errors
    /// A request failed.
    pub fn turn_all(&mut self, done: &mut Vec<u32>) -> Result<()> {
        self.drive(done).map(|_worked| ())
    }

    /// From now on each turn takes a microsecond of the engine's time: the same calls, the same
    /// instructions.
    pub fn fix_clock(&mut self) {
        // Later than any time the engine has seen, and the same in every run.
        self.ticks = Some(1 << 45);
    }

    /// Engine and base, as requests reach them.
    #[inline]
    fn feed(&mut self) -> Feed<'_> {
        let Rig { engine, base, ahead, segs, .. } = self;
        Feed { engine, base, ahead, segs }
    }

    /// Serves one operation of the engine at once.
    fn serve(&mut self, io: &BaseIo) -> Result<()> {
        if io.op != BaseOp::Flush {
            self.engine.gather(io, &mut self.segs);
        }
        let Submitted::Done(result) = self.base.submit(&Operation::from(io), &self.segs) else {
            bail!("RAM answers at once");
        };
        self.engine.complete(io.tag, result);
        Ok(())
    }

    /// Engine and base, until neither has anything for the other. True if there was anything.
    fn drain(&mut self, done: &mut Vec<u32>) -> Result<bool> {
        for round in 0..ROUNDS_MAX {
            let mut worked = false;
            while let Some(io) = self.engine.next_io() {
                self.serve(&io)?;
                worked = true;
            }
            while let Some(answer) = self.engine.next_done() {
                ensure!(answer.status == Status::Ok, "a request ended with {:?}", answer.status);
                done.push(answer.cookie as u32);
                worked = true;
            }
            if !worked {
                return Ok(round > 0);
            }
        }
        Ok(true)
    }

    /// One turn of the engine. True if there was anything to do.
    fn drive(&mut self, done: &mut Vec<u32>) -> Result<bool> {
        self.feed().finish();
        let before = done.len();
        done.append(&mut self.done);
        let mut worked = self.drain(done)? || done.len() > before;
        let now = match &mut self.ticks {
            Some(ticks) => {
                *ticks += 1000;
                *ticks
            }
            None => clock::wall_ns(),
        };
        self.engine.tick(now);
        worked |= self.drain(done)?;
        while let Some((cookie, outcome)) = self.engine.next_reply() {
            match self.asked {
                Some((asked, begun)) if asked == cookie => {
                    let Reply::Snapshot(snap) = outcome? else { bail!("no snapshot came back") };
                    let wall_ns = clock::wall_ns() - begun;
                    self.took = Some(Took { wall_ns, on_core_ns: None });
                    self.asked = None;
                    self.newest = Some(SnapRef { disk: self.disk()?.0, snap });
                }
                _ => self.reply = Some((cookie, outcome)),
            }
        }
        while let Some(event) = self.engine.next_event() {
            ensure!(!event.severe, "the engine says: {}", event.text);
        }
        Ok(worked)
    }

    fn disk(&self) -> Result<(DiskId, Handle)> {
        match self.chosen {
            Chosen::Disk(at) => self.disks[at].context("that disk is deleted"),
            Chosen::Raw => bail!("no disk is chosen"),
        }
    }

    /// Starts a command; its cookie.
    pub fn begin(&mut self, command: Command) -> u64 {
        self.feed().finish();
        self.commands += 1;
        self.engine.command(self.commands, command);
        self.commands
    }

    /// Carries out a command, with nothing else in flight.
    fn command(&mut self, command: Command) -> Result<Reply> {
        let cookie = self.begin(command);
        let mut none = Vec::new();
        loop {
            if let Some((of, outcome)) = self.reply.take()
                && of == cookie
            {
                return Ok(outcome?);
            }
            self.drive(&mut none)?;
        }
    }

    /// A snapshot of the chosen disk.
    ///
    /// # Errors
    /// The engine refuses.
    pub fn snapshot(&mut self) -> Result<SnapRef> {
        let (disk, _) = self.disk()?;
        self.commands += 1;
        let uuid = Uuid(u128::from(self.commands).to_be_bytes());
        let snapshot = Command::Snapshot { disk, uuid, label: Name::EMPTY, time: 0 };
        let Reply::Snapshot(snap) = self.command(snapshot)? else { bail!("no snapshot came back") };
        Ok(SnapRef { disk, snap })
    }

    /// A clone of a snapshot; the chosen disk stays the chosen one.
    ///
    /// # Errors
    /// The engine refuses.
    pub fn clone_of(&mut self, from: SnapRef) -> Result<DiskId> {
        self.commands += 1;
        let name = Name::new(&format!("clone{}", self.commands)).map_err(|why| anyhow!(why))?;
        let uuid = Uuid(u128::from(self.commands).to_be_bytes());
        let create = Command::CreateDisk { name, uuid, size: 0, from: Some(from), time: 0 };
        let Reply::Disk(id) = self.command(create)? else { bail!("no disk came back") };
        Ok(id)
    }

    /// Deletes a snapshot: nanoseconds until the answer, and until its blocks can be given out
    /// again.
    ///
    /// # Errors
    /// The engine refuses.
    pub fn delete_snapshot(&mut self, at: SnapRef) -> Result<(u64, u64)> {
        let begun = clock::wall_ns();
        self.command(Command::DeleteSnapshot(at))?;
        let answered = clock::wall_ns() - begun;
        let mut none = Vec::new();
        while self.drive(&mut none)? || self.engine.busy() {}
        Ok((answered, clock::wall_ns() - begun))
    }

    /// Discards a piece of the chosen disk, with nothing else in flight.
    ///
    /// # Errors
    /// The engine refuses.
    pub fn discard(&mut self, offset: u64, len: u64) -> Result<()> {
        self.alone(Op::Discard, offset, len)
    }

    /// Flushes the chosen disk, with nothing else in flight.
    ///
    /// # Errors
    /// The engine refuses.
    pub fn flush(&mut self) -> Result<()> {
        self.alone(Op::Flush, 0, 0)
    }

    fn alone(&mut self, op: Op, offset: u64, len: u64) -> Result<()> {
        let (_, handle) = self.disk()?;
        let request = Request { cookie: 0, handle, op, offset, len, fua: false };
        let taken = self.feed().submit(&request, &[]);
        ensure!(taken == Taken::Later, "the engine has no slot left");
        let mut done = Vec::new();
        while done.is_empty() {
            self.drive(&mut done)?;
        }
        Ok(())
    }

    /// Blocks that can be given out.
    pub fn free_blocks(&self) -> u64 {
        self.engine.store_info().free_blocks
    }

    /// The newest snapshot of the chosen disk, if one was taken.
    pub fn newest_snapshot(&self) -> Option<(DiskId, SnapId)> {
        self.newest.map(|at| (at.disk, at.snap))
    }

    /// Consistency points so far.
    pub fn checkpoints(&self) -> u64 {
        self.engine.stats().checkpoints
    }

    /// Parts of writes that went to fresh blocks so far.
    pub fn redirected(&self) -> u64 {
        self.engine.stats().writes_redirected
    }

    fn raw_turn(&mut self, done: &mut Vec<u32>) {
        for RawRequest { verb, slot, offset, len } in self.raw.drain(..) {
            let len = len as usize;
            let addr = self.buffers.addr(slot as usize * BUFFER_BYTES, len);
            if let Some(ram) = self.base.ram() {
                self.ahead.transfer(ram, verb == Verb::Write, offset, Seg { addr, len });
            }
            done.push(slot);
        }
        self.feed().finish();
    }
}

impl Submit for Rig {
    #[inline]
    fn submit(&mut self, request: &Request, segs: &[Seg]) -> Taken {
        self.feed().submit(request, segs)
    }
}

impl Store for Rig {
    fn submit(&mut self, verb: Verb, slot: u32, offset: u64, len: u32) -> Result<()> {
        let Chosen::Disk(at) = self.chosen else {
            self.raw.push(RawRequest { verb, slot, offset, len });
            return Ok(());
        };
        let (_, handle) = self.disks[at].context("that disk is deleted")?;
        let op = match verb {
            Verb::Read => Op::Read,
            Verb::Write => Op::Write,
        };
        let addr = self.buffers.addr(slot as usize * BUFFER_BYTES, len as usize);
        let seg = Seg { addr, len: len as usize };
        let len = u64::from(len);
        let request = Request { cookie: u64::from(slot), handle, op, offset, len, fua: false };
        match self.feed().submit(&request, &[seg]) {
            Taken::No => bail!("the engine has no slot left"),
            Taken::Later => {}
            Taken::Done => self.done.push(slot),
        }
        Ok(())
    }

    fn turn(&mut self, done: &mut Vec<u32>) -> Result<()> {
        match self.chosen {
            Chosen::Raw => {
                self.raw_turn(done);
                Ok(())
            }
            Chosen::Disk(_) => self.drive(done).map(|_worked| ()),
        }
    }

    fn keeps_data(&self) -> bool {
        matches!(self.base, Base::Ram(_))
    }

    fn buffer(&mut self, slot: u32) -> &mut [u8] {
        self.buffers.piece(slot as usize * BUFFER_BYTES, BUFFER_BYTES)
    }

    fn cpu_ns(&self) -> Result<u64> {
        Ok(clock::thread_cpu_ns())
    }

    /// CPU time: 100 a second of a core, however much of it others take.
    fn pace_ns(&self) -> u64 {
        clock::thread_cpu_ns()
    }

    fn create(&mut self, bytes: u64) -> Result<Disk> {
        let number = self.disks.len();
        let name = Name::new(&format!("disk{number}")).map_err(|why| anyhow!(why))?;
        let uuid = Uuid((number as u128 + 1).to_be_bytes());
        let create = Command::CreateDisk { name, uuid, size: bytes, from: None, time: 0 };
        let Reply::Disk(id) = self.command(create)? else { bail!("no disk came back") };
        let attach = Command::Attach(Target::Disk(id));
        let Reply::Handle(handle) = self.command(attach)? else { bail!("no handle came back") };
        self.disks.push(Some((id, handle)));
        self.chosen = Chosen::Disk(number);
        Ok(Disk(number))
    }

    fn choose(&mut self, disk: Disk) {
        self.chosen = Chosen::Disk(disk.0);
    }

    fn delete(&mut self, disk: Disk) -> Result<()> {
        let (id, handle) = self.disks[disk.0].take().context("that disk is deleted")?;
        self.command(Command::Detach(handle))?;
        self.command(Command::DeleteDisk(id))?;
        self.settle()
    }

    fn delete_snapshots(&mut self) -> Result<()> {
        let (disk, _) = self.disk()?;
        for info in self.engine.snapshots(disk) {
            self.command(Command::DeleteSnapshot(info.snap))?;
        }
        self.settle()
    }

    fn settle(&mut self) -> Result<()> {
        let mut none = Vec::new();
        loop {
            self.command(Command::Checkpoint)?;
            while self.drive(&mut none)? || self.engine.busy() {}
            if self.engine.store_info().pending_blocks == 0 {
                return Ok(());
            }
        }
    }

    fn choose_raw(&mut self) -> bool {
        self.chosen = Chosen::Raw;
        true
    }

    fn has_snapshots(&self) -> bool {
        true
    }

    fn ask_snapshot(&mut self) -> Result<()> {
        let (disk, _) = self.disk()?;
        let uuid = Uuid(u128::from(self.commands).to_be_bytes());
        let begun = clock::wall_ns();
        let cookie = self.begin(Command::Snapshot { disk, uuid, label: Name::EMPTY, time: 0 });
        self.asked = Some((cookie, begun));
        Ok(())
    }

    fn snapshot_answer(&mut self) -> Result<Option<Took>> {
        Ok(self.took.take())
    }
}

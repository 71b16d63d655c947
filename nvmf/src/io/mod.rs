//! I/O commands of one queue: checked, cut into work for the engine, answered.
//!
//! ```text
//!  Connection ── start(slot) ──► IoQueue ── Step::Submit(Work) ──► gate ─► engine of work.device
//!                 done(slot) ◄──────────────────────────────────────────── its status
//!             ◄── next_response(): slot, completion, bytes to send
//! ```
//!
//! One command is one slot with one [`Stage`]; commands of several steps (Compare, Copy, Dataset
//! Management, fused pairs) have one piece of work in flight at a time. Nothing is allocated for a
//! command: a second buffer, where one is needed, is the caller's and is lent to the slot.
//!
//! Contract. The caller gives each slot to `start` once and to `done` once for each `Work`; it puts
//! the answers of `next_response` on the wire after every call. A fused pair is given to `start`
//! one half after the other, with nothing between them, if they came so on the wire.

mod fields;
mod gate;
mod ranges;
mod simple;
mod status;

use std::collections::VecDeque;

use lamina_bdev::Status as EngineStatus;

use crate::SlotId;
use crate::pool::Buffer;
use crate::subsystem::{DeviceKey, NsTable};
use crate::wire::opcode::{fabrics, nvm};
use crate::wire::{Command, Completion, Fuse, Status};

pub use fields::{ATOMIC_BYTES, COPY_BLOCKS_MAX, COPY_RANGE_BLOCKS_MAX, COPY_RANGES_MAX, NSID_ALL};
pub use gate::{Entry, HOLDS_MAX, Pass, RangeGate};
pub(crate) use status::path as path_status;

/// What the engine shall do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WorkOp {
    /// Disk to memory.
    Read,
    /// Memory to disk.
    Write,
    /// Make acknowledged writes durable.
    Flush,
    /// Free whole blocks.
    Discard,
    /// Zeros, freeing whole blocks.
    WriteZeroes,
    /// Nothing; only the hold is given up.
    Release,
}

/// How the work passes the device's [`RangeGate`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GateUse {
    /// Not at all.
    Open,
    /// `enter(Entry::Write)` before, `leave` after.
    Write,
    /// `enter(Entry::Hold)` before; the pass is kept for this slot.
    Hold,
    /// Runs under the slot's hold, which is left afterwards.
    Unhold,
}

/// Where the data is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Memory {
    /// No data.
    None,
    /// The start of the data buffer of that slot. For a read the caller attaches one of `len`
    /// bytes first.
    Data(SlotId),
    /// The start of the slot's second buffer: [`IoQueue::lend`] one of `len` bytes if it has none.
    Scratch,
}

/// One piece of work for the engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Work {
    /// Whose; what `done` is called with.
    pub slot: SlotId,
    /// On which disk.
    pub device: DeviceKey,
    /// What.
    pub op: WorkOp,
    /// Its way past other commands.
    pub gate: GateUse,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Durable before it is done.
    pub fua: bool,
    /// Data.
    pub memory: Memory,
}

/// What to do after a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Hand this to the engine, then call [`IoQueue::done`].
    Submit(Work),
    /// A command for the service thread; its answer goes on the wire as it is.
    Forward,
    /// Nothing (more) to start; see [`IoQueue::next_response`].
    Wait,
}

/// An answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Response {
    /// To which slot.
    pub slot: SlotId,
    /// The completion (the connection fills in the submission queue's head).
    pub completion: Completion,
    /// Bytes of the slot's data buffer to send first.
    pub data_len: u32,
}

/// Where a command stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Stage {
    /// No command here.
    #[default]
    Idle,
    /// One piece of work, then this many bytes go out.
    Plain { data_len: u32 },
    /// A read with FUA, after the flush.
    FlushThenRead,
    /// Reading what is to be compared.
    Compare { len: u32 },
    /// Reading to see that it can be read; blocks done.
    Verify { done: u64 },
    /// First half of a fused pair, alone so far.
    First,
    /// Second half: the first answers for both.
    Second,
    /// A pair is read under a hold.
    PairRead { second: SlotId, work: Work },
    /// It matched and is written.
    PairWrite { second: SlotId },
    /// It did not match or failed, and the hold is given up.
    PairRelease { second: SlotId, status: Status },
    /// Flush of all namespaces, now this one.
    FlushAll { nsid: u32 },
    /// Dataset Management, now this range.
    Deallocate { range: u16 },
    /// Copy: reads from this range; blocks done of the range and in all.
    CopyRead { range: u16, done: u32, total: u32 },
    /// Copy: writes what was read.
    CopyWrite { range: u16, done: u32, total: u32 },
}

struct Slot<B> {
    stage: Stage,
    command: Command,
    /// Disk and block size behind the command's namespace when it began.
    shown: Option<(DeviceKey, u8)>,
    scratch: Option<B>,
}

/// What is told of an ended command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ended {
    status: Status,
    /// Command-specific dword 0.
    result: u32,
    data_len: u32,
}

impl Ended {
    fn with(status: Status) -> Ended {
        Ended { status, result: 0, data_len: 0 }
    }

    fn good(data_len: u32) -> Ended {
        Ended { status: Status::SUCCESS, result: 0, data_len }
    }
}

/// What comes next for a command: work, or its end.
type Next = Result<Work, Ended>;

/// The commands of one I/O queue. `B`: what a second buffer is; tests take simpler ones.
pub struct IoQueue<B = Buffer> {
    slots: Vec<Slot<B>>,
    /// Most bytes a command may move (MDTS).
    data_bytes_max: u32,
    /// First half of a fused pair, waiting for the second.
    first: Option<SlotId>,
    responses: VecDeque<Response>,
    closing: bool,
}

impl<B: AsRef<[u8]>> IoQueue<B> {
    /// A queue of `slots` commands at most, each moving `data_bytes_max` bytes at most.
    pub fn new(slots: u16, data_bytes_max: u32) -> IoQueue<B> {
        assert!(data_bytes_max >= 4096, "a block of 4 KiB must fit a buffer");
        IoQueue {
            slots: (0..slots).map(|_| empty()).collect(),
            data_bytes_max,
            first: None,
            // Two for a fused pair, one for a first half given up just before.
            responses: VecDeque::with_capacity(4),
            closing: false,
        }
    }

    /// Begins a command. `data_len`: bytes its SGL describes. `data`: those bytes, for commands
    /// that bring data; empty for others.
    pub fn start(
        &mut self,
        slot: SlotId,
        command: &Command,
        data_len: u32,
        data: &[u8],
        table: &NsTable,
    ) -> Step {
        let entry = self.slot(slot);
        assert!(entry.stage == Stage::Idle, "a slot is used by one command at a time");
        entry.command = *command;
        if let Some(first) = self.first.take() {
            if command.fuse == Fuse::Second {
                return self.start_pair(first, slot, data, table);
            }
            self.end(first, Ended::with(Status::ABORTED_MISSING_FUSED));
        }
        let next = match command.fuse {
            Fuse::None => match self.forwarded(command.opcode) {
                true => return Step::Forward,
                false => self.begin(slot, data_len, data, table),
            },
            Fuse::First => {
                self.slot(slot).stage = Stage::First;
                self.first = Some(slot);
                return Step::Wait;
            }
            Fuse::Second => Err(Ended::with(Status::ABORTED_MISSING_FUSED)),
            Fuse::Reserved => Err(Ended::with(Status::INVALID_FIELD.dnr())),
        };
        self.settle(slot, next)
    }

    /// Goes on after the work of a slot: `status` is the engine's, `data` what the command brought.
    pub fn done(
        &mut self,
        slot: SlotId,
        status: EngineStatus,
        data: &[u8],
        table: &NsTable,
    ) -> Step {
        let stage = self.slot(slot).stage;
        let next = match stage {
            Stage::PairRead { .. } | Stage::PairWrite { .. } | Stage::PairRelease { .. } => {
                return self.pair_done(slot, stage, status, data, table);
            }
            _ if self.closing => Err(Ended::with(Status::ABORTED_SQ_DELETION)),
            _ => self.advance(slot, stage, status, data, table),
        };
        self.settle(slot, next)
    }

    /// The next answer to put on the wire.
    pub fn next_response(&mut self) -> Option<Response> {
        self.responses.pop_front()
    }

    /// Whether the slot has a second buffer.
    pub fn has_scratch(&self, slot: SlotId) -> bool {
        self.slots[slot.index()].scratch.is_some()
    }

    /// Lends a second buffer to the slot, of the length the work asked for at least.
    pub fn lend(&mut self, slot: SlotId, buffer: B) {
        let entry = self.slot(slot);
        assert!(entry.scratch.is_none(), "a slot has one second buffer");
        entry.scratch = Some(buffer);
    }

    /// The slot's second buffer, to write from.
    pub fn scratch(&self, slot: SlotId) -> Option<&B> {
        self.slots[slot.index()].scratch.as_ref()
    }

    /// The same, to read to.
    pub fn scratch_mut(&mut self, slot: SlotId) -> Option<&mut B> {
        self.slot(slot).scratch.as_mut()
    }

    /// Takes the second buffer back, once the command was answered.
    pub fn take_scratch(&mut self, slot: SlotId) -> Option<B> {
        let entry = self.slot(slot);
        assert!(entry.stage == Stage::Idle, "the buffer is in use until the command is answered");
        entry.scratch.take()
    }

    /// The connection is gone: commands of several steps stop after the work in flight, holds are
    /// given up. `done` is still to be called for all work in flight.
    pub fn close(&mut self) {
        self.closing = true;
        if let Some(first) = self.first.take() {
            self.end(first, Ended::with(Status::ABORTED_SQ_DELETION));
        }
    }

    /// No command is under way.
    pub fn is_idle(&self) -> bool {
        self.slots.iter().all(|slot| slot.stage == Stage::Idle)
    }

    fn slot(&mut self, slot: SlotId) -> &mut Slot<B> {
        &mut self.slots[slot.index()]
    }

    /// Commands whose state is the service thread's.
    fn forwarded(&self, opcode: u8) -> bool {
        matches!(
            opcode,
            nvm::RESERVATION_REGISTER
                | nvm::RESERVATION_REPORT
                | nvm::RESERVATION_ACQUIRE
                | nvm::RESERVATION_RELEASE
                | fabrics::OPCODE
        )
    }

    fn settle(&mut self, slot: SlotId, next: Next) -> Step {
        match next {
            Ok(work) => Step::Submit(work),
            Err(ended) => {
                self.end(slot, ended);
                Step::Wait
            }
        }
    }

    fn end(&mut self, slot: SlotId, ended: Ended) {
        let entry = self.slot(slot);
        entry.stage = Stage::Idle;
        let Ended { status, result, .. } = ended;
        let cid = entry.command.cid;
        let completion = Completion { dw0: result, cid, status, ..Completion::default() };
        let data_len = if ended.status.is_ok() { ended.data_len } else { 0 };
        self.responses.push_back(Response { slot, completion, data_len });
    }

    /// Both halves of a fused pair end, the first first.
    fn end_pair(&mut self, first: SlotId, status: Status, second: SlotId, second_status: Status) {
        self.end(first, Ended::with(status));
        self.end(second, Ended::with(second_status));
    }
}

fn empty<B>() -> Slot<B> {
    Slot { stage: Stage::Idle, command: Command::default(), shown: None, scratch: None }
}

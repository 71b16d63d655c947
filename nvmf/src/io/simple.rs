//! Read, Write, Flush, Write Zeroes, Compare, Verify, and fused Compare-and-Write.

use lamina_bdev::Status as EngineStatus;

use super::fields::{self, Intent, Range};
use super::status::{Way, from_engine};
use super::{ATOMIC_BYTES, Ended, GateUse, IoQueue, Memory, Next, Stage, Step, Work, WorkOp};
use crate::SlotId;
use crate::subsystem::{DeviceKey, NsEntry, NsTable};
use crate::wire::opcode::nvm;
use crate::wire::{Command, Status};

impl From<Status> for Ended {
    fn from(status: Status) -> Ended {
        Ended::with(status)
    }
}

/// Work on a range, to be adjusted by the caller.
pub(super) fn on_range(slot: SlotId, ns: &NsEntry, op: WorkOp, range: Range) -> Work {
    Work {
        slot,
        device: ns.device,
        op,
        gate: GateUse::Open,
        offset: range.offset(ns),
        len: range.len(ns),
        fua: false,
        memory: Memory::None,
    }
}

impl<B: AsRef<[u8]>> IoQueue<B> {
    /// Checks a command and makes its first piece of work.
    pub(super) fn begin(
        &mut self,
        slot: SlotId,
        data_len: u32,
        data: &[u8],
        table: &NsTable,
    ) -> Next {
        let command = self.slot(slot).command;
        let (stage, work) = match command.opcode {
            nvm::READ => self.begin_read(slot, &command, data_len, table)?,
            nvm::WRITE => self.begin_write(slot, &command, data, table)?,
            nvm::FLUSH => self.begin_flush(slot, &command, table)?,
            nvm::WRITE_ZEROES => begin_zeroes(slot, &command, table)?,
            nvm::COMPARE => self.begin_compare(slot, &command, data, table)?,
            nvm::VERIFY => self.begin_verify(slot, &command, table)?,
            nvm::DATASET_MANAGEMENT => self.begin_dsm(slot, &command, data, table)?,
            nvm::COPY => self.begin_copy(slot, &command, data, table)?,
            _ => return Err(Status::INVALID_OPCODE.dnr().into()),
        };
        let entry = self.slot(slot);
        entry.stage = stage;
        entry.shown = shown(table, command.nsid);
        Ok(work)
    }

    /// Size limits common to commands with data: within MDTS, and as much data as blocks.
    fn check_data(&self, len: u64, given: u64) -> Result<(), Status> {
        if len > u64::from(self.data_bytes_max) {
            return Err(Status::INVALID_FIELD.dnr());
        }
        if given < len {
            return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
        }
        Ok(())
    }

    fn begin_read(
        &mut self,
        slot: SlotId,
        command: &Command,
        data_len: u32,
        table: &NsTable,
    ) -> Result<(Stage, Work), Ended> {
        let ns = fields::namespace(table, command.nsid, Intent::Read)?;
        let range = fields::lba_range(command, ns)?;
        self.check_data(range.len(ns), u64::from(data_len))?;
        if fields::fua(command) {
            // What is read must be durable: data in the volatile cache first.
            let flush = Work { len: 0, offset: 0, ..on_range(slot, ns, WorkOp::Flush, range) };
            return Ok((Stage::FlushThenRead, flush));
        }
        let read = on_range(slot, ns, WorkOp::Read, range);
        let stage = Stage::Plain { data_len: read.len as u32 };
        Ok((stage, Work { memory: Memory::Data(slot), ..read }))
    }

    fn begin_write(
        &mut self,
        slot: SlotId,
        command: &Command,
        data: &[u8],
        table: &NsTable,
    ) -> Result<(Stage, Work), Ended> {
        let ns = fields::namespace(table, command.nsid, Intent::Write)?;
        // There are no directives (DTYPE).
        if command.cdw12 >> 20 & 0xf != 0 {
            return Err(Status::INVALID_FIELD.dnr().into());
        }
        let range = fields::lba_range(command, ns)?;
        self.check_data(range.len(ns), data.len() as u64)?;
        let (fua, memory, gate) =
            (fields::durable(command, table), Memory::Data(slot), GateUse::Write);
        let write = Work { fua, memory, gate, ..on_range(slot, ns, WorkOp::Write, range) };
        Ok((Stage::Plain { data_len: 0 }, write))
    }

    fn begin_flush(
        &mut self,
        slot: SlotId,
        command: &Command,
        table: &NsTable,
    ) -> Result<(Stage, Work), Ended> {
        if command.nsid == super::fields::NSID_ALL {
            return self.flush_from(slot, 0, table);
        }
        let ns = fields::namespace(table, command.nsid, Intent::Flush)?;
        Ok((Stage::Plain { data_len: 0 }, flush(slot, ns)))
    }

    /// Flush of all namespaces: the next one after `nsid`. One that this host cannot flush now is
    /// an error, since what it wrote there is not known to be durable.
    fn flush_from(
        &mut self,
        slot: SlotId,
        nsid: u32,
        table: &NsTable,
    ) -> Result<(Stage, Work), Ended> {
        match table.iter().find(|ns| ns.nsid > nsid) {
            Some(ns) => {
                fields::permitted(ns, Intent::Flush)?;
                Ok((Stage::FlushAll { nsid: ns.nsid }, flush(slot, ns)))
            }
            None => Err(Ended::good(0)),
        }
    }

    fn begin_compare(
        &mut self,
        slot: SlotId,
        command: &Command,
        data: &[u8],
        table: &NsTable,
    ) -> Result<(Stage, Work), Ended> {
        let ns = fields::namespace(table, command.nsid, Intent::Read)?;
        let range = fields::lba_range(command, ns)?;
        self.check_data(range.len(ns), data.len() as u64)?;
        let read = on_range(slot, ns, WorkOp::Read, range);
        Ok((Stage::Compare { len: read.len as u32 }, Work { memory: Memory::Scratch, ..read }))
    }

    fn begin_verify(
        &mut self,
        slot: SlotId,
        command: &Command,
        table: &NsTable,
    ) -> Result<(Stage, Work), Ended> {
        let work = self.verify_from(slot, command, 0, table)?;
        Ok((Stage::Verify { done: 0 }, work))
    }

    /// The next piece of a Verify, or its end.
    fn verify_from(&self, slot: SlotId, command: &Command, done: u64, table: &NsTable) -> Next {
        let ns = fields::namespace(table, command.nsid, Intent::Read)?;
        let range = fields::lba_range(command, ns)?;
        if done >= range.blocks {
            return Err(Ended::good(0));
        }
        let piece = self.piece(ns).min(range.blocks - done);
        let part = Range { slba: range.slba + done, blocks: piece };
        Ok(Work { memory: Memory::Scratch, ..on_range(slot, ns, WorkOp::Read, part) })
    }

    /// Blocks of a namespace that fit a buffer.
    pub(super) fn piece(&self, ns: &NsEntry) -> u64 {
        u64::from(self.data_bytes_max) >> ns.block_shift
    }

    /// Goes on with a command that is not half of a pair.
    pub(super) fn advance(
        &mut self,
        slot: SlotId,
        stage: Stage,
        status: EngineStatus,
        data: &[u8],
        table: &NsTable,
    ) -> Next {
        let command = self.slot(slot).command;
        let way = match command.opcode {
            nvm::READ | nvm::COMPARE | nvm::VERIFY => Way::Read,
            _ => Way::Write,
        };
        let result = from_engine(status, way);
        let goes_on = !matches!(stage, Stage::Plain { .. } | Stage::Compare { .. });
        if goes_on && self.slot(slot).shown != shown(table, command.nsid) {
            // Removed, and another disk has its number: that one is not meant.
            return Err(Status::INVALID_NAMESPACE_OR_FORMAT.dnr().into());
        }
        let (stage, work) = match stage {
            Stage::Plain { data_len } => {
                result?;
                return Err(Ended::good(data_len));
            }
            Stage::FlushThenRead => {
                result?;
                let ns = fields::namespace(table, command.nsid, Intent::Read)?;
                let range = fields::lba_range(&command, ns)?;
                let read = on_range(slot, ns, WorkOp::Read, range);
                let stage = Stage::Plain { data_len: read.len as u32 };
                (stage, Work { memory: Memory::Data(slot), ..read })
            }
            Stage::Compare { len } => {
                result?;
                return Err(Ended::with(self.compared(slot, data, len)));
            }
            Stage::Verify { done } => {
                result?;
                let ns = fields::namespace(table, command.nsid, Intent::Read)?;
                let done = done + self.piece(ns);
                (Stage::Verify { done }, self.verify_from(slot, &command, done, table)?)
            }
            Stage::FlushAll { nsid } => {
                result?;
                self.flush_from(slot, nsid, table)?
            }
            Stage::Deallocate { range } => {
                result?;
                self.deallocate_from(slot, &command, data, range + 1, table)?
            }
            Stage::CopyRead { .. } | Stage::CopyWrite { .. } => {
                self.copy_on(slot, &command, stage, status, data, table)?
            }
            Stage::Idle
            | Stage::First
            | Stage::Second
            | Stage::PairRead { .. }
            | Stage::PairWrite { .. }
            | Stage::PairRelease { .. } => {
                unreachable!("no work of its own is in flight at {stage:?}")
            }
        };
        self.slot(slot).stage = stage;
        Ok(work)
    }

    /// Whether what was read is what the command brought.
    fn compared(&self, slot: SlotId, data: &[u8], len: u32) -> Status {
        let scratch = self.slots[slot.index()].scratch.as_ref();
        let read = scratch.expect("read into the second buffer").as_ref();
        match data[..len as usize] == read[..len as usize] {
            true => Status::SUCCESS,
            false => Status::COMPARE_FAILURE.dnr(),
        }
    }

    /// Both halves of a fused Compare-and-Write are here.
    pub(super) fn start_pair(
        &mut self,
        first: SlotId,
        second: SlotId,
        data: &[u8],
        table: &NsTable,
    ) -> Step {
        let (compare, write) = (self.slot(first).command, self.slot(second).command);
        let (mut one, mut two) = (Status::INVALID_FIELD.dnr(), Status::INVALID_FIELD.dnr());
        let ranges = |c: &Command| (c.nsid, c.cdw10, c.cdw11, c.cdw12 & 0xffff);
        if compare.opcode != nvm::COMPARE {
            two = Status::ABORTED_FAILED_FUSED;
        } else if write.opcode != nvm::WRITE {
            one = Status::ABORTED_FAILED_FUSED;
        } else if ranges(&compare) == ranges(&write) {
            match self.pair_work(first, &compare, table) {
                Ok(work) if (data.len() as u64) < work.len => {
                    (one, two) =
                        (Status::ABORTED_FAILED_FUSED, Status::DATA_SGL_LENGTH_INVALID.dnr());
                }
                Ok(work) => {
                    self.slot(first).stage = Stage::PairRead { second, work };
                    self.slot(second).stage = Stage::Second;
                    return Step::Submit(work);
                }
                Err(status) => (one, two) = (status, Status::ABORTED_FAILED_FUSED),
            }
        }
        self.end_pair(first, one, second, two);
        Step::Wait
    }

    /// The read of a pair, under a hold.
    fn pair_work(
        &mut self,
        first: SlotId,
        compare: &Command,
        table: &NsTable,
    ) -> Result<Work, Status> {
        let ns = fields::namespace(table, compare.nsid, Intent::Read)?;
        fields::permitted(ns, Intent::Write)?;
        let range = fields::lba_range(compare, ns)?;
        if range.len(ns) > ATOMIC_BYTES {
            return Err(Status::ATOMIC_WRITE_UNIT_EXCEEDED.dnr());
        }
        let read = on_range(first, ns, WorkOp::Read, range);
        Ok(Work { gate: GateUse::Hold, memory: Memory::Scratch, ..read })
    }

    /// A step of a pair is done; `data` is what the compare brought.
    pub(super) fn pair_done(
        &mut self,
        first: SlotId,
        stage: Stage,
        status: EngineStatus,
        data: &[u8],
        table: &NsTable,
    ) -> Step {
        match stage {
            Stage::PairRead { second, work } => {
                let result = self.pair_read(first, second, status, data, work, table);
                let (stage, work) = result.unwrap_or_else(|status| {
                    let (op, memory) = (WorkOp::Release, Memory::None);
                    let release = Work { op, memory, gate: GateUse::Unhold, ..work };
                    (Stage::PairRelease { second, status }, release)
                });
                self.slot(first).stage = stage;
                Step::Submit(work)
            }
            Stage::PairWrite { second } => {
                let write = from_engine(status, Way::Write).err().unwrap_or(Status::SUCCESS);
                self.end_pair(first, Status::SUCCESS, second, write);
                Step::Wait
            }
            Stage::PairRelease { second, status } => {
                self.end_pair(first, status, second, Status::ABORTED_FAILED_FUSED);
                Step::Wait
            }
            other => unreachable!("{other:?} is no stage of a pair"),
        }
    }

    /// The pair's range was read: the write, or why there is none.
    fn pair_read(
        &mut self,
        first: SlotId,
        second: SlotId,
        status: EngineStatus,
        data: &[u8],
        work: Work,
        table: &NsTable,
    ) -> Result<(Stage, Work), Status> {
        if self.closing {
            return Err(Status::ABORTED_SQ_DELETION);
        }
        from_engine(status, Way::Read)?;
        if (data.len() as u64) < work.len {
            return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
        }
        let matched = self.compared(first, data, work.len as u32);
        if !matched.is_ok() {
            return Err(matched);
        }
        let write = self.slot(second).command;
        fields::namespace(table, write.nsid, Intent::Write)?;
        let (op, memory, gate) = (WorkOp::Write, Memory::Data(second), GateUse::Unhold);
        let work = Work { op, memory, gate, fua: fields::durable(&write, table), ..work };
        Ok((Stage::PairWrite { second }, work))
    }
}

/// What is behind a namespace: disk and block size. None for all namespaces at once.
fn shown(table: &NsTable, nsid: u32) -> Option<(DeviceKey, u8)> {
    table.get(nsid).map(|ns| (ns.device, ns.block_shift))
}

/// A flush of a whole namespace.
fn flush(slot: SlotId, ns: &NsEntry) -> Work {
    let nothing = Range { slba: 0, blocks: 0 };
    on_range(slot, ns, WorkOp::Flush, nothing)
}

fn begin_zeroes(slot: SlotId, command: &Command, table: &NsTable) -> Result<(Stage, Work), Ended> {
    let ns = fields::namespace(table, command.nsid, Intent::Write)?;
    let range = fields::lba_range(command, ns)?;
    let (fua, gate) = (fields::durable(command, table), GateUse::Write);
    // With or without the wish to deallocate (DEAC): zeros take no space here.
    let zeroes = Work { fua, gate, ..on_range(slot, ns, WorkOp::WriteZeroes, range) };
    Ok((Stage::Plain { data_len: 0 }, zeroes))
}

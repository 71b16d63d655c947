//! Commands with a list of ranges: Dataset Management and Copy.

use lamina_bdev::Status as EngineStatus;

use super::fields::{self, COPY_BLOCKS_MAX, COPY_RANGE_BLOCKS_MAX, COPY_RANGES_MAX, Intent, Range};
use super::simple::on_range;
use super::status::{Way, from_engine};
use super::{Ended, GateUse, IoQueue, Memory, Stage, Work, WorkOp};
use crate::SlotId;
use crate::subsystem::{NsEntry, NsTable};
use crate::wire::{Command, Status};

impl<B: AsRef<[u8]>> IoQueue<B> {
    /// Dataset Management: every range is checked before any is freed.
    pub(super) fn begin_dsm(
        &mut self,
        slot: SlotId,
        command: &Command,
        data: &[u8],
        table: &NsTable,
    ) -> Result<(Stage, Work), Ended> {
        let ns = fields::namespace(table, command.nsid, Intent::Write)?;
        let ranges = dsm_ranges(command);
        if data.len() < ranges * 16 {
            return Err(Status::DATA_SGL_LENGTH_INVALID.dnr().into());
        }
        for index in 0..ranges {
            let (blocks, slba) = fields::dsm_range(data, index);
            fields::in_bounds(slba, blocks, ns)?;
        }
        self.deallocate_from(slot, command, data, 0, table)
    }

    /// The next range to free, from `first` on.
    pub(super) fn deallocate_from(
        &mut self,
        slot: SlotId,
        command: &Command,
        data: &[u8],
        first: u16,
        table: &NsTable,
    ) -> Result<(Stage, Work), Ended> {
        // Only the attribute Deallocate asks for something; the others are hints.
        if command.cdw11 & 1 << 2 == 0 {
            return Err(Ended::good(0));
        }
        let ns = fields::namespace(table, command.nsid, Intent::Write)?;
        for index in usize::from(first)..dsm_ranges(command) {
            let (blocks, slba) = fields::dsm_range(data, index);
            if blocks > 0 {
                let range = fields::in_bounds(slba, blocks, ns)?;
                let discard = on_range(slot, ns, WorkOp::Discard, range);
                let stage = Stage::Deallocate { range: index as u16 };
                return Ok((stage, Work { gate: GateUse::Write, ..discard }));
            }
        }
        Err(Ended::good(0))
    }

    /// Copy, format 0: every range is checked before any block moves.
    pub(super) fn begin_copy(
        &mut self,
        slot: SlotId,
        command: &Command,
        data: &[u8],
        table: &NsTable,
    ) -> Result<(Stage, Work), Ended> {
        let ns = copy_namespace(command, table)?;
        if command.cdw12 >> 8 & 0xf != 0 {
            return Err(Status::INVALID_FIELD.dnr().into());
        }
        let ranges = copy_ranges(command);
        if ranges > COPY_RANGES_MAX {
            return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.dnr().into());
        }
        if data.len() < ranges * 32 {
            return Err(Status::DATA_SGL_LENGTH_INVALID.dnr().into());
        }
        let mut total = 0;
        for index in 0..ranges {
            let (blocks, slba) = fields::copy_range(data, index);
            fields::in_bounds(slba, blocks, ns)?;
            if blocks > u64::from(COPY_RANGE_BLOCKS_MAX) {
                return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.dnr().into());
            }
            total += blocks;
        }
        if total > u64::from(COPY_BLOCKS_MAX) {
            return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.dnr().into());
        }
        let target = fields::in_bounds(copy_target(command), total, ns)?;
        for index in 0..ranges {
            let (blocks, slba) = fields::copy_range(data, index);
            if target.overlaps(Range { slba, blocks }) {
                return Err(Status::INVALID_FIELD.dnr().into());
            }
        }
        self.copy_read(slot, data, Place { range: 0, done: 0, total: 0 }, ns)
    }

    /// Reads the next piece.
    fn copy_read(
        &self,
        slot: SlotId,
        data: &[u8],
        at: Place,
        ns: &NsEntry,
    ) -> Result<(Stage, Work), Ended> {
        let part = self.copy_piece(data, at, ns)?;
        let read = on_range(slot, ns, WorkOp::Read, part);
        let Place { range, done, total } = at;
        let stage = Stage::CopyRead { range, done, total };
        Ok((stage, Work { memory: Memory::Scratch, ..read }))
    }

    /// The source blocks that are moved next.
    fn copy_piece(&self, data: &[u8], at: Place, ns: &NsEntry) -> Result<Range, Status> {
        let (blocks, slba) = fields::copy_range(data, usize::from(at.range));
        let done = u64::from(at.done);
        fields::in_bounds(slba + done, self.piece(ns).min(blocks - done), ns)
    }

    /// Goes on with a Copy after a read or a write.
    pub(super) fn copy_on(
        &mut self,
        slot: SlotId,
        command: &Command,
        stage: Stage,
        status: EngineStatus,
        data: &[u8],
        table: &NsTable,
    ) -> Result<(Stage, Work), Ended> {
        let (Stage::CopyRead { range, done, total } | Stage::CopyWrite { range, done, total }) =
            stage
        else {
            unreachable!("{stage:?} is no stage of a Copy")
        };
        // Dword 0 of a failure names the first range that is not copied whole.
        let failed = |status| Ended { result: u32::from(range), ..Ended::with(status) };
        let ns = copy_namespace(command, table).map_err(failed)?;
        let at = Place { range, done, total };
        let part = self.copy_piece(data, at, ns).map_err(failed)?;
        if let Stage::CopyRead { .. } = stage {
            from_engine(status, Way::Read).map_err(failed)?;
            let slba = copy_target(command) + u64::from(total);
            let target = fields::in_bounds(slba, part.blocks, ns).map_err(failed)?;
            let (memory, gate, fua) =
                (Memory::Scratch, GateUse::Write, fields::durable(command, table));
            let write = on_range(slot, ns, WorkOp::Write, target);
            let stage = Stage::CopyWrite { range, done, total };
            return Ok((stage, Work { memory, gate, fua, ..write }));
        }
        from_engine(status, Way::Write).map_err(failed)?;
        let moved = part.blocks as u32;
        let (blocks, _) = fields::copy_range(data, usize::from(range));
        let mut next = Place { range, done: done + moved, total: total + moved };
        if u64::from(next.done) == blocks {
            next = Place { range: range + 1, done: 0, ..next };
        }
        if usize::from(next.range) == copy_ranges(command) {
            return Err(Ended::good(0));
        }
        self.copy_read(slot, data, next, ns)
    }
}

/// Where a Copy stands.
#[derive(Clone, Copy)]
struct Place {
    range: u16,
    /// Blocks of this range.
    done: u32,
    /// Blocks in all.
    total: u32,
}

/// Copy reads and writes its namespace.
fn copy_namespace<'t>(command: &Command, table: &'t NsTable) -> Result<&'t NsEntry, Status> {
    let ns = fields::namespace(table, command.nsid, Intent::Read)?;
    fields::permitted(ns, Intent::Write)?;
    Ok(ns)
}

/// NR of Dataset Management, zero-based.
fn dsm_ranges(command: &Command) -> usize {
    (command.cdw10 & 0xff) as usize + 1
}

/// NR of Copy, zero-based.
fn copy_ranges(command: &Command) -> usize {
    (command.cdw12 & 0xff) as usize + 1
}

/// SDLBA.
fn copy_target(command: &Command) -> u64 {
    command.cdw10_11()
}

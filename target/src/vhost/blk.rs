//! A virtio-blk request out of a descriptor chain.
//!
//! ```text
//!  device-readable bytes              device-writable bytes
//!  ├ type u32, ioprio u32, sector u64 ├ data of a read or an id ... │ status u8 ┤
//!  ├ data of a write, ranges of a discard
//! ```
//!
//! The bytes may be cut into descriptors anywhere (VERSION_1 allows any layout). What is wrong with
//! a request is answered with a status; only where no status can be written the queue stops.

use lamina_bdev::{Handle, Op, SECTOR_SIZE, Seg, Status, limits};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::features::Negotiated;
use super::vring::{DESC_WRITE, Desc, Fault};
use crate::mem::guest::GuestMemory;

/// Ranges one discard or write-zeroes request may have.
pub(super) const PIECES_MAX: usize = 16;
/// Sectors one such range may have (1 GiB).
pub(super) const PIECE_SECTORS_MAX: u32 = 1 << 21;
/// Bytes one read or write may have: firmware reads up to this in one go.
const TRANSFER_BYTES_MAX: u64 = 1 << 30;

const HEADER_BYTES: usize = 16;
const PIECE_BYTES: usize = 16;

/// The status a guest reads at the end of its request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Answer {
    Ok = VIRTIO_BLK_S_OK as u8,
    IoError = VIRTIO_BLK_S_IOERR as u8,
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

impl From<Status> for Answer {
    fn from(status: Status) -> Answer {
        match status {
            Status::Ok => Answer::Ok,
            // virtio-blk has one word for all of these; the log has the rest.
            Status::IoError
            | Status::NoSpace
            | Status::ReadOnly
            | Status::OutOfRange
            | Status::Corrupt
            | Status::Invalid
            | Status::Detached => Answer::IoError,
        }
    }
}

/// The disk as requests see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Device {
    pub(super) handle: Handle,
    pub(super) capacity_bytes: u64,
    pub(super) readonly: bool,
    pub(super) serial: [u8; VIRTIO_BLK_ID_BYTES as usize],
    pub(super) negotiated: Negotiated,
    pub(super) write_cache: bool,
}

/// A range of a discard or write-zeroes request, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// What a request's memory turned out to be; filled by [`parse`], allocated once a queue.
#[derive(Debug)]
pub(super) struct Operands {
    /// Data of a read or write.
    pub(super) segs: Vec<Seg>,
    /// Ranges of a discard or write-zeroes.
    pub(super) pieces: Vec<Piece>,
}

impl Operands {
    pub(super) fn new() -> Operands {
        Operands {
            segs: Vec::with_capacity(limits::SEGS_MAX),
            pieces: Vec::with_capacity(PIECES_MAX),
        }
    }

    /// Adds a segment, or lengthens the last one; false if there are too many.
    fn add_seg(&mut self, seg: Seg) -> bool {
        if let Some(last) = self.segs.last_mut()
            && last.addr + last.len == seg.addr
        {
            last.len += seg.len;
            return true;
        }
        if self.segs.len() == limits::SEGS_MAX {
            return false;
        }
        self.segs.push(seg);
        true
    }
}

/// What to do for a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// One engine request over the segments (none for a flush).
    Transfer { op: Op, offset: u64, len: u64, fua: bool },
    /// One engine request for each range.
    Pieces { op: Op },
    /// Nothing: answer at once.
    Reply(Answer),
}

/// A request, read completely: guest memory is not consulted again but for data and status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Parsed {
    /// Guest address of the status byte, which has been checked.
    pub(super) status_addr: u64,
    /// Bytes written to guest memory if all goes well, status included.
    pub(super) written: u32,
    pub(super) action: Action,
}

/// The byte counts and the header of a chain.
struct Layout {
    header: [u8; HEADER_BYTES],
    /// Readable bytes after the header.
    out_len: u64,
    /// Writable bytes before the status.
    in_len: u64,
}

/// Reads a request from a chain's descriptors into `operands` and a [`Parsed`].
///
/// # Errors
/// There is no place to write a status to.
#[inline]
pub(super) fn parse(
    descs: &[Desc],
    memory: &GuestMemory,
    hint: &mut usize,
    device: &Device,
    operands: &mut Operands,
) -> Result<Parsed, Fault> {
    match parse_usual(descs, memory, hint, device, operands) {
        Some(parsed) => Ok(parsed),
        None => parse_any(descs, memory, hint, device, operands),
    }
}

/// [`parse_any`] for reads and writes as drivers send them: a header, one buffer, a status byte,
/// the three in one region. `None`: anything else, and nothing has come of it.
#[inline]
pub(super) fn parse_usual(
    descs: &[Desc],
    memory: &GuestMemory,
    hint: &mut usize,
    device: &Device,
    operands: &mut Operands,
) -> Option<Parsed> {
    let [header, data, status] = descs else { return None };
    let ends = header.len as usize == HEADER_BYTES && status.len == 1;
    if !ends || header.has(DESC_WRITE) || !status.has(DESC_WRITE) {
        return None;
    }
    let window = memory.window(hint, header.addr)?;
    let (kind, sector) = window.words(header.addr)?;
    let seg = window.seg(data.addr, u64::from(data.len))?;
    window.seg(status.addr, 1)?;
    let (op, written) = match (kind as u32, data.has(DESC_WRITE)) {
        (VIRTIO_BLK_T_IN, true) => (Op::Read, data.len.wrapping_add(1)),
        (VIRTIO_BLK_T_OUT, false) => (Op::Write, 1),
        _ => return None,
    };
    // A bad range or length is rare enough to be found out twice.
    let action = transfer(op, sector, u64::from(data.len), 0, device).ok()?;
    operands.pieces.clear();
    operands.segs.clear();
    operands.segs.push(seg);
    Some(Parsed { status_addr: status.addr, written, action })
}

/// [`parse`] for chains of any layout.
pub(super) fn parse_any(
    descs: &[Desc],
    memory: &GuestMemory,
    hint: &mut usize,
    device: &Device,
    operands: &mut Operands,
) -> Result<Parsed, Fault> {
    operands.segs.clear();
    operands.pieces.clear();
    let status_addr = find_status(descs, memory, hint)?;
    let reply = |answer| Parsed { status_addr, written: 1, action: Action::Reply(answer) };
    let Some(layout) = lay_out(descs, memory, hint, operands) else {
        return Ok(reply(Answer::IoError));
    };
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| layout.header[at + i]));
    let sector = u64::from(word(8)) | u64::from(word(12)) << 32;
    let negotiated = device.negotiated;
    let action = match word(0) {
        VIRTIO_BLK_T_IN => transfer(Op::Read, sector, layout.in_len, layout.out_len, device),
        VIRTIO_BLK_T_OUT => transfer(Op::Write, sector, layout.out_len, layout.in_len, device),
        VIRTIO_BLK_T_FLUSH => Ok(Action::Transfer { op: Op::Flush, offset: 0, len: 0, fua: false }),
        VIRTIO_BLK_T_GET_ID => {
            return Ok(match write_in(descs, memory, hint, &device.serial) {
                0 => reply(Answer::IoError),
                copied => Parsed { written: copied + 1, ..reply(Answer::Ok) },
            });
        }
        VIRTIO_BLK_T_DISCARD if negotiated.discard => {
            pieces(Op::Discard, descs, memory, hint, &layout, device, operands)
        }
        VIRTIO_BLK_T_WRITE_ZEROES if negotiated.write_zeroes => {
            pieces(Op::WriteZeroes, descs, memory, hint, &layout, device, operands)
        }
        _ => Err(Answer::Unsupported),
    };
    Ok(match action {
        Err(answer) => reply(answer),
        Ok(action @ Action::Transfer { op: Op::Read, .. }) => {
            Parsed { status_addr, written: layout.in_len as u32 + 1, action }
        }
        Ok(action) => Parsed { status_addr, written: 1, action },
    })
}

/// The status is the last byte of the last descriptor, which must be writable.
fn find_status(descs: &[Desc], memory: &GuestMemory, hint: &mut usize) -> Result<u64, Fault> {
    let last = descs.last().ok_or(Fault::NoStatus)?;
    if !last.has(DESC_WRITE) || last.len == 0 {
        return Err(Fault::NoStatus);
    }
    let addr = last.addr.checked_add(u64::from(last.len) - 1).ok_or(Fault::NoStatus)?;
    if memory.holds(hint, addr) { Ok(addr) } else { Err(Fault::NoStatus) }
}

/// Splits the chain into header, data and status. `None`: an empty or stray descriptor, readable
/// bytes after writable ones, too many segments, or no complete header.
fn lay_out(
    descs: &[Desc],
    memory: &GuestMemory,
    hint: &mut usize,
    operands: &mut Operands,
) -> Option<Layout> {
    let mut layout = Layout { header: [0; HEADER_BYTES], out_len: 0, in_len: 0 };
    let mut header_len = 0;
    let mut writable = false;
    for (position, desc) in descs.iter().enumerate() {
        let (mut addr, mut len) = (desc.addr, u64::from(desc.len));
        if len == 0 || (writable && !desc.has(DESC_WRITE)) {
            return None;
        }
        let total = if desc.has(DESC_WRITE) {
            writable = true;
            if position + 1 == descs.len() {
                len -= 1;
            }
            &mut layout.in_len
        } else {
            let part = len.min((HEADER_BYTES - header_len) as u64) as usize;
            if part > 0 {
                let rest = &mut layout.header[header_len..header_len + part];
                if !memory.read(hint, addr, rest) {
                    return None;
                }
            }
            header_len += part;
            addr = addr.checked_add(part as u64)?;
            len -= part as u64;
            &mut layout.out_len
        };
        // At most 2048 descriptors of 4 GiB each: far from overflow.
        *total += len;
        let mut room = true;
        if len > 0 && !memory.translate(hint, addr, len, |seg| room &= operands.add_seg(seg)) {
            return None;
        }
        if !room {
            return None;
        }
    }
    (header_len == HEADER_BYTES).then_some(layout)
}

/// Checks a range of sectors against the disk; returns its offset in bytes.
#[inline]
fn check_range(sector: u64, bytes: u64, device: &Device) -> Result<u64, Answer> {
    let offset = sector.checked_mul(SECTOR_SIZE as u64).ok_or(Answer::IoError)?;
    let end = offset.checked_add(bytes).ok_or(Answer::IoError)?;
    if end > device.capacity_bytes { Err(Answer::IoError) } else { Ok(offset) }
}

/// A read or write of `len` bytes; `stray` bytes of the other direction there must not be.
#[inline]
fn transfer(op: Op, sector: u64, len: u64, stray: u64, device: &Device) -> Result<Action, Answer> {
    let misfit = stray != 0
        || len == 0
        || len > TRANSFER_BYTES_MAX
        || !len.is_multiple_of(SECTOR_SIZE as u64);
    if misfit || (op == Op::Write && device.readonly) {
        return Err(Answer::IoError);
    }
    let offset = check_range(sector, len, device)?;
    let fua = op == Op::Write && device.negotiated.writes_through(device.write_cache);
    Ok(Action::Transfer { op, offset, len, fua })
}

/// A discard or write-zeroes: its ranges are copied out, then checked.
fn pieces(
    op: Op,
    descs: &[Desc],
    memory: &GuestMemory,
    hint: &mut usize,
    layout: &Layout,
    device: &Device,
    operands: &mut Operands,
) -> Result<Action, Answer> {
    let bytes = layout.out_len as usize;
    let fits = bytes > 0 && bytes.is_multiple_of(PIECE_BYTES) && bytes <= PIECES_MAX * PIECE_BYTES;
    if !fits || layout.in_len != 0 || device.readonly {
        return Err(Answer::IoError);
    }
    let mut raw = [0; PIECES_MAX * PIECE_BYTES];
    if !read_out(descs, memory, hint, &mut raw[..bytes]) {
        return Err(Answer::IoError);
    }
    operands.segs.clear();
    for piece in raw[..bytes].chunks_exact(PIECE_BYTES) {
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| piece[at + i]));
        let sector = u64::from(word(0)) | u64::from(word(4)) << 32;
        let (sectors, flags) = (word(8), word(12));
        let known = match op {
            Op::WriteZeroes => VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
            _ => 0,
        };
        if flags & !known != 0 {
            return Err(Answer::Unsupported);
        }
        if sectors > PIECE_SECTORS_MAX {
            return Err(Answer::IoError);
        }
        let len = u64::from(sectors) * SECTOR_SIZE as u64;
        let offset = check_range(sector, len, device)?;
        if len > 0 {
            operands.pieces.push(Piece { offset, len });
        }
    }
    if operands.pieces.is_empty() {
        return Ok(Action::Reply(Answer::Ok));
    }
    Ok(Action::Pieces { op })
}

/// Copies readable bytes after the header.
fn read_out(descs: &[Desc], memory: &GuestMemory, hint: &mut usize, out: &mut [u8]) -> bool {
    let mut skip = HEADER_BYTES as u64;
    let mut done = 0;
    for desc in descs.iter().take_while(|desc| !desc.has(DESC_WRITE)) {
        let len = u64::from(desc.len);
        let from = skip.min(len);
        skip -= from;
        let part = (len - from).min((out.len() - done) as u64) as usize;
        if part > 0 && !memory.read(hint, desc.addr + from, &mut out[done..done + part]) {
            return false;
        }
        done += part;
    }
    done == out.len()
}

/// Copies `data` to the writable bytes before the status, as far as they go; returns how many.
fn write_in(descs: &[Desc], memory: &GuestMemory, hint: &mut usize, data: &[u8]) -> u32 {
    let mut done = 0;
    for (position, desc) in descs.iter().enumerate() {
        if !desc.has(DESC_WRITE) {
            continue;
        }
        let room = desc.len as usize - usize::from(position + 1 == descs.len());
        let part = room.min(data.len() - done);
        if part > 0 && !memory.write(hint, desc.addr, &data[done..done + part]) {
            return 0;
        }
        done += part;
    }
    done as u32
}

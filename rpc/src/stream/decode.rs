//! Reads a stream, a piece at a time as it comes.
//!
//! ```text
//!  push(bytes) ─► at most one record is kept ─► next() ─► Event, or None: more bytes are needed
//! ```

use super::{
    ABORT_BYTES_MAX, BLOCK_BYTES, DATA_BYTES_MAX, END_BYTES, HEADER_BYTES, Header, INCREMENTAL,
    MAGIC, NAME_BYTES_MAX, RECORD_BYTES, RECORD_MAGIC, SIZE_MAX, StreamError, StreamMark, Totals,
    VERSION, kind,
};

/// What a stream says next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The header; see [`Decoder::header`].
    Header,
    /// Bytes of the disk.
    Data {
        /// First byte on the disk.
        offset: u64,
        /// Whole blocks, 1 MiB at most.
        bytes: &'a [u8],
    },
    /// Zeros.
    Hole {
        /// First byte on the disk.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// All has been said up to this byte of the disk.
    Progress(u64),
    /// The end: all of it was there and right.
    End(Totals),
}

/// A stream on its way in.
#[derive(Debug, Default)]
pub struct Decoder {
    kept: Vec<u8>,
    /// Bytes of `kept` that are done with.
    done: usize,
    header: Option<Header>,
    mark: StreamMark,
    ended: bool,
    failed: Option<StreamError>,
}

/// The fields of a record that has been checked for damage.
struct Raw {
    kind: u32,
    offset: u64,
    length: u64,
    crc: u32,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// The header, once it has been read.
    pub fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// Where the last whole record ends.
    pub fn mark(&self) -> StreamMark {
        self.mark
    }

    /// True after the end record.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Forgets what is after the last whole record, and what was wrong with it: the stream goes on
    /// from [`Decoder::mark`].
    pub fn rewind(&mut self) {
        self.kept.clear();
        self.done = 0;
        self.failed = None;
    }

    /// How many bytes [`Decoder::push`] takes now.
    pub fn room(&self) -> usize {
        RECORD_BYTES + DATA_BYTES_MAX - self.rest().len()
    }

    /// Takes bytes; returns how many. Fewer than given: call [`Decoder::next`] first.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        self.kept.drain(..self.done);
        self.done = 0;
        let room = RECORD_BYTES + DATA_BYTES_MAX - self.kept.len();
        let taken = bytes.len().min(room);
        self.kept.extend_from_slice(&bytes[..taken]);
        taken
    }

    /// What the stream says next; `None`: more bytes are needed, or it has ended.
    ///
    /// # Errors
    /// What is wrong with the stream, and at which record; the same again from then on.
    #[expect(clippy::should_implement_trait, reason = "an event borrows from the decoder")]
    pub fn next(&mut self) -> Result<Option<Event<'_>>, StreamError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let step = if self.ended {
            self.after_end()
        } else if self.header.is_none() {
            self.read_header()
        } else {
            self.read_record()
        };
        match step {
            Ok(None) => Ok(None),
            Ok(Some(found)) => Ok(Some(self.event(found))),
            Err(why) => {
                let record = self.header.as_ref().map(|_| self.mark.record);
                let error = StreamError { record, at: self.mark.bytes, why };
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Bytes that have come and are not done with.
    fn rest(&self) -> &[u8] {
        &self.kept[self.done..]
    }

    fn after_end(&self) -> Result<Option<Found>, String> {
        match self.rest() {
            [] => Ok(None),
            rest => Err(format!("{} bytes or more follow the end of the stream", rest.len())),
        }
    }

    fn read_header(&mut self) -> Result<Option<Found>, String> {
        let rest = self.rest();
        let shown = rest.len().min(MAGIC.len());
        if rest[..shown] != MAGIC[..shown] {
            return Err("this is not a stream of a snapshot".into());
        }
        if rest.len() < HEADER_BYTES {
            return Ok(None);
        }
        let bytes = &rest[..HEADER_BYTES];
        let header = header_of(bytes)?;
        self.mark.checksum = crc32c::crc32c(bytes);
        self.mark.bytes = HEADER_BYTES as u64;
        self.done += HEADER_BYTES;
        self.header = Some(header);
        Ok(Some(Found::Header))
    }

    fn read_record(&mut self) -> Result<Option<Found>, String> {
        let rest = self.rest();
        if rest.len() < RECORD_BYTES {
            return Ok(None);
        }
        let raw = self.raw(&rest[..RECORD_BYTES])?;
        let payload = match raw.kind {
            kind::DATA | kind::END | kind::ABORT => raw.length as usize,
            _ => 0,
        };
        let whole = RECORD_BYTES + payload;
        if rest.len() < whole {
            return Ok(None);
        }
        let body = &rest[RECORD_BYTES..whole];
        if crc32c::crc32c(body) != raw.crc {
            return Err("its data does not match its checksum".into());
        }
        let found = self.found(&raw, body)?;
        let mark = &mut self.mark;
        match found {
            Found::Data { offset, length } => {
                mark.totals.data_records += 1;
                mark.totals.data_bytes += length as u64;
                mark.offset = offset + length as u64;
            }
            Found::Hole { offset, length } => {
                mark.totals.hole_records += 1;
                mark.totals.hole_bytes += length;
                mark.offset = offset + length;
            }
            Found::Progress(offset) => mark.offset = offset,
            Found::End => self.ended = true,
            Found::Header => {}
        }
        let mark = &mut self.mark;
        mark.checksum =
            crc32c::crc32c_append(mark.checksum, &self.kept[self.done..self.done + whole]);
        mark.record += 1;
        mark.bytes += whole as u64;
        self.done += whole;
        Ok(Some(found))
    }

    /// Everything that can be checked before the payload is there.
    fn raw(&self, head: &[u8]) -> Result<Raw, String> {
        if head[..4] != RECORD_MAGIC {
            return Err("no record begins here".into());
        }
        if crc32c::crc32c(&head[..36]) != u32_at(head, 36) {
            return Err("its head does not match its checksum".into());
        }
        let number = u64_at(head, 8);
        if number != self.mark.record {
            return Err(format!("it has number {number}: records are missing or doubled"));
        }
        let (kind, offset, length) = (u32_at(head, 4), u64_at(head, 16), u64_at(head, 24));
        let size = self.header.as_ref().map_or(0, |header| header.size);
        let raw = Raw { kind, offset, length, crc: u32_at(head, 32) };
        match kind {
            kind::DATA | kind::HOLE | kind::PROGRESS => {
                let most = if kind == kind::DATA { DATA_BYTES_MAX as u64 } else { size };
                let least = u64::from(kind != kind::PROGRESS);
                let most = if kind == kind::PROGRESS { 0 } else { most };
                if !(least..=most).contains(&length) {
                    return Err(format!("{length} bytes are not a length for it"));
                }
                if !offset.is_multiple_of(BLOCK_BYTES) || !length.is_multiple_of(BLOCK_BYTES) {
                    return Err(format!("byte {offset}, length {length}: not whole blocks"));
                }
                if offset < self.mark.offset {
                    let before = self.mark.offset;
                    return Err(format!("byte {offset} comes after byte {before} was said"));
                }
                if offset.checked_add(length).is_none_or(|end| end > size) {
                    return Err(format!("byte {offset}, length {length}: past the size {size}"));
                }
            }
            kind::END => {
                if offset != size || length != END_BYTES as u64 {
                    return Err("an end record of another form".into());
                }
            }
            kind::ABORT if length <= ABORT_BYTES_MAX as u64 => {}
            kind::ABORT => return Err(format!("an abort record of {length} bytes")),
            other => return Err(format!("records of kind {other} are not known")),
        }
        Ok(raw)
    }

    fn found(&self, raw: &Raw, body: &[u8]) -> Result<Found, String> {
        Ok(match raw.kind {
            kind::DATA => Found::Data { offset: raw.offset, length: body.len() },
            kind::HOLE => Found::Hole { offset: raw.offset, length: raw.length },
            kind::PROGRESS => Found::Progress(raw.offset),
            kind::END => {
                let own = self.mark.totals;
                let said = Totals {
                    data_records: u64_at(body, 0),
                    data_bytes: u64_at(body, 8),
                    hole_records: u64_at(body, 16),
                    hole_bytes: u64_at(body, 24),
                };
                if said != own {
                    return Err(format!("the end counts {said:?}, and there were {own:?}"));
                }
                if u32_at(body, 32) != self.mark.checksum || u32_at(body, 36) != 0 {
                    return Err("the stream as a whole does not match its checksum".into());
                }
                Found::End
            }
            _ => {
                let text = String::from_utf8_lossy(body);
                return Err(format!("the sender gave up: {}", text.escape_debug()));
            }
        })
    }

    fn event(&self, found: Found) -> Event<'_> {
        match found {
            Found::Header => Event::Header,
            Found::Data { offset, length } => {
                Event::Data { offset, bytes: &self.kept[self.done - length..self.done] }
            }
            Found::Hole { offset, length } => Event::Hole { offset, length },
            Found::Progress(offset) => Event::Progress(offset),
            Found::End => Event::End(self.mark.totals),
        }
    }
}

/// An event without its bytes.
enum Found {
    Header,
    Data { offset: u64, length: usize },
    Hole { offset: u64, length: u64 },
    Progress(u64),
    End,
}

fn header_of(bytes: &[u8]) -> Result<Header, String> {
    if u32_at(bytes, 8) != VERSION {
        let version = u32_at(bytes, 8);
        return Err(format!("version {version} of streams is not known, only {VERSION}"));
    }
    if crc32c::crc32c(&bytes[..HEADER_BYTES - 4]) != u32_at(bytes, HEADER_BYTES - 4) {
        return Err("it does not match its checksum".into());
    }
    let uuid = |at: usize| -> [u8; 16] { bytes[at..at + 16].try_into().expect("16 bytes") };
    let (flags, base) = (u32_at(bytes, 16), uuid(56));
    let (size, base_size) = (u64_at(bytes, 72), u64_at(bytes, 80));
    let incremental = flags & INCREMENTAL != 0;
    let lawful = |size: u64| size.is_multiple_of(BLOCK_BYTES) && (1..=SIZE_MAX).contains(&size);
    if u32_at(bytes, 12) != HEADER_BYTES as u32
        || u32_at(bytes, 20) != BLOCK_BYTES as u32
        || flags & !INCREMENTAL != 0
        || bytes[224..252].iter().any(|byte| *byte != 0)
    {
        return Err("it has lengths or flags that are not known".into());
    }
    if !lawful(size) || (incremental && !lawful(base_size)) || (!incremental && base_size != 0) {
        return Err(format!("{size} and {base_size} bytes are not sizes of disks"));
    }
    if incremental == (base == [0; 16]) {
        return Err("it names no older snapshot, or one that it does not need".into());
    }
    Ok(Header {
        disk: uuid(24),
        snapshot: uuid(40),
        base: incremental.then_some(base),
        size,
        base_size,
        time: u64_at(bytes, 88),
        disk_name: name_of(&bytes[96..160])?,
        label: name_of(&bytes[160..224])?,
    })
}

fn name_of(bytes: &[u8]) -> Result<String, String> {
    let length = usize::from(bytes[0]);
    let good = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    let name = bytes.get(1..1 + length).filter(|_| length <= NAME_BYTES_MAX);
    match name {
        Some(name) if name.iter().all(good) => Ok(String::from_utf8_lossy(name).into_owned()),
        Some(_) | None => Err("a name in it has characters that names do not have".into()),
    }
}

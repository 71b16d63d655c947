//! From a snapshot to a stream: changed blocks by the engine's walk, their bytes by reads; blocks
//! of zeros become holes.

use std::collections::VecDeque;
use std::io::Write;
use std::os::unix::net::UnixStream;

use lamina_bdev::{ChangeKind, DiffQuery, Error, ErrorKind, Op, Target};
use lamina_rpc::methods as rpc;
use lamina_rpc::stream::{BLOCK_BYTES, DATA_BYTES_MAX, Encoder, Header, StreamMark};

use super::{Pending, WINDOW, finish, spawn, start};
use crate::control::Control;
use crate::control::changes::{Attached, changes, comparable};
use crate::log;
use crate::reactor::client_io::IoBuffer;

/// Extents and node reads of one page; after each there is a progress record.
const PAGE_EXTENTS: u32 = 512;
const PAGE_READS: u32 = 512;

/// A stream on its way out.
struct Export {
    base: Option<Attached>,
    view: Attached,
    size: u64,
    name: String,
    encoder: Encoder,
    /// What is to be said, in order.
    window: VecDeque<Piece>,
}

enum Piece {
    Reading { offset: u64, pending: Pending },
    Hole { offset: u64, length: u64 },
}

/// Why a stream ends early.
enum Broken {
    /// The other side is gone.
    Socket(std::io::Error),
    /// To be told to it.
    Source(Error),
}

impl From<std::io::Error> for Broken {
    fn from(e: std::io::Error) -> Broken {
        Broken::Socket(e)
    }
}

impl From<Error> for Broken {
    fn from(error: Error) -> Broken {
        Broken::Source(error)
    }
}

impl Control {
    /// `lamina_snapshot_export`: the path of the socket.
    pub(in crate::control) fn open_export(
        &self,
        params: &rpc::LaminaSnapshotExport,
    ) -> Result<String, Error> {
        let (found, snap) = self.find_snapshot(&params.snapshot)?;
        let since = params.since.as_deref().map(|text| self.find_snapshot(text)).transpose()?;
        if let Some((older, older_snap)) = &since {
            comparable(&found, older)?;
            if older_snap.uuid == snap.uuid {
                let why = format!("{} is both the snapshot and the older one", found.alias());
                return Err(Error::new(ErrorKind::Invalid, why));
            }
        }
        let resume = params.resume;
        let lawful =
            |mark: StreamMark| mark.offset.is_multiple_of(BLOCK_BYTES) && mark.offset <= snap.size;
        if resume.is_some_and(|mark| !lawful(mark)) {
            let why = format!("a stream of {} cannot have broken off there", found.alias());
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        let shard = &found.store.shards[found.shard];
        let view = Attached::new(shard, Target::Snapshot(snap.snap))?;
        let base = since.as_ref().map(|(_, s)| Attached::new(shard, Target::Snapshot(s.snap)));
        let base = base.transpose()?;
        let disk = found.entity.disk();
        let header = Header {
            disk: disk.uuid.0,
            snapshot: snap.uuid.0,
            base: since.as_ref().map(|(_, older)| older.uuid.0),
            size: snap.size,
            base_size: since.as_ref().map_or(0, |(_, older)| older.size),
            time: snap.time,
            disk_name: disk.name.to_string(),
            label: snap.label.to_string(),
        };
        let (encoder, first) = match resume {
            None => Encoder::new(&header),
            Some(mark) => (Encoder::resume(mark), Vec::new()),
        };
        let from = resume.map_or(0, |mark| mark.offset);
        let (size, name) = (snap.size, found.alias());
        let export = Export { base, view, size, name, encoder, window: VecDeque::new() };
        let offer = self.offer()?;
        let path = offer.path();
        spawn(move || match offer.accept() {
            Ok((mut stream, _permit)) => export.run(&mut stream, &first, from),
            Err(e) => log::info(format!("nobody came for the export of {}: {e}", export.name)),
        })?;
        Ok(path)
    }
}

impl Export {
    fn run(mut self, stream: &mut UnixStream, first: &[u8], from: u64) {
        let sent = stream.write_all(first).map_err(Broken::from);
        let last = match sent.and_then(|()| self.send(stream, from)) {
            Ok(()) => self.encoder.end(self.size),
            Err(Broken::Source(error)) => {
                log::error(format!("the export of {} ends early: {error}", self.name));
                self.encoder.abort(&error.to_string())
            }
            Err(Broken::Socket(e)) => {
                log::warn(format!("the export of {} broke off: {e}", self.name));
                return;
            }
        };
        if let Err(e) = stream.write_all(&last) {
            log::warn(format!("the export of {} broke off at its end: {e}", self.name));
        }
    }

    fn send(&mut self, stream: &mut UnixStream, from: u64) -> Result<(), Broken> {
        let mut query = DiffQuery {
            base: self.base.as_ref().map(|base| base.handle),
            view: self.view.handle,
            offset: from,
            extents_max: PAGE_EXTENTS,
            reads_max: PAGE_READS,
        };
        loop {
            let page = changes(&self.view.shard, query)?;
            for extent in page.extents {
                match extent.kind {
                    ChangeKind::Hole => {
                        let (offset, length) = (extent.offset, extent.length);
                        self.window.push_back(Piece::Hole { offset, length });
                    }
                    ChangeKind::Data => self.read(stream, extent.offset, extent.length)?,
                }
            }
            self.say(stream, 0)?;
            let Some(next) = page.next else { return Ok(()) };
            stream.write_all(&self.encoder.progress(next))?;
            query.offset = next;
        }
    }

    /// Starts the reads of one extent, and says what came before them.
    fn read(&mut self, stream: &mut UnixStream, from: u64, length: u64) -> Result<(), Broken> {
        let end = from + length;
        let mut offset = from;
        while offset < end {
            let bytes = (end - offset).min(DATA_BYTES_MAX as u64);
            self.say(stream, WINDOW - 1)?;
            let buffer = IoBuffer::new(bytes as usize);
            let (shard, handle) = (&self.view.shard, self.view.handle);
            let pending = start(shard, handle, Op::Read, (offset, bytes), buffer)?;
            self.window.push_back(Piece::Reading { offset, pending });
            offset += bytes;
        }
        Ok(())
    }

    /// Says what is due, in order, until only so many reads are left.
    fn say(&mut self, stream: &mut UnixStream, reads_max: usize) -> Result<(), Broken> {
        let reading = |piece: &&Piece| matches!(piece, Piece::Reading { .. });
        let mut reads = self.window.iter().filter(reading).count();
        while reads > reads_max || matches!(self.window.front(), Some(Piece::Hole { .. })) {
            let Some(piece) = self.window.pop_front() else { break };
            match piece {
                Piece::Hole { offset, length } => {
                    stream.write_all(&self.encoder.hole(offset, length))?;
                }
                Piece::Reading { offset, pending } => {
                    reads -= 1;
                    let buffer = finish(&pending, &format!("reading {}", self.name), offset)?;
                    self.say_data(stream, offset, buffer.bytes())?;
                }
            }
        }
        Ok(())
    }

    /// Runs of blocks with data, and runs of zeros.
    fn say_data(
        &mut self,
        stream: &mut UnixStream,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), Broken> {
        let block = BLOCK_BYTES as usize;
        let zero = |at: usize| bytes[at..at + block].iter().all(|byte| *byte == 0);
        let mut at = 0;
        while at < bytes.len() {
            let hole = zero(at);
            let mut end = at + block;
            while end < bytes.len() && zero(end) == hole {
                end += block;
            }
            let place = offset + at as u64;
            if hole {
                stream.write_all(&self.encoder.hole(place, (end - at) as u64))?;
            } else {
                let run = &bytes[at..end];
                stream.write_all(&self.encoder.data(place, run))?;
                stream.write_all(run)?;
            }
            at = end;
        }
        Ok(())
    }
}

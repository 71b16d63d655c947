//! From a stream to a disk, which then gets the snapshot that the stream was of.
//!
//! ```text
//!  header ─► a new disk, or the one that is as the older snapshot ─► writes and discards
//!                     every 64 MiB: flush, note how far ─┘  end: flush, snapshot, answer
//! ```
//!
//! An import that broke off goes on when the same stream comes again: what is durable already is
//! read and checked, and not written again. The snapshot's UUID is made of that in the stream and
//! the store's, so that the next incremental stream finds its base here, and one UUID never names
//! two snapshots.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use lamina_bdev::{
    Command, DiffQuery, DiskInfo, Error, ErrorKind, Name, Op, SnapInfo, Target, Uuid,
};
use lamina_rpc::methods as rpc;
use lamina_rpc::stream::{Decoder, Event, Header, Totals, uuid_text};

use super::progress::Progress;
use super::{Pending, WINDOW, finish, spawn, start};
use crate::control::changes::{Attached, NOW_PREFIX, changes, delete_now};
use crate::control::names::{Entity, Found};
use crate::control::{Control, now_seconds, random, unpoisoned};
use crate::log;
use crate::reactor::client_io::IoBuffer;

/// Bytes written between two flushes.
const FLUSH_BYTES: u64 = 64 << 20;
/// Bytes of one discard.
const DISCARD_BYTES: u64 = 1 << 30;
/// Bytes read from the socket at once.
const READ_BYTES: usize = 256 << 10;

/// A disk being written.
struct Writer {
    disk: Attached,
    name: String,
    window: VecDeque<(u64, Pending)>,
    /// Bytes since the last flush.
    unflushed: u64,
    written: u64,
    holes: u64,
    /// A request failed: what is noted as done stays behind it.
    failed: bool,
}

/// A disk is one import's until this is dropped.
struct Importing<'a>(&'a Control, Uuid);

impl Drop for Importing<'_> {
    fn drop(&mut self) {
        unpoisoned(self.0.importing.lock()).retain(|disk| *disk != self.1);
    }
}

impl Control {
    /// True while a stream is being imported into the disk.
    pub fn is_importing(&self, disk: Uuid) -> bool {
        unpoisoned(self.importing.lock()).contains(&disk)
    }

    /// Makes the disk this import's.
    fn claim(&self, found: &Found) -> Result<Importing<'_>, Error> {
        // Not while an export of it is being made.
        let _change = self.change_in(&found.store)?;
        let disk = found.entity.disk().uuid;
        let mut importing = unpoisoned(self.importing.lock());
        let used = self.exports().iter().any(|export| export.uuid == disk);
        if used || importing.contains(&disk) {
            let name = found.alias();
            let why = format!("{name} is in use, by an export or another import: end that first");
            return Err(Error::new(ErrorKind::Busy, why));
        }
        importing.push(disk);
        Ok(Importing(self, disk))
    }

    /// `lamina_snapshot_import`: the path of the socket.
    pub(in crate::control) fn open_import(
        &self,
        params: rpc::LaminaSnapshotImport,
    ) -> Result<String, Error> {
        let gone = || Error::new(ErrorKind::Busy, "laminad is stopping");
        let control = self.me.upgrade().ok_or_else(gone)?;
        let offer = self.offer()?;
        let path = offer.path();
        spawn(move || match offer.accept() {
            Ok((mut stream, _permit)) => control.run_import(&params, &mut stream),
            Err(e) => log::info(format!("nobody came for the import of {}: {e}", params.disk)),
        })?;
        Ok(path)
    }

    fn run_import(&self, params: &rpc::LaminaSnapshotImport, stream: &mut UnixStream) {
        let answer = match self.import(params, stream) {
            Ok(done) => serde_json::to_value(done).unwrap_or_default(),
            Err(error) => {
                log::warn(format!("the import of {} ends: {error}", params.disk));
                let error = super::super::methods::failure(error);
                serde_json::json!({ "error": { "code": error.code, "message": error.message } })
            }
        };
        // The other side may still be writing: it must not be reset before it has read this.
        let _ = stream.write_all(format!("{answer}\n").as_bytes());
        let _ = stream.shutdown(Shutdown::Both);
        let mut rest = [0; 4096];
        while stream.read(&mut rest).is_ok_and(|got| got > 0) {}
    }

    fn import(
        &self,
        params: &rpc::LaminaSnapshotImport,
        stream: &mut UnixStream,
    ) -> Result<rpc::ImportDone, Error> {
        let mut input = Input { decoder: Decoder::new(), buffer: vec![0; READ_BYTES] };
        let header = input.header(stream)?;
        let (found, disk, mut progress, claim) = self.import_target(params, &header)?;
        let shard = &found.store.shards[found.shard];
        let mut writer = Writer {
            disk: Attached::new(shard, Target::Disk(disk.id))?,
            name: found.alias(),
            window: VecDeque::new(),
            unflushed: 0,
            written: 0,
            holes: 0,
            failed: false,
        };
        let resumed_at = progress.offset;
        let applied = self.apply(&mut input, stream, &mut writer, &mut progress, disk.uuid);
        // What has been written is kept, however it ended.
        let flushed = writer.flush().and_then(|()| progress.save(self.state.dir(), disk.uuid));
        applied.and(flushed)?;
        let (written, holes) = (writer.written, writer.holes);
        drop(writer);
        let snap = self.take_imported(&found, &disk, &header)?;
        Progress::remove(self.state.dir(), disk.uuid);
        drop(claim);
        Ok(rpc::ImportDone {
            disk: disk.uuid.to_string(),
            snapshot: Entity::Snapshot(disk, snap).name(),
            uuid: snap.uuid.to_string(),
            written,
            holes,
            resumed_at,
        })
    }

    /// Writes what the stream says, to its end.
    fn apply(
        &self,
        input: &mut Input,
        stream: &mut UnixStream,
        writer: &mut Writer,
        progress: &mut Progress,
        disk: Uuid,
    ) -> Result<Totals, Error> {
        let thin = progress.base.is_none();
        let durable = progress.offset;
        loop {
            let event = input.decoder.next().map_err(bad_stream)?;
            let end = match event {
                None => {
                    input.more(stream)?;
                    continue;
                }
                Some(Event::End(totals)) => return Ok(totals),
                Some(Event::Header) => continue,
                Some(Event::Data { offset, bytes }) => {
                    let end = offset + bytes.len() as u64;
                    if end > durable {
                        writer.write(offset, bytes)?;
                    }
                    end
                }
                Some(Event::Hole { offset, length }) => {
                    // A new disk is a hole.
                    if !thin && offset + length > durable {
                        writer.discard(offset, length)?;
                    }
                    offset + length
                }
                Some(Event::Progress(offset)) => offset,
            };
            // What is in flight is part of it: saved only behind a flush.
            progress.offset = progress.offset.max(end);
            if writer.unflushed >= FLUSH_BYTES {
                writer.flush()?;
                progress.save(self.state.dir(), disk)?;
            }
        }
    }

    /// The disk to write to, ready for it.
    fn import_target(
        &self,
        params: &rpc::LaminaSnapshotImport,
        header: &Header,
    ) -> Result<(Found, DiskInfo, Progress, Importing<'_>), Error> {
        let onto = params.onto.unwrap_or(false);
        if let (Some(base), false) = (&header.base, onto) {
            let why = format!(
                "the stream has only what changed since snapshot {}: make a clone of that, and import onto it (--onto)",
                uuid_text(base)
            );
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        if header.base.is_none() && onto {
            let why = "the stream has a whole disk: import it into a new disk (--disk)";
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        let called = match &params.store {
            Some(store) if !params.disk.contains('/') => format!("{store}/{}", params.disk),
            Some(_) | None => params.disk.clone(),
        };
        let known = match self.find_disk(&called) {
            Err(error) if error.kind == ErrorKind::NotFound && !onto => None,
            found => Some(found?),
        };
        let fresh = known.is_none();
        let (found, disk) = match known {
            Some(known) => known,
            None => {
                let name = params.disk.rsplit('/').next().unwrap_or("");
                let store = params
                    .store
                    .as_deref()
                    .or_else(|| params.disk.split_once('/').map(|(store, _)| store));
                let uuid = self.create_disk(name, header.size, store)?;
                self.find_disk(&uuid.to_string())?
            }
        };
        let claim = self.claim(&found)?;
        let before = Progress::load(self.state.dir(), disk.uuid);
        if let Some(before) = before.filter(|before| before.is_of(header)) {
            return Ok((found, disk, before, claim));
        }
        if onto {
            self.check_base(&found, &disk, header)?;
        } else if !fresh && (disk.mapped_blocks > 0 || disk.snapshots > 0) {
            let why =
                format!("{} exists and has data of its own: import into a new disk", found.alias());
            return Err(Error::new(ErrorKind::Exists, why));
        }
        if disk.size != header.size {
            self.resize_disk(&disk.uuid.to_string(), header.size)?;
        }
        let progress = Progress::new(header);
        progress.save(self.state.dir(), disk.uuid)?;
        let (found, disk) = self.find_disk(&disk.uuid.to_string())?;
        Ok((found, disk, progress, claim))
    }

    /// The disk must be as the stream's older snapshot is.
    fn check_base(&self, found: &Found, disk: &DiskInfo, header: &Header) -> Result<(), Error> {
        let shard = &found.store.shards[found.shard];
        let (id, origin) = (disk.id, disk.origin);
        let begins = shard.query(move |engine| {
            let own = |snap: &SnapInfo| !snap.label.as_str().starts_with(NOW_PREFIX);
            let last = engine.snapshots(id).into_iter().rfind(own);
            let of_origin = || {
                let origin = origin?;
                engine.snapshots(origin.disk).into_iter().find(|snap| snap.snap == origin)
            };
            last.or_else(of_origin)
        })?;
        let base = Uuid(header.base.unwrap_or_default());
        let named = begins.map_or("nothing".to_string(), |snap| format!("snapshot {}", snap.uuid));
        let Some(begins) =
            begins.filter(|snap| snap.uuid == base || snap.uuid == local(base, found.store.uuid))
        else {
            let why = format!(
                "the stream begins from snapshot {base}, and {} from {named}: import onto a clone of the former",
                found.alias()
            );
            return Err(Error::new(ErrorKind::Invalid, why));
        };
        let now = self.take_now(found, disk)?;
        let changed = first_change(shard, &begins, &now);
        delete_now(shard, now.snap);
        match changed? {
            None if now.size == begins.size => Ok(()),
            changed => {
                let at = changed.unwrap_or(now.size.min(begins.size));
                let why = format!(
                    "{} has been changed since {named} (at byte {at}): import onto a new clone of that",
                    found.alias()
                );
                Err(Error::new(ErrorKind::Invalid, why))
            }
        }
    }

    /// The snapshot that the stream was of.
    fn take_imported(
        &self,
        found: &Found,
        disk: &DiskInfo,
        header: &Header,
    ) -> Result<SnapInfo, Error> {
        let shard = &found.store.shards[found.shard];
        let id = disk.id;
        let snaps = shard.query(move |engine| engine.snapshots(id))?;
        let mut uuid = local(Uuid(header.snapshot), found.store.uuid);
        if let Some(taken) = snaps.iter().find(|snap| snap.uuid == uuid) {
            // The daemon ended between the snapshot and the answer.
            return Ok(*taken);
        }
        if self.find(&uuid.to_string()).is_ok() {
            // A second copy; incremental streams go onto the first.
            uuid = random::new_uuid();
        }
        let free = |label: &Name| snaps.iter().all(|snap| snap.label != *label);
        let label = Name::new(&header.label).ok().filter(free).unwrap_or(Name::EMPTY);
        let _change = self.change_in(&found.store)?;
        let time = if header.time == 0 { now_seconds() } else { header.time };
        shard.command(Command::Snapshot { disk: id, uuid, label, time })?;
        let taken = shard
            .query(move |engine| engine.snapshots(id).into_iter().find(|snap| snap.uuid == uuid))?;
        taken.ok_or_else(|| Error::new(ErrorKind::NotFound, "the disk is gone"))
    }
}

/// Byte of the first difference.
fn first_change(
    shard: &crate::reactor::handle::ShardHandle,
    base: &SnapInfo,
    view: &SnapInfo,
) -> Result<Option<u64>, Error> {
    let base = Attached::new(shard, Target::Snapshot(base.snap))?;
    let view = Attached::new(shard, Target::Snapshot(view.snap))?;
    let (base, handle) = (Some(base.handle), view.handle);
    let mut offset = 0;
    loop {
        let query = DiffQuery { base, view: handle, offset, extents_max: 1, reads_max: 512 };
        let page = changes(shard, query)?;
        match (page.extents.first(), page.next) {
            (Some(extent), _) => return Ok(Some(extent.offset)),
            (None, None) => return Ok(None),
            (None, Some(next)) => offset = next,
        }
    }
}

/// The UUID that the copy of a snapshot has in a store: different for each pair, and always the
/// same for the same one.
fn local(snapshot: Uuid, store: Uuid) -> Uuid {
    let mut bytes = snapshot.0;
    for (byte, other) in bytes.iter_mut().zip(store.0) {
        *byte ^= other;
    }
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Uuid(bytes)
}

fn bad_stream(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the stream is damaged: {error}"))
}

/// The stream as it comes.
struct Input {
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl Input {
    fn header(&mut self, stream: &mut UnixStream) -> Result<Header, Error> {
        loop {
            match self.decoder.next().map_err(bad_stream)? {
                Some(_) => break,
                None => self.more(stream)?,
            }
        }
        let header = self.decoder.header().cloned();
        header.ok_or_else(|| bad_stream("it has no header"))
    }

    /// Takes more bytes from the socket.
    fn more(&mut self, stream: &mut UnixStream) -> Result<(), Error> {
        let most = self.decoder.room().min(self.buffer.len());
        let got = loop {
            match stream.read(&mut self.buffer[..most]) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                got => break got,
            }
        };
        match got {
            Ok(0) => Err(Error::new(
                ErrorKind::Io,
                format!(
                    "the stream ends before its end, after record {}: import the whole again, and it goes on",
                    self.decoder.mark().record
                ),
            )),
            Ok(got) => {
                let taken = self.decoder.push(&self.buffer[..got]);
                assert_eq!(taken, got, "a decoder takes what it has room for");
                Ok(())
            }
            Err(e) => Err(Error::new(ErrorKind::Io, format!("the stream broke off: {e}"))),
        }
    }
}

impl Writer {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let mut buffer = IoBuffer::new(bytes.len());
        buffer.bytes_mut().copy_from_slice(bytes);
        self.start(Op::Write, offset, bytes.len() as u64, buffer)?;
        self.unflushed += bytes.len() as u64;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn discard(&mut self, from: u64, length: u64) -> Result<(), Error> {
        let mut offset = from;
        while offset < from + length {
            let bytes = (from + length - offset).min(DISCARD_BYTES);
            self.start(Op::Discard, offset, bytes, IoBuffer::new(0))?;
            offset += bytes;
        }
        self.unflushed += 4096;
        self.holes += length;
        Ok(())
    }

    fn start(&mut self, op: Op, offset: u64, length: u64, buffer: IoBuffer) -> Result<(), Error> {
        while self.window.len() >= WINDOW {
            self.wait()?;
        }
        let pending = start(&self.disk.shard, self.disk.handle, op, (offset, length), buffer)?;
        self.window.push_back((offset, pending));
        Ok(())
    }

    fn wait(&mut self) -> Result<(), Error> {
        let Some((offset, pending)) = self.window.pop_front() else { return Ok(()) };
        let outcome = finish(&pending, &format!("writing {}", self.name), offset);
        self.failed |= outcome.is_err();
        outcome.map(|_| ())
    }

    /// All that was written is durable.
    fn flush(&mut self) -> Result<(), Error> {
        while !self.window.is_empty() {
            self.wait()?;
        }
        if self.failed {
            let why = format!("{}: a write failed", self.name);
            return Err(Error::new(ErrorKind::Io, why));
        }
        let (shard, handle) = (&self.disk.shard, self.disk.handle);
        let pending = start(shard, handle, Op::Flush, (0, 0), IoBuffer::new(0))?;
        finish(&pending, &format!("flushing {}", self.name), 0)?;
        self.unflushed = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_have_uuids_of_their_own_that_do_not_change() {
        let (snapshot, store) = (random::new_uuid(), random::new_uuid());
        let copy = local(snapshot, store);
        assert_eq!(copy, local(snapshot, store));
        assert_ne!(copy, snapshot);
        assert_ne!(copy, local(snapshot, random::new_uuid()));
        assert_ne!(copy, local(random::new_uuid(), store));
        assert_eq!(copy.to_string().as_bytes()[14], b'8');
    }
}

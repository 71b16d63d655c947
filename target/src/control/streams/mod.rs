//! Snapshots as streams of bytes: a Unix socket and a thread each.
//!
//! ```text
//!  lamina ◄─ socket ─── export thread ◄─ pages of changes, reads ──┐
//!  lamina ── socket ──► import thread ── writes, discards, flush ──┴─ reactor (few in flight)
//! ```
//!
//! The socket lies in the state folder, which only the daemon's user can enter, and takes one
//! connection. The form of the stream is [`lamina_rpc::stream`]'s.

mod export;
mod import;
mod progress;

use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use lamina_bdev::{Error, ErrorKind, Handle, Op, Status};

use super::sockets::socket_path;
use super::{Control, random};
use crate::reactor::client_io::{IoBuffer, IoJob};
use crate::reactor::handle::ShardHandle;

/// Streams at one time.
const STREAMS_MAX: usize = 16;
/// How long a socket waits for its connection.
const ACCEPT_TIME: Duration = Duration::from_secs(30);
const ACCEPT_RETRY: Duration = Duration::from_millis(5);
/// How long the other side may neither take nor give a byte.
const STALL_TIME: Duration = Duration::from_secs(600);
/// How long one request may take.
const IO_TIME: Duration = Duration::from_secs(120);
/// Requests that one stream keeps in flight.
const WINDOW: usize = 4;
/// Folder for the sockets, in the state folder.
const FOLDER: &str = "streams";

/// The right to be one of a few streams.
struct Permit(Arc<AtomicUsize>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A socket that waits for its connection; gone when dropped.
struct Offer {
    listener: UnixListener,
    path: PathBuf,
    permit: Option<Permit>,
}

impl Drop for Offer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Offer {
    fn path(&self) -> String {
        self.path.display().to_string()
    }

    /// The connection, and the right to serve it.
    fn accept(mut self) -> std::io::Result<(UnixStream, Option<Permit>)> {
        let end = Instant::now() + ACCEPT_TIME;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    stream.set_read_timeout(Some(STALL_TIME))?;
                    stream.set_write_timeout(Some(STALL_TIME))?;
                    return Ok((stream, self.permit.take()));
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < end => {
                    std::thread::sleep(ACCEPT_RETRY);
                }
                Err(e) => return Err(e),
            }
        }
    }
}

impl Control {
    /// A socket for one stream.
    ///
    /// # Errors
    /// `Busy`: too many; `Io`, `Invalid` (the path is too long for a socket).
    fn offer(&self) -> Result<Offer, Error> {
        let permit = Permit(self.streams.clone());
        if self.streams.fetch_add(1, Ordering::Relaxed) >= STREAMS_MAX {
            let why = format!("{STREAMS_MAX} streams are open: try again when one has ended");
            return Err(Error::new(ErrorKind::Busy, why));
        }
        let folder = self.state.dir().join(FOLDER);
        let folder = std::path::absolute(&folder).unwrap_or(folder);
        let name = format!("{}.sock", &random::new_uuid().to_string()[..8]);
        let path = socket_path(&folder, &name)?;
        let failed = |e: std::io::Error| {
            Error::new(ErrorKind::Io, format!("{} cannot be made: {e}", path.display()))
        };
        let mut private = std::fs::DirBuilder::new();
        private.recursive(true).mode(0o700).create(&folder).map_err(failed)?;
        let listener = UnixListener::bind(&path).map_err(failed)?;
        let offer = Offer { listener, path: path.clone(), permit: Some(permit) };
        offer.listener.set_nonblocking(true).map_err(failed)?;
        Ok(offer)
    }
}

/// Removes the sockets of an earlier daemon.
pub(super) fn clear_sockets(state: &Path) {
    // Another daemon cannot have the state folder at the same time.
    let _ = std::fs::remove_dir_all(state.join(FOLDER));
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let thread = std::thread::Builder::new().name("stream".into()).spawn(work);
    thread.map(|_| ()).map_err(|e| Error::new(ErrorKind::Io, format!("no thread: {e}")))
}

/// A request under way.
type Pending = Receiver<(Status, IoBuffer)>;

fn start(
    shard: &ShardHandle,
    handle: Handle,
    op: Op,
    (offset, length): (u64, u64),
    buffer: IoBuffer,
) -> Result<Pending, Error> {
    let (answer, pending) = sync_channel(1);
    shard.start_io(Box::new(IoJob { handle, op, offset, length, buffer, answer }))?;
    Ok(pending)
}

/// Waits for a request; `what` was done at `offset`.
fn finish(pending: &Pending, what: &str, offset: u64) -> Result<IoBuffer, Error> {
    let (status, buffer) = pending.recv_timeout(IO_TIME).map_err(|_| {
        let why = format!("{what} at byte {offset}: no answer; the store is closed or hangs");
        Error::new(ErrorKind::Io, why)
    })?;
    let (kind, why) = match status {
        Status::Ok => return Ok(buffer),
        Status::NoSpace => {
            (ErrorKind::NoSpace, "the store is full: delete a disk or snapshot, or discard, first")
        }
        Status::Corrupt => (ErrorKind::Corrupt, "the map is damaged there; see lamina events"),
        Status::OutOfRange => (ErrorKind::Invalid, "past the end: it was resized meanwhile"),
        Status::Detached | Status::ReadOnly => (ErrorKind::Busy, "it is not there any more"),
        Status::IoError | Status::Invalid => (ErrorKind::Io, "the base device failed"),
    };
    Err(Error::new(kind, format!("{what} at byte {offset}: {why}")))
}

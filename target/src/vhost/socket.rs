//! The socket of an export: listens, serves one front-end after the other, on a thread of its own.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recv, recvmsg};
use vhost::vhost_user::{BackendReqHandler, Error};

use super::export::ExportConfig;
use super::message::{ExportMsg, Reply};
use super::session::Session;

/// How long the reactor may take to hear what it is told.
const TELL_WAIT: Duration = Duration::from_secs(10);
/// Longest path a Unix socket can have, bytes.
const PATH_LEN_MAX: usize = 107;
/// Bytes of a message header: request, flags, length of what follows.
const HEADER_BYTES: usize = 12;
/// Front-end message that passes a channel for messages of ours.
const SET_BACKEND_REQ_FD: u32 = 21;
/// Message of ours on that channel: read the configuration space again.
const BACKEND_CONFIG_CHANGE: u32 = 2;
/// Protocol version, in a header's flags.
const VERSION: u32 = 1;

/// How to serve an export.
pub struct ServeConfig {
    /// The same as the [`super::BlkExport`] was made with.
    pub export: ExportConfig,
    /// Where to listen.
    pub socket: PathBuf,
    /// Takes a line for the log. Called on the export's thread.
    pub log: Box<dyn Fn(&str) + Send + Sync>,
}

/// What can be said of an export's connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ExportStatus {
    /// A front-end is connected.
    pub connected: bool,
    /// Queues it has started.
    pub queues: usize,
    /// Feature bits its driver accepted.
    pub features: u64,
    /// Protocol feature bits the front-end accepted.
    pub protocol_features: u64,
    /// The write cache is on: a guest's write is durable after a flush, not before.
    pub write_cache: bool,
}

/// What the export's thread and its owner share.
pub(super) struct Shared {
    pub(super) config: ExportConfig,
    pub(super) socket: PathBuf,
    pub(super) log: Box<dyn Fn(&str) + Send + Sync>,
    pub(super) post: Box<dyn Fn(ExportMsg) + Send + Sync>,
    pub(super) capacity_bytes: AtomicU64,
    pub(super) write_cache: AtomicBool,
    stopping: AtomicBool,
    /// To wake the thread from waiting for a connection.
    wake: OwnedFd,
    /// To wake it from waiting for a message.
    connection: Mutex<Option<UnixStream>>,
    /// For our messages to the front-end.
    backend_channel: Mutex<Option<UnixStream>>,
    status: Mutex<ExportStatus>,
}

/// No invariant of what these locks guard can be broken half way, so a panic elsewhere is no reason
/// to panic here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn new(config: ServeConfig, post: Box<dyn Fn(ExportMsg) + Send + Sync>) -> io::Result<Shared> {
        let export = config.export;
        let status = ExportStatus { write_cache: export.write_cache, ..ExportStatus::default() };
        Ok(Shared {
            capacity_bytes: AtomicU64::new(export.capacity_bytes),
            write_cache: AtomicBool::new(export.write_cache),
            config: export,
            socket: config.socket,
            log: config.log,
            post,
            stopping: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            connection: Mutex::new(None),
            backend_channel: Mutex::new(None),
            status: Mutex::new(status),
        })
    }

    /// A connection's state without a socket to listen on.
    #[cfg(test)]
    pub(super) fn alone(
        config: ServeConfig,
        post: Box<dyn Fn(ExportMsg) + Send + Sync>,
    ) -> Arc<Shared> {
        Arc::new(Shared::new(config, post).expect("an eventfd"))
    }

    pub(super) fn update_status(&self, change: impl FnOnce(&mut ExportStatus)) {
        change(&mut lock(&self.status));
    }

    /// Switches the write cache, for the configuration space and for requests to come. Outlives
    /// the connection: a driver that reads it later sees what is true.
    pub(super) fn set_write_cache(&self, on: bool) {
        self.write_cache.store(on, Ordering::Release);
        self.tell(|done| ExportMsg::WriteCache { on, done });
    }

    /// Tells the reactor something that holds when this returns, unless the reactor does not move.
    fn tell(&self, make: impl FnOnce(Reply<()>) -> ExportMsg) {
        let (done, answer) = Reply::pair();
        (self.post)(make(done));
        if let Err(RecvTimeoutError::Timeout) = answer.recv_timeout(TELL_WAIT) {
            self.say("the reactor does not answer");
        }
    }

    fn say(&self, text: &str) {
        (self.log)(&format!("{}: {text}", self.socket.display()));
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

/// A served export. Dropping it stops it.
pub struct ExportServer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Device and inode of the socket we made: only that one is removed.
    identity: (u64, u64),
}

/// Starts to serve: listens at `config.socket` and sends what front-ends want to `post`, which
/// brings it to [`super::BlkExport::message`] on the reactor, in order, and wakes the reactor.
///
/// # Errors
/// The path is too long, its folder is missing, it is in use by a living process or by something
/// that is not a socket, or the system refuses the socket or the thread.
pub fn serve(
    config: ServeConfig,
    post: Box<dyn Fn(ExportMsg) + Send + Sync>,
) -> io::Result<ExportServer> {
    let listener = bind(&config.socket)?;
    let metadata = std::fs::symlink_metadata(&config.socket)?;
    let shared = Arc::new(Shared::new(config, post)?);
    let for_thread = shared.clone();
    let thread = std::thread::Builder::new()
        .name(format!("export-{}", for_thread.config.index))
        .spawn(move || accept_loop(&for_thread, &listener))?;
    Ok(ExportServer { shared, thread: Some(thread), identity: (metadata.dev(), metadata.ino()) })
}

impl ExportServer {
    /// The state of the connection, for people and RPC.
    pub fn status(&self) -> ExportStatus {
        let write_cache = self.shared.write_cache.load(Ordering::Acquire);
        ExportStatus { write_cache, ..*lock(&self.shared.status) }
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.shared.socket
    }

    /// The disk has a new size: tells requests to come, the configuration space, and the guest.
    /// True if a front-end was told; one that gave us no channel learns it when it reads again.
    pub fn resized(&self, capacity_bytes: u64) -> bool {
        self.shared.tell(|done| ExportMsg::Resize { bytes: capacity_bytes, done });
        self.shared.capacity_bytes.store(capacity_bytes, Ordering::Release);
        let mut channel = lock(&self.shared.backend_channel);
        let Some(stream) = channel.as_mut() else { return false };
        let mut message = [0; HEADER_BYTES];
        message[..4].copy_from_slice(&BACKEND_CONFIG_CHANGE.to_ne_bytes());
        message[4..8].copy_from_slice(&VERSION.to_ne_bytes());
        stream.write_all(&message).is_ok()
    }

    /// Ends the connection, waits until the export is drained, and removes the socket. The reactor
    /// must be running. Returns at once if stopped before.
    pub fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.shared.stopping.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.shared.wake, &1u64.to_ne_bytes());
        if let Some(connection) = lock(&self.shared.connection).as_ref() {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        if thread.join().is_err() {
            self.shared.say("the export's thread panicked");
        }
        let ours = std::fs::symlink_metadata(&self.shared.socket)
            .is_ok_and(|now| (now.dev(), now.ino()) == self.identity);
        if ours {
            let _ = std::fs::remove_file(&self.shared.socket);
        }
    }
}

impl Drop for ExportServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Listens at `path`, replacing the socket of a process that is dead.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let fail = |kind, text: String| Err(io::Error::new(kind, text));
    let shown = path.display();
    let length = path.as_os_str().len();
    if length > PATH_LEN_MAX {
        return fail(
            io::ErrorKind::InvalidInput,
            format!(
                "socket path {shown} has {length} bytes, at most {PATH_LEN_MAX} are possible; \
                 choose a shorter one"
            ),
        );
    }
    let listener = match UnixListener::bind(path) {
        Ok(listener) => listener,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let metadata = std::fs::symlink_metadata(path)?;
            if !metadata.file_type().is_socket() {
                return fail(
                    io::ErrorKind::AlreadyExists,
                    format!("{shown} exists and is not a socket; choose another path or remove it"),
                );
            }
            match UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path)?;
                    UnixListener::bind(path)?
                }
                _ => {
                    return fail(
                        io::ErrorKind::AddrInUse,
                        format!(
                            "socket {shown} is in use by another export or process; \
                             choose another path"
                        ),
                    );
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return fail(error.kind(), format!("the folder of socket {shown} does not exist"));
        }
        Err(error) => {
            return fail(error.kind(), format!("cannot listen on socket {shown}: {error}"));
        }
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn accept_loop(shared: &Arc<Shared>, listener: &UnixListener) {
    while !shared.is_stopping() {
        let mut fds =
            [PollFd::new(listener, PollFlags::IN), PollFd::new(&shared.wake, PollFlags::IN)];
        if let Err(error) = poll(&mut fds, None)
            && error != rustix::io::Errno::INTR
        {
            shared.say(&format!("cannot wait for connections any more: {error}"));
            return;
        }
        match listener.accept() {
            Ok((stream, _)) => serve_connection(shared, stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                shared.say(&format!("cannot accept a connection: {error}"));
                // Out of descriptors, most likely: do not spin on it.
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    }
}

fn serve_connection(shared: &Arc<Shared>, stream: UnixStream) {
    let twins =
        stream.set_nonblocking(false).and_then(|()| Ok((stream.try_clone()?, stream.try_clone()?)));
    let peeked = match twins {
        Ok((kept, peeked)) => {
            *lock(&shared.connection) = Some(kept);
            peeked
        }
        Err(error) => return shared.say(&format!("cannot serve a connection: {error}")),
    };
    if shared.is_stopping() {
        return;
    }
    shared.update_status(|status| status.connected = true);
    shared.say("a front-end connected");
    let session = Arc::new(Mutex::new(Session::new(shared.clone())));
    let mut handler = BackendReqHandler::from_stream(stream, session.clone());
    let error = loop {
        if let Err(error) = serve_message(shared, &peeked, &mut handler) {
            break error;
        }
    };
    *lock(&shared.backend_channel) = None;
    *lock(&shared.connection) = None;
    drop((handler, peeked));
    lock(&session).close();
    shared.update_status(|status| *status = ExportStatus::default());
    match error {
        Error::Disconnected | Error::SocketBroken(_) => shared.say("the front-end disconnected"),
        error => shared.say(&format!("connection closed on a front-end's message: {error}")),
    }
}

/// Reads one message and does what it says.
pub(super) fn serve_message(
    shared: &Shared,
    peeked: &UnixStream,
    handler: &mut BackendReqHandler<Mutex<Session>>,
) -> Result<(), Error> {
    if let Some(channel) = peek_backend_channel(peeked) {
        *lock(&shared.backend_channel) = Some(channel);
    }
    handler.handle_request()
}

/// Looks at the next message without taking it; if it passes a channel for our own messages, keeps
/// a duplicate of that. Needed as the message layer's own proxy has no "configuration changed".
fn peek_backend_channel(stream: &UnixStream) -> Option<UnixStream> {
    let mut header = [0u8; HEADER_BYTES];
    let (_, length) = recv(stream, &mut header, RecvFlags::PEEK).ok()?;
    let request = u32::from_ne_bytes(std::array::from_fn(|i| header[i]));
    if length < HEADER_BYTES || request != SET_BACKEND_REQ_FD {
        return None;
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(&mut header)];
    let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
    recvmsg(stream, &mut buffers, &mut control, flags).ok()?;
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let channel = UnixStream::from(descriptors.flatten().next()?);
    // The front-end may never read: better no message than a blocked control thread.
    channel.set_nonblocking(true).ok()?;
    Some(channel)
}

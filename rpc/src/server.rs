//! The server: accepts on a Unix socket and gives each connection a thread.
//!
//! ```text
//!  Server ──owns──► Listener (socket, lock)
//!     │                 │ accept
//!     │                 ▼
//!     │           accept thread ──spawns──► connection threads (at most CONNECTIONS_MAX)
//!     └── stop: no new ones; each finishes the request in hand; then the files go
//! ```
//!
//! All of it runs beside the reactors, on threads that may block: a slow call or a hostile client
//! takes a connection, never a core of the data path.

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::connection::{self, Times};
use crate::listener::Listener;
use crate::{Handler, RpcError};

pub use crate::listener::{ListenError, SOCKET_PATH_BYTES_MAX};

/// Most connections served at once.
pub const CONNECTIONS_MAX: usize = 64;

/// How long a new connection waits for a place before it is refused; a burst of short ones fits.
const PLACE_TIME_MAX: Duration = Duration::from_secs(1);

/// Pause after an accept that failed (out of descriptors), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a stop waits for requests in hand; no call should take longer.
const STOP_TIME_MAX: Duration = Duration::from_secs(15);

/// Stack of a connection's thread, bytes. Decoding goes [`crate::framing::DEPTH_MAX`] levels deep
/// at most; the rest is the handler's.
const STACK_BYTES: usize = 1 << 20;

/// A server that answers on a Unix socket until it is stopped or dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    /// Not the connections': their threads may outlive their end by a moment, and the path must be
    /// free when the server is gone.
    listener: Arc<Listener>,
    accept: Option<JoinHandle<()>>,
}

/// What the accept thread, the connections and the owner have in common.
struct Shared {
    handler: Arc<dyn Handler>,
    stopping: AtomicBool,
    connections: Mutex<Connections>,
    /// Told when a connection ends.
    ended: Condvar,
}

/// The connections being served.
#[derive(Debug, Default)]
struct Connections {
    next: u64,
    streams: BTreeMap<u64, Arc<UnixStream>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        // The table is whole between any two statements, so a thread that died holding it has
        // broken nothing.
        self.connections.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Server {
    /// Takes `path` and serves it: the socket is there when this returns.
    ///
    /// # Errors
    /// The path is in use, too long, not a socket, or cannot be made; the text says what to do.
    pub fn start(path: &Path, handler: Arc<dyn Handler>) -> Result<Server, ListenError> {
        let listener = Arc::new(Listener::bind(path)?);
        let shared = Arc::new(Shared {
            handler,
            stopping: AtomicBool::new(false),
            connections: Mutex::default(),
            ended: Condvar::new(),
        });
        let accept = std::thread::Builder::new().name("rpc-accept".into()).spawn({
            let (shared, listener) = (Arc::clone(&shared), Arc::clone(&listener));
            move || accept_all(&shared, &listener)
        });
        match accept {
            Ok(accept) => Ok(Server { shared, listener, accept: Some(accept) }),
            Err(error) => Err(ListenError::Os("start a thread for", path.to_path_buf(), error)),
        }
    }

    /// Connections being served now.
    pub fn connections(&self) -> usize {
        self.shared.connections().streams.len()
    }

    /// Stops: no new connection, no new request; requests in hand are finished and answered, then
    /// socket and lock file are removed. Not to be called from a [`Handler`], which would wait for
    /// itself. Dropping the server does the same.
    pub fn stop(self) {
        drop(self);
    }

    /// The body of [`Server::stop`].
    fn shut_down(&mut self) {
        let Some(accept) = self.accept.take() else { return };
        self.shared.stopping.store(true, Ordering::Release);
        self.listener.shut_down();
        self.shared.ended.notify_all();
        // It has nothing to say; a panic in it would already be on stderr.
        let _ = accept.join();
        // A connection that waits for its client sees the end of the stream; one that works on a
        // request can still write its reply.
        self.end_connections(Shutdown::Read, STOP_TIME_MAX);
        self.end_connections(Shutdown::Both, PLACE_TIME_MAX);
    }

    /// Shuts the connections in one direction, and waits until they have gone.
    fn end_connections(&self, direction: Shutdown, time_max: Duration) {
        let connections = self.shared.connections();
        for stream in connections.streams.values() {
            // Fails when the client has gone, which is as good.
            let _ = stream.shutdown(direction);
        }
        drop(wait_while(&self.shared, connections, Instant::now() + time_max, |open| open > 0));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Waits until `busy` (asked with the number of connections) is false, or until `deadline`.
fn wait_while<'a>(
    shared: &'a Shared,
    mut connections: MutexGuard<'a, Connections>,
    deadline: Instant,
    busy: impl Fn(usize) -> bool,
) -> MutexGuard<'a, Connections> {
    while busy(connections.streams.len()) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        connections = match shared.ended.wait_timeout(connections, left) {
            Ok((guard, _)) => guard,
            Err(poisoned) => poisoned.into_inner().0,
        };
    }
    connections
}

/// The accept thread.
fn accept_all(shared: &Arc<Shared>, listener: &Listener) {
    // Since when there has been no place, so that a crowd is refused at once and not one a second.
    let mut full_since: Option<Instant> = None;
    while !shared.stopping.load(Ordering::Acquire) {
        let stream = match listener.socket.accept() {
            Ok((stream, _)) => Arc::new(stream),
            Err(_) if shared.stopping.load(Ordering::Acquire) => return,
            Err(_) => {
                std::thread::sleep(ACCEPT_PAUSE);
                continue;
            }
        };
        let deadline = full_since.unwrap_or_else(Instant::now) + PLACE_TIME_MAX;
        let mut connections = wait_while(shared, shared.connections(), deadline, |open| {
            open >= CONNECTIONS_MAX && !shared.stopping.load(Ordering::Acquire)
        });
        if connections.streams.len() >= CONNECTIONS_MAX {
            drop(connections);
            full_since.get_or_insert(deadline - PLACE_TIME_MAX);
            let error = RpcError::from_errno(
                libc::EAGAIN,
                format!("{CONNECTIONS_MAX} connections are open already; close some, or try later"),
            );
            connection::refuse(&stream, &error);
            continue;
        }
        full_since = None;
        let key = connections.next;
        connections.next += 1;
        connections.streams.insert(key, Arc::clone(&stream));
        drop(connections);
        if let Err(error) = spawn_connection(shared, key, Arc::clone(&stream)) {
            connection::refuse(&stream, &RpcError::from(error));
            shared.connections().streams.remove(&key);
        }
    }
}

/// Gives a connection its thread.
fn spawn_connection(
    shared: &Arc<Shared>,
    key: u64,
    stream: Arc<UnixStream>,
) -> std::io::Result<()> {
    let shared = Arc::clone(shared);
    let thread = std::thread::Builder::new().name("rpc".into()).stack_size(STACK_BYTES);
    thread.spawn(move || {
        let _place = Place { shared: &shared, key };
        connection::serve(&stream, &*shared.handler, Times::DEFAULT, &shared.stopping);
        let _ = stream.shutdown(Shutdown::Both);
    })?;
    Ok(())
}

/// A connection's place in the table, given back even if its thread panics.
struct Place<'a> {
    shared: &'a Shared,
    key: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.shared.connections().streams.remove(&self.key);
        self.shared.ended.notify_all();
    }
}

//! A blocking client: one call at a time on one connection.
//!
//! Used by the `lamina` command and by tests; programs in other languages use SPDK's clients.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::Deserialize;
use serde_json::Value;

use crate::framing::{Framer, REPLY_BYTES_MAX};
use crate::listener::SOCKET_PATH_BYTES_MAX;
use crate::{Method, RpcError};

/// How long a call may take unless told otherwise.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// A call that did not work. The text says what to do where the kind knows it.
#[derive(Debug)]
pub enum ClientError {
    /// No connection to the daemon.
    Connect(PathBuf, std::io::Error),
    /// No reply in time.
    Timeout(Duration),
    /// The daemon closed the connection before it answered.
    Closed,
    /// The connection failed.
    Io(std::io::Error),
    /// What came back is not a reply to this call.
    Protocol(String),
    /// The daemon answered with an error.
    Rpc(RpcError),
}

impl std::fmt::Display for ClientError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ClientError::Connect(path, error) => {
                let path_text = path.display();
                write!(f, "cannot reach the daemon on {path_text}: ")?;
                match error.kind() {
                    ErrorKind::NotFound => f.write_str(
                        "there is no such socket. Is laminad running? If it listens elsewhere, \
                         name its socket",
                    ),
                    ErrorKind::ConnectionRefused => f.write_str(
                        "nothing answers there. laminad has ended without cleaning up; start it \
                         again",
                    ),
                    ErrorKind::PermissionDenied => f.write_str(
                        "permission denied. Run this as the user that runs laminad (often root)",
                    ),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => f.write_str(
                        "it does not accept connections. It may be overloaded; try again",
                    ),
                    _ if path.as_os_str().as_bytes().len() > SOCKET_PATH_BYTES_MAX => write!(
                        f,
                        "the path is longer than a Unix socket's can be ({SOCKET_PATH_BYTES_MAX} \
                         bytes)"
                    ),
                    _ => write!(f, "{error}"),
                }
            }
            ClientError::Timeout(timeout) => write!(
                f,
                "no answer within {} seconds; the daemon may still carry the call out",
                timeout.as_secs_f64()
            ),
            ClientError::Closed => f.write_str(
                "the daemon closed the connection without an answer; see its log for the reason",
            ),
            ClientError::Io(error) => write!(f, "the connection to the daemon failed: {error}"),
            ClientError::Protocol(what) => write!(
                f,
                "the answer makes no sense: {what}. Does another program listen on this socket?"
            ),
            ClientError::Rpc(error) => f.write_str(&error.message),
        }
    }
}

impl std::error::Error for ClientError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ClientError::Connect(_, error) | ClientError::Io(error) => Some(error),
            ClientError::Rpc(error) => Some(error),
            ClientError::Timeout(_) | ClientError::Closed | ClientError::Protocol(_) => None,
        }
    }
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    framer: Framer,
    next_id: u64,
    timeout: Duration,
}

/// A reply as it comes in.
#[derive(Deserialize)]
struct Reply {
    id: Value,
    #[serde(default, deserialize_with = "present")]
    result: Option<Value>,
    error: Option<RpcError>,
}

/// Tells a result of null from no result.
fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        Client::connect_within(path, TIMEOUT_DEFAULT)
    }

    /// Connects to the socket at `path`; this and every call may take `timeout`.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect_within(path: &Path, timeout: Duration) -> Result<Client, ClientError> {
        let stream = connect(path, timeout)
            .map_err(|error| ClientError::Connect(path.to_path_buf(), error))?;
        Ok(Client { stream, framer: Framer::new(2 * REPLY_BYTES_MAX), next_id: 1, timeout })
    }

    /// Calls a method of the table.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn call<M: Method>(&mut self, params: &M) -> Result<M::Output, ClientError> {
        let params = serde_json::to_value(params)
            .map_err(|error| ClientError::Protocol(error.to_string()))?;
        let result = self.call_raw(M::INFO.name, &params)?;
        serde_json::from_value(result)
            .map_err(|error| ClientError::Protocol(format!("{}: {error}", M::INFO.name)))
    }

    /// Calls a method by name.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn call_raw(&mut self, method: &str, params: &Value) -> Result<Value, ClientError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut request = serde_json::json!({ "jsonrpc": "2.0", "id": id, "method": method });
        if params.as_object().is_none_or(|params| !params.is_empty()) {
            request["params"] = params.clone();
        }
        let deadline = Instant::now() + self.timeout;
        let sent = self.send(request.to_string().as_bytes(), deadline);
        // A server that cannot serve us says why and closes, maybe before it has read everything.
        match (sent, self.receive(deadline)) {
            (_, Ok(reply)) => settle(reply, id),
            (Err(error), Err(_)) => Err(error),
            (Ok(()), Err(error)) => Err(error),
        }
    }

    /// Sends all of `bytes`.
    fn send(&mut self, bytes: &[u8], deadline: Instant) -> Result<(), ClientError> {
        let mut sent = 0;
        while sent < bytes.len() {
            let left = self.time_left(deadline)?;
            self.stream.set_write_timeout(Some(left)).map_err(ClientError::Io)?;
            match self.stream.write(&bytes[sent..]) {
                Ok(count) => sent += count,
                Err(error) => self.again(error)?,
            }
        }
        Ok(())
    }

    /// Takes one reply from the stream.
    fn receive(&mut self, deadline: Instant) -> Result<Reply, ClientError> {
        let mut chunk = [0; 16 << 10];
        loop {
            let value = self
                .framer
                .next_value()
                .map_err(|error| ClientError::Protocol(error.to_string()))?;
            if let Some(value) = value {
                return serde_json::from_slice(value)
                    .map_err(|error| ClientError::Protocol(error.to_string()));
            }
            let left = self.time_left(deadline)?;
            self.stream.set_read_timeout(Some(left)).map_err(ClientError::Io)?;
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ClientError::Closed),
                Ok(count) => self.framer.push(&chunk[..count]),
                Err(error) => self.again(error)?,
            }
        }
    }

    /// Passes over errors after which the same call is made again, if there is time.
    fn again(&self, error: std::io::Error) -> Result<(), ClientError> {
        match error.kind() {
            ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(()),
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Err(ClientError::Closed),
            _ => Err(ClientError::Io(error)),
        }
    }

    /// Time until `deadline`, never zero.
    fn time_left(&self, deadline: Instant) -> Result<Duration, ClientError> {
        match deadline.checked_duration_since(Instant::now()) {
            Some(left) if left > Duration::from_millis(1) => Ok(left),
            _ => Err(ClientError::Timeout(self.timeout)),
        }
    }
}

/// What a reply to call `id` says.
fn settle(reply: Reply, id: u64) -> Result<Value, ClientError> {
    match (reply.error, reply.result) {
        // An error without id answers a request whose id could not be read: ours, the only one.
        (Some(error), None) if reply.id == id || reply.id.is_null() => Err(ClientError::Rpc(error)),
        (None, Some(result)) if reply.id == id => Ok(result),
        _ => Err(ClientError::Protocol(format!("not a reply to call {id}"))),
    }
}

/// A connected socket. A full backlog is waited for no longer than `timeout`, which the standard
/// library cannot do.
fn connect(path: &Path, timeout: Duration) -> std::io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
    rustix::net::connect(&socket, &address)?;
    Ok(UnixStream::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::SpdkGetVersion;
    use std::os::unix::net::UnixListener;

    /// A client whose peer sends `reply` to its first call, and stays for `stay`.
    fn answered_by(reply: &'static [u8], stay: Duration) -> Result<Value, ClientError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rpc.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let peer = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1000];
            assert!(stream.read(&mut request).unwrap() > 0);
            stream.write_all(reply).unwrap();
            std::thread::sleep(stay);
        });
        let mut client = Client::connect_within(&path, Duration::from_millis(200)).unwrap();
        let outcome = client.call_raw("spdk_get_version", &Value::Null);
        peer.join().unwrap();
        outcome
    }

    #[test]
    fn replies_good_and_bad_are_told_apart() {
        let now = Duration::ZERO;
        let good = answered_by(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":null}\n", now);
        assert_eq!(good.unwrap(), Value::Null);
        let refused = answered_by(b"{\"id\":1,\"error\":{\"code\":-19,\"message\":\"No\"}}", now);
        assert!(matches!(refused, Err(ClientError::Rpc(e)) if e.code == -19));
        let unread = answered_by(b"{\"id\":null,\"error\":{\"code\":-11,\"message\":\"No\"}}", now);
        assert!(matches!(unread, Err(ClientError::Rpc(e)) if e.code == -11));
        for nonsense in [
            &b"{\"id\":2,\"result\":true}"[..],
            b"{\"id\":1}",
            b"{\"id\":1,\"result\":1,\"error\":{\"code\":1,\"message\":\"\"}}",
            b"HTTP/1.1 400 Bad Request",
            b"[]",
        ] {
            let outcome = answered_by(nonsense, now);
            assert!(matches!(outcome, Err(ClientError::Protocol(_))), "{outcome:?}");
        }
        assert!(matches!(answered_by(b"", now), Err(ClientError::Closed)));
        assert!(matches!(answered_by(b"{\"id\":1,\"res", now), Err(ClientError::Closed)));
    }

    #[test]
    fn a_daemon_that_says_nothing_is_not_waited_for() {
        let outcome = answered_by(b"{\"id\":1,", Duration::from_millis(600));
        let error = outcome.unwrap_err();
        assert!(matches!(error, ClientError::Timeout(_)), "{error}");
        assert!(error.to_string().contains("0.2 seconds"), "{error}");
    }

    #[test]
    fn no_connection_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rpc.sock");
        let text = Client::connect(&path).unwrap_err().to_string();
        assert!(text.contains("Is laminad running?"), "{text}");
        drop(UnixListener::bind(&path).unwrap());
        let text = Client::connect(&path).unwrap_err().to_string();
        assert!(text.contains("start it again"), "{text}");
        let text = Client::connect(Path::new(&"x".repeat(200))).unwrap_err().to_string();
        assert!(text.contains("107"), "{text}");
    }

    #[test]
    fn a_result_of_the_wrong_type_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rpc.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let peer = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1000];
            assert!(stream.read(&mut request).unwrap() > 0);
            stream.write_all(b"{\"id\":1,\"result\":5}").unwrap();
        });
        let mut client = Client::connect(&path).unwrap();
        let outcome = client.call(&SpdkGetVersion::default());
        assert!(matches!(outcome, Err(ClientError::Protocol(_))), "{outcome:?}");
        peer.join().unwrap();
    }
}

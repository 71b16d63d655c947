//! One connection, on its own thread: read, answer, write, in the order things came.
//!
//! ```text
//!  read ─► Framer ─► envelope::answer ─► write ─┐
//!   ▲                                           │ a client that does not read its replies is not
//!   └───────────────────────────────────────────┘ read from either: nothing piles up here
//! ```
//!
//! A client may stay connected and silent for ever, but a request once begun must be whole in
//! time, and a reply taken in time ([`Times`]). A client that closes its sending side still gets
//! the answers to all it sent.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::envelope::{self, Answer};
use crate::framing::{Framer, FramingError, REQUEST_BYTES_MAX};
use crate::{Handler, RpcError};

/// What a client is given time for.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// From the first byte of a request to its last.
    pub request_max: Duration,
    /// To take one reply.
    pub reply_max: Duration,
}

impl Times {
    /// Enough for a client that means it.
    pub const DEFAULT: Times =
        Times { request_max: Duration::from_secs(30), reply_max: Duration::from_secs(30) };
}

/// Longest wait in one write, so that a stop is noticed.
const WRITE_TIME_MAX: Duration = Duration::from_millis(250);

/// Time to take the reply of a connection that is refused; it fits any socket at once.
const REFUSE_TIME_MAX: Duration = Duration::from_millis(10);

/// Bytes asked of the kernel at once.
const READ_BYTES: usize = 64 << 10;

/// Most bytes thrown away after a request that was not JSON, so that the client reads our reply
/// and not a reset connection.
const DRAIN_BYTES_MAX: usize = 4 << 20;

/// Time for that.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(1);

/// Serves `stream` until the client is done or has to be cut off. `stopping` ends it after the
/// request in hand.
pub fn serve(stream: &UnixStream, handler: &dyn Handler, times: Times, stopping: &AtomicBool) {
    let send = |answer: &Answer| {
        write_by(stream, &answer.bytes, Instant::now() + times.reply_max, stopping)
    };
    let hang_up = |answer: &Answer| {
        if send(answer).is_ok() {
            drain(stream);
        }
    };
    let mut framer = Framer::new(REQUEST_BYTES_MAX);
    let mut chunk = vec![0; READ_BYTES];
    // Of the request that has begun and is not whole.
    let mut deadline: Option<Instant> = None;
    loop {
        let count = match read_by(stream, &mut chunk, deadline) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                let error = RpcError::parse_error(format!(
                    "the request was not whole after {} seconds",
                    times.request_max.as_secs()
                ));
                return hang_up(&envelope::not_json(&error));
            }
            Err(_) => return,
        };
        framer.push(&chunk[..count]);
        loop {
            if stopping.load(Ordering::Acquire) {
                return;
            }
            let answer = match if count == 0 { framer.finish() } else { framer.next_value() } {
                Ok(Some(value)) => envelope::answer(value, handler),
                Ok(None) => break,
                Err(error) => return hang_up(&unframed(error)),
            };
            if answer.hang_up {
                return hang_up(&answer);
            }
            if send(&answer).is_err() {
                return;
            }
            deadline = None;
        }
        if count == 0 {
            return;
        }
        deadline = match framer.in_value() {
            true => deadline.or_else(|| Some(Instant::now() + times.request_max)),
            false => None,
        };
    }
}

/// Tells a client that it cannot be served, and why.
pub fn refuse(stream: &UnixStream, error: &RpcError) {
    let answer = envelope::not_json(error);
    let deadline = Instant::now() + REFUSE_TIME_MAX;
    let _ = write_by(stream, &answer.bytes, deadline, &AtomicBool::new(false));
    let _ = stream.shutdown(std::net::Shutdown::Both);
}

/// The answer to a stream that cannot be cut into values.
fn unframed(error: FramingError) -> Answer {
    envelope::not_json(&match error {
        FramingError::NotJson { .. } | FramingError::Unfinished => RpcError::parse_error(error),
        FramingError::TooDeep | FramingError::TooLarge { .. } => RpcError::invalid_request(error),
    })
}

/// Takes what a client still sends after its last reply, within bounds: closing with unread bytes
/// resets the connection, and the client may lose the reply.
fn drain(stream: &UnixStream) {
    if stream.shutdown(std::net::Shutdown::Write).is_err() {
        return;
    }
    let deadline = Instant::now() + DRAIN_TIME_MAX;
    let mut chunk = vec![0; READ_BYTES];
    let mut drained = 0;
    while drained < DRAIN_BYTES_MAX {
        match read_by(stream, &mut chunk, Some(deadline)) {
            Ok(0) | Err(_) => return,
            Ok(count) => drained += count,
        }
    }
}

/// Reads once; fails with `TimedOut` at `deadline`.
fn read_by(
    mut stream: &UnixStream,
    chunk: &mut [u8],
    deadline: Option<Instant>,
) -> std::io::Result<usize> {
    loop {
        stream.set_read_timeout(deadline.map(time_left).transpose()?)?;
        match stream.read(chunk) {
            Err(error) if is_again(&error) => {}
            other => return other,
        }
    }
}

/// Writes all of `bytes`; fails with `TimedOut` at `deadline`, or when nothing moves and the server
/// is stopping.
fn write_by(
    mut stream: &UnixStream,
    bytes: &[u8],
    deadline: Instant,
    stopping: &AtomicBool,
) -> std::io::Result<()> {
    let mut written = 0;
    while written < bytes.len() {
        stream.set_write_timeout(Some(time_left(deadline)?.min(WRITE_TIME_MAX)))?;
        match stream.write(&bytes[written..]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(error) if is_again(&error) && !stopping.load(Ordering::Acquire) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Time until `deadline`, which is never zero: a socket would take that for no timeout at all.
fn time_left(deadline: Instant) -> std::io::Result<Duration> {
    match deadline.checked_duration_since(Instant::now()) {
        Some(left) if left > Duration::from_millis(1) => Ok(left),
        _ => Err(ErrorKind::TimedOut.into()),
    }
}

/// True for an error after which the same call is made again, if there is time.
fn is_again(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Call;

    const SHORT: Times =
        Times { request_max: Duration::from_millis(150), reply_max: Duration::from_millis(150) };

    /// Answers everything with a few MiB.
    struct Large;

    impl Handler for Large {
        fn call(&self, _: Call) -> Result<serde_json::Value, RpcError> {
            Ok("x".repeat(4 << 20).into())
        }
    }

    /// How long a connection is served whose client stays connected.
    fn served(times: Times, client: impl FnOnce(&UnixStream, &AtomicBool) + Send) -> Duration {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stopping = AtomicBool::new(false);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| client(&theirs, &stopping));
            serve(&ours, &Large, times, &stopping);
            drop(ours);
            begun.elapsed()
        })
    }

    #[test]
    fn a_request_that_trickles_in_for_ever_is_cut_off() {
        let time = served(SHORT, |mut stream, _| {
            let mut reply = Vec::new();
            // Idle before a request counts for nothing.
            std::thread::sleep(SHORT.request_max * 2);
            while stream.write_all(b"[").is_ok() && reply.is_empty() {
                std::thread::sleep(Duration::from_millis(20));
                stream.set_nonblocking(true).unwrap();
                let _ = stream.read_to_end(&mut reply);
                stream.set_nonblocking(false).unwrap();
            }
            let reply = String::from_utf8(reply).unwrap();
            assert!(reply.contains("-32700") && reply.contains("not whole"), "{reply}");
        });
        assert!(time >= SHORT.request_max * 3, "{time:?}");
        assert!(time < Duration::from_secs(5), "{time:?}");
    }

    #[test]
    fn a_reply_that_nobody_takes_is_given_up() {
        let time = served(SHORT, |mut stream, _| {
            stream.write_all(b"{\"id\":1,\"method\":\"spdk_get_version\"}").unwrap();
            std::thread::sleep(SHORT.reply_max * 3);
            let mut reply = Vec::new();
            stream.read_to_end(&mut reply).unwrap();
            assert!(reply.len() < 4 << 20, "it was cut off");
        });
        assert!(time >= SHORT.reply_max && time < Duration::from_secs(2), "{time:?}");
    }

    #[test]
    fn a_stop_does_not_wait_for_a_client_that_reads_nothing() {
        let time = served(Times::DEFAULT, |mut stream, stopping| {
            stream.write_all(b"{\"id\":1,\"method\":\"spdk_get_version\"}").unwrap();
            std::thread::sleep(Duration::from_millis(100));
            stopping.store(true, Ordering::Release);
        });
        assert!(time < Duration::from_secs(5), "{time:?}");
    }
}

//! Log lines to standard error, written by a thread of their own: no reactor ever waits for a
//! terminal or a pipe.
//!
//! ```text
//!  reactor, control ─► bounded channel ─► log thread ─► stderr
//!                      full: counted, told later
//! ```

use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

/// How loud a line is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, clap::ValueEnum)]
#[repr(u8)]
pub enum Level {
    /// Something failed.
    Error,
    /// Something is not as it should be.
    Warn,
    /// What the daemon does, a line an event.
    Info,
    /// For finding faults.
    Debug,
}

enum Entry {
    Line(Level, String),
    /// Answer when everything before has been written.
    Sync(SyncSender<()>),
}

const LINES_MAX: usize = 1024;
const SYNC_TIMEOUT: Duration = Duration::from_secs(1);
static SENDER: OnceLock<SyncSender<Entry>> = OnceLock::new();
static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Sets the loudest level that is written.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// A failure.
pub fn error(text: impl Into<String>) {
    line(Level::Error, text);
}

/// A warning.
pub fn warn(text: impl Into<String>) {
    line(Level::Warn, text);
}

/// An event.
pub fn info(text: impl Into<String>) {
    line(Level::Info, text);
}

/// A detail.
pub fn debug(text: impl Into<String>) {
    line(Level::Debug, text);
}

/// One line at `level`. Never blocks: if the log thread is far behind, the line is counted only.
pub fn line(level: Level, text: impl Into<String>) {
    if level as u8 > LEVEL.load(Ordering::Relaxed) {
        return;
    }
    let entry = Entry::Line(level, text.into());
    if SENDER.get_or_init(start).try_send(entry).is_err() {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

/// Waits (bounded) until all lines so far are out: before the process ends.
pub fn sync() {
    let Some(sender) = SENDER.get() else { return };
    let (done, wait) = sync_channel(1);
    let end = Instant::now() + SYNC_TIMEOUT;
    let mut entry = Entry::Sync(done);
    // Never a blocking send: whoever reads our standard error may have stopped reading.
    while let Err(TrySendError::Full(back)) = sender.try_send(entry) {
        if Instant::now() >= end {
            return;
        }
        entry = back;
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = wait.recv_timeout(SYNC_TIMEOUT);
}

fn start() -> SyncSender<Entry> {
    let (sender, receiver) = sync_channel(LINES_MAX);
    let started =
        std::thread::Builder::new().name("log".into()).spawn(move || write_all(&receiver));
    if let Err(e) = started {
        // Lines will be counted as dropped; say so once, on the thread that is starting up.
        eprintln!("laminad: error: no log thread: {e}");
    }
    sender
}

fn write_all(receiver: &Receiver<Entry>) {
    let mut err = std::io::stderr();
    for entry in receiver {
        let dropped = DROPPED.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let _ = writeln!(err, "laminad: warning: {dropped} log lines were dropped");
        }
        match entry {
            Entry::Line(level, text) => {
                let _ = writeln!(err, "{}", format_line(level, &text));
            }
            Entry::Sync(done) => {
                let _ = done.send(());
            }
        }
    }
}

fn format_line(level: Level, text: &str) -> String {
    let prefix = match level {
        Level::Error => "laminad: error: ",
        Level::Warn => "laminad: warning: ",
        Level::Info => "laminad: ",
        Level::Debug => "laminad: debug: ",
    };
    // One event is one line, whatever a peer put into it.
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("{prefix}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line() {
        assert_eq!(format_line(Level::Info, "ready"), "laminad: ready");
        assert_eq!(format_line(Level::Error, "a\nb\u{1b}[1m"), "laminad: error: a b [1m");
    }

    #[test]
    fn sync_comes_back() {
        debug("not written at the default level");
        info("a line of a test");
        sync();
        assert_eq!(DROPPED.load(Ordering::Relaxed), 0);
    }
}

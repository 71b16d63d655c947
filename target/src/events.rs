//! What has happened: the last events of all stores, numbered, for those who ask later.
//!
//! ```text
//!  reactor, control ─► bounded channel ─► event thread ─┬─► ring of the last 1,024 ─► RPC
//!                      full: counted, told later        └─► log
//! ```
//!
//! Reactors never wait: only the event thread and RPC threads share the ring's lock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::log::{self, Level};

/// Events that are kept.
pub const KEPT_MAX: usize = 1024;
const QUEUED_MAX: usize = 1024;

/// How much an event matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    /// Good to know.
    Info,
    /// Somebody should look at it, today.
    Warning,
    /// Something failed, or is about to.
    Error,
}

impl Severity {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }

    fn level(self) -> Level {
        match self {
            Severity::Info => Level::Info,
            Severity::Warning => Level::Warn,
            Severity::Error => Level::Error,
        }
    }
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// 1 for the first since the daemon started; each one more.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// How much it matters.
    pub severity: Severity,
    /// Name of the store; empty for the daemon itself.
    pub store: String,
    /// For people.
    pub text: String,
}

/// Some of the events that are kept.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// Oldest first.
    pub events: Vec<Event>,
    /// Number of the oldest that is kept; 1 if there is none.
    pub first: u64,
    /// Number of the newest; 0 if there is none.
    pub last: u64,
}

static SENDER: OnceLock<SyncSender<Event>> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);
static RING: Mutex<Ring> = Mutex::new(Ring { events: VecDeque::new(), last: 0 });

/// Notes an event of `store` and logs it. Never blocks: if the event thread is far behind, it is
/// counted only.
pub fn push(severity: Severity, store: &str, text: String) {
    let (time_ms, store) = (now_ms(), store.to_string());
    let event = Event { seq: 0, time_ms, severity, store, text };
    if SENDER.get_or_init(start).try_send(event).is_err() {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

/// At most `max` events with numbers above `since`, the oldest first.
pub fn since(since: u64, max: usize) -> Page {
    ring().page(since, max)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn ring() -> MutexGuard<'static, Ring> {
    // Whole between any two statements.
    RING.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

struct Ring {
    events: VecDeque<Event>,
    last: u64,
}

impl Ring {
    fn add(&mut self, mut event: Event) {
        self.last += 1;
        event.seq = self.last;
        if self.events.len() == KEPT_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    fn page(&self, since: u64, max: usize) -> Page {
        let first = self.last + 1 - self.events.len() as u64;
        let skip =
            usize::try_from(since.saturating_add(1).saturating_sub(first)).unwrap_or(usize::MAX);
        let events = self.events.iter().skip(skip).take(max).cloned().collect();
        Page { events, first, last: self.last }
    }
}

fn start() -> SyncSender<Event> {
    let (sender, receiver) = sync_channel(QUEUED_MAX);
    let thread = std::thread::Builder::new().name("events".into());
    if let Err(e) = thread.spawn(move || keep_all(&receiver)) {
        log::error(format!("no event thread: {e}"));
    }
    sender
}

fn keep_all(receiver: &Receiver<Event>) {
    for event in receiver {
        let dropped = DROPPED.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let text = format!("{dropped} events were dropped: too many at once");
            log::warn(text.clone());
            let (time_ms, severity) = (event.time_ms, Severity::Warning);
            ring().add(Event { seq: 0, time_ms, severity, store: String::new(), text });
        }
        let what = if event.store.is_empty() {
            event.text.clone()
        } else {
            format!("store {}: {}", event.store, event.text)
        };
        log::line(event.severity.level(), what);
        ring().add(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: &str) -> Event {
        let (store, text) = ("s".into(), text.into());
        Event { seq: 0, time_ms: 5, severity: Severity::Info, store, text }
    }

    #[test]
    fn the_ring_keeps_the_last_ones_and_numbers_all() {
        let mut ring = Ring { events: VecDeque::new(), last: 0 };
        assert_eq!(ring.page(0, 10), Page { events: vec![], first: 1, last: 0 });
        for i in 0..KEPT_MAX + 10 {
            ring.add(event(&i.to_string()));
        }
        let numbers = |page: Page| page.events.iter().map(|e| e.seq).collect::<Vec<_>>();
        let page = ring.page(0, 3);
        assert_eq!((page.first, page.last), (11, KEPT_MAX as u64 + 10));
        assert_eq!(page.events[0].text, "10");
        assert_eq!(numbers(page), [11, 12, 13]);
        assert_eq!(numbers(ring.page(20, 2)), [21, 22]);
        assert_eq!(numbers(ring.page(KEPT_MAX as u64 + 9, 9)), [KEPT_MAX as u64 + 10]);
        assert_eq!(numbers(ring.page(u64::MAX, 9)), [0; 0]);
        assert_eq!(ring.page(0, usize::MAX).events.len(), KEPT_MAX);
    }

    #[test]
    fn what_is_pushed_can_be_asked_for() {
        push(Severity::Warning, "events-test", "hello".into());
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let page = since(0, KEPT_MAX);
            if let Some(found) = page.events.iter().find(|e| e.store == "events-test") {
                assert_eq!((found.severity, found.text.as_str()), (Severity::Warning, "hello"));
                assert!(found.time_ms > 1_600_000_000_000 && found.seq <= page.last);
                return;
            }
            assert!(std::time::Instant::now() < end, "the event never arrives");
            std::thread::yield_now();
        }
    }
}

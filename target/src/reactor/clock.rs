//! Time on a reactor: nanoseconds since the daemon started, never going back.

use std::sync::OnceLock;
use std::time::Instant;

static START: OnceLock<Instant> = OnceLock::new();

/// Now, nanoseconds; the same scale on every thread.
pub fn now_ns() -> u64 {
    let start = *START.get_or_init(Instant::now);
    start.elapsed().as_nanos() as u64
}

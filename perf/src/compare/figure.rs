//! One measurement, and the watch over the target's reactor while it runs.

use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::clock;

/// What came of one run.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// Requests a second.
    pub iops: f64,
    /// CPU time of the target's reactor for each, nanoseconds.
    pub cpu_ns: f64,
    /// Share of the time that target and client waited for a core that somebody else had.
    #[serde(default)]
    pub waited: f64,
}

/// Watches over a target's CPU time in the middle of a run that begins now.
pub struct Watch(JoinHandle<std::io::Result<Seen>>);

/// What was seen of a run.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The share of a core that the target's reactor had.
    pub share: f64,
    /// See [`Figure::waited`].
    pub waited: f64,
}

impl Seen {
    /// The figure of a run of so many requests a second.
    pub fn figure(self, iops: f64) -> Figure {
        Figure { iops, cpu_ns: self.share * 1e9 / iops, waited: self.waited }
    }
}

impl Watch {
    /// A run of so many seconds, of a target and its client.
    pub fn during(target: u32, client: u32, seconds: u32) -> Watch {
        let quarter = Duration::from_secs(seconds.into()) / 4;
        let look = move || -> std::io::Result<(u64, u64, u64)> {
            let waited = clock::process_wait_ns(target)? + clock::process_wait_ns(client)?;
            Ok((clock::wall_ns(), clock::reactors_cpu_ns(target)?, waited))
        };
        Watch(std::thread::spawn(move || {
            std::thread::sleep(quarter);
            let before = look()?;
            std::thread::sleep(2 * quarter);
            let after = look()?;
            let wall = (after.0 - before.0) as f64;
            let part = |now: u64, then: u64| now.saturating_sub(then) as f64 / wall;
            Ok(Seen { share: part(after.1, before.1), waited: part(after.2, before.2) })
        }))
    }

    /// What it has seen.
    ///
    /// # Errors
    /// The target or the client has ended meanwhile.
    pub fn end(self) -> Result<Seen> {
        Ok(self.0.join().map_err(|_| anyhow!("the watching thread has ended"))??)
    }
}

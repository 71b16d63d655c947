//! The first write to each cluster after a snapshot: what copy-on-write costs whoever writes.
//!
//! ```text
//!   snapshot │ one 4 KiB write to each 4 MiB, 64 in flight │ snapshot deleted │ snapshot ...
//!                └─ only these are timed
//! ```
//!
//! SPDK's clients cannot be told to write once to each cluster, so here the client is our own
//! initiator over NVMe/TCP, for all targets.

use std::net::SocketAddr;

use anyhow::Result;

use super::figure::Figure;
use super::rows::Case;
use super::target::Target;
use crate::clock;
use crate::nvmf::{Case as NvmeCase, Lane as _, Queue, controller};
use crate::random::Random;

/// Bytes of a cluster of SPDK's logical volumes, if nobody says otherwise.
const CLUSTER_BYTES: u64 = 4 << 20;
const BLOCK_BYTES: u64 = 4096;
/// Snapshots of a run: enough clusters for a figure, with a disk that copies them one by one.
const SNAPSHOTS: usize = 4;
/// Bytes of the disk: room for twice as many clusters as are in flight.
pub const DISK_BYTES: u64 = 512 << 20;

/// A host with one queue.
pub struct Host {
    _admin: Queue,
    queue: Queue,
    random: Random,
    /// One number a snapshot.
    snapshots: usize,
}

impl Host {
    /// Connects to a target on the loopback.
    ///
    /// # Errors
    /// It is refused.
    pub fn connect(port: u16) -> Result<Host> {
        let (admin, queue) = controller(SocketAddr::from(([127, 0, 0, 1], port)))?;
        Ok(Host { _admin: admin, queue, random: Random::new(3), snapshots: 0 })
    }

    /// Writes the whole disk.
    ///
    /// # Errors
    /// A request failed.
    pub fn fill(&mut self, case: &Case, size: u64) -> Result<()> {
        self.carry_out(case, (0..size).step_by(case.bytes as usize))
    }

    /// A request at each of these bytes, as many at a time as `case` says.
    fn carry_out(&mut self, case: &Case, places: impl Iterator<Item = u64>) -> Result<()> {
        let of = NvmeCase {
            name: "fresh",
            write: case.write,
            bytes: case.bytes as usize,
            depth: case.depth as u16,
            queues: 1,
        };
        let (mut in_flight, mut done) = (0, Vec::new());
        for offset in places {
            while in_flight == case.depth as usize {
                self.queue.poll(&mut done)?;
                in_flight -= done.drain(..).count();
            }
            self.queue.submit(&of, offset)?;
            in_flight += 1;
        }
        while in_flight > 0 {
            self.queue.poll(&mut done)?;
            in_flight -= done.drain(..).count();
        }
        Ok(())
    }

    /// One run over a disk of `size` bytes.
    ///
    /// # Errors
    /// A request failed, or a snapshot.
    pub fn run(&mut self, target: &mut Target, case: &Case, size: u64) -> Result<Figure> {
        let pid = target.pid();
        let (mut wall, mut cpu, mut waited, mut writes) = (0, 0, 0, 0u64);
        for _ in 0..SNAPSHOTS {
            self.snapshots += 1;
            let snapshot = target.snapshot(self.snapshots)?;
            target.settle()?;
            let place = |cluster: usize| {
                cluster as u64 + self.random.below(CLUSTER_BYTES / BLOCK_BYTES) * BLOCK_BYTES
            };
            let places: Vec<u64> =
                (0..size as usize).step_by(CLUSTER_BYTES as usize).map(place).collect();
            // Both are awake when the time begins, as under any load.
            self.carry_out(&Case { write: false, ..*case }, places.iter().copied())?;
            let waits =
                || -> Result<u64> { Ok(clock::thread_wait_ns()? + clock::process_wait_ns(pid)?) };
            let before = (clock::wall_ns(), clock::reactors_cpu_ns(pid)?, waits()?);
            self.carry_out(case, places.iter().copied())?;
            writes += places.len() as u64;
            wall += clock::wall_ns() - before.0;
            cpu += clock::reactors_cpu_ns(pid)? - before.1;
            waited += waits()?.saturating_sub(before.2);
            target.delete(&snapshot)?;
        }
        Ok(Figure {
            iops: writes as f64 * 1e9 / wall as f64,
            cpu_ns: cpu as f64 / writes as f64,
            waited: waited as f64 / wall as f64,
        })
    }
}

//! The same node cache where a miss costs a read of a device: laminad with its store in a file.

use anyhow::{Result, ensure};

use super::cache::{Written, zipf};
use super::daemon::{Served, Setup};
use super::{Options, goal};
use crate::clock;
use crate::goals::Goal;
use crate::memory::Memory;
use crate::random::Random;
use crate::store::{BUFFER_BYTES, DEPTH_MAX, Verb};
use crate::vhost::client::{Connection, open_soon};

/// Blocks of a disk of 5 GiB: a tenth of its leaves are the smallest cache there is.
const BLOCKS: u32 = 5 << 18;
const METADATA: u64 = BLOCKS as u64 / 512 * 4096;
/// Reads of one run.
const READS: usize = 100_000;
const DEPTH: u32 = 64;

/// A daemon with a full disk, and its client.
struct Side {
    connection: Connection,
    memory: Memory,
    // Goes after its client.
    _served: Served,
}

impl Side {
    /// A disk whose every block is scattered, in a file.
    fn new(options: &Options, cache_bytes: u64) -> Result<Side> {
        let disk = u64::from(BLOCKS) * 4096;
        let setup = Setup { bytes: disk + disk / 8, in_file: true, cache_bytes: Some(cache_bytes) };
        let mut served = Served::start(options, &setup)?;
        let memory = Memory::shared(DEPTH_MAX * BUFFER_BYTES)?;
        let name = served.disk(0, disk)?;
        let connection = open_soon(&served.path(&name), &memory)?;
        let mut side = Side { connection, memory, _served: served };
        side.run(Verb::Write, &Written::Scattered.order(BLOCKS).0)?;
        side._served.settle()?;
        Ok(side)
    }

    /// One request of 4 KiB for each of `blocks`, 64 at a time. Requests a second.
    fn run(&mut self, verb: Verb, blocks: &[u32]) -> Result<f64> {
        let begun = clock::wall_ns();
        let (mut left, mut done) = (blocks.iter(), (0..DEPTH).collect::<Vec<u32>>());
        let mut ended = 0;
        while ended < blocks.len() {
            for slot in done.drain(..) {
                let Some(block) = left.next() else { continue };
                let buffer = self.memory.piece(slot as usize * BUFFER_BYTES, 4096);
                self.connection.submit(verb, slot, u64::from(*block) * 4096, buffer)?;
            }
            self.connection.turn(&mut done)?;
            ended += done.len();
        }
        ensure!(self.connection.in_flight() == 0, "a request was answered twice");
        Ok(blocks.len() as f64 * 1e9 / (clock::wall_ns() - begun) as f64)
    }
}

/// The rate of reads over vhost-user with a tenth of the metadata in the cache, to all of it.
///
/// # Errors
/// There is not the space for two disks at a time, or a request fails.
pub fn measure(options: &Options) -> Result<Vec<Goal>> {
    let mut tenth = Side::new(options, METADATA / 10)?;
    let mut all = Side::new(options, 4 * METADATA)?;
    let mut random = Random::new(5);
    let mut ratios = Vec::new();
    for round in 0..=options.rounds {
        let list = zipf(BLOCKS, READS, &mut random);
        let (a, b) = clock::on_core(options.client_core, || -> Result<(f64, f64)> {
            Ok((tenth.run(Verb::Read, &list)?, all.run(Verb::Read, &list)?))
        })??;
        // The first round warms both caches.
        if round > 0 {
            ratios.push(a / b);
        }
    }
    let what = "rate of zipf 1.1 reads, node cache of 10 % of the metadata, to all \
                (file, vhost, disk every block scattered)";
    Ok(vec![goal(what, ratios, "", 0.8, true)?])
}

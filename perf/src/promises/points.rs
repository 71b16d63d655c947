//! Reads while a consistency point writes thousands of nodes, and while none does.

use anyhow::{Result, ensure};
use lamina_bdev::{Command, Config};

use super::{Options, goal};
use crate::clock;
use crate::engine::rig::Rig;
use crate::goals::Goal;
use crate::load::{Load, Pattern, Probe, run};
use crate::memory::Memory;
use crate::random::Random;
use crate::store::{Store, Verb};

/// Leaves of the disk, all of them changed before each point.
const LEAVES: u32 = 8192;
/// Bytes of the store: of each leaf one block is ever written. Memory that was touched before, as a
/// base of RAM is: otherwise the point would be seen waiting for the kernel to clear pages.
const STORE_BYTES: u64 = 2 << 30;
/// Reads between looks at whether the point is over.
const SLICE: usize = 2000;
/// Reads in flight.
const DEPTH: usize = 8;

/// p99 of reads beside a point, to reads alone.
pub fn measure(options: &Options) -> Result<Vec<Goal>> {
    clock::on_core(options.target_core, || -> Result<Vec<Goal>> {
        let bytes = u64::from(LEAVES) * 512 * 4096;
        let config = Config { cache_bytes: 128 << 20, ..Config::default() };
        let mut rig = Rig::on(Memory::private(STORE_BYTES as usize)?, config)?;
        rig.create(bytes)?;
        let first: Vec<u32> = (0..LEAVES).map(|leaf| leaf * 512).collect();
        let mut random = Random::new(3);
        let (mut ratios, mut reads) = (Vec::new(), 0);
        for _ in 0..options.rounds {
            rig.snapshot()?;
            touch(&mut rig, &first)?;
            let mut beside = Probe::new(0);
            let before = rig.checkpoints();
            rig.begin(Command::Checkpoint);
            while rig.checkpoints() == before {
                slice(&mut rig, &mut random, &mut beside)?;
            }
            rig.settle()?;
            let mut alone = Probe::new(0);
            for _ in 0..beside.requests.count() as usize / SLICE {
                slice(&mut rig, &mut random, &mut alone)?;
            }
            reads += beside.requests.count();
            let p99 = |probe: &Probe| probe.requests.quantile(0.99) as f64;
            eprintln!(
                "goals: p99 of reads {:.1} us beside the point, {:.1} us alone",
                p99(&beside) / 1000.0,
                p99(&alone) / 1000.0
            );
            ratios.push(p99(&beside) / p99(&alone));
            rig.delete_snapshots()?;
        }
        ensure!(reads as usize > SLICE, "the points were over too soon");
        let what = format!(
            "p99 of reads while a consistency point of {LEAVES} nodes runs, to none (RAM base)"
        );
        Ok(vec![goal(&what, ratios, "", 1.2, false)?])
    })?
}

fn touch(rig: &mut Rig, blocks: &[u32]) -> Result<()> {
    let pattern = Pattern::Once(blocks.iter());
    let mut load = Load { verb: Verb::Write, depth: 64, len: 4096, pattern, time_ns: None };
    run(rig, &mut load, None).map(|_| ())
}

fn slice(rig: &mut Rig, random: &mut Random, probe: &mut Probe) -> Result<()> {
    let blocks: Vec<u32> =
        (0..SLICE).map(|_| random.below(u64::from(LEAVES)) as u32 * 512).collect();
    let pattern = Pattern::Once(blocks.iter());
    let mut load = Load { verb: Verb::Read, depth: DEPTH, len: 4096, pattern, time_ns: None };
    run(rig, &mut load, Some(probe)).map(|_| ())
}

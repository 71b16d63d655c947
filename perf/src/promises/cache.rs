//! A node cache that holds a tenth of the metadata, under reads as skewed as real ones are.

use anyhow::Result;
use lamina_bdev::Config;

use super::{Options, goal};
use crate::clock;
use crate::engine::rig::Rig;
use crate::goals::Goal;
use crate::load::{Load, Pattern, run};
use crate::memory::Memory;
use crate::random::Random;
use crate::report::cost;
use crate::store::{Store, Verb};

/// Blocks of a disk of 6 GiB, of which two are in RAM at a time; its leaves have 12 MiB.
const MOVED: u32 = 6 << 18;
/// Blocks of the disk whose data nobody moves; its leaves have 32 MiB.
const LEFT: u32 = 4 << 20;
const EXPONENT: f64 = 1.1;
/// Blocks of 32 MiB.
const WINDOW: u32 = 8192;
/// Reads of one run.
const READS: usize = 400_000;

/// Blocks drawn so that the one of rank r comes with a weight of 1 / r^1.1; ranks are scattered
/// over the disk.
pub fn zipf(blocks: u32, reads: usize, random: &mut Random) -> Vec<u32> {
    let order = random.permutation(blocks);
    let mut sum = 0.0;
    let sums: Vec<f64> = (1..=blocks)
        .map(|rank| {
            sum += f64::from(rank).powf(-EXPONENT);
            sum
        })
        .collect();
    let parts = 1u64 << 31;
    (0..reads)
        .map(|_| {
            let at = random.below(parts) as f64 / parts as f64 * sum;
            order[sums.partition_point(|&upto| upto < at).min(order.len() - 1)]
        })
        .collect()
}

/// How the disk came to be written.
#[derive(Clone, Copy)]
pub enum Written {
    /// From its beginning to its end, as an image is.
    InOrder,
    /// In random order, so many bytes at a time.
    Pieces(u32),
    /// Block by block in random order within each 32 MiB, so that no two in a row lie in a row.
    Scattered,
}

impl Written {
    /// The units to write on a disk of so many blocks, and their bytes.
    pub fn order(self, blocks: u32) -> (Vec<u32>, u32) {
        let bytes = u64::from(blocks) * 4096;
        let units = |len: u32| (bytes / u64::from(len)) as u32;
        match self {
            Written::InOrder => ((0..units(128 << 10)).collect(), 128 << 10),
            Written::Pieces(len) => (Random::new(3).permutation(units(len)), len),
            Written::Scattered => {
                let within = Random::new(3).permutation(WINDOW);
                let windows = (0..blocks).step_by(WINDOW as usize);
                (windows.flat_map(|from| within.iter().map(move |at| from + at)).collect(), 4096)
            }
        }
    }

    fn text(self) -> String {
        match self {
            Written::InOrder => "written in order".to_owned(),
            Written::Pieces(len) => format!("written in random order by {} KiB", len >> 10),
            Written::Scattered => "every block scattered".to_owned(),
        }
    }
}

/// A disk, and what is done with the data of its requests.
#[derive(Clone, Copy)]
struct Kind {
    blocks: u32,
    written: Written,
    moved: bool,
}

impl Kind {
    fn metadata(self) -> usize {
        self.blocks as usize / 512 * 4096
    }
}

fn filled(kind: Kind, cache_bytes: usize) -> Result<Rig> {
    let config = Config { cache_bytes, ..Config::default() };
    let bytes = u64::from(kind.blocks) * 4096;
    let mut rig = Rig::on(Memory::sparse((bytes + bytes / 8) as usize)?, config)?;
    if !kind.moved {
        rig.leave_data();
    }
    rig.create(bytes)?;
    let (all, len) = kind.written.order(kind.blocks);
    let pattern = Pattern::Once(all.iter());
    let mut load = Load { verb: Verb::Write, depth: 16, len, pattern, time_ns: None };
    run(&mut rig, &mut load, None)?;
    rig.settle()?;
    Ok(rig)
}

/// The rate of reads with a tenth in the cache, to all of it, for disks written in several ways.
///
/// # Errors
/// There is not the memory for two disks at a time, or a request fails.
pub fn measure(options: &Options) -> Result<Vec<Goal>> {
    let ways = [Written::InOrder, Written::Pieces(64 << 10), Written::Scattered];
    let moved = ways.map(|written| Kind { blocks: MOVED, written, moved: true });
    let left = Kind { blocks: LEFT, written: Written::Scattered, moved: false };
    clock::on_core(options.target_core, || -> Result<Vec<Goal>> {
        moved.into_iter().chain([left]).map(|kind| ratio(options, kind)).collect()
    })?
}

fn ratio(options: &Options, kind: Kind) -> Result<Goal> {
    let mut tenth = filled(kind, kind.metadata() / 10)?;
    let mut all = filled(kind, 2 * kind.metadata())?;
    let mut random = Random::new(5);
    let mut ratios = Vec::new();
    for round in 0..=options.rounds {
        let list = zipf(kind.blocks, READS, &mut random);
        let one = |rig: &mut Rig| {
            let pattern = Pattern::Once(list.iter());
            let load = Load { verb: Verb::Read, depth: 64, len: 4096, pattern, time_ns: None };
            run(rig, &mut { load }, None)
        };
        let (a, b) = (one(&mut tenth)?, one(&mut all)?);
        // The first round warms both caches.
        if round > 0 {
            ratios.push(cost(&b) / cost(&a));
        }
    }
    let what = format!(
        "rate of zipf 1.1 reads, node cache of 10 % of the metadata, to all (RAM base, disk {}{})",
        kind.written.text(),
        if kind.moved { "" } else { ", without the copies of their data" }
    );
    goal(&what, ratios, "", 0.8, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_blocks_take_most_reads() {
        let list = zipf(100_000, 20_000, &mut Random::new(1));
        let mut counts = std::collections::BTreeMap::new();
        list.iter().for_each(|block| *counts.entry(block).or_insert(0u32) += 1);
        let mut most: Vec<u32> = counts.into_values().collect();
        most.sort_unstable_by(|a, b| b.cmp(a));
        let head: u32 = most.iter().take(1000).sum();
        assert!((0.6..0.9).contains(&(f64::from(head) / 20_000.0)), "{head}");
    }
}

//! What deleting a snapshot costs on a large full disk: it must follow what the snapshot alone
//! holds, not the size of the disk.
//!
//! The base is sparse memory: the guest's data stay where they are, metadata are really written and
//! read. Each row: fill, snapshot, overwrite so many blocks at random, delete the snapshot; then
//! the space it held is back to the block, which is checked.

use anyhow::{Result, ensure};
use clap::Args;
use lamina_bdev::Config;
use serde_json::json;

use crate::clock;
use crate::engine::rig::Rig;
use crate::memory::Memory;
use crate::random::Random;
use crate::store::{BUFFER_BYTES, DEPTH_MAX, Store, Verb};

/// Options of `deletion`.
#[derive(Args)]
pub struct Options {
    /// Machine-readable output
    #[arg(long)]
    json: bool,
    /// GiB of the disk; 1 TiB needs about 2.5 GiB of RAM and two minutes
    #[arg(long, value_name = "GIB", default_value_t = 1024)]
    gib: u64,
    /// Node cache of the engine, MiB
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    cache: usize,
}

/// One deletion.
struct Outcome {
    /// Blocks that only the snapshot held.
    held: u64,
    /// Blocks that came back: those and map nodes.
    freed: u64,
    answered_ns: u64,
    over_ns: u64,
    cloned: bool,
}

/// Runs `deletion`. True if all space came back.
///
/// # Errors
/// Not enough memory, or the engine refuses something.
pub fn main(options: &Options) -> Result<bool> {
    let size = options.gib << 30;
    let room = size + size / 64 + (1 << 30);
    let cache_bytes = options.cache << 20;
    let mut rig =
        Rig::on(Memory::sparse(room as usize)?, Config { cache_bytes, ..Config::default() })?;
    rig.leave_data();
    rig.create(size)?;
    let begun = clock::wall_ns();
    fill(&mut rig, size)?;
    let fill_s = (clock::wall_ns() - begun) as f64 / 1e9;
    // The disk's snapshot log stays when its first snapshot goes.
    let first = rig.snapshot()?;
    rig.settle()?;
    rig.delete_snapshot(first)?;
    rig.settle()?;
    let mut outcomes = Vec::new();
    for cloned in [false, true] {
        for held in [0, 1, 1_000, 100_000] {
            outcomes.push(one(&mut rig, size, held, cloned)?);
        }
    }
    if options.json {
        let rows: Vec<_> = outcomes
            .iter()
            .map(|o| {
                json!({"held_blocks": o.held, "freed_blocks": o.freed, "with_clone": o.cloned,
                   "answered_ms": ms(o.answered_ns), "over_ms": ms(o.over_ns)})
            })
            .collect();
        println!("{}", json!({"disk_bytes": size, "fill_seconds": fill_s, "rows": rows}));
    } else {
        println!("a full disk of {} GiB (filled in {fill_s:.0} s)", options.gib);
        println!(
            "{:>14} {:>12} {:>12} {:>14} {:>12}",
            "snapshot holds", "freed", "answered", "space back", "has a clone"
        );
        for o in &outcomes {
            println!(
                "{:>7} blocks {:>5} blocks {:>9.2} ms {:>11.2} ms {:>12}",
                o.held,
                o.freed,
                ms(o.answered_ns),
                ms(o.over_ns),
                o.cloned
            );
        }
    }
    Ok(true)
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

fn one(rig: &mut Rig, size: u64, held: u64, cloned: bool) -> Result<Outcome> {
    let before = rig.free_blocks();
    let snap = rig.snapshot()?;
    if cloned {
        rig.settle()?;
        rig.clone_of(snap)?;
    }
    let blocks = scatter(rig, size, held)?;
    rig.settle()?;
    let full = rig.free_blocks();
    let (answered_ns, over_ns) = rig.delete_snapshot(snap)?;
    rig.settle()?;
    let freed = rig.free_blocks() - full;
    // With a clone, what the disk has overwritten is still the clone's.
    let due = if cloned { 0 } else { blocks };
    ensure!(freed >= due, "{freed} blocks came back of {due} and some map nodes");
    ensure!(
        cloned || rig.free_blocks() == before,
        "{} blocks are missing",
        before - rig.free_blocks()
    );
    Ok(Outcome { held: due, freed, answered_ns, over_ns, cloned })
}

/// Writes the whole disk once, in order.
fn fill(rig: &mut Rig, size: u64) -> Result<()> {
    let mut at = 0;
    requests(rig, move || {
        let offset = at;
        at += BUFFER_BYTES as u64;
        (offset < size).then_some((offset, BUFFER_BYTES as u32))
    })?;
    rig.settle()
}

/// Overwrites `count` blocks, each another one; how many.
fn scatter(rig: &mut Rig, size: u64, count: u64) -> Result<u64> {
    let mut random = Random::new(count);
    let total = size / 4096;
    let mut chosen: Vec<u64> = (0..count).map(|_| random.below(total)).collect();
    chosen.sort_unstable();
    chosen.dedup();
    let blocks = chosen.len() as u64;
    let mut next = chosen.into_iter();
    requests(rig, move || next.next().map(|block| (block * 4096, 4096)))?;
    Ok(blocks)
}

/// Writes what `next` says, [`DEPTH_MAX`] requests at a time.
fn requests(rig: &mut Rig, mut next: impl FnMut() -> Option<(u64, u32)>) -> Result<()> {
    let mut idle: Vec<u32> = (0..DEPTH_MAX as u32).collect();
    loop {
        while let Some(slot) = idle.pop() {
            let Some((offset, len)) = next() else {
                idle.push(slot);
                break;
            };
            rig.submit(Verb::Write, slot, offset, len)?;
        }
        if idle.len() == DEPTH_MAX {
            return Ok(());
        }
        rig.turn(&mut idle)?;
    }
}

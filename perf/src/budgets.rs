//! Instructions that each step of the engine, of a virtqueue and of an NVMe/TCP queue takes,
//! counted by callgrind: the same number on every run, however busy the machine.
//!
//! ```text
//!  valgrind ─ lamina-perf budgets --step read --count N    set-up +  N steps  ─┐ difference / N
//!  valgrind ─ lamina-perf budgets --step read --count 2N   set-up + 2N steps  ─┘ = one step
//! ```
//!
//! The data of requests stay where they are, and the base is RAM that answers at once: what is
//! counted is the engine with the driving loop around it, and with a guest where a virtqueue is
//! meant.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use lamina_bdev::Config;
use lamina_bdev::limits::CACHE_BYTES_MIN;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;

use crate::capsule_steps::CapsuleHost;
use crate::engine::rig::Rig;
use crate::memory::Memory;
use crate::random::Random;
use crate::ring_steps::RingGuest;
use crate::store::{BUFFER_BYTES, DEPTH_MAX, Store, Verb};

/// The same copies in libc on every x86-64 machine: none that depends on what the processor can, or
/// on the size of its caches. (Valgrind's own processor has no AVX-512, whatever the machine's
/// has.)
const TUNABLES: &str = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX2,-AVX,-ERMS,-FSRM:\
                        glibc.cpu.x86_non_temporal_threshold=0xc0000";
/// Bytes of the disk that the steps work on.
const DISK: u64 = 32 << 20;
const BLOCKS: u64 = DISK / 4096;
/// Instructions may be so much above the budget, in percent.
const SLACK: f64 = 3.0;

/// Options of `budgets`.
#[derive(Args)]
pub struct Options {
    /// Machine-readable output
    #[arg(long)]
    json: bool,
    /// Write what was counted into the file as the new budgets
    #[arg(long)]
    accept: bool,
    /// The file with the budgets
    #[arg(long, default_value = "perf/budgets.toml", value_name = "FILE")]
    file: String,
    /// Only carry this step out (what valgrind runs)
    #[arg(long, requires = "count", hide = true)]
    step: Option<Step>,
    /// How often
    #[arg(long, hide = true)]
    count: Option<u64>,
}

/// One kind of step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Step {
    /// A 4 KiB read whose leaf is in the cache, one at a time
    Read,
    /// The same, 32 in flight
    ReadDeep,
    /// The same of a disk with 100 snapshots and writes between them
    ReadDepth,
    /// A 4 KiB read of a leaf of which the cache has nothing that helps: read, checked, a piece of
    /// it kept and another one evicted
    ReadMiss,
    /// An 8 KiB read of such a leaf: read, checked, adopted, another one evicted
    ReadMissWhole,
    /// A 4 KiB read that a piece of its leaf answers
    ReadPiece,
    /// A 4 KiB read whose leaf has only a compact copy in the cache
    ReadCompact,
    /// A 4 KiB write in place
    Overwrite,
    /// The same, 32 in flight
    OverwriteDeep,
    /// The first write to a block after a snapshot, 32 in flight
    Redirect,
    /// The first write to a hole, 32 in flight
    Hole,
    /// A discard of a mapped block, one at a time
    Discard,
    /// A snapshot
    Snapshot,
    /// A 4 KiB read through a split virtqueue, 32 in flight
    SplitRead,
    /// A 4 KiB write in place through a split virtqueue, 32 in flight
    SplitWrite,
    /// A 4 KiB read through a packed virtqueue, 32 in flight
    PackedRead,
    /// A 4 KiB write in place through a packed virtqueue, 32 in flight
    PackedWrite,
    /// A 4 KiB read over NVMe/TCP: capsule in, data and response out; without the engine
    CapsuleRead,
    /// A 4 KiB write with its data in the capsule; without the engine
    CapsuleWrite,
    /// A first write after a snapshot and a flush after it, alone: appends a journal block
    Journal,
    /// A block of a 128 KiB read: finding it in the cache, with its share of the request
    Translate,
}

impl Step {
    fn name(self) -> String {
        self.to_possible_value().expect("no step is hidden").get_name().to_owned()
    }

    /// Steps in the shorter of the two runs.
    fn count(self) -> u64 {
        if self == Step::Snapshot { 200 } else { 4_000 }
    }
}

#[derive(Deserialize)]
struct Budgets {
    instructions: BTreeMap<String, u64>,
}

/// Runs `budgets`. True if every step keeps within its budget.
///
/// # Errors
/// No valgrind, no file, or a step fails.
pub fn main(options: &Options) -> Result<bool> {
    if let (Some(step), Some(count)) = (options.step, options.count) {
        return carry_out(step, count).map(|()| true);
    }
    let mut counted = BTreeMap::new();
    for &step in Step::value_variants() {
        let (short, long) = (step.count(), 2 * step.count());
        let each = (instructions(step, long)? - instructions(step, short)?) / short;
        counted.insert(step.name(), each);
    }
    if options.accept {
        return write(&options.file, &counted).map(|()| true);
    }
    let text = std::fs::read_to_string(&options.file)
        .with_context(|| format!("{}: the budgets; --accept makes the file", options.file))?;
    let budgets: Budgets = toml::from_str(&text).with_context(|| options.file.clone())?;
    report(options.json, &counted, &budgets.instructions)
}

fn report(
    as_json: bool,
    counted: &BTreeMap<String, u64>,
    budgets: &BTreeMap<String, u64>,
) -> Result<bool> {
    let mut good = true;
    let mut rows = Vec::new();
    for (name, &count) in counted {
        let budget = *budgets.get(name).with_context(|| format!("step {name} has no budget"))?;
        let over = (count as f64 / budget as f64 - 1.0) * 100.0;
        good &= over <= SLACK;
        if !as_json {
            let verdict = if over <= SLACK { "kept    " } else { "EXCEEDED" };
            println!(
                "{verdict} {name:<16} {count:>6} instructions, budget {budget:>6} ({over:+.1} %)"
            );
        }
        rows.push(json!({"step": name, "instructions": count, "budget": budget}));
    }
    if as_json {
        println!("{}", json!({"kept": good, "steps": rows}));
    }
    Ok(good)
}

fn write(file: &str, counted: &BTreeMap<String, u64>) -> Result<()> {
    let mut text = String::from(
        "# Instructions of one step, as `lamina-perf budgets` counts them in a release build; a change that\n\
         # exceeds one by 3 % fails, and a change that saves some lowers them (`--accept`).\n\n\
         [instructions]\n",
    );
    for (name, count) in counted {
        text += &format!("{name} = {count}\n");
    }
    std::fs::write(file, text).with_context(|| file.to_owned())
}

/// Instructions of a whole run of so many steps.
fn instructions(step: Step, count: u64) -> Result<u64> {
    let own = std::env::current_exe()?;
    let folder = std::env::temp_dir();
    let out = folder.join(format!("lamina-budgets.{}.{}", std::process::id(), step.name()));
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .env("GLIBC_TUNABLES", TUNABLES)
        .arg(own)
        .args(["budgets", "--step", &step.name(), "--count", &count.to_string()])
        .output()
        .context("valgrind counts the instructions: install it (Debian: valgrind)")?;
    let counted = total(&out);
    let _ = std::fs::remove_file(&out);
    ensure!(ran.status.success(), "step {step:?}: {}", String::from_utf8_lossy(&ran.stderr));
    counted
}

/// The total that a callgrind file ends with.
fn total(out: &Path) -> Result<u64> {
    let text = std::fs::read_to_string(out).with_context(|| out.display().to_string())?;
    let line = text.lines().rev().find_map(|line| line.strip_prefix("totals: "));
    let Some(total) = line.and_then(|line| line.trim().parse().ok()) else {
        bail!("{} has no total", out.display());
    };
    Ok(total)
}

/// What is counted.
fn carry_out(step: Step, count: u64) -> Result<()> {
    if matches!(step, Step::ReadMiss | Step::ReadMissWhole | Step::ReadPiece | Step::ReadCompact) {
        return read_evicted(step, count);
    }
    let mut rig = Rig::new(96 << 20)?;
    rig.leave_data();
    rig.fix_clock();
    rig.create(DISK)?;
    let mut order = Random::new(1).permutation(BLOCKS as u32).into_iter().cycle();
    let mut block = move || u64::from(order.next().expect("a cycle has no end")) * 4096;
    if step != Step::Hole {
        let mut at = 0;
        run(&mut rig, Verb::Write, BLOCKS, DEPTH_MAX, || {
            at += 4096;
            at - 4096
        })?;
        rig.settle()?;
    }
    match step {
        Step::Read => run(&mut rig, Verb::Read, count, 1, block),
        Step::ReadDeep => run(&mut rig, Verb::Read, count, 32, block),
        Step::ReadDepth => {
            for _ in 0..100 {
                rig.snapshot()?;
                run(&mut rig, Verb::Write, 32, 32, &mut block)?;
            }
            rig.settle()?;
            run(&mut rig, Verb::Read, count, 32, block)
        }
        Step::ReadMiss | Step::ReadMissWhole | Step::ReadPiece | Step::ReadCompact => {
            unreachable!("carried out on a store of its own")
        }
        Step::Overwrite => run(&mut rig, Verb::Write, count, 1, block),
        Step::OverwriteDeep => run(&mut rig, Verb::Write, count, 32, block),
        Step::Redirect => {
            rig.snapshot()?;
            rig.settle()?;
            run(&mut rig, Verb::Write, count.min(BLOCKS), 32, block)
        }
        Step::Hole => run(&mut rig, Verb::Write, count.min(BLOCKS), 32, block),
        Step::Journal => {
            rig.snapshot()?;
            rig.settle()?;
            (0..count.min(BLOCKS)).try_for_each(|_| {
                run(&mut rig, Verb::Write, 1, 1, &mut block)?;
                rig.flush()
            })
        }
        Step::Translate => {
            let long = BUFFER_BYTES as u64;
            let offset = || block() / long * long;
            run_long(&mut rig, Verb::Read, count / (long / 4096), 1, long as u32, offset)
        }
        Step::Discard => (0..count.min(BLOCKS)).try_for_each(|_| rig.discard(block(), 4096)),
        Step::SplitRead | Step::PackedRead | Step::SplitWrite | Step::PackedWrite => {
            let packed = matches!(step, Step::PackedRead | Step::PackedWrite);
            let reads = matches!(step, Step::PackedRead | Step::SplitRead);
            let verb = if reads { Verb::Read } else { Verb::Write };
            RingGuest::new(&mut rig, packed)?.run(&mut rig, verb, count, block)
        }
        Step::CapsuleRead => CapsuleHost::new(DISK)?.run(Verb::Read, count, block),
        Step::CapsuleWrite => CapsuleHost::new(DISK)?.run(Verb::Write, count, block),
        Step::Snapshot => (0..count).try_for_each(|_| rig.snapshot().map(|_| ())),
    }
}

/// `count` reads, one at a time, of many more leaves than the smallest cache has room for, in turn:
/// none is there when its turn comes, or most only as compact copies, which leaves of few runs
/// have, or as the piece that is read.
fn read_evicted(step: Step, count: u64) -> Result<()> {
    // Pieces of 64 blocks: all eight of a leaf are read in turn, or always the first.
    let (blocks, times, pieces) = match step {
        Step::ReadCompact => (1, 8, 1),
        Step::ReadPiece => (40, 4, 1),
        _ => (40, 4, 8),
    };
    let len = if step == Step::ReadMissWhole { 8192 } else { 4096 };
    let config = Config { cache_bytes: 0, ..Config::default() };
    let mut rig = Rig::on(Memory::sparse(8 << 30)?, config)?;
    rig.leave_data();
    rig.fix_clock();
    let leaf_bytes = 2 << 20;
    let leaves = times * CACHE_BYTES_MIN as u64 / 4096;
    rig.create(leaves * leaf_bytes)?;
    let all = (0..pieces).flat_map(|piece| (0..leaves).map(move |leaf| (leaf, piece)));
    let mut place = all.cycle();
    let mut offset = || {
        let (leaf, piece) = place.next().expect("a cycle has no end");
        leaf * leaf_bytes + piece * 64 * 4096
    };
    // Some blocks of each piece.
    let mut block = (0..leaves).flat_map(|leaf| (0..blocks).map(move |b| (leaf, 12 * b * 4096)));
    let mut each = || block.next().map_or(0, |(leaf, inner)| leaf * leaf_bytes + inner);
    run(&mut rig, Verb::Write, leaves * blocks, 1, &mut each)?;
    rig.settle()?;
    // Each is read once, and most are evicted.
    run_long(&mut rig, Verb::Read, leaves * pieces, 1, len, &mut offset)?;
    run_long(&mut rig, Verb::Read, count, 1, len, offset)
}

/// `count` requests of 4 KiB, `depth` at a time.
fn run(
    rig: &mut Rig,
    verb: Verb,
    count: u64,
    depth: usize,
    offset: impl FnMut() -> u64,
) -> Result<()> {
    run_long(rig, verb, count, depth, 4096, offset)
}

/// `count` requests of `len` bytes.
fn run_long(
    rig: &mut Rig,
    verb: Verb,
    count: u64,
    depth: usize,
    len: u32,
    mut offset: impl FnMut() -> u64,
) -> Result<()> {
    let mut idle: Vec<u32> = (0..depth as u32).collect();
    let mut begun = 0;
    loop {
        while begun < count
            && let Some(slot) = idle.pop()
        {
            rig.submit(verb, slot, offset(), len)?;
            begun += 1;
        }
        if idle.len() == depth {
            return Ok(());
        }
        rig.turn(&mut idle)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_runs_and_a_budget_can_be_exceeded() {
        for &step in Step::value_variants() {
            carry_out(step, 128).unwrap();
        }
        let counted = BTreeMap::from([("read".to_owned(), 104)]);
        let budget = |most| BTreeMap::from([("read".to_owned(), most)]);
        assert!(report(true, &counted, &budget(101)).unwrap());
        assert!(!report(true, &counted, &budget(100)).unwrap());
        assert!(report(true, &counted, &BTreeMap::new()).is_err());
    }
}

//! Nothing on the data path allocates once warm: the same load twice, the second time under watch.

use std::collections::BTreeMap;

use anyhow::Result;
use lamina_bdev::{Command, SnapId, SnapRef};

use super::rig::Rig;
use crate::allocator::{self, Witness};
use crate::load::{Load, Pattern, fill, run};
use crate::random::Random;
use crate::store::{Store, Verb};

/// Snapshots that are kept; older ones are deleted while requests go on.
const KEPT: usize = 8;
/// Slices of each load; in the last one there is a snapshot before each.
const SLICES: usize = 40;
/// Requests of a slice.
const SLICE: usize = 4000;
/// Passes before counting starts.
const WARM: usize = 3;

/// Where an allocation came from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Origin {
    /// A request on its way.
    Requests,
    /// A consistency point, the reaper.
    Background,
    /// A control command.
    Commands,
}

/// What was seen.
pub struct Allocations {
    witness: Witness,
    sites: BTreeMap<(Origin, String), u64>,
    requests: u64,
    redirected: u64,
    snapshots: u64,
    checkpoints: u64,
}

/// Warms up, then counts over the same load.
///
/// # Errors
/// A request or command failed.
pub fn count(rig: &mut Rig, disk_bytes: u64) -> Result<Allocations> {
    let blocks = (disk_bytes / 4096) as u32;
    let mut random = Random::new(9);
    let lists: Vec<Vec<u32>> = (0..SLICES)
        .map(|_| (0..SLICE).map(|_| random.below(u64::from(blocks)) as u32).collect())
        .collect();
    let disk = rig.create(disk_bytes)?;
    fill(rig, &random.permutation(blocks), 4096)?;
    let mut kept = Vec::with_capacity(KEPT + 1);
    for _ in 0..WARM {
        pass(rig, &lists, &mut kept)?;
    }
    let before = (rig.redirected(), rig.checkpoints());
    allocator::arm();
    let outcome = pass(rig, &lists, &mut kept);
    let witness = allocator::disarm();
    let (requests, snapshots) = outcome?;
    let seen = Allocations {
        sites: sites(&witness),
        witness,
        requests,
        redirected: rig.redirected() - before.0,
        snapshots,
        checkpoints: rig.checkpoints() - before.1,
    };
    rig.delete(disk)?;
    Ok(seen)
}

/// Random reads, overwrites, then writes with snapshots, deletions and consistency points between.
fn pass(rig: &mut Rig, lists: &[Vec<u32>], kept: &mut Vec<SnapRef>) -> Result<(u64, u64)> {
    let (mut requests, mut snapshots) = (0, 0);
    for (verb, snapshotting) in
        [(Verb::Read, false), (Verb::Write, false), (Verb::Write, true), (Verb::Read, false)]
    {
        for (at, list) in lists.iter().enumerate() {
            if snapshotting {
                rig.ask_snapshot()?;
                snapshots += 1;
            }
            if at % 10 == 5 {
                rig.begin(Command::Checkpoint);
            }
            let pattern = Pattern::Once(list.iter());
            let mut load = Load { verb, depth: 64, len: 4096, pattern, time_ns: None };
            requests += run(rig, &mut load, None)?.ios;
            if snapshotting && rig.snapshot_answer()?.is_some() {
                keep(rig, kept);
            }
        }
    }
    Ok((requests, snapshots))
}

/// Notes the newest snapshot and has the oldest deleted if there are enough.
fn keep(rig: &mut Rig, kept: &mut Vec<SnapRef>) {
    let Some((disk, snap)) = rig.newest_snapshot() else { return };
    kept.push(SnapRef { disk, snap: SnapId(snap.0) });
    if kept.len() > KEPT {
        let oldest = kept.remove(0);
        rig.begin(Command::DeleteSnapshot(oldest));
    }
}

/// Allocations by the engine's function nearest to them, and on whose behalf they were.
fn sites(witness: &Witness) -> BTreeMap<(Origin, String), u64> {
    let mut sites = BTreeMap::new();
    for trace in &witness.traces {
        let text = trace.to_string();
        *sites.entry(site(&text)).or_insert(0) += 1;
    }
    sites
}

fn site(trace: &str) -> (Origin, String) {
    let mut ours = Vec::new();
    for line in trace.lines() {
        // "  12: lamina_bdev::engine::Engine::tick", and the file on a line of its own.
        let Some((_, function)) = line.trim().split_once(": ") else { continue };
        if function.contains("lamina_bdev::") {
            ours.push(function.replace("lamina_bdev::", ""));
        }
    }
    let inside = |word: &str| ours.iter().any(|function| function.contains(word));
    let origin = if inside("command") || inside("snapshot_done") || inside("enter_snapshot") {
        Origin::Commands
    } else if inside("checkpoint") || inside("reap") {
        Origin::Background
    } else {
        Origin::Requests
    };
    let place = if ours.is_empty() {
        "outside the engine".to_string()
    } else {
        ours.truncate(4);
        ours.join(" < ")
    };
    (origin, place)
}

impl Allocations {
    fn of(&self, origin: Origin) -> u64 {
        self.sites.iter().filter(|((of, _), _)| *of == origin).map(|(_, count)| count).sum()
    }

    /// True if no request and nothing in the background allocated.
    pub fn good(&self) -> bool {
        self.witness.count == self.of(Origin::Commands)
    }

    /// Lines for the report.
    pub fn notes(&self) -> Vec<String> {
        let Allocations { requests, redirected, snapshots, checkpoints, .. } = self;
        let untraced = self.witness.count - self.sites.values().sum::<u64>();
        let (data, background) = (self.of(Origin::Requests), self.of(Origin::Background));
        let mut notes = vec![
            String::new(),
            format!(
                "allocations after warm-up: {}, over {requests} requests ({redirected} redirected), \
                 {snapshots} snapshots, {checkpoints} consistency points",
                data + background + untraced
            ),
            format!(
                "  by requests {data}, in the background {background}, not traced {untraced}; \
                 by control commands {} (not data path)",
                self.of(Origin::Commands)
            ),
        ];
        for ((origin, place), count) in &self.sites {
            notes.push(format!("  {count:>6} x {origin:?}: {place}"));
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_tells_on_whose_behalf() {
        let stack = "   3: alloc::vec::grow\n   4: lamina_bdev::space::Space::release\n  \
                     at ./bdev/src/space/mod.rs:7:9\n   5: lamina_bdev::engine::Engine::tick\n";
        let (origin, place) = site(stack);
        assert_eq!(origin, Origin::Requests);
        assert_eq!(place, "space::Space::release < engine::Engine::tick");
        let background = stack.replace("space::Space", "pipeline::checkpoint::Engine");
        assert_eq!(site(&background).0, Origin::Background);
        assert_eq!(site("   1: main\n").1, "outside the engine");
    }
}

//! Nothing on the data path allocates once warm: the same load twice, the second time under watch.

use std::collections::BTreeMap;

use anyhow::Result;
use lamina_bdev::{Command, SnapId, SnapRef};

use super::rig::Rig;
use crate::allocator::{self, Witness};
use crate::load::{Load, Pattern, Slots, fill, run_in};
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
    /// In a burst larger than any before.
    burst: BTreeMap<(Origin, String), u64>,
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
    let mut slots = Slots::default();
    for _ in 0..WARM {
        pass(rig, &mut slots, &lists, &mut kept)?;
    }
    let before = (rig.redirected(), rig.checkpoints());
    allocator::arm();
    let outcome = pass(rig, &mut slots, &lists, &mut kept);
    let witness = allocator::disarm();
    let (requests, snapshots) = outcome?;
    let seen = Allocations {
        sites: sites(&witness),
        witness,
        requests,
        redirected: rig.redirected() - before.0,
        snapshots,
        checkpoints: rig.checkpoints() - before.1,
        burst: BTreeMap::new(),
    };
    let burst = burst(rig, &mut slots, &random.permutation(blocks));
    rig.delete(disk)?;
    Ok(Allocations { burst: burst?, ..seen })
}

/// Random reads, overwrites, then writes with snapshots, deletions and consistency points between.
fn pass(
    rig: &mut Rig,
    slots: &mut Slots,
    lists: &[Vec<u32>],
    kept: &mut Vec<SnapRef>,
) -> Result<(u64, u64)> {
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
            requests += run_in(slots, rig, &mut load, None)?.ios;
            if snapshotting && rig.snapshot_answer()?.is_some() {
                keep(rig, kept);
            }
        }
    }
    Ok((requests, snapshots))
}

/// The whole disk rewritten between two consistency points, more than the warm-up ever did: lists
/// that grow with what they hold show here.
fn burst(
    rig: &mut Rig,
    slots: &mut Slots,
    blocks: &[u32],
) -> Result<BTreeMap<(Origin, String), u64>> {
    allocator::arm();
    let outcome = rig.ask_snapshot().and_then(|()| {
        let pattern = Pattern::Once(blocks.iter());
        let mut load = Load { verb: Verb::Write, depth: 64, len: 4096, pattern, time_ns: None };
        run_in(slots, rig, &mut load, None)
    });
    let witness = allocator::disarm();
    outcome?;
    Ok(sites(&witness))
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

/// Frames of the engine in a stack, innermost first: a function and, on the next line, its place.
fn site(trace: &str) -> (Origin, String) {
    let mut ours = Vec::new();
    let mut function = "";
    for line in trace.lines().map(str::trim) {
        if let Some(place) = line.strip_prefix("at ") {
            if let Some((_, file)) = place.split_once("bdev/src/") {
                let file = file.rsplit_once(':').map_or(file, |(file, _column)| file);
                let name = function.rsplit("::").next().unwrap_or(function);
                ours.push(format!("{name} ({file})"));
            }
        } else if let Some((_, name)) = line.split_once(": ") {
            function = name;
        }
    }
    let inside = |file: &str| ours.iter().any(|frame| frame.contains(file));
    let origin = if inside("(commands.rs") {
        Origin::Commands
    } else if inside("(pipeline/checkpoint") || inside("(background/") {
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
        let in_burst: u64 = self.burst.values().sum();
        notes.push(format!(
            "allocations in a burst larger than any before (not promised to be 0): {in_burst}"
        ));
        for ((origin, place), count) in &self.burst {
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
        let stack = "   3: alloc::vec::grow\n             at /lib/vec.rs:1:2\n   \
                     4: release\n             at ./bdev/src/space/mod.rs:7:9\n   \
                     5: lamina_bdev::engine::Engine::tick\n             at ./bdev/src/engine.rs:8:1\n";
        let (origin, place) = site(stack);
        assert_eq!(origin, Origin::Requests);
        assert_eq!(place, "release (space/mod.rs:7) < tick (engine.rs:8)");
        let background = stack.replace("space/mod.rs", "pipeline/checkpoint.rs");
        assert_eq!(site(&background).0, Origin::Background);
        let command = background.replace("engine.rs", "commands.rs");
        assert_eq!(site(&command).0, Origin::Commands);
        assert_eq!(site("   1: main\n").1, "outside the engine");
    }
}

//! Two reactors' engines, each with its disk, alone and at once: shards share nothing, so twice the
//! cores are twice the rate but for the memory they share. How much that is shows the same with
//! RAM alone; what is left to the engine, the same with the data left where it is.

use std::sync::Barrier;

use anyhow::{Result, anyhow};

use super::{Options, goal};
use crate::clock;
use crate::engine::rig::Rig;
use crate::goals::Goal;
use crate::load::{Load, Pattern, fill, run};
use crate::random::Random;
use crate::report::{Spread, cost};
use crate::store::{Disk, Store, Verb};

const DISK: u64 = 128 << 20;
const TIME_NS: u64 = 300_000_000;

/// What is read.
#[derive(Clone, Copy)]
enum Reads {
    /// A disk.
    Disk,
    /// RAM of the same size, by copies alone.
    Ram,
    /// A disk, without the copies.
    DiskUnmoved,
}

const ALL: [Reads; 3] = [Reads::Disk, Reads::Ram, Reads::DiskUnmoved];

/// What each round of one core gave for [`ALL`]: CPU time of a request alone, and with the other
/// core at work.
type Rounds = Vec<[(f64, f64); 3]>;

/// An engine with a full disk, and another whose data stays where it is.
struct Pair {
    moved: Rig,
    unmoved: Rig,
    /// The disk of either.
    disk: Disk,
}

impl Pair {
    fn new() -> Result<Pair> {
        let full = || -> Result<(Rig, Disk)> {
            let mut rig = Rig::new(DISK * 4)?;
            let disk = rig.create(DISK)?;
            fill(&mut rig, &Random::new(1).permutation((DISK / 4096) as u32), 4096)?;
            rig.settle()?;
            Ok((rig, disk))
        };
        let ((moved, disk), (mut unmoved, _)) = (full()?, full()?);
        unmoved.leave_data();
        Ok(Pair { moved, unmoved, disk })
    }

    /// CPU time of a request.
    fn load(&mut self, reads: Reads, seed: u32) -> Result<f64> {
        let rig = match reads {
            Reads::Disk | Reads::Ram => &mut self.moved,
            Reads::DiskUnmoved => &mut self.unmoved,
        };
        match reads {
            Reads::Disk | Reads::DiskUnmoved => rig.choose(self.disk),
            Reads::Ram => assert!(rig.choose_raw(), "an engine in process has its RAM"),
        }
        let pattern = Pattern::Random(Random::new(u64::from(seed)), DISK / 4096);
        let time_ns = Some(TIME_NS);
        let mut load = Load { verb: Verb::Read, depth: 64, len: 4096, pattern, time_ns };
        Ok(cost(&run(rig, &mut load, None)?))
    }
}

fn one(options: &Options, index: usize, turns: &Barrier) -> Result<Rounds> {
    clock::pin([options.target_core, options.client_core][index])?;
    let mut pair = Pair::new();
    let mut rounds = Rounds::new();
    let mut outcome = Ok(());
    for round in 0..options.rounds {
        let mut found = [(0.0, 0.0); 3];
        for (reads, found) in ALL.into_iter().zip(&mut found) {
            let mut load = || match &mut pair {
                Ok(pair) => pair.load(reads, round),
                Err(error) => Err(anyhow!("{error:#}")),
            };
            // Whatever fails, the other thread must not wait for ever.
            let mut alone = Ok(0.0);
            for turn in 0..2 {
                turns.wait();
                if turn == index {
                    alone = load();
                }
            }
            turns.wait();
            match (alone, load()) {
                (Ok(alone), Ok(both)) => *found = (alone, both),
                (Err(error), _) | (_, Err(error)) => outcome = Err(error),
            }
        }
        rounds.push(found);
    }
    outcome.map(|()| rounds)
}

/// Rate of both by the rate of one, by CPU time.
pub fn measure(options: &Options) -> Result<Vec<Goal>> {
    let turns = Barrier::new(2);
    let (first, second) = std::thread::scope(|scope| {
        let other = scope.spawn(|| one(options, 1, &turns));
        let first = scope.spawn(|| one(options, 0, &turns));
        (first.join(), other.join())
    });
    let ended = |_| anyhow!("a reactor's thread has ended");
    let (first, second) = (first.map_err(ended)??, second.map_err(ended)??);
    let gains = |reads: Reads| -> Vec<f64> {
        let gain = |(alone, both): (f64, f64)| alone / both;
        let rounds = first.iter().zip(&second);
        rounds.map(|(a, b)| gain(a[reads as usize]) + gain(b[reads as usize])).collect()
    };
    if let Some(ram) = Spread::of(gains(Reads::Ram)) {
        let Spread { median, min, max } = ram;
        eprintln!("goals: two threads that only copy: {median:.2} ({min:.2}..{max:.2}) times one");
    }
    let what = "rate of two reactors with a disk each, to one (in process, by CPU time)";
    let unmoved = "... without the copies of their data";
    Ok(vec![
        goal(what, gains(Reads::Disk), "", 1.9, true)?,
        goal(unmoved, gains(Reads::DiskUnmoved), "", 1.9, true)?,
    ])
}

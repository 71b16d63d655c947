//! Two reactors' engines, each with its disk, alone and at once: shards share nothing, so twice the
//! cores are twice the rate but for the memory they share.

use std::sync::Barrier;

use anyhow::{Result, anyhow};

use super::{Options, goal};
use crate::clock;
use crate::engine::rig::Rig;
use crate::goals::Goal;
use crate::load::{Load, Pattern, fill, run};
use crate::random::Random;
use crate::report::cost;
use crate::store::{Store, Verb};

const DISK: u64 = 128 << 20;
const TIME_NS: u64 = 300_000_000;

/// What each round of one core gave: CPU time of a request alone, and with the other core at work.
type Rounds = Vec<(f64, f64)>;

fn one(options: &Options, index: usize, turns: &Barrier) -> Result<Rounds> {
    clock::pin([options.target_core, options.client_core][index])?;
    let prepared = || -> Result<Rig> {
        let mut rig = Rig::new(DISK * 4)?;
        rig.create(DISK)?;
        fill(&mut rig, &Random::new(1).permutation((DISK / 4096) as u32), 4096)?;
        rig.settle()?;
        Ok(rig)
    };
    let mut rig = prepared();
    let mut rounds = Rounds::new();
    let mut outcome = Ok(());
    for round in 0..options.rounds {
        let mut load = |verb| -> Result<f64> {
            let rig = rig.as_mut().map_err(|error| anyhow!("{error:#}"))?;
            let pattern = Pattern::Random(Random::new(u64::from(round)), DISK / 4096);
            let time_ns = Some(TIME_NS);
            let mut load = Load { verb, depth: 64, len: 4096, pattern, time_ns };
            Ok(cost(&run(rig, &mut load, None)?))
        };
        // Whatever fails, the other thread must not wait for ever.
        let mut alone = Ok(0.0);
        for turn in 0..2 {
            turns.wait();
            if turn == index {
                alone = load(Verb::Read);
            }
        }
        turns.wait();
        match (alone, load(Verb::Read)) {
            (Ok(alone), Ok(both)) => rounds.push((alone, both)),
            (Err(error), _) | (_, Err(error)) => outcome = Err(error),
        }
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
    let gains = first.iter().zip(&second).map(|(a, b)| a.0 / a.1 + b.0 / b.1).collect();
    let what = "rate of two reactors with a disk each, to one (in process, by CPU time)";
    Ok(vec![goal(what, gains, "", 1.9, true)?])
}

//! The engine in this process, on RAM: the rows of `lamina-perf engine` that something is promised
//! of.

use anyhow::Result;

use super::Options;
use crate::clock;
use crate::engine::rig::Rig;
use crate::goals::{Goal, judge};
use crate::rows::{Plan, Row, measure as measure_rows};
use crate::store::Verb;

/// Every promise about them.
pub fn measure(options: &Options) -> Result<Vec<Goal>> {
    let rows = vec![
        Row::Raw(Verb::Read, 64),
        Row::Random(Verb::Read, 64),
        Row::Raw(Verb::Write, 64),
        Row::Random(Verb::Write, 64),
        Row::Hole,
        Row::Overwrite,
        Row::AfterSnapshot,
        Row::AtDepth(0),
        Row::AtDepth(1000),
        Row::Undone,
        Row::Snapshots(0),
        Row::Snapshots(1000),
    ];
    let plan =
        Plan { rows, rounds: options.rounds as usize, time_ns: 200_000_000, disk_bytes: 256 << 20 };
    clock::on_core(options.target_core, || -> Result<Vec<Goal>> {
        let mut rig = Rig::new(plan.store_bytes())?;
        Ok(judge(&measure_rows(&mut rig, &plan, |_| {})?))
    })?
}

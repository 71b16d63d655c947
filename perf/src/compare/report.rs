//! Figures in, tables and JSON out; kept in a file so that a comparison can be made in parts.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::figure::Figure;
use super::rows::{Case, GROUPS, Group, PROMISES, Peer};
use crate::report::Spread;

/// One target in one row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OfPeer {
    /// Who.
    pub peer: String,
    /// One a round.
    pub figures: Vec<Figure>,
}

/// One row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Its name.
    pub row: String,
    /// The key of its group.
    pub group: String,
    /// The load.
    pub case: String,
    /// Bytes of a request.
    pub bytes: u32,
    /// Requests in flight.
    pub depth: u32,
    /// Those compared; the first is Lamina.
    pub peers: Vec<OfPeer>,
}

/// What a table calls a row.
pub fn row_name(group: &Group, case: Case) -> String {
    format!("{}: {}", group.title, case.name())
}

impl OfPeer {
    /// Requests a second.
    pub fn iops(&self) -> Option<Spread> {
        Spread::of(self.figures.iter().map(|figure| figure.iops).collect())
    }

    /// The largest share of a run spent waiting for a core.
    pub fn waited(&self) -> f64 {
        self.figures.iter().map(|figure| figure.waited).fold(0.0, f64::max)
    }

    /// CPU time of a request, nanoseconds.
    pub fn cpu_ns(&self) -> Option<Spread> {
        Spread::of(self.figures.iter().map(|figure| figure.cpu_ns).collect())
    }
}

impl Measured {
    /// A row without figures.
    pub fn new(group: &Group, case: Case, peers: &[Peer]) -> Measured {
        let of = |peer: &Peer| OfPeer { peer: peer.name().into(), figures: Vec::new() };
        Measured {
            row: row_name(group, case),
            group: group.key.into(),
            case: case.name(),
            bytes: case.bytes,
            depth: case.depth,
            peers: peers.iter().map(of).collect(),
        }
    }

    /// The first one's rate by another's, round by round.
    pub fn ratio(&self, to: &OfPeer) -> Option<Spread> {
        let pairs = self.peers.first()?.figures.iter().zip(&to.figures);
        Spread::of(pairs.map(|(ours, theirs)| ours.iops / theirs.iops).collect())
    }

    /// Another's CPU time of a request by the first one's, round by round.
    pub fn cpu_ratio(&self, to: &OfPeer) -> Option<Spread> {
        let pairs = self.peers.first()?.figures.iter().zip(&to.figures);
        Spread::of(pairs.map(|(ours, theirs)| theirs.cpu_ns / ours.cpu_ns).collect())
    }
}

/// A promise held against what was measured.
pub struct Verdict {
    /// Row and the other one.
    pub what: String,
    /// At least.
    pub goal: f64,
    /// Ratio of rates.
    pub found: Spread,
    /// Ratio of CPU times.
    pub cpu: Spread,
}

impl Verdict {
    /// The ratio of CPU times for people.
    pub fn by_cpu_time(&self) -> String {
        by_cpu_time(&self.cpu)
    }

    /// True if it is kept.
    pub fn met(&self) -> bool {
        self.found.median >= self.goal
    }
}

/// Everything measured.
#[derive(Default, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Where.
    pub machine: String,
    /// Rounds of the newest rows.
    pub rounds: u32,
    /// Seconds of each of their runs.
    pub seconds: u32,
    /// Rows.
    pub rows: Vec<Measured>,
}

impl Report {
    /// Reads what was kept.
    ///
    /// # Errors
    /// The file is not one of these.
    pub fn load(file: &Path) -> Result<Report> {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        serde_json::from_str(&text).with_context(|| file.display().to_string())
    }

    /// Writes it to a file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(file, text).with_context(|| file.display().to_string())
    }

    /// Takes new rows in place of older ones of the same name, in the order of the groups.
    pub fn take(&mut self, rows: Vec<Measured>, rounds: u32, seconds: u32) {
        (self.rounds, self.seconds) = (rounds, seconds);
        self.rows.retain(|old| rows.iter().all(|new| new.row != old.row));
        self.rows.extend(rows);
        let names: Vec<String> = GROUPS
            .iter()
            .flat_map(|group| group.cases.iter().map(move |&case| row_name(group, case)))
            .collect();
        let place = |row: &Measured| names.iter().position(|name| *name == row.row);
        self.rows.sort_by_key(|row| place(row).unwrap_or(usize::MAX));
    }

    /// The promises that these rows can be held against.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let verdict = |promise: &super::rows::Promise| {
            let group = GROUPS.iter().find(|group| group.key == promise.group)?;
            let name = row_name(group, promise.case);
            let row = self.rows.iter().find(|row| row.row == name)?;
            let to = row.peers.iter().find(|of| of.peer == promise.to.name())?;
            Some(Verdict {
                what: format!("{name}, to {}", to.peer),
                goal: promise.ratio,
                found: row.ratio(to)?,
                cpu: row.cpu_ratio(to)?,
            })
        };
        PROMISES.iter().filter_map(verdict).collect()
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{}\n{} rounds, {} s a run; medians (min..max); ratios round by round\n",
            self.machine, self.rounds, self.seconds
        );
        for row in &self.rows {
            out += &format!("\n{}\n", row.row);
            for of in &row.peers {
                out += &line(row, of).unwrap_or_default();
            }
        }
        let verdicts = self.verdicts();
        if !verdicts.is_empty() {
            out += "\npromises: rate of Lamina by the other's\n";
        }
        for verdict in &verdicts {
            let Verdict { what, goal, found, .. } = verdict;
            let word = if verdict.met() { "met   " } else { "MISSED" };
            let Spread { median, min, max } = found;
            out += &format!(
                "  {word}  {what}: {median:.2} ({min:.2}..{max:.2}), promised >= {goal}; by CPU \
                 time {}\n",
                verdict.by_cpu_time()
            );
        }
        out
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let verdict = |verdict: &Verdict| {
            json!({"what": verdict.what, "goal": verdict.goal, "found": verdict.found.median,
                "min": verdict.found.min, "max": verdict.found.max,
                "by_cpu_time": verdict.cpu.median, "met": verdict.met()})
        };
        json!({"machine": self.machine, "rounds": self.rounds, "seconds": self.seconds,
            "rows": self.rows, "promises": self.verdicts().iter().map(verdict).collect::<Vec<_>>()})
    }
}

fn line(row: &Measured, of: &OfPeer) -> Option<String> {
    let (iops, cpu) = (of.iops()?, of.cpu_ns()?);
    let k = |value: f64| format!("{:.1}", value / 1000.0);
    let span = format!("({}..{})", k(iops.min), k(iops.max));
    let mut text = format!("  {:<26}{:>9} kIOPS {span:<20}", of.peer, k(iops.median));
    if row.depth == 1 {
        text += &format!("{:>7.2} us", 1e6 / iops.median);
    }
    text += &format!("{:>8.0} ns CPU ({:.0}..{:.0})", cpu.median, cpu.min, cpu.max);
    let waited = of.waited();
    if waited > 0.05 {
        text += &format!(" [up to {:.0} % waiting for a core]", waited * 100.0);
    }
    if of.peer != row.peers[0].peer {
        let (rate, by_cpu) = (row.ratio(of)?, row.cpu_ratio(of)?);
        text += &format!("   x{:.2} ({:.2}..{:.2})", rate.median, rate.min, rate.max);
        text += &format!(", CPU x{}", by_cpu_time(&by_cpu));
    }
    Some(text + "\n")
}

/// Runs of less than a tick of the clock took no time at all by it.
fn by_cpu_time(ratio: &Spread) -> String {
    if ratio.median.is_finite() { format!("{:.2}", ratio.median) } else { "(too short)".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_ratio_to_nothing_is_told() {
        let of = |all: &[f64]| by_cpu_time(&Spread::of(all.to_vec()).expect("some"));
        assert_eq!((of(&[1.5, f64::INFINITY]), of(&[2.0])), ("(too short)".into(), "2.00".into()));
    }

    fn report(ours: &[f64], theirs: &[f64]) -> Report {
        let group = GROUPS[1];
        let mut row = Measured::new(&group, group.cases[0], group.peers);
        let figure = |iops: &f64| Figure { iops: *iops, cpu_ns: 1e9 / iops, waited: 0.0 };
        row.peers[0].figures = ours.iter().map(figure).collect();
        row.peers[1].figures = theirs.iter().map(figure).collect();
        let mut report = Report::default();
        report.take(vec![row], 3, 1);
        report
    }

    #[test]
    fn ratios_are_of_pairs_and_a_promise_is_kept_or_not() {
        let better = report(&[200.0, 20.0, 300.0], &[100.0, 10.0, 100.0]);
        let verdicts = better.verdicts();
        assert_eq!(verdicts.len(), 1);
        assert!(verdicts[0].met() && verdicts[0].found.median == 2.0);
        assert!(better.text().contains("met     vhost-user-blk, null device"));
        let worse = report(&[50.0], &[100.0]);
        assert!(!worse.verdicts()[0].met());
        assert_eq!(worse.json()["promises"][0]["met"], false);
    }

    #[test]
    fn a_row_measured_again_takes_the_place_of_the_older() {
        let mut all = report(&[1.0], &[1.0]);
        let newer = report(&[5.0, 5.0], &[1.0, 1.0]).rows;
        all.take(newer, 2, 1);
        assert_eq!(all.rows.len(), 1);
        assert_eq!(all.rows[0].peers[0].figures.len(), 2);
        let again: Report = serde_json::from_value(serde_json::to_value(&all).unwrap()).unwrap();
        assert_eq!(again.rows[0].peers[0].figures[0].iops, 5.0);
    }
}

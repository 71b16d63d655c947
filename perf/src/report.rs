//! Samples in, a table or JSON out: medians with their spread, ratios pair by pair.

use serde_json::{Value, json};

use crate::goals::Goal;
use crate::histogram::Histogram;
use crate::load::Sample;
use crate::rows::{Outcome, Row};

/// A figure of several rounds.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of at least one figure; `None` of none.
    pub fn of(mut all: Vec<f64>) -> Option<Spread> {
        all.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*all.first()?, *all.last()?);
        let median = (all[(all.len() - 1) / 2] + all[all.len() / 2]) / 2.0;
        Some(Spread { median, min, max })
    }

    fn json(self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }
}

/// CPU time of what is measured for each request of a sample, nanoseconds. A target that polls
/// spends the waiting for its client too, so this is the time a request takes of a core, without
/// what other tenants took of it.
pub fn cost(sample: &Sample) -> f64 {
    sample.cpu_ns as f64 / sample.ios.max(1) as f64
}

/// Rate of `row` as a share of the rate of `to`, round by round; `None` if one was not measured.
pub fn ratio(outcomes: &[Outcome], row: Row, to: Row) -> Option<Spread> {
    let find = |row| outcomes.iter().find(|outcome| outcome.row == row);
    let pairs = find(row)?.samples.iter().zip(&find(to)?.samples);
    Spread::of(pairs.map(|(a, b)| cost(b) / cost(a)).collect())
}

/// Everything there is to say about one command.
pub struct Report {
    /// What was measured.
    pub title: String,
    /// Circumstances, name and value.
    pub facts: Vec<(&'static str, String)>,
    /// Rows.
    pub outcomes: Vec<Outcome>,
    /// What was promised.
    pub goals: Vec<Goal>,
    /// Lines that belong below the table.
    pub notes: Vec<String>,
}

fn rates(outcome: &Outcome) -> Option<(Spread, Spread)> {
    let rate = |s: &Sample| s.ios as f64 * 1e9 / s.wall_ns.max(1) as f64;
    let iops = Spread::of(outcome.samples.iter().map(rate).collect())?;
    let costs = outcome.samples.iter().map(cost).collect();
    Some((iops, Spread::of(costs)?))
}

fn micros(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let mut out = format!("{}\n", self.title);
        for (name, value) in &self.facts {
            out += &format!("  {name}: {value}\n");
        }
        out += &format!(
            "\n{:<44}{:>10}{:>18}{:>9}{:>10}{:>18}\n",
            "row", "kIOPS", "(min..max)", "MB/s", "CPU ns/IO", "(min..max)"
        );
        for outcome in &self.outcomes {
            let Some((iops, cost)) = rates(outcome) else { continue };
            let k = |value: f64| format!("{:.1}", value / 1000.0);
            let name = outcome.row.name();
            let megabytes = iops.median * f64::from(outcome.row.request_bytes()) / 1e6;
            let span = format!("({}..{})", k(iops.min), k(iops.max));
            let cpu = format!("({:.0}..{:.0})", cost.min, cost.max);
            out += &format!("{name:<44}{:>10}{span:>18}{megabytes:>9.0}", k(iops.median));
            out += &format!("{:>10.0}{cpu:>18}\n", cost.median);
        }
        out += &self.latencies();
        if !self.goals.is_empty() {
            out += "\ngoals\n";
        }
        for goal in &self.goals {
            out += &format!("  {}\n", goal.text());
        }
        for note in &self.notes {
            out += &format!("{note}\n");
        }
        out
    }

    fn latencies(&self) -> String {
        let asked: Vec<_> = self.outcomes.iter().filter(|o| o.requests.count() > 0).collect();
        if asked.is_empty() {
            return String::new();
        }
        let mut out =
            format!("\n{:<44}{:>9}{:>9}{:>9}{:>10}\n", "latency, us", "p50", "p99", "p99.9", "max");
        for outcome in asked {
            for (of, histogram) in [
                ("requests", &outcome.requests),
                ("snapshots", &outcome.snapshots),
                ("... on a core", &outcome.on_core),
            ] {
                if histogram.count() == 0 {
                    continue;
                }
                let Row::Snapshots(rate) = outcome.row else { continue };
                let name = format!("{of} ({}), {rate} snapshots/s", histogram.count());
                let at = |share| micros(histogram.quantile(share));
                out += &format!(
                    "{name:<44}{:>9.1}{:>9.1}{:>9.1}{:>10.1}\n",
                    at(0.5),
                    at(0.99),
                    at(0.999),
                    micros(histogram.max())
                );
            }
        }
        out
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let latency = |histogram: &Histogram| {
            let at = |share| micros(histogram.quantile(share));
            json!({ "count": histogram.count(), "p50_us": at(0.5), "p99_us": at(0.99),
                "p999_us": at(0.999), "max_us": micros(histogram.max()) })
        };
        let row = |outcome: &Outcome| {
            let (iops, cost) = rates(outcome)?;
            let mut row = json!({
                "row": outcome.row.name(),
                "request_bytes": outcome.row.request_bytes(),
                "iops": iops.json(),
                "cpu_ns_per_io": cost.json(),
                "runs": outcome.samples.iter().map(|s| json!({
                    "ios": s.ios, "wall_ns": s.wall_ns, "cpu_ns": s.cpu_ns
                })).collect::<Vec<_>>(),
            });
            if outcome.requests.count() > 0 {
                row["requests"] = latency(&outcome.requests);
            }
            if outcome.snapshots.count() > 0 {
                row["snapshots"] = latency(&outcome.snapshots);
            }
            if outcome.on_core.count() > 0 {
                row["snapshots_on_core"] = latency(&outcome.on_core);
            }
            Some(row)
        };
        let facts = self.facts.iter().map(|(name, value)| (name.to_string(), json!(value)));
        json!({
            "title": self.title,
            "facts": Value::Object(facts.collect()),
            "rows": self.outcomes.iter().filter_map(row).collect::<Vec<_>>(),
            "goals": self.goals.iter().map(Goal::json).collect::<Vec<_>>(),
            "notes": self.notes,
        })
    }

    /// Prints it on standard output.
    pub fn print(&self, as_json: bool) {
        if as_json {
            println!("{:#}", self.json());
        } else {
            print!("{}", self.text());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_round_by_round() {
        let outcome = |row, costs: [u64; 3]| Outcome {
            row,
            samples: costs.map(|ns| Sample { ios: 10, wall_ns: 1, cpu_ns: ns * 10 }).to_vec(),
            requests: Histogram::default(),
            snapshots: Histogram::default(),
            on_core: Histogram::default(),
        };
        let rows = [outcome(Row::Overwrite, [100, 1000, 10]), outcome(Row::Hole, [200, 2000, 40])];
        let half = ratio(&rows, Row::Hole, Row::Overwrite).unwrap();
        assert_eq!((half.median, half.min, half.max), (0.5, 0.25, 0.5));
        assert!(ratio(&rows, Row::Hole, Row::AtDepth(0)).is_none());
        assert!(Spread::of(Vec::new()).is_none());
    }
}

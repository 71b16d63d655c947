//! What Lamina promises, held against what was measured.

use serde_json::{Value, json};

use crate::report::ratio;
use crate::rows::{Outcome, Row};
use crate::store::Verb;

/// One promise.
pub struct Goal {
    /// What is promised.
    pub what: String,
    /// What was measured.
    pub value: f64,
    /// How it varied, if it is a ratio of pairs.
    pub spread: Option<(f64, f64)>,
    /// Unit of the value.
    pub unit: &'static str,
    /// What it must not be above (or below).
    pub limit: f64,
    /// True if more is better.
    pub at_least: bool,
}

impl Goal {
    /// True if the promise is kept.
    pub fn met(&self) -> bool {
        if self.at_least { self.value >= self.limit } else { self.value <= self.limit }
    }

    /// A line for people.
    pub fn text(&self) -> String {
        let verdict = if self.met() { "met   " } else { "MISSED" };
        let sign = if self.at_least { ">=" } else { "<=" };
        let spread = self.spread.map_or(String::new(), |(a, b)| format!(" ({a:.3}..{b:.3})"));
        let Goal { what, value, unit, limit, .. } = self;
        format!("{verdict}  {what}: {value:.3}{spread}{unit}, promised {sign} {limit}{unit}")
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({ "goal": self.what, "value": self.value, "limit": self.limit, "unit": self.unit,
            "spread": self.spread, "at_least": self.at_least, "met": self.met() })
    }
}

/// The promises that these rows can be held against.
pub fn judge(outcomes: &[Outcome]) -> Vec<Goal> {
    let mut goals = Vec::new();
    let mut pair = |what: &str, row, to, limit| {
        if let Some(spread) = ratio(outcomes, row, to) {
            goals.push(Goal {
                what: what.to_string(),
                value: spread.median,
                spread: Some((spread.min, spread.max)),
                unit: "",
                limit,
                at_least: true,
            });
        }
    };
    for (verb, name) in [(Verb::Read, "reads"), (Verb::Write, "writes")] {
        let what = format!("rate of random {name} of the engine to those of its RAM");
        pair(&what, Row::Random(verb, 64), Row::Raw(verb, 64), 0.92);
    }
    let flat = Row::AtDepth(0);
    pair("rate of reads at snapshot depth 100 to depth 0", Row::AtDepth(100), flat, 0.97);
    pair("rate of reads at snapshot depth 1,000 to depth 0", Row::AtDepth(1000), flat, 0.97);
    pair("... to no snapshots, blocks scattered alike", Row::AtDepth(1000), Row::Undone, 0.97);
    let after = Row::AfterSnapshot;
    pair("rate of first writes after a snapshot to overwrites", after, Row::Overwrite, 0.6);
    pair("rate of first writes to a hole to overwrites", Row::Hole, Row::Overwrite, 0.7);
    pair("rate with 100 snapshots/s to none", Row::Snapshots(100), Row::Snapshots(0), 0.96);
    pair("rate with 1,000 snapshots/s to none", Row::Snapshots(1000), Row::Snapshots(0), 0.96);
    let without = outcomes.iter().find(|outcome| outcome.row == Row::Snapshots(0));
    for outcome in outcomes.iter().filter(|outcome| outcome.snapshots.count() > 0) {
        let Row::Snapshots(rate) = outcome.row else { continue };
        let of = [("", &outcome.snapshots), (", without waiting for a core", &outcome.on_core)];
        for (how, histogram) in of.into_iter().filter(|(_, histogram)| histogram.count() > 0) {
            goals.push(Goal {
                what: format!("p99 of a snapshot under random write, {rate} a second{how}"),
                value: histogram.quantile(0.99) as f64 / 1e3,
                spread: None,
                unit: " us",
                limit: 200.0,
                at_least: false,
            });
        }
        if let Some(without) = without.filter(|without| without.requests.count() > 0) {
            let p999 = |outcome: &Outcome| outcome.requests.quantile(0.999) as f64;
            goals.push(Goal {
                what: format!("p99.9 of a request with {rate} snapshots/s to none"),
                value: p999(outcome) / p999(without),
                spread: None,
                unit: "",
                limit: 2.0,
                at_least: false,
            });
        }
    }
    goals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_kept_on_its_own_side_of_the_limit() {
        let mut goal = Goal {
            what: "x".into(),
            value: 0.96,
            spread: Some((0.9, 1.0)),
            unit: "",
            limit: 0.95,
            at_least: true,
        };
        assert!(goal.met() && goal.text().starts_with("met"));
        goal.at_least = false;
        assert!(!goal.met() && goal.text().starts_with("MISSED"));
    }
}

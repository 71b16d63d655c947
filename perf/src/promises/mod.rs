//! What Lamina promises without comparing itself with anybody: a row, its goal, what was measured.
//!
//! ```text
//!  inside   the engine in this process, on RAM      ratios of CPU time, pair by pair
//!  cache    a node cache of a tenth, skewed reads
//!  points   reads while a consistency point runs
//!  cores    two reactors' engines at once
//!  daemon   laminad and a vhost-user client         flush storms, sleep, memory
//! ```

mod cache;
mod cache_file;
mod cores;
mod daemon;
mod inside;
mod points;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::compare::{machine, page};
use crate::goals::Goal;
use crate::report::Spread;

/// Settings of the command.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Machine-readable output
    #[arg(long)]
    pub json: bool,

    /// Only these (may be repeated): inside, cache, cache-file, points, cores, flush,
    /// neighbour, idle, memory
    #[arg(long, value_name = "NAME")]
    pub rows: Vec<String>,

    /// Rounds; every row runs once in each
    #[arg(long, value_name = "N", default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,

    /// laminad's program [default: the one beside this one]
    #[arg(long, value_name = "PATH")]
    pub daemon: Option<PathBuf>,

    /// Folder for files that serve as a base [default: the one for temporary files]
    #[arg(long, value_name = "DIR")]
    pub files: Option<PathBuf>,

    /// Write the table into this folder's performance.md
    #[arg(long, value_name = "DIR")]
    pub docs: Option<PathBuf>,

    /// Keep the result in this file; rows that are not measured now stay as they are there
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,

    /// Core of the target, and of what runs in this process
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub target_core: usize,

    /// Core of the client
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub client_core: usize,
}

impl Options {
    /// Where files that serve as a base go.
    fn folder(&self) -> PathBuf {
        self.files.clone().unwrap_or_else(std::env::temp_dir)
    }
}

/// Measures one or more rows.
type Measure = fn(&Options) -> Result<Vec<Goal>>;

const ROWS: [(&str, Measure); 9] = [
    ("inside", inside::measure),
    ("cache", cache::measure),
    ("cache-file", cache_file::measure),
    ("points", points::measure),
    ("cores", cores::measure),
    ("flush", daemon::flush),
    ("neighbour", daemon::neighbour),
    ("idle", daemon::idle),
    ("memory", daemon::memory),
];

/// A promise about a ratio, or a figure, of several rounds.
fn goal(what: &str, all: Vec<f64>, unit: &'static str, limit: f64, at_least: bool) -> Result<Goal> {
    let spread = Spread::of(all).context("no rounds")?;
    Ok(Goal {
        what: what.into(),
        value: spread.median,
        spread: Some((spread.min, spread.max)),
        unit,
        limit,
        at_least,
    })
}

/// Adds rows to those of a file, in place of older ones of the same name; all of them.
fn keep(file: &Path, rows: Vec<Value>) -> Result<Vec<Value>> {
    let mut all: Vec<Value> = match std::fs::read_to_string(file) {
        Ok(text) => serde_json::from_str(&text).with_context(|| file.display().to_string())?,
        Err(_) => Vec::new(),
    };
    for row in rows {
        match all.iter_mut().find(|old| old["goal"] == row["goal"]) {
            Some(old) => *old = row,
            None => all.push(row),
        }
    }
    let text = serde_json::to_string_pretty(&all)? + "\n";
    std::fs::write(file, text).with_context(|| file.display().to_string())?;
    Ok(all)
}

/// Rows for the page.
fn table(rows: &[Value]) -> String {
    let mut out = format!("Measured on: {}.\n\n", machine::describe());
    out += "| row | promised | measured (min..max) | |\n|---|---|---|---|\n";
    for row in rows {
        let number = |value: &Value| value.as_f64().map_or(String::new(), |v| format!("{v:.2}"));
        let sign = if row["at_least"] == true { "at least" } else { "at most" };
        let (limit, unit) = (&row["limit"], row["unit"].as_str().unwrap_or_default());
        let spread = match row["spread"].as_array() {
            Some(s) if s[0] != s[1] => format!(" ({}..{})", number(&s[0]), number(&s[1])),
            _ => String::new(),
        };
        let (what, value) = (row["goal"].as_str().unwrap_or_default(), number(&row["value"]));
        let verdict = if row["met"] == true { "met" } else { "**not met**" };
        out += &format!("| {what} | {sign} {limit}{unit} | {value}{unit}{spread} | {verdict} |\n");
    }
    out
}

/// Runs the command. True if it could be measured; what is met stands in the table.
///
/// # Errors
/// Something could not be measured.
pub fn main(options: &Options) -> Result<bool> {
    let wanted = |name: &str| options.rows.is_empty() || options.rows.iter().any(|row| row == name);
    let (mut goals, mut whole) = (Vec::new(), true);
    for (name, measure) in ROWS.into_iter().filter(|(name, _)| wanted(name)) {
        eprintln!("goals: {name}");
        match measure(options) {
            Ok(some) => goals.extend(some),
            Err(error) => {
                eprintln!("goals: {name} could not be measured: {error:#}");
                whole = false;
            }
        }
    }
    if options.json {
        println!("{:#}", Value::Array(goals.iter().map(Goal::json).collect()));
    }
    let mut rows: Vec<Value> = goals.iter().map(Goal::json).collect();
    if let Some(file) = &options.save {
        rows = keep(file, rows)?;
    }
    if let Some(folder) = &options.docs {
        page::replace(folder, "goals", &table(&rows))?;
    }
    if !options.json {
        goals.iter().for_each(|goal| println!("{}", goal.text()));
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_measured_again_replaces_the_older_one() {
        let folder = crate::vhost::folder::Folder::new(&std::env::temp_dir()).unwrap();
        let file = folder.path("rows");
        let row = |what, value| goal(what, vec![value, value], "", 2.0, true).unwrap().json();
        keep(&file, vec![row("a", 1.0), row("b", 3.0)]).unwrap();
        let all = keep(&file, vec![row("a", 5.0)]).unwrap();
        assert_eq!((all.len(), all[0]["value"].as_f64()), (2, Some(5.0)));
        let text = table(&[row("a", 1.0), row("b", 3.0)]);
        assert!(text.contains("| a | at least 2.0 | 1.00 | **not met** |"), "{text}");
        assert!(text.contains("| b | at least 2.0 | 3.00 | met |"), "{text}");
    }
}

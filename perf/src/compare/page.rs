//! The measured part of docs/performance.md: tables and plots between two marks.

use std::path::Path;

use anyhow::{Context, Result};

use super::plot;
use super::report::{Measured, OfPeer, Report};
use super::rows::GROUPS;
use crate::report::Spread;

const PAGE: &str = "performance.md";

/// Replaces what is between the marks of `of` in the folder's page.
///
/// # Errors
/// There is no page with such marks, or it cannot be written.
pub fn replace(folder: &Path, of: &str, middle: &str) -> Result<()> {
    let page = folder.join(PAGE);
    let begin = format!("<!-- {of}: begin; written by `lamina-perf {of} --docs` -->\n");
    let end = format!("<!-- {of}: end -->\n");
    let text = std::fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    let (before, rest) = text.split_once(&begin).context("the page has no mark to begin at")?;
    let (_, after) = rest.split_once(&end).context("the page has no mark to end at")?;
    let text = format!("{before}{begin}\n{middle}\n{end}{after}");
    std::fs::write(&page, text).with_context(|| page.display().to_string())
}

/// Writes plots into the folder, and tables into its page between the marks.
///
/// # Errors
/// There is no page with marks, or a file cannot be written.
pub fn write(folder: &Path, report: &Report) -> Result<()> {
    let mut middle = format!(
        "Measured on: {}. {} rounds, {} s a run.\n",
        report.machine, report.rounds, report.seconds
    );
    for group in GROUPS {
        let rows: Vec<&Measured> =
            report.rows.iter().filter(|row| row.group == group.key).collect();
        if rows.is_empty() {
            continue;
        }
        let file = format!("compare-{}.svg", group.key);
        plot::bars(&folder.join(&file), group.title, &rows)?;
        middle += &format!("\n### {}\n\n![{}]({file})\n\n", group.title, group.title);
        middle +=
            "| row | target | k IOPS (min..max) | us at QD 1 | CPU ns each | Lamina by it |\n";
        middle += "|---|---|---|---|---|---|\n";
        for row in rows {
            middle.extend(row.peers.iter().filter_map(|of| line(row, of)));
        }
    }
    let verdicts = report.verdicts();
    if !verdicts.is_empty() {
        middle += "\n### Promises\n\n| row | promised | found (min..max) | by CPU time | |\n";
        middle += "|---|---|---|---|---|\n";
    }
    for verdict in &verdicts {
        let Spread { median, min, max } = verdict.found;
        middle += &format!(
            "| {} | {} | {median:.2} ({min:.2}..{max:.2}) | {} | {} |\n",
            verdict.what,
            verdict.goal,
            verdict.by_cpu_time(),
            if verdict.met() { "met" } else { "**not met**" }
        );
    }
    replace(folder, "compare", &middle)
}

fn line(row: &Measured, of: &OfPeer) -> Option<String> {
    let (iops, cpu) = (of.iops()?, of.cpu_ns()?);
    let first = of.peer == row.peers[0].peer;
    let name = if first { row.case.as_str() } else { "" };
    let latency = if row.depth == 1 { format!("{:.2}", 1e6 / iops.median) } else { "".into() };
    let by = match first {
        true => String::new(),
        false => {
            row.ratio(of).map(|by| format!("{:.2} ({:.2}..{:.2})", by.median, by.min, by.max))?
        }
    };
    let k = |value: f64| format!("{:.0}", value / 1000.0);
    Some(format!(
        "| {name} | {} | {} ({}..{}) | {latency} | {:.0} | {:.0} % | {by} |\n",
        of.peer,
        k(iops.median),
        k(iops.min),
        k(iops.max),
        cpu.median,
        of.waited() * 100.0
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vhost::folder::Folder;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let folder = Folder::new(&std::env::temp_dir()).unwrap();
        let (path, page) = (folder.path(""), folder.path(PAGE));
        let marks = "<!-- x: begin; written by `lamina-perf x --docs` -->\nold\n<!-- x: end -->\n";
        std::fs::write(&page, format!("a\n{marks}b\n")).unwrap();
        replace(&path, "x", "new").unwrap();
        replace(&path, "x", "newer").unwrap();
        let text = std::fs::read_to_string(&page).unwrap();
        assert!(text.starts_with("a\n<!-- x") && text.ends_with("-->\nb\n"), "{text}");
        assert!(text.contains("newer") && !text.contains("old"), "{text}");
        assert!(replace(&path, "y", "").is_err());
    }
}

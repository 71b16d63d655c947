//! Checking a store while it is served; and the report of a check, online or not.

use serde::{Deserialize, Serialize};

use crate::schema::method;

method! {
    /// Starts checking a store while it is served: reads all its metadata past the engine, on a
    /// thread of its own. Blocks freed meanwhile are given out again when the check is over.
    LaminaCheck = "lamina_check" -> bool;
    required {}
    optional {
        /// Name or UUID of the store; may be left out if only one is open.
        name: String,
    }
}

method! {
    /// How far the check of a store is, and what it found.
    LaminaCheckStatus = "lamina_check_status" -> CheckStatus;
    required {}
    optional {
        /// Name or UUID of the store; may be left out if only one is open.
        name: String,
        /// True: end it.
        cancel: bool,
    }
}

/// Answer of [`LaminaCheckStatus`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckStatus {
    /// "none" (never asked for), "running", "done", "failed".
    pub state: String,
    /// What it is doing.
    pub phase: String,
    /// Shard it is at, from 0.
    pub shard: u32,
    /// Shards.
    pub shards: u32,
    /// Blocks accounted for in this phase.
    pub done: u64,
    /// Of about how many.
    pub total: u64,
    /// Why it failed.
    pub error: Option<String>,
    /// What it found, once done.
    pub report: Option<CheckReport>,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Name of the store, or its path.
    pub store: String,
    /// True: nothing worse than notes was found.
    pub clean: bool,
    /// True: it was served meanwhile.
    pub online: bool,
    /// What was looked at.
    pub counts: CheckCounts,
    /// What is wrong.
    pub findings: Vec<CheckFinding>,
    /// Findings beyond those listed.
    pub more: u64,
    /// What was repaired.
    pub repairs: Vec<String>,
}

/// Counts of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckCounts {
    /// Shards.
    pub shards: u64,
    /// Disks.
    pub disks: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Map nodes, each once.
    pub nodes: u64,
    /// Data blocks (4 KiB), each once.
    pub data_blocks: u64,
    /// Data blocks held by several versions.
    pub shared_blocks: u64,
    /// Free blocks.
    pub free_blocks: u64,
    /// Allocated blocks that nothing holds.
    pub leaked_blocks: u64,
    /// Journal records waiting for replay.
    pub journal_records: u64,
}

/// One finding.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckFinding {
    /// "error", "warning" or "note".
    pub severity: String,
    /// What kind of thing is wrong: "node", "leak", "record", ...
    pub kind: String,
    /// In which shard.
    pub shard: u32,
    /// The disk it is about.
    pub disk: Option<String>,
    /// Number of the snapshot it is about.
    pub snapshot: Option<u64>,
    /// 4 KiB block of the shard's region.
    pub block: Option<u64>,
    /// For people.
    pub text: String,
    /// What to do.
    pub advice: String,
}

impl CheckReport {
    /// For people.
    pub fn text(&self) -> String {
        let c = &self.counts;
        let mut out = format!(
            "store {}: {} disks, {} snapshots, {} map nodes, {} data blocks ({} shared), {} free blocks\n",
            self.store,
            c.disks,
            c.snapshots,
            c.nodes,
            c.data_blocks,
            c.shared_blocks,
            c.free_blocks
        );
        if c.journal_records > 0 {
            out.push_str(&format!(
                "the journal holds {} records to be replayed when the store is opened\n",
                c.journal_records
            ));
        }
        let mut advised: Vec<&str> = Vec::new();
        for finding in &self.findings {
            let shard =
                if c.shards > 1 { format!("shard {}: ", finding.shard) } else { String::new() };
            out.push_str(&format!("{}: {shard}{}\n", finding.severity, finding.text));
            if !advised.contains(&finding.advice.as_str()) {
                out.push_str(&format!("  {}\n", finding.advice));
                advised.push(&finding.advice);
            }
        }
        if self.more > 0 {
            out.push_str(&format!("... and {} more\n", self.more));
        }
        for repair in &self.repairs {
            out.push_str(&format!("repaired: {repair}\n"));
        }
        out.push_str(if self.clean { "clean\n" } else { "NOT clean\n" });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_given_once() {
        let leak = CheckFinding {
            severity: "warning".into(),
            text: "block 7 leaks".into(),
            advice: "free it".into(),
            ..CheckFinding::default()
        };
        let findings = vec![leak.clone(), leak];
        let report = CheckReport { store: "pool".into(), findings, ..CheckReport::default() };
        let text = report.text();
        assert_eq!(text.matches("block 7 leaks").count(), 2, "{text}");
        assert_eq!(text.matches("free it").count(), 1, "{text}");
        assert!(text.ends_with("NOT clean\n"), "{text}");
    }
}

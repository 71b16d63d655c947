//! Checking stores: what the engine's checker needs of a device, and its report as RPC and the
//! command line show it.

use lamina_bdev::check::{ReadBlocks, Report, WriteBlocks};
use lamina_bdev::{BLOCK_SIZE, Error};
use lamina_rpc::methods::{CheckCounts, CheckFinding, CheckReport};

use crate::base::BaseFile;

/// A file or block device under check.
pub struct CheckedFile<'a>(pub &'a BaseFile);

impl ReadBlocks for CheckedFile<'_> {
    fn read(&mut self, block: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.0.read_at(buf, block * BLOCK_SIZE as u64)
    }
}

impl WriteBlocks for CheckedFile<'_> {
    fn write(&mut self, block: u64, bytes: &[u8]) -> Result<(), Error> {
        self.0.write_at(bytes, block * BLOCK_SIZE as u64)
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.0.sync()
    }
}

/// The report in the words of RPC.
pub fn report(store: &str, online: bool, report: &Report, repairs: Vec<String>) -> CheckReport {
    let c = &report.counts;
    CheckReport {
        store: store.to_string(),
        clean: report.clean(),
        online,
        counts: CheckCounts {
            shards: c.shards,
            disks: c.disks,
            snapshots: c.snapshots,
            nodes: c.nodes,
            data_blocks: c.data_blocks,
            shared_blocks: c.shared_blocks,
            free_blocks: c.free_blocks,
            leaked_blocks: c.leaked_blocks,
            journal_records: c.journal_records,
        },
        findings: report
            .findings
            .iter()
            .map(|f| CheckFinding {
                severity: f.severity.word().to_string(),
                kind: f.kind.word().to_string(),
                shard: f.shard,
                disk: f.disk.clone(),
                snapshot: f.snapshot,
                block: f.block,
                text: f.text.clone(),
                advice: f.kind.advice().to_string(),
            })
            .collect(),
        more: report.more,
        repairs,
    }
}

//! What a disk saw, with the times: for asking whether a flush was one.
//!
//! ```text
//!  guest:   write t ──── answered     flush ──────────────────────── answered
//!  disk:      write of t ── end          fsync begins ── fsync ends
//!                            └────── before ──────┘           └─ before ─┘
//! ```

use std::collections::HashMap;
use std::time::Instant;

use super::SECTOR;
use crate::tagged;

/// Times of tagged writes and of fsyncs.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// When the first write of a tag to the disk was complete.
    written: HashMap<u64, Instant>,
    /// Begin and end of good fsyncs, in order.
    fsyncs: Vec<(Instant, Instant)>,
}

impl Record {
    pub(super) fn wrote(&mut self, data: &[u8]) {
        let now = Instant::now();
        for sector in data.as_chunks::<SECTOR>().0 {
            if let Some(tag) = tagged::tag_of(sector) {
                self.written.entry(tag).or_insert(now);
            }
        }
    }

    pub(super) fn synced(&mut self, begun: Instant) {
        self.fsyncs.push((begun, Instant::now()));
    }

    /// Fsyncs seen.
    #[must_use]
    pub fn fsyncs(&self) -> usize {
        self.fsyncs.len()
    }

    /// Checks a guest's flush answered at `answered` that covers writes of `tags`.
    ///
    /// # Errors
    /// A tag never reached the disk, or no fsync ran between its arrival and the answer.
    pub fn check_flush(&self, tags: &[u64], answered: Instant) -> Result<(), String> {
        let mut last: Option<(Instant, u64)> = None;
        for tag in tags {
            let written = self.written.get(tag);
            let written = *written.ok_or(format!("tag {tag:#x} never reached the disk"))?;
            if last.is_none_or(|(time, _)| time < written) {
                last = Some((written, *tag));
            }
        }
        let Some((written, tag)) = last else { return Ok(()) };
        // Fsyncs are in the order of their ends, and one at a time: the first that began late
        // enough is the one that ended first.
        let first = self.fsyncs.partition_point(|(begun, _)| *begun < written);
        match self.fsyncs.get(first) {
            Some((_, ended)) if *ended <= answered => Ok(()),
            Some((begun, ended)) => Err(format!(
                "the flush was answered {:?} before the end of the fsync that covers tag {tag:#x} \
                 (begun {:?} after the write)",
                *ended - answered,
                *begun - written
            )),
            None => Err(format!("no fsync began after tag {tag:#x} was on the disk")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn only_an_fsync_between_counts() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut record = Record::default();
        record.written.insert(1, at(10));
        record.written.insert(2, at(20));
        for (begun, ended) in [(5, 8), (15, 18), (25, 30)] {
            record.fsyncs.push((at(begun), at(ended)));
        }
        assert_eq!(record.check_flush(&[1], at(18)), Ok(()));
        assert_eq!(record.check_flush(&[1, 2], at(31)), Ok(()));
        assert_eq!(record.check_flush(&[], at(0)), Ok(()));
        // Begun before the write, ended after the answer, never begun, never written.
        assert!(record.check_flush(&[1], at(12)).is_err());
        assert!(record.check_flush(&[1, 2], at(29)).is_err());
        record.written.insert(3, at(26));
        assert!(record.check_flush(&[3], at(99)).is_err());
        assert!(record.check_flush(&[4], at(99)).is_err());
    }
}

//! How full a shard is, and who must be told when that changes.
//!
//! ```text
//!  percent used   ....79 80 ......... 90 ... 91 88 ......... 78 77 ....
//!  events               ▲ warning 80   ▲ 90       ▲ below 90     ▲ below 80
//!                                            (two percent lower: no flapping)
//! ```

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use lamina_bdev::{BLOCK_SIZE, SpaceUsage};

use crate::events::{self, Severity};

/// Most thresholds of a store.
pub const THRESHOLDS_MAX: usize = 8;
/// How far, in percent of the usable space, use must fall below a threshold to end its warning.
const HYSTERESIS: u8 = 2;
/// With less than this left (or 1 % of a small store), the store is called full: the largest piece
/// of a write no longer fits.
const FULL_BLOCKS: u64 = 512;

/// Percentages of the usable space at which somebody is to be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Thresholds([u8; THRESHOLDS_MAX]);

impl Default for Thresholds {
    fn default() -> Thresholds {
        Thresholds([80, 90, 95, 100, 0, 0, 0, 0])
    }
}

impl Thresholds {
    /// Checks and takes `percents`; none at all is lawful.
    ///
    /// # Errors
    /// A sentence, if there are too many or one is not in 1 to 100.
    pub fn new(percents: &[u32]) -> Result<Thresholds, String> {
        let mut sorted = percents.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        if let Some(bad) = sorted.iter().find(|percent| !(1..=100).contains(*percent)) {
            return Err(format!("a threshold is 1 to 100 percent, not {bad}"));
        }
        if sorted.len() > THRESHOLDS_MAX {
            return Err(format!("at most {THRESHOLDS_MAX} thresholds can be set"));
        }
        let mut bytes = [0; THRESHOLDS_MAX];
        for (byte, percent) in bytes.iter_mut().zip(sorted) {
            *byte = percent as u8;
        }
        Ok(Thresholds(bytes))
    }

    /// The percentages, ascending.
    pub fn percents(&self) -> Vec<u32> {
        self.0.iter().filter(|percent| **percent > 0).map(|percent| u32::from(*percent)).collect()
    }

    /// The threshold that holds at `percent` if `raised` held before; 0 for none.
    fn holding(&self, percent: u8, raised: u8) -> u8 {
        let holds = |at: u8| {
            let end = if at <= raised { at.saturating_sub(HYSTERESIS) } else { at };
            at > 0 && percent >= end
        };
        self.0.iter().copied().filter(|at| holds(*at)).max().unwrap_or(0)
    }
}

/// Percent of the usable space that is used: 100 exactly when the store is full.
pub fn used_percent(usage: SpaceUsage) -> u8 {
    let left = usage.usable_blocks.saturating_sub(usage.used_blocks);
    if usage.usable_blocks == 0 {
        return 0;
    }
    if left < FULL_BLOCKS.min(usage.usable_blocks.div_ceil(100)) {
        return 100;
    }
    let percent = u128::from(usage.used_blocks) * 100 / u128::from(usage.usable_blocks);
    (percent as u8).min(99)
}

/// The watch over one shard: control sets thresholds, its reactor looks.
#[derive(Debug)]
pub struct SpaceWatch {
    store: String,
    /// For the text, if the store has several.
    shard: Option<u32>,
    thresholds: AtomicU64,
    raised: AtomicU8,
}

impl SpaceWatch {
    /// A watch that has not looked yet.
    pub fn new(store: String, shard: Option<u32>, thresholds: Thresholds) -> SpaceWatch {
        let watch =
            SpaceWatch { store, shard, thresholds: AtomicU64::new(0), raised: AtomicU8::new(0) };
        watch.set(thresholds);
        watch
    }

    /// Name of its store.
    pub fn store(&self) -> &str {
        &self.store
    }

    /// New thresholds, from the next look on.
    pub fn set(&self, thresholds: Thresholds) {
        self.thresholds.store(u64::from_le_bytes(thresholds.0), Ordering::Release);
    }

    /// The threshold whose warning holds; `None`: there is room.
    pub fn raised(&self) -> Option<u32> {
        let raised = self.raised.load(Ordering::Acquire);
        (raised > 0).then_some(u32::from(raised))
    }

    /// Tells if a threshold has been crossed. For the reactor alone, and cheap.
    pub fn look(&self, usage: SpaceUsage) {
        let thresholds = Thresholds(self.thresholds.load(Ordering::Acquire).to_le_bytes());
        let raised = self.raised.load(Ordering::Relaxed);
        let percent = used_percent(usage);
        let holding = thresholds.holding(percent, raised);
        if holding == raised {
            return;
        }
        self.raised.store(holding, Ordering::Release);
        let (severity, text) = crossing(usage, percent, raised, holding);
        let text = match self.shard {
            Some(shard) => format!("shard {shard}: {text}"),
            None => text,
        };
        events::push(severity, &self.store, text);
    }
}

/// What to say of a crossing from threshold `before` to `now`.
fn crossing(usage: SpaceUsage, percent: u8, before: u8, now: u8) -> (Severity, String) {
    let left = usage.usable_blocks.saturating_sub(usage.used_blocks) * BLOCK_SIZE as u64;
    let mib = left >> 20;
    if now < before && percent >= before.saturating_sub(HYSTERESIS) {
        let text = format!("there is no warning at {before} % any more: {percent} % are used");
        (Severity::Info, text)
    } else if now < before {
        let text = format!(
            "{percent} % of the usable space is used, {mib} MiB are left: below the warning at {before} %"
        );
        (Severity::Info, text)
    } else if percent == 100 {
        let text = "the store is full: writes that need more space fail, earlier data is intact; \
                    discard, delete snapshots or disks";
        (Severity::Error, text.to_string())
    } else {
        let text = format!(
            "{percent} % of the usable space is used (warning at {now} %), {mib} MiB are left: \
             discard, delete snapshots or disks"
        );
        (Severity::Warning, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(used: u64) -> SpaceUsage {
        SpaceUsage { used_blocks: used, usable_blocks: 10_000 }
    }

    #[test]
    fn percentages_say_full_only_when_full() {
        let percents = [0, 99, 100, 7999, 8000, 9899, 9900, 9901, 10_000, 10_050];
        let seen = percents.map(|used| used_percent(usage(used)));
        assert_eq!(seen, [0, 0, 1, 79, 80, 98, 99, 100, 100, 100]);
        let huge = SpaceUsage { used_blocks: u64::MAX - 512, usable_blocks: u64::MAX };
        assert_eq!(used_percent(huge), 99);
        assert_eq!(used_percent(SpaceUsage { used_blocks: 0, usable_blocks: 0 }), 0);
    }

    #[test]
    fn a_warning_ends_two_percent_below_its_threshold() {
        let thresholds = Thresholds::default();
        let mut raised = 0;
        let mut seen = Vec::new();
        for percent in [50, 79, 80, 79, 78, 77, 80, 96, 94, 93, 92, 100, 98, 97, 10] {
            raised = thresholds.holding(percent, raised);
            seen.push(raised);
        }
        assert_eq!(seen, [0, 0, 80, 80, 80, 0, 80, 95, 95, 95, 90, 100, 100, 95, 0]);
    }

    #[test]
    fn thresholds_are_checked() {
        assert_eq!(Thresholds::new(&[95, 50, 50]).unwrap().percents(), [50, 95]);
        assert_eq!(Thresholds::new(&[]).unwrap().percents(), [0; 0]);
        for bad in [&[0][..], &[101], &[1, 2, 3, 4, 5, 6, 7, 8, 9]] {
            assert!(Thresholds::new(bad).is_err(), "{bad:?}");
        }
        let none = Thresholds::new(&[]).unwrap();
        assert_eq!(none.holding(100, 95), 0);
    }

    #[test]
    fn a_look_raises_and_ends_the_warning() {
        let watch = SpaceWatch::new("watch-test".into(), None, Thresholds::default());
        assert_eq!(watch.raised(), None);
        watch.look(usage(9_200));
        assert_eq!(watch.raised(), Some(90));
        watch.set(Thresholds::new(&[50]).unwrap());
        watch.look(usage(9_200));
        assert_eq!(watch.raised(), Some(50));
        watch.look(usage(4_000));
        assert_eq!(watch.raised(), None);
    }
}

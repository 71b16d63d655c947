//! How long rings are left alone after a batch that emptied them.
//!
//! A guest that is slower than the reactor, looked at again at once, is served in ones and twos, from
//! lines that both cores pull at. Left alone for a while it is served in batches; left alone for too
//! long it waits. How long is best differs from machine to machine by a factor of four, and from one
//! hour to the next with what a line costs on its way between two cores. So it is tried:
//!
//! ```text
//!  level 0 ── 1 ── 2 ── 3      8, 16, 32, 64 ... turns: twice as long each
//!
//!  50 ms at a level │ 6 x ( 200 us at it, 200 us at its neighbour ) │ 50 ms at the better one │ ...
//!                                                  the neighbour above and the one below in turns
//! ```
//!
//! A longer rest has to win clearly, a shorter one only not to lose: what brings nothing costs latency.

/// Turns of rest at level 0: half as many as the batch had requests, at most so many.
const TURNS_MAX: usize = 16;
/// The longest rest is level 0's times two to this power.
const LEVEL_MAX: usize = 3;
/// Time at one level that counts as one figure.
const WINDOW_NS: u64 = 200_000;
/// Requests in a window below which there is nothing to be gained.
const BUSY: u64 = 64;
/// Pairs of windows in a trial.
const PAIRS: usize = 6;
/// Pairs that a longer rest has to win, by a thirty-second, to be kept.
const WINS_LONGER: usize = 5;
/// Pairs that a shorter rest must not lose by as much, to be kept.
const WINS_SHORTER: usize = 4;
/// From one trial to the next: after one that changed nothing, and after one that did.
const PAUSE_NS: u64 = 50_000_000;
const PAUSE_CHANGED_NS: u64 = 5_000_000;

/// Finds the best rest while it is used.
#[derive(Debug, Default)]
pub struct Rest {
    /// In force outside trials.
    level: usize,
    /// When the window began and what came in it.
    since: u64,
    requests: u64,
    /// When the next trial begins.
    next: u64,
    /// The next trial goes up.
    upwards: bool,
    trial: Option<Trial>,
}

/// A neighbour is compared with the level in force.
#[derive(Debug)]
struct Trial {
    other: usize,
    /// Windows so far: even ones at the level in force, odd ones at the other.
    windows: usize,
    /// Requests of the last even one.
    before: u64,
    wins: usize,
}

impl Rest {
    /// Requests came in a look at the rings. Returns for how many turns to leave them alone if that
    /// `emptied` them.
    pub fn after(&mut self, now_ns: u64, requests: usize, emptied: bool) -> usize {
        let length = now_ns.saturating_sub(self.since);
        if length >= WINDOW_NS {
            self.window_over(now_ns, length);
        }
        self.requests += requests as u64;
        match emptied && requests > 1 {
            true => (requests << self.at() >> 1).min(TURNS_MAX << self.at()),
            false => 0,
        }
    }

    /// Several queues have requests at once: what one gains from a long rest, another waits.
    pub fn shared(&mut self, now_ns: u64) {
        (self.level, self.trial) = (0, None);
        self.next = now_ns + PAUSE_NS;
    }

    /// The level used now.
    fn at(&self) -> usize {
        match &self.trial {
            Some(trial) if trial.windows % 2 == 1 => trial.other,
            _ => self.level,
        }
    }

    fn window_over(&mut self, now: u64, length: u64) {
        // One that something else has stretched says nothing of the rest.
        let requests = if length < 2 * WINDOW_NS { self.requests } else { 0 };
        (self.since, self.requests) = (now, 0);
        if length >= PAUSE_NS {
            *self =
                Rest { since: now, next: now + PAUSE_CHANGED_NS, upwards: true, ..Rest::default() };
        } else if let Some(trial) = &mut self.trial {
            trial.windows += 1;
            if trial.windows % 2 == 1 {
                trial.before = requests;
            } else {
                let margin = trial.before / 32;
                trial.wins += usize::from(match trial.other > self.level {
                    true => requests > trial.before + margin,
                    false => requests + margin > trial.before,
                });
                if trial.windows == 2 * PAIRS {
                    self.decide(now);
                }
            }
        } else if requests >= BUSY && now >= self.next {
            let other = match self.upwards {
                true => (self.level + 1).min(LEVEL_MAX),
                false => self.level.saturating_sub(1),
            };
            if other == self.level {
                self.upwards = !self.upwards;
            } else {
                self.trial = Some(Trial { other, windows: 0, before: 0, wins: 0 });
            }
        }
    }

    fn decide(&mut self, now: u64) {
        let Trial { other, wins, .. } = self.trial.take().expect("the caller has it");
        let needed = if other > self.level { WINS_LONGER } else { WINS_SHORTER };
        if wins >= needed {
            self.level = other;
            self.next = now + PAUSE_CHANGED_NS;
        } else {
            self.upwards = !self.upwards;
            self.next = now + PAUSE_NS;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers below 2^32, always the same ones.
    struct Noise(u64);

    impl Noise {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            self.0 >> 32
        }
    }

    /// Lets guests ask for as many requests in 10 us as `rate` says for the level in force, for so
    /// many ms. Returns the share of the time at each level.
    fn drive(rest: &mut Rest, from: u64, ms: u64, mut rate: impl FnMut(usize) -> u64) -> Vec<f64> {
        const STEP: u64 = 10_000;
        let steps = ms * 1_000_000 / STEP;
        let mut at = vec![0; LEVEL_MAX + 1];
        for step in 0..steps {
            at[rest.at()] += 1;
            rest.after(from + step * STEP, rate(rest.at()) as usize, true);
        }
        at.iter().map(|&n| f64::from(n) / steps as f64).collect()
    }

    #[test]
    fn what_is_better_is_found_and_what_is_not_is_left() {
        let mut noise = Noise(1);
        let mut noisy = move |mean: u64| mean - mean / 32 + noise.next() % (mean / 16);
        let mut rest = Rest::default();
        let second = 1_000_000_000;
        // Longer ones are better: all the way up.
        let at = drive(&mut rest, second, 1000, |level| noisy(400 + 40 * level as u64));
        assert!(at[3] > 0.9, "{at:?}");
        // The same rests are worse from here on: back again.
        let at = drive(&mut rest, 2 * second, 2000, |level| noisy(700 - 40 * level as u64));
        assert!(at[0] > 0.85, "{at:?}");
        // No difference: the shortest.
        let at = drive(&mut rest, 4 * second, 2000, |_| noisy(500));
        assert!(at[0] > 0.9, "{at:?}");
        // The best is in between.
        let at = drive(&mut rest, 6 * second, 2000, |level| noisy([400, 450, 500, 420][level]));
        assert!(at[2] > 0.85, "{at:?}");
        // Somebody else takes the core now and then.
        let mut steals = Noise(2);
        let stolen = |level: usize| match steals.next() % 100 < 5 {
            true => 0,
            false => noisy(400 + 40 * level as u64),
        };
        let at = drive(&mut rest, 8 * second, 2000, stolen);
        assert!(at[3] > 0.8, "{at:?}");
    }

    #[test]
    fn queues_that_share_a_shard_never_wait_long_for_each_other() {
        let mut rest = Rest::default();
        let rate = |level: usize| 400 + 40 * level as u64;
        let at = drive(&mut rest, 1_000_000_000, 500, rate);
        assert!(at[3] > 0.8, "{at:?}");
        rest.shared(1_500_000_000);
        let at = drive(&mut rest, 1_500_000_000, 49, rate);
        assert_eq!(at[0], 1.0);
        let at = drive(&mut rest, 1_549_000_000, 500, rate);
        assert!(at[3] > 0.8, "alone again: {at:?}");
    }

    #[test]
    fn a_guest_with_little_to_do_is_left_alone_shortly() {
        let mut rest = Rest { level: 3, ..Rest::default() };
        let begun = 1_000_000_000;
        // One request at a time: no rest, whatever the level.
        assert_eq!(rest.after(begun, 1, true), 0);
        // After a pause the level is 0, and a few requests now and then keep it there.
        let at = drive(&mut rest, begun + 2 * PAUSE_NS, 500, |level| 2 + level as u64);
        assert_eq!(at[0], 1.0);
        assert_eq!(rest.after(begun + 2_000_000_000, 64, true), 16);
        assert_eq!(rest.after(begun + 2_000_000_001, 8, true), 4);
        assert_eq!(rest.after(begun + 2_000_000_002, 64, false), 0);
    }
}

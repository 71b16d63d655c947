//! How long rings are left alone after a batch that emptied them.
//!
//! A guest that is slower than the reactor, looked at again at once, is served in ones and twos,
//! from lines that both cores pull at. Left alone for a while it is served in batches; left alone
//! for too long it waits. How long is best differs from machine to machine by a factor of four, and
//! from one hour to the next with what a line costs on its way between two cores. So it is tried:
//!
//! ```text
//!  level 0 ── 1 ── 2      16, 32, 64 turns at most: twice as long each
//!
//!  50 ms at a level │ 6 x ( 200 us at it, 200 us at its neighbour ) │ 50 ms at the better one
//!                                                  the neighbour above and the one below in turns
//! ```
//!
//! A longer rest has to win clearly, a shorter one only not to lose: what brings nothing costs
//! latency.

/// Turns of rest at level 0: half as many as the batch had requests, at most so many.
const TURNS_MAX: usize = 16;
/// The longest rest is level 0's times two to this power.
const LEVEL_MAX: usize = 2;
/// A rest ends after so long, however few turns that were: turns may get slower than they were when
/// a level was found to be good.
const REST_MAX_NS: u64 = 10_000;
/// Time at one level that counts as one figure.
const WINDOW_NS: u64 = 200_000;
/// Requests in a window below which a longer rest is not worth a trial.
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
    /// Turns left of the rest that is under way, and when it ends at the latest.
    turns: usize,
    until: u64,
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
    /// True if the rings are to be left alone in this turn. If the engine is `busy` with something
    /// that goes on turn by turn, rests are short: turns without requests are its time to hurry.
    pub fn goes_on(&mut self, now_ns: u64, busy: bool) -> bool {
        if busy {
            self.turns = self.turns.min(TURNS_MAX);
        }
        if self.turns == 0 || now_ns >= self.until {
            self.turns = 0;
            return false;
        }
        self.turns -= 1;
        true
    }

    /// So many requests came in a look at the rings, and if that has (all but) `emptied` them, they
    /// are left alone for a while.
    pub fn after(&mut self, now_ns: u64, requests: usize, emptied: bool) {
        self.requests += requests as u64;
        let length = now_ns.saturating_sub(self.since);
        if length >= WINDOW_NS {
            self.window_over(now_ns, length);
        }
        let level = self.at();
        self.turns = match emptied && requests > 1 {
            true => (requests << level >> 1).min(TURNS_MAX << level),
            false => 0,
        };
        self.until = now_ns + REST_MAX_NS;
    }

    /// No rest now.
    pub fn end(&mut self) {
        self.turns = 0;
    }

    /// Several queues have requests at once: what one gains from a long rest, another waits.
    pub fn shared(&mut self, now_ns: u64) {
        *self = Rest { since: now_ns, next: now_ns + PAUSE_NS, upwards: true, ..Rest::default() };
    }

    /// The level used now.
    fn at(&self) -> usize {
        match &self.trial {
            Some(trial) if trial.windows % 2 == 1 => trial.other,
            _ => self.level,
        }
    }

    fn window_over(&mut self, now: u64, length: u64) {
        let requests = self.requests * WINDOW_NS / length;
        (self.since, self.requests) = (now, 0);
        if length >= 2 * WINDOW_NS {
            // Something else has taken the time: that says nothing of the rest.
            self.trial = None;
            self.next = self.next.max(now + PAUSE_CHANGED_NS);
            if length >= PAUSE_NS {
                (self.level, self.upwards) = (0, true);
            }
        } else if let Some(trial) = &mut self.trial {
            trial.windows += 1;
            if trial.windows % 2 == 1 {
                trial.before = requests;
            } else {
                let margin = trial.before / 32;
                trial.wins += usize::from(match trial.other > self.level {
                    true => requests > trial.before + margin,
                    false => requests + margin >= trial.before,
                });
                if trial.windows == 2 * PAIRS {
                    self.decide(now);
                }
            }
        } else if now >= self.next {
            self.begin_trial(requests);
        }
    }

    /// Of a level above or, if there is little to do, the one below.
    fn begin_trial(&mut self, requests: u64) {
        let other = match self.upwards && requests >= BUSY {
            true => (self.level + 1).min(LEVEL_MAX),
            false => self.level.saturating_sub(1),
        };
        if other == self.level {
            self.upwards = self.level == 0;
        } else {
            self.trial = Some(Trial { other, windows: 0, before: 0, wins: 0 });
        }
    }

    fn decide(&mut self, now: u64) {
        let Trial { other, wins, .. } = self.trial.take().expect("the caller has it");
        let needed = if other > self.level { WINS_LONGER } else { WINS_SHORTER };
        if wins >= needed {
            self.upwards = other > self.level;
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

    const SECOND: u64 = 1_000_000_000;

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
        let mut at = [0; LEVEL_MAX + 1];
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
        // Longer ones are better: all the way up.
        let at = drive(&mut rest, SECOND, 1000, |level| noisy(400 + 40 * level as u64));
        assert!(at[LEVEL_MAX] > 0.9, "{at:?}");
        // No difference: the shortest.
        let at = drive(&mut rest, 2 * SECOND, 2000, |_| noisy(500));
        assert!(at[0] > 0.8, "{at:?}");
        // The best is in between.
        let at = drive(&mut rest, 4 * SECOND, 2000, |level| noisy([400, 500, 420][level]));
        assert!(at[1] > 0.85, "{at:?}");
        // Somebody else takes the core now and then: it takes longer.
        let mut steals = Noise(2);
        let stolen = |level: usize| match steals.next() % 100 < 5 {
            true => 0,
            false => noisy(400 + 40 * level as u64),
        };
        let at = drive(&mut rest, 6 * SECOND, 2000, stolen);
        assert!(at[0] < 0.1 && at[LEVEL_MAX] > 0.3, "{at:?}");
        // The same rests are worse from here on: back again.
        let at = drive(&mut rest, 8 * SECOND, 2000, |level| noisy(700 - 40 * level as u64));
        assert!(at[0] > 0.85, "{at:?}");
    }

    #[test]
    fn queues_that_share_a_shard_never_wait_long_for_each_other() {
        let mut rest = Rest::default();
        let rate = |level: usize| 400 + 40 * level as u64;
        let at = drive(&mut rest, SECOND, 500, rate);
        assert!(at[LEVEL_MAX] > 0.8, "{at:?}");
        let shared = 2 * SECOND;
        rest.shared(shared);
        let at = drive(&mut rest, shared, 49, rate);
        assert_eq!(at[0], 1.0);
        let at = drive(&mut rest, shared + 49_000_000, 500, rate);
        assert!(at[LEVEL_MAX] > 0.8, "alone again: {at:?}");
    }

    #[test]
    fn a_guest_with_little_to_do_is_left_alone_shortly() {
        let mut rest = Rest { level: LEVEL_MAX, since: SECOND, ..Rest::default() };
        let mut rests = |now, requests, emptied, busy| {
            rest.after(now, requests, emptied);
            (0..200).take_while(|_| rest.goes_on(now, busy)).count()
        };
        assert_eq!(rests(SECOND, 1, true, false), 0, "one at a time, whatever the level");
        assert_eq!(rests(SECOND, 8, true, false), 16);
        assert_eq!(rests(SECOND, 64, true, false), 64);
        assert_eq!(rests(SECOND, 64, true, true), 16, "a consistency point has turns to come");
        assert_eq!(rests(SECOND, 64, false, false), 0);
        // Slow turns: the time ends it.
        rest.after(SECOND, 64, true);
        let turns = (1..200).take_while(|turn| rest.goes_on(SECOND + turn * 1500, false)).count();
        assert_eq!(turns, 6);
        // A few requests now and then: down again, and no way up.
        let at = drive(&mut rest, SECOND, 1000, |_| 2);
        assert!(at[0] > 0.8 && rest.level == 0, "{at:?}");
        let at = drive(&mut rest, 2 * SECOND, 500, |level| 2 + level as u64);
        assert_eq!(at[0], 1.0);
    }

    /// A guest with 64 requests in flight, of which it makes one in `guest` ns and each look at the
    /// ring costs it another `look`; a reactor that takes 100 ns for each and `turn` for a turn.
    /// Requests in so many ms.
    fn closed_loop(rest: &mut Rest, ms: u64, guest: u64, look: u64, turn: u64) -> u64 {
        let (mut now, end) = (SECOND, SECOND + ms * 1_000_000);
        // What the guest has in hand, in the ring, and when it has made the next one.
        let (mut hand, mut ring, mut made) = (64, 0, now + guest);
        let mut done = 0;
        while now < end {
            now += turn;
            let looks = !rest.goes_on(now, false);
            made += if looks { look } else { 0 };
            while made <= now && hand > 0 {
                (hand, ring, made) = (hand - 1, ring + 1, made + guest);
            }
            if looks {
                let taken = ring.min(32);
                ring -= taken;
                rest.after(now, taken as usize, ring < taken);
                now += taken * 100;
                made = if hand == 0 { now + guest } else { made };
                (hand, done) = (hand + taken, done + taken);
            }
        }
        done
    }

    #[test]
    fn a_guest_is_served_as_well_as_by_the_best_fixed_rest() {
        let fixed = |level, guest, look, turn| {
            let mut rest = Rest { level, next: u64::MAX, since: SECOND, ..Rest::default() };
            closed_loop(&mut rest, 300, guest, look, turn)
        };
        for (guest, look, turn) in
            [(150, 0, 50), (80, 40, 50), (150, 45, 50), (150, 0, 1500), (80, 0, 50)]
        {
            let all: Vec<u64> = (0..=LEVEL_MAX).map(|at| fixed(at, guest, look, turn)).collect();
            let best = *all.iter().max().unwrap();
            assert!(best > 100_000, "the model gets on: {all:?}");
            for level in [0, LEVEL_MAX] {
                let mut rest = Rest { level, since: SECOND, upwards: true, ..Rest::default() };
                let found = closed_loop(&mut rest, 300, guest, look, turn);
                assert!(found * 100 >= best * 90, "{guest} {look} {turn}: {found} of {all:?}");
            }
        }
    }
}

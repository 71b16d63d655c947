//! When a reactor stops polling: after a time in which it found nothing to do.
//!
//! ```text
//!  work ├──── polls for a window ────┤──── sleeps ────┤ work      a gap
//!
//!  a short gap that it slept in: the window doubles, up to 16 times what was set
//!  a long gap, slept in or not:  the window halves, down to what was set
//! ```
//!
//! Waking a thread takes longer than many a device takes to answer. Who is woken again at once has
//! not slept, but made everybody wait; so a reactor whose gaps are short polls through them, and
//! one with a request now and then sleeps as soon as it was told to.

/// How a sleep ended: whether guests whose kicks ended it had anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Served(pub bool);

/// A gap this many times as long as the set time is long: sleeping is worth it.
const LONG: u64 = 9;
/// The longest window, in set times.
const GROWN_MAX: u64 = 16;

/// The policy and its memory.
#[derive(Clone, Copy, Debug)]
pub struct IdlePolicy {
    /// Nanoseconds of fruitless polling before sleep, as set; `None`: never sleep.
    spin_ns: Option<u64>,
    /// The same, as gaps have turned out.
    window_ns: u64,
    /// When the gap began, unless the last turn found work.
    gap_since_ns: Option<u64>,
    /// When the polling began that is to end in a sleep.
    poll_since_ns: Option<u64>,
    /// It has slept in this gap.
    slept: bool,
}

impl IdlePolicy {
    /// Sleeps after `spin_us` microseconds without work, never with `busy_poll`.
    pub fn new(spin_us: u32, busy_poll: bool) -> IdlePolicy {
        let spin_ns = u64::from(spin_us) * 1000;
        IdlePolicy {
            spin_ns: (!busy_poll).then_some(spin_ns),
            window_ns: spin_ns,
            gap_since_ns: None,
            poll_since_ns: None,
            slept: false,
        }
    }

    /// A turn that ended at `now_ns` found work.
    #[inline]
    pub fn worked(&mut self, now_ns: u64) {
        if let Some(since) = self.gap_since_ns.take() {
            self.end_gap(now_ns.saturating_sub(since));
        }
    }

    fn end_gap(&mut self, gap_ns: u64) {
        self.poll_since_ns = None;
        let slept = std::mem::take(&mut self.slept);
        let Some(spin) = self.spin_ns else { return };
        if gap_ns >= spin * LONG {
            self.window_ns = (self.window_ns / 2).max(spin);
        } else if slept {
            self.window_ns = (self.window_ns * 2).min(spin * GROWN_MAX);
        }
    }

    /// A turn that ended at `now_ns` found nothing: is it time to sleep?
    pub fn wants_sleep(&mut self, now_ns: u64) -> bool {
        self.gap_since_ns.get_or_insert(now_ns);
        let since = *self.poll_since_ns.get_or_insert(now_ns);
        self.spin_ns.is_some() && now_ns.saturating_sub(since) >= self.window_ns
    }

    /// It slept until `now_ns`, or could not after all (`None`); whatever the reason, it polls for
    /// a window again. What a guest's kick has brought was work, and the end of the gap; what else
    /// woke it has not been looked at yet.
    pub fn slept(&mut self, slept: Option<Served>, now_ns: u64) {
        self.poll_since_ns = None;
        self.slept |= slept.is_some();
        if slept == Some(Served(true)) {
            self.worked(now_ns);
        }
    }

    /// True from the first turn without work to the next with some.
    pub fn in_gap(&self) -> bool {
        self.gap_since_ns.is_some()
    }
}

/// Milliseconds until `deadline_ns`, rounded up, as epoll wants them; -1 without a deadline.
pub fn timeout_ms(deadline_ns: Option<u64>, now_ns: u64) -> i32 {
    match deadline_ns {
        None => -1,
        Some(deadline) => {
            let ms = deadline.saturating_sub(now_ns).div_ceil(1_000_000);
            i32::try_from(ms).unwrap_or(i32::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long it polls before a sleep, if its last gap has just ended, microseconds.
    fn window(idle: &mut IdlePolicy) -> u64 {
        let mut copy = *idle;
        (0..).find(|&us| copy.wants_sleep(us * 1000)).expect("it sleeps some time")
    }

    /// A gap of so many microseconds, slept in if its window is shorter.
    fn gap(idle: &mut IdlePolicy, us: u64) {
        for at in (0..us).chain([us - 1]) {
            if idle.wants_sleep(at * 1000) {
                idle.slept(Some(Served(false)), at * 1000);
                break;
            }
        }
        idle.worked(us * 1000);
    }

    #[test]
    fn sleep_comes_after_the_set_time_without_work() {
        let mut idle = IdlePolicy::new(50, false);
        assert!(!idle.wants_sleep(1_000));
        assert!(!idle.wants_sleep(50_999));
        assert!(idle.wants_sleep(51_000));
        idle.worked(52_000);
        assert!(!idle.wants_sleep(60_000));
        assert!(idle.wants_sleep(110_000));
        idle.slept(None, 110_000);
        assert!(!idle.wants_sleep(120_000) && idle.wants_sleep(170_000));
        assert!(IdlePolicy::new(0, false).wants_sleep(5));
    }

    #[test]
    fn short_gaps_are_polled_through_after_a_while_and_long_ones_are_not() {
        let mut idle = IdlePolicy::new(50, false);
        for grown in [100, 200, 400] {
            gap(&mut idle, 300);
            assert_eq!(window(&mut idle), grown);
        }
        for _ in 0..3 {
            gap(&mut idle, 300);
            assert_eq!(window(&mut idle), 400, "it no longer sleeps in these");
        }
        gap(&mut idle, 449);
        assert_eq!(window(&mut idle), 800);
        // Long ones, though it polls through the first of them.
        for shrunk in [400, 200, 100, 50, 50] {
            gap(&mut idle, 450);
            assert_eq!(window(&mut idle), shrunk);
        }
    }

    #[test]
    fn a_sleep_that_ends_for_nothing_is_none_of_the_gaps_ends() {
        let mut idle = IdlePolicy::new(50, false);
        for at in [100, 200, 300, 400] {
            assert!(!idle.wants_sleep(at * 1000) && idle.wants_sleep((at + 50) * 1000));
            idle.slept(Some(Served(false)), (at + 50) * 1000);
        }
        idle.worked(5_000_000);
        assert_eq!(window(&mut idle), 50);
        let mut at_once = IdlePolicy::new(0, false);
        gap(&mut at_once, 1);
        assert!(at_once.wants_sleep(1), "who is told not to poll never does");
    }

    /// A guest that asks again soon after it was answered, by a kick: the turn after the sleep
    /// finds nothing left to do, and the next gap begins there.
    #[test]
    fn a_kick_that_brought_something_is_the_end_of_a_gap() {
        let mut idle = IdlePolicy::new(50, false);
        let mut now = 0;
        for grown in [100, 200, 400] {
            assert!(!idle.wants_sleep(now));
            now += 300_000;
            assert!(idle.wants_sleep(now) && idle.in_gap());
            idle.slept(Some(Served(true)), now);
            assert!(!idle.in_gap());
            assert_eq!(window(&mut idle), grown, "a short gap that it slept in");
        }
        // What else woke it says nothing, and a gap that was none yet stays one.
        assert!(!idle.wants_sleep(now) && idle.wants_sleep(now + 400_000));
        idle.slept(Some(Served(false)), now + 400_000);
        assert!(idle.in_gap());
        idle.slept(None, now + 400_000);
        assert!(idle.in_gap());
    }

    #[test]
    fn busy_polling_never_sleeps() {
        let mut idle = IdlePolicy::new(0, true);
        assert!(!idle.wants_sleep(0) && !idle.wants_sleep(u64::MAX));
    }

    #[test]
    fn timeouts_never_end_early_and_never_overflow() {
        assert_eq!(timeout_ms(None, 5), -1);
        assert_eq!(timeout_ms(Some(5), 5), 0);
        assert_eq!(timeout_ms(Some(4), 5), 0);
        assert_eq!(timeout_ms(Some(6), 5), 1);
        assert_eq!(timeout_ms(Some(2_000_005), 5), 2);
        assert_eq!(timeout_ms(Some(u64::MAX), 0), i32::MAX);
    }
}

//! When a reactor stops polling: after a time in which it found nothing to do.
//!
//! ```text
//!   work ──► polls for a window ──► sleeps ──► woken soon: the window doubles, up to 16 times
//!                                        └──► woken late: it halves, down to what was set
//! ```
//!
//! Waking a thread takes longer than many a device takes to answer. Who is woken again at once has
//! not slept, but made everybody wait; so a reactor whose sleeps are short polls longer, and one
//! with a request now and then sleeps as soon as it was told to.

/// A sleep this many times as long as the set time was worth it.
const SHORT: u64 = 4;
/// The longest window, in set times.
const GROWN_MAX: u64 = 16;

/// The policy and its memory.
#[derive(Clone, Copy, Debug)]
pub struct IdlePolicy {
    /// Nanoseconds of fruitless polling before sleep, as set; `None`: never sleep.
    spin_ns: Option<u64>,
    /// The same, as sleeps have turned out.
    window_ns: u64,
    idle_since_ns: Option<u64>,
}

impl IdlePolicy {
    /// Sleeps after `spin_us` microseconds without work, never with `busy_poll`.
    pub fn new(spin_us: u32, busy_poll: bool) -> IdlePolicy {
        let spin_ns = u64::from(spin_us) * 1000;
        let set = (!busy_poll).then_some(spin_ns);
        IdlePolicy { spin_ns: set, window_ns: spin_ns, idle_since_ns: None }
    }

    /// A turn found work.
    pub fn worked(&mut self) {
        self.idle_since_ns = None;
    }

    /// A turn that ended at `now_ns` found nothing: is it time to sleep?
    pub fn wants_sleep(&mut self, now_ns: u64) -> bool {
        let since = *self.idle_since_ns.get_or_insert(now_ns);
        self.spin_ns.is_some() && now_ns.saturating_sub(since) >= self.window_ns
    }

    /// A sleep has ended after so many nanoseconds.
    pub fn slept(&mut self, slept_ns: u64) {
        let Some(spin) = self.spin_ns else { return };
        self.window_ns = if slept_ns < spin * SHORT {
            (self.window_ns * 2).min(spin * GROWN_MAX)
        } else {
            (self.window_ns / 2).max(spin)
        };
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

    #[test]
    fn sleep_comes_after_the_set_time_without_work() {
        let mut idle = IdlePolicy::new(50, false);
        assert!(!idle.wants_sleep(1_000));
        assert!(!idle.wants_sleep(50_999));
        assert!(idle.wants_sleep(51_000));
        idle.worked();
        assert!(!idle.wants_sleep(60_000));
        assert!(idle.wants_sleep(110_000));
        assert!(IdlePolicy::new(0, false).wants_sleep(5));
    }

    #[test]
    fn short_sleeps_lengthen_the_window_and_long_ones_take_it_back() {
        let mut idle = IdlePolicy::new(50, false);
        let window = |idle: &mut IdlePolicy| {
            idle.worked();
            assert!(!idle.wants_sleep(0));
            (0..).step_by(1000).find(|&now| idle.wants_sleep(now))
        };
        assert_eq!(window(&mut idle), Some(50_000));
        for grown in [100_000, 200_000, 400_000, 800_000, 800_000] {
            idle.slept(199_999);
            assert_eq!(window(&mut idle), Some(grown));
        }
        for shrunk in [400_000, 200_000, 100_000, 50_000, 50_000] {
            idle.slept(200_000);
            assert_eq!(window(&mut idle), Some(shrunk));
        }
        let mut at_once = IdlePolicy::new(0, false);
        at_once.slept(0);
        assert!(at_once.wants_sleep(1), "who is told not to poll never does");
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

//! When a reactor stops polling: after a set time in which it found nothing to do.

/// The policy and its memory.
#[derive(Clone, Copy, Debug)]
pub struct IdlePolicy {
    /// Nanoseconds of fruitless polling before sleep; `None`: never sleep.
    spin_ns: Option<u64>,
    idle_since_ns: Option<u64>,
}

impl IdlePolicy {
    /// Sleeps after `spin_us` microseconds without work, never with `busy_poll`.
    pub fn new(spin_us: u32, busy_poll: bool) -> IdlePolicy {
        let spin_ns = (!busy_poll).then_some(u64::from(spin_us) * 1000);
        IdlePolicy { spin_ns, idle_since_ns: None }
    }

    /// A turn found work.
    pub fn worked(&mut self) {
        self.idle_since_ns = None;
    }

    /// A turn that ended at `now_ns` found nothing: is it time to sleep?
    pub fn wants_sleep(&mut self, now_ns: u64) -> bool {
        let since = *self.idle_since_ns.get_or_insert(now_ns);
        self.spin_ns.is_some_and(|spin| now_ns.saturating_sub(since) >= spin)
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

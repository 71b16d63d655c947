//! How often the service thread looks at connections that are not queues yet.
//!
//! Each look interrupts whoever has the core, a reactor as a rule, and what it interrupts is a
//! tenant's I/O: it is the number of looks that other hosts feel, much more than what is done in
//! one. So under a flood they come at fixed intervals, and many connections are served in each. A
//! host that connects pays nothing: looks that end in a queue are given back.

/// Looks that may come one right after the other.
const BURST: u32 = 64;
/// After that, one in this time, nanoseconds.
const INTERVAL_NS: u64 = 8_000_000;
/// Looks given back for a queue: its connection, its ICReq, its Connect, and one for another's.
const A_QUEUE: u32 = 4;

/// The looks there are.
#[derive(Debug)]
pub(super) struct Pace {
    left: u32,
    /// When the next one is added, unless there are as many as can be.
    next_ns: u64,
}

impl Pace {
    /// A full burst.
    pub fn new() -> Pace {
        Pace { left: BURST, next_ns: 0 }
    }

    fn catch_up(&mut self, now_ns: u64) {
        if self.left == BURST {
            self.next_ns = now_ns + INTERVAL_NS;
        }
        if now_ns >= self.next_ns {
            let more = 1 + (now_ns - self.next_ns) / INTERVAL_NS;
            self.left = BURST.min(self.left.saturating_add(more.min(u64::from(BURST)) as u32));
            self.next_ns = now_ns + INTERVAL_NS - (now_ns - self.next_ns) % INTERVAL_NS;
        }
    }

    /// When the next look may be: `None`: now.
    pub fn wait_ns(&mut self, now_ns: u64) -> Option<u64> {
        self.catch_up(now_ns);
        (self.left == 0).then(|| self.next_ns - now_ns)
    }

    /// A look that has found something.
    pub fn looked(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// A look has ended in a queue.
    pub fn give_back(&mut self) {
        self.left = BURST.min(self.left + A_QUEUE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks in a second that always finds something, and queues at every `queue`-th.
    fn looks(pace: &mut Pace, start_ns: u64, queue: u32) -> u32 {
        let (mut now, mut looks) = (start_ns, 0);
        while now < start_ns + 1_000_000_000 {
            match pace.wait_ns(now) {
                Some(wait) => now += wait,
                None => {
                    pace.looked();
                    looks += 1;
                    if queue != 0 && looks % queue == 0 {
                        pace.give_back();
                    }
                    now += 20_000;
                }
            }
        }
        looks
    }

    #[test]
    fn a_flood_is_looked_at_at_intervals_and_hosts_that_connect_at_once() {
        let mut pace = Pace::new();
        let first = looks(&mut pace, 5, 0);
        assert!((186..=192).contains(&first), "a burst, and 125 a second: {first}");
        let second = looks(&mut pace, 1_000_000_005, 0);
        assert!((122..=128).contains(&second), "{second}");
        let hosts = looks(&mut pace, 2_000_000_005, 4);
        assert!(hosts > 40_000, "{hosts}");
        assert_eq!(pace.wait_ns(u64::MAX / 2), None, "a pause fills it up");
    }
}

//! A thread for the key exchanges of hosts that authenticate: an exponentiation in a large group
//! takes tens of milliseconds, and any host may ask for it before it has proved anything.
//!
//! ```text
//!  service thread ─ submit ─► per address: ▭▭▭ ─┐
//!        ▲                                ▭▭▭▭ ─┼─ one of each in turn ─► run
//!        └────────────────── Computed ──────────┴──────────────────────────┘
//! ```
//!
//! One address that asks for much waits for itself: another's work is behind one piece of it at
//! most. Made at the first use, and less urgent than all that polls.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use lamina_nvmf::controller::AuthWork;

use super::message::ServiceMsg;
use crate::reactor::mailbox::Mailbox;

/// Work of one address that may wait.
const WAITING_OF_ADDRESS: usize = 64;
/// Work that may wait in all.
const WAITING: usize = 1024;
/// How much less than others it gets of a core, as in nice(1).
const NICENESS: i32 = 10;

/// Work in the order it is to be done.
struct Lines<W> {
    lines: VecDeque<(IpAddr, VecDeque<W>)>,
    waiting: usize,
}

impl<W> Lines<W> {
    fn new() -> Lines<W> {
        Lines { lines: VecDeque::new(), waiting: 0 }
    }

    /// Gives the work back if there is too much of its address, or in all.
    fn push(&mut self, from: IpAddr, work: W) -> Result<(), W> {
        if self.waiting >= WAITING {
            return Err(work);
        }
        match self.lines.iter_mut().find(|(address, _)| *address == from) {
            Some((_, line)) if line.len() >= WAITING_OF_ADDRESS => return Err(work),
            Some((_, line)) => line.push_back(work),
            None => self.lines.push_back((from, VecDeque::from([work]))),
        }
        self.waiting += 1;
        Ok(())
    }

    fn pop(&mut self) -> Option<W> {
        let (from, mut line) = self.lines.pop_front()?;
        let work = line.pop_front();
        self.waiting -= 1;
        if !line.is_empty() {
            self.lines.push_back((from, line));
        }
        work
    }
}

struct Shared {
    lines: Mutex<(Lines<AuthWork>, bool)>,
    wake: Condvar,
}

impl Shared {
    fn lines(&self) -> MutexGuard<'_, (Lines<AuthWork>, bool)> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread, once there is any work.
pub(super) struct Computing {
    inbox: Arc<Mailbox<ServiceMsg>>,
    shared: Option<Arc<Shared>>,
}

impl Computing {
    /// No thread yet; results go to `inbox`.
    pub fn new(inbox: Arc<Mailbox<ServiceMsg>>) -> Computing {
        Computing { inbox, shared: None }
    }

    /// Has it computed on behalf of a peer.
    ///
    /// # Errors
    /// There is too much of that peer's already, or no thread can be had.
    pub fn submit(&mut self, from: IpAddr, work: AuthWork) -> Result<(), AuthWork> {
        let shared = match &self.shared {
            Some(shared) => shared,
            None => {
                let lines = Mutex::new((Lines::new(), false));
                let shared = Arc::new(Shared { lines, wake: Condvar::new() });
                let (own, inbox) = (shared.clone(), self.inbox.clone());
                let thread = std::thread::Builder::new().name("nvmf-auth".into());
                match thread.spawn(move || run(&own, &inbox)) {
                    Ok(_) => self.shared.insert(shared),
                    Err(_) => return Err(work),
                }
            }
        };
        shared.lines().0.push(from, work)?;
        shared.wake.notify_one();
        Ok(())
    }
}

impl Drop for Computing {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.lines().1 = true;
            shared.wake.notify_one();
        }
    }
}

fn run(shared: &Shared, inbox: &Mailbox<ServiceMsg>) {
    // It works all the same where that is not allowed.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS);
    loop {
        let mut guard = shared.lines();
        let work = loop {
            if guard.1 {
                return;
            }
            match guard.0.pop() {
                Some(work) => break work,
                None => guard = shared.wake.wait(guard).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(guard);
        let mut done = ServiceMsg::Computed(work.run());
        // The service thread empties its inbox all the time.
        while let Err(back) = inbox.try_post(done) {
            done = back;
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    #[test]
    fn an_address_that_asks_for_much_waits_for_itself() {
        let mut lines = Lines::new();
        let taken = (0..1000).filter(|n| lines.push(address(1), *n).is_ok()).count();
        assert_eq!(taken, WAITING_OF_ADDRESS);
        lines.push(address(2), 5000).expect("another's is taken");
        assert_eq!((lines.pop(), lines.pop(), lines.pop()), (Some(0), Some(5000), Some(1)));
        lines.push(address(1), 1000).expect("room again");
        let rest: Vec<i32> = std::iter::from_fn(|| lines.pop()).collect();
        assert_eq!((rest.len(), rest.last()), (WAITING_OF_ADDRESS - 1, Some(&1000)));
        assert_eq!((lines.waiting, lines.lines.len()), (0, 0));
    }

    #[test]
    fn many_addresses_together_are_bounded_too() {
        let mut lines = Lines::new();
        let push = |n: usize| lines.push(address((n % 200) as u8), n).is_ok();
        assert_eq!((0..2000).map(push).filter(|taken| *taken).count(), WAITING);
    }
}

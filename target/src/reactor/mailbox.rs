//! A bounded inbox: control threads put messages in, one reactor takes them out.
//!
//! ```text
//!  control ─► post ─► ArrayQueue ─► take ─► reactor
//!               └──► eventfd ─────► ends its sleep
//! ```
//!
//! The eventfd is signalled after every message, asleep or not: messages are rare, and so no
//! sleeper can be missed.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;

use crate::eventfd::EventFd;

/// How long a poster waits for room before it gives up.
const POST_TIMEOUT: Duration = Duration::from_secs(10);
const POST_RETRY: Duration = Duration::from_micros(100);

/// A bounded inbox of `M`.
pub struct Mailbox<M> {
    queue: ArrayQueue<M>,
    wake: EventFd,
}

impl<M> Mailbox<M> {
    /// An inbox for at most `capacity` messages.
    ///
    /// # Errors
    /// No eventfd.
    pub fn new(capacity: usize) -> std::io::Result<Mailbox<M>> {
        Ok(Mailbox { queue: ArrayQueue::new(capacity), wake: EventFd::new()? })
    }

    /// Puts a message in, from a control thread; waits a while if there is no room.
    ///
    /// # Errors
    /// Gives the message back if there was no room for 10 seconds: the reactor is dead or stuck.
    pub fn post(&self, mut message: M) -> Result<(), M> {
        let end = Instant::now() + POST_TIMEOUT;
        loop {
            match self.queue.push(message) {
                Ok(()) => {
                    self.wake.signal();
                    return Ok(());
                }
                Err(back) if Instant::now() >= end => return Err(back),
                Err(back) => message = back,
            }
            std::thread::sleep(POST_RETRY);
        }
    }

    /// Puts a message in without waiting, from one reactor to another.
    ///
    /// # Errors
    /// Gives the message back if there is no room now.
    pub fn try_post(&self, message: M) -> Result<(), M> {
        self.queue.push(message)?;
        self.wake.signal();
        Ok(())
    }

    /// The oldest message.
    pub fn take(&self) -> Option<M> {
        self.queue.pop()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Signalled by every post.
    pub fn wake_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// The same, for a set that tells as long as it is signalled; see [`Mailbox::drain_wake`].
    pub fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Takes note of the signals so far. Messages are to be taken after this.
    pub fn drain_wake(&self) {
        self.wake.drain();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn messages_of_one_poster_keep_their_order_and_none_is_lost() {
        let mailbox = Arc::new(Mailbox::new(4).unwrap());
        let posters: Vec<_> = (0..3u64)
            .map(|who| {
                let mailbox = mailbox.clone();
                std::thread::spawn(move || {
                    for i in 0..200 {
                        mailbox.post((who, i)).unwrap();
                    }
                })
            })
            .collect();
        let mut next = [0u64; 3];
        let end = Instant::now() + Duration::from_secs(60);
        while next.iter().sum::<u64>() < 600 {
            assert!(Instant::now() < end);
            match mailbox.take() {
                Some((who, i)) => {
                    assert_eq!(i, next[who as usize]);
                    next[who as usize] += 1;
                }
                None => std::thread::yield_now(),
            }
        }
        assert!(mailbox.is_empty() && mailbox.take().is_none());
        posters.into_iter().for_each(|poster| poster.join().unwrap());
    }
}

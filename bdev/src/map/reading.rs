//! How many nodes are read at a time.
//!
//! ```text
//!  most at a time  5 ─┐ ┌ 5, 4, 3, ...      what was most is forgotten one by one, every 1,024
//!                     └─┘    ▲              reads, but for what was seen meanwhile
//!                      now ──┘ wanted: what is missing to it
//! ```

/// How many nodes are being read, so that as many slots are kept free for the next ones: else each
/// would take the place of a page, which a piece then made a page again.
#[derive(Default)]
pub(super) struct Reading {
    now: usize,
    /// The most at a time that is remembered, and that since the count of reads was last a multiple
    /// of [`Reading::SPAN`].
    most: usize,
    lately: usize,
    count: u32,
}

impl Reading {
    /// Reads after which one less is remembered: those that come after a pause must not find what
    /// pieces have taken meanwhile.
    const SPAN: u32 = 1024;

    /// One more is being read.
    pub fn begin(&mut self) {
        self.now += 1;
        self.lately = self.lately.max(self.now);
        self.most = self.most.max(self.now);
        self.count = self.count.wrapping_add(1);
        if self.count.is_multiple_of(Reading::SPAN) {
            self.most = self.lately.max(self.most - 1);
            self.lately = self.now;
        }
    }

    /// One has been read.
    pub fn end(&mut self) {
        assert!(self.now > 0, "more nodes were read than were begun");
        self.now -= 1;
    }

    /// Slots that are to be free for those that are likely to be read soon.
    pub fn wanted(&self) -> usize {
        self.most - self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_at_a_time_is_remembered_for_a_while() {
        let mut reading = Reading::default();
        assert_eq!(reading.wanted(), 0);
        (0..5).for_each(|_| reading.begin());
        (0..3).for_each(|_| reading.end());
        assert_eq!(reading.wanted(), 3);
        (0..2).for_each(|_| reading.end());
        let one = |reading: &mut Reading| {
            reading.begin();
            reading.end();
        };
        let spans = |reading: &mut Reading, count: u32| {
            (0..count * Reading::SPAN).for_each(|_| one(reading));
            reading.wanted()
        };
        assert_eq!(spans(&mut reading, 1), 5, "it was so in this span");
        assert_eq!(spans(&mut reading, 1), 4);
        assert_eq!(spans(&mut reading, 2), 2);
        assert_eq!(spans(&mut reading, 9), 1);
    }

    #[test]
    #[should_panic(expected = "than were begun")]
    fn none_ends_that_has_not_begun() {
        Reading::default().end();
    }
}

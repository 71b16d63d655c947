//! The receive buffer: bytes between `start` and `end` have come in and are not parsed yet.

#[derive(Debug)]
pub(super) struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    pub fn new(capacity: usize) -> Input {
        Input { bytes: vec![0; capacity], start: 0, end: 0 }
    }

    /// More room; what is in it stays.
    pub fn grow(&mut self, capacity: usize) {
        if capacity > self.bytes.len() {
            self.bytes.resize(capacity, 0);
        }
    }

    pub fn pending(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Where more bytes go. What is pending moves to the front when it is in the way.
    pub fn room(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.bytes.len() - self.end < self.bytes.len() / 2 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }

    /// So many bytes came into [`Input::room`].
    pub fn filled(&mut self, count: usize) {
        assert!(count <= self.bytes.len() - self.end, "no more than there is room");
        self.end += count;
    }

    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start, "no more than is pending");
        self.start += count;
    }

    pub fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pending_moves_only_when_it_is_in_the_way() {
        let mut input = Input::new(16);
        input.room()[..10].copy_from_slice(b"0123456789");
        input.filled(10);
        input.consume(7);
        assert_eq!((input.room().len(), input.pending()), (13, &b"789"[..]));
        input.grow(32);
        assert_eq!((input.room().len(), input.pending()), (29, &b"789"[..]));
        input.consume(3);
        assert_eq!((input.room().len(), input.pending()), (32, &b""[..]));
    }

    #[test]
    #[should_panic(expected = "no more than there is room")]
    fn more_cannot_come_in_than_there_is_room() {
        let mut input = Input::new(16);
        input.filled(17);
    }
}

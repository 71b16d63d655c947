//! A bounded first-in, first-out queue: the shape of every outbox. Never grows after it is made.

use std::collections::VecDeque;

pub(crate) struct Ring<T> {
    items: VecDeque<T>,
    limit: usize,
}

impl<T> Ring<T> {
    pub fn new(limit: usize) -> Ring<T> {
        Ring { items: VecDeque::with_capacity(limit), limit }
    }

    /// Adds at the end. The callers' own bounds keep this below the limit; crossing it is a bug.
    pub fn push(&mut self, item: T) {
        assert!(self.items.len() < self.limit, "a bounded queue overflowed");
        self.items.push_back(item);
    }

    pub fn pop(&mut self) -> Option<T> {
        self.items.pop_front()
    }

    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// The item that will be popped after `place` others.
    pub fn get(&self, place: usize) -> Option<&T> {
        self.items.get(place)
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

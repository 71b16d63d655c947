//! Names one command of a connection while it is under way.

/// Where a connection keeps a command, from its arrival until its response has been sent. Below the
/// number of entries of the queue.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct SlotId(pub u16);

impl SlotId {
    /// As an index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

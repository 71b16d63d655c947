//! What a disk is told to do wrong.

use fuser::Errno;

/// Which operations of a kind fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Which {
    /// None.
    #[default]
    None,
    /// The one after this many, once.
    Nth(u64),
    /// All.
    All,
}

impl Which {
    /// Counts one operation; true if it is to fail.
    fn hits(&mut self) -> bool {
        match self {
            Which::None => false,
            Which::All => true,
            Which::Nth(0) => {
                *self = Which::None;
                true
            }
            Which::Nth(count) => {
                *count -= 1;
                false
            }
        }
    }
}

/// Faults that are switched on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Faults {
    /// Writes that fail with EIO; nothing of them is stored.
    pub writes: Which,
    /// Fsyncs that fail with EIO; what they should have saved is volatile still.
    pub fsyncs: Which,
    /// Writes fail with ENOSPC.
    pub full: bool,
    /// Everything fails with ENOTCONN: the disk is not there.
    pub gone: bool,
    /// Fsyncs say that all is safe and do nothing. A disk like that breaks every promise made on
    /// it: tests that cannot see that see nothing.
    pub lying: bool,
}

impl Faults {
    pub(super) fn on_read(&self) -> Option<Errno> {
        self.gone.then_some(Errno::ENOTCONN)
    }

    pub(super) fn on_write(&mut self) -> Option<Errno> {
        if self.gone {
            Some(Errno::ENOTCONN)
        } else if self.full {
            Some(Errno::ENOSPC)
        } else {
            self.writes.hits().then_some(Errno::EIO)
        }
    }

    pub(super) fn on_fsync(&mut self) -> Option<Errno> {
        if self.gone {
            return Some(Errno::ENOTCONN);
        }
        self.fsyncs.hits().then_some(Errno::EIO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_fails_once() {
        let mut faults = Faults { writes: Which::Nth(2), ..Faults::default() };
        let hits: Vec<bool> = (0..6).map(|_| faults.on_write().is_some()).collect();
        assert_eq!(hits, [false, false, true, false, false, false]);
        assert!(faults.on_fsync().is_none() && faults.on_read().is_none());
        assert!(Faults { gone: true, ..faults }.on_read().is_some());
    }
}

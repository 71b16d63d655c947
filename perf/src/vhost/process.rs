//! A child process that does not outlive us.

use std::process::Child;

/// Ended when dropped: what it serves is in RAM, so there is nothing to be saved.
pub struct Process(Child);

impl Process {
    /// Takes charge of a child.
    pub fn new(child: Child) -> Process {
        Process(child)
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// The child itself.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

//! What every block of a disk may hold, for one client that never has two requests on one block.
//!
//! ```text
//!  versions of a block:   3      4      5      6      7
//!                         │      │      │      └ answered last
//!                         │      └ in a flush that was answered        7: submitted, no answer
//!                         └ the oldest that a snapshot being taken may see
//!  read now: 6 or 7       after a power cut: 4 to 7       after the death of the daemon: 6 or 7
//! ```

use crate::tagged::{BLOCK_SECTORS, State};

/// The versions of one block.
#[derive(Clone, Debug)]
struct Block {
    /// Number of `states[0]`.
    first: u64,
    states: Vec<State>,
    /// The newest version that was answered.
    answered: u64,
    /// The newest version that an answered flush covers.
    safe: u64,
    busy: bool,
}

impl Block {
    fn last(&self) -> u64 {
        self.first + self.states.len() as u64 - 1
    }

    fn since(&self, version: u64) -> &[State] {
        &self.states[(version - self.first) as usize..]
    }
}

/// What each block may hold in a snapshot.
pub type Allowed = Vec<Vec<State>>;

/// A disk's blocks.
#[derive(Clone, Debug)]
pub struct Model {
    blocks: Vec<Block>,
    /// True: versions are kept for a snapshot being taken.
    keep: bool,
}

/// What a flush covers, or a snapshot begins with: a version of each block.
#[derive(Clone, Debug)]
pub struct Mark {
    answered: Vec<u64>,
    /// Only of a snapshot: what is safe already.
    safe: Vec<u64>,
}

/// What a snapshot may hold.
#[derive(Clone, Debug)]
pub struct Seen {
    /// As long as there is power, and once it was answered.
    pub exact: Allowed,
    /// After a power cut that came before it was answered.
    pub loose: Allowed,
}

impl Model {
    /// A disk of `blocks` blocks of zeros.
    #[must_use]
    pub fn new(blocks: usize) -> Model {
        let zeros = vec![[0; BLOCK_SECTORS]];
        let block = Block { first: 0, states: zeros, answered: 0, safe: 0, busy: false };
        Model { blocks: vec![block; blocks], keep: false }
    }

    /// Blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// True if a request is on one of `count` blocks from `first`.
    #[must_use]
    pub fn is_busy(&self, first: usize, count: usize) -> bool {
        self.blocks[first..first + count].iter().any(|block| block.busy)
    }

    /// True if it is known what the block holds.
    #[must_use]
    pub fn is_certain(&self, block: usize) -> bool {
        self.blocks[block].answered == self.blocks[block].last()
    }

    /// Claims blocks for a request.
    pub fn claim(&mut self, first: usize, count: usize) {
        assert!(!self.is_busy(first, count), "two requests on one block");
        self.blocks[first..first + count].iter_mut().for_each(|block| block.busy = true);
    }

    /// A request that changes a claimed block is about to be submitted: `change` makes the new
    /// version out of the newest one.
    pub fn submitted(&mut self, block: usize, change: impl FnOnce(&mut State)) {
        let block = &mut self.blocks[block];
        assert!(block.busy, "a request claims its blocks first");
        let mut state = *block.states.last().expect("a block has a version");
        change(&mut state);
        block.states.push(state);
    }

    /// A request on claimed blocks was answered. After an error a block holds either version.
    pub fn answered(&mut self, first: usize, count: usize, good: bool) {
        for block in &mut self.blocks[first..first + count] {
            block.busy = false;
            if good {
                block.answered = block.last();
            }
        }
    }

    /// A read of claimed blocks was answered.
    pub fn release(&mut self, first: usize, count: usize) {
        self.blocks[first..first + count].iter_mut().for_each(|block| block.busy = false);
    }

    /// What a flush asked for now must cover.
    pub fn flush_begins(&mut self) -> Mark {
        let answered = self.blocks.iter().map(|block| block.answered).collect();
        Mark { answered, safe: Vec::new() }
    }

    /// A flush was answered well.
    pub fn flushed(&mut self, mark: &Mark) {
        for (block, version) in self.blocks.iter_mut().zip(&mark.answered) {
            block.safe = block.safe.max(*version);
        }
        self.forget();
    }

    fn forget(&mut self) {
        if self.keep {
            return;
        }
        for block in &mut self.blocks {
            block.states.drain(..(block.safe - block.first) as usize);
            block.first = block.safe;
        }
    }

    /// A snapshot is about to be asked for.
    pub fn snapshot_begins(&mut self) -> Mark {
        assert!(!self.keep, "one snapshot at a time");
        self.keep = true;
        let safe = self.blocks.iter().map(|block| block.safe).collect();
        Mark { safe, ..self.flush_begins() }
    }

    /// A snapshot was answered (or never will be): what it may hold.
    pub fn snapshot_ends(&mut self, begin: &Mark) -> Seen {
        let since = |versions: &[u64]| -> Allowed {
            let pairs = self.blocks.iter().zip(versions);
            pairs.map(|(block, version)| block.since(*version).to_vec()).collect()
        };
        let (exact, loose) = (since(&begin.answered), since(&begin.safe));
        self.keep = false;
        self.forget();
        Seen { exact, loose }
    }

    /// Checks what a read gave for a block that nothing is in flight on, with power on throughout.
    ///
    /// # Errors
    /// A lost or invented write.
    pub fn check_read(&self, block: usize, found: &State) -> Result<(), String> {
        let known = &self.blocks[block];
        among(block, known.since(known.answered), found, "read")
    }

    /// Checks what a block holds after a power cut, and goes on from there.
    ///
    /// # Errors
    /// A flushed write is lost, or the block holds what was never written to it as a whole.
    pub fn settle_after_cut(&mut self, block: usize, found: &State) -> Result<(), String> {
        let known = &self.blocks[block];
        among(block, known.since(known.safe), found, "after the power cut")?;
        self.settle(block, found);
        Ok(())
    }

    fn settle(&mut self, block: usize, found: &State) {
        let block = &mut self.blocks[block];
        block.first = block.last() + 1;
        block.states = vec![*found];
        (block.answered, block.safe, block.busy) = (block.first, block.first, false);
    }
}

/// Checks what block `block` of a snapshot holds.
///
/// # Errors
/// It is none of what it may be.
pub fn check_snapshot(allowed: &Allowed, block: usize, found: &State) -> Result<(), String> {
    among(block, &allowed[block], found, "in the snapshot")
}

fn among(block: usize, allowed: &[State], found: &State, when: &str) -> Result<(), String> {
    if allowed.contains(found) {
        return Ok(());
    }
    let (oldest, newest) = (allowed[0], allowed[allowed.len() - 1]);
    Err(format!(
        "block {block} {when} holds {found:x?}, which is none of {} versions from {oldest:x?} to \
         {newest:x?}",
        allowed.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(model: &mut Model, tag: u64, answer: Option<bool>) {
        model.claim(0, 1);
        model.submitted(0, |state| *state = [tag; 8]);
        if let Some(good) = answer {
            model.answered(0, 1, good);
        }
    }

    #[test]
    fn what_was_flushed_may_not_go_back() {
        let mut model = Model::new(2);
        write(&mut model, 1, Some(true));
        write(&mut model, 2, Some(true));
        let mark = model.flush_begins();
        write(&mut model, 3, Some(true));
        assert!(model.clone().settle_after_cut(0, &[0; 8]).is_ok());
        model.flushed(&mark);
        write(&mut model, 4, None);
        for (tag, good) in [(0, false), (1, false), (2, true), (3, true), (4, true), (5, false)] {
            let mut model = model.clone();
            assert_eq!(model.settle_after_cut(0, &[tag; 8]).is_ok(), good, "tag {tag}");
        }
        assert!(model.check_read(0, &[2; 8]).is_err());
        assert!(model.check_read(0, &[3; 8]).is_ok());
        let mixed = [3, 3, 3, 4, 4, 4, 4, 4];
        assert!(model.settle_after_cut(0, &mixed).is_err(), "never mixed");
    }

    #[test]
    fn a_failed_write_is_one_or_the_other() {
        let mut model = Model::new(1);
        write(&mut model, 1, Some(true));
        write(&mut model, 2, Some(false));
        assert!(!model.is_certain(0));
        assert!(model.check_read(0, &[1; 8]).is_ok() && model.check_read(0, &[2; 8]).is_ok());
        write(&mut model, 3, Some(true));
        assert!(model.is_certain(0) && model.check_read(0, &[2; 8]).is_err());
    }

    #[test]
    fn a_snapshot_sees_what_was_answered_before_and_nothing_later() {
        let mut model = Model::new(1);
        write(&mut model, 1, Some(true));
        write(&mut model, 2, Some(true));
        let begin = model.snapshot_begins();
        write(&mut model, 3, Some(true));
        let mark = model.flush_begins();
        model.flushed(&mark);
        let seen = model.snapshot_ends(&begin);
        write(&mut model, 4, Some(true));
        for (tag, good) in [(1, false), (2, true), (3, true), (4, false)] {
            assert_eq!(check_snapshot(&seen.exact, 0, &[tag; 8]).is_ok(), good, "tag {tag}");
        }
        // The one before it was not flushed.
        assert!(check_snapshot(&seen.loose, 0, &[1; 8]).is_ok());
        assert!(check_snapshot(&seen.loose, 0, &[4; 8]).is_err());
    }
}

//! What the checker knows of each write, discard and write-zeroes: when it was asked for, when
//! it was acknowledged, whether it must be there.
//!
//! ```text
//!             submit      ack                 a flush submitted after `ack` ends
//!   ──────────┼───────────┼───────────────────┼──────────▶ events (not nanoseconds)
//!    not there│ may be    │ must be there,    │ must be there even after a power cut
//!             │ there     │ but for a cut     │
//! ```

use super::pattern::OpId;

/// "Has not happened", as an event number.
pub const NEVER: u64 = u64::MAX;

/// How far a write has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// In flight.
    Open,
    /// Acknowledged.
    Acked,
    /// Ended with an error: may be there or not, and that may change at the next restart.
    Failed,
    /// In flight when the engine died: may be there or not.
    Cut,
}

/// One write, discard or write-zeroes.
#[derive(Clone, Copy, Debug)]
pub struct OpFacts {
    /// Event at which it was given.
    pub submit: u64,
    /// Event at which it was acknowledged.
    pub ack: u64,
    /// Event after which it cannot take effect any more (but for what a crash does).
    pub closed: u64,
    /// How far it has come.
    pub fate: Fate,
    /// Acknowledged, and no power cut since could have lost it.
    pub must: bool,
    /// A flush (or FUA) has made it safe.
    pub durable: bool,
    /// Leaves zeros instead of its pattern.
    pub zero: bool,
    /// Power cuts before it.
    pub epoch: u32,
    /// What reads saw of it up to this event counts no more.
    pub forget: u64,
}

/// All of them, by number.
#[derive(Debug)]
pub struct OpTable {
    ops: Vec<OpFacts>,
    /// Power cuts so far.
    pub epoch: u32,
    /// First operation that a power cut now could touch.
    first_at_risk: usize,
}

impl Default for OpTable {
    fn default() -> Self {
        OpTable::new()
    }
}

impl OpTable {
    /// Only number 0, which stands for zeros and is never looked at.
    pub fn new() -> OpTable {
        let nothing = OpFacts {
            submit: 0,
            ack: 0,
            closed: 0,
            fate: Fate::Acked,
            must: true,
            durable: true,
            zero: true,
            epoch: 0,
            forget: 0,
        };
        OpTable { ops: vec![nothing], epoch: 0, first_at_risk: 1 }
    }

    /// A new operation, given at event `submit`.
    pub fn add(&mut self, submit: u64, zero: bool) -> OpId {
        self.ops.push(OpFacts {
            submit,
            ack: NEVER,
            closed: NEVER,
            fate: Fate::Open,
            must: false,
            durable: false,
            zero,
            epoch: self.epoch,
            forget: 0,
        });
        (self.ops.len() - 1) as OpId
    }

    /// `op`, prepared before, was given at event `submit`.
    pub fn submitted(&mut self, op: OpId, submit: u64) {
        self.ops[op as usize].submit = submit;
    }

    /// What is known of `op`.
    pub fn get(&self, op: OpId) -> &OpFacts {
        &self.ops[op as usize]
    }

    /// `op` was acknowledged at event `at`; `durable` if it was promised to be (FUA).
    pub fn acked(&mut self, op: OpId, at: u64, durable: bool) {
        let facts = &mut self.ops[op as usize];
        assert_eq!(facts.fate, Fate::Open, "an operation ends once");
        facts.ack = at;
        facts.closed = at;
        facts.fate = Fate::Acked;
        facts.must = true;
        facts.durable |= durable;
    }

    /// `op` ended with an error at event `at`.
    pub fn failed(&mut self, op: OpId, at: u64) {
        let facts = &mut self.ops[op as usize];
        assert_eq!(facts.fate, Fate::Open, "an operation ends once");
        facts.closed = at;
        facts.fate = Fate::Failed;
    }

    /// `op` is known to have happened although nobody said so (a shrink seen after recovery).
    pub fn proven(&mut self, op: OpId, at: u64, durable: bool) {
        let facts = &mut self.ops[op as usize];
        facts.ack = at;
        facts.closed = facts.closed.min(at);
        facts.fate = Fate::Acked;
        facts.must = true;
        facts.durable |= durable;
    }

    /// A flush has made `op` safe.
    pub fn made_durable(&mut self, op: OpId) {
        self.ops[op as usize].durable = true;
    }

    /// The engine died at event `at`; `power` if what was not flushed may be lost too.
    pub fn crash(&mut self, at: u64, power: bool) {
        for facts in &mut self.ops[self.first_at_risk..] {
            match facts.fate {
                Fate::Open => facts.closed = at,
                Fate::Failed => {}
                Fate::Acked => {
                    facts.must &= facts.durable || !power;
                    continue;
                }
                Fate::Cut => continue,
            }
            facts.fate = Fate::Cut;
            facts.forget = at;
        }
        if power {
            self.epoch += 1;
            self.first_at_risk = self.ops.len();
        }
    }
}

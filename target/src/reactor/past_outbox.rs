//! Requests of a host that takes their one base operation to the base itself, as the module inside
//! SPDK does.
//!
//! ```text
//!  straight ─► tag, place on the base ─► host ─► HostBase::hand_on ─► ... ─► handed_back ─► ended
//! ```

use lamina_bdev::{EngineState, Request, Seg, Status, Straight, Tag};

use super::shard::Shard;
use crate::base::BaseResult;

impl Shard {
    /// As [`Shard::submit`], past the outbox: what [`lamina_bdev::Engine::straight`] says of a
    /// request. The host takes the operation to its base, and what that answers to
    /// [`Shard::ended`].
    pub fn straight(&mut self, request: &Request, segs: &[Seg]) -> Straight {
        if self.engine.state() != EngineState::Ready {
            return Straight::No;
        }
        let answer = self.engine.straight(request, segs);
        self.nvmf_in_flight += usize::from(matches!(answer, Straight::Start { .. }));
        answer
    }

    /// How a request ends of which [`Shard::straight`] said that it starts.
    pub fn ended(&mut self, tag: Tag, result: BaseResult) -> Status {
        let done = self.engine.ended(tag, result).expect("a tag that `straight` gave");
        self.nvmf_in_flight -= 1;
        done.status
    }
}

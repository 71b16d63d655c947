//! From the engine's answers and ANA states to NVMe status codes.

use lamina_bdev::Status as Engine;

use crate::subsystem::AnaState;
use crate::wire::Status;

/// Whether the data was on its way out or in: the media errors differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// A read.
    Read,
    /// Anything that changes data or makes it durable.
    Write,
}

/// An engine's failure as NVMe says it. "Do not retry" is set where the same command can only fail
/// again: an I/O error of the base may pass, a full store does not by being asked again.
pub(super) fn from_engine(status: Engine, way: Way) -> Result<(), Status> {
    Err(match status {
        Engine::Ok => return Ok(()),
        Engine::IoError if way == Way::Read => Status::UNRECOVERED_READ_ERROR,
        Engine::IoError => Status::WRITE_FAULT,
        Engine::NoSpace => Status::CAPACITY_EXCEEDED.dnr(),
        Engine::ReadOnly => Status::NAMESPACE_IS_WRITE_PROTECTED.dnr(),
        Engine::OutOfRange => Status::LBA_OUT_OF_RANGE.dnr(),
        Engine::Corrupt => Status::UNRECOVERED_READ_ERROR.dnr(),
        Engine::Invalid => Status::INVALID_FIELD.dnr(),
        // The disk is being closed; whoever asks again is told that the namespace is gone, or finds
        // it back on another reactor.
        Engine::Detached => Status::NAMESPACE_NOT_READY,
    })
}

/// Path-related status of a group that does not serve I/O (Base 2.1, 8.1.1). Never "do not retry":
/// the host shall try another path.
pub(crate) fn path(state: AnaState) -> Result<(), Status> {
    match state {
        AnaState::Optimized | AnaState::NonOptimized => Ok(()),
        AnaState::Inaccessible => Err(Status::ANA_INACCESSIBLE),
        AnaState::PersistentLoss => Err(Status::ANA_PERSISTENT_LOSS),
        AnaState::Change => Err(Status::ANA_TRANSITION),
    }
}

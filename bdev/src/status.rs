//! How a request ended: a closed, one-byte answer, mapped to virtio or NVMe at the edge.

/// Outcome of one guest request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Status {
    /// Done as promised.
    #[default]
    Ok,
    /// The base device failed the operation, or an earlier flush or journal write failed and the
    /// disk has not been reopened since.
    IoError,
    /// The write could not allocate; earlier data is intact, discard and delete still work.
    NoSpace,
    /// A write, discard or write-zeroes to a read-only attachment.
    ReadOnly,
    /// Past the end of the disk.
    OutOfRange,
    /// A metadata block on the way failed its checks; the log names disk and block.
    Corrupt,
    /// Misaligned, empty where a length is due, or segments that do not add up.
    Invalid,
    /// The handle is not attached (any more).
    Detached,
}

/// Outcome of one base operation that failed, as the host saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum BaseError {
    /// EIO and its kin, a short transfer included.
    Io,
    /// The base itself is out of space (a sparse file on a full file system).
    NoSpace,
    /// The device has gone.
    Gone,
}

//! Control-path errors: a stable kind for programs, a sentence for people.

/// What went wrong, for programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    /// No such disk, snapshot or handle (ENODEV).
    NotFound,
    /// The name or UUID is taken (EEXIST).
    Exists,
    /// In use: attached (EBUSY).
    Busy,
    /// A bad parameter (EINVAL).
    Invalid,
    /// The store or a table is full (ENOSPC).
    NoSpace,
    /// The base device failed (EIO).
    Io,
    /// Not a Lamina store, or damaged beyond its redundancy (EILSEQ).
    Corrupt,
    /// A store of another format version (ENOTSUP).
    Version,
}

/// A control operation that failed.
#[derive(Clone, Debug)]
pub struct Error {
    /// For programs.
    pub kind: ErrorKind,
    /// For people: what failed, on what, what to do.
    pub message: String,
}

impl Error {
    /// Puts the two together.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into() }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

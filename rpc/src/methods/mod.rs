//! The methods: their parameters and answers, one file a subject.
//!
//! Sizes are bytes and times seconds since 1970 unless a name says otherwise. A parameter that
//! names a disk takes its UUID, its name or `store/name`; one that names a snapshot its UUID,
//! `disk@label`, `disk@number`, either with `store/` before it, or a label that only one snapshot
//! of the store has.

pub mod bdev;
pub mod check;
pub mod events;
pub mod framework;
pub mod keyring;
pub mod lvol;
pub mod nvmf;
pub mod nvmf_types;
pub mod snapshot;
pub mod store;
pub mod stream;
pub mod vhost;

pub use bdev::*;
pub use check::*;
pub use events::*;
pub use framework::*;
pub use keyring::*;
pub use lvol::*;
pub use nvmf::*;
pub use nvmf_types::*;
pub use snapshot::*;
pub use store::*;
pub use stream::*;
pub use vhost::*;

//! The other end of a connection: an initiator without I/O, for tests, load and tools.
//!
//! ```text
//!  submit ─► Initiator ─► output  ─► socket ─► target
//!  next_done ◄─   │   ◄─ receive ◄─ socket ◄─
//!                 └ answers R2T by itself, collects C2HData, checks digests and order
//! ```
//!
//! [`Initiator`] keeps to the protocol and is strict about what it gets. [`Builder`] makes single
//! PDUs, which can then be made to lie.

mod builder;
mod initiator;

pub use builder::Builder;
pub use initiator::{Done, Failure, Initiator, Options, Payload};

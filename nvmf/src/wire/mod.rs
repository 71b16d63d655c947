//! What goes over the wire, decoded once into owned values.
//!
//! ```text
//!  PDU         0        8                 HLEN            PDO                 PLEN
//!              ├ common ┼ rest of header ─┼ digest ┬ pad ─┼ data ──┬ digest ─┤
//!              │ header │                 │  (4)   │      │        │   (4)   │
//!  capsule              └ Command (64) or Completion (16)
//! ```
//!
//! [`pdu`] has the layouts as they lie in memory (TCP 1.1, 3.6), [`Command`], [`Completion`] and
//! [`Sgl`] are plain values for everybody else, [`Status`] and [`opcode`] name the numbers.

mod command;
mod completion;
pub mod opcode;
pub mod pdu;
mod sgl;
mod status;

pub use command::{Command, Direction, Fuse, RawCommand};
pub use completion::{Completion, RawCompletion};
pub use sgl::{RawSgl, Sgl, SglKind};
pub use status::Status;

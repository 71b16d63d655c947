//! DH-HMAC-CHAP: in-band authentication of a host by the target, and the other way round.
//!
//! ```text
//!  host                                       target
//!   AUTH_Negotiate   hashes, groups     ──▶    picks one of each
//!                                       ◀──    DH-HMAC-CHAP_Challenge   C1, S1, g^x
//!   DH-HMAC-CHAP_Reply  R1, (C2, S2), g^y ─▶   checks R1
//!                                       ◀──    DH-HMAC-CHAP_Success1    (R2)
//!   DH-HMAC-CHAP_Success2               ──▶    (only if the host asked for R2)
//!                  at any time: AUTH_Failure1 ◀──, AUTH_Failure2 ──▶
//!
//!  R1 = HMAC(K', Ca1 | S1 | T_ID | SC_C | "HostHost" | host NQN | 0 | subsystem NQN)
//!  Ca = C without a group, else HMAC(H(g^xy), C)
//! ```
//!
//! Messages travel in Authentication Send and Receive commands on a queue that is connected and may
//! do nothing else until [`Authentication::stage`] says [`Stage::Done`]. After [`Stage::Failed`]
//! the queue ends. Randomness comes from the caller. Source: Base 8.3.5.5.

mod group;
mod hash;
mod host;
mod key;
mod message;
mod target;

pub use group::Group;
pub use hash::HashId;
pub use host::HostSide;
pub use key::{AuthKey, KeyError};
pub use message::{Failure, MESSAGE_BYTES_MAX};
pub use target::{Authentication, Credentials, Stage, Work, Worked};

/// Fills memory with random bytes.
pub type Random<'a> = &'a mut dyn FnMut(&mut [u8]);

#[cfg(test)]
mod tests;

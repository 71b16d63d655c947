//! Hosts that lie: each case is a test of its own, ends in the status or the termination that the
//! specification names, and leaves no buffer behind.

mod case;
mod commands;
mod data;
mod digests;
mod icreq;
#[path = "../rig/mod.rs"]
mod rig;
mod state;
mod stream;
mod term;

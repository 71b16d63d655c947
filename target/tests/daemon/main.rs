//! The daemon from outside: a real process, real files, real sockets, RPC.

mod bad_input;
mod data;
mod events;
mod harness;
mod life;
mod restart;

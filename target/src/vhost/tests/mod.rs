//! Tests of the export against a model of a guest's driver, and against real clients.

mod client;
mod disk;
mod driver;
mod fuzz;
mod fuzz_messages;
mod hostile;
mod hostile_memory;
mod inflight;
mod protocol;
mod requests;
mod rig;
mod rings;
mod served;
mod usual;
mod wire;
mod woken;

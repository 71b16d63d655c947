//! Commands against controllers and I/O queues, through the crate's public interface only: what the
//! specification says, and what a hostile host may try. One module a part; each test is named after
//! what it proves.

mod authenticate;
mod connect;
mod contention;
mod events;
mod features;
mod fused;
mod identify;
mod io;
mod logs;
mod management;
mod properties;
mod reservations;
mod rig;
mod sweeps;

//! NVMe over TCP without any I/O of its own.
//!
//! ```text
//!  socket bytes ─► transport::Connection ─► command ─┬─ I/O queue:   io::IoQueue ─► engine
//!              ◄─                        ◄─ answer   └─ admin queue: controller::Controller
//!                                                                    │ subsystem::Subsystem
//! ```
//!
//! Sources: NVM Express Base Specification 2.1 ("Base"), NVM Command Set 1.1 ("NVM"), NVMe/TCP
//! Transport 1.1 ("TCP"). `DESIGN.md` beside this crate says who owns what and why.

#![forbid(unsafe_code)]

// The rig of `tests` is shared with the fuzz targets here.
#[cfg(test)]
extern crate self as lamina_nvmf;

pub mod auth;
pub mod controller;
#[cfg(test)]
mod fuzz_command;
#[cfg(test)]
mod fuzz_pdu;
pub mod host;
pub mod io;
pub mod reservation;
mod slot;
pub mod subsystem;
pub mod tls_psk;
pub mod wire;

pub use slot::SlotId;
pub mod pool;
pub mod transport;

//! An NVMe/TCP host inside the test: blocking sockets around the sans-I/O initiator.
//!
//! ```text
//!  Controller ── admin Queue ─┐
//!            └── I/O Queues ──┴─ socket ─ Initiator (commands ─► PDUs ─► completions)
//!                                  └─ raw bytes, for hosts that lie
//! ```

mod controller;
mod exported;
mod queue;

pub use controller::{Connection, Controller, Host, namespace_blocks};
pub use exported::{Exported, NQN, address_json, free_port, pattern};
pub use lamina_nvmf::host::{Done, Failure, Options, Payload};
pub use lamina_nvmf::wire::opcode::{admin, fabrics, nvm};
pub use lamina_nvmf::wire::{Command, Completion, Fuse, Status};
pub use queue::{Lost, Queue, rw};

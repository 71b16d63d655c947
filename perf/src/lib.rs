//! Measures what Lamina promises in numbers, on machines where one run can be a tenth of the next.
//!
//! ```text
//!  rows ── what is measured, in rounds: A B C, A B C, ...        report ── table, JSON, goals
//!    │                                                              ▲
//!  load ── one closed loop: keep `depth` requests in flight ────────┘ samples
//!    │
//!  Store ─┬─ engine: the engine in this process on RAM (and the RAM alone)
//!         └─ vhost:  another process over a vhost-user socket (laminad, qemu-storage-daemon)
//! ```
//!
//! Rows of one round are compared with each other only (pair by pair), and CPU time stands next to
//! the time on the wall, since only the former leaves out what other tenants took.

pub mod allocator;
pub mod budgets;
pub mod capsule_steps;
pub mod clock;
pub mod compare;
pub mod daemon;
pub mod deletion;
pub mod engine;
pub mod goals;
pub mod histogram;
pub mod load;
pub mod memory;
pub mod nvmf;
pub mod promises;
pub mod random;
pub mod report;
pub mod ring_steps;
pub mod rows;
pub mod store;
pub mod vhost;

//! JSON-RPC of the Lamina daemon: the wire, the typed methods, the server and the client.
//!
//! ```text
//!  client.rs ── Unix socket ──► server.rs ─► connection.rs
//!  (lamina, tests)              accept,      one thread a connection
//!                               lock file        │
//!                                                ▼
//!                       framing.rs ─► envelope.rs ─► schema.rs ─► Handler (the daemon)
//!                       one JSON      method, id,    typed Call   does the work
//!                       value         params
//! ```
//!
//! The wire is the one SPDK speaks, so that SPDK's own clients work: concatenated JSON values on a
//! stream socket, replies in compact JSON with one newline. One table ([`schema`]) names every
//! method with its parameters and documentation; decoder, client, `rpc_get_methods` and the help
//! of the command line are made from it and cannot disagree.

pub mod client;
mod connection;
pub mod envelope;
pub mod error;
pub mod framing;
#[cfg(test)]
mod fuzz;
pub mod handler;
mod listener;
pub mod methods;
pub mod schema;
pub mod server;
pub mod stream;

pub use client::{Client, ClientError};
pub use error::RpcError;
pub use handler::Handler;
pub use schema::{Call, Method, MethodInfo};
pub use server::Server;

/// Where the daemon listens, and where clients look, unless told otherwise.
pub const SOCKET_DEFAULT: &str = "/var/run/lamina.sock";

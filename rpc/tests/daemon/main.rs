//! The server, the client and the command against each other, over a real Unix socket.
//!
//! The daemon behind the server is [`model`]: the table's methods over a few maps in memory, so
//! that what is tested here is the wire and the command, and not the engine.

mod cli;
mod golden;
mod hostile;
mod model;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;

use lamina_rpc::{Client, Server};

/// A server over the model in a folder of its own.
struct Daemon {
    model: Arc<model::Model>,
    path: PathBuf,
    server: Server,
    /// Removed last.
    folder: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Daemon {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("rpc.sock");
        let model = Arc::new(model::Model::default());
        let server = Server::start(&path, model.clone()).expect("a server");
        Daemon { model, path, server, folder }
    }

    fn client(&self) -> Client {
        Client::connect(&self.path).expect("a connection")
    }
}

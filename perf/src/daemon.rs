//! laminad as a child process on a temporary folder, told what to do over JSON-RPC.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lamina_rpc::Client;
use serde_json::Value;

use crate::vhost::folder::Folder;
use crate::vhost::process::Process;

/// How it is started.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The program; laminad beside this one if `None`.
    pub program: Option<PathBuf>,
    /// Cores of its reactors, as `--cores` takes them.
    pub cores: String,
    /// Reactors never sleep.
    pub busy_poll: bool,
    /// Bytes of each shard's node cache, if not the default.
    pub cache_bytes: Option<u64>,
}

/// A running daemon; ended when dropped.
pub struct Daemon {
    process: Process,
    client: Client,
    // Goes after the process.
    folder: Folder,
}

/// The program to run: the one named, or the one beside this one.
fn program(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = named {
        return Ok(path.to_path_buf());
    }
    let beside = std::env::current_exe()?.with_file_name("laminad");
    ensure!(
        beside.exists(),
        "there is no {}: build it with 'cargo build --release -p lamina-target', or name it with \
         --daemon",
        beside.display()
    );
    Ok(beside)
}

impl Daemon {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(settings: &Settings) -> Result<Daemon> {
        let folder = Folder::new(&std::env::temp_dir())?;
        let (socket, program) = (folder.path("rpc"), program(settings.program.as_deref())?);
        let mut command = Command::new(&program);
        command.arg("--rpc-socket").arg(&socket);
        command.arg("--state-dir").arg(folder.path("state"));
        command.arg("--export-dir").arg(folder.path("run"));
        command.args(["--cores", &settings.cores, "--log-level", "warn"]);
        if settings.busy_poll {
            command.arg("--busy-poll");
        }
        if let Some(bytes) = settings.cache_bytes {
            command.args(["--cache-size", &bytes.to_string()]);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let child = child.with_context(|| format!("starting {}", program.display()))?;
        let mut process = Process::new(child);
        let stdout = process.child().stdout.take().context("no standard output")?;
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        if line.trim_end() != "laminad: ready" {
            // It closed its output, so it is ending.
            let status = process.child().wait()?;
            bail!("{} did not start ({status})", program.display());
        }
        // Nothing more is expected, but a full pipe would stop it.
        std::thread::spawn(move || {
            let _ = stdout.read_to_end(&mut Vec::new());
        });
        let client = Client::connect_within(&socket, Duration::from_secs(600))?;
        Ok(Daemon { process, client, folder })
    }

    /// One call.
    ///
    /// # Errors
    /// It is refused.
    pub fn call(&mut self, method: &str, params: &Value) -> Result<Value> {
        self.client.call_raw(method, params).with_context(|| format!("{method} {params}"))
    }

    /// Another connection to it.
    ///
    /// # Errors
    /// Nobody listens any more.
    pub fn another_client(&self) -> Result<Client> {
        Ok(Client::connect(&self.folder.path("rpc"))?)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path(name)
    }
}

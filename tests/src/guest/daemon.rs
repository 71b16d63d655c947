//! A `laminad` of one test: started, killed and started again in the test's own folder.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Folder, MIB, RpcError, call, program, tail};

/// Longest wait for a daemon to answer after its start, recovery included, and to end.
const START_TIME_MAX: Duration = Duration::from_secs(30);

/// The daemon with its folder: state, RPC socket, exports, blockstore file and logs.
#[derive(Debug)]
pub struct Daemon {
    child: Option<Child>,
    arguments: Vec<String>,
    folder: Folder,
}

impl Daemon {
    /// Starts a daemon in a folder of its own and makes a blockstore `pool` of `size` bytes in a
    /// sparse file there.
    ///
    /// # Panics
    /// If the daemon does not come up or refuses the store.
    #[must_use]
    pub fn with_store(size: u64) -> Daemon {
        let mut daemon = Daemon::new();
        daemon.start();
        let path = daemon.path("pool.store");
        let store = json!({"name": "pool", "path": path, "size": size});
        daemon.ask("lamina_store_create", store);
        daemon
    }

    /// A daemon in a folder of its own that has not been started.
    ///
    /// # Panics
    /// If the folder cannot be made.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it makes folders on disk")]
    pub fn new() -> Daemon {
        let daemon = Daemon { child: None, arguments: Vec::new(), folder: Folder::new() };
        for name in ["state", "exports"] {
            std::fs::create_dir(daemon.path(name)).expect("the test's folder takes folders");
        }
        daemon
    }

    /// Arguments for the next start, besides those that make it the test's own.
    pub fn set_arguments(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(ToString::to_string).collect();
    }

    /// Descriptors that it has open.
    ///
    /// # Panics
    /// If it is not running.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        let pid = self.child.as_ref().expect("the daemon is running").id();
        std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a running process").count()
    }

    /// A path in the test's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Panics
    /// If it is running, ends at once, or does not answer in time.
    pub fn start(&mut self) {
        self.spawn();
        self.wait_until_ready();
    }

    /// Starts the daemon and does not wait.
    ///
    /// # Panics
    /// If it is running.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "the daemon is running already");
        let log = self.path("laminad.log");
        let output = OpenOptions::new().create(true).append(true).open(&log).expect("log file");
        let mut command = Command::new(program("laminad"));
        command.arg("--state-dir").arg(self.path("state"));
        command.arg("--rpc-socket").arg(self.rpc_socket());
        command.arg("--export-dir").arg(self.path("exports"));
        command.args(&self.arguments);
        command.stdin(Stdio::null());
        command.stdout(output.try_clone().expect("log file")).stderr(output);
        self.child = Some(command.spawn().expect("laminad can be run"));
    }

    /// Waits until a daemon just started answers.
    ///
    /// # Panics
    /// If it is not running, ends at once, or does not answer in time.
    pub fn wait_until_ready(&mut self) {
        let log = self.path("laminad.log");
        let deadline = Instant::now() + START_TIME_MAX;
        while let Err(error) = self.try_ask("spdk_get_version", Value::Null) {
            let ended = self.child.as_mut().expect("just started").try_wait().expect("a child");
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "laminad does not answer ({}; ended: {ended:?})\n{}",
                error.message,
                tail(&log, 30)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends the daemon with SIGKILL, as a crash would.
    ///
    /// # Panics
    /// If it is not running.
    pub fn kill(&mut self) {
        self.send_kill();
        self.reap();
    }

    /// Sends SIGKILL and does not wait for the end.
    ///
    /// # Panics
    /// If the daemon is not running.
    pub fn send_kill(&mut self) {
        let child = self.child.as_mut().expect("the daemon is running");
        child.kill().expect("a running child can be killed");
    }

    /// Waits for the end of a daemon that was killed.
    ///
    /// # Panics
    /// If it is not running.
    pub fn reap(&mut self) {
        let mut child = self.child.take().expect("the daemon is running");
        child.wait().expect("a killed child ends");
    }

    /// True until the daemon was killed or ended by itself.
    pub fn is_alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Asks the daemon to stop with SIGTERM and waits for its end.
    ///
    /// # Panics
    /// If it is not running, or has not ended in time.
    pub fn terminate(&mut self) -> ExitStatus {
        self.send_terminate();
        self.wait()
    }

    /// Asks the daemon to stop with SIGTERM.
    ///
    /// # Panics
    /// If it is not running.
    pub fn send_terminate(&self) {
        let child = self.child.as_ref().expect("the daemon is running");
        let sent = Command::new("kill").arg("-TERM").arg(child.id().to_string()).status();
        assert!(sent.expect("kill can be run").success(), "the daemon is gone already");
    }

    /// Waits for the end of a daemon that was asked to stop.
    ///
    /// # Panics
    /// If it is not running, or has not ended in time.
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the daemon is running");
        let deadline = Instant::now() + START_TIME_MAX;
        loop {
            if let Some(status) = child.try_wait().expect("a child") {
                return status;
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                panic!("laminad ignores SIGTERM\n{}", tail(&self.path("laminad.log"), 30));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn rpc_socket(&self) -> PathBuf {
        self.path("rpc.sock")
    }

    /// Calls a method of the daemon.
    ///
    /// # Errors
    /// As [`call`].
    pub fn try_ask(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        call(&self.rpc_socket(), method, params)
    }

    /// Calls a method that must succeed.
    ///
    /// # Panics
    /// If it does not.
    pub fn ask(&self, method: &str, params: Value) -> Value {
        self.try_ask(method, params.clone()).unwrap_or_else(|error| {
            let log = tail(&self.path("laminad.log"), 30);
            panic!("{method} {params}: {} ({})\n{log}", error.message, error.code)
        })
    }

    /// Makes an empty disk of `mib` MiB in the store.
    pub fn create_disk(&self, name: &str, mib: u64) {
        self.ask("bdev_lvol_create", json!({"lvol_name": name, "size": mib * MIB}));
    }

    /// Takes a snapshot of `disk` under `label`; the snapshot is `disk@label` from then on.
    pub fn snapshot(&self, disk: &str, label: &str) {
        self.ask("bdev_lvol_snapshot", json!({"lvol_name": disk, "snapshot_name": label}));
    }

    /// Exports a disk or a snapshot, and gives the socket for [`super::Machine::disk`].
    #[must_use]
    pub fn export(&self, disk: &str, readonly: bool) -> PathBuf {
        self.export_queues(disk, readonly, 4)
    }

    /// As [`Daemon::export`], with a number of queues.
    #[must_use]
    pub fn export_queues(&self, disk: &str, readonly: bool, queues: u16) -> PathBuf {
        let name = format!("{}.sock", disk.replace(['@', '/'], "-"));
        let params = json!({
            "ctrlr": name, "dev_name": disk, "readonly": readonly, "num_queues": queues
        });
        self.ask("vhost_create_blk_controller", params);
        let socket = self.path("exports").join(name);
        assert!(socket.exists(), "{} is not there after the export", socket.display());
        socket
    }

    /// Ends the export that [`Daemon::export`] made.
    pub fn unexport(&self, disk: &str) {
        let name = format!("{}.sock", disk.replace(['@', '/'], "-"));
        self.ask("vhost_delete_controller", json!({"ctrlr": name}));
    }

    /// Free space of the store in bytes, once everything freed so far has come back.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.ask("lamina_checkpoint", json!({}));
        let info = self.ask("lamina_store_info", json!({"name": "pool"}));
        info[0]["free"].as_u64().unwrap_or_else(|| panic!("no free space in {info}"))
    }

    /// The daemon's log so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("laminad.log")).unwrap_or_default()
    }

    /// The test's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", tail(&self.path("laminad.log"), 30));
        }
    }
}

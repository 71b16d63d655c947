//! An SPDK application of one test, with the module in it: started, asked, killed, started again.
//!
//! ```text
//!  Tool::target()    lamina_spdk_tgt                  ─┐ in a folder of its own,
//!  Tool::Perf(..)    bdevperf, the module preloaded   ─┤ on two cores, 512 MiB of hugepages,
//!  Tool::Io          bdevio, the same                 ─┘ without core locks
//! ```
//!
//! SPDK's own programs are looked for in `SPDK_DIR`; a test that needs one that is not there says
//! its name and that it is skipped.
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use lamina_tests::guest::{Folder, RpcError, call, program};
use serde_json::{Value, json};

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;
/// Longest wait for an application to answer, and to end.
const START_TIME_MAX: Duration = Duration::from_secs(60);
/// MiB of hugepages for each application.
const MEMORY_MIB: u64 = 640;
/// Bytes of one hugepage, in KiB, as SPDK uses them.
const HUGEPAGE_KIB: u64 = 2048;

/// What to run.
#[derive(Clone, Copy)]
pub enum Tool<'a> {
    /// `lamina_spdk_tgt`.
    Target,
    /// An unmodified program of SPDK with the module preloaded, by its place in `SPDK_DIR`, and
    /// its own arguments.
    Preloaded(&'a str, &'a [&'a str]),
    /// `spdk_tgt`, unmodified, with the module and another library preloaded.
    Beside(&'a Path),
}

/// SPDK's target, by its place in `SPDK_DIR`.
pub const SPDK_TGT: &str = "build/bin/spdk_tgt";

/// An application of SPDK, and its folder.
pub struct App {
    folder: Folder,
    child: Option<Child>,
    config: PathBuf,
    program: PathBuf,
    /// Libraries that are preloaded.
    preload: Vec<PathBuf>,
    arguments: Vec<String>,
}

/// A program of SPDK, if it was built.
pub fn spdk_program(place: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("SPDK_DIR")?).join(place);
    path.exists().then_some(path)
}

/// Whether the module is built and can run here, for which there must be hugepages. Where not,
/// says so with the test's name.
pub fn ready(test: &str) -> bool {
    let beside = program("laminad").with_file_name("lamina_spdk_tgt");
    if !beside.exists() {
        eprintln!("skipped: {test}: lamina_spdk_tgt is not built (docs/spdk.md says how)");
        return false;
    }
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = text.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
    let pages: u64 = free.and_then(|n| n.trim().parse().ok()).unwrap_or_default();
    let wanted = MEMORY_MIB * 1024 / HUGEPAGE_KIB;
    if pages < wanted {
        eprintln!(
            "skipped: {test}: {pages} hugepages are free and {wanted} are needed \
             (write more to /proc/sys/vm/nr_hugepages)"
        );
        return false;
    }
    true
}

/// The same, for a test that needs a program of SPDK.
pub fn ready_with(test: &str, place: &str) -> bool {
    if spdk_program(place).is_none() {
        eprintln!("skipped: {test}: {place} is not in SPDK_DIR (build SPDK's examples and tests)");
        return false;
    }
    ready(test)
}

/// Bdevs that an application begins with, as methods and parameters.
pub type Bdevs<'a> = &'a [(&'a str, Value)];

/// A malloc bdev `Malloc0` of `mib` MiB, in blocks of `block` bytes.
pub fn malloc(mib: u64, block: u64) -> (&'static str, Value) {
    let blocks = mib * MIB / block;
    let params = json!({"name": "Malloc0", "num_blocks": blocks, "block_size": block});
    ("bdev_malloc_create", params)
}

/// A bdev `Pass0` that hands its I/O on to `Malloc0`, and lends no memory.
pub fn passthru() -> (&'static str, Value) {
    ("bdev_passthru_create", json!({"base_bdev_name": "Malloc0", "name": "Pass0"}))
}

impl App {
    /// Makes a folder and starts the application in it.
    pub fn start(tool: Tool<'_>, bdevs: Bdevs<'_>) -> App {
        App::start_in(Folder::new(), tool, bdevs)
    }

    /// Starts the application in a folder that there is.
    pub fn start_in(folder: Folder, tool: Tool<'_>, bdevs: Bdevs<'_>) -> App {
        let mut config: Vec<Value> =
            bdevs.iter().map(|(m, p)| json!({"method": m, "params": p})).collect();
        config.push(json!({"method": "bdev_wait_for_examine"}));
        let config = json!({"subsystems": [{"subsystem": "bdev", "config": config}]});
        let path = folder.path().join("bdevs.json");
        std::fs::write(&path, config.to_string()).expect("a file in the test's folder");
        let module = program("liblamina_spdk.so");
        let (program, preload, arguments) = match tool {
            Tool::Target => (program("lamina_spdk_tgt"), Vec::new(), Vec::new()),
            Tool::Preloaded(place, arguments) => {
                let found = spdk_program(place).expect("the test has asked for it");
                (found, vec![module], arguments.iter().map(ToString::to_string).collect())
            }
            Tool::Beside(library) => {
                let found = spdk_program(SPDK_TGT).expect("the test has asked for it");
                (found, vec![module, library.to_path_buf()], Vec::new())
            }
        };
        let mut app = App { folder, child: None, config: path, program, preload, arguments };
        app.run();
        app
    }

    /// Starts it again, after [`App::kill`] or [`App::stop`].
    pub fn run(&mut self) {
        assert!(self.child.is_none(), "it is running already");
        let _ = std::fs::remove_file(self.socket());
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("log"));
        let output = log.expect("log file");
        let mut command = Command::new(&self.program);
        if !self.preload.is_empty() {
            let all = std::env::join_paths(&self.preload).expect("paths without colons");
            command.env("LD_PRELOAD", all);
        }
        if let Some(dir) = std::env::var_os("SPDK_DIR") {
            command.env("LD_LIBRARY_PATH", Path::new(&dir).join("build/lib"));
        }
        // One that is killed does not tidy up.
        let state = self.path("state");
        command.env("LAMINA_OPTIONS", format!("--state-dir {}", state.display()));
        if !self.arguments.iter().any(|argument| argument == "-m") {
            // The second core is for the threads of control, and what the test itself runs.
            command.args(["-m", "0x1"]);
        }
        command.arg("-s").arg(MEMORY_MIB.to_string()).arg("--disable-cpumask-locks");
        command.arg("-r").arg(self.socket()).arg("-c").arg(&self.config);
        command.args(&self.arguments);
        if self.preload.is_empty() {
            command.arg("-S").arg(self.folder.path());
        }
        command.stdin(Stdio::null());
        command.stdout(output.try_clone().expect("log file")).stderr(output);
        self.child = Some(command.spawn().expect("the application can be run"));
        let deadline = Instant::now() + START_TIME_MAX;
        while let Err(error) = self.try_ask("framework_wait_init", Value::Null) {
            let ended = self.child.as_mut().expect("just started").try_wait().expect("a child");
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "SPDK does not answer ({}; ended: {ended:?})\n{}",
                error.message,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends it with SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it is running");
        child.kill().expect("a running child can be killed");
        child.wait().expect("a killed child ends");
    }

    /// Ends it with SIGTERM, in good order.
    pub fn stop(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it is running");
        let sent = Command::new("kill").arg("-TERM").arg(child.id().to_string()).status();
        assert!(sent.expect("kill can be run").success(), "it is gone already\n{}", self.log());
        let deadline = Instant::now() + START_TIME_MAX;
        loop {
            if let Some(status) = child.try_wait().expect("a child") {
                return status;
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                panic!("SPDK ignores SIGTERM\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends it in good order, and gives the folder back.
    pub fn into_folder(mut self) -> Folder {
        let status = self.stop();
        assert!(status.success(), "it ended with {status}\n{}", self.log());
        std::mem::replace(&mut self.folder, Folder::new())
    }

    fn socket(&self) -> PathBuf {
        self.path("rpc.sock")
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Calls a method.
    pub fn try_ask(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        call(&self.socket(), method, params)
    }

    /// Calls a method that must succeed.
    pub fn ask(&self, method: &str, params: Value) -> Value {
        self.try_ask(method, params.clone()).unwrap_or_else(|error| {
            panic!("{method} {params}: {} ({})\n{}", error.message, error.code, self.log())
        })
    }

    /// Makes the store `pool` on a bdev.
    pub fn create_store(&self, bdev: &str) {
        self.ask("lamina_store_create", json!({"name": "pool", "path": bdev}));
    }

    /// Makes a disk; gives its UUID, which is its name as a bdev.
    pub fn create_disk(&self, name: &str, mib: u64) -> String {
        let params = json!({"lvol_name": name, "size": mib * MIB});
        self.ask("lamina_bdev_lvol_create", params).as_str().expect("a UUID").to_string()
    }

    /// Takes a snapshot.
    pub fn snapshot(&self, disk: &str, label: &str) {
        let params = json!({"lvol_name": disk, "snapshot_name": label});
        self.ask("lamina_bdev_lvol_snapshot", params);
    }

    /// Makes a disk of a snapshot.
    pub fn clone_of(&self, snapshot: &str, name: &str) {
        let params = json!({"snapshot_name": snapshot, "clone_name": name});
        self.ask("lamina_bdev_lvol_clone", params);
    }

    /// The bdev of this name or alias, if there is one.
    pub fn bdev(&self, name: &str) -> Option<Value> {
        self.try_ask("bdev_get_bdevs", json!({"name": name})).ok().map(|mut list| list[0].take())
    }

    /// Exports a disk through SPDK's vhost; gives the socket.
    pub fn export(&self, disk: &str) -> PathBuf {
        let name = format!("{}.sock", disk.replace('/', "-"));
        self.ask("vhost_create_blk_controller", json!({"ctrlr": name, "dev_name": disk}));
        self.path(&name)
    }

    /// Waits until SPDK's vhost has seen that its clients are gone. A target that is to end while
    /// one is just leaving waits for that one twice, and does not end (a fault of SPDK's vhost).
    pub fn await_no_clients(&self) {
        let deadline = Instant::now() + START_TIME_MAX;
        loop {
            let controllers = self.ask("vhost_get_controllers", json!({}));
            let controllers = controllers.as_array().expect("a list");
            if controllers.iter().all(|one| one["sessions"].as_array().is_some_and(Vec::is_empty)) {
                return;
            }
            assert!(Instant::now() < deadline, "clients do not go: {controllers:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A counter of the first shard of the first store.
    pub fn counter(&self, name: &str) -> u64 {
        let stats = self.ask("lamina_stats", json!({}));
        let value = stats["stores"][0]["shards"][0][name].as_u64();
        value.unwrap_or_else(|| panic!("no {name} in {stats}"))
    }
}

impl Drop for App {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

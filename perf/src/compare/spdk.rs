//! SPDK as somebody else has built it: its target, and its two clients, which drive any target.
//!
//! Nothing of it is part of this project. It is found through the environment: the folder of its
//! sources with a finished build inside.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lamina_rpc::Client;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::figure::{Figure, Watch};
use super::rows::Case;
use super::target::{Target, signal};
use crate::clock;
use crate::vhost::folder::Folder;
use crate::vhost::process::Process;

/// Names the folder of the build.
pub const VARIABLE: &str = "LAMINA_SPDK_DIR";
/// Memory of a client, MiB.
const CLIENT_MIB: u64 = 128;
/// Memory of a target beside its disks, MiB.
const TARGET_MIB: u64 = 192;
const MIB: u64 = 1 << 20;

/// A finished build.
#[derive(Clone, Debug)]
pub struct Build(PathBuf);

impl Build {
    /// The build that the environment names; otherwise why there is none to use.
    pub fn find() -> std::result::Result<Build, String> {
        let Some(folder) = std::env::var_os(VARIABLE) else {
            return Err(format!("{VARIABLE} does not name a build of SPDK"));
        };
        let build = Build(PathBuf::from(folder).join("build"));
        for program in ["bin/spdk_tgt", "bin/spdk_nvme_perf", "examples/bdevperf"] {
            if !build.0.join(program).exists() {
                return Err(format!("the folder in {VARIABLE} has no build/{program}"));
            }
        }
        // One target a lane, and its client.
        let free = free_hugepage_mib().unwrap_or(0);
        if free < 1536 {
            return Err(format!(
                "{free} MiB of 2 MiB hugepages are free, and SPDK needs 1536 for these rows: \
                 write 1536 to /proc/sys/vm/nr_hugepages"
            ));
        }
        Ok(build)
    }

    fn command(&self, program: &str) -> Command {
        // It polls for ever, so it must not outlive us, however we end; and its lines come as they
        // are written, so that one knows when it begins.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "stdbuf", "-oL"]).arg(self.0.join(program));
        command.env("LD_LIBRARY_PATH", self.0.join("lib"));
        command.stdin(Stdio::null()).stderr(Stdio::null());
        command
    }
}

fn free_hugepage_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some(field("HugePages_Free:")? * field("Hugepagesize:")? / 1024)
}

fn mask(core: usize) -> String {
    format!("{:#x}", 1u64 << core)
}

/// Connects to a program that has just been started.
fn connect_soon(socket: &Path, what: &str) -> Result<Client> {
    let end = clock::wall_ns() + 20_000_000_000;
    loop {
        match Client::connect_within(socket, Duration::from_secs(120)) {
            Ok(client) => return Ok(client),
            Err(error) if clock::wall_ns() > end => {
                return Err(error).with_context(|| format!("{what} does not answer after 20 s"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// One of SPDK's programs. It is asked to end, since what it leaves behind when it is killed (files
/// in the hugepages' file system) takes memory from the next one.
struct Program(Process);

impl Program {
    fn start(command: &mut Command, what: &str) -> Result<Program> {
        let child = command.spawn().with_context(|| format!("starting {what}"))?;
        Ok(Program(Process::new(child)))
    }

    fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Whatever fails here, the process is killed in the end.
        if signal(self.id(), Signal::TERM).is_ok() && signal(self.id(), Signal::CONT).is_ok() {
            let end = clock::wall_ns() + 5_000_000_000;
            while clock::wall_ns() < end && matches!(self.0.child().try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// A running `spdk_tgt`; ended when dropped.
pub struct Spdk {
    process: Program,
    client: Client,
    folder: Folder,
}

impl Spdk {
    /// Starts it with its reactor on `core` and memory for disks of so many bytes.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(build: &Build, core: usize, bytes: u64) -> Result<Spdk> {
        let folder = Folder::new(&std::env::temp_dir())?;
        let socket = folder.path("rpc");
        let memory = TARGET_MIB + bytes.div_ceil(MIB);
        let mut command = build.command("bin/spdk_tgt");
        command.args(["-m", &mask(core), "-s", &memory.to_string(), "--disable-cpumask-locks"]);
        command.arg("-S").arg(folder.path("")).arg("-r").arg(&socket).stdout(Stdio::null());
        let process = Program::start(&mut command, "spdk_tgt")?;
        let client = connect_soon(&socket, "spdk_tgt")?;
        Ok(Spdk { process, client, folder })
    }

    /// One call.
    ///
    /// # Errors
    /// It is refused.
    pub fn call(&mut self, method: &str, params: &Value) -> Result<Value> {
        let answer = self.client.call_raw(method, params);
        answer.with_context(|| format!("SPDK: {method} {params}"))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A path in its folder, where its vhost sockets are too.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path(name)
    }
}

/// `bdevperf` with a vhost-user-blk disk, waiting to be told what to run.
pub struct BdevPerf {
    process: Program,
    client: Client,
    _folder: Folder,
}

impl BdevPerf {
    /// Starts it on `core` and connects it to a socket.
    ///
    /// # Errors
    /// It does not start, or does not get on with the target.
    pub fn start(build: &Build, core: usize, disk: &Path) -> Result<BdevPerf> {
        let folder = Folder::new(&std::env::temp_dir())?;
        let (config, socket) = (folder.path("config"), folder.path("rpc"));
        let attach = json!({"method": "bdev_virtio_attach_controller", "params": {
            "name": "V0", "trtype": "user", "traddr": disk.to_str().context("no text")?,
            "dev_type": "blk", "vq_count": 2, "vq_size": 256}});
        let subsystem = json!({"subsystem": "bdev", "config": [attach]});
        std::fs::write(&config, json!({"subsystems": [subsystem]}).to_string())?;
        let mut command = build.command("examples/bdevperf");
        command.args(["-z", "-g", "-q", "1", "-o", "4096", "-w", "read", "-t", "1"]);
        command.args(["-m", &mask(core), "-s", &CLIENT_MIB.to_string()]);
        command.arg("--disable-cpumask-locks");
        command.arg("-c").arg(&config).arg("-r").arg(&socket).stdout(Stdio::null());
        let process = Program::start(&mut command, "bdevperf")?;
        let mut client = connect_soon(&socket, "bdevperf")?;
        let bdevs = client.call_raw("bdev_get_bdevs", &json!({}))?;
        ensure!(bdevs[0]["name"] == "V0", "bdevperf has not got the disk: {bdevs}");
        Ok(BdevPerf { process, client, _folder: folder })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Runs a load for so many seconds.
    ///
    /// # Errors
    /// A request failed, or the target is gone.
    pub fn run(&mut self, target: &Target, case: &Case, seconds: u32) -> Result<Figure> {
        let watch = Watch::during(target.pid(), self.process.id(), seconds);
        let answer = self.client.call_raw(
            "perform_tests",
            &json!({"time_in_sec": seconds, "workload_type": case.workload(),
                "queue_depth": case.depth, "io_size": case.bytes.to_string()}),
        )?;
        let result = &answer["results"][0];
        let iops = result["iops"].as_f64().with_context(|| format!("no IOPS in {answer}"))?;
        let failed = result["fails_per_second"].as_f64().unwrap_or(0.0);
        ensure!(failed == 0.0 && iops > 0.0, "requests failed: {result}");
        Ok(watch.end()?.figure(iops))
    }
}

/// One run of `spdk_nvme_perf`.
///
/// # Errors
/// It cannot connect, or a request failed.
pub fn nvme_perf(
    build: &Build,
    core: usize,
    target: &Target,
    (port, nqn): (u16, &str),
    case: &Case,
    seconds: u32,
) -> Result<Figure> {
    let mut command = build.command("bin/spdk_nvme_perf");
    let to = format!("trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:{port} subnqn:{nqn}");
    command.args(["-r", &to, "-q", &case.depth.to_string(), "-o", &case.bytes.to_string()]);
    command.args(["-w", case.workload(), "-t", &seconds.to_string()]);
    command.args(["-c", &mask(core), "-s", &CLIENT_MIB.to_string()]);
    let child = command.stdout(Stdio::piped()).spawn().context("starting spdk_nvme_perf")?;
    let mut process = Process::new(child);
    let mut out = BufReader::new(process.child().stdout.take().context("no standard output")?);
    let mut text = String::new();
    while !text.contains("Launching workers") {
        ensure!(out.read_line(&mut text)? > 0, "spdk_nvme_perf has not begun: {text}");
    }
    let watch = Watch::during(target.pid(), process.id(), seconds);
    out.read_to_string(&mut text)?;
    let status = process.child().wait()?;
    let total = text.lines().rev().find_map(|line| line.trim_start().strip_prefix("Total"));
    let iops = total.and_then(|line| line.split_whitespace().find_map(|word| word.parse().ok()));
    let Some(iops) = iops.filter(|iops: &f64| status.success() && *iops > 0.0) else {
        bail!("spdk_nvme_perf ended with {status}: {text}");
    };
    Ok(watch.end()?.figure(iops))
}

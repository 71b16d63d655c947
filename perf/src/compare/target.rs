//! A target process with one disk, ready to be driven: laminad or SPDK's.

use std::net::TcpListener;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::Options;
use super::rows::Peer;
use super::spdk::{Build, Spdk};
use crate::daemon::{Daemon, Settings};
use crate::vhost::folder::Folder;

/// The NVMe subsystem of each target.
pub const SUBSYSTEM: &str = "nqn.2016-06.io.spdk:cnode1";
const MIB: u64 = 1 << 20;

enum Process {
    Lamina(Box<Daemon>),
    Spdk(Box<Spdk>),
}

/// A target. It stands still unless [`Target::resume`] was called: all targets of a group take
/// turns on one core.
pub struct Target {
    process: Process,
    disk: String,
    // Goes after the process.
    _folder: Folder,
}

impl Target {
    /// Starts a target of `peer` and makes its disk, which nothing has written to.
    ///
    /// # Errors
    /// It does not start, or refuses something.
    pub fn start(peer: Peer, options: &Options, spdk: Option<&Build>) -> Result<Target> {
        let folder = Folder::new(&options.folder())?;
        if peer.is_spdk() {
            let build = spdk.context("no build of SPDK")?;
            return Target::start_spdk(peer, options, build, folder);
        }
        let size = options.size;
        let mut daemon = Daemon::start(&Settings {
            program: options.daemon.clone(),
            cores: options.target_core.to_string(),
            ..Settings::default()
        })?;
        let bytes = 2 * size + 256 * MIB;
        let path = match peer {
            Peer::LaminaNull => format!("null:{bytes}"),
            Peer::LaminaFile => folder.path("store").display().to_string(),
            _ => format!("ram:{bytes}"),
        };
        let mut store = json!({"name": "perf", "path": path});
        if peer == Peer::LaminaFile {
            store["size"] = bytes.into();
        }
        daemon.call("lamina_store_create", &store)?;
        daemon.call("bdev_lvol_create", &json!({"lvol_name": "disk", "size": size}))?;
        let process = Process::Lamina(Box::new(daemon));
        Ok(Target { process, disk: "disk".into(), _folder: folder })
    }

    fn start_spdk(peer: Peer, options: &Options, build: &Build, folder: Folder) -> Result<Target> {
        // An lvol store has metadata of its own; a snapshot takes a cluster of it.
        let base = 2 * options.size + 64 * MIB;
        let (bytes, lvol) = match peer {
            Peer::SpdkLvol | Peer::SpdkLvolDeep => (base, true),
            Peer::SpdkLvolFile => (0, true),
            Peer::SpdkNull => (0, false),
            _ => (options.size, false),
        };
        let mut spdk = Spdk::start(build, options.target_core, bytes)?;
        let size = if lvol { base } else { options.size };
        match peer {
            Peer::SpdkNull => {
                let blocks = size / 4096;
                let null = json!({"name": "base", "num_blocks": blocks, "block_size": 4096});
                spdk.call("bdev_null_create", &null)?;
            }
            Peer::SpdkLvolFile => {
                let file = folder.path("store");
                std::fs::File::create_new(&file)?.set_len(size)?;
                let file = file.to_str().context("no text")?;
                let aio = json!({"name": "base", "filename": file, "block_size": 4096});
                spdk.call("bdev_aio_create", &aio)?;
            }
            _ => {
                let blocks = size / 4096;
                let ram = json!({"name": "base", "num_blocks": blocks, "block_size": 4096});
                spdk.call("bdev_malloc_create", &ram)?;
            }
        }
        let mut disk = "base".to_owned();
        if lvol {
            let store = json!({"bdev_name": "base", "lvs_name": "lvs"});
            spdk.call("bdev_lvol_create_lvstore", &store)?;
            let lvol = json!({"lvs_name": "lvs", "lvol_name": "disk",
                "size_in_mib": options.size / MIB, "thin_provision": true});
            spdk.call("bdev_lvol_create", &lvol)?;
            disk = "lvs/disk".into();
        }
        Ok(Target { process: Process::Spdk(Box::new(spdk)), disk, _folder: folder })
    }

    /// One call.
    ///
    /// # Errors
    /// It is refused.
    pub fn call(&mut self, method: &str, params: &Value) -> Result<Value> {
        match &mut self.process {
            Process::Lamina(daemon) => daemon.call(method, params),
            Process::Spdk(spdk) => spdk.call(method, params),
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        match &self.process {
            Process::Lamina(daemon) => daemon.pid(),
            Process::Spdk(spdk) => spdk.pid(),
        }
    }

    /// Exports the disk over vhost-user-blk: the socket.
    ///
    /// # Errors
    /// It is refused.
    pub fn export(&mut self) -> Result<PathBuf> {
        let (socket, name) = match &self.process {
            Process::Lamina(daemon) => (daemon.path("disk.sock"), None),
            Process::Spdk(spdk) => (spdk.path("disk.sock"), Some("disk.sock")),
        };
        let name = name.or(socket.to_str()).context("no text")?;
        let export = json!({"ctrlr": name, "dev_name": self.disk});
        self.call("vhost_create_blk_controller", &export)?;
        Ok(socket)
    }

    /// Exports the disk as a namespace over NVMe/TCP: the port on the loopback.
    ///
    /// # Errors
    /// It is refused.
    pub fn export_nvme(&mut self) -> Result<u16> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        if matches!(self.process, Process::Spdk(_)) {
            self.call("nvmf_create_transport", &json!({"trtype": "TCP"}))?;
        }
        let subsystem = json!({"nqn": SUBSYSTEM, "allow_any_host": true});
        self.call("nvmf_create_subsystem", &subsystem)?;
        let namespace = json!({"nqn": SUBSYSTEM, "namespace": {"bdev_name": self.disk}});
        self.call("nvmf_subsystem_add_ns", &namespace)?;
        let address = json!({"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1",
            "trsvcid": port.to_string()});
        let listener = json!({"nqn": SUBSYSTEM, "listen_address": address});
        self.call("nvmf_subsystem_add_listener", &listener)?;
        Ok(port)
    }

    /// Waits until nothing of the past goes on in the background.
    ///
    /// # Errors
    /// It is refused.
    pub fn settle(&mut self) -> Result<()> {
        match self.process {
            Process::Lamina(_) => self.call("lamina_checkpoint", &json!({})).map(|_| ()),
            Process::Spdk(_) => Ok(()),
        }
    }

    /// Takes a snapshot of the disk: what [`Target::delete`] calls it.
    ///
    /// # Errors
    /// It is refused.
    pub fn snapshot(&mut self, number: usize) -> Result<String> {
        let name = format!("snap{number}");
        let snapshot = json!({"lvol_name": self.disk, "snapshot_name": name});
        let made = self.call("bdev_lvol_snapshot", &snapshot)?;
        Ok(made.as_str().context("a snapshot's name")?.to_owned())
    }

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// It is refused.
    pub fn delete(&mut self, snapshot: &str) -> Result<()> {
        self.call("bdev_lvol_delete", &json!({"name": snapshot})).map(|_| ())
    }
}

/// Lets a process stand still.
///
/// # Errors
/// It has ended.
pub fn pause(pid: u32) -> Result<()> {
    signal(pid, Signal::STOP)
}

/// Lets a process go on.
///
/// # Errors
/// It has ended.
pub fn resume(pid: u32) -> Result<()> {
    signal(pid, Signal::CONT)
}

/// Sends a signal.
///
/// # Errors
/// It has ended.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid as i32).context("no process")?;
    Ok(kill_process(pid, signal)?)
}

//! qemu-storage-daemon on files in RAM: what one compares with, and proof that the client is right.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::Options;
use super::folder::Folder;
use super::process::Process;
use super::rig::Peer;
use crate::clock;
use crate::store::Took;

/// Format of the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// The bytes themselves.
    Raw,
    /// QEMU's own, with clusters of 64 KiB.
    Qcow2,
}

/// One process for each disk.
pub struct Qsd {
    program: PathBuf,
    format: Format,
    core: usize,
    client_core: usize,
    direct: bool,
    // They end before their folder goes.
    disks: Vec<Option<Process>>,
    folder: Folder,
}

impl Qsd {
    /// Nothing runs yet. Images go into a folder below `parent`; `direct` passes the page cache by,
    /// with Linux's own asynchronous I/O, where the file system can.
    ///
    /// # Errors
    /// No folder for the images.
    pub fn new(
        program: Option<PathBuf>,
        format: Format,
        (core, client_core): (usize, usize),
        parent: &Path,
        direct: bool,
    ) -> Result<Qsd> {
        let folder = Folder::new(parent)?;
        let program = program.unwrap_or_else(|| "qemu-storage-daemon".into());
        Ok(Qsd { program, format, core, client_core, direct, disks: Vec::new(), folder })
    }

    /// Images in RAM, as the command's options say.
    ///
    /// # Errors
    /// No folder for the images.
    pub fn in_ram(options: &Options, format: Format) -> Result<Qsd> {
        let (memory, temporary) = (Path::new("/dev/shm"), std::env::temp_dir());
        let parent = if memory.is_dir() { memory } else { &temporary };
        let cores = (options.target_core, options.client_core);
        Qsd::new(options.daemon.clone(), format, cores, parent, false)
    }

    fn image(&self, number: usize, bytes: u64) -> Result<(PathBuf, &'static str)> {
        let path = self.folder.path(&format!("disk{number}.image"));
        match self.format {
            Format::Raw => {
                std::fs::File::create_new(&path)?.set_len(bytes)?;
                Ok((path, "raw"))
            }
            Format::Qcow2 => {
                let mut make = Command::new("qemu-img");
                make.args(["create", "-q", "-f", "qcow2"]).arg(&path).arg(bytes.to_string());
                let status = make.status().context("qemu-img: install the package qemu-utils")?;
                ensure!(status.success(), "qemu-img could not make {}", path.display());
                Ok((path, "qcow2"))
            }
        }
    }
}

impl Peer for Qsd {
    fn name(&self) -> String {
        match self.format {
            Format::Raw => "qemu-storage-daemon, raw file in RAM,".into(),
            Format::Qcow2 => "qemu-storage-daemon, qcow2 file in RAM,".into(),
        }
    }

    fn create(&mut self, number: usize, bytes: u64) -> Result<PathBuf> {
        assert_eq!(self.disks.len(), number, "disks are made in order");
        let (image, driver) = self.image(number, bytes)?;
        let socket = self.folder.path(&format!("disk{number}.sock"));
        let (file, path) = (image.display(), socket.display());
        let mut command = Command::new(&self.program);
        let mut below = format!("driver=file,node-name=file,filename={file}");
        if self.direct {
            below += ",cache.direct=on,aio=native";
        }
        command.arg("--blockdev").arg(below);
        command.arg("--blockdev").arg(format!("driver={driver},node-name=disk,file=file"));
        command.arg("--export").arg(format!(
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path={path}"
        ));
        // Its threads inherit the core.
        clock::pin(self.core)?;
        let child = command.stdin(Stdio::null()).spawn().map(Process::new);
        clock::pin(self.client_core)?;
        let program = self.program.display();
        let child =
            child.with_context(|| format!("starting {program}: install qemu-system-common"))?;
        self.disks.push(Some(child));
        Ok(socket)
    }

    fn delete(&mut self, number: usize) -> Result<()> {
        self.disks[number] = None;
        Ok(std::fs::remove_file(self.folder.path(&format!("disk{number}.image")))?)
    }

    fn delete_snapshots(&mut self, _number: usize) -> Result<()> {
        Ok(())
    }

    fn pid(&self, number: usize) -> u32 {
        self.disks[number].as_ref().map_or(0, Process::id)
    }

    fn settle(&mut self) -> Result<()> {
        Ok(())
    }

    fn has_snapshots(&self) -> bool {
        false
    }

    fn ask_snapshot(&mut self, _number: usize) -> Result<()> {
        bail!("snapshots of qemu-storage-daemon are not measured")
    }

    fn snapshot_answer(&mut self) -> Result<Option<Took>> {
        Ok(None)
    }
}

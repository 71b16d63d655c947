//! A block device on the disk's file, through the kernel's loop driver.
//!
//! FUSE makes whoever submits a write wait while an fsync of the same file runs; a block device
//! never does, so a stall of the disk is one here as it is on hardware.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device, taken down when dropped.
#[derive(Debug)]
pub struct LoopDevice(PathBuf);

impl LoopDevice {
    /// Sets one up on `file`, with direct I/O.
    ///
    /// # Errors
    /// What losetup says.
    pub fn new(file: &Path) -> Result<LoopDevice, String> {
        let mut command = Command::new("losetup");
        command.args(["--find", "--show", "--direct-io=on"]).arg(file);
        let output = command.output().map_err(|error| format!("losetup: {error}"))?;
        if !output.status.success() {
            return Err(format!("losetup: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        Ok(LoopDevice(String::from_utf8_lossy(&output.stdout).trim().into()))
    }

    /// The device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let status = Command::new("losetup").arg("--detach").arg(&self.0).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("cannot take down {}", self.0.display());
        }
    }
}

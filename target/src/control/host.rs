//! Who drives the shards and knows the devices: the daemon itself, or a program that it lives in.
//!
//! ```text
//!  Control ─► Host ─┬─ Embedded: reactors of this daemon; files, block devices, RAM
//!                   └─ another program's (lamina-spdk): its threads, its devices ("bdev:NAME")
//! ```

use std::sync::Arc;

use lamina_bdev::Error;

use super::device::Device;
use crate::reactor::handle::ReactorHandle;

/// Paths that begin so name a device of another host, and are no files.
pub const PATH_PREFIX: &str = "bdev:";

/// What control needs of a host.
pub trait Host: Send + Sync {
    /// Who is to drive one more shard.
    ///
    /// # Errors
    /// `Io`: nobody can.
    fn place_shard(&self) -> Result<Arc<ReactorHandle>, Error>;

    /// The device that a store is said to be on, taken for us alone.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `Invalid`, `Io`.
    fn open(&self, path: &str) -> Result<Device, Error>;

    /// The device that a new store is to be on. True: it was made for it.
    ///
    /// # Errors
    /// As [`Host::open`]; `Exists`: it holds data, and not `force`.
    fn open_new(&self, path: &str, size: Option<u64>, force: bool)
    -> Result<(Device, bool), Error>;
}

/// The daemon itself.
pub(super) struct Embedded {
    /// Its reactors, at least one.
    pub reactors: Vec<Arc<ReactorHandle>>,
}

impl Host for Embedded {
    fn place_shard(&self) -> Result<Arc<ReactorHandle>, Error> {
        let least = self.reactors.iter().min_by_key(|reactor| reactor.shards());
        Ok(least.expect("there is a reactor").clone())
    }

    fn open(&self, path: &str) -> Result<Device, Error> {
        Device::open(path)
    }

    fn open_new(
        &self,
        path: &str,
        size: Option<u64>,
        force: bool,
    ) -> Result<(Device, bool), Error> {
        Device::for_new_store(path, size, force)
    }
}

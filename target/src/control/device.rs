//! What a store lies on, as control threads see it: found by its path, read, written, and turned
//! into one base for each shard.

use std::path::Path;
use std::sync::Arc;

use lamina_bdev::{Error, ErrorKind};

use crate::base::{Base, BaseFile, HostBase, NullBase, RamBase, RamDevice, Region, UringBase};
use crate::config::parse_size;
use crate::log;

/// The part of a device that is looked at before it is overwritten, bytes.
const HEAD_BYTES: usize = 64 << 10;
const BLOCK: u64 = lamina_bdev::BLOCK_SIZE as u64;

/// A device of another host. Every call blocks, on a control thread.
pub trait HostDevice: Send + Sync {
    /// Its name, by which it is opened again.
    fn name(&self) -> String;
    /// Bytes.
    fn size(&self) -> u64;
    /// Reads whole blocks.
    ///
    /// # Errors
    /// `Io`.
    fn read_at(&self, out: &mut [u8], offset: u64) -> Result<(), Error>;
    /// Writes whole blocks.
    ///
    /// # Errors
    /// `Io`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), Error>;
    /// Makes what was written durable.
    ///
    /// # Errors
    /// `Io`.
    fn sync(&self) -> Result<(), Error>;
    /// The base of one shard.
    ///
    /// # Errors
    /// `Io`.
    fn base(&self, region: Region) -> Result<Box<dyn HostBase>, Error>;
}

/// A device that can hold a store.
#[derive(Clone)]
pub enum Device {
    /// Memory of the daemon; gone with it.
    Ram(Arc<RamDevice>),
    /// The same for metadata; data goes nowhere.
    Null(Arc<RamDevice>),
    /// A file or block device.
    File(Arc<BaseFile>),
    /// A device of another host.
    Host(Arc<dyn HostDevice>),
}

impl Device {
    /// Opens (and locks) what a store is said to be on.
    ///
    /// # Errors
    /// See [`BaseFile::open`]; `Invalid` for RAM, which has nothing to open.
    pub fn open(path: &str) -> Result<Device, Error> {
        if ends_with_the_daemon(path) {
            let why = format!("{path}: a store in RAM ends with the daemon; create it again");
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        Ok(Device::File(Arc::new(BaseFile::open(Path::new(path))?)))
    }

    /// Opens, or makes, what a new store is to be on. True: the file is new.
    ///
    /// # Errors
    /// `Invalid`: sizes that do not fit each other. `Exists`: it holds data, and not `force`.
    pub fn for_new_store(
        path: &str,
        size: Option<u64>,
        force: bool,
    ) -> Result<(Device, bool), Error> {
        let invalid = |text: String| Error::new(ErrorKind::Invalid, text);
        let null = path.strip_prefix("null:");
        if let Some(text) = path.strip_prefix("ram:").or(null) {
            let bytes = parse_size(text).map_err(|why| invalid(format!("{path}: {why}")))?;
            if size.is_some_and(|size| size != bytes) {
                return Err(invalid(format!("{path} says its size; leave out the other one")));
            }
            if null.is_some() {
                log::warn(format!("{path} keeps no data: it is for measurements only"));
                return Ok((Device::Null(Arc::new(RamDevice::sparse(bytes)?)), false));
            }
            let ram = RamDevice::new(bytes)?;
            if let Some(pages) = ram.pages() {
                log::info(format!("{path}: {}", pages.describe()));
            }
            return Ok((Device::Ram(Arc::new(ram)), false));
        }
        if !Path::new(path).is_absolute() {
            return Err(invalid(format!(
                "{path:?} is relative, and the daemon may run elsewhere: \
                 give an absolute path, or ram:SIZE"
            )));
        }
        if !Path::new(path).exists() {
            let size = size.ok_or_else(|| {
                invalid(format!("{path} does not exist: give a size to make a file there"))
            })?;
            let file = BaseFile::create(Path::new(path), size / BLOCK * BLOCK)?;
            return Ok((Device::File(Arc::new(file)), true));
        }
        let mut file = BaseFile::open(Path::new(path))?;
        if !force {
            let shown = file.path().display().to_string();
            refuse_if_used(file.size(), &shown, |head| file.read_at(head, 0))?;
        }
        match size {
            Some(size) if size > file.size() => file.extend(size / BLOCK * BLOCK)?,
            Some(size) if size < file.size() => {
                return Err(invalid(format!(
                    "{path} has {} bytes already, not {size}: leave the size out",
                    file.size()
                )));
            }
            Some(_) | None => {}
        }
        Ok((Device::File(Arc::new(file)), false))
    }

    /// Takes away the file that was made for a store; what is not a file stays.
    pub fn remove(&self) {
        match self {
            Device::File(file) => file.remove(),
            Device::Ram(_) | Device::Null(_) | Device::Host(_) => {}
        }
    }

    /// Bytes, whole blocks.
    pub fn size(&self) -> u64 {
        let size = match self {
            Device::Ram(ram) | Device::Null(ram) => ram.size(),
            Device::File(file) => file.size(),
            Device::Host(device) => device.size(),
        };
        size / BLOCK * BLOCK
    }

    /// The path to open it by next time; `None` if there will be no next time.
    pub fn lasting_path(&self) -> Option<String> {
        match self {
            Device::Ram(_) | Device::Null(_) => None,
            Device::File(file) => file.path().to_str().map(str::to_string),
            Device::Host(device) => Some(device.name()),
        }
    }

    /// Reads whole sectors, blocking.
    ///
    /// # Errors
    /// `Io`.
    pub fn read_at(&self, out: &mut [u8], offset: u64) -> Result<(), Error> {
        match self {
            Device::Ram(ram) | Device::Null(ram) => {
                ram.read_at(out, offset);
                Ok(())
            }
            Device::File(file) => file.read_at(out, offset),
            Device::Host(device) => device.read_at(out, offset),
        }
    }

    /// Writes whole sectors, blocking.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        match self {
            Device::Ram(ram) | Device::Null(ram) => {
                ram.write_at(bytes, offset);
                Ok(())
            }
            Device::File(file) => file.write_at(bytes, offset),
            Device::Host(device) => device.write_at(bytes, offset),
        }
    }

    /// Makes sure that a part can be written even if a file system that it lies on is full.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub fn reserve(&self, offset: u64, len: u64) -> Result<(), Error> {
        match self {
            Device::File(file) => file.reserve(offset, len),
            Device::Ram(_) | Device::Null(_) | Device::Host(_) => Ok(()),
        }
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// `Io`.
    pub fn sync(&self) -> Result<(), Error> {
        match self {
            Device::Ram(_) | Device::Null(_) => Ok(()),
            Device::File(file) => file.sync(),
            Device::Host(device) => device.sync(),
        }
    }

    /// The base of one shard.
    ///
    /// # Errors
    /// `Io`: no ring.
    pub fn base(&self, region: Region) -> Result<Base, Error> {
        Ok(match self {
            Device::Ram(ram) => Base::Ram(RamBase::new(ram.clone(), region)),
            Device::Null(ram) => Base::Null(NullBase::new(ram.clone(), region)),
            Device::File(file) => Base::Uring(Box::new(UringBase::new(file.clone(), region)?)),
            Device::Host(device) => Base::Host(device.base(region)?),
        })
    }
}

/// True of the path of a store that is gone when the daemon is.
pub fn ends_with_the_daemon(path: &str) -> bool {
    path.starts_with("ram:") || path.starts_with("null:")
}

/// Looks at the head of a device of `size` bytes before it is overwritten.
///
/// # Errors
/// `Exists`: it holds data. What `read` says.
pub fn refuse_if_used(
    size: u64,
    path: &str,
    read: impl FnOnce(&mut [u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let head = (HEAD_BYTES as u64).min(size / BLOCK * BLOCK) as usize;
    let mut bytes = vec![0; head];
    read(&mut bytes)?;
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok(());
    }
    let label = bytes.get(..lamina_bdev::LABEL_BYTES);
    let what = match label.map(|first| lamina_bdev::read_label(first, size)) {
        Some(Ok(label)) => format!("{path} holds the store {} already", label.name),
        Some(Err(_)) | None => format!("{path} holds other data already"),
    };
    let why = format!("{what}: say force to overwrite it, or give another path");
    Err(Error::new(ErrorKind::Exists, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn bad_places_for_a_store_are_refused_and_left_alone() {
        let dir = TempDir::new("device");
        let file = dir.path().join("data");
        let path = file.to_str().unwrap();
        std::fs::write(&file, vec![7u8; 8192]).unwrap();
        for (path, size, kind, words) in [
            (path, None, ErrorKind::Exists, "holds other data"),
            ("relative", Some(1 << 30), ErrorKind::Invalid, "absolute path"),
            ("ram:x", None, ErrorKind::Invalid, "not a size"),
            ("ram:1M", Some(5), ErrorKind::Invalid, "says its size"),
            ("/nonexistent-file", None, ErrorKind::Invalid, "give a size"),
            ("/nonexistent/file", Some(4096), ErrorKind::NotFound, "does not exist"),
        ] {
            let error = Device::for_new_store(path, size, false).err().unwrap();
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.message.contains(words), "{error}");
        }
        assert!(std::fs::read(&file).unwrap() == vec![7u8; 8192]);
        let error = Device::for_new_store(path, Some(4096), true).err().unwrap();
        assert!(error.message.contains("leave the size out"), "{error}");
        let (device, new) = Device::for_new_store(path, Some(1 << 20), true).unwrap();
        assert_eq!((device.size(), new), (1 << 20, false));
    }

    #[test]
    fn a_new_file_and_ram_have_the_size_asked_for() {
        let dir = TempDir::new("device-new");
        let path = dir.path().join("new");
        let path = path.to_str().unwrap();
        let (device, new) = Device::for_new_store(path, Some((1 << 20) + 5), false).unwrap();
        assert_eq!((device.size(), new), (1 << 20, true));
        assert_eq!(device.lasting_path().as_deref(), Some(path));
        let taken = || std::fs::metadata(path).unwrap().blocks() * 512;
        assert!(taken() < 64 << 10, "it is sparse");
        device.reserve(256 << 10, 512 << 10).unwrap();
        assert!((512 << 10..700 << 10).contains(&taken()), "{} bytes are taken", taken());
        assert_eq!(std::fs::metadata(path).unwrap().len(), 1 << 20);
        let (ram, _) = Device::for_new_store("ram:1M", None, false).unwrap();
        assert_eq!((ram.size(), ram.lasting_path()), (1 << 20, None));
        assert_eq!(Device::open("ram:1M").err().unwrap().kind, ErrorKind::Invalid);
    }
}

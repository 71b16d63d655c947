//! A bdev that holds a store, as control sees it.
//!
//! ```text
//!  BaseDevice ─► Opened ─► Descriptor ─► bdev
//!       ▲          ▲ one share each: the device, and every shard that is driven
//!       └─ Watch ◄─┴─ SPDK: the bdev goes ─► gone; the last share closes it
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use lamina_bdev::limits::SHARDS_MAX;
use lamina_bdev::{BLOCK_SIZE, BaseTraits, Error, ErrorKind, LABEL_BYTES, SECTOR_SIZE};
use lamina_target::base::flushes::Flushes;
use lamina_target::base::{HostBase, RamDevice, Region};
use lamina_target::control::device::HostDevice;
use lamina_target::control::host::PATH_PREFIX;
use lamina_target::log;

use crate::base::BdevBase;
use crate::control::on_app;
use crate::sys::channel::{Descriptor, Single, Watcher, start_single};
use crate::sys::dma::DmaBuffer;
use crate::sys::lent;
use crate::sys::thread::Thread;

/// Bytes read or written at a time by control.
const CHUNK_BYTES: usize = 1 << 20;
/// What SPDK calls a bdev in its own memory.
const RAM_PRODUCT: &str = "Malloc disk";

/// Told by SPDK what happens to the bdev.
#[derive(Default)]
pub struct Watch {
    name: String,
    gone: AtomicBool,
    device: Mutex<Weak<BaseDevice>>,
}

impl Watcher for Watch {
    fn removed(&self) {
        log::error(format!("bdev {} is gone: its disks answer with errors", self.name));
        self.gone.store(true, Ordering::Release);
        if let Some(device) = unpoisoned(&self.device).upgrade() {
            let opened = unpoisoned(&device.opened).take();
            drop(opened);
        }
    }

    fn resized(&self) {
        log::info(format!("bdev {} has another size; its store stays as it is", self.name));
    }
}

/// The open bdev; closed with its last share.
pub struct Opened {
    /// Its descriptor.
    pub desc: Arc<Descriptor<Watch>>,
    /// Its memory, if that is what it is.
    pub memory: Option<Arc<RamDevice>>,
}

/// See the picture above.
pub struct BaseDevice {
    name: String,
    bytes: u64,
    block_bytes: u32,
    traits: BaseTraits,
    can_flush: bool,
    flushes: Flushes,
    watch: Arc<Watch>,
    opened: Mutex<Option<Arc<Opened>>>,
}

impl BaseDevice {
    /// Opens a bdev; with `claim`, for us alone.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `Invalid` (blocks that no store can lie on).
    pub fn open(name: &str, claim: bool) -> Result<Arc<BaseDevice>, Error> {
        let watch = Arc::new(Watch { name: name.into(), ..Watch::default() });
        let (wanted, told) = (name.to_string(), watch.clone());
        let opened = on_app(move || {
            let mut desc = Descriptor::open(&wanted, told)?;
            if claim {
                desc.claim()?;
            }
            Ok(desc)
        })?;
        let desc = opened.map_err(|rc: i32| match -rc {
            libc::ENODEV => Error::new(
                ErrorKind::NotFound,
                format!("there is no bdev {name:?}: bdev_get_bdevs shows those there are"),
            ),
            libc::EPERM => Error::new(
                ErrorKind::Busy,
                format!("bdev {name} is claimed by another module: give another one"),
            ),
            errno => {
                let e = std::io::Error::from_raw_os_error(errno);
                Error::new(ErrorKind::Io, format!("bdev {name} cannot be opened: {e}"))
            }
        })?;
        let block_bytes = desc.block_bytes();
        let lawful = [SECTOR_SIZE as u32, BLOCK_SIZE as u32].contains(&block_bytes);
        if !lawful || desc.metadata_bytes() > 0 {
            let why = format!(
                "bdev {name} has blocks of {block_bytes} + {} bytes: \
                 a store needs 512 or 4096 without metadata",
                desc.metadata_bytes()
            );
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        let ram = desc.product() == RAM_PRODUCT;
        let desc = Arc::new(desc);
        let memory = if ram && claim { memory_of(&desc)? } else { None };
        let device = Arc::new(BaseDevice {
            name: name.into(),
            bytes: desc.bytes(),
            block_bytes,
            traits: BaseTraits {
                // RAM goes as a whole; a device with smaller blocks may tear.
                volatile_cache: !ram && desc.has_write_cache(),
                atomic_4k: ram || block_bytes as usize == BLOCK_SIZE,
                // Whoever drives a shard copies, one thread at a time.
                atomic_rw: memory.is_some(),
            },
            can_flush: desc.can_flush(),
            flushes: Flushes::new(SHARDS_MAX as usize),
            watch,
            opened: Mutex::new(Some(Arc::new(Opened { desc, memory }))),
        });
        *unpoisoned(&device.watch.device) = Arc::downgrade(&device);
        if device.is_gone() {
            // It went before it knew whom to tell.
            unpoisoned(&device.opened).take();
        }
        Ok(device)
    }

    /// Bytes in a block of the bdev.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// What the engine must know.
    pub fn traits(&self) -> BaseTraits {
        self.traits
    }

    /// True if flushes mean anything to it.
    pub fn can_flush(&self) -> bool {
        self.can_flush
    }

    /// Flushes of all shards on it.
    pub fn flushes(&self) -> &Flushes {
        &self.flushes
    }

    /// True once SPDK has taken the bdev away.
    pub fn is_gone(&self) -> bool {
        self.watch.gone.load(Ordering::Acquire)
    }

    /// A share in the open bdev; `None` once it is gone.
    pub fn opened(&self) -> Option<Arc<Opened>> {
        unpoisoned(&self.opened).clone()
    }

    /// One I/O, waited for.
    fn single(&self, what: Single, offset: u64, buffer: DmaBuffer) -> Result<DmaBuffer, Error> {
        let failed = |what: &str| Error::new(ErrorKind::Io, format!("bdev {}: {what}", self.name));
        let opened = self.opened().ok_or_else(|| failed("is gone"))?;
        let app = Thread::app().ok_or_else(|| failed("SPDK is ending"))?;
        let (sender, answer) = sync_channel(1);
        app.send(move || {
            let share = opened.clone();
            let done = Box::new(move |buffer, good| {
                let _ = sender.try_send((buffer, good));
                drop(share);
            });
            start_single(&opened.desc, what, offset, buffer, done);
        });
        match answer.recv() {
            Ok((buffer, true)) => Ok(buffer),
            Ok((_, false)) | Err(_) => Err(failed(&format!("{what:?} at byte {offset} failed"))),
        }
    }

    fn buffer(&self, len: usize) -> Result<DmaBuffer, Error> {
        DmaBuffer::new(len).ok_or_else(|| {
            let why = "no hugepages are left for a buffer: give SPDK more (-s)";
            Error::new(ErrorKind::NoSpace, why)
        })
    }
}

/// The device with its share, for control.
pub struct SharedDevice(pub Arc<BaseDevice>);

impl HostDevice for SharedDevice {
    fn name(&self) -> String {
        format!("{PATH_PREFIX}{}", self.0.name)
    }

    fn size(&self) -> u64 {
        self.0.bytes
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> Result<(), Error> {
        for (i, part) in out.chunks_mut(CHUNK_BYTES).enumerate() {
            let buffer = self.0.buffer(part.len())?;
            let at = offset + (i * CHUNK_BYTES) as u64;
            let mut buffer = self.0.single(Single::Read, at, buffer)?;
            part.copy_from_slice(buffer.bytes());
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        for (i, part) in bytes.chunks(CHUNK_BYTES).enumerate() {
            let mut buffer = self.0.buffer(part.len())?;
            buffer.bytes().copy_from_slice(part);
            self.0.single(Single::Write, offset + (i * CHUNK_BYTES) as u64, buffer)?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), Error> {
        if !self.0.can_flush() {
            return Ok(());
        }
        self.0.single(Single::Flush, 0, self.0.buffer(BLOCK_SIZE)?).map(drop)
    }

    fn base(&self, region: Region) -> Result<Box<dyn HostBase>, Error> {
        Ok(Box::new(BdevBase::new(self.0.clone(), region)))
    }
}

/// The memory of a bdev that is memory, if it lends that.
fn memory_of(desc: &Arc<Descriptor<Watch>>) -> Result<Option<Arc<RamDevice>>, Error> {
    let (sender, answer) = sync_channel(1);
    let desc = desc.clone();
    on_app(move || {
        lent::ask(desc, move |memory| {
            let _ = sender.try_send(memory);
        });
    })?;
    Ok(answer.recv().ok().flatten().map(Arc::new))
}

/// True if a store lies on the bdev of this name. Nothing is claimed.
pub fn holds_store(name: &str) -> bool {
    let Ok(device) = BaseDevice::open(name, false) else { return false };
    let device = SharedDevice(device);
    let mut first = vec![0; LABEL_BYTES];
    device.size() >= LABEL_BYTES as u64
        && device.read_at(&mut first, 0).is_ok()
        && lamina_bdev::read_label(&first, device.size()).is_ok()
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

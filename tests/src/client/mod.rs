//! A vhost-user-blk driver that outlives its device, as a virtual machine's does.
//!
//! ```text
//!   test ─► Queue: slots ─► ring ─┐ shared memory            ┌─► laminad, first life   ✗ SIGKILL
//!   test ─► Queue ...        ─────┤ kick eventfds ───────────┤
//!           Device: messages ─────┘ in-flight log (a memfd) ─┴─► laminad, second life
//! ```
//!
//! Messages are those of the crate `vhost`; rings and requests are driven here, since the drivers
//! there are do not keep what is in flight when a device goes. Queues may be driven by different
//! threads; [`Device::reconnect`] is the only thing that looks at all of them.

mod log;
mod memory;
mod queue;
mod ring;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

pub use memory::Memory;
pub use queue::{Done, Queue, Request};

const F_VERSION_1: u64 = 1 << 32;
const F_RING_PACKED: u64 = 1 << 34;
const F_FLUSH: u64 = 1 << 9;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;
const F_RO: u64 = 1 << 5;
/// How long a finished request may take; far longer than anything here is stalled.
const PATIENCE: Duration = Duration::from_secs(60);
/// Polls without a pause.
const SPINS: u32 = 100;

/// What a failure to talk to the device is.
pub type Error = String;

/// Shape of a device.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Queues.
    pub queues: u16,
    /// Requests in flight in each queue.
    pub slots: u16,
    /// Bytes of data in a request, at most.
    pub data_bytes: usize,
    /// Packed rings instead of split ones.
    pub packed: bool,
    /// Hugepages of 2 MiB for its memory: SPDK's vhost serves no other.
    pub huge: bool,
    /// The device may have no flush, as SPDK's logical volumes.
    pub unflushed: bool,
}

impl Default for Options {
    fn default() -> Options {
        let (packed, huge, unflushed) = (false, false, false);
        Options { queues: 1, slots: 32, data_bytes: 64 << 10, packed, huge, unflushed }
    }
}

/// One connection to an export, made anew when the daemon was.
pub struct Device {
    socket: PathBuf,
    options: Options,
    memory: Arc<Memory>,
    queues: Vec<Arc<Mutex<Queue>>>,
    calls: Vec<EventFd>,
    log: Option<(VhostUserInflight, File)>,
    frontend: Option<Frontend>,
}

fn said<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) -> Result<T, Error> {
    result.map_err(|error| format!("{what}: {error}"))
}

impl Device {
    /// Connects and starts all queues.
    ///
    /// # Errors
    /// Nobody listens, or the device does not offer what is needed.
    pub fn connect(socket: &Path, options: Options) -> Result<Device, Error> {
        let queue_bytes = Queue::bytes(options.slots, options.data_bytes);
        let bytes = queue_bytes * usize::from(options.queues);
        let memory = if options.huge { Memory::huge(bytes) } else { Memory::new(bytes) };
        let memory = Arc::new(said("shared memory", memory)?);
        let mut queues = Vec::new();
        let mut calls = Vec::new();
        for index in 0..usize::from(options.queues) {
            let (slots, at) = (options.slots, index * queue_bytes);
            let queue = Queue::new(&memory, at, slots, options.data_bytes, options.packed);
            queues.push(Arc::new(Mutex::new(said("an eventfd", queue)?)));
            calls.push(said("an eventfd", EventFd::new(0))?);
        }
        let socket = socket.to_path_buf();
        let (log, frontend) = (None, None);
        let mut device = Device { socket, options, memory, queues, calls, log, frontend };
        device.open()?;
        Ok(device)
    }

    /// A queue; any thread may drive it.
    #[must_use]
    pub fn queue(&self, index: usize) -> Arc<Mutex<Queue>> {
        self.queues[index].clone()
    }

    /// Bytes of the disk.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn capacity(&mut self) -> Result<u64, Error> {
        let flags = vhost::vhost_user::message::VhostUserConfigFlags::WRITABLE;
        let frontend = self.frontend.as_mut().ok_or("not connected")?;
        let (_, space) = said("GET_CONFIG", frontend.get_config(0, 8, flags, &[0; 8]))?;
        let sectors: [u8; 8] = space[..8].try_into().map_err(|_| "a short configuration")?;
        Ok(u64::from_le_bytes(sectors) * 512)
    }

    /// Connects again after the device died, until `within` is over; gives the time from the
    /// first sight of a listener to the end of the set-up.
    ///
    /// # Errors
    /// Nobody listens in time, or the device refuses what the one before had accepted.
    pub fn reconnect(&mut self, within: Duration) -> Result<Duration, Error> {
        self.frontend = None;
        let end = Instant::now() + within;
        loop {
            let begun = Instant::now();
            // Looked at first, as the crate's own waiting is long.
            let listens = UnixStream::connect(&self.socket).is_ok();
            let result = if listens { self.open() } else { Err("nobody listens".into()) };
            match result {
                Ok(()) => return Ok(begun.elapsed()),
                Err(why) if Instant::now() > end => {
                    return Err(format!("{}: no device: {why}", self.socket.display()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    fn open(&mut self) -> Result<(), Error> {
        let count = u64::from(self.options.queues);
        let mut frontend = said("connecting", Frontend::connect(&self.socket, count))?;
        let protocol_bit = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        said("SET_OWNER", frontend.set_owner())?;
        let offered = said("GET_FEATURES", frontend.get_features())?;
        let packed = if self.options.packed { F_RING_PACKED } else { 0 };
        let flush = if self.options.unflushed { 0 } else { F_FLUSH };
        let needed = F_VERSION_1 | flush | protocol_bit | packed;
        if offered & needed != needed {
            return Err(format!("the device offers {offered:#x}, and {needed:#x} is needed"));
        }
        let wanted = needed | (F_MQ | F_DISCARD | F_WRITE_ZEROES | F_RO) & offered;
        let needed = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        let has = said("GET_PROTOCOL_FEATURES", frontend.get_protocol_features())?;
        if !has.contains(needed) {
            return Err(format!("protocol features are missing: {has:?}"));
        }
        // Another project's device may do without these.
        let protocol = needed | has & VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        said("SET_PROTOCOL_FEATURES", frontend.set_protocol_features(protocol))?;
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        said("SET_FEATURES", frontend.set_features(wanted))?;
        let shape = VhostUserInflight {
            num_queues: self.options.queues,
            queue_size: Queue::ring_size(self.options.slots),
            ..VhostUserInflight::default()
        };
        if self.log.is_none() {
            self.log = Some(said("GET_INFLIGHT_FD", frontend.get_inflight_fd(&shape))?);
        }
        let (shape, file) = self.log.as_ref().expect("just made sure of");
        said("SET_INFLIGHT_FD", frontend.set_inflight_fd(shape, file.as_raw_fd()))?;
        said("SET_MEM_TABLE", frontend.set_mem_table(&[self.region()]))?;
        for index in 0..self.queues.len() {
            self.start(&mut frontend, index)?;
        }
        self.frontend = Some(frontend);
        Ok(())
    }

    fn start(&self, frontend: &mut Frontend, index: usize) -> Result<(), Error> {
        let queue = lock(&self.queues[index]);
        let layout = queue.layout;
        let config = VringConfigData {
            queue_max_size: layout.size,
            queue_size: layout.size,
            flags: 0,
            desc_table_addr: self.memory.addr(layout.desc),
            used_ring_addr: self.memory.addr(layout.device),
            avail_ring_addr: self.memory.addr(layout.driver),
            log_addr: None,
        };
        said("SET_VRING_NUM", frontend.set_vring_num(index, layout.size))?;
        said("SET_VRING_BASE", frontend.set_vring_base(index, queue.base()))?;
        said("SET_VRING_ADDR", frontend.set_vring_addr(index, &config))?;
        said("SET_VRING_CALL", frontend.set_vring_call(index, &self.calls[index]))?;
        said("SET_VRING_KICK", frontend.set_vring_kick(index, &queue.kick))?;
        said("SET_VRING_ENABLE", frontend.set_vring_enable(index, true))
    }

    fn region(&self) -> VhostUserMemoryRegionInfo {
        let addr = self.memory.addr(0);
        VhostUserMemoryRegionInfo {
            guest_phys_addr: addr,
            memory_size: self.memory.len() as u64,
            userspace_addr: addr,
            mmap_offset: 0,
            mmap_handle: self.memory.fd(),
        }
    }

    /// Queues and slots of the requests that a device which is dead by now had taken and not
    /// returned: the next one carries them out, whether they have been or not.
    ///
    /// # Panics
    /// If there is no in-flight log yet, or it cannot be read.
    #[must_use]
    pub fn held(&self) -> Vec<(usize, u16)> {
        let (_, file) = self.log.as_ref().expect("a log since the first connection");
        let mut held = Vec::new();
        for (index, queue) in self.queues.iter().enumerate() {
            let queue = lock(queue);
            let part = log::Part::new(file, self.options.packed, queue.layout.size, index);
            let slots = queue.held(part).expect("a log in memory can be read");
            held.extend(slots.into_iter().map(|slot| (index, slot)));
        }
        held
    }

    /// Gives the device the same memory again as a new table.
    ///
    /// # Errors
    /// The connection is gone, or the device refuses.
    pub fn set_memory_table(&mut self) -> Result<(), Error> {
        let region = self.region();
        let frontend = self.frontend.as_mut().ok_or("not connected")?;
        said("SET_MEM_TABLE", frontend.set_mem_table(&[region])).map(|_| ())
    }

    /// Adds a region of memory that no request uses, and takes it away again.
    ///
    /// # Errors
    /// The connection is gone, or the device refuses.
    pub fn add_and_remove_region(&mut self) -> Result<(), Error> {
        let spare = said("shared memory", Memory::new(2 << 20))?;
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: spare.addr(0),
            memory_size: spare.len() as u64,
            userspace_addr: spare.addr(0),
            mmap_offset: 0,
            mmap_handle: spare.fd(),
        };
        let frontend = self.frontend.as_mut().ok_or("not connected")?;
        said("ADD_MEM_REG", frontend.add_mem_region(&region))?;
        said("REM_MEM_REG", frontend.remove_mem_region(&region))
    }
}

/// A queue for a while.
///
/// # Panics
/// If a thread panicked with it.
pub fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().expect("no thread panicked with the queue")
}

/// Waits for the next finished request.
///
/// # Panics
/// If none is finished in a minute.
pub fn wait(queue: &Mutex<Queue>) -> Done {
    let begun = Instant::now();
    let mut spins = 0;
    loop {
        if let Some(done) = lock(queue).poll() {
            return done;
        }
        spins += 1;
        if spins > SPINS {
            assert!(begun.elapsed() < PATIENCE, "no request is finished after {PATIENCE:?}");
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// Reads all of a range with nothing else in flight on the queue.
///
/// # Errors
/// The device answered with an error.
pub fn read_all(queue: &Mutex<Queue>, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
    let step = lock(queue).data_capacity();
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let (at, count) = (offset + bytes.len() as u64, step.min(len - bytes.len()));
        let slot = lock(queue).free_slot().expect("nothing in flight");
        lock(queue).submit(slot, Request::Read { offset: at, len: count });
        let done = wait(queue);
        if !done.good {
            return Err(format!("reading {count} bytes at {at} failed"));
        }
        bytes.extend(lock(queue).data(done.slot, count));
    }
    Ok(bytes)
}

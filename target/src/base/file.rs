//! A file or block device that holds a store: found, checked, locked, and read and written by
//! control threads while no shard is served from it.
#![allow(unsafe_code)]
// UNSAFETY: open file description locks exist only behind fcntl(2).

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lamina_bdev::limits::SHARDS_MAX;
use lamina_bdev::{BaseTraits, Error, ErrorKind};
use rustix::fs::{FallocateFlags, OFlags};

use super::flushes::Flushes;
use super::probe::{self, QueueTraits};
use crate::log;

/// How long a lock is waited for.
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);
const LOCK_RETRY: Duration = Duration::from_millis(5);
const SECTOR: usize = lamina_bdev::SECTOR_SIZE;
const PAGE: usize = lamina_bdev::BLOCK_SIZE;

/// An open base file or block device, locked against every other daemon while it lives.
#[derive(Debug)]
pub struct BaseFile {
    file: File,
    path: PathBuf,
    size: u64,
    /// Memory alignment that O_DIRECT wants, bytes; `None`: through the page cache.
    direct_align: Option<usize>,
    traits: BaseTraits,
    /// Its calls may wait for another program or machine.
    may_stall: bool,
    flushes: Flushes,
}

/// What kind of thing a path names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Regular,
    BlockDevice,
}

impl BaseFile {
    /// Opens an existing file or block device and locks it.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` (a directory, no permission), `Busy` (locked or mounted), `Io`.
    pub fn open(path: &Path) -> Result<BaseFile, Error> {
        let kind = kind_of(path)?;
        // A daemon that was killed holds the lock until the kernel has finished its last writes,
        // and that is right: they must not land after our recovery has begun.
        let end = Instant::now() + LOCK_TIMEOUT;
        loop {
            let opened = open_file(path, kind)
                .and_then(|(file, direct)| lock(&file, path).map(|()| (file, direct)));
            match opened {
                Ok((file, direct)) => return BaseFile::finish(file, path, kind, direct),
                Err(error) if error.kind != ErrorKind::Busy || Instant::now() >= end => {
                    return Err(error);
                }
                Err(_) => std::thread::sleep(LOCK_RETRY),
            }
        }
    }

    /// Makes a new sparse file of `size` bytes, opens and locks it.
    ///
    /// # Errors
    /// `Exists`, `NoSpace`, `NotFound` (its folder), `Invalid`, `Io`.
    pub fn create(path: &Path, size: u64) -> Result<BaseFile, Error> {
        let mut options = OpenOptions::new();
        let new = options.read(true).write(true).create_new(true).mode(0o600).open(path);
        let file = new.map_err(|e| open_error(path, &e))?;
        // Who opened and locked it before us keeps it.
        lock(&file, path)?;
        if let Err(e) = file.set_len(size) {
            let _ = std::fs::remove_file(path);
            return Err(open_error(path, &e));
        }
        // Not when it is opened: where direct I/O is not supported, that makes a file and fails.
        let direct = set_direct(&file);
        BaseFile::finish(file, path, Kind::Regular, direct)
    }

    /// Removes the file, unless another one is at its path by now. Its lock is held on: who waits
    /// for that learns that the file is gone.
    pub fn remove(&self) {
        if is_at(&self.file, &self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    fn finish(file: File, path: &Path, kind: Kind, direct: bool) -> Result<BaseFile, Error> {
        let size =
            (&file).seek(SeekFrom::End(0)).map_err(|e| io_error(path, "finding the size", &e))?;
        let direct_align = if direct { direct_align(&file) } else { None };
        if direct_align.is_none() {
            log::info(format!(
                "{}: no direct I/O in 512-byte units here; going through the page cache",
                path.display()
            ));
        }
        let traits = traits(&file, kind, direct_align.is_some());
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let may_stall = kind == Kind::Regular && may_stall(&file);
        let flushes = Flushes::new(SHARDS_MAX as usize);
        Ok(BaseFile { file, path, size, direct_align, traits, may_stall, flushes })
    }

    /// Makes the file longer.
    ///
    /// # Errors
    /// `NoSpace`, `Invalid` (a block device), `Io`.
    pub fn extend(&mut self, size: u64) -> Result<(), Error> {
        assert!(size >= self.size, "a base file never shrinks");
        self.file.set_len(size).map_err(|e| open_error(&self.path, &e))?;
        self.size = size;
        Ok(())
    }

    /// Makes sure that a part of the file, which may be sparse, can be written whatever happens to
    /// the rest of its file system. Where that cannot be asked for, nothing is done.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub fn reserve(&self, offset: u64, len: u64) -> Result<(), Error> {
        use rustix::io::Errno;
        if self.file.metadata().is_ok_and(|meta| !meta.is_file()) {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, offset, len) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(e) => Err(io_error(&self.path, "reserving room for metadata", &e.into())),
        }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the engine must know.
    pub fn traits(&self) -> BaseTraits {
        self.traits
    }

    /// Memory alignment for direct I/O, bytes; `None` if any memory will do.
    pub fn direct_align(&self) -> Option<usize> {
        self.direct_align
    }

    /// True if its calls may wait for another program or machine, with locks held that starting
    /// an operation needs too: then none of them is to be started by a reactor itself.
    pub fn may_stall(&self) -> bool {
        self.may_stall
    }

    /// The flushes of all shards on it.
    pub fn flushes(&self) -> &Flushes {
        &self.flushes
    }

    /// For the ring.
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Reads whole sectors, blocking.
    ///
    /// # Errors
    /// `Io`; a short read is one.
    pub fn read_at(&self, out: &mut [u8], offset: u64) -> Result<(), Error> {
        let mut buffer = AlignedBuffer::new(out.len());
        self.file
            .read_exact_at(buffer.bytes(), offset)
            .map_err(|e| io_error(&self.path, "reading", &e))?;
        out.copy_from_slice(buffer.bytes());
        Ok(())
    }

    /// Writes whole sectors, blocking.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        let mut buffer = AlignedBuffer::new(bytes.len());
        buffer.bytes().copy_from_slice(bytes);
        self.file
            .write_all_at(buffer.bytes(), offset)
            .map_err(|e| io_error(&self.path, "writing", &e))
    }

    /// Makes everything written so far durable, the file's own name too.
    ///
    /// # Errors
    /// `Io`, also if any flush has failed since it was opened.
    pub fn sync(&self) -> Result<(), Error> {
        let failed = |e: io::Error| {
            self.flushes.fail();
            io_error(&self.path, "flushing", &e)
        };
        self.file.sync_all().map_err(failed)?;
        if self.flushes.failed() {
            let text = format!("{}: a flush has failed before: open it again", self.path.display());
            return Err(Error::new(ErrorKind::Io, text));
        }
        if let Some(folder) = self.path.parent()
            && !self.path.starts_with("/dev")
        {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        }
        Ok(())
    }
}

/// Heap memory aligned as O_DIRECT wants it.
struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    fn new(len: usize) -> AlignedBuffer {
        let memory = vec![0; len + 2 * PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        AlignedBuffer { memory, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }

    /// `len` bytes that begin `shift` bytes off the alignment.
    fn shifted(&mut self, shift: usize, len: usize) -> &mut [u8] {
        assert!(shift + len <= self.len + PAGE);
        &mut self.memory[self.start + shift..self.start + shift + len]
    }
}

fn kind_of(path: &Path) -> Result<Kind, Error> {
    let meta = std::fs::metadata(path).map_err(|e| open_error(path, &e))?;
    let kind = meta.file_type();
    if kind.is_file() {
        Ok(Kind::Regular)
    } else if kind.is_block_device() {
        Ok(Kind::BlockDevice)
    } else {
        let what = if kind.is_dir() { "a directory" } else { "neither a file nor a block device" };
        Err(Error::new(
            ErrorKind::Invalid,
            format!("{} is {what}: give a file, a block device or ram:SIZE", path.display()),
        ))
    }
}

fn open_file(path: &Path, kind: Kind) -> Result<(File, bool), Error> {
    let exclusive = if kind == Kind::BlockDevice { libc::O_EXCL } else { 0 };
    let open = |flags: i32| {
        OpenOptions::new().read(true).write(true).custom_flags(flags | exclusive).open(path)
    };
    match open(libc::O_DIRECT) {
        Ok(file) => Ok((file, true)),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            Ok((open(0).map_err(|e| open_error(path, &e))?, false))
        }
        Err(e) => Err(open_error(path, &e)),
    }
}

fn lock(file: &File, path: &Path) -> Result<(), Error> {
    let whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: a valid descriptor and a fully initialised lock description that outlives the call.
    let rc = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &whole) };
    if rc == 0 {
        // A store on a file without a name would end with its daemon. Some file systems do not
        // count names.
        let removed = file.metadata().is_ok_and(|meta| meta.nlink() == 0) && !is_at(file, path);
        let why = format!("{} was removed while it was being opened: try again", path.display());
        return if removed { Err(Error::new(ErrorKind::Busy, why)) } else { Ok(()) };
    }
    let e = io::Error::last_os_error();
    Err(match e.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Error::new(
            ErrorKind::Busy,
            format!(
                "{} is in use: another laminad (or another program) holds its lock; \
                 stop that one first",
                path.display()
            ),
        ),
        _ => io_error(path, "locking", &e),
    })
}

/// True if the path leads to this file.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(own), Ok(there)) => (own.dev(), own.ino()) == (there.dev(), there.ino()),
        (Err(_), _) | (_, Err(_)) => false,
    }
}

/// Turns direct I/O on; true if its file system takes that.
fn set_direct(file: &File) -> bool {
    let flags = rustix::fs::fcntl_getfl(file);
    flags.and_then(|flags| rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT)).is_ok()
}

/// Memory alignment with which direct reads of one sector work, found by trying.
fn direct_align(file: &File) -> Option<usize> {
    let mut buffer = AlignedBuffer::new(PAGE);
    for (shift, align) in [(SECTOR, SECTOR), (0, PAGE)] {
        let read = file.read_at(buffer.shifted(shift, SECTOR), SECTOR as u64);
        if read.is_ok() {
            return Some(align);
        }
    }
    // The descriptor has O_DIRECT set and it does not work: turn it off.
    // SAFETY: flags of a descriptor of ours; no memory is involved.
    unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & !libc::O_DIRECT);
    }
    None
}

/// True for file systems that are another program's or another machine's.
fn may_stall(file: &File) -> bool {
    // As the kernel numbers them (linux/magic.h): FUSE, NFS, CIFS, SMB 2, Ceph, 9P.
    const KINDS: [u32; 6] =
        [0x6573_5546, 0x6969, 0xff53_4d42, 0xfe53_4d42, 0x00c3_6400, 0x0102_1997];
    let found = rustix::fs::fstatfs(file);
    found.is_ok_and(|found| KINDS.contains(&(found.f_type as u32)))
}

fn traits(file: &File, kind: Kind, direct: bool) -> BaseTraits {
    let queue = match file.metadata() {
        Ok(meta) if kind == Kind::BlockDevice => probe::queue_traits(meta.rdev()),
        // A file system block smaller than 4 KiB may put the halves of ours far apart.
        Ok(meta) if meta.blksize() >= PAGE as u64 => probe::queue_traits(meta.dev()),
        Ok(_) | Err(_) => QueueTraits::UNKNOWN,
    };
    BaseTraits {
        // A file's blocks need its file system's metadata, which only a flush makes durable.
        volatile_cache: kind == Kind::Regular || !direct || queue.volatile_cache,
        atomic_4k: direct && queue.atomic_4k,
        // The kernel may serve a read and a write of the same sectors at once.
        atomic_rw: false,
    }
}

fn open_error(path: &Path, e: &io::Error) -> Error {
    let path = path.display();
    match e.raw_os_error() {
        Some(libc::ENOENT) => Error::new(
            ErrorKind::NotFound,
            format!("{path} does not exist: check the path, or create the store first"),
        ),
        Some(libc::EACCES | libc::EPERM) => Error::new(
            ErrorKind::Invalid,
            format!("{path}: permission denied: run laminad as a user that may read and write it"),
        ),
        Some(libc::EROFS) => Error::new(
            ErrorKind::Invalid,
            format!("{path} is on a read-only file system: a store must be writable"),
        ),
        Some(libc::EBUSY) => Error::new(
            ErrorKind::Busy,
            format!("{path} is in use (mounted, or part of another device): free it first"),
        ),
        Some(libc::EEXIST) => Error::new(ErrorKind::Exists, format!("{path} exists already")),
        Some(libc::ENAMETOOLONG | libc::ENOTDIR | libc::ELOOP) => {
            Error::new(ErrorKind::Invalid, format!("{path} is not a usable path: {e}"))
        }
        // No number: a size that does not fit the system call.
        Some(libc::EFBIG | libc::EINVAL) | None => Error::new(
            ErrorKind::Invalid,
            format!("{path}: the file system does not allow this size: {e}"),
        ),
        _ => io_error_text(&path.to_string(), "opening", e),
    }
}

fn io_error(path: &Path, doing: &str, e: &io::Error) -> Error {
    io_error_text(&path.display().to_string(), doing, e)
}

fn io_error_text(path: &str, doing: &str, e: &io::Error) -> Error {
    match e.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => Error::new(
            ErrorKind::NoSpace,
            format!("{path}: no space left while {doing}: free some on its file system"),
        ),
        _ => Error::new(ErrorKind::Io, format!("{path}: {doing} failed: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn a_new_file_is_locked_before_anybody_else_can_have_it() {
        let dir = TempDir::new("file-new");
        let path = dir.path().join("new");
        let file = BaseFile::create(&path, 1 << 20).unwrap();
        let other = open_file(&path, Kind::Regular).unwrap();
        assert_eq!(lock(&other.0, &path).unwrap_err().kind, ErrorKind::Busy);
        assert_eq!(file.size(), 1 << 20);
        // Direct I/O is as it is for a file that was there.
        let align = file.direct_align();
        drop((other, file));
        assert_eq!(BaseFile::open(&path).unwrap().direct_align(), align);
    }

    #[test]
    fn a_file_that_was_removed_while_its_lock_was_waited_for_is_not_opened() {
        let dir = TempDir::new("file-gone");
        let path = dir.path().join("gone");
        let file = BaseFile::create(&path, 1 << 20).unwrap();
        let (waiting, _) = open_file(&path, Kind::Regular).unwrap();
        file.remove();
        assert!(!path.exists());
        assert_eq!(lock(&waiting, &path).unwrap_err().kind, ErrorKind::Busy);
        drop(file);
        let error = lock(&waiting, &path).unwrap_err();
        assert!(error.message.contains("was removed"), "{error}");
        // Nor is another one there taken for it.
        drop(BaseFile::create(&path, 1 << 20).unwrap());
        assert!(lock(&waiting, &path).is_err());
        assert_eq!(BaseFile::open(&path).unwrap().size(), 1 << 20);
    }

    #[test]
    fn another_file_at_its_path_is_not_removed() {
        let dir = TempDir::new("file-other");
        let path = dir.path().join("file");
        let file = BaseFile::create(&path, 1 << 20).unwrap();
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        std::fs::write(&path, "other").unwrap();
        file.remove();
        assert_eq!(std::fs::read(&path).unwrap(), b"other");
    }
}

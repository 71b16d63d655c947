//! The file system: a folder with one file.

use std::ffi::OsStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, WriteFlags,
};

use super::{State, lock};

/// Name of the file.
pub(super) const FILE_NAME: &str = "base";
const FILE: INodeNo = INodeNo(2);
/// Requests in flight; far more than the daemon has room for.
const IN_FLIGHT_MAX: u16 = 16_384;
const TTL: Duration = Duration::from_secs(3600);

/// A request that is answered later.
#[derive(Debug)]
pub(super) enum Held {
    Read { offset: u64, size: u32, reply: ReplyData },
    Write { offset: u64, data: Vec<u8>, reply: ReplyWrite },
    Fsync { begun: Instant, reply: ReplyEmpty },
}

impl State {
    /// Holds a request while stalled, or serves it.
    fn take(&mut self, request: Held) {
        if let Some(left) = &mut self.before_stall {
            self.stalled |= *left == 0;
            *left = left.saturating_sub(1);
        }
        if self.stalled {
            self.held.push(request);
        } else {
            self.serve(request);
        }
    }

    /// Serves what is held, and everything from now on.
    pub(super) fn resume(&mut self) {
        self.stalled = false;
        self.before_stall = None;
        for request in std::mem::take(&mut self.held) {
            self.serve(request);
        }
    }

    fn serve(&mut self, request: Held) {
        match request {
            Held::Read { offset, size, reply } => match self.faults.on_read() {
                Some(error) => reply.error(error),
                None if !self.cache.holds(offset, size as usize) => reply.error(Errno::EINVAL),
                None => reply.data(&self.cache.read(offset, size as usize)),
            },
            Held::Write { offset, data, reply } => match self.faults.on_write() {
                Some(error) => reply.error(error),
                None if !self.cache.holds(offset, data.len()) => reply.error(Errno::EINVAL),
                None => {
                    self.cache.write(offset, &data);
                    if let Some(record) = &mut self.record {
                        record.wrote(&data);
                    }
                    reply.written(data.len() as u32);
                }
            },
            Held::Fsync { begun, reply } => match self.faults.on_fsync() {
                Some(error) => reply.error(error),
                None => {
                    if !self.faults.lying {
                        self.cache.flush();
                    }
                    if let Some(record) = &mut self.record {
                        record.synced(begun);
                    }
                    reply.ok();
                }
            },
        }
    }
}

/// What the kernel talks to.
#[derive(Debug)]
pub(super) struct FileSystem {
    state: Arc<Mutex<State>>,
}

impl FileSystem {
    pub(super) fn new(state: Arc<Mutex<State>>) -> FileSystem {
        FileSystem { state }
    }

    fn attr(&self, ino: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match ino {
            INodeNo::ROOT => (FileType::Directory, 0o755, 0),
            FILE => (FileType::RegularFile, 0o600, lock(&self.state).cache.len() as u64),
            _ => return None,
        };
        Some(FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            // A disk of 512-byte sectors: larger writes are not atomic.
            blksize: 512,
            flags: 0,
        })
    }
}

impl Filesystem for FileSystem {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let refused = |what: &str| std::io::Error::other(format!("{what} is refused"));
        // Without these two, whoever submits direct I/O through a ring waits for its end, or for
        // that of the sixteenth before it.
        let set = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        set.map_err(|_| refused("asynchronous direct I/O"))?;
        config.set_max_background(IN_FLIGHT_MAX).map_err(|_| refused("a queue so long"))?;
        // The largest transfer; a larger one is cut in pieces by the kernel.
        config.set_max_write(1 << 20).map_err(|_| refused("a transfer of 1 MiB"))?;
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attr(FILE) {
            Some(attr) if parent == INodeNo::ROOT && name == FILE_NAME => {
                reply.entry(&TTL, &attr, Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if lock(&self.state).faults.gone {
            return reply.error(Errno::ENOTCONN);
        }
        if ino != FILE {
            return reply.error(Errno::EISDIR);
        }
        lock(&self.state).opened += 1;
        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        lock(&self.state).take(Held::Read { offset, size, reply });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = data.to_vec();
        lock(&self.state).take(Held::Write { offset, data, reply });
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        lock(&self.state).take(Held::Fsync { begun: Instant::now(), reply });
    }

    /// Sent by every close(2): nothing is kept back that it could save.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        lock(&self.state).opened -= 1;
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }
}

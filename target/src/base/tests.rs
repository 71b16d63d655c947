//! Base devices against real files and, where we may make one, a loop device.

use std::path::Path;
use std::sync::Arc;

use lamina_bdev::{BaseError, BaseOp, ErrorKind, Seg, Tag};

use super::*;
use crate::testing::TempDir;

const MIB: u64 = 1 << 20;

/// Page-aligned memory, and a way to make it unaligned.
struct Buffer(crate::mem::hugepage::Mapping);

impl Buffer {
    fn new(len: usize) -> Buffer {
        Buffer(crate::mem::hugepage::Mapping::new(len).unwrap())
    }

    fn seg(&self, from: usize, len: usize) -> Seg {
        assert!(from + len <= self.0.len());
        Seg { addr: self.0.as_ptr().expose_provenance() + from, len }
    }

    fn fill(&self, from: usize, bytes: &[u8]) {
        let device = self.seg(from, bytes.len());
        ram_copy(device, bytes);
    }

    fn get(&self, from: usize, len: usize) -> Vec<u8> {
        let mut out = vec![0u8; len];
        ram_read(self.seg(from, len), &mut out);
        out
    }
}

/// Copies through a one-shot RAM base, so that this file needs no unsafe code.
fn ram_copy(to: Seg, bytes: &[u8]) {
    let device = Arc::new(RamDevice::new(bytes.len() as u64).unwrap());
    device.write_at(bytes, 0);
    let mut ram = RamBase::new(device, Region { offset: 0, len: bytes.len() as u64 });
    ram.run(&io(BaseOp::Read, 0, &[to]), &[to]).unwrap();
}

fn ram_read(from: Seg, out: &mut [u8]) {
    let device = Arc::new(RamDevice::new(out.len() as u64).unwrap());
    let mut ram = RamBase::new(device.clone(), Region { offset: 0, len: out.len() as u64 });
    ram.run(&io(BaseOp::Write, 0, &[from]), &[from]).unwrap();
    device.read_at(out, 0);
}

fn io(op: BaseOp, offset: u64, segs: &[Seg]) -> Operation {
    let len = segs.iter().map(|seg| seg.len as u32).sum();
    Operation { tag: Tag(offset + 1), op, offset, len, guest: true }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 512) as u8 ^ (i as u8).wrapping_mul(31) ^ seed).collect()
}

fn uring_on(path: &Path, region: Region) -> Base {
    let file = Arc::new(BaseFile::open(path).unwrap());
    let mut base = Base::Uring(Box::new(UringBase::new(file, region).unwrap()));
    base.adopt().unwrap();
    base
}

fn whole(path: &Path) -> Base {
    let len = std::fs::metadata(path).unwrap().len();
    uring_on(path, Region { offset: 0, len })
}

/// Submits all and waits for all; the results in the order of `ios`.
fn run(base: &mut Base, ios: &[(Operation, &[Seg])]) -> Vec<BaseResult> {
    let mut results = vec![None; ios.len()];
    let mut next = 0;
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while results.iter().any(Option::is_none) {
        assert!(std::time::Instant::now() < end, "base operations hang");
        while next < ios.len() && base.has_room() {
            let mut one = ios[next].0;
            one.tag = Tag(next as u64);
            assert_eq!(base.submit(&one, ios[next].1), Submitted::Queued);
            next += 1;
        }
        base.enter();
        while let Some((tag, result)) = base.poll() {
            let old = results[tag.0 as usize].replace(result);
            assert_eq!(old, None, "answered twice");
        }
    }
    assert_eq!(base.in_flight(), 0);
    results.into_iter().flatten().collect()
}

fn new_file(dir: &TempDir, size: u64) -> std::path::PathBuf {
    let path = dir.path().join("store");
    drop(BaseFile::create(&path, size).unwrap());
    path
}

#[test]
fn a_file_reads_back_what_was_written_whatever_the_memory() {
    let dir = TempDir::new("uring");
    let path = new_file(&dir, 8 * MIB);
    let mut base = whole(&path);
    let memory = Buffer::new(4 << 20);
    // Aligned, off by bytes, one sector, several segments, longer than a bounce buffer.
    let layouts: [&[(usize, usize)]; 5] = [
        &[(0, 4096)],
        &[(3, 512)],
        &[(0, 4096), (8192, 512), (16384, 1024)],
        &[(1, 1000), (5000, 1000), (9001, 48)],
        &[(4097, 600_000), (700_001, 424_000)],
    ];
    for (i, layout) in layouts.iter().enumerate() {
        let segs: Vec<Seg> = layout.iter().map(|&(from, len)| memory.seg(from, len)).collect();
        let total = segs.iter().map(|seg| seg.len).sum();
        let data = pattern(total, i as u8);
        let mut at = 0;
        for &(from, len) in *layout {
            memory.fill(from, &data[at..at + len]);
            at += len;
        }
        let offset = 512 * (1 + i as u64);
        assert_eq!(run(&mut base, &[(io(BaseOp::Write, offset, &segs), &segs)]), [Ok(())]);
        for &(from, len) in *layout {
            memory.fill(from, &vec![0xee; len]);
        }
        assert_eq!(run(&mut base, &[(io(BaseOp::Read, offset, &segs), &segs)]), [Ok(())]);
        let got: Vec<u8> = layout.iter().flat_map(|&(from, len)| memory.get(from, len)).collect();
        assert!(got == data, "layout {i} differs");
        let flush = io(BaseOp::Flush, 0, &[]);
        assert_eq!(run(&mut base, &[(flush, &[])]), [Ok(())]);
        drop(segs);
        // And the file says the same without the ring.
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes[offset as usize..offset as usize + total] == data[..], "file, layout {i}");
    }
}

#[test]
fn more_operations_than_slots_and_bounce_buffers_are_all_answered() {
    let dir = TempDir::new("uring-many");
    let path = new_file(&dir, 8 * MIB);
    let mut base = whole(&path);
    let memory = Buffer::new(2 << 20);
    // In the slots' own buffers, and in those for long operations, which are fewer.
    for (count, len) in [(700, 512), (100, 8192)] {
        let segs: Vec<[Seg; 1]> = (0..count).map(|i| [memory.seg(i * 2 * len + 1, len)]).collect();
        for i in 0..count {
            memory.fill(i * 2 * len + 1, &pattern(len, i as u8));
        }
        let ios: Vec<(Operation, &[Seg])> = segs
            .iter()
            .enumerate()
            .map(|(i, segs)| (io(BaseOp::Write, (4096 + i * len) as u64, segs), &segs[..]))
            .collect();
        assert_eq!(run(&mut base, &ios), vec![Ok(()); count]);
        let bytes = std::fs::read(&path).unwrap();
        for (i, written) in bytes[4096..].chunks(len).take(count).enumerate() {
            assert!(written == pattern(len, i as u8), "operation {i} of {len} bytes");
        }
    }
}

#[test]
fn a_region_is_offset_on_the_device() {
    let dir = TempDir::new("uring-region");
    let path = new_file(&dir, 2 * MIB);
    let mut base = uring_on(&path, Region { offset: MIB, len: MIB });
    assert_eq!(base.size(), MIB);
    let memory = Buffer::new(4096);
    memory.fill(0, &pattern(4096, 5));
    let segs = [memory.seg(0, 4096)];
    assert_eq!(run(&mut base, &[(io(BaseOp::Write, 8192, &segs), &segs)]), [Ok(())]);
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes[MIB as usize + 8192..MIB as usize + 12288] == pattern(4096, 5));
    assert!(bytes[..MIB as usize].iter().all(|&b| b == 0));
}

#[test]
fn a_short_transfer_is_an_error() {
    let dir = TempDir::new("uring-short");
    let path = new_file(&dir, 2 * MIB);
    let mut base = whole(&path);
    // Someone cuts the file under the daemon.
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(MIB + 4096).unwrap();
    let memory = Buffer::new(16384);
    let aligned = [memory.seg(0, 8192)];
    let bounced = [memory.seg(1, 8192)];
    let ios: [(Operation, &[Seg]); 3] = [
        (io(BaseOp::Read, MIB, &aligned), &aligned),
        (io(BaseOp::Read, MIB, &bounced), &bounced),
        (io(BaseOp::Read, MIB + 8192, &aligned), &aligned),
    ];
    assert_eq!(run(&mut base, &ios), [Err(BaseError::Io); 3]);
    // The base goes on.
    assert_eq!(run(&mut base, &[(io(BaseOp::Read, 0, &aligned), &aligned)]), [Ok(())]);
}

#[test]
fn a_full_file_system_is_no_space() {
    let dir = TempDir::new("uring-full");
    let Some(_mount) = Mount::tmpfs(dir.path(), MIB) else { return };
    let path = new_file(&dir, 4 * MIB);
    let mut base = whole(&path);
    let memory = Buffer::new(2 << 20);
    memory.fill(0, &pattern(2 << 20, 1));
    let segs = [memory.seg(0, 2 << 20)];
    let failed = run(&mut base, &[(io(BaseOp::Write, 0, &segs), &segs)]);
    // Linux writes what fits and returns a short count, or nothing and ENOSPC.
    assert!(matches!(failed[0], Err(BaseError::Io | BaseError::NoSpace)), "{failed:?}");
    let segs = [memory.seg(0, 4096)];
    let failed = run(&mut base, &[(io(BaseOp::Write, 3 * MIB, &segs), &segs)]);
    assert_eq!(failed, [Err(BaseError::NoSpace)]);
}

#[test]
fn a_completion_wakes_a_sleeper() {
    let dir = TempDir::new("uring-wake");
    let path = new_file(&dir, 2 * MIB);
    let mut base = whole(&path);
    let memory = Buffer::new(4096);
    let segs = [memory.seg(0, 4096)];
    let mut epoll = crate::reactor::epoll::Epoll::new().unwrap();
    epoll.add(base.wake_fd().unwrap(), 0).unwrap();
    for round in 0..2000u64 {
        let op = if round % 2 == 0 { BaseOp::Write } else { BaseOp::Read };
        assert_eq!(base.submit(&io(op, round % 64 * 4096, &segs), &segs), Submitted::Queued);
        base.enter();
        if base.prepare_sleep() {
            assert!(
                epoll.wait(10_000).unwrap().len() > 0,
                "round {round}: the completion was lost"
            );
        }
        base.woken();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while base.in_flight() > 0 {
            assert!(std::time::Instant::now() < end);
            base.enter();
            if let Some((_, result)) = base.poll() {
                assert_eq!(result, Ok(()));
            }
        }
    }
}

#[test]
fn a_second_opener_is_refused_until_the_first_is_gone() {
    let dir = TempDir::new("lock");
    let path = new_file(&dir, MIB);
    let first = BaseFile::open(&path).unwrap();
    let error = BaseFile::open(&path).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy);
    assert!(error.message.contains("another laminad"), "{error}");
    drop(first);
    assert!(BaseFile::open(&path).is_ok());
}

#[test]
fn paths_that_cannot_hold_a_store_are_refused_in_a_sentence() {
    let dir = TempDir::new("paths");
    let file = new_file(&dir, MIB);
    for (path, kind, words) in [
        (dir.path().join("none"), ErrorKind::NotFound, "does not exist"),
        (dir.path().to_path_buf(), ErrorKind::Invalid, "a directory"),
        ("/dev/null".into(), ErrorKind::Invalid, "neither a file nor a block device"),
        (file.join("under-a-file"), ErrorKind::Invalid, "not a usable path"),
    ] {
        let error = BaseFile::open(&path).unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(words), "{error}");
    }
    let error = BaseFile::create(&file, MIB).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Exists);
    let error = BaseFile::create(&dir.path().join("no/folder"), MIB).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    let error = BaseFile::create(&dir.path().join("huge"), u64::MAX >> 1).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    assert!(!dir.path().join("huge").exists());
}

#[test]
fn control_threads_read_and_write_any_whole_sectors() {
    let dir = TempDir::new("control-io");
    let path = new_file(&dir, MIB);
    let file = BaseFile::open(&path).unwrap();
    file.write_at(&pattern(1536, 3), 512).unwrap();
    file.sync().unwrap();
    let mut out = vec![0; 1536];
    file.read_at(&mut out, 512).unwrap();
    assert!(out == pattern(1536, 3));
    assert_eq!(file.read_at(&mut out, MIB).unwrap_err().kind, ErrorKind::Io);
    assert!(file.traits().volatile_cache, "a file needs a flush");
}

#[test]
fn a_block_device_serves_and_is_exclusive() {
    let dir = TempDir::new("loop");
    let path = new_file(&dir, 4 * MIB);
    let Some(device) = LoopDevice::new(&path) else { return };
    let mut base = uring_on(&device.0, Region { offset: 0, len: 4 * MIB });
    let memory = Buffer::new(8192);
    memory.fill(0, &pattern(8192, 9));
    let segs = [memory.seg(0, 8192)];
    assert_eq!(run(&mut base, &[(io(BaseOp::Write, 65536, &segs), &segs)]), [Ok(())]);
    assert_eq!(run(&mut base, &[(io(BaseOp::Flush, 0, &[]), &[])]), [Ok(())]);
    assert_eq!(BaseFile::open(&device.0).unwrap_err().kind, ErrorKind::Busy);
    drop(base);
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes[65536..65536 + 8192] == pattern(8192, 9));
}

/// A loop device over a file, if we may make one.
struct LoopDevice(std::path::PathBuf);

impl LoopDevice {
    fn new(file: &Path) -> Option<LoopDevice> {
        let made = std::process::Command::new("losetup").arg("--show").arg("-f").arg(file).output();
        let made = made.ok().filter(|made| made.status.success());
        let Some(made) = made else {
            eprintln!("skipped: no right to make a loop device");
            return None;
        };
        Some(LoopDevice(String::from_utf8(made.stdout).unwrap().trim().into()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

/// A small file system, if we may mount one.
struct Mount(std::path::PathBuf);

impl Mount {
    fn tmpfs(path: &Path, size: u64) -> Option<Mount> {
        let size = format!("size={size}");
        let made = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(path)
            .status();
        if !made.is_ok_and(|status| status.success()) {
            eprintln!("skipped: no right to mount a tmpfs");
            return None;
        }
        Some(Mount(path.to_path_buf()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_flush_that_fails_in_one_shard_fails_in_all_until_the_file_is_opened_again() {
    let dir = TempDir::new("uring-flush");
    let path = new_file(&dir, 4 * MIB);
    let open = |path: &Path| {
        let file = Arc::new(BaseFile::open(path).unwrap());
        let bases: Vec<Base> = (0..2)
            .map(|i| Region { offset: i * 2 * MIB, len: 2 * MIB })
            .map(|region| UringBase::new(file.clone(), region).unwrap())
            .map(|base| Base::Uring(Box::new(base)))
            .collect();
        (file, bases)
    };
    let flush = io(BaseOp::Flush, 0, &[]);
    let (file, mut bases) = open(&path);
    for base in &mut bases {
        base.adopt().unwrap();
        assert_eq!(run(base, &[(flush, &[])]), [Ok(())]);
    }
    // Another shard's flush is under way: this one's success is not believed yet.
    let other = file.flushes().join();
    file.flushes().begin(other);
    assert_eq!(bases[0].submit(&flush, &[]), Submitted::Queued);
    let end = std::time::Instant::now() + std::time::Duration::from_millis(300);
    while std::time::Instant::now() < end {
        bases[0].enter();
        assert_eq!(bases[0].poll(), None, "answered while another flush may have failed");
    }
    assert_eq!(bases[0].in_flight(), 1);
    assert!(!bases[0].prepare_sleep(), "nobody would wake it");
    bases[0].woken();
    let _ = file.flushes().end(other, false);
    bases[0].enter();
    assert_eq!(bases[0].poll(), Some((flush.tag, Err(BaseError::Io))));
    for base in &mut bases {
        assert_eq!(run(base, &[(flush, &[])]), [Err(BaseError::Io)]);
    }
    assert_eq!(file.sync().unwrap_err().kind, ErrorKind::Io);
    // Reads and writes go on; what they did is told by the next flush after it is opened again.
    let memory = Buffer::new(4096);
    let segs = [memory.seg(0, 4096)];
    assert_eq!(run(&mut bases[1], &[(io(BaseOp::Write, 0, &segs), &segs)]), [Ok(())]);
    drop((bases, file));
    let (_file, mut bases) = open(&path);
    for base in &mut bases {
        base.adopt().unwrap();
        assert_eq!(run(base, &[(flush, &[])]), [Ok(())]);
    }
}

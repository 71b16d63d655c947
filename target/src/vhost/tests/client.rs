//! An independent client: the crate `virtio-driver`, libblkio's user-space virtio-blk driver.
#![allow(unsafe_code)]
// UNSAFETY: the driver takes raw addresses of the memory that it shares with the device.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use virtio_driver::{
    VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};

use super::driver::shared_file;
use super::rig::DISK_BYTES;
use super::served::{Served, wait_for};

const MEMORY: usize = 1 << 20;

/// Memory shared with the device.
struct Shared {
    file: File,
    map: memmap2::MmapMut,
}

impl Shared {
    fn new() -> Shared {
        let file = shared_file(MEMORY as u64);
        // SAFETY: an anonymous file of our own; the device writes only where it is told to.
        let map = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
        Shared { file, map }
    }

    fn at(&mut self, offset: usize) -> *mut u8 {
        self.map[offset..].as_mut_ptr()
    }
}

fn connect(served: &Served, event_idx: bool) -> Box<VirtioBlkTransport> {
    let mut features = VirtioFeatureFlags::VERSION_1.bits()
        | VirtioBlkFeatureFlags::all().bits()
        | VirtioFeatureFlags::RING_INDIRECT_DESC.bits();
    if event_idx {
        features |= VirtioFeatureFlags::RING_EVENT_IDX.bits();
    }
    Box::new(VhostUser::new(served.socket.to_str().unwrap(), features).unwrap())
}

/// Kicks if the device wants it, then waits for `count` completions.
fn finish(
    transport: &VirtioBlkTransport,
    index: usize,
    queue: &mut VirtioBlkQueue<'_, usize>,
    count: usize,
) -> Vec<(usize, i32)> {
    if queue.avail_notif_needed() {
        transport.get_submission_notifier(index).notify().unwrap();
    }
    let mut done = Vec::new();
    wait_for(
        || {
            done.extend(queue.completions().map(|c| (c.context, c.ret)));
            done.len() == count
        },
        || format!("{count} completions"),
    );
    done
}

#[test]
fn an_independent_driver_reads_what_it_wrote_on_every_queue() {
    for event_idx in [false, true] {
        let served = Served::new();
        let mut memory = Shared::new();
        let mut transport = connect(&served, event_idx);
        let config = transport.get_config().unwrap();
        assert_eq!(u64::from(config.capacity), DISK_BYTES as u64 / 512);
        assert_eq!(u32::from(config.blk_size), 512);
        let (base, fd) = (memory.at(0) as usize, memory.file.as_raw_fd());
        let mut queues = VirtioBlkQueue::<usize>::setup_queues(&mut *transport, 4, 64).unwrap();
        transport.map_mem_region(base, MEMORY, fd, 0).unwrap();
        for (i, byte) in memory.map[..MEMORY / 2].iter_mut().enumerate() {
            *byte = ((i * 31) >> 4) as u8;
        }
        let block = 4096;
        for round in 0..8 {
            for (index, queue) in queues.iter_mut().enumerate() {
                // 16 writes, then 16 reads of the same blocks into the other half.
                let first = (round * 4 + index) % 8 * 16;
                for i in 0..16 {
                    let at = (first + i) * block;
                    // SAFETY: inside the mapping, which outlives the requests.
                    unsafe { queue.write_raw(at as u64, memory.at(at % (MEMORY / 2)), block, i) }
                        .unwrap();
                }
                let done = finish(&*transport, index, queue, 16);
                assert!(done.iter().all(|(_, ret)| *ret == 0), "{done:?}");
                for i in 0..16 {
                    let at = (first + i) * block;
                    let to = MEMORY / 2 + at % (MEMORY / 2);
                    memory.map[to..to + block].fill(0);
                    // SAFETY: as above.
                    unsafe { queue.read_raw(at as u64, memory.at(to), block, i) }.unwrap();
                }
                let done = finish(&*transport, index, queue, 16);
                assert!(done.iter().all(|(_, ret)| *ret == 0), "{done:?}");
                for i in 0..16 {
                    let at = (first + i) * block % (MEMORY / 2);
                    let (half, other) = memory.map.split_at(MEMORY / 2);
                    assert_eq!(half[at..at + block], other[at..at + block]);
                }
            }
        }
        assert!(served.sleeps.load(Ordering::Relaxed) > 0);
    }
}

#[test]
fn an_independent_driver_flushes_discards_and_fails_as_it_should() {
    let served = Served::new();
    served.disk.lock().unwrap().bytes.fill(0x55);
    let mut memory = Shared::new();
    let mut transport = connect(&served, true);
    let mut queues = VirtioBlkQueue::<usize>::setup_queues(&mut *transport, 1, 16).unwrap();
    let (base, fd) = (memory.at(0) as usize, memory.file.as_raw_fd());
    transport.map_mem_region(base, MEMORY, fd, 0).unwrap();
    let queue = &mut queues[0];
    queue.discard(4096, 8192, 1).unwrap();
    assert_eq!(finish(&*transport, 0, queue, 1), [(1, 0)]);
    queue.write_zeroes(0, 512, true, 2).unwrap();
    queue.flush(3).unwrap();
    let mut done = finish(&*transport, 0, queue, 2);
    done.sort_unstable();
    assert_eq!(done, [(2, 0), (3, 0)]);
    {
        let disk = served.disk.lock().unwrap();
        assert_eq!((disk.bytes[0], disk.bytes[512], disk.bytes[4096]), (0, 0x55, 0));
    }
    // Past the end: EIO; then all is well again.
    // SAFETY: inside the mapping, which outlives the request.
    unsafe { queue.read_raw(DISK_BYTES as u64, memory.at(0), 512, 4) }.unwrap();
    assert_eq!(finish(&*transport, 0, queue, 1), [(4, -5)]);
    // SAFETY: as above.
    unsafe { queue.read_raw(512, memory.at(0), 512, 5) }.unwrap();
    assert_eq!(finish(&*transport, 0, queue, 1), [(5, 0)]);
    assert_eq!(memory.map[..512], [0x55; 512]);
    // Memory that is taken away is not served any more.
    transport.unmap_mem_region(base, MEMORY).unwrap();
    // SAFETY: the device refuses the address, so nothing is written.
    unsafe { queue.read_raw(512, memory.at(0), 512, 6) }.unwrap();
    assert_eq!(finish(&*transport, 0, queue, 1), [(6, -5)]);
}

#[test]
fn drivers_come_one_after_the_other() {
    let served = Served::new();
    for round in 0..10u8 {
        let mut memory = Shared::new();
        let mut transport = connect(&served, round % 2 == 0);
        let mut queues = VirtioBlkQueue::<usize>::setup_queues(&mut *transport, 2, 32).unwrap();
        let (base, fd) = (memory.at(0) as usize, memory.file.as_raw_fd());
        transport.map_mem_region(base, MEMORY, fd, 0).unwrap();
        // What the one before wrote.
        // SAFETY: inside the mapping, which outlives the request.
        unsafe { queues[1].read_raw(0, memory.at(0), 512, 0) }.unwrap();
        assert_eq!(finish(&*transport, 1, &mut queues[1], 1), [(0, 0)]);
        assert_eq!(memory.map[..512], [round; 512]);
        memory.map[..512].fill(round + 1);
        // SAFETY: as above.
        unsafe { queues[0].write_raw(0, memory.at(0), 512, 1) }.unwrap();
        assert_eq!(finish(&*transport, 0, &mut queues[0], 1), [(1, 0)]);
        // Requests in flight when the connection closes are nobody's problem.
        for i in 0..8 {
            // SAFETY: as above.
            unsafe { queues[0].read_raw(i * 512, memory.at(4096), 512, 2) }.unwrap();
        }
        transport.get_submission_notifier(0).notify().unwrap();
    }
}

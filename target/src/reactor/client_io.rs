//! Requests of control threads to an engine: snapshots read for a stream, disks written from one.
//!
//! ```text
//!  control thread ─► mailbox ─► waiting ─► engine.submit ─► running ─► answer, with the memory
//! ```
//!
//! They enter the engine as a guest's requests do, with few in flight, so that guests go first. The
//! memory of a request belongs to the shard until the engine is done with it.

use std::collections::VecDeque;
use std::sync::mpsc::SyncSender;

use lamina_bdev::{Done, Engine, Handle, Op, Request, Seg, Status};

/// Place among the exports, in a cookie, that means these requests.
pub const CLIENT_INDEX: u16 = u16::MAX;
/// Requests that the engine has at one time; the others wait.
const RUNNING_MAX: usize = 16;
/// Requests a shard takes from all control threads.
const WAITING_MAX: usize = 1024;
const PAGE: usize = 4096;

/// Memory of a request, aligned as devices like it.
#[derive(Debug)]
pub struct IoBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl IoBuffer {
    /// `len` bytes of zeros.
    pub fn new(len: usize) -> IoBuffer {
        let memory = vec![0; len + PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        assert!(start < PAGE, "heap memory can be aligned");
        IoBuffer { memory, start, len }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    /// The bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// A request of a control thread.
pub struct IoJob {
    /// What it is on.
    pub handle: Handle,
    /// What to do.
    pub op: Op,
    /// First byte.
    pub offset: u64,
    /// Bytes, for a discard; otherwise the buffer's.
    pub length: u64,
    /// What is read or written; empty for others.
    pub buffer: IoBuffer,
    /// Told how it ended; dropped if the shard goes first.
    pub answer: SyncSender<(Status, IoBuffer)>,
}

/// A shard's requests of control threads.
#[derive(Default)]
pub struct ClientIo {
    waiting: VecDeque<Box<IoJob>>,
    running: Vec<Option<Box<IoJob>>>,
}

impl ClientIo {
    /// Takes a request. One too many is dropped, and its sender sees that.
    pub fn take(&mut self, job: Box<IoJob>) {
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push_back(job);
        }
    }

    /// True if none is waiting or running.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.iter().all(Option::is_none)
    }

    /// Drops those that have not begun.
    pub fn drop_waiting(&mut self) {
        self.waiting.clear();
    }

    /// Gives requests to the engine. True if there were any.
    pub fn pump(&mut self, engine: &mut Engine) -> bool {
        let mut worked = false;
        while let Some(job) = self.waiting.front_mut() {
            let free = self.running.iter().position(Option::is_none);
            let place = free.unwrap_or(self.running.len());
            if place >= RUNNING_MAX {
                break;
            }
            let (carries, len) = match job.op {
                Op::Read | Op::Write => (true, job.buffer.len as u64),
                Op::Discard | Op::WriteZeroes => (false, job.length),
                Op::Flush => (false, 0),
            };
            let bytes = job.buffer.bytes_mut();
            let seg = Seg { addr: bytes.as_mut_ptr() as usize, len: bytes.len() };
            let request = Request {
                cookie: u64::from(CLIENT_INDEX) << 48 | place as u64,
                handle: job.handle,
                op: job.op,
                offset: job.offset,
                len,
                fua: false,
            };
            let segs = if carries { std::slice::from_ref(&seg) } else { &[] };
            if !engine.submit(&request, segs) {
                break;
            }
            let job = self.waiting.pop_front();
            if place == self.running.len() {
                self.running.push(job);
            } else {
                self.running[place] = job;
            }
            worked = true;
        }
        worked
    }

    /// Answers the request that is done.
    ///
    /// # Panics
    /// If it is not one of these.
    pub fn complete(&mut self, done: Done) {
        let place = (done.cookie & 0xffff_ffff) as usize;
        let job = self.running[place].take().expect("a request that was never started");
        let IoJob { answer, buffer, .. } = *job;
        // Whoever asked may have stopped waiting.
        let _ = answer.try_send((done.status, buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    #[test]
    fn memory_is_aligned_and_as_long_as_asked() {
        for len in [0, 1, 512, 4096, 1 << 20] {
            let mut buffer = IoBuffer::new(len);
            assert_eq!(buffer.bytes().len(), len);
            assert!(buffer.bytes().as_ptr().addr().is_multiple_of(PAGE));
            buffer.bytes_mut().fill(7);
            assert!(buffer.bytes().iter().all(|byte| *byte == 7));
        }
    }

    #[test]
    fn too_many_requests_are_dropped_and_their_senders_see_that() {
        let mut clients = ClientIo::default();
        let job = |answer| {
            let (handle, buffer) = (Handle(0), IoBuffer::new(0));
            Box::new(IoJob { handle, op: Op::Flush, offset: 0, length: 0, buffer, answer })
        };
        let mut answers = Vec::new();
        for _ in 0..=WAITING_MAX {
            let (answer, wait) = sync_channel(1);
            clients.take(job(answer));
            answers.push(wait);
        }
        assert!(answers[WAITING_MAX].recv().is_err());
        assert!(!clients.is_idle());
        clients.drop_waiting();
        assert!(clients.is_idle() && answers[0].recv().is_err());
    }
}

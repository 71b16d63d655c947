//! A disk in RAM behind the export's `Submit` seam, with everything a test wants to see or break.
#![allow(unsafe_code)]
// UNSAFETY: requests carry host addresses of guest memory; somebody has to copy from there.

use std::collections::VecDeque;

use lamina_bdev::{Op, Request, Seg, Status};

use crate::vhost::queue::{Submit, Taken};

/// The disk. Requests are carried out at once; their completions wait to be taken.
pub(super) struct RamDisk {
    pub(super) bytes: Vec<u8>,
    /// What came in, in order, with the number of segments.
    pub(super) seen: Vec<(Request, usize)>,
    /// How many more requests are accepted.
    pub(super) room: usize,
    /// How every request ends.
    pub(super) status: Status,
    /// Reads and writes are answered on the spot.
    pub(super) at_once: bool,
    done: VecDeque<u64>,
}

impl RamDisk {
    pub(super) fn new(size: usize) -> RamDisk {
        RamDisk {
            bytes: vec![0; size],
            seen: Vec::new(),
            room: usize::MAX,
            status: Status::Ok,
            at_once: false,
            done: VecDeque::new(),
        }
    }

    /// Oldest completion.
    pub(super) fn take_done(&mut self) -> Option<(u64, Status)> {
        self.done.pop_front().map(|cookie| (cookie, self.status))
    }

    /// Youngest completion: to finish requests out of order.
    pub(super) fn take_done_last(&mut self) -> Option<(u64, Status)> {
        self.done.pop_back().map(|cookie| (cookie, self.status))
    }

    /// Forgets all requests not yet taken, as a dying process does.
    pub(super) fn die(&mut self) {
        self.done.clear();
    }

    fn copy(&mut self, request: &Request, segs: &[Seg]) {
        let mut at = request.offset as usize;
        for seg in segs {
            let range = at..at + seg.len;
            // SAFETY: the export translated these addresses from guest memory that the rig keeps
            // mapped; nothing else refers to `bytes`.
            unsafe {
                match request.op {
                    Op::Read => std::ptr::copy_nonoverlapping(
                        self.bytes[range].as_ptr(),
                        seg.addr as *mut u8,
                        seg.len,
                    ),
                    Op::Write => std::ptr::copy_nonoverlapping(
                        seg.addr as *const u8,
                        self.bytes[range].as_mut_ptr(),
                        seg.len,
                    ),
                    _ => panic!("segments on {:?}", request.op),
                }
            }
            at += seg.len;
        }
        assert_eq!(at - request.offset as usize, request.len as usize, "segments add up");
    }
}

impl Submit for RamDisk {
    fn submit(&mut self, request: &Request, segs: &[Seg]) -> Taken {
        if self.room == 0 {
            return Taken::No;
        }
        self.room -= 1;
        self.seen.push((*request, segs.len()));
        if self.at_once && matches!(request.op, Op::Read | Op::Write) {
            self.copy(request, segs);
            return Taken::Done;
        }
        self.done.push_back(request.cookie);
        if self.status != Status::Ok {
            return Taken::Later;
        }
        match request.op {
            Op::Read | Op::Write => self.copy(request, segs),
            Op::Flush => assert!(segs.is_empty() && request.len == 0),
            Op::Discard | Op::WriteZeroes => {
                let start = request.offset as usize;
                self.bytes[start..start + request.len as usize].fill(0);
            }
        }
        Taken::Later
    }
}

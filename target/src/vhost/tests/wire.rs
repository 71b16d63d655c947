//! A front-end that sends exactly the bytes and descriptors it is told to.

use std::fs::File;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::driver::{Driver, Ram};

pub(super) const GET_FEATURES: u32 = 1;
pub(super) const SET_FEATURES: u32 = 2;
pub(super) const SET_OWNER: u32 = 3;
pub(super) const SET_MEM_TABLE: u32 = 5;
pub(super) const SET_VRING_NUM: u32 = 8;
pub(super) const SET_VRING_ADDR: u32 = 9;
pub(super) const SET_VRING_BASE: u32 = 10;
pub(super) const GET_VRING_BASE: u32 = 11;
pub(super) const SET_VRING_KICK: u32 = 12;
pub(super) const SET_VRING_CALL: u32 = 13;
pub(super) const GET_PROTOCOL_FEATURES: u32 = 15;
pub(super) const SET_PROTOCOL_FEATURES: u32 = 16;
pub(super) const GET_QUEUE_NUM: u32 = 17;
pub(super) const SET_VRING_ENABLE: u32 = 18;
pub(super) const SET_BACKEND_REQ_FD: u32 = 21;
pub(super) const GET_CONFIG: u32 = 24;
pub(super) const SET_CONFIG: u32 = 25;
pub(super) const GET_INFLIGHT_FD: u32 = 31;
pub(super) const SET_INFLIGHT_FD: u32 = 32;
pub(super) const RESET_DEVICE: u32 = 34;
pub(super) const GET_MAX_MEM_SLOTS: u32 = 36;
pub(super) const ADD_MEM_REG: u32 = 37;
pub(super) const REM_MEM_REG: u32 = 38;
pub(super) const SET_STATUS: u32 = 39;

const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// Bytes of a body of 64-bit words.
pub(super) fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// Two 32-bit words: a ring's index and a number.
pub(super) fn state(index: u32, num: u32) -> Vec<u8> {
    [index.to_ne_bytes(), num.to_ne_bytes()].concat()
}

/// The body of SET_VRING_ADDR.
pub(super) fn addr_body(index: u32, driver: &Driver) -> Vec<u8> {
    let addrs = driver.addrs();
    let mut body = state(index, 0);
    body.extend(words(&[addrs.desc, addrs.device, addrs.driver, 0]));
    body
}

pub(super) struct Wire {
    pub(super) stream: UnixStream,
}

impl Wire {
    pub(super) fn connect(path: &Path) -> Wire {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Wire { stream }
    }

    /// Sends raw bytes with descriptors.
    pub(super) fn send_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let buffers = [IoSlice::new(bytes)];
        sendmsg(&self.stream, &buffers, &mut control, SendFlags::NOSIGNAL).is_ok()
    }

    pub(super) fn send(
        &self,
        request: u32,
        flags: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> bool {
        let mut message = request.to_ne_bytes().to_vec();
        message.extend((flags | 1).to_ne_bytes());
        message.extend((body.len() as u32).to_ne_bytes());
        message.extend(body);
        self.send_raw(&message, fds)
    }

    /// Receives a reply's body and at most one descriptor; `None` if the connection is closed.
    pub(super) fn receive(&mut self, request: u32) -> Option<(Vec<u8>, Option<File>)> {
        let mut header = [0; 12];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffers = [std::io::IoSliceMut::new(&mut header)];
        let flags = RecvFlags::WAITALL | RecvFlags::CMSG_CLOEXEC;
        let bytes = recvmsg(&self.stream, &mut buffers, &mut control, flags).ok()?.bytes;
        if bytes != 12 {
            return None;
        }
        let file = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next().map(File::from),
            _ => None,
        });
        let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|i| header[at + i]));
        assert_eq!((word(0), word(4) & 7), (request, REPLY | 1));
        let mut body = vec![0; word(8) as usize];
        self.stream.read_exact(&mut body).ok()?;
        Some((body, file))
    }

    /// A request that is answered by its nature.
    pub(super) fn get(&mut self, request: u32, body: &[u8]) -> Option<(Vec<u8>, Option<File>)> {
        assert!(self.send(request, 0, body, &[]));
        self.receive(request)
    }

    pub(super) fn get_u64(&mut self, request: u32) -> u64 {
        let (body, _) = self.get(request, &[]).expect("an answer");
        u64::from_ne_bytes(body.try_into().unwrap())
    }

    /// A request that is acknowledged: `Some(true)` is good, `None` a closed connection.
    pub(super) fn set(
        &mut self,
        request: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Option<bool> {
        if !self.send(request, NEED_REPLY, body, fds) {
            return None;
        }
        let (body, _) = self.receive(request)?;
        Some(u64::from_ne_bytes(body.try_into().unwrap()) == 0)
    }

    /// As `set`, for what must work.
    pub(super) fn must(&mut self, request: u32, body: &[u8], fds: &[BorrowedFd<'_>]) {
        assert_eq!(self.set(request, body, fds), Some(true), "request {request}");
    }

    /// All features and protocol features on offer, but the packed ring unless asked for.
    pub(super) fn negotiate(&mut self, packed: bool) {
        let unwanted = (1 << 29) | if packed { 0 } else { 1 << 34 };
        let features = self.get_u64(GET_FEATURES) & !unwanted;
        let protocol = self.get_u64(GET_PROTOCOL_FEATURES);
        assert!(self.send(SET_PROTOCOL_FEATURES, 0, &words(&[protocol]), &[]));
        self.must(SET_OWNER, &[], &[]);
        self.must(SET_FEATURES, &words(&[features]), &[]);
    }

    /// The body of SET_MEM_TABLE for a test guest.
    pub(super) fn memory_body() -> Vec<u8> {
        let specs = Ram::specs();
        let mut body = state(specs.len() as u32, 0);
        for spec in specs {
            body.extend(words(&[spec.guest_addr, spec.size, spec.user_addr, spec.offset]));
        }
        body
    }

    pub(super) fn share(&mut self, ram: &Ram) {
        let fds = ram.files.each_ref().map(AsFd::as_fd);
        self.must(SET_MEM_TABLE, &Wire::memory_body(), &fds);
    }

    /// Starts a queue as QEMU does; `kick` and `call` are the eventfds.
    pub(super) fn start(
        &mut self,
        index: u32,
        driver: &Driver,
        base: u32,
        kick: &File,
        call: &File,
    ) {
        self.must(SET_VRING_CALL, &words(&[index.into()]), &[call.as_fd()]);
        self.must(SET_VRING_NUM, &state(index, driver.size.into()), &[]);
        self.must(SET_VRING_BASE, &state(index, base), &[]);
        self.must(SET_VRING_ADDR, &addr_body(index, driver), &[]);
        self.must(SET_VRING_KICK, &words(&[index.into()]), &[kick.as_fd()]);
        self.must(SET_VRING_ENABLE, &state(index, 1), &[]);
    }

    pub(super) fn base(&mut self, index: u32) -> u32 {
        let (body, _) = self.get(GET_VRING_BASE, &state(index, 0)).expect("an answer");
        u32::from_ne_bytes(body[4..8].try_into().unwrap())
    }
}

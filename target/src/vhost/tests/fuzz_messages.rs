//! Fuzz target of what a front-end can say: a stream of vhost-user messages with descriptors,
//! with a guest that uses the queues in between.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::net::{RecvFlags, recv};
use vhost::vhost_user::BackendReqHandler;

use super::disk::RamDisk;
use super::driver::*;
use super::fuzz::{Bytes, small_config};
use super::rig::*;
use super::wire::*;
use crate::vhost::session::Session;
use crate::vhost::socket::{Shared, serve_message};
use crate::vhost::vring::RingFeatures;
use crate::vhost::{BlkExport, ExportMsg, ServeConfig};

/// Most messages of one input.
const MESSAGES_MAX: usize = 40;
/// Name of the guest's memory, to be found again among what the process holds.
const MEMORY: &str = "fuzz-messages";

/// What stays from input to input: descriptors that a front-end may pass.
struct Things {
    ram: Ram,
    event: File,
    short: File,
    null: File,
}

impl Things {
    fn fd(&self, kind: u8) -> BorrowedFd<'_> {
        match kind % 6 {
            0 => self.ram.files[0].as_fd(),
            1 => self.ram.files[1].as_fd(),
            2 | 3 => self.event.as_fd(),
            4 => self.short.as_fd(),
            _ => self.null.as_fd(),
        }
    }
}

type Reactor = Arc<Mutex<(BlkExport, RamDisk)>>;

/// A whole turn: everything the guest offered is done at its end.
fn turn(reactor: &Reactor) {
    let (export, disk) = &mut *reactor.lock().unwrap();
    export.poll_into(disk);
    while let Some((cookie, status)) = disk.take_done() {
        export.complete(cookie, status);
    }
    export.end_turn();
}

/// The body that a lawful front-end would send, and its descriptors by kind.
fn lawful(request: u32, input: &mut Bytes<'_>, driver: &Driver) -> (Vec<u8>, Vec<u8>) {
    let choice = input.byte();
    let index = u32::from(choice & 3) % 2;
    let event = if choice & 0x80 != 0 { (1 << 8, vec![]) } else { (0, vec![2]) };
    match request {
        SET_FEATURES => {
            let packed = u64::from(driver.features.packed) << 34;
            let event_idx = u64::from(driver.features.event_idx) << 29;
            (words(&[1 << 32 | 1 << 30 | 1 << 28 | 0x6e44 & 0x7a44 | packed | event_idx]), vec![])
        }
        SET_PROTOCOL_FEATURES => {
            (words(&[super::super::handler::protocol_features().bits()]), vec![])
        }
        SET_MEM_TABLE => (Wire::memory_body(), vec![0, 1]),
        ADD_MEM_REG | REM_MEM_REG => {
            let spec = Ram::specs()[usize::from(choice & 1)];
            let region = [0, spec.guest_addr, spec.size, spec.user_addr, spec.offset];
            (words(&region), if request == ADD_MEM_REG { vec![choice & 1] } else { vec![] })
        }
        SET_VRING_NUM => (state(index, driver.size.into()), vec![]),
        SET_VRING_BASE => (state(index, driver.base()), vec![]),
        GET_VRING_BASE | SET_VRING_ENABLE => (state(index, u32::from(choice >> 2 & 1)), vec![]),
        SET_VRING_ADDR => (addr_body(index, driver), vec![]),
        SET_VRING_KICK | SET_VRING_CALL | 14 => (words(&[u64::from(index) | event.0]), event.1),
        GET_CONFIG | SET_CONFIG => {
            let (offset, size) = if request == SET_CONFIG { (32u32, 1) } else { (0, 60) };
            let mut body = [offset.to_ne_bytes(), u32::to_ne_bytes(size), [0; 4]].concat();
            body.resize(12 + size as usize, choice & 1);
            (body, vec![])
        }
        GET_INFLIGHT_FD | SET_INFLIGHT_FD => {
            let mut body = words(&[0x1000, 0]);
            body.extend([2, 0, driver.size as u8, 0]);
            (body, if request == SET_INFLIGHT_FD { vec![choice & 1] } else { vec![] })
        }
        SET_BACKEND_REQ_FD => (vec![], vec![2]),
        _ => (vec![], vec![]),
    }
}

/// The guest does something on its ring.
fn play(things: &Things, driver: &mut Driver, input: &mut Bytes<'_>, room: &mut u16) {
    let choice = input.byte();
    if choice & 3 == 0 {
        let (place, value) = (input.half(), input.half());
        things.ram.write_u16(driver.desc + u64::from(place % 0xb000), value);
    } else if *room >= 3 {
        *room -= 3;
        let n = parts(u64::from(choice >> 2 & 7));
        let mut header = [0; 16];
        header[0] = choice >> 5;
        things.ram.write(n.header, &header);
        let data = if header[0] == 0 { into(n.data, 512) } else { out(n.data, 512) };
        driver.offer(&things.ram, &[out(n.header, 16), data, into(n.status, 1)]);
    }
}

/// Sends one message as the input wants it; false: it may lack bytes, nothing can follow.
fn send(things: &Things, wire: &Wire, driver: &Driver, verb: u8, input: &mut Bytes<'_>) -> bool {
    const REQUESTS: [u32; 20] = [
        SET_FEATURES,
        SET_PROTOCOL_FEATURES,
        SET_OWNER,
        SET_MEM_TABLE,
        SET_VRING_NUM,
        SET_VRING_ADDR,
        SET_VRING_BASE,
        SET_VRING_KICK,
        SET_VRING_CALL,
        SET_VRING_ENABLE,
        GET_VRING_BASE,
        GET_CONFIG,
        SET_CONFIG,
        GET_INFLIGHT_FD,
        SET_INFLIGHT_FD,
        RESET_DEVICE,
        ADD_MEM_REG,
        REM_MEM_REG,
        SET_BACKEND_REQ_FD,
        14,
    ];
    let request = match verb {
        0..100 => REQUESTS[usize::from(verb) % REQUESTS.len()],
        _ => u32::from(verb - 100) % 48,
    };
    let flags = input.byte();
    let (mut body, mut kinds) = lawful(request, input, driver);
    for _ in 0..flags >> 5 & 3 {
        let (place, value) = (usize::from(input.byte()), input.byte());
        match body.len() {
            0 => body.push(value),
            len => body[place % len] = value,
        }
    }
    if flags & 0x80 != 0 {
        kinds.clear();
        kinds.extend((0..input.byte() % 12).map(|kind| kind.wrapping_add(flags)));
    }
    let mut len = body.len() as u32;
    let lies = flags & 0x10 != 0;
    if lies {
        len = len.wrapping_add(u32::from(input.byte())).wrapping_sub(128);
    }
    let mut message = request.to_ne_bytes().to_vec();
    message.extend((u32::from(flags & 0xc) | u32::from(flags & 3 != 3)).to_ne_bytes());
    message.extend(len.to_ne_bytes());
    message.extend(body);
    let fds: Vec<BorrowedFd<'_>> = kinds.iter().map(|kind| things.fd(*kind)).collect();
    wire.send_raw(&message, &fds) && !lies
}

/// Descriptors and mappings of the guest's memory that the process holds.
fn held() -> (usize, usize) {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let named = |path: PathBuf| path.to_string_lossy().contains(MEMORY);
    let fds = links.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(named)).count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    (fds, maps.lines().filter(|line| line.contains(MEMORY)).count())
}

/// One front-end, from connection to its end; nothing of it stays.
fn connection(things: &Things, input: &[u8]) {
    let mut input = Bytes(input);
    let setup = input.byte();
    let features =
        RingFeatures { packed: setup & 1 != 0, event_idx: setup & 2 != 0, indirect: true };
    let mut driver = Driver::new(&things.ram, GUEST_BASE, 16, features, 0);
    let export = (BlkExport::new(small_config()), RamDisk::new(64 << 10));
    let reactor: Reactor = Arc::new(Mutex::new(export));
    let for_post = reactor.clone();
    let post = move |message: ExportMsg| {
        for_post.lock().unwrap().0.message(message);
        turn(&for_post);
    };
    let config = ServeConfig {
        export: small_config(),
        socket: PathBuf::from("fuzz"),
        log: Box::new(|_: &str| {}),
    };
    let shared = Shared::alone(config, Box::new(post));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let peeked = ours.try_clone().unwrap();
    let wire = Wire { stream: theirs };
    let session = Arc::new(Mutex::new(Session::new(shared.clone())));
    let mut handler = BackendReqHandler::from_stream(ours, session.clone());
    let mut room = driver.size;
    for _ in 0..MESSAGES_MAX {
        if input.done() {
            break;
        }
        let verb = input.byte();
        if verb >= 224 {
            play(things, &mut driver, &mut input, &mut room);
            turn(&reactor);
            continue;
        }
        let whole = send(things, &wire, &driver, verb, &mut input);
        if !whole {
            let _ = wire.stream.shutdown(std::net::Shutdown::Write);
        }
        if serve_message(&shared, &peeked, &mut handler).is_err() {
            break;
        }
        // Replies are not looked at, but taken, with the descriptors they carry.
        let mut reply = [0u8; 4096];
        while recv(&wire.stream, &mut reply, RecvFlags::DONTWAIT).is_ok_and(|(_, n)| n > 0) {}
    }
    drop((handler, peeked, wire));
    session.lock().unwrap().close();
    turn(&reactor);
    let reactor = reactor.lock().unwrap();
    assert!(reactor.0.idle() && reactor.0.queues() == 0, "the connection's queues are stopped");
}

#[test]
fn messages() {
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    let things = Things {
        ram: Ram::named(MEMORY),
        event: File::from(event),
        short: named_file("fuzz-short", 4096),
        null: File::options().read(true).write(true).open("/dev/null").unwrap(),
    };
    let before = held();
    let things = std::panic::AssertUnwindSafe(things);
    bolero::check!(name = "messages")
        .with_iterations(200)
        .with_test_time(Duration::MAX)
        .with_shrink_time(Duration::ZERO)
        .for_each(|input: &[u8]| {
            connection(&things, input);
            assert_eq!(held(), before, "descriptors and mappings are given back");
        });
}

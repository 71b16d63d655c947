//! The protocol over a real socket: a well-behaved front-end, then all the others.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::Ordering;

use super::driver::{Driver, GUEST_BASE, Ram, USER_BASE, into, named_file, out, shared_file};
use super::rig::{DISK_BYTES, FLUSH, OK, WRITE, all_features, config, event_pair, parts, signals};
use super::served::{Folder, Served, wait_for};
use super::wire::*;
use crate::vhost::{ExportConfig, ServeConfig, serve};

/// A guest with one queue on a connection.
struct Client {
    wire: Wire,
    ram: Ram,
    driver: Driver,
    kick: File,
    call: File,
}

impl Client {
    fn connect(served: &Served, packed: bool) -> Client {
        Client::with_ram(served, packed, Ram::new())
    }

    fn with_ram(served: &Served, packed: bool, ram: Ram) -> Client {
        let driver = Driver::new(&ram, GUEST_BASE, 16, all_features(packed).ring, 0);
        let (_, kick) = event_pair();
        let (_, call) = event_pair();
        let mut wire = Wire::connect(&served.socket);
        wire.negotiate(packed);
        wire.share(&ram);
        wire.start(0, &driver, driver.base(), &kick, &call);
        Client { wire, ram, driver, kick, call }
    }

    fn offer(&mut self, n: u64, kind: u32, sector: u64) -> u16 {
        let p = parts(n);
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.ram.write(p.header, &header);
        self.ram.write(p.status, &[0xee]);
        let mut chain = vec![out(p.header, 16)];
        if kind == WRITE {
            chain.push(out(p.data, 512));
        }
        chain.push(into(p.status, 1));
        let id = self.driver.offer(&self.ram, &chain);
        rustix::io::write(&self.kick, &1u64.to_ne_bytes()).unwrap();
        id
    }

    /// Waits for the next chain to come back.
    fn wait(&mut self) -> u16 {
        let mut back = None;
        wait_for(
            || {
                back = self.driver.used(&self.ram);
                back.is_some()
            },
            || "a request".to_string(),
        );
        back.unwrap().0
    }

    fn prove(&mut self) {
        for n in 0..3 {
            let id = self.offer(n, WRITE, n);
            assert_eq!(self.wait(), id);
            assert_eq!(self.ram.read::<1>(parts(n).status), [OK]);
        }
    }
}

#[test]
fn a_whole_life_with_split_and_packed_rings() {
    for packed in [false, true] {
        let served = Served::new();
        for round in 0..3 {
            let mut client = Client::connect(&served, packed);
            client.prove();
            wait_for(|| signals(&client.call) > 0, || "a call".to_string());
            let status = served.server().status();
            assert!(status.connected && status.queues == 1, "{status:?}");
            assert_eq!(status.features >> 34 & 1 == 1, packed);
            assert_eq!(client.wire.base(0), client.driver.base(), "round {round}");
            assert_eq!(served.server().status().queues, 0);
            // Start it again where it stands: requests go on.
            let base = client.driver.base();
            client.wire.start(0, &client.driver, base, &client.kick, &client.call);
            client.prove();
            drop(client);
            wait_for(|| !served.server().status().connected, || "the end".to_string());
        }
        assert!(served.sleeps.load(Ordering::Relaxed) > 0, "the loop never slept");
    }
}

#[test]
fn what_is_offered_is_what_we_say() {
    let served = Served::new();
    let mut wire = Wire::connect(&served.socket);
    let features = wire.get_u64(GET_FEATURES);
    for bit in [2, 6, 9, 10, 11, 12, 13, 14, 28, 29, 30, 32, 34] {
        assert!(features & 1 << bit != 0, "feature bit {bit}");
    }
    assert_eq!(features & (1 << 5 | 1 << 7 | 1 << 33), 0, "neither RO nor SCSI nor IOMMU");
    let protocol = wire.get_u64(GET_PROTOCOL_FEATURES);
    for bit in [0, 3, 5, 9, 12, 13, 15] {
        assert!(protocol & 1 << bit != 0, "protocol feature bit {bit}");
    }
    wire.negotiate(false);
    assert_eq!(wire.get_u64(GET_QUEUE_NUM), 4);
    assert_eq!(wire.get_u64(GET_MAX_MEM_SLOTS), 256);
    let mut body = [0u32, 60, 0].iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    body.extend([0; 60]);
    let (reply, _) = wire.get(GET_CONFIG, &body).unwrap();
    let space = &reply[12..];
    let word = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
    assert_eq!(u64::from_le_bytes(space[..8].try_into().unwrap()), DISK_BYTES as u64 / 512);
    assert_eq!((word(12), word(20)), (126, 512));
    assert_eq!((space[24], space[25], space[26], word(28)), (3, 0, 8, 8));
    assert_eq!((space[32], space[34]), (1, 4));
    assert_eq!((word(36), word(40), word(44)), (1 << 21, 16, 8));
    assert_eq!((word(48), word(52), space[56]), (1 << 21, 16, 1));

    let readonly = Served::with(ExportConfig { readonly: true, queues_max: 1, ..config() });
    let features = Wire::connect(&readonly.socket).get_u64(GET_FEATURES);
    assert!(features & 1 << 5 != 0);
    assert_eq!(features & (1 << 12 | 1 << 13 | 1 << 14), 0, "no MQ, DISCARD, WRITE_ZEROES");
}

/// A SET_CONFIG body.
fn config_body(offset: u32, bytes: &[u8]) -> Vec<u8> {
    let words = [offset, bytes.len() as u32, 0];
    let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    body.extend(bytes);
    body
}

#[test]
fn the_write_cache_can_be_switched_and_writes_follow() {
    let served = Served::new();
    let mut client = Client::connect(&served, false);
    client.prove();
    client.wire.must(SET_CONFIG, &config_body(32, &[0]), &[]);
    assert!(!served.server().status().write_cache);
    client.prove();
    client.wire.must(SET_CONFIG, &config_body(32, &[1]), &[]);
    client.prove();
    let fua: Vec<bool> = served.disk.lock().unwrap().seen.iter().map(|(r, _)| r.fua).collect();
    assert_eq!(fua, [[false; 3], [true; 3], [false; 3]].concat());
    // It survives the connection, and the configuration space says so.
    client.wire.must(SET_CONFIG, &config_body(32, &[0]), &[]);
    drop(client);
    let mut wire = Wire::connect(&served.socket);
    wire.negotiate(false);
    let (reply, _) = wire.get(GET_CONFIG, &config_body(32, &[9])).unwrap();
    assert_eq!(reply[12], 0);
    // A reset device is as new.
    wire.must(RESET_DEVICE, &[], &[]);
    assert!(served.server().status().write_cache);
}

#[test]
fn a_resize_reaches_the_guest() {
    let served = Served::new();
    assert!(!served.server().resized(DISK_BYTES as u64), "nobody to tell");
    let mut client = Client::connect(&served, false);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    client.wire.must(SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]);
    assert!(served.server().resized(512));
    let mut message = [0; 12];
    ours.read_exact(&mut message).unwrap();
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let mut body = config_body(0, &[0; 8]);
    body[8] = 0;
    let (reply, _) = client.wire.get(GET_CONFIG, &body).unwrap();
    assert_eq!(reply[12..20], 1u64.to_le_bytes());
    client.offer(1, WRITE, 1);
    client.wait();
    assert_eq!(client.ram.read::<1>(parts(1).status), [1], "past the new end");
    client.offer(1, WRITE, 0);
    client.wait();
    assert_eq!(client.ram.read::<1>(parts(1).status), [OK]);
    // A front-end that never reads blocks nobody.
    for _ in 0..100_000 {
        if !served.server().resized(DISK_BYTES as u64) {
            break;
        }
    }
    client.prove();
}

#[test]
fn requests_in_flight_survive_the_death_of_a_daemon() {
    for packed in [false, true] {
        let folder = Folder::new();
        let socket = folder.0.join("s");
        let first = Served::at(config(), socket.clone(), Served::new().disk.clone());
        first.hold.store(true, Ordering::Relaxed);
        let ram = Ram::new();
        let mut driver = Driver::new(&ram, GUEST_BASE, 16, all_features(packed).ring, 0);
        let (_, kick) = event_pair();
        let (_, call) = event_pair();
        let mut wire = Wire::connect(&socket);
        wire.negotiate(packed);
        let mut ask = words(&[0, 0]);
        ask.extend([4u16.to_ne_bytes(), 16u16.to_ne_bytes()].concat());
        ask.extend([0; 4]);
        let (shape, log) = wire.get(GET_INFLIGHT_FD, &ask).unwrap();
        let log = log.expect("a descriptor");
        wire.must(SET_INFLIGHT_FD, &shape, &[log.as_fd()]);
        wire.share(&ram);
        wire.start(0, &driver, driver.base(), &kick, &call);
        let ids: Vec<u16> = (0..4)
            .map(|n| {
                let p = parts(n);
                ram.write(
                    p.header,
                    &[[WRITE as u8, 0, 0, 0], [0; 4], [n as u8, 0, 0, 0], [0; 4]].concat(),
                );
                ram.write(p.data, &[n as u8 + 1; 512]);
                driver.offer(&ram, &[out(p.header, 16), out(p.data, 512), into(p.status, 1)])
            })
            .collect();
        rustix::io::write(&kick, &1u64.to_ne_bytes()).unwrap();
        wait_for(|| first.disk.lock().unwrap().seen.len() == 4, || "four requests".into());
        let disk = first.disk.clone();
        first.kill();
        disk.lock().unwrap().bytes.fill(0);

        let second = Served::at(config(), socket.clone(), disk);
        let mut wire = Wire::connect(&socket);
        wire.negotiate(packed);
        wire.must(SET_INFLIGHT_FD, &shape, &[log.as_fd()]);
        wire.share(&ram);
        // QEMU restores a base of its own making after a crash; here: nonsense for packed rings.
        let base = if packed { 0x8000_8000 } else { 0 };
        wire.start(0, &driver, base, &kick, &call);
        let mut back = Vec::new();
        wait_for(
            || {
                back.extend(driver.used(&ram).map(|(id, _)| id));
                back.len() == 4
            },
            || "four answers".into(),
        );
        assert_eq!(back, ids);
        for n in 0..4usize {
            assert_eq!(ram.read::<1>(parts(n as u64).status), [OK]);
            let written = second.disk.lock().unwrap().bytes[512 * n];
            assert_eq!(written, n as u8 + 1);
        }
        assert_eq!(driver.used(&ram), None, "exactly once");
    }
}

#[test]
fn a_closed_connection_is_drained_before_the_next_is_served() {
    let served = Served::new();
    served.hold.store(true, Ordering::Relaxed);
    let mut client = Client::connect(&served, false);
    client.offer(1, WRITE, 0);
    wait_for(|| served.disk.lock().unwrap().seen.len() == 1, || "the request".into());
    let Client { wire, ram, mut driver, .. } = client;
    drop(wire);
    let mut next = Wire::connect(&served.socket);
    next.stream.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    assert!(next.send(GET_FEATURES, 0, &[], &[]));
    assert!(next.receive(GET_FEATURES).is_none(), "not before the disk has answered");
    served.hold.store(false, Ordering::Relaxed);
    next.stream.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    assert!(next.receive(GET_FEATURES).is_some());
    assert!(driver.used(&ram).is_some(), "the guest got its answer");
}

#[test]
fn stop_drains_and_removes_the_socket() {
    let mut served = Served::new();
    let mut client = Client::connect(&served, true);
    client.prove();
    let socket = served.socket.clone();
    served.server.take().unwrap().stop();
    assert!(!socket.exists());
    assert!(client.wire.receive(GET_FEATURES).is_none(), "closed");
}

/// Something a front-end sends after a good start (queue 0 runs), and whether it is a crime.
type Message = (&'static str, u32, Vec<u8>, usize);

/// Every one of these is answered with a refusal or a closed connection.
fn crimes() -> Vec<Message> {
    let max = u64::MAX;
    let region =
        |guest: u64, size: u64, user: u64, offset: u64| words(&[0, guest, size, user, offset]);
    let table = |count: u32, regions: &[[u64; 4]]| {
        let mut body = state(count, 0);
        regions.iter().for_each(|region| body.extend(words(region)));
        body
    };
    let good = [GUEST_BASE, 0x1000, USER_BASE, 0];
    let addr = |index: u32, at: u64| [state(index, 0), words(&[at, at, at, 0])].concat();
    let inflight = |size: u64, offset: u64, queues: u16, depth: u16| {
        [words(&[size, offset]), [queues.to_ne_bytes(), depth.to_ne_bytes()].concat(), vec![0; 4]]
            .concat()
    };
    vec![
        ("features never offered", SET_FEATURES, words(&[1 << 7]), 0),
        ("all features", SET_FEATURES, words(&[max]), 0),
        ("features changed while running", SET_FEATURES, words(&[1 << 30 | 1 << 32 | 1 << 34]), 0),
        ("protocol features never offered", SET_PROTOCOL_FEATURES, words(&[max]), 0),
        ("ring size 0", SET_VRING_NUM, state(1, 0), 0),
        ("ring size 1025", SET_VRING_NUM, state(1, 1025), 0),
        ("ring size 2^32 - 1", SET_VRING_NUM, state(1, u32::MAX), 0),
        ("ring size of a running queue", SET_VRING_NUM, state(0, 32), 0),
        ("ring size of queue 4 of 4", SET_VRING_NUM, state(4, 16), 0),
        ("ring size of queue 2^32 - 1", SET_VRING_NUM, state(u32::MAX, 16), 0),
        ("ring addresses of queue 4", SET_VRING_ADDR, addr(4, USER_BASE), 0),
        ("ring addresses of a running queue", SET_VRING_ADDR, addr(0, USER_BASE + 0x1000), 0),
        ("ring addresses misaligned", SET_VRING_ADDR, addr(1, USER_BASE + 1), 0),
        ("base of queue 4", SET_VRING_BASE, state(4, 0), 0),
        ("base of a running queue", SET_VRING_BASE, state(0, 0), 0),
        ("get base of queue 4", GET_VRING_BASE, state(4, 0), 0),
        ("enable queue 4", SET_VRING_ENABLE, state(4, 1), 0),
        ("enable with 2", SET_VRING_ENABLE, state(0, 2), 0),
        ("kick queue 4", SET_VRING_KICK, words(&[4]), 1),
        ("kick without a descriptor", SET_VRING_KICK, words(&[1]), 0),
        ("kick that is no eventfd", SET_VRING_KICK, words(&[1]), 1),
        ("kick of a queue never set up", SET_VRING_KICK, words(&[1 | 0x100]), 0),
        ("call that is no eventfd", SET_VRING_CALL, words(&[0]), 1),
        ("call with two descriptors", SET_VRING_CALL, words(&[0]), 2),
        ("no memory regions", SET_MEM_TABLE, table(0, &[]), 0),
        ("regions without descriptors", SET_MEM_TABLE, table(1, &[good]), 0),
        ("two regions, one descriptor", SET_MEM_TABLE, table(2, &[good, good]), 1),
        ("33 regions", SET_MEM_TABLE, table(33, &[good; 33]), 33),
        ("2^32 - 1 regions", SET_MEM_TABLE, table(u32::MAX, &[good]), 1),
        (
            "overlapping regions",
            SET_MEM_TABLE,
            table(2, &[good, [GUEST_BASE + 0xfff, 0x1000, USER_BASE + 0x10000, 0]]),
            2,
        ),
        ("empty region", SET_MEM_TABLE, table(1, &[[GUEST_BASE, 0, USER_BASE, 0]]), 1),
        ("region that wraps", SET_MEM_TABLE, table(1, &[[max - 0xfff, 0x2000, USER_BASE, 0]]), 1),
        (
            "region past its file",
            SET_MEM_TABLE,
            table(1, &[[GUEST_BASE, 1 << 40, USER_BASE, 0]]),
            1,
        ),
        (
            "region offset past its file",
            SET_MEM_TABLE,
            table(1, &[[GUEST_BASE, 0x1000, USER_BASE, 1 << 40]]),
            1,
        ),
        (
            "region offset that wraps",
            SET_MEM_TABLE,
            table(1, &[[GUEST_BASE, 0x1000, USER_BASE, max - 10]]),
            1,
        ),
        ("add a region that overlaps", ADD_MEM_REG, region(GUEST_BASE + 0x1000, 0x1000, 0, 0), 1),
        ("add an empty region", ADD_MEM_REG, region(0, 0, 0, 0), 1),
        ("add a region past its file", ADD_MEM_REG, region(0, 1 << 30, 0, 0), 1),
        ("add a region that wraps", ADD_MEM_REG, region(max - 10, 0x1000, 0, 0), 1),
        ("add without a descriptor", ADD_MEM_REG, region(0, 0x1000, 0, 0), 0),
        ("remove what is not there", REM_MEM_REG, region(0, 0x1000, 0, 0), 0),
        ("configuration past its end", SET_CONFIG, config_body(255, &[0, 0]), 0),
        ("capacity by the guest", SET_CONFIG, config_body(0, &[0; 8]), 0),
        ("write cache and one more", SET_CONFIG, config_body(32, &[0, 0]), 0),
        ("in-flight log for 0 queues", GET_INFLIGHT_FD, inflight(0, 0, 0, 16), 0),
        ("in-flight log for 65535 queues", GET_INFLIGHT_FD, inflight(0, 0, u16::MAX, u16::MAX), 0),
        ("in-flight log too small", SET_INFLIGHT_FD, inflight(64, 0, 4, 16), 1),
        ("in-flight log past its file", SET_INFLIGHT_FD, inflight(1280, 1 << 20, 4, 16), 1),
        ("in-flight log of 2^64 - 1", SET_INFLIGHT_FD, inflight(max, max, 4, 16), 1),
        ("in-flight log without a file", SET_INFLIGHT_FD, inflight(1280, 0, 4, 16), 0),
        ("channel that is no socket", SET_BACKEND_REQ_FD, vec![], 1),
        ("channel without a descriptor", SET_BACKEND_REQ_FD, vec![], 0),
        ("device status, never offered", SET_STATUS, words(&[0]), 0),
        ("request 0", 0, vec![], 0),
        ("request 1000", 1000, vec![], 0),
        ("features of 4 bytes", SET_FEATURES, vec![0; 4], 0),
        ("features of 400 bytes", SET_FEATURES, vec![0; 400], 0),
        ("descriptors where none belong", SET_VRING_NUM, state(1, 16), 1),
    ]
}

#[test]
fn crimes_are_refused_and_the_next_connection_is_served() {
    let crimes = crimes();
    assert!(crimes.len() >= 40);
    let served = Served::new();
    let file = shared_file(4096 * 4);
    for (name, request, body, fds) in crimes {
        let mut client = Client::connect(&served, false);
        client.prove();
        let fds: Vec<BorrowedFd<'_>> = vec![file.as_fd(); fds];
        let answer = client.wire.set(request, &body, &fds);
        assert_ne!(answer, Some(true), "{name}");
        assert!(client.wire.receive(0).is_none(), "{name}: closed afterwards");
    }
    served.wait_for_log("were accepted but never offered");
    served.wait_for_log("queue 4 does not exist, there are 4");
    served.wait_for_log("overlap");
    let mut client = Client::connect(&served, true);
    client.prove();
}

#[test]
fn broken_messages_close_the_connection_only() {
    let served = Served::new();
    let file = shared_file(4096);
    let header = |request: u32, flags: u32, size: u32| {
        [request, flags, size].iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>()
    };
    for (name, bytes) in [
        ("half a header", header(1, 1, 0)[..6].to_vec()),
        ("header without its body", header(SET_FEATURES, 1, 8)),
        ("body cut short", [header(SET_FEATURES, 1, 8), vec![0; 5]].concat()),
        ("size of 4 GiB", header(SET_MEM_TABLE, 1, u32::MAX)),
        ("size of 4097", [header(SET_MEM_TABLE, 1, 4097), vec![0; 4097]].concat()),
        ("version 0", header(GET_FEATURES, 0, 0)),
        ("version 3", header(GET_FEATURES, 3, 0)),
        ("a reply", header(GET_FEATURES, 5, 0)),
        ("reserved flags", header(GET_FEATURES, 0xfff1, 0)),
        ("noise", (0..4096u32).map(|i| ((i * 7919) >> 3) as u8).collect()),
    ] {
        for count in [0, 1, 8, 253] {
            let mut wire = Wire::connect(&served.socket);
            wire.send_raw(&bytes, &vec![file.as_fd(); count]);
            wire.stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(wire.receive(0).is_none(), "{name} with {count} descriptors");
        }
    }
    Client::connect(&served, false).prove();
}

#[test]
fn descriptors_and_mappings_do_not_leak() {
    // Other tests run beside this one, so only what bears this name counts.
    const NAME: &str = "leak-probe";
    let served = Served::new();
    let descriptors = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let targets = links.filter_map(|link| std::fs::read_link(link.path()).ok());
        targets.filter(|target| target.to_string_lossy().contains(NAME)).count()
    };
    let mappings = || std::fs::read_to_string("/proc/self/maps").unwrap().matches(NAME).count();
    let file = named_file(NAME, 4096 * 4);
    for round in 0..30 {
        let mut client = Client::with_ram(&served, round % 2 == 0, Ram::named(NAME));
        client.prove();
        assert!(descriptors() > 1 && mappings() > 1, "the probe sees something");
        let _ = client.wire.set(SET_MEM_TABLE, &[0; 16], &[file.as_fd(); 9]);
        drop(client);
        wait_for(|| !served.server().status().connected, || "the end".into());
        assert_eq!((descriptors(), mappings()), (1, 0), "round {round}");
    }
}

#[test]
fn memory_regions_come_and_go_under_load() {
    let served = Served::new();
    let mut client = Client::connect(&served, false);
    let file = shared_file(1 << 20);
    let region = words(&[0, 0x9000_0000, 1 << 20, 0x6000_0000_0000, 0]);
    for round in 0..300 {
        let id = client.offer(round % 8, if round % 3 == 0 { FLUSH } else { WRITE }, 0);
        client.wire.must(ADD_MEM_REG, &region, &[file.as_fd()]);
        client.wire.must(REM_MEM_REG, &region, &[]);
        if round % 10 == 0 {
            // The whole table anew, rings included.
            let Client { wire, ram, .. } = &mut client;
            wire.share(ram);
        }
        assert_eq!(client.wait(), id);
        assert_eq!(client.ram.read::<1>(parts(round % 8).status), [OK]);
    }
}

#[test]
fn socket_paths() {
    let folder = Folder::new();
    let at = |path: std::path::PathBuf| {
        let config = ServeConfig { export: config(), socket: path, log: Box::new(|_| {}) };
        serve(config, Box::new(|_| {})).map(drop).map_err(|error| error.to_string())
    };
    let long = folder.0.join("x".repeat(120));
    assert!(at(long).unwrap_err().contains("at most 107"));
    let error = at(folder.0.join("missing/disk.sock")).unwrap_err();
    assert!(error.contains("folder") && error.contains("does not exist"), "{error}");
    let plain = folder.0.join("plain");
    std::fs::write(&plain, "precious").unwrap();
    assert!(at(plain.clone()).unwrap_err().contains("not a socket"));
    assert_eq!(std::fs::read_to_string(&plain).unwrap(), "precious");
    let live = folder.0.join("live");
    let listener = UnixListener::bind(&live).unwrap();
    assert!(at(live.clone()).unwrap_err().contains("in use"));
    // Its process has died: the socket is taken over.
    drop(listener);
    assert!(live.exists());
    assert_eq!(at(live.clone()), Ok(()));
    assert!(!live.exists(), "and removed at the end");
}

#[test]
fn a_socket_that_is_no_longer_ours_is_not_removed() {
    let mut served = Served::new();
    std::fs::remove_file(&served.socket).unwrap();
    let _other = UnixListener::bind(&served.socket).unwrap();
    served.server.take().unwrap().stop();
    assert!(served.socket.exists());
}

//! Peers that waste what the daemon has: sockets that say nothing, say it slowly, or never read.
//! The others' I/O goes on, and in the end everything is as before.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use lamina_nvmf::host::Builder;
use lamina_nvmf::wire::Sgl;
use lamina_tests::nvme::{
    Command, Controller, Exported, Lost, Options, Payload, Queue, Status, admin, fabrics, nvm,
    pattern, rw,
};

/// Sockets that say nothing.
const SILENT: usize = 1500;
/// Descriptors that may come and go by themselves.
const SLACK: usize = 2;

/// Reads and writes a while, and gives the longest time of one round.
fn work(queue: &mut Queue, rounds: u64) -> Duration {
    let mut longest = Duration::ZERO;
    for round in 0..rounds {
        let begun = Instant::now();
        let data = pattern(round, 4096);
        queue.write(1, round % 512 * 8, &data);
        assert!(queue.read(1, round % 512 * 8, 8) == data);
        longest = longest.max(begun.elapsed());
    }
    longest
}

#[test]
fn thousands_of_half_open_sockets_disturb_nobody_and_are_gone_in_time() {
    let exported = Exported::new();
    let mut controller = exported.connect();
    controller.ask_queues(1);
    let mut queue = controller.io_queue(1, 16);
    let before = exported.daemon.descriptors();
    work(&mut queue, 200);
    let mut sockets = Vec::new();
    for n in 0..SILENT {
        let mut socket = TcpStream::connect(exported.address()).expect("a connection");
        if n % 3 == 0 {
            // The beginning of an ICReq, and no more.
            socket.write_all(&[0, 0, 128]).expect("room in the socket");
        }
        sockets.push(socket);
        if n % 100 == 0 {
            work(&mut queue, 10);
        }
    }
    // A real host gets through all the same.
    let mut late = exported.connect();
    assert_eq!(late.namespaces(), [1]);
    work(&mut queue, 200);
    let end = Instant::now() + Duration::from_secs(20);
    let of_hosts = 3;
    while exported.stats()["connections"] != of_hosts {
        assert!(Instant::now() < end, "{}", exported.stats());
        work(&mut queue, 50);
    }
    assert_eq!(exported.stats()["handshaking"], 0);
    for socket in &mut sockets {
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        let ended = socket.read(&mut [0; 16]);
        assert!(matches!(ended, Ok(0) | Err(_)), "the daemon has closed it");
    }
    drop((queue, controller, late));
    exported.wait_until_alone();
    exported.wait_until("descriptors are back", |exported| {
        exported.daemon.descriptors() <= before + SLACK
    });
}

#[test]
fn hosts_that_come_and_go_leave_nothing_behind() {
    let exported = Exported::new();
    drop(exported.connect());
    exported.wait_until_alone();
    let before = exported.daemon.descriptors();
    for round in 0..60u64 {
        let mut controller = exported.connect();
        controller.ask_queues(4);
        let mut queues: Vec<Queue> = (1..=4).map(|qid| controller.io_queue(qid, 32)).collect();
        for queue in &mut queues {
            // Gone in the middle of its commands.
            for at in 0..16 {
                let data = Payload::Out(pattern(round, 32768));
                queue.submit(rw(nvm::WRITE, 1, at * 64, 64), data);
                queue.submit(rw(nvm::READ, 1, at * 64, 64), Payload::In(vec![0; 32768]));
            }
            if round % 2 == 0 {
                queue.flush().expect("an open connection");
            } else {
                let part = queue.initiator().output()[..1000].to_vec();
                queue.socket().write_all(&part).expect("room in the socket");
            }
        }
    }
    exported.wait_until_alone();
    exported.wait_until("descriptors are back", |exported| {
        exported.daemon.descriptors() <= before + SLACK
    });
    let mut controller = exported.connect();
    assert_eq!(controller.cntlid, 1, "controller ids are free again");
    controller.ask_queues(1);
    work(&mut controller.io_queue(1, 16), 100);
}

#[test]
fn a_host_that_never_reads_holds_up_only_itself() {
    let exported = Exported::new();
    let mut controller = exported.connect();
    controller.ask_queues(2);
    controller.connection.options = Options { depth: 512, ..Options::default() };
    let mut greedy = controller.io_queue(1, 512);
    for at in 0..512 {
        let into = Payload::In(vec![0; 128 << 10]);
        greedy.submit(rw(nvm::READ, 1, at % 64 * 256, 256), into);
    }
    greedy.flush().expect("an open connection");
    let mut other = exported.connect();
    other.ask_queues(1);
    let mut queue = other.io_queue(1, 16);
    work(&mut queue, 300);
    // It reads at last, and gets everything.
    for _ in 0..512 {
        let done = greedy.next_end().expect("an answer");
        assert_eq!((done.completion.status, done.received), (Status::SUCCESS, 128 << 10));
    }
}

#[test]
fn bytes_that_come_one_at_a_time_are_commands_all_the_same() {
    let exported = Exported::new();
    let mut controller = exported.connect();
    controller.ask_queues(1);
    let mut queue = controller.io_queue(1, 16);
    let data = pattern(9, 512);
    let cid = queue.submit(rw(nvm::WRITE, 1, 0, 1), Payload::Out(data.clone()));
    let bytes = queue.initiator().output().to_vec();
    for byte in &bytes {
        queue.socket().write_all(std::slice::from_ref(byte)).expect("room in the socket");
    }
    let all = bytes.len();
    queue.initiator().sent(all);
    assert_eq!(queue.wait(cid).expect("an answer").completion.status, Status::SUCCESS);
    assert!(queue.read(1, 0, 1) == data);
}

#[test]
fn garbage_ends_a_connection_and_nothing_else() {
    let exported = Exported::new();
    let mut controller: Controller = exported.connect();
    controller.ask_queues(2);
    let mut good = controller.io_queue(1, 16);
    for seed in 0..50u64 {
        let mut socket = TcpStream::connect(exported.address()).expect("a connection");
        let _ = socket.write_all(&pattern(seed, 600));
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let mut rest = Vec::new();
        // A termination request, or nothing, and then the end.
        let _ = socket.read_to_end(&mut rest);
        assert!(rest.is_empty() || rest[0] == 3, "{rest:?}");
    }
    let mut bad = controller.io_queue(2, 16);
    bad.initiator().send_raw(&[0x55; 200]);
    let ended = loop {
        match bad.step() {
            Ok(()) => {}
            Err(lost) => break lost,
        }
    };
    assert!(matches!(ended, Lost::Broken(_) | Lost::Closed), "{ended:?}");
    work(&mut good, 50);
    exported.wait_until("the other queues are gone", |e| e.stats()["connections"] == 2);
}

/// How a connection is cut off.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// Closed with nothing unread: FIN.
    Close,
    /// Closed with answers unread: RST.
    Reset,
    /// Only this direction; the other is read to its end.
    Half,
}

/// What a host says until its first commands are under way.
fn opening(exported: &Exported) -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder = Builder::default();
    builder.icreq(&mut bytes, 0, 0);
    let (connect, data) = exported.connection().connect_command(0, 0xffff, 32);
    let sgl = |command, bytes| Command { sgl: Sgl::in_capsule(bytes), ..command };
    builder.command(&mut bytes, &Command { cid: 1, ..sgl(connect, 1024) }, &data);
    let enable = Command {
        opcode: fabrics::OPCODE,
        nsid: u32::from(fabrics::PROPERTY_SET),
        cdw11: 0x14,
        cdw12: 1 | 6 << 16 | 4 << 20,
        cid: 2,
        ..Command::default()
    };
    builder.command(&mut bytes, &enable, &[]);
    let event = Command { opcode: admin::ASYNC_EVENT_REQUEST, cid: 3, ..Command::default() };
    builder.command(&mut bytes, &event, &[]);
    let keep_alive = Command { opcode: admin::KEEP_ALIVE, cid: 4, ..Command::default() };
    builder.command(&mut bytes, &keep_alive, &[]);
    bytes
}

#[test]
fn connections_cut_off_in_every_state_are_gone_within_two_seconds() {
    let exported = Exported::new();
    let mut controller = exported.connect();
    controller.ask_queues(1);
    let mut queue = controller.io_queue(1, 16);
    work(&mut queue, 5);
    let (connections, descriptors) =
        (exported.stats()["connections"].clone(), exported.daemon.descriptors());
    let bytes = opening(&exported);
    for cut in [Cut::Close, Cut::Reset, Cut::Half] {
        for at in (0..bytes.len()).step_by(23).chain([bytes.len()]) {
            let mut socket = TcpStream::connect(exported.address()).expect("a connection");
            socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
            socket.write_all(&bytes[..at]).expect("room in the socket");
            // ICResp: the daemon has seen what came before.
            if at >= 128 && !matches!(cut, Cut::Reset) {
                socket.read_exact(&mut [0; 128]).expect("an answer");
            }
            if let Cut::Half = cut {
                socket.shutdown(std::net::Shutdown::Write).expect("an open connection");
                let mut rest = Vec::new();
                // It ends; with what else it has to say, or with a reset.
                let ended = socket.read_to_end(&mut rest);
                let timeout = ended.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
                assert!(!timeout, "cut at {at}: the daemon does not close its half");
            }
        }
        let begun = Instant::now();
        exported.wait_until("the connections are gone", |e| {
            e.stats()["connections"] == connections && e.daemon.descriptors() <= descriptors + SLACK
        });
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(2), "{cut:?}: {took:?}");
        work(&mut queue, 20);
    }
}

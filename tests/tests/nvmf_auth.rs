//! DH-HMAC-CHAP with a real daemon: a host with the right key gets in on every queue, everybody
//! else stays outside; inside TLS too.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use lamina_nvmf::auth::{AuthKey, Group, HashId, HostSide};
use lamina_nvmf::tls_psk::ConfiguredKey;
use lamina_tests::nvme::{
    Command, Connection, Controller, Exported, Host, NQN, Payload, Queue, Status, address_json,
    admin, fabrics, free_port, pattern,
};
use serde_json::json;

/// 32 bytes 0, 1, 2, ... for TLS.
const PSK: &str = "NVMeTLSkey-1:00:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";
const PROTOCOL: u32 = 0xe901_0100;
const MESSAGE_BYTES: u32 = 4096;
/// CC: enabled, 4 KiB pages, 64- and 16-byte entries.
const CC_ENABLE: u32 = 1 | 6 << 16 | 4 << 20;

/// Bytes that look random and come again with every run.
fn random() -> impl FnMut(&mut [u8]) {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    move |out: &mut [u8]| {
        for byte in out {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state as u8;
        }
    }
}

fn key(seed: u8, hash: HashId) -> AuthKey {
    AuthKey::generate(hash, &mut |out: &mut [u8]| out.fill(seed))
}

/// A daemon whose subsystem lets host 1 in, with these keys.
fn exported(host: &AuthKey, controller: &AuthKey) -> Exported {
    let exported = Exported::with(json!({"allow_any_host": false}));
    let daemon = &exported.daemon;
    for (name, key) in [("host", host), ("controller", controller)] {
        let path = daemon.path(name);
        std::fs::write(&path, key.to_text() + "\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        daemon.ask("keyring_file_add_key", json!({"name": name, "path": path}));
    }
    daemon.ask(
        "nvmf_subsystem_add_host",
        json!({"nqn": NQN, "host": Host::new(1).nqn, "dhchap_key": "host",
            "dhchap_ctrlr_key": "controller"}),
    );
    exported
}

fn command(fctype: u8, bytes: u32) -> Command {
    let (opcode, nsid) = (fabrics::OPCODE, u32::from(fctype));
    Command { opcode, nsid, cdw10: PROTOCOL, cdw11: bytes, ..Command::default() }
}

/// Authenticates a queue; what the host says of it.
fn authenticate(
    queue: &mut Queue,
    key: &AuthKey,
    controller: Option<&AuthKey>,
    group: Group,
) -> Result<(), String> {
    let mut random = random();
    let name = Host::new(1).nqn;
    let mut host = HostSide::new(&name, NQN, key.clone(), controller.cloned(), 1);
    let mut next = Some(host.negotiate(&HashId::ALL, &[group]));
    while let Some(message) = next.take() {
        let send = command(fabrics::AUTHENTICATION_SEND, message.len() as u32);
        let last = message[0] == 1 && message[1] == 4;
        queue.must(send, Payload::Out(message));
        if last {
            break;
        }
        let receive = command(fabrics::AUTHENTICATION_RECEIVE, MESSAGE_BYTES);
        let answer = queue.must(receive, Payload::In(vec![0; MESSAGE_BYTES as usize]));
        next = host.take(&answer, &mut random)?;
    }
    Ok(())
}

/// A controller whose admin queue has authenticated.
fn connected(exported: &Exported, key: &AuthKey, other: Option<&AuthKey>) -> Controller {
    connected_by(exported.connection(), key, other)
}

fn connected_by(connection: Connection, key: &AuthKey, other: Option<&AuthKey>) -> Controller {
    let (mut admin, done) = connection.open_queue(0, 0xffff, 32).expect("a connection");
    assert_eq!(done.completion.status, Status::SUCCESS);
    assert_eq!(done.completion.dw0 >> 16, 2, "the answer asks for authentication");
    authenticate(&mut admin, key, other, Group::Ffdhe2048).expect("authenticated");
    let cntlid = done.completion.dw0 as u16;
    let mut controller = Controller { connection, cntlid, admin };
    controller.set_property(0x14, CC_ENABLE);
    controller
}

#[test]
fn the_right_key_opens_admin_and_io_queues() {
    let (host, target) = (key(1, HashId::Sha256), key(2, HashId::Sha512));
    let exported = exported(&host, &target);
    let controller = connected(&exported, &host, Some(&target));
    for (qid, group) in [(1, Group::Null), (2, Group::Ffdhe3072)] {
        let mut queue = controller.io_queue(qid, 32);
        authenticate(&mut queue, &host, None, group).expect("authenticated");
        let data = pattern(u64::from(qid), 4096);
        queue.write(1, 8 * u64::from(qid), &data);
        assert_eq!(queue.read(1, 8 * u64::from(qid), 8), data);
    }
}

#[test]
fn without_authentication_no_command_is_carried_out() {
    let (host, target) = (key(1, HashId::Sha256), key(2, HashId::Sha256));
    let exported = exported(&host, &target);
    let connection = Connection::new(exported.address(), NQN);
    let (mut queue, done) = connection.open_queue(0, 0xffff, 32).expect("a connection");
    assert_eq!(done.completion.status, Status::SUCCESS);
    let identify = Command { opcode: admin::IDENTIFY, cdw10: 1, ..Command::default() };
    let done = queue.run(identify, Payload::In(vec![0; 4096])).expect("an answer");
    assert_eq!(done.completion.status, Status::AUTHENTICATION_REQUIRED.dnr());
    let controller = connected(&exported, &host, None);
    let mut io = controller.io_queue(1, 32);
    let read = lamina_tests::nvme::rw(lamina_tests::nvme::nvm::READ, 1, 0, 1);
    let done = io.run(read, Payload::In(vec![0; 512])).expect("an answer");
    assert!(!done.completion.status.is_ok(), "{:?}", done.completion.status);
    authenticate(&mut io, &host, None, Group::Null).expect("it is not too late");
    io.read(1, 0, 1);
}

#[test]
fn a_wrong_key_is_told_so_and_stays_outside() {
    let (host, target) = (key(1, HashId::Sha384), key(2, HashId::Sha384));
    let exported = exported(&host, &target);
    let connection = Connection::new(exported.address(), NQN);
    let (mut queue, _) = connection.open_queue(0, 0xffff, 32).expect("a connection");
    let wrong = key(3, HashId::Sha384);
    let error = authenticate(&mut queue, &wrong, None, Group::Null).expect_err("refused");
    assert!(error.contains("refused"), "{error}");
    let identify = Command { opcode: admin::IDENTIFY, cdw10: 1, ..Command::default() };
    let done = queue.run(identify, Payload::In(vec![0; 4096])).expect("an answer");
    assert_eq!(done.completion.status, Status::AUTHENTICATION_REQUIRED.dnr());
    let (mut queue, _) = connection.open_queue(0, 0xffff, 32).expect("a connection");
    let error = authenticate(&mut queue, &host, Some(&wrong), Group::Null).expect_err("refused");
    assert!(error.contains("could not prove"), "the target has another key: {error}");
    connected(&exported, &host, Some(&target));
}

#[test]
fn tls_and_authentication_are_both_asked_for_where_both_are_set() {
    let (host, target) = (key(1, HashId::Sha256), key(2, HashId::Sha384));
    let exported = exported(&host, &target);
    let daemon = &exported.daemon;
    let path = daemon.path("psk");
    std::fs::write(&path, PSK).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    daemon.ask("keyring_file_add_key", json!({"name": "psk", "path": path}));
    let name = Host::new(1).nqn;
    daemon.ask("nvmf_subsystem_remove_host", json!({"nqn": NQN, "host": name}));
    daemon.ask(
        "nvmf_subsystem_add_host",
        json!({"nqn": NQN, "host": name, "dhchap_key": "host",
            "dhchap_ctrlr_key": "controller", "psk": "psk"}),
    );
    let port = free_port();
    let listener = json!({"nqn": NQN, "listen_address": address_json(port),
        "secure_channel": true});
    daemon.ask("nvmf_subsystem_add_listener", listener);
    let keys = ConfiguredKey::parse(PSK).expect("a key").keys(&name, NQN);
    let secure =
        Connection { tls_keys: keys, ..Connection::new(([127, 0, 0, 1], port).into(), NQN) };
    let controller = connected_by(secure.clone(), &host, Some(&target));
    for (qid, group) in [(1, Group::Null), (2, Group::Ffdhe2048)] {
        let mut queue = controller.io_queue(qid, 32);
        authenticate(&mut queue, &host, Some(&target), group).expect("authenticated");
        let data = pattern(u64::from(qid), 64 << 10);
        queue.write(1, 256 * u64::from(qid), &data);
        assert!(queue.read(1, 256 * u64::from(qid), 128) == data);
    }
    // One without the other is not enough.
    let (mut queue, done) = secure.open_queue(0, 0xffff, 32).expect("a connection");
    assert_eq!(done.completion.status, Status::SUCCESS);
    let wrong = key(3, HashId::Sha256);
    assert!(authenticate(&mut queue, &wrong, None, Group::Null).is_err(), "TLS alone");
    let identify = Command { opcode: admin::IDENTIFY, cdw10: 1, ..Command::default() };
    let done = queue.run(identify, Payload::In(vec![0; 4096])).expect("an answer");
    assert_eq!(done.completion.status, Status::AUTHENTICATION_REQUIRED.dnr());
    let plain = Connection { tls_keys: Vec::new(), ..secure };
    let refused = Controller::try_connect(plain).expect("a connection").expect_err("no TLS");
    assert_eq!(refused.code(), Status::CONNECT_INVALID_HOST.code());
}

/// The largest group costs tens of milliseconds a host, whoever it is.
#[test]
fn hosts_that_compute_keys_hold_up_nobody_else() {
    let (host, target) = (key(1, HashId::Sha256), key(2, HashId::Sha512));
    let exported = exported(&host, &target);
    let mut controller = connected(&exported, &host, None);
    let mut asking: Vec<(Queue, u16)> = (0..40)
        .map(|_| {
            let opened = exported.connection().open_queue(0, 0xffff, 32);
            let (mut queue, _) = opened.expect("a connection");
            let name = Host::new(1).nqn;
            let side = HostSide::new(&name, NQN, host.clone(), None, 1);
            let message = side.negotiate(&HashId::ALL, &[Group::Ffdhe8192]);
            let send = command(fabrics::AUTHENTICATION_SEND, message.len() as u32);
            let cid = queue.submit(send, Payload::Out(message));
            (queue, cid)
        })
        .collect();
    for (queue, _) in &mut asking {
        queue.flush().expect("an open connection");
    }
    controller.keep_alive().expect("an answer");
    let at_once = Duration::from_millis(1);
    let waiting = asking
        .iter_mut()
        .filter_map(|(queue, cid)| queue.is_done(*cid, at_once).ok().filter(|done| !done))
        .count();
    assert!(waiting > 0, "others are served while keys are computed");
    for (queue, cid) in &mut asking {
        let done = queue.is_done(*cid, Duration::from_secs(60)).expect("an open connection");
        assert!(done, "everybody gets a turn");
    }
}

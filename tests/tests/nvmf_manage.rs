//! The NVMe target as it is managed: SPDK's methods, what they answer, and that all of it is there
//! again after a daemon was killed.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use lamina_tests::guest::MIB;
use lamina_tests::nvme::{
    Connection, Controller, Exported, Host, Lost, NQN, Status, address_json, free_port, pattern,
};
use serde_json::{Value, json};

const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";
const OTHER: &str = "nqn.2016-06.io.spdk:cnode2";
const DISCOVERY_LOG: u8 = 0x70;
const EVENT_DISCOVERY: u32 = 0x70_f0_02;

fn refused(exported: &Exported, method: &str, params: Value) -> (i64, String) {
    let error = exported.daemon.try_ask(method, params).expect_err(method);
    (error.code, error.message)
}

/// Subsystem names of the discovery log.
fn discovered(controller: &mut Controller) -> Vec<String> {
    let log = controller.log(DISCOVERY_LOG, 8192);
    let records = u64::from_le_bytes(log[8..16].try_into().expect("8 bytes"));
    let name = |at: usize| {
        let field = &log[1024 * (at + 1) + 256..1024 * (at + 1) + 512];
        let end = field.iter().position(|byte| *byte == 0).expect("a terminated name");
        String::from_utf8(field[..end].to_vec()).expect("text")
    };
    (0..records as usize).map(name).collect()
}

#[test]
fn discovery_names_subsystems_and_referrals_and_tells_of_changes() {
    let exported = Exported::new();
    let connection =
        Connection { kato_ms: 60_000, ..Connection::new(exported.address(), DISCOVERY) };
    let mut controller = Controller::connect(connection);
    assert!(discovered(&mut controller).contains(&NQN.to_string()));
    let request = controller.ask_event();
    exported.daemon.ask("nvmf_create_subsystem", json!({"nqn": OTHER, "allow_any_host": true}));
    let listener = json!({"nqn": OTHER, "listen_address": address_json(exported.port)});
    exported.daemon.ask("nvmf_subsystem_add_listener", listener);
    let done = controller.admin.wait(request).expect("an event");
    assert_eq!(done.completion.dw0, EVENT_DISCOVERY);
    assert!(discovered(&mut controller).contains(&OTHER.to_string()));
    let referral = json!({"address": address_json(8009)});
    exported.daemon.ask("nvmf_discovery_add_referral", referral.clone());
    assert!(discovered(&mut controller).contains(&DISCOVERY.to_string()));
    let referrals = exported.daemon.ask("nvmf_discovery_get_referrals", json!({}));
    assert_eq!(referrals[0]["address"]["trsvcid"], "8009");
    exported.daemon.ask("nvmf_discovery_remove_referral", referral);
    assert_eq!(exported.daemon.ask("nvmf_discovery_get_referrals", json!({})), json!([]));
}

#[test]
fn only_hosts_on_the_list_come_in_and_one_that_is_taken_off_goes() {
    let exported = Exported::with(json!({"allow_any_host": false}));
    let as_host = |n| Connection { host: Host::new(n), ..exported.connection() };
    let try_host = |n| Controller::try_connect(as_host(n)).expect("a connection");
    let code = |n| try_host(n).err().map(|status| status.code());
    assert_eq!(code(1), Some(Status::CONNECT_INVALID_HOST.code()));
    let host = json!({"nqn": NQN, "host": Host::new(1).nqn});
    exported.daemon.ask("nvmf_subsystem_add_host", host.clone());
    let (number, message) = refused(&exported, "nvmf_subsystem_add_host", host.clone());
    assert!(number == -32602 && message.starts_with("Invalid parameters"), "{message}");
    let mut controller = try_host(1).expect("it may come in");
    controller.ask_queues(1);
    let mut queue = controller.io_queue(1, 16);
    assert_eq!(code(2), Some(Status::CONNECT_INVALID_HOST.code()));
    exported.daemon.ask("nvmf_subsystem_remove_host", host);
    let end = Instant::now() + Duration::from_secs(10);
    while !matches!(queue.step(), Err(Lost::Closed)) {
        assert!(Instant::now() < end);
    }
    exported.wait_until_alone();
    let any = json!({"nqn": NQN, "allow_any_host": true});
    exported.daemon.ask("nvmf_subsystem_allow_any_host", any);
    assert_eq!(code(2), None);
    let wrong = Connection::new(exported.address(), OTHER);
    let refusal = Controller::try_connect(wrong).expect("a connection").expect_err("no subsystem");
    assert_eq!(refusal.code(), Status::CONNECT_INVALID_PARAMETERS.code());
}

#[test]
fn answers_have_the_shape_and_the_texts_that_clients_look_for() {
    let exported = Exported::new();
    let daemon = &exported.daemon;
    assert_eq!(daemon.ask("nvmf_create_transport", json!({"trtype": "tcp"})), true);
    let (code, message) = refused(&exported, "nvmf_create_transport", json!({"trtype": "TCP"}));
    assert_eq!((code, message.as_str()), (-32603, "Transport type 'TCP' already exists"));
    assert_eq!(daemon.ask("nvmf_get_transports", Value::Null)[0]["trtype"], "TCP");
    let subsystems = daemon.ask("nvmf_get_subsystems", Value::Null);
    assert_eq!(subsystems[0]["subtype"], "Discovery");
    let ours = &subsystems[1];
    assert_eq!((&ours["nqn"], &ours["subtype"]), (&json!(NQN), &json!("NVMe")));
    let disks = daemon.ask("bdev_get_bdevs", json!({"name": "vm"}));
    let namespace = &ours["namespaces"][0];
    assert_eq!(namespace["bdev_name"], disks[0]["name"]);
    assert_eq!((&namespace["nsid"], &namespace["anagrpid"]), (&json!(1), &json!(1)));
    assert_eq!(namespace["nguid"].as_str().map(str::len), Some(32));
    let listeners = daemon.ask("nvmf_subsystem_get_listeners", json!({"nqn": NQN}));
    assert_eq!(listeners[0]["address"], address_json(exported.port));
    assert_eq!(listeners[0]["ana_states"][0], json!({"ana_group": 1, "ana_state": "optimized"}));
    let missing = format!("Invalid parameters: Subsystem with NQN '{OTHER}' not found");
    for (method, more) in [
        ("nvmf_subsystem_get_listeners", json!({})),
        ("nvmf_subsystem_get_controllers", json!({})),
        ("nvmf_subsystem_get_qpairs", json!({})),
        ("nvmf_delete_subsystem", json!({})),
        ("nvmf_subsystem_remove_ns", json!({"nsid": 1})),
        ("nvmf_subsystem_add_ns", json!({"namespace": {"bdev_name": "vm"}})),
        ("nvmf_subsystem_add_listener", json!({"listen_address": address_json(1)})),
        ("nvmf_subsystem_add_host", json!({"host": Host::new(1).nqn})),
    ] {
        let mut params = more;
        params["nqn"] = json!(OTHER);
        assert_eq!(refused(&exported, method, params), (-32602, missing.clone()), "{method}");
    }
    let no_disk = json!({"nqn": NQN, "namespace": {"bdev_name": "none"}});
    let (code, message) = refused(&exported, "nvmf_subsystem_add_ns", no_disk);
    assert!(code == -19 && message.starts_with("No such device"), "{message}");
    let twice = refused(&exported, "nvmf_create_subsystem", json!({"nqn": NQN}));
    assert!(twice.1.starts_with(&format!("Unable to create subsystem {NQN}")), "{}", twice.1);
    let foreign = json!({"nqn": NQN, "listen_address":
        {"trtype": "TCP", "traddr": "192.0.2.1", "trsvcid": "4420"}});
    let (code, message) = refused(&exported, "nvmf_subsystem_add_listener", foreign);
    assert!(code == -32602 && message.contains("192.0.2.1"), "{message}");
    assert_eq!(daemon.ask("nvmf_subsystem_get_listeners", json!({"nqn": NQN})), listeners);
}

#[test]
fn namespaces_have_the_numbers_and_identities_that_were_asked_for() {
    let exported = Exported::new();
    exported.daemon.create_disk("b", 8);
    let uuid = "0a1b2c3d-0000-1111-2222-333344445555";
    let namespace = json!({"bdev_name": "b", "nsid": 10, "uuid": uuid,
        "nguid": "ABCDEF0123456789ABCDEF0123456789", "eui64": "0011223344556677",
        "block_size": 4096, "no_auto_visible": false, "hide_metadata": false});
    let added = json!({"nqn": NQN, "namespace": namespace.clone()});
    assert_eq!(exported.daemon.ask("nvmf_subsystem_add_ns", added), json!(10));
    let shown = exported.daemon.ask("nvmf_get_subsystems", json!({"nqn": NQN}));
    let shown = &shown[0]["namespaces"][1];
    for key in ["nsid", "uuid", "nguid", "eui64", "block_size"] {
        assert_eq!(shown[key], namespace[key], "{key}");
    }
    let mut controller = exported.connect();
    let identify = controller.identify(0, 10);
    assert_eq!(&identify[104..106], [0xab, 0xcd]);
    assert_eq!(&identify[120..128], [0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77]);
}

#[test]
fn a_killed_daemon_comes_back_with_everything_and_hosts_reconnect() {
    let mut exported = Exported::with(json!({"ana_reporting": true, "serial_number": "SN 7"}));
    exported.daemon.create_disk("b", 8);
    exported.daemon.snapshot("vm", "base");
    exported.add("vm@base");
    let second = free_port();
    let daemon = &exported.daemon;
    daemon.ask("nvmf_create_subsystem", json!({"nqn": OTHER, "min_cntlid": 5, "max_cntlid": 9}));
    let key = daemon.path("key");
    std::fs::write(&key, "DHHC-1:00:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:\n").unwrap();
    let open = refused(&exported, "keyring_file_add_key", json!({"name": "k", "path": key}));
    assert!(open.1.contains("chmod 600"), "{}", open.1);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let daemon = &exported.daemon;
    daemon.ask("keyring_file_add_key", json!({"name": "k", "path": key}));
    let host = json!({"nqn": OTHER, "host": Host::new(3).nqn, "dhchap_key": "k"});
    daemon.ask("nvmf_subsystem_add_host", host);
    let namespace = json!({"nqn": OTHER, "namespace": {"bdev_name": "b", "nsid": 4}});
    daemon.ask("nvmf_subsystem_add_ns", namespace);
    let listener = json!({"nqn": NQN, "listen_address": address_json(second)});
    daemon.ask("nvmf_subsystem_add_listener", listener.clone());
    let state = json!({"nqn": NQN, "listen_address": address_json(second),
        "ana_state": "non_optimized"});
    daemon.ask("nvmf_subsystem_listener_set_ana_state", state);
    let referral = json!({"address": address_json(8009), "secure_channel": true});
    daemon.ask("nvmf_discovery_add_referral", referral);
    let everything = |exported: &Exported| {
        let daemon = &exported.daemon;
        json!([
            daemon.ask("nvmf_get_subsystems", json!({})),
            daemon.ask("nvmf_subsystem_get_listeners", json!({"nqn": NQN})),
            daemon.ask("nvmf_discovery_get_referrals", json!({})),
            daemon.ask("keyring_get_keys", json!({})),
        ])
    };
    let before = everything(&exported);
    let mut controller = exported.connect();
    controller.ask_queues(2);
    let data = pattern(3, 65536);
    controller.io_queue(1, 16).write(1, 64, &data);
    let (identify, cntlid) = (controller.identify(0, 1), controller.cntlid);
    for _ in 0..3 {
        exported.daemon.kill();
        assert!(controller.keep_alive().is_err(), "its connection ended with the daemon");
        exported.daemon.start();
        assert_eq!(everything(&exported), before);
        controller = exported.connect();
        assert_eq!(controller.cntlid, cntlid, "controller ids are free again");
        assert_eq!(controller.identify(0, 1), identify);
        controller.ask_queues(2);
        assert!(controller.io_queue(1, 16).read(1, 64, 128) == data);
    }
    let gone = json!({"nqn": NQN, "listen_address": address_json(second)});
    exported.daemon.ask("nvmf_subsystem_remove_listener", gone);
    exported.daemon.ask("nvmf_delete_subsystem", json!({"nqn": OTHER}));
    exported.remove(2);
    exported.daemon.ask("keyring_file_remove_key", json!({"name": "k"}));
    drop(controller);
    let before = everything(&exported);
    assert!(exported.daemon.terminate().success());
    exported.daemon.start();
    assert_eq!(everything(&exported), before);
    assert_eq!(before[0].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_store_that_is_closed_takes_its_namespaces_along_and_brings_them_back() {
    let exported = Exported::new();
    let daemon = &exported.daemon;
    let mut controller = exported.connect();
    controller.ask_queues(1);
    let mut queue = controller.io_queue(1, 16);
    let data = pattern(1, 4096);
    queue.write(1, 0, &data);
    let (code, message) = refused(&exported, "lamina_store_close", json!({"name": "pool"}));
    assert!(code == -16 && message.contains("namespace 1"), "{message}");
    daemon.ask("lamina_store_close", json!({"name": "pool", "force": true}));
    assert_eq!(controller.namespaces(), Vec::<u32>::new());
    let shown = daemon.ask("nvmf_get_subsystems", json!({"nqn": NQN}));
    assert_eq!(shown[0]["namespaces"][0]["attached"], json!(false));
    daemon.ask("lamina_store_open", json!({"path": daemon.path("pool.store")}));
    assert_eq!(controller.namespaces(), [1]);
    assert!(queue.read(1, 0, 8) == data);
    daemon.ask("nvmf_delete_subsystem", json!({"nqn": NQN}));
    exported.wait_until_alone();
    daemon.ask("bdev_lvol_delete", json!({"name": "vm"}));
}

#[test]
fn a_namespace_in_ram_ends_with_the_daemon() {
    let mut exported = Exported::new();
    let store = json!({"name": "ram", "path": "ram:128M"});
    exported.daemon.ask("lamina_store_create", store);
    let disk = json!({"lvol_name": "r", "size": 16 * MIB, "lvs_name": "ram"});
    exported.daemon.ask("bdev_lvol_create", disk);
    assert_eq!(exported.add("ram/r"), 2);
    let mut controller = exported.connect();
    controller.ask_queues(1);
    let mut queue = controller.io_queue(1, 16);
    let data = pattern(1, 4096);
    queue.write(2, 0, &data);
    assert!(queue.read(2, 0, 8) == data);
    exported.daemon.kill();
    exported.daemon.start();
    assert_eq!(exported.connect().namespaces(), [1]);
}

#[test]
fn an_address_that_is_taken_at_the_start_is_listened_on_when_it_is_free() {
    let mut exported = Exported::new();
    exported.daemon.kill();
    let taken = std::net::TcpListener::bind(exported.address()).expect("the port is free now");
    exported.daemon.start();
    let listening = |exported: &Exported| {
        let listeners = exported.daemon.ask("nvmf_subsystem_get_listeners", json!({"nqn": NQN}));
        listeners[0]["listening"].clone()
    };
    assert_eq!(listening(&exported), json!(false));
    assert!(exported.daemon.log().contains("cannot be listened on, trying again"));
    drop(taken);
    exported.wait_until("it listens", |exported| listening(exported) == json!(true));
    assert_eq!(exported.connect().namespaces(), [1]);
}

#[test]
fn queues_are_listed_with_their_addresses_and_cores() {
    let exported = Exported::new();
    let mut controller = exported.connect();
    controller.ask_queues(3);
    let queues: Vec<_> = (1..=3).map(|qid| controller.io_queue(qid, 16)).collect();
    let shown = exported.daemon.ask("nvmf_subsystem_get_qpairs", json!({"nqn": NQN}));
    let shown = shown.as_array().expect("a list");
    let numbers: Vec<_> = shown.iter().map(|queue| queue["qid"].clone()).collect();
    assert_eq!(numbers, [0, 1, 2, 3]);
    for (queue, qid) in queues.iter().zip(1..) {
        let local = queue.socket().local_addr().expect("an address");
        assert_eq!(shown[qid]["peer_address"]["trsvcid"], local.port().to_string());
        assert_eq!(shown[qid]["listen_address"], address_json(exported.port));
        assert!(shown[qid]["core"].is_u64() && shown[qid]["hostnqn"] == Host::new(1).nqn);
    }
}

//! Hosts with TLS and pre-shared keys.

use std::os::unix::fs::PermissionsExt;

use lamina_nvmf::tls_psk::{ConfiguredKey, TlsKey};
use lamina_tests::nvme::{
    Connection, Controller, Exported, Host, NQN, address_json, free_port, pattern,
};
use serde_json::json;

/// 32 bytes 0, 1, 2, ... that are used as they are; and another key.
const KEY: &str = "NVMeTLSkey-1:00:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";

fn keys(text: &str, host: u8) -> Vec<TlsKey> {
    ConfiguredKey::parse(text).expect("a key").keys(&Host::new(host).nqn, NQN)
}

#[test]
fn tls_lets_in_who_has_the_key_and_a_secure_listener_nobody_else() {
    let exported = Exported::with(json!({"allow_any_host": false}));
    let path = exported.daemon.path("psk");
    std::fs::write(&path, KEY).expect("the test's folder");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("our file");
    exported.daemon.ask("keyring_file_add_key", json!({"name": "psk", "path": path}));
    let host = json!({"nqn": NQN, "host": Host::new(1).nqn, "psk": "psk"});
    exported.daemon.ask("nvmf_subsystem_add_host", host);
    let port = free_port();
    let listener = json!({"nqn": NQN, "listen_address": address_json(port),
        "secure_channel": true});
    exported.daemon.ask("nvmf_subsystem_add_listener", listener);
    let address = ([127, 0, 0, 1], port).into();
    let with = |tls_keys| Connection { tls_keys, ..Connection::new(address, NQN) };
    for key in keys(KEY, 1) {
        let mut controller = Controller::connect(with(vec![key]));
        controller.ask_queues(2);
        let mut queue = controller.io_queue(1, 64);
        let data = pattern(3, 128 << 10);
        queue.write(1, 8, &data);
        assert!(controller.io_queue(2, 64).read(1, 8, 256) == data);
    }
    let plain = Controller::try_connect(with(Vec::new())).expect("a connection");
    assert!(plain.is_err(), "a secure listener wants TLS");
    let mut wrong = keys(KEY, 1);
    wrong.iter_mut().for_each(|key| key.secret[0] ^= 1);
    assert!(with(wrong).open_queue(0, 0xffff, 32).is_err(), "a wrong key ends the handshake");
    assert!(with(keys(KEY, 2)).open_queue(0, 0xffff, 32).is_err(), "the key is host 1's");
    let mut again = Controller::connect(with(keys(KEY, 1)));
    assert_eq!(again.namespaces(), [1]);
}

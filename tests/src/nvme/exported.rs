//! A `laminad` with a subsystem, for tests with hosts.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Connection, Controller};
use crate::guest::{Daemon, MIB};

/// The subsystem of the tests.
pub const NQN: &str = "nqn.2016-06.io.spdk:cnode1";
/// Longest wait for the daemon to come to rest.
const REST_TIME_MAX: Duration = Duration::from_secs(20);

/// A port of the loopback that is free now.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    listener.local_addr().expect("an address").port()
}

/// A port of the loopback, as RPC has it.
#[must_use]
pub fn address_json(port: u16) -> Value {
    json!({"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string()})
}

/// Bytes that look random and follow from `seed`.
#[must_use]
pub fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// A daemon with a disk `vm` of 16 MiB as namespace 1 of [`NQN`], which any host may use.
#[derive(Debug)]
pub struct Exported {
    /// The daemon.
    pub daemon: Daemon,
    /// The port that the subsystem listens on.
    pub port: u16,
}

impl Exported {
    /// Started, with a store in a file.
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it starts a process")]
    pub fn new() -> Exported {
        Exported::with(json!({}))
    }

    /// The same, with other parameters of `nvmf_create_subsystem`.
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    pub fn with(parameters: Value) -> Exported {
        let daemon = Daemon::with_store(256 * MIB);
        daemon.create_disk("vm", 16);
        let port = free_port();
        let mut subsystem = json!({"nqn": NQN, "allow_any_host": true});
        for (key, value) in parameters.as_object().expect("an object") {
            subsystem[key] = value.clone();
        }
        daemon.ask("nvmf_create_subsystem", subsystem);
        let exported = Exported { daemon, port };
        assert_eq!(exported.add("vm"), 1);
        let listener = json!({"nqn": NQN, "listen_address": address_json(port)});
        exported.daemon.ask("nvmf_subsystem_add_listener", listener);
        exported
    }

    /// A daemon with two reactors, and a store with a disk of 16 MiB on each.
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    pub fn on_two_reactors() -> Exported {
        let mut daemon = Daemon::new();
        daemon.set_arguments(&["--reactors", "2"]);
        daemon.start();
        let port = free_port();
        daemon.ask("nvmf_create_subsystem", json!({"nqn": NQN, "allow_any_host": true}));
        for n in 0..2 {
            let path = daemon.path(&format!("{n}.store"));
            let store = json!({"name": format!("s{n}"), "path": path, "size": 128 * MIB});
            daemon.ask("lamina_store_create", store);
            let disk = json!({"lvol_name": format!("d{n}"), "size": 16 * MIB, "lvs_name": format!("s{n}")});
            daemon.ask("bdev_lvol_create", disk);
            let namespace = json!({"nqn": NQN, "namespace": {"bdev_name": format!("d{n}")}});
            daemon.ask("nvmf_subsystem_add_ns", namespace);
        }
        let listener = json!({"nqn": NQN, "listen_address": address_json(port)});
        daemon.ask("nvmf_subsystem_add_listener", listener);
        Exported { daemon, port }
    }

    /// Adds a disk or snapshot; its namespace id.
    ///
    /// # Panics
    /// If that fails.
    pub fn add(&self, disk: &str) -> u64 {
        let params = json!({"nqn": NQN, "namespace": {"bdev_name": disk}});
        self.daemon.ask("nvmf_subsystem_add_ns", params).as_u64().expect("a number")
    }

    /// Takes a namespace out.
    pub fn remove(&self, nsid: u64) {
        self.daemon.ask("nvmf_subsystem_remove_ns", json!({"nqn": NQN, "nsid": nsid}));
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// A plain connection to it.
    #[must_use]
    pub fn connection(&self) -> Connection {
        Connection::new(self.address(), NQN)
    }

    /// A connected host.
    #[must_use]
    pub fn connect(&self) -> Controller {
        Controller::connect(self.connection())
    }

    /// `nvmf_get_stats`.
    #[must_use]
    pub fn stats(&self) -> Value {
        self.daemon.ask("nvmf_get_stats", json!({}))
    }

    /// Waits until `condition` holds.
    ///
    /// # Panics
    /// If it does not in time.
    pub fn wait_until(&self, what: &str, condition: impl Fn(&Exported) -> bool) {
        let end = Instant::now() + REST_TIME_MAX;
        while !condition(self) {
            assert!(Instant::now() < end, "{what}: not so; {}", self.stats());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until no host is connected.
    pub fn wait_until_alone(&self) {
        self.wait_until("no host is connected", |exported| exported.stats()["connections"] == 0);
    }
}

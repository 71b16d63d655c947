//! The TLS keys that hosts may use on a port, and whose they are.

use std::collections::HashMap;
use std::sync::Arc;

use lamina_nvmf::controller::TlsIdentity;
use lamina_nvmf::subsystem::{PortId, Target};
use lamina_nvmf::tls_psk::{ConfiguredKey, TlsKey};

/// A key, and whose it is.
pub(super) struct PortKey {
    pub(super) key: TlsKey,
    pub(super) whose: TlsIdentity,
}

/// All keys of a port.
#[derive(Default)]
pub(super) struct PortKeys {
    pub(super) keys: Vec<PortKey>,
}

/// The keys of each port, derived when they are first asked for: a host that only knocks costs no
/// derivation.
#[derive(Default)]
pub(super) struct TlsKeys {
    ports: HashMap<PortId, Arc<PortKeys>>,
}

impl TlsKeys {
    /// Something has changed: they are derived anew.
    pub(super) fn clear(&mut self) {
        self.ports.clear();
    }

    /// Those of one port.
    pub(super) fn of_port(&mut self, port: PortId, target: &Target) -> Arc<PortKeys> {
        self.ports.entry(port).or_insert_with(|| Arc::new(derive(port, target))).clone()
    }
}

/// Keys of the hosts of all subsystems that listen there; the discovery subsystem does everywhere.
fn derive(port: PortId, target: &Target) -> PortKeys {
    let mut all = PortKeys::default();
    for (_, subsystem) in target.subsystems() {
        if subsystem.listener(port).is_none() && !subsystem.is_discovery() {
            continue;
        }
        for (host, keys) in subsystem.hosts() {
            let Some(secret) = &keys.psk else { continue };
            let Ok(configured) = ConfiguredKey::parse(&secret.text) else { continue };
            let (host, subsystem) = (host.clone(), subsystem.nqn().clone());
            for key in configured.keys(host.as_str(), subsystem.as_str()) {
                let whose = TlsIdentity { host: host.clone(), subsystem: subsystem.clone() };
                all.keys.push(PortKey { key, whose });
            }
        }
    }
    all
}

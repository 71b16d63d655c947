//! What there is of the NVMe target, as the RPC methods show it.

use lamina_nvmf::controller::Controller;
use lamina_nvmf::subsystem::{HostKeys, Nqn, Subsystem};
use lamina_rpc::methods as rpc;
use lamina_rpc::{Call, Method, RpcError};
use serde_json::Value;

use super::Control;
use super::methods::failure;
use super::nvmf::Device;
use super::nvmf_book::{NamespaceRecord, Records, SubsystemRecord};
use super::nvmf_calls::expect;
use super::nvmf_ids::{show_address, show_socket, to_hex};
use crate::nvmf::core::Core;

type Answer = Result<Value, RpcError>;
const NANOSECONDS: u64 = 1_000_000_000;

impl Control {
    /// Methods that only look.
    pub(super) fn nvmf_view_call(&self, call: Call) -> Answer {
        match call {
            Call::NvmfGetTransports(params) => {
                let other = |trtype: &String| !trtype.eq_ignore_ascii_case("tcp");
                if let Some(trtype) = params.trtype.filter(other) {
                    return Err(RpcError::not_found(format!("transport {trtype:?}: only TCP")));
                }
                let settings = self.nvmf.service.run(|core| core.settings()).map_err(failure)?;
                rpc::NvmfGetTransports::reply(vec![super::nvmf_transport::show(&settings)])
            }
            Call::NvmfGetSubsystems(params) => self.subsystems(params.nqn),
            Call::NvmfSubsystemGetListeners(params) => {
                let listeners = self.look(params.nqn, |core, subsystem| {
                    subsystem.listeners().iter().map(|one| listener(core, subsystem, one)).collect()
                });
                rpc::NvmfSubsystemGetListeners::reply(listeners?)
            }
            Call::NvmfSubsystemGetControllers(params) => {
                let nqn = params.nqn;
                let found = self.look(nqn, |core, subsystem| {
                    let of = |c: &Controller| name_of(core, c) == Some(subsystem.nqn());
                    let controllers = core.service.controllers().filter(|(_, c)| of(c));
                    controllers
                        .map(|(key, controller)| rpc::NvmfController {
                            cntlid: controller.cntlid,
                            hostnqn: controller.host.to_string(),
                            hostid: lamina_bdev::Uuid(controller.host_id).to_string(),
                            num_io_qpairs: controller.queues().count() as u32,
                            peer_address: core
                                .association(key)
                                .map(|a| a.peer.to_string())
                                .unwrap_or_default(),
                            authenticated: subsystem
                                .host_keys(&controller.host)
                                .is_some_and(|keys| keys.dhchap.is_some()),
                        })
                        .collect()
                });
                rpc::NvmfSubsystemGetControllers::reply(found?)
            }
            Call::NvmfSubsystemGetQpairs(params) => {
                rpc::NvmfSubsystemGetQpairs::reply(self.look(params.nqn, qpairs)?)
            }
            Call::NvmfDiscoveryGetReferrals(_) => {
                let referrals = self.nvmf.service.run(|core| {
                    let shown = core.target().referrals().iter().map(|one| rpc::NvmfReferral {
                        address: show_address(&one.address),
                        subnqn: one.nqn.to_string(),
                        secure_channel: one.secure,
                    });
                    shown.collect()
                });
                rpc::NvmfDiscoveryGetReferrals::reply(referrals.map_err(failure)?)
            }
            Call::NvmfGetStats(_) => self.nvmf_stats(),
            Call::KeyringGetKeys(_) => rpc::KeyringGetKeys::reply(self.keys()),
            other => Err(RpcError::method_not_found(other.info().name)),
        }
    }

    /// Looks at a subsystem, on the service thread.
    fn look<T: Send + 'static>(
        &self,
        nqn: String,
        look: impl FnOnce(&Core, &Subsystem) -> T + Send + 'static,
    ) -> Result<T, RpcError> {
        let looked = self.nvmf.service.run(move |core| {
            expect(core.target(), &nqn)?;
            let (_, subsystem) = core.target().find(&nqn).expect("it was there just now");
            Ok(look(core, subsystem))
        });
        looked.map_err(failure)?
    }

    fn subsystems(&self, nqn: Option<String>) -> Answer {
        let records = self.nvmf.book.read();
        let devices = self.nvmf.devices().clone();
        let shown = self.nvmf.service.run(move |core| -> Result<Vec<_>, RpcError> {
            if let Some(nqn) = &nqn {
                expect(core.target(), nqn)?;
            }
            let wanted = |one: &Subsystem| nqn.as_ref().is_none_or(|n| n == one.nqn().as_str());
            let all = core.target().subsystems().map(|(_, one)| one).filter(|one| wanted(one));
            Ok(all.map(|one| subsystem(core, one, &records, &devices)).collect())
        });
        rpc::NvmfGetSubsystems::reply(shown.map_err(failure)??)
    }

    fn nvmf_stats(&self) -> Answer {
        let counts = self.nvmf.service.run(|core| core.counts()).map_err(failure)?;
        let tcp = || vec![rpc::NvmfGroupTransport { trtype: "TCP".into() }];
        let groups = self.reactors.iter().map(|reactor| {
            let counts = reactor.nvmf_stats().counts();
            rpc::NvmfPollGroup {
                name: format!("reactor{}", reactor.index()),
                io_qpairs: counts.io_qpairs,
                current_io_qpairs: counts.current,
                pending_bdev_io: counts.blocked,
                completed_nvme_io: counts.completed,
                remote_io: counts.remote,
                transports: tcp(),
                ..rpc::NvmfPollGroup::default()
            }
        });
        let service = rpc::NvmfPollGroup {
            name: "service".into(),
            admin_qpairs: counts.admin_total,
            current_admin_qpairs: counts.admin as u32,
            transports: tcp(),
            ..rpc::NvmfPollGroup::default()
        };
        rpc::NvmfGetStats::reply(rpc::NvmfStats {
            tick_rate: NANOSECONDS,
            poll_groups: groups.chain([service]).collect(),
            accepted: counts.accepted,
            refused: counts.refused,
            handshaking: counts.handshaking as u32,
            connections: counts.all as u32,
        })
    }
}

fn name_of<'a>(core: &'a Core, controller: &Controller) -> Option<&'a Nqn> {
    core.target().get(controller.subsystem).map(|subsystem| subsystem.nqn())
}

fn host(nqn: &Nqn, keys: &HostKeys) -> rpc::NvmfHost {
    let name = |key: &Option<lamina_nvmf::subsystem::Secret>| key.as_ref().map(|k| k.name.clone());
    rpc::NvmfHost {
        nqn: nqn.to_string(),
        dhchap_key: name(&keys.dhchap),
        dhchap_ctrlr_key: name(&keys.dhchap_controller),
        psk: name(&keys.psk),
    }
}

fn subsystem(
    core: &Core,
    one: &Subsystem,
    records: &Records,
    devices: &[Device],
) -> rpc::NvmfSubsystem {
    let addresses = one.listeners().iter().filter_map(|l| core.target().port(l.port));
    let plain = rpc::NvmfSubsystem {
        nqn: one.nqn().to_string(),
        subtype: if one.is_discovery() { "Discovery" } else { "NVMe" }.into(),
        listen_addresses: addresses.map(show_address).collect(),
        allow_any_host: one.allow_any_host(),
        hosts: one.hosts().map(|(nqn, keys)| host(nqn, keys)).collect(),
        ..rpc::NvmfSubsystem::default()
    };
    if one.is_discovery() {
        return plain;
    }
    let spec = one.spec();
    rpc::NvmfSubsystem {
        serial_number: Some(spec.serial.clone()),
        model_number: Some(spec.model.clone()),
        max_namespaces: Some(spec.max_namespaces),
        min_cntlid: Some(spec.min_cntlid),
        max_cntlid: Some(spec.max_cntlid),
        ana_reporting: Some(spec.ana_reporting),
        namespaces: Some(namespaces(one, records, devices)),
        ..plain
    }
}

/// Those of the target, and those of the book whose store is not open.
fn namespaces(one: &Subsystem, records: &Records, devices: &[Device]) -> Vec<rpc::NvmfNamespace> {
    let mut shown: Vec<rpc::NvmfNamespace> = one
        .namespaces()
        .map(|namespace| {
            let device = devices.iter().find(|device| device.key == namespace.device);
            rpc::NvmfNamespace {
                nsid: namespace.nsid,
                bdev_name: namespace.name.clone(),
                name: namespace.name.clone(),
                nguid: to_hex(&namespace.nguid).to_ascii_uppercase(),
                eui64: to_hex(&namespace.eui64).to_ascii_uppercase(),
                uuid: namespace.uuid.to_string(),
                anagrpid: namespace.ana_group,
                alias: device.map(|device| device.alias.clone()).unwrap_or_default(),
                block_size: namespace.block_size(),
                num_blocks: namespace.blocks,
                readonly: namespace.readonly,
                attached: true,
            }
        })
        .collect();
    let its = |known: &&SubsystemRecord| known.nqn == one.nqn().as_str();
    let kept = records.subsystems.iter().filter(its).flat_map(|known| &known.namespaces);
    for record in kept.filter(|record| one.namespace(record.nsid).is_none()) {
        shown.push(absent(record));
    }
    shown.sort_by_key(|namespace| namespace.nsid);
    shown
}

fn absent(record: &NamespaceRecord) -> rpc::NvmfNamespace {
    rpc::NvmfNamespace {
        nsid: record.nsid,
        bdev_name: record.device.clone(),
        name: record.device.clone(),
        nguid: record.nguid.to_ascii_uppercase(),
        eui64: record.eui64.to_ascii_uppercase(),
        uuid: record.uuid.clone(),
        anagrpid: record.ana_group,
        alias: record.alias.clone(),
        block_size: record.block_size,
        num_blocks: 0,
        readonly: record.readonly,
        attached: false,
    }
}

fn listener(
    core: &Core,
    subsystem: &Subsystem,
    one: &lamina_nvmf::subsystem::Listener,
) -> rpc::NvmfListener {
    let address = core.target().port(one.port).expect("a listener's port is there").clone();
    let mut groups: Vec<u32> = subsystem.namespaces().map(|n| n.ana_group).collect();
    groups.extend(one.groups.keys());
    groups.sort_unstable();
    groups.dedup();
    let state = |group: &u32| rpc::NvmfAnaState {
        ana_group: *group,
        ana_state: one.state(*group).name().into(),
    };
    rpc::NvmfListener {
        address: show_address(&address),
        ana_state: one.default_state.name().into(),
        ana_states: groups.iter().map(state).collect(),
        secure_channel: one.secure,
        listening: core.is_listening(&address),
    }
}

fn qpairs(core: &Core, subsystem: &Subsystem) -> Vec<rpc::NvmfQpair> {
    let mut shown = Vec::new();
    for (key, controller) in core.service.controllers() {
        if name_of(core, controller) != Some(subsystem.nqn()) {
            continue;
        }
        let Some(association) = core.association(key) else { continue };
        let qpair = |qid, core, local, peer| rpc::NvmfQpair {
            cntlid: controller.cntlid,
            qid,
            state: "enabled".into(),
            hostnqn: controller.host.to_string(),
            core,
            listen_address: show_socket(local),
            peer_address: show_socket(peer),
        };
        shown.push(qpair(0, None, association.local, association.peer));
        for (qid, id) in &association.queues {
            if let Some(away) = core.away(*id) {
                let on = core.core_of(away.reactor);
                shown.push(qpair(*qid, Some(on), away.local, away.peer));
            }
        }
    }
    shown
}

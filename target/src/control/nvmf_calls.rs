//! The RPC methods of the NVMe target that change something.

use lamina_bdev::{Error, ErrorKind};
use lamina_nvmf::subsystem::{Host, HostKeys, Nqn, Referral, Secret, SubsystemSpec, Target};
use lamina_rpc::methods as rpc;
use lamina_rpc::{Call, Method, RpcError};
use serde_json::Value;

use super::Control;
use super::methods::failure;
use super::names::Found;
use super::nvmf::Device;
use super::nvmf_book::{HostRecord, ListenerRecord, ReferralRecord, SubsystemRecord};
use super::nvmf_ids::{address_of, ana_state_of, record_of, spec_of_call};

type Answer = Result<Value, RpcError>;

/// Errors as SPDK's clients know them: what cannot be done with these parameters is "Invalid
/// parameters", and why.
pub(super) fn refusal(error: Error) -> RpcError {
    match error.kind {
        ErrorKind::NotFound | ErrorKind::Exists | ErrorKind::Invalid => {
            RpcError::invalid_params(error)
        }
        _ => failure(error),
    }
}

/// No subsystem of that name: the sentence that clients look for.
pub(super) fn expect(target: &Target, nqn: &str) -> Result<(), RpcError> {
    match target.find(nqn) {
        Some(_) => Ok(()),
        None => {
            let nqn = nqn.escape_debug();
            Err(RpcError::invalid_params(format!("Subsystem with NQN '{nqn}' not found")))
        }
    }
}

impl Control {
    /// Methods about remote hosts.
    pub(super) fn nvmf_call(&self, call: Call) -> Answer {
        match call {
            Call::NvmfCreateTransport(params) => self.create_transport(&params),
            Call::NvmfCreateSubsystem(params) => self.create_subsystem(params),
            Call::NvmfDeleteSubsystem(params) => self.delete_subsystem(&params.nqn),
            Call::NvmfSubsystemAddNs(params) => self.add_namespace(params),
            Call::NvmfSubsystemRemoveNs(params) => self.remove_namespace(&params.nqn, params.nsid),
            Call::NvmfSubsystemSetNsAnaGroup(params) => {
                let rpc::NvmfSubsystemSetNsAnaGroup { nqn, nsid, anagrpid, .. } = params;
                let _change = self.change().map_err(failure)?;
                let name = nqn.clone();
                self.edit_target(&nqn, move |target| {
                    target.set_namespace_group(&name, nsid, anagrpid)
                })?;
                self.keep(&nqn, |one| {
                    for namespace in one.namespaces.iter_mut().filter(|n| n.nsid == nsid) {
                        namespace.ana_group = anagrpid;
                    }
                })?;
                rpc::NvmfSubsystemSetNsAnaGroup::reply(true)
            }
            call => self.nvmf_access_call(call),
        }
    }

    /// Methods about who may connect, and where.
    fn nvmf_access_call(&self, call: Call) -> Answer {
        match call {
            Call::NvmfSubsystemAddListener(params) => self.add_listener(params),
            Call::NvmfSubsystemRemoveListener(params) => self.remove_listener(params),
            Call::NvmfSubsystemListenerSetAnaState(params) => self.set_ana_state(params),
            Call::NvmfSubsystemAddHost(params) => self.add_host(params),
            Call::NvmfSubsystemSetKeys(params) => self.set_keys(params),
            Call::NvmfSubsystemRemoveHost(params) => self.remove_host(&params.nqn, &params.host),
            Call::NvmfSubsystemAllowAnyHost(params) => {
                let rpc::NvmfSubsystemAllowAnyHost { nqn, allow_any_host, .. } = params;
                let _change = self.change().map_err(failure)?;
                let name = nqn.clone();
                self.edit_target(&nqn, move |target| {
                    target.set_allow_any_host(&name, allow_any_host)
                })?;
                self.keep(&nqn, |one| one.allow_any_host = allow_any_host)?;
                rpc::NvmfSubsystemAllowAnyHost::reply(true)
            }
            Call::NvmfDiscoveryAddReferral(params) => self.add_referral(params),
            Call::NvmfDiscoveryRemoveReferral(params) => self.remove_referral(params),
            Call::KeyringFileAddKey(params) => self.add_key(&params.name, &params.path),
            Call::KeyringFileRemoveKey(params) => self.remove_key(&params.name),
            call => self.nvmf_view_call(call),
        }
    }

    /// Changes the target; the subsystem must be there.
    fn edit_target<T: Send + 'static>(
        &self,
        nqn: &str,
        edit: impl FnOnce(&mut Target) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, RpcError> {
        let nqn = nqn.to_string();
        let edited = self.nvmf.service.run(move |core| {
            expect(core.target(), &nqn)?;
            core.edit(edit).map_err(refusal)
        });
        edited.map_err(failure)?
    }

    /// Writes a change down. The discovery subsystem gets its record by the first one.
    fn keep(&self, nqn: &str, edit: impl FnOnce(&mut SubsystemRecord)) -> Result<(), RpcError> {
        let kept = self.nvmf.book.change(|records| {
            if records.subsystem(nqn).is_none() {
                records.subsystems.push(SubsystemRecord {
                    nqn: nqn.to_string(),
                    allow_any_host: true,
                    ..SubsystemRecord::default()
                });
            }
            if let Some(one) = records.subsystem(nqn) {
                edit(one);
            }
        });
        kept.map_err(|error| {
            let why = format!("it is done, but not kept over a restart: {error}");
            failure(Error::new(error.kind, why))
        })
    }

    fn create_subsystem(&self, params: rpc::NvmfCreateSubsystem) -> Answer {
        let failed = |error: Error| {
            let why = format!("Unable to create subsystem {}: {error}", params.nqn.escape_debug());
            RpcError::new(RpcError::INTERNAL_ERROR, why)
        };
        if params.passthrough == Some(true) || params.enable_nssr == Some(true) {
            let why = "passthrough and enable_nssr are not there: leave them out";
            return Err(RpcError::invalid_params(why));
        }
        let _change = self.change().map_err(failure)?;
        let nqn = Nqn::new(&params.nqn).map_err(refusal)?;
        let default = SubsystemSpec::new(nqn);
        let spec = SubsystemSpec {
            serial: params.serial_number.clone().unwrap_or(default.serial),
            model: params.model_number.clone().unwrap_or(default.model),
            allow_any_host: params.allow_any_host.unwrap_or(false),
            min_cntlid: params.min_cntlid.unwrap_or(default.min_cntlid),
            max_cntlid: params.max_cntlid.unwrap_or(default.max_cntlid),
            max_namespaces: params.max_namespaces.filter(|n| *n != 0).unwrap_or(256),
            ana_reporting: params.ana_reporting.unwrap_or(false),
            nqn: default.nqn,
        };
        let record = record_of_spec(&spec);
        let added = self.nvmf.service.run(move |core| core.edit(|t| t.add_subsystem(spec)));
        added.map_err(failure)?.map_err(failed)?;
        if let Err(error) = self.nvmf.book.change(|records| records.subsystems.push(record)) {
            let nqn = params.nqn.clone();
            let undo = self
                .nvmf
                .service
                .run(move |core| core.edit(|target| target.remove_subsystem(&nqn)).map(|_| ()));
            undo.and_then(|undone| undone).map_err(failure)?;
            return Err(failure(error));
        }
        rpc::NvmfCreateSubsystem::reply(true)
    }

    fn delete_subsystem(&self, nqn: &str) -> Answer {
        let change = self.change().map_err(failure)?;
        let name = nqn.to_string();
        self.edit_target(nqn, move |target| target.remove_subsystem(&name).map(|_| ()))?;
        let hidden = self.forget_shown(|shown| shown.nqn == nqn);
        let kept = self.nvmf.book.change(|records| records.subsystems.retain(|o| o.nqn != nqn));
        drop(change);
        self.detach_unused(hidden).map_err(failure)?;
        kept.map_err(failure)?;
        rpc::NvmfDeleteSubsystem::reply(true)
    }

    fn add_namespace(&self, params: rpc::NvmfSubsystemAddNs) -> Answer {
        let name = params.nqn.clone();
        let there = self.nvmf.service.run(move |core| expect(core.target(), &name));
        there.map_err(failure)??;
        let (_change, found) = self.change_of(&params.namespace.bdev_name).map_err(failure)?;
        let disk = found.entity.disk();
        if self.is_importing(disk.uuid) {
            let why = format!("a stream is being imported into {}: wait for its end", disk.name);
            return Err(RpcError::busy(why));
        }
        if found.store.path.starts_with("null:") {
            // A read would leave the buffer as the connection before left it.
            let why = format!("{} keeps no data: it can be measured over vhost only", disk.name);
            return Err(RpcError::invalid_params(why));
        }
        // Its base may hang: not with the daemon's lock.
        let device = self.nvmf.attach(&found).map_err(failure)?;
        let added = self.add_attached(&found, &device, params);
        if added.is_err() {
            self.nvmf.detach_if_unused(device.key).map_err(failure)?;
        }
        added
    }

    /// Makes a disk that is attached a namespace, and keeps that.
    fn add_attached(
        &self,
        found: &Found,
        device: &Device,
        params: rpc::NvmfSubsystemAddNs,
    ) -> Answer {
        let _change = self.change().map_err(failure)?;
        let nqn = params.nqn;
        let name = nqn.clone();
        let shown = self.nvmf.service.run(move |core| {
            expect(core.target(), &name)?;
            let found = core.target().find(&name).into_iter();
            let shown = found.flat_map(|(_, one)| one.namespaces().map(|n| n.nsid));
            Ok::<Vec<u32>, RpcError>(shown.collect())
        });
        let shown: Vec<u32> = shown.map_err(failure)??;
        let mut spec = spec_of_call(&params.namespace).map_err(refusal)?;
        // One whose store is not open keeps its number.
        let records = self.nvmf.book.read();
        let kept: Vec<u32> =
            records.namespaces().filter(|(of, _)| *of == nqn).map(|(_, n)| n.nsid).collect();
        match spec.nsid {
            Some(nsid) if kept.contains(&nsid) => {
                let why = format!("'{nqn}' has a namespace {nsid} already");
                return Err(RpcError::invalid_params(why));
            }
            Some(_) => {}
            None => {
                let taken = |nsid: &u32| kept.contains(nsid) || shown.contains(nsid);
                spec.nsid = (1..u32::MAX).find(|nsid| !taken(nsid));
            }
        }
        let nsid = self.show(found, device, &nqn, spec).map_err(refusal)?;
        let name = nqn.clone();
        let namespace = self.nvmf.service.run(move |core| {
            let (_, subsystem) = core.target().find(&name)?;
            subsystem.namespace(nsid).cloned()
        });
        let namespace = namespace.map_err(failure)?.ok_or_else(|| {
            RpcError::internal("the namespace that was added just now is not there")
        })?;
        // RAM ends with the daemon, and what is on it.
        if found.store.known().is_some() {
            let (store, device) = (found.store.uuid, found.entity.uuid());
            let record = record_of(&namespace, store, device, &found.alias());
            self.keep(&nqn, |one| one.namespaces.push(record))?;
        }
        rpc::NvmfSubsystemAddNs::reply(nsid)
    }

    fn remove_namespace(&self, nqn: &str, nsid: u32) -> Answer {
        let change = self.change().map_err(failure)?;
        let name = nqn.to_string();
        let removed = self.edit_target(nqn, move |t| t.remove_namespace(&name, nsid).map(|_| ()));
        let kept = self.nvmf.book.read();
        let in_book = kept.namespaces().any(|(of, n)| of == nqn && n.nsid == nsid);
        if let Err(error) = removed {
            // It may be one whose store is not open.
            if !in_book {
                return Err(error);
            }
        }
        let hidden = self.forget_shown(|shown| shown.nqn == nqn && shown.nsid == nsid);
        let kept = self.keep(nqn, |one| one.namespaces.retain(|n| n.nsid != nsid));
        drop(change);
        self.detach_unused(hidden).map_err(failure)?;
        kept?;
        rpc::NvmfSubsystemRemoveNs::reply(true)
    }

    fn add_listener(&self, params: rpc::NvmfSubsystemAddListener) -> Answer {
        let _change = self.change().map_err(failure)?;
        let address = address_of(&params.listen_address).map_err(refusal)?;
        let state = match &params.ana_state {
            Some(text) => ana_state_of(text).map_err(refusal)?,
            None => Default::default(),
        };
        let secure = params.secure_channel.unwrap_or(false);
        let record = ListenerRecord {
            traddr: address.traddr.to_string(),
            trsvcid: address.trsvcid.to_string(),
            secure,
            ana_state: state.name().into(),
            ana_groups: Default::default(),
        };
        let nqn = params.nqn.clone();
        let added = self.nvmf.service.run(move |core| {
            expect(core.target(), &nqn)?;
            core.add_listener(&nqn, &address, secure, false).map_err(refusal)?;
            if state != Default::default() {
                let set = core.edit(|target| target.set_ana_state(&nqn, &address, None, state));
                if let Err(error) = set {
                    let _ = core.edit(|target| target.remove_listener(&nqn, &address));
                    return Err(refusal(error));
                }
            }
            Ok(())
        });
        added.map_err(failure)??;
        self.keep(&params.nqn, |one| one.listeners.push(record))?;
        rpc::NvmfSubsystemAddListener::reply(true)
    }

    fn remove_listener(&self, params: rpc::NvmfSubsystemRemoveListener) -> Answer {
        let _change = self.change().map_err(failure)?;
        let address = address_of(&params.listen_address).map_err(refusal)?;
        let (traddr, trsvcid) = (address.traddr.to_string(), address.trsvcid.to_string());
        let nqn = params.nqn.clone();
        self.edit_target(&params.nqn, move |target| target.remove_listener(&nqn, &address))?;
        self.keep(&params.nqn, |one| {
            one.listeners.retain(|l| (&l.traddr, &l.trsvcid) != (&traddr, &trsvcid));
        })?;
        rpc::NvmfSubsystemRemoveListener::reply(true)
    }

    fn set_ana_state(&self, params: rpc::NvmfSubsystemListenerSetAnaState) -> Answer {
        let _change = self.change().map_err(failure)?;
        let address = address_of(&params.listen_address).map_err(refusal)?;
        let state = ana_state_of(&params.ana_state).map_err(refusal)?;
        let (traddr, trsvcid) = (address.traddr.to_string(), address.trsvcid.to_string());
        let (nqn, group) = (params.nqn.clone(), params.anagrpid);
        self.edit_target(&params.nqn, move |target| {
            target.set_ana_state(&nqn, &address, group, state)
        })?;
        self.keep(&params.nqn, |one| {
            let its = |l: &&mut ListenerRecord| (&l.traddr, &l.trsvcid) == (&traddr, &trsvcid);
            for listener in one.listeners.iter_mut().filter(its) {
                match group {
                    Some(group) => {
                        listener.ana_groups.insert(group, state.name().into());
                    }
                    None => {
                        listener.ana_groups.clear();
                        listener.ana_state = state.name().into();
                    }
                }
            }
        })?;
        rpc::NvmfSubsystemListenerSetAnaState::reply(true)
    }

    fn add_host(&self, params: rpc::NvmfSubsystemAddHost) -> Answer {
        let _change = self.change().map_err(failure)?;
        let record = HostRecord {
            nqn: params.host,
            dhchap_key: params.dhchap_key,
            dhchap_ctrlr_key: params.dhchap_ctrlr_key,
            psk: params.psk,
        };
        let host = Host {
            nqn: Nqn::new(&record.nqn).map_err(refusal)?,
            keys: self.keys_of(&record).map_err(refusal)?,
        };
        let nqn = params.nqn.clone();
        self.edit_target(&params.nqn, move |target| target.add_host(&nqn, host))?;
        self.keep(&params.nqn, |one| one.hosts.push(record))?;
        rpc::NvmfSubsystemAddHost::reply(true)
    }

    fn set_keys(&self, params: rpc::NvmfSubsystemSetKeys) -> Answer {
        let _change = self.change().map_err(failure)?;
        let host = Nqn::new(&params.host).map_err(refusal)?;
        let mut records = self.nvmf.book.read();
        let of = records.subsystem(&params.nqn).into_iter().flat_map(|one| one.hosts.clone());
        let known = of.into_iter().find(|known| known.nqn == params.host);
        let record = HostRecord {
            nqn: params.host,
            dhchap_key: params.dhchap_key,
            dhchap_ctrlr_key: params.dhchap_ctrlr_key,
            psk: known.and_then(|known| known.psk),
        };
        let keys = self.keys_of(&record).map_err(refusal)?;
        let nqn = params.nqn.clone();
        self.edit_target(&params.nqn, move |target| target.set_host_keys(&nqn, &host, keys))?;
        self.keep(&params.nqn, |one| {
            for host in one.hosts.iter_mut().filter(|host| host.nqn == record.nqn) {
                *host = record.clone();
            }
        })?;
        rpc::NvmfSubsystemSetKeys::reply(true)
    }

    fn remove_host(&self, nqn: &str, host: &str) -> Answer {
        let _change = self.change().map_err(failure)?;
        let (name, checked) = (nqn.to_string(), Nqn::new(host).map_err(refusal)?);
        self.edit_target(nqn, move |target| target.remove_host(&name, &checked))?;
        self.keep(nqn, |one| one.hosts.retain(|known| known.nqn != host))?;
        rpc::NvmfSubsystemRemoveHost::reply(true)
    }

    fn add_referral(&self, params: rpc::NvmfDiscoveryAddReferral) -> Answer {
        let _change = self.change().map_err(failure)?;
        let address = address_of(&params.address).map_err(refusal)?;
        let nqn = match &params.subnqn {
            Some(text) => Nqn::new(text).map_err(refusal)?,
            None => Nqn::discovery(),
        };
        let secure = params.secure_channel.unwrap_or(false);
        let record = ReferralRecord {
            traddr: address.traddr.to_string(),
            trsvcid: address.trsvcid.to_string(),
            nqn: nqn.to_string(),
            secure,
        };
        let referral = Referral { address, nqn, secure };
        let added = self.nvmf.service.run(move |core| core.edit(|t| t.add_referral(referral)));
        added.map_err(failure)?.map_err(refusal)?;
        let kept = self.nvmf.book.change(|records| records.referrals.push(record));
        kept.map_err(failure)?;
        rpc::NvmfDiscoveryAddReferral::reply(true)
    }

    fn remove_referral(&self, params: rpc::NvmfDiscoveryRemoveReferral) -> Answer {
        let _change = self.change().map_err(failure)?;
        let address = address_of(&params.address).map_err(refusal)?;
        let nqn = match &params.subnqn {
            Some(text) => Nqn::new(text).map_err(refusal)?,
            None => Nqn::discovery(),
        };
        let (traddr, trsvcid) = (address.traddr.to_string(), address.trsvcid.to_string());
        let name = nqn.to_string();
        let removed = self
            .nvmf
            .service
            .run(move |core| core.edit(|target| target.remove_referral(&address, &nqn)));
        removed.map_err(failure)?.map_err(refusal)?;
        let kept = self.nvmf.book.change(|records| {
            records.referrals.retain(|referral| {
                (&referral.traddr, &referral.trsvcid, &referral.nqn) != (&traddr, &trsvcid, &name)
            });
        });
        kept.map_err(failure)?;
        rpc::NvmfDiscoveryRemoveReferral::reply(true)
    }

    /// The keys that a host's record names.
    pub(super) fn keys_of(&self, record: &HostRecord) -> Result<HostKeys, Error> {
        let key = |name: &Option<String>| -> Result<Option<Secret>, Error> {
            name.as_deref().map(|name| self.read_key(name)).transpose()
        };
        let keys = HostKeys {
            dhchap: key(&record.dhchap_key)?,
            dhchap_controller: key(&record.dhchap_ctrlr_key)?,
            psk: key(&record.psk)?,
        };
        if keys.dhchap.is_none() && keys.dhchap_controller.is_some() {
            let why =
                "dhchap_ctrlr_key needs dhchap_key: a host that proves nothing is told nothing";
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        Ok(keys)
    }
}

/// A subsystem for the book.
fn record_of_spec(spec: &SubsystemSpec) -> SubsystemRecord {
    SubsystemRecord {
        nqn: spec.nqn.to_string(),
        serial: spec.serial.clone(),
        model: spec.model.clone(),
        allow_any_host: spec.allow_any_host,
        min_cntlid: spec.min_cntlid,
        max_cntlid: spec.max_cntlid,
        max_namespaces: spec.max_namespaces,
        ana_reporting: spec.ana_reporting,
        ..SubsystemRecord::default()
    }
}

//! One subsystem: namespaces, hosts, listeners.

use std::collections::BTreeMap;

use lamina_bdev::{Error, ErrorKind};

use super::{AnaState, Listener, Namespace, NamespaceSpec, Nqn, PortId};

/// Most namespaces a subsystem can be made for.
pub const NAMESPACES_MAX: u32 = 8192;
/// Most ANA groups of a subsystem.
pub const ANA_GROUPS_MAX: u32 = 1024;
/// Most hosts on one list.
pub const HOSTS_MAX: usize = 4096;
/// Most listeners of one subsystem.
pub const LISTENERS_MAX: usize = 64;
/// Highest controller id (Base 2.1, 3.1.1: fff0h and up are reserved).
pub const CNTLID_MAX: u16 = 0xffef;

/// A key and the name management knows it by. Debug output shows the name only.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// Name in the keyring.
    pub name: String,
    /// The key as text, as `DHHC-1:...` or `NVMeTLSkey-1:...`.
    pub text: String,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({})", self.name)
    }
}

/// What a host must prove, and what it may ask to be proved to it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostKeys {
    /// DH-HMAC-CHAP: the host's key.
    pub dhchap: Option<Secret>,
    /// DH-HMAC-CHAP: the controller's key, for authentication the other way.
    pub dhchap_controller: Option<Secret>,
    /// TLS pre-shared key.
    pub psk: Option<Secret>,
}

impl HostKeys {
    /// Whether the authentication keys can be used.
    fn check(&self) -> Result<(), Error> {
        if self.dhchap.is_none() && self.dhchap_controller.is_some() {
            let text = "a controller's authentication key needs a host's key beside it";
            return error(ErrorKind::Invalid, text.to_string());
        }
        for secret in [&self.dhchap, &self.dhchap_controller].into_iter().flatten() {
            if let Err(why) = crate::auth::AuthKey::parse(&secret.text) {
                let text = format!("the key '{}' cannot be used: {why}", secret.name);
                return error(ErrorKind::Invalid, text);
            }
        }
        Ok(())
    }
}

/// A host on a subsystem's list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    /// Its name.
    pub nqn: Nqn,
    /// Its keys.
    pub keys: HostKeys,
}

/// What a management call says of a new subsystem.
#[derive(Clone, Debug)]
pub struct SubsystemSpec {
    /// Its name.
    pub nqn: Nqn,
    /// Serial number: 1 to 20 printable ASCII characters.
    pub serial: String,
    /// Model number: 1 to 40 printable ASCII characters.
    pub model: String,
    /// Any host may connect.
    pub allow_any_host: bool,
    /// Lowest controller id given out, from 1.
    pub min_cntlid: u16,
    /// Highest, to ffefh.
    pub max_cntlid: u16,
    /// Namespaces are numbered from 1 to this.
    pub max_namespaces: u32,
    /// ANA is reported.
    pub ana_reporting: bool,
}

impl SubsystemSpec {
    /// The defaults under a name.
    pub fn new(nqn: Nqn) -> SubsystemSpec {
        SubsystemSpec {
            nqn,
            serial: "00000000000000000000".to_string(),
            model: "Lamina virtual disk".to_string(),
            allow_any_host: false,
            min_cntlid: 1,
            max_cntlid: CNTLID_MAX,
            max_namespaces: 256,
            ana_reporting: false,
        }
    }
}

impl SubsystemSpec {
    /// ANA groups are numbered 1 to this. Bounded, so that the whole ANA log fits one command.
    pub fn ana_groups(&self) -> u32 {
        self.max_namespaces.min(ANA_GROUPS_MAX)
    }
}

/// A subsystem.
#[derive(Clone, Debug)]
pub struct Subsystem {
    spec: SubsystemSpec,
    /// Any host may connect.
    pub(super) allow_any_host: bool,
    namespaces: BTreeMap<u32, Namespace>,
    hosts: BTreeMap<Nqn, HostKeys>,
    listeners: Vec<Listener>,
    discovery: bool,
}

fn error<T>(kind: ErrorKind, text: String) -> Result<T, Error> {
    Err(Error::new(kind, text))
}

/// Text as Identify fields need it.
fn check_text(what: &str, text: &str, bytes_max: usize) -> Result<(), Error> {
    let printable = |b: u8| (0x20..=0x7e).contains(&b);
    if text.is_empty() || text.len() > bytes_max || !text.bytes().all(printable) {
        let text = format!("the {what} must be 1 to {bytes_max} printable ASCII characters");
        return error(ErrorKind::Invalid, text);
    }
    Ok(())
}

impl Subsystem {
    pub(super) fn new(spec: SubsystemSpec) -> Result<Subsystem, Error> {
        check_text("serial number", &spec.serial, 20)?;
        check_text("model number", &spec.model, 40)?;
        let range = 1..=CNTLID_MAX;
        let ids = [spec.min_cntlid, spec.max_cntlid];
        if !ids.iter().all(|id| range.contains(id)) || spec.min_cntlid > spec.max_cntlid {
            let text = format!(
                "controller ids {} to {}: they must lie between 1 and {CNTLID_MAX}",
                spec.min_cntlid, spec.max_cntlid
            );
            return error(ErrorKind::Invalid, text);
        }
        if !(1..=NAMESPACES_MAX).contains(&spec.max_namespaces) {
            let given = spec.max_namespaces;
            let text =
                format!("max_namespaces {given}: it must lie between 1 and {NAMESPACES_MAX}");
            return error(ErrorKind::Invalid, text);
        }
        Ok(Subsystem::make(spec, false))
    }

    pub(super) fn discovery() -> Subsystem {
        let spec = SubsystemSpec { allow_any_host: true, ..SubsystemSpec::new(Nqn::discovery()) };
        Subsystem::make(spec, true)
    }

    fn make(spec: SubsystemSpec, discovery: bool) -> Subsystem {
        Subsystem {
            allow_any_host: spec.allow_any_host,
            spec,
            namespaces: BTreeMap::new(),
            hosts: BTreeMap::new(),
            listeners: Vec::new(),
            discovery,
        }
    }

    /// Its name.
    pub fn nqn(&self) -> &Nqn {
        &self.spec.nqn
    }

    /// What it was made with (`allow_any_host` may have changed since).
    pub fn spec(&self) -> &SubsystemSpec {
        &self.spec
    }

    /// The discovery subsystem: no namespaces, no I/O queues.
    pub fn is_discovery(&self) -> bool {
        self.discovery
    }

    /// Any host may connect.
    pub fn allow_any_host(&self) -> bool {
        self.allow_any_host
    }

    /// Whether that host may connect.
    pub fn allows(&self, host: &Nqn) -> bool {
        self.allow_any_host || self.hosts.contains_key(host)
    }

    /// Keys of a host on the list.
    pub fn host_keys(&self, host: &Nqn) -> Option<&HostKeys> {
        self.hosts.get(host)
    }

    /// The list of hosts.
    pub fn hosts(&self) -> impl Iterator<Item = (&Nqn, &HostKeys)> {
        self.hosts.iter()
    }

    pub(super) fn add_host(&mut self, host: Host) -> Result<(), Error> {
        host.keys.check()?;
        if self.hosts.contains_key(&host.nqn) {
            let text = format!("host '{}' is on the list of '{}' already", host.nqn, self.nqn());
            return error(ErrorKind::Exists, text);
        }
        if self.hosts.len() >= HOSTS_MAX {
            return error(ErrorKind::NoSpace, format!("{HOSTS_MAX} hosts are on the list"));
        }
        self.hosts.insert(host.nqn, host.keys);
        Ok(())
    }

    pub(super) fn set_host_keys(&mut self, host: &Nqn, keys: HostKeys) -> Result<(), Error> {
        keys.check()?;
        match self.hosts.get_mut(host) {
            Some(entry) => {
                *entry = keys;
                Ok(())
            }
            None => self.no_host(host),
        }
    }

    fn no_host<T>(&self, host: &Nqn) -> Result<T, Error> {
        let text = format!("host '{host}' is not on the list of '{}'", self.nqn());
        error(ErrorKind::NotFound, text)
    }

    pub(super) fn remove_host(&mut self, host: &Nqn) -> Result<(), Error> {
        match self.hosts.remove(host) {
            Some(_) => Ok(()),
            None => self.no_host(host),
        }
    }

    /// Namespaces by number.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values()
    }

    pub(super) fn namespaces_mut(&mut self) -> impl Iterator<Item = &mut Namespace> {
        self.namespaces.values_mut()
    }

    /// The namespace of that number.
    pub fn namespace(&self, nsid: u32) -> Option<&Namespace> {
        self.namespaces.get(&nsid)
    }

    pub(super) fn namespace_mut(&mut self, nsid: u32) -> Option<&mut Namespace> {
        self.namespaces.get_mut(&nsid)
    }

    fn check_group(&self, group: u32) -> Result<(), Error> {
        let max = self.spec.ana_groups();
        if (1..=max).contains(&group) {
            return Ok(());
        }
        error(ErrorKind::Invalid, format!("ANA group {group}: groups are numbered 1 to {max}"))
    }

    pub(super) fn add_namespace(&mut self, spec: NamespaceSpec) -> Result<u32, Error> {
        let max = self.spec.max_namespaces;
        let free = || (1..=max).find(|nsid| !self.namespaces.contains_key(nsid));
        let Some(nsid) = spec.nsid.or_else(free) else {
            let text = format!("'{}' has {max} namespaces, all it was made for", self.nqn());
            return error(ErrorKind::NoSpace, text);
        };
        if !(1..=max).contains(&nsid) {
            let text = format!("namespace {nsid}: they are numbered 1 to {max} here");
            return error(ErrorKind::Invalid, text);
        }
        if self.namespaces.contains_key(&nsid) {
            let text = format!("'{}' has a namespace {nsid} already", self.nqn());
            return error(ErrorKind::Exists, text);
        }
        let group = spec.ana_group.unwrap_or((nsid - 1) % self.spec.ana_groups() + 1);
        self.check_group(group)?;
        let namespace = Namespace::new(nsid, group, spec)?;
        let same = |n: &&Namespace| n.uuid == namespace.uuid || n.nguid == namespace.nguid;
        if let Some(other) = self.namespaces.values().find(same) {
            let text = format!("namespace {} of '{}' has that identity", other.nsid, self.nqn());
            return error(ErrorKind::Exists, text);
        }
        self.namespaces.insert(nsid, namespace);
        Ok(nsid)
    }

    pub(super) fn remove_namespace(&mut self, nsid: u32) -> Result<Namespace, Error> {
        match self.namespaces.remove(&nsid) {
            Some(namespace) => Ok(namespace),
            None => self.no_namespace(nsid),
        }
    }

    fn no_namespace<T>(&self, nsid: u32) -> Result<T, Error> {
        error(ErrorKind::NotFound, format!("'{}' has no namespace {nsid}", self.nqn()))
    }

    pub(super) fn set_namespace_group(&mut self, nsid: u32, group: u32) -> Result<(), Error> {
        self.check_group(group)?;
        match self.namespaces.get_mut(&nsid) {
            Some(namespace) => {
                namespace.ana_group = group;
                Ok(())
            }
            None => self.no_namespace(nsid),
        }
    }

    /// Where it is reached.
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Its listener on that port.
    pub fn listener(&self, port: PortId) -> Option<&Listener> {
        self.listeners.iter().find(|l| l.port == port)
    }

    pub(super) fn add_listener(&mut self, listener: Listener) -> Result<(), Error> {
        if self.listeners.len() >= LISTENERS_MAX {
            let text = format!("'{}' has {LISTENERS_MAX} listeners", self.nqn());
            return error(ErrorKind::NoSpace, text);
        }
        self.listeners.push(listener);
        Ok(())
    }

    pub(super) fn remove_listener(&mut self, port: PortId) {
        self.listeners.retain(|l| l.port != port);
    }

    /// The ANA log of every listener has changed; which those are.
    pub(super) fn log_changed(&mut self) -> Vec<PortId> {
        self.listeners.iter_mut().for_each(|listener| listener.changes += 1);
        self.listeners.iter().map(|listener| listener.port).collect()
    }

    pub(super) fn set_ana_state(
        &mut self,
        port: PortId,
        group: Option<u32>,
        state: AnaState,
    ) -> Result<(), Error> {
        if !self.spec.ana_reporting && state != AnaState::Optimized {
            let text = format!("'{}' was made without ANA reporting", self.nqn());
            return error(ErrorKind::Invalid, text);
        }
        if let Some(group) = group {
            self.check_group(group)?;
        }
        let listener = self.listeners.iter_mut().find(|l| l.port == port);
        let listener = listener.expect("the caller found it");
        match group {
            Some(group) => {
                listener.groups.insert(group, state);
            }
            None => {
                listener.groups.clear();
                listener.default_state = state;
            }
        }
        listener.changes += 1;
        Ok(())
    }
}

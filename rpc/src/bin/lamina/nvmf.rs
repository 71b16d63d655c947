//! `lamina nvmf`: disks for remote hosts, over NVMe/TCP.

use std::net::{IpAddr, SocketAddr};

use clap::Subcommand;
use lamina_rpc::methods::{
    KeyringFileAddKey, KeyringFileRemoveKey, KeyringGetKeys, NvmfAddress, NvmfCreateSubsystem,
    NvmfDeleteSubsystem, NvmfGetSubsystems, NvmfListener, NvmfNewNamespace, NvmfSubsystem,
    NvmfSubsystemAddHost, NvmfSubsystemAddListener, NvmfSubsystemAddNs, NvmfSubsystemAllowAnyHost,
    NvmfSubsystemGetControllers, NvmfSubsystemGetListeners, NvmfSubsystemListenerSetAnaState,
    NvmfSubsystemRemoveHost, NvmfSubsystemRemoveListener, NvmfSubsystemRemoveNs,
};
use serde_json::json;

use crate::answer::Answer;
use crate::failure::Failure;
use crate::session::{SEE_TREE, Session};
use crate::table::Table;

#[derive(Subcommand)]
pub enum Command {
    /// Make a subsystem: what a remote host connects to
    #[command(after_help = "\
Example:
  lamina nvmf create nqn.2016-06.io.spdk:cnode1 --any-host
  lamina nvmf add nqn.2016-06.io.spdk:cnode1 vm1
  lamina nvmf listen nqn.2016-06.io.spdk:cnode1 192.0.2.1

Then, on the host:
  nvme connect -t tcp -a 192.0.2.1 -s 4420 -n nqn.2016-06.io.spdk:cnode1

Subsystems are kept: after a restart of the daemon they are there again.")]
    Create {
        /// Its name, an NVMe qualified name
        nqn: String,
        /// Serial number, up to 20 characters
        #[arg(long, value_name = "TEXT")]
        serial: Option<String>,
        /// Model number, up to 40 characters
        #[arg(long, value_name = "TEXT")]
        model: Option<String>,
        /// Any host may connect
        #[arg(long)]
        any_host: bool,
        /// Report ANA states, for multipath
        #[arg(long)]
        ana: bool,
        /// Namespaces it can have
        #[arg(long, value_name = "COUNT")]
        max_namespaces: Option<u32>,
    },
    /// Delete a subsystem; its hosts are disconnected, its disks stay
    #[command(after_help = "Example:\n  lamina nvmf delete nqn.2016-06.io.spdk:cnode1")]
    Delete {
        /// Its name
        nqn: String,
    },
    /// List the subsystems
    #[command(visible_alias = "ls", after_help = "Example:\n  lamina nvmf list")]
    List,
    /// Show a subsystem: namespaces, listeners, hosts, who is connected
    #[command(after_help = "Example:\n  lamina nvmf show nqn.2016-06.io.spdk:cnode1")]
    Show {
        /// Its name
        nqn: String,
    },
    /// Add a disk, or a snapshot read-only, as a namespace
    #[command(after_help = "Examples:\n  lamina nvmf add nqn.2016-06.io.spdk:cnode1 vm1\n  \
                            lamina nvmf add nqn.2016-06.io.spdk:cnode1 vm1@base --nsid 7")]
    Add {
        /// The subsystem
        nqn: String,
        /// The disk or snapshot
        disk: String,
        /// Its id [default: the lowest free one]
        #[arg(long, value_name = "NUMBER")]
        nsid: Option<u32>,
        /// Bytes of a logical block, 512 or 4096 [default: 512]
        #[arg(long, value_name = "BYTES")]
        block_size: Option<u32>,
        /// Hosts cannot write; always so for a snapshot
        #[arg(long)]
        readonly: bool,
    },
    /// Take a namespace out of a subsystem
    #[command(after_help = "Example:\n  lamina nvmf remove nqn.2016-06.io.spdk:cnode1 1")]
    Remove {
        /// The subsystem
        nqn: String,
        /// Its id
        nsid: u32,
    },
    /// Listen on an address
    #[command(
        after_help = "Examples:\n  lamina nvmf listen nqn.2016-06.io.spdk:cnode1 192.0.2.1\n  \
                            lamina nvmf listen nqn.2016-06.io.spdk:cnode1 [2001:db8::1]:4421 --tls"
    )]
    Listen {
        /// The subsystem
        nqn: String,
        /// ADDRESS or ADDRESS:PORT; the port is 4420 unless given
        address: String,
        /// Only connections with TLS
        #[arg(long)]
        tls: bool,
    },
    /// Listen on an address no longer; connections through it are closed
    #[command(after_help = "Example:\n  lamina nvmf unlisten nqn.2016-06.io.spdk:cnode1 192.0.2.1")]
    Unlisten {
        /// The subsystem
        nqn: String,
        /// ADDRESS or ADDRESS:PORT
        address: String,
    },
    /// Let a host connect
    #[command(after_help = "Examples:\n  \
        lamina nvmf allow nqn.2016-06.io.spdk:cnode1 nqn.2014-08.org.example:host1\n  \
        lamina nvmf allow nqn.2016-06.io.spdk:cnode1 --any")]
    Allow {
        /// The subsystem
        nqn: String,
        /// The host's name
        #[arg(required_unless_present = "any")]
        host: Option<String>,
        /// Any host
        #[arg(long, conflicts_with = "host")]
        any: bool,
        /// Name of the host's key for DH-HMAC-CHAP
        #[arg(long, value_name = "KEY", conflicts_with = "any")]
        dhchap_key: Option<String>,
        /// Name of the subsystem's key for DH-HMAC-CHAP
        #[arg(long, value_name = "KEY", requires = "dhchap_key")]
        dhchap_ctrlr_key: Option<String>,
        /// Name of the host's key for TLS
        #[arg(long, value_name = "KEY", conflicts_with = "any")]
        psk: Option<String>,
    },
    /// Let a host connect no longer; it is disconnected
    #[command(after_help = "Examples:\n  \
        lamina nvmf deny nqn.2016-06.io.spdk:cnode1 nqn.2014-08.org.example:host1\n  \
        lamina nvmf deny nqn.2016-06.io.spdk:cnode1 --any")]
    Deny {
        /// The subsystem
        nqn: String,
        /// The host's name
        #[arg(required_unless_present = "any")]
        host: Option<String>,
        /// Only the hosts on the list
        #[arg(long, conflicts_with = "host")]
        any: bool,
    },
    /// Set the ANA state on a listener, for multipath
    #[command(after_help = "Example:\n  \
        lamina nvmf ana nqn.2016-06.io.spdk:cnode1 192.0.2.1 inaccessible")]
    Ana {
        /// The subsystem
        nqn: String,
        /// ADDRESS or ADDRESS:PORT
        address: String,
        /// optimized, non_optimized or inaccessible
        state: String,
        /// Only this ANA group
        #[arg(long, value_name = "NUMBER")]
        group: Option<u32>,
    },
    /// Take a key from a file, to be named by `lamina nvmf allow`
    #[command(after_help = "Example:\n  lamina nvmf key-add host1 /etc/lamina/keys/host1")]
    KeyAdd {
        /// The name it gets
        name: String,
        /// The file, readable by its owner only
        path: std::path::PathBuf,
    },
    /// Forget a key
    #[command(after_help = "Example:\n  lamina nvmf key-remove host1")]
    KeyRemove {
        /// Its name
        name: String,
    },
    /// List the keys
    #[command(after_help = "Example:\n  lamina nvmf keys")]
    Keys,
}

const SEE_SUBSYSTEMS: &str = "`lamina nvmf list` shows the subsystems there are";
const PORT_DEFAULT: u16 = 4420;

pub fn run(session: &mut Session, command: Command) -> Result<Answer, Failure> {
    match command {
        Command::Create { nqn, serial, model, any_host, ana, max_namespaces } => {
            let params = NvmfCreateSubsystem {
                nqn,
                serial_number: serial,
                model_number: model,
                allow_any_host: any_host.then_some(true),
                ana_reporting: ana.then_some(true),
                max_namespaces,
                ..NvmfCreateSubsystem::default()
            };
            let made = session.call(format!("making {}", params.nqn), &params)?;
            Answer::new(format!("made {}", params.nqn), made)
        }
        Command::Delete { nqn } => {
            let params = NvmfDeleteSubsystem { nqn, tgt_name: None };
            let gone = session.call(format!("deleting {}", params.nqn), &params);
            let gone = gone.map_err(|failure| failure.hint(SEE_SUBSYSTEMS))?;
            Answer::new(format!("deleted {}", params.nqn), gone)
        }
        Command::List => list(session),
        Command::Show { nqn } => show(session, &nqn),
        Command::Add { nqn, disk, nsid, block_size, readonly } => {
            let namespace = NvmfNewNamespace {
                bdev_name: disk,
                nsid,
                block_size,
                readonly: readonly.then_some(true),
                ..NvmfNewNamespace::default()
            };
            let params = NvmfSubsystemAddNs { nqn, namespace, tgt_name: None };
            let (disk, nqn) = (&params.namespace.bdev_name, &params.nqn);
            let nsid = session.call(format!("adding {disk} to {nqn}"), &params);
            let nsid = nsid.map_err(|failure| failure.hint(SEE_TREE))?;
            Answer::new(format!("{disk} is namespace {nsid} of {nqn}"), json!({ "nsid": nsid }))
        }
        Command::Remove { nqn, nsid } => {
            let params = NvmfSubsystemRemoveNs { nqn, nsid, tgt_name: None };
            let gone = session.call(format!("taking namespace {nsid} out"), &params);
            let gone = gone.map_err(|failure| failure.hint(SEE_SUBSYSTEMS))?;
            Answer::new(format!("{} has no namespace {nsid} any more", params.nqn), gone)
        }
        command => run_access(session, command),
    }
}

/// Who may connect, and where.
fn run_access(session: &mut Session, command: Command) -> Result<Answer, Failure> {
    match command {
        Command::Listen { nqn, address, tls } => listen(session, nqn, &address, tls),
        Command::Unlisten { nqn, address } => {
            let listen_address = parse_address(&address)?;
            let params = NvmfSubsystemRemoveListener { nqn, listen_address, tgt_name: None };
            let gone = session.call(format!("leaving {address}"), &params);
            let gone = gone.map_err(|failure| failure.hint(SEE_SUBSYSTEMS))?;
            Answer::new(format!("{} does not listen on {address} any more", params.nqn), gone)
        }
        Command::Allow { nqn, host: Some(host), dhchap_key, dhchap_ctrlr_key, psk, .. } => {
            let tgt_name = None;
            let params =
                NvmfSubsystemAddHost { nqn, host, tgt_name, psk, dhchap_key, dhchap_ctrlr_key };
            let done = session.call(format!("letting {} in", params.host), &params)?;
            Answer::new(format!("{} may connect to {}", params.host, params.nqn), done)
        }
        Command::Deny { nqn, host: Some(host), .. } => {
            let params = NvmfSubsystemRemoveHost { nqn, host, tgt_name: None };
            let done = session.call(format!("shutting {} out", params.host), &params)?;
            Answer::new(format!("{} is not on the list of {}", params.host, params.nqn), done)
        }
        Command::Allow { nqn, host: None, .. } => any_host(session, nqn, true),
        Command::Deny { nqn, host: None, .. } => any_host(session, nqn, false),
        Command::Ana { nqn, address, state, group } => {
            let params = NvmfSubsystemListenerSetAnaState {
                nqn,
                listen_address: parse_address(&address)?,
                ana_state: state,
                anagrpid: group,
                tgt_name: None,
            };
            let done = session.call("setting the ANA state", &params)?;
            Answer::new(format!("{} is {} on {address}", params.nqn, params.ana_state), done)
        }
        Command::KeyAdd { name, path } => {
            let path = std::path::absolute(&path)
                .map_err(|e| Failure::usage(format!("{}: {e}", path.display())))?;
            let path = path.to_string_lossy().into_owned();
            let params = KeyringFileAddKey { name, path };
            let done = session.call("taking the key", &params)?;
            Answer::new(format!("the key in {} is {}", params.path, params.name), done)
        }
        Command::KeyRemove { name } => {
            let params = KeyringFileRemoveKey { name };
            let done = session.call("forgetting the key", &params)?;
            Answer::new(format!("forgot the key {}", params.name), done)
        }
        _ => keys(session),
    }
}

fn any_host(session: &mut Session, nqn: String, any: bool) -> Result<Answer, Failure> {
    let params = NvmfSubsystemAllowAnyHost { nqn, allow_any_host: any, tgt_name: None };
    let done = session.call("changing who may connect", &params)?;
    let who = if any { "any host" } else { "only hosts on its list" };
    Answer::new(format!("{who} may connect to {}", params.nqn), done)
}

fn listen(session: &mut Session, nqn: String, address: &str, tls: bool) -> Result<Answer, Failure> {
    let params = NvmfSubsystemAddListener {
        nqn,
        listen_address: parse_address(address)?,
        secure_channel: tls.then_some(true),
        ..NvmfSubsystemAddListener::default()
    };
    let done = session.call(format!("listening on {address}"), &params);
    let done = done.map_err(|failure| failure.hint(SEE_SUBSYSTEMS))?;
    let at = &params.listen_address;
    let connect = format!(
        "nvme connect -t tcp -a {} -s {} -n {}{}",
        at.traddr,
        at.trsvcid,
        params.nqn,
        if tls { " --tls" } else { "" }
    );
    let text = format!("{} listens on {address}\n\nOn the host:\n  {connect}\n", params.nqn);
    Answer::new(text, json!({ "listening": done, "connect": connect }))
}

/// An address as a person writes it.
fn parse_address(text: &str) -> Result<NvmfAddress, Failure> {
    let socket = match text.parse::<SocketAddr>() {
        Ok(socket) => socket,
        Err(_) => match text.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, PORT_DEFAULT),
            Err(_) => {
                let why = format!("{text:?} is no address like 192.0.2.1, 192.0.2.1:4420 or ::1");
                return Err(Failure::usage(why));
            }
        },
    };
    Ok(NvmfAddress {
        trtype: "TCP".into(),
        adrfam: Some(if socket.is_ipv4() { "IPv4" } else { "IPv6" }.into()),
        traddr: socket.ip().to_string(),
        trsvcid: socket.port().to_string(),
    })
}

fn shown(address: &NvmfAddress) -> String {
    match address.traddr.contains(':') {
        true => format!("[{}]:{}", address.traddr, address.trsvcid),
        false => format!("{}:{}", address.traddr, address.trsvcid),
    }
}

fn list(session: &mut Session) -> Result<Answer, Failure> {
    let subsystems = session.call("looking at the subsystems", &NvmfGetSubsystems::default())?;
    let mut table = Table::new(&["SUBSYSTEM", ">NAMESPACES", "HOSTS", "LISTENS ON"]);
    for one in subsystems.iter().filter(|one| one.subtype != "Discovery") {
        let hosts = if one.allow_any_host { "any".into() } else { one.hosts.len().to_string() };
        let listeners: Vec<String> = one.listen_addresses.iter().map(shown).collect();
        table.row([
            one.nqn.clone(),
            one.namespaces.iter().flatten().count().to_string(),
            hosts,
            if listeners.is_empty() { "-".into() } else { listeners.join(" ") },
        ]);
    }
    let none = "No subsystems. Make one with `lamina nvmf create NQN`.";
    Answer::new(table.text_or(none), subsystems)
}

fn show(session: &mut Session, nqn: &str) -> Result<Answer, Failure> {
    let nqn = nqn.to_string();
    let get = NvmfGetSubsystems { nqn: Some(nqn.clone()), tgt_name: None };
    let found = session.call("looking at it", &get).map_err(|f| f.hint(SEE_SUBSYSTEMS))?;
    let subsystem = found.into_iter().next().unwrap_or_default();
    let get = NvmfSubsystemGetListeners { nqn: nqn.clone(), tgt_name: None };
    let listeners = session.call("looking at its listeners", &get)?;
    let get = NvmfSubsystemGetControllers { nqn, tgt_name: None };
    let controllers = session.call("looking who is connected", &get)?;
    let mut text = describe(&subsystem, &listeners);
    let mut table = Table::new(&[">ID", "CONNECTED HOST", ">QUEUES", "FROM"]);
    for one in &controllers {
        let (id, queues) = (one.cntlid.to_string(), one.num_io_qpairs.to_string());
        table.row([id, one.hostnqn.clone(), queues, one.peer_address.clone()]);
    }
    text.push('\n');
    text.push_str(&table.text_or("No host is connected."));
    Answer::new(
        text,
        json!({ "subsystem": subsystem, "listeners": listeners, "controllers": controllers }),
    )
}

fn describe(subsystem: &NvmfSubsystem, listeners: &[NvmfListener]) -> String {
    let mut table = Table::new(&[">NSID", "DISK", ">BLOCKS", ">BLOCK", "MODE", "UUID"]);
    for one in subsystem.namespaces.iter().flatten() {
        let mode = match (one.attached, one.readonly) {
            (false, _) => "its store is not open",
            (true, true) => "read-only",
            (true, false) => "writable",
        };
        table.row([
            one.nsid.to_string(),
            one.alias.clone(),
            one.num_blocks.to_string(),
            one.block_size.to_string(),
            mode.into(),
            one.uuid.clone(),
        ]);
    }
    let mut text = format!("{}\n\n{}", subsystem.nqn, table.text_or("No namespaces."));
    let mut table = Table::new(&["ADDRESS", "ANA STATE", "TLS", "STATE"]);
    for one in listeners {
        table.row([
            shown(&one.address),
            one.ana_state.clone(),
            if one.secure_channel { "only" } else { "-" }.into(),
            if one.listening { "listening" } else { "the address is not there; trying" }.into(),
        ]);
    }
    text.push('\n');
    text.push_str(&table.text_or("It listens nowhere."));
    text.push('\n');
    match subsystem.allow_any_host {
        true => text.push_str("Any host may connect.\n"),
        false if subsystem.hosts.is_empty() => text.push_str("No host may connect.\n"),
        false => {
            for host in &subsystem.hosts {
                text.push_str(&format!("{} may connect.\n", host.nqn));
            }
        }
    }
    text
}

fn keys(session: &mut Session) -> Result<Answer, Failure> {
    let keys = session.call("looking at the keys", &KeyringGetKeys::default())?;
    let mut table = Table::new(&["KEY", ">HOSTS", "FILE"]);
    for key in &keys {
        table.row([key.name.clone(), key.refcnt.to_string(), key.path.clone()]);
    }
    Answer::new(table.text_or("No keys. Take one with `lamina nvmf key-add NAME FILE`."), keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (text, shown_as, family) in [
            ("192.0.2.1", "192.0.2.1:4420", "IPv4"),
            ("192.0.2.1:4421", "192.0.2.1:4421", "IPv4"),
            ("::1", "[::1]:4420", "IPv6"),
            ("[2001:db8::1]", "[2001:db8::1]:4420", "IPv6"),
            ("[2001:db8::1]:8009", "[2001:db8::1]:8009", "IPv6"),
        ] {
            let address = parse_address(text).unwrap();
            assert_eq!(shown(&address), shown_as);
            assert_eq!(address.adrfam.as_deref(), Some(family));
        }
        for bad in ["", "host", "192.0.2.1:", "192.0.2.1:99999", "1.2.3"] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
    }
}

//! What the methods of the NVMe target take and answer, under SPDK's names.

use serde::{Deserialize, Serialize};

/// A transport address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmfAddress {
    /// "TCP"; in any case, and the only one.
    #[serde(default = "tcp")]
    pub trtype: String,
    /// "IPv4" or "IPv6"; follows from the address if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adrfam: Option<String>,
    /// The IP address.
    pub traddr: String,
    /// The port, as text.
    #[serde(default = "port")]
    pub trsvcid: String,
}

fn tcp() -> String {
    "TCP".into()
}

fn port() -> String {
    "4420".into()
}

/// A namespace to be added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmfNewNamespace {
    /// The disk or snapshot.
    pub bdev_name: String,
    /// Its id; the lowest free one if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nsid: Option<u32>,
    /// 32 hexadecimal digits; made from the disk's UUID if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nguid: Option<String>,
    /// 16 hexadecimal digits; made from the disk's UUID if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eui64: Option<String>,
    /// The disk's if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// ANA group; as its id if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anagrpid: Option<u32>,
    /// Bytes of a logical block: 512 (as if left out) or 4096. Lamina's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// True: writes are refused; always so for a snapshot. Lamina's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readonly: Option<bool>,
    /// SPDK's file for reservations; they are kept in the store, with the disk, here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ptpl_file: Option<String>,
}

/// A transport and its limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmfTransport {
    /// "TCP".
    pub trtype: String,
    /// Most commands of an I/O queue.
    pub max_queue_depth: u32,
    /// Most I/O queues of a controller.
    pub max_io_qpairs_per_ctrlr: u32,
    /// Bytes of data in a command capsule.
    pub in_capsule_data_size: u32,
    /// Most bytes of one read or write.
    pub max_io_size: u32,
    /// Bytes of data in one PDU.
    pub io_unit_size: u32,
    /// Most commands of an admin queue.
    pub max_aq_depth: u32,
    /// True: a read's last data stands for its completion where that may be.
    pub c2h_success: bool,
    /// Connections that may wait to be accepted at a listener.
    pub acceptor_backlog: u32,
    /// Always 0.
    pub sock_priority: u32,
    /// Always false.
    pub dif_insert_or_strip: bool,
    /// Always false.
    pub zcopy: bool,
}

/// A subsystem.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmfSubsystem {
    /// Its name.
    pub nqn: String,
    /// "Discovery" or "NVMe".
    pub subtype: String,
    /// Where it listens.
    pub listen_addresses: Vec<NvmfAddress>,
    /// Any host may connect.
    pub allow_any_host: bool,
    /// Hosts that may connect.
    pub hosts: Vec<NvmfHost>,
    /// Not for discovery, like all that follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_number: Option<String>,
    /// As given when it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_number: Option<String>,
    /// Namespaces it can have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_namespaces: Option<u32>,
    /// Lowest controller id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_cntlid: Option<u16>,
    /// Highest controller id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cntlid: Option<u16>,
    /// ANA states are reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ana_reporting: Option<bool>,
    /// Its namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<Vec<NvmfNamespace>>,
}

/// A host that may connect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmfHost {
    /// Its name.
    pub nqn: String,
    /// Name of its key for DH-HMAC-CHAP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhchap_key: Option<String>,
    /// Name of the subsystem's key for DH-HMAC-CHAP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhchap_ctrlr_key: Option<String>,
    /// Name of its key for TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psk: Option<String>,
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmfNamespace {
    /// Its id.
    pub nsid: u32,
    /// UUID of the disk or snapshot.
    pub bdev_name: String,
    /// The same.
    pub name: String,
    /// 32 hexadecimal digits.
    pub nguid: String,
    /// 16 hexadecimal digits.
    pub eui64: String,
    /// Its UUID.
    pub uuid: String,
    /// Its ANA group.
    pub anagrpid: u32,
    /// "store/disk", for people.
    pub alias: String,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// Logical blocks.
    pub num_blocks: u64,
    /// Writes are refused.
    pub readonly: bool,
    /// False while its store is not open: it comes back with it.
    pub attached: bool,
}

/// A listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmfListener {
    /// Its address.
    pub address: NvmfAddress,
    /// State of the groups that have none of their own.
    pub ana_state: String,
    /// States of the groups that namespaces are in.
    pub ana_states: Vec<NvmfAnaState>,
    /// TLS only.
    pub secure_channel: bool,
    /// False: the address cannot be listened on now; that is tried again and again.
    pub listening: bool,
}

/// State of one ANA group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmfAnaState {
    /// The group.
    pub ana_group: u32,
    /// Its state.
    pub ana_state: String,
}

/// A controller: one host's association with a subsystem.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmfController {
    /// Its id.
    pub cntlid: u16,
    /// The host's name.
    pub hostnqn: String,
    /// The host's identifier, as a UUID.
    pub hostid: String,
    /// I/O queues that are connected.
    pub num_io_qpairs: u32,
    /// The address that it came from.
    pub peer_address: String,
    /// It has authenticated itself.
    pub authenticated: bool,
}

/// A queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmfQpair {
    /// Its controller's id.
    pub cntlid: u16,
    /// Its number, 0 for the admin queue.
    pub qid: u16,
    /// "enabled".
    pub state: String,
    /// The host's name.
    pub hostnqn: String,
    /// The core that serves it; none for an admin queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core: Option<u32>,
    /// Our end.
    pub listen_address: NvmfAddress,
    /// The host's end.
    pub peer_address: NvmfAddress,
}

/// A referral.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmfReferral {
    /// Its address.
    pub address: NvmfAddress,
    /// Its subsystem's name.
    pub subnqn: String,
    /// It wants TLS.
    pub secure_channel: bool,
}

/// Counters, by reactor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmfStats {
    /// Ticks a second: 1,000,000,000.
    pub tick_rate: u64,
    /// One a reactor.
    pub poll_groups: Vec<NvmfPollGroup>,
    /// Connections accepted since the start.
    pub accepted: u64,
    /// Connections refused at once: too many.
    pub refused: u64,
    /// Connections that have no queue yet.
    pub handshaking: u32,
    /// Connections in all.
    pub connections: u32,
}

/// Counters of one reactor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmfPollGroup {
    /// "reactor0"; "service" is the thread that has the admin queues.
    pub name: String,
    /// Admin queues since the start.
    pub admin_qpairs: u64,
    /// I/O queues since the start.
    pub io_qpairs: u64,
    /// Admin queues now.
    pub current_admin_qpairs: u32,
    /// I/O queues now.
    pub current_io_qpairs: u32,
    /// Commands that wait: the engine is full.
    pub pending_bdev_io: u64,
    /// Commands answered.
    pub completed_nvme_io: u64,
    /// Commands whose disk is on another reactor.
    pub remote_io: u64,
    /// The transports.
    pub transports: Vec<NvmfGroupTransport>,
}

/// A reactor's part of a transport.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmfGroupTransport {
    /// "TCP".
    pub trtype: String,
}

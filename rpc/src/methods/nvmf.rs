//! Exports to remote hosts over NVMe/TCP, under SPDK's names.
//!
//! A subsystem has namespaces (disks and snapshots), listeners (addresses it is reached at) and
//! hosts (who may connect). All of it is kept, and there again after a restart. `tgt_name` is
//! accepted everywhere: there is one target.

use super::nvmf_types::*;
use crate::schema::method;

method! {
    /// Makes the TCP transport, with limits of one's own: before hosts connect, and once; they are
    /// kept. Without it there is one with the defaults.
    NvmfCreateTransport = "nvmf_create_transport" -> bool;
    required {
        /// Only TCP.
        trtype: String,
    }
    optional {
        /// Accepted.
        tgt_name: String,
        /// Most commands of an I/O queue, 2 to 1024 (the default).
        max_queue_depth: u32,
        /// Most I/O queues of a controller, 1 to 1024; 128.
        max_io_qpairs_per_ctrlr: u32,
        /// Bytes of data in the capsule of an I/O command, a multiple of 16 to 8192 (the default).
        in_capsule_data_size: u32,
        /// Most bytes of a command: a power of two, 8192 to 131072 (the default).
        max_io_size: u32,
        /// Most bytes of data in one PDU to a host: a multiple of 512, 4096 to max_io_size (the
        /// default).
        io_unit_size: u32,
        /// Most commands of an admin queue, 32 to 1024 (the default).
        max_aq_depth: u32,
        /// True (the default): a read's last data stands for its completion where that may be.
        c2h_success: bool,
        /// Connections that may wait to be accepted at a listener made later, 1 to 65535; 1024.
        acceptor_backlog: u32,
        /// Only false.
        dif_insert_or_strip: bool,
        /// Only false.
        zcopy: bool,
        /// Only 0.
        sock_priority: u32,
        /// Accepted; buffers are made when they are needed.
        num_shared_buffers: u32,
        /// Accepted; each reactor has buffers of its own.
        buf_cache_size: u32,
        /// Accepted; there is nothing to be set aside for the messages of a connection.
        control_msg_num: u32,
        /// Accepted; listeners are not polled.
        acceptor_poll_rate: u32,
        /// Accepted; Abort is answered at once.
        abort_timeout_sec: u32,
    }
}

method! {
    /// The transports there are, with their limits.
    NvmfGetTransports = "nvmf_get_transports" -> Vec<NvmfTransport>;
    required {}
    optional {
        /// Only this one.
        trtype: String,
        /// Accepted.
        tgt_name: String,
    }
}

method! {
    /// Makes a subsystem, without namespaces, listeners and hosts.
    NvmfCreateSubsystem = "nvmf_create_subsystem" -> bool;
    required {
        /// Its name, as `nqn.2016-06.io.spdk:cnode1`.
        nqn: String,
    }
    optional {
        /// Accepted.
        tgt_name: String,
        /// 1 to 20 ASCII characters.
        serial_number: String,
        /// 1 to 40 ASCII characters.
        model_number: String,
        /// True: any host may connect. Otherwise those of nvmf_subsystem_add_host.
        allow_any_host: bool,
        /// Namespaces it can have, 1 to 8192.
        max_namespaces: u32,
        /// True: ANA states are reported, for multipath.
        ana_reporting: bool,
        /// Lowest controller id, from 1.
        min_cntlid: u16,
        /// Highest controller id, to 65519.
        max_cntlid: u16,
        /// Accepted; a discard is as large as its command allows.
        max_discard_size_kib: u64,
        /// Accepted; the same of Write Zeroes.
        max_write_zeroes_size_kib: u64,
        /// Only false: commands are never passed to a device as they are.
        passthrough: bool,
        /// Only false: there is no NVM subsystem reset.
        enable_nssr: bool,
    }
}

method! {
    /// Deletes a subsystem; its hosts are disconnected, its disks stay.
    NvmfDeleteSubsystem = "nvmf_delete_subsystem" -> bool;
    required {
        /// Its name.
        nqn: String,
    }
    optional {
        /// Accepted.
        tgt_name: String,
    }
}

method! {
    /// The subsystems, the discovery subsystem first, or one of them.
    NvmfGetSubsystems = "nvmf_get_subsystems" -> Vec<NvmfSubsystem>;
    required {}
    optional {
        /// Only this one.
        nqn: String,
        /// Accepted.
        tgt_name: String,
    }
}

method! { relaxed
    /// Adds a disk or snapshot to a subsystem; hosts that are connected hear of it. Answers its
    /// namespace id.
    NvmfSubsystemAddNs = "nvmf_subsystem_add_ns" -> u32;
    required {
        /// The subsystem.
        nqn: String,
        /// What to add.
        namespace: NvmfNewNamespace,
    }
    optional {
        /// Accepted.
        tgt_name: String,
    }
}

method! {
    /// Takes a namespace out of a subsystem; hosts that are connected hear of it.
    NvmfSubsystemRemoveNs = "nvmf_subsystem_remove_ns" -> bool;
    required {
        /// The subsystem.
        nqn: String,
        /// Its namespace id.
        nsid: u32,
    }
    optional {
        /// Accepted.
        tgt_name: String,
    }
}

method! {
    /// Puts a namespace into another ANA group.
    NvmfSubsystemSetNsAnaGroup = "nvmf_subsystem_set_ns_ana_group" -> bool;
    required {
        /// The subsystem.
        nqn: String,
        /// Its namespace id.
        nsid: u32,
        /// The group, from 1.
        anagrpid: u32,
    }
    optional {
        /// Accepted.
        tgt_name: String,
    }
}

method! { relaxed
    /// Lets a subsystem listen on an address, which several may share.
    NvmfSubsystemAddListener = "nvmf_subsystem_add_listener" -> bool;
    required {
        /// The subsystem.
        nqn: String,
        /// The address.
        listen_address: NvmfAddress,
    }
    optional {
        /// Accepted.
        tgt_name: String,
        /// True: TLS only.
        secure_channel: bool,
        /// State of all ANA groups there: "optimized" if left out.
        ana_state: String,
    }
}

method! {
    /// Ends a listener; connections made through it are closed.
    NvmfSubsystemRemoveListener = "nvmf_subsystem_remove_listener" -> bool;
    required {
        /// The subsystem.
        nqn: String,
        /// The address.
        listen_address: NvmfAddress,
    }
    optional {
        /// Accepted.
        tgt_name: String,
    }
}

method! {
    /// The listeners of a subsystem.
    NvmfSubsystemGetListeners = "nvmf_subsystem_get_listeners" -> Vec<NvmfListener>;
    required {
        /// The subsystem.
        nqn: String,
    }
    optional {
        /// Accepted.
        tgt_name: String,
    }
}

method! {
    /// Sets the ANA state on a listener; hosts that are connected hear of it.
    NvmfSubsystemListenerSetAnaState = "nvmf_subsystem_listener_set_ana_state" -> bool;
    required {
        /// The subsystem.
        nqn: String,
        /// The address.
        listen_address: NvmfAddress,
        /// "optimized", "non_optimized" or "inaccessible".
        ana_state: String,
    }
    optional {
        /// Only this ANA group; all if left out.
        anagrpid: u32,
        /// Accepted.
        tgt_name: String,
    }
}

method! { relaxed
    /// Lets a host connect, with the keys that it must prove to have.
    NvmfSubsystemAddHost = "nvmf_subsystem_add_host" -> bool;
    required {
        /// The subsystem.
        nqn: String,
        /// The host's name.
        host: String,
    }
    optional {
        /// Accepted.
        tgt_name: String,
        /// Name of the key for TLS.
        psk: String,
        /// Name of the host's key for DH-HMAC-CHAP.
        dhchap_key: String,
        /// Name of the subsystem's own key for DH-HMAC-CHAP, to be proved to the host.
        dhchap_ctrlr_key: String,
    }
}

method! {
    /// Changes the keys of a host that may connect; what is connected stays.
    NvmfSubsystemSetKeys = "nvmf_subsystem_set_keys" -> bool;
    required {
        /// The subsystem.
        nqn: String,
        /// The host's name.
        host: String,
    }
    optional {
        /// Accepted.
        tgt_name: String,
        /// Name of the host's key for DH-HMAC-CHAP; none if left out.
        dhchap_key: String,
        /// Name of the subsystem's own key for DH-HMAC-CHAP; none if left out.
        dhchap_ctrlr_key: String,
    }
}

method! {
    /// Takes a host off the list; it is disconnected.
    NvmfSubsystemRemoveHost = "nvmf_subsystem_remove_host" -> bool;
    required {
        /// The subsystem.
        nqn: String,
        /// The host's name.
        host: String,
    }
    optional {
        /// Accepted.
        tgt_name: String,
    }
}

method! {
    /// Whether any host may connect.
    NvmfSubsystemAllowAnyHost = "nvmf_subsystem_allow_any_host" -> bool;
    required {
        /// The subsystem.
        nqn: String,
        /// True: any may. False: those on the list.
        allow_any_host: bool,
    }
    optional {
        /// Accepted.
        tgt_name: String,
    }
}

method! {
    /// The hosts that are connected to a subsystem.
    NvmfSubsystemGetControllers = "nvmf_subsystem_get_controllers" -> Vec<NvmfController>;
    required {
        /// The subsystem.
        nqn: String,
    }
    optional {
        /// Accepted.
        tgt_name: String,
    }
}

method! {
    /// The queues of the hosts that are connected to a subsystem.
    NvmfSubsystemGetQpairs = "nvmf_subsystem_get_qpairs" -> Vec<NvmfQpair>;
    required {
        /// The subsystem.
        nqn: String,
    }
    optional {
        /// Accepted.
        tgt_name: String,
    }
}

method! { relaxed
    /// Names another discovery service to the hosts that ask this one.
    NvmfDiscoveryAddReferral = "nvmf_discovery_add_referral" -> bool;
    required {
        /// Its address.
        address: NvmfAddress,
    }
    optional {
        /// Accepted.
        tgt_name: String,
        /// True: it wants TLS.
        secure_channel: bool,
        /// Its subsystem's name; the well-known one if left out.
        subnqn: String,
    }
}

method! {
    /// Forgets a referral.
    NvmfDiscoveryRemoveReferral = "nvmf_discovery_remove_referral" -> bool;
    required {
        /// Its address.
        address: NvmfAddress,
    }
    optional {
        /// Accepted.
        tgt_name: String,
        /// Its subsystem's name; the well-known one if left out.
        subnqn: String,
    }
}

method! {
    /// The referrals.
    NvmfDiscoveryGetReferrals = "nvmf_discovery_get_referrals" -> Vec<NvmfReferral>;
    required {}
    optional {
        /// Accepted.
        tgt_name: String,
    }
}

method! {
    /// Counters of each reactor's connections.
    NvmfGetStats = "nvmf_get_stats" -> NvmfStats;
    required {}
    optional {
        /// Accepted.
        tgt_name: String,
    }
}

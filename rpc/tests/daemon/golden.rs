//! What SPDK's own clients send, byte for byte, is understood.
//!
//! `golden/*.json` holds what `rpc.py` of SPDK 26.09 wrote to its socket, recorded: indented JSON
//! without a newline at its end; `lamina_*` have the same form. What other clients send is taken
//! from their source.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use lamina_rpc::Call;
use lamina_rpc::methods::*;
use serde_json::Value;

use crate::Daemon;

/// Sends `bytes`, closes the sending side as some clients do, and gives the whole answer.
fn exchange(daemon: &Daemon, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(&daemon.path).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

/// A daemon that has what the transcripts speak of.
fn prepared() -> Daemon {
    let daemon = Daemon::start();
    let mut client = daemon.client();
    client
        .call(&LaminaStoreCreate {
            name: "pool".into(),
            path: "ram:1G".into(),
            size: Some(1 << 30),
            ..LaminaStoreCreate::default()
        })
        .unwrap();
    daemon.model.calls.lock().unwrap().clear();
    daemon
}

macro_rules! transcript {
    ($name:literal) => {
        include_bytes!(concat!("../../golden/", $name, ".json")).as_slice()
    };
}

/// Bytes on the wire, and the call they have to become.
type Transcript = (&'static [u8], Call);

/// All of them.
fn transcripts() -> Vec<Transcript> {
    [creations(), changes(), bdevs(), exports(), streams(), framework()].concat()
}

fn creations() -> Vec<Transcript> {
    let uuid = "6a1c2b34-0d5e-4f60-8a7b-9c8d7e6f5a4b";
    let create = || BdevLvolCreate {
        lvol_name: "vm1".into(),
        size_in_mib: Some(10240),
        thin_provision: Some(false),
        ..BdevLvolCreate::default()
    };
    vec![
        (transcript!("bdev_lvol_get_lvstores"), Call::BdevLvolGetLvstores(Default::default())),
        (
            transcript!("bdev_lvol_get_lvstores_by_name"),
            Call::BdevLvolGetLvstores(BdevLvolGetLvstores {
                lvs_name: Some("pool".into()),
                uuid: None,
            }),
        ),
        (
            transcript!("bdev_lvol_create"),
            Call::BdevLvolCreate(BdevLvolCreate { lvs_name: Some("pool".into()), ..create() }),
        ),
        (
            transcript!("bdev_lvol_create_thin"),
            Call::BdevLvolCreate(BdevLvolCreate {
                uuid: Some(uuid.into()),
                thin_provision: Some(true),
                clear_method: Some("unmap".into()),
                ..create()
            }),
        ),
    ]
}

fn changes() -> Vec<Transcript> {
    let text = String::from;
    vec![
        (
            transcript!("bdev_lvol_snapshot"),
            Call::BdevLvolSnapshot(BdevLvolSnapshot {
                lvol_name: text("pool/vm1"),
                snapshot_name: Some("nightly".into()),
            }),
        ),
        (
            transcript!("bdev_lvol_clone"),
            Call::BdevLvolClone(BdevLvolClone {
                snapshot_name: text("pool/vm1@nightly"),
                clone_name: text("vm2"),
            }),
        ),
        (
            transcript!("bdev_lvol_resize"),
            Call::BdevLvolResize(BdevLvolResize {
                name: text("pool/vm1"),
                size: None,
                size_in_mib: Some(20480),
            }),
        ),
        (
            transcript!("bdev_lvol_rename"),
            Call::BdevLvolRename(BdevLvolRename {
                old_name: text("pool/vm1"),
                new_name: text("vm3"),
            }),
        ),
        (
            transcript!("bdev_lvol_delete"),
            Call::BdevLvolDelete(BdevLvolDelete { name: text("pool/vm3") }),
        ),
        (
            transcript!("bdev_lvol_get_lvols"),
            Call::BdevLvolGetLvols(BdevLvolGetLvols {
                lvs_name: Some("pool".into()),
                lvs_uuid: None,
            }),
        ),
    ]
}

fn bdevs() -> Vec<Transcript> {
    vec![
        (transcript!("bdev_get_bdevs"), Call::BdevGetBdevs(Default::default())),
        (
            transcript!("bdev_get_bdevs_by_name"),
            Call::BdevGetBdevs(BdevGetBdevs { name: Some("pool/vm1".into()), timeout: Some(500) }),
        ),
        (
            transcript!("bdev_get_iostat"),
            Call::BdevGetIostat(BdevGetIostat { per_channel: Some(false), ..Default::default() }),
        ),
        (
            transcript!("bdev_get_iostat_names"),
            Call::BdevGetIostat(BdevGetIostat {
                per_channel: Some(false),
                names: Some(vec!["pool/vm1".into(), "pool/vm2".into()]),
                ..Default::default()
            }),
        ),
    ]
}

fn exports() -> Vec<Transcript> {
    let export = || VhostCreateBlkController {
        ctrlr: "vm1.sock".into(),
        dev_name: "pool/vm1".into(),
        readonly: Some(false),
        packed_ring: Some(false),
        ..VhostCreateBlkController::default()
    };
    vec![
        (transcript!("vhost_create_blk_controller"), Call::VhostCreateBlkController(export())),
        (
            transcript!("vhost_create_blk_controller_readonly"),
            Call::VhostCreateBlkController(VhostCreateBlkController {
                readonly: Some(true),
                packed_ring: Some(true),
                cpumask: Some("0x1".into()),
                ..export()
            }),
        ),
        (transcript!("vhost_get_controllers"), Call::VhostGetControllers(Default::default())),
        (
            transcript!("vhost_delete_controller"),
            Call::VhostDeleteController(VhostDeleteController { ctrlr: "vm1.sock".into() }),
        ),
    ]
}

fn streams() -> Vec<Transcript> {
    let (snapshot, since) = ("vm1@tuesday".to_string(), Some("vm1@monday".to_string()));
    vec![
        (
            transcript!("lamina_snapshot_diff"),
            Call::LaminaSnapshotDiff(LaminaSnapshotDiff {
                snapshot: Some(snapshot.clone()),
                since: since.clone(),
                offset: Some(1 << 20),
                max: Some(100),
            }),
        ),
        (
            transcript!("lamina_snapshot_export"),
            Call::LaminaSnapshotExport(LaminaSnapshotExport { snapshot, since, resume: None }),
        ),
        (
            transcript!("lamina_snapshot_import"),
            Call::LaminaSnapshotImport(LaminaSnapshotImport {
                disk: "copy".into(),
                onto: Some(true),
                store: None,
            }),
        ),
    ]
}

fn framework() -> Vec<Transcript> {
    vec![
        (transcript!("framework_get_reactors"), Call::FrameworkGetReactors(Default::default())),
        (transcript!("spdk_get_version"), Call::SpdkGetVersion(Default::default())),
        (
            transcript!("rpc_get_methods"),
            Call::RpcGetMethods(RpcGetMethods {
                current: Some(false),
                include_aliases: Some(false),
            }),
        ),
        (
            transcript!("rpc_get_methods_current"),
            Call::RpcGetMethods(RpcGetMethods { current: Some(true), include_aliases: Some(true) }),
        ),
        (
            transcript!("lamina_get_events"),
            Call::LaminaGetEvents(LaminaGetEvents { since: Some(17), max: Some(50) }),
        ),
        (
            transcript!("lamina_store_set_warnings"),
            Call::LaminaStoreSetWarnings(LaminaStoreSetWarnings {
                name: "pool".into(),
                percents: Some(vec![75, 100]),
            }),
        ),
        (
            transcript!("spdk_kill_instance"),
            Call::SpdkKillInstance(SpdkKillInstance { sig_name: "SIGTERM".into() }),
        ),
    ]
}

#[test]
fn every_transcript_becomes_its_call_and_is_answered_with_its_id() {
    let daemon = prepared();
    for (bytes, call) in transcripts() {
        let reply = exchange(&daemon, bytes);
        let sent: Value = serde_json::from_slice(bytes).unwrap();
        assert_eq!(daemon.model.calls.lock().unwrap().pop().as_ref(), Some(&call), "{sent}");
        assert!(reply.ends_with('\n') && reply.lines().count() == 1, "{reply}");
        let reply: Value = serde_json::from_str(&reply).unwrap();
        assert_eq!((&reply["id"], &reply["jsonrpc"]), (&sent["id"], &sent["jsonrpc"]));
    }
}

#[test]
fn the_transcript_of_a_batch_is_answered_by_one_array() {
    let daemon = prepared();
    let reply = exchange(&daemon, transcript!("batch"));
    let replies: Vec<Value> = serde_json::from_str(&reply).unwrap();
    let ids: Vec<_> = replies.iter().map(|reply| reply["id"].clone()).collect();
    assert_eq!(ids, [1, 2, 3]);
    assert_eq!(replies[1]["result"], true, "the disk of the first call is exported by the second");
}

#[test]
fn all_transcripts_at_once_are_answered_in_order() {
    let daemon = prepared();
    let mut stream = Vec::new();
    for (bytes, _) in transcripts() {
        stream.extend_from_slice(bytes);
    }
    let reply = exchange(&daemon, &stream);
    assert_eq!(reply.lines().count(), transcripts().len());
    let calls: Vec<Call> = transcripts().into_iter().map(|(_, call)| call).collect();
    assert_eq!(*daemon.model.calls.lock().unwrap(), calls);
}

#[test]
fn other_clients_find_what_they_look_for() {
    let daemon = prepared();
    // spdk-csi: compact, size in bytes; it must have the UUID as a string.
    let reply = exchange(
        &daemon,
        concat!(
            r#"{"jsonrpc":"2.0","id":17,"method":"bdev_lvol_create","params":{"lvol_name":"pvc-1","#,
            r#""size":1073741824,"lvs_name":"pool","clear_method":"unmap","thin_provision":true}}"#
        )
        .as_bytes(),
    );
    let reply: Value = serde_json::from_str(&reply).unwrap();
    assert_eq!(reply["result"].as_str().map(str::len), Some(36), "{reply}");
    // Longhorn: params null when there are none; it branches on the code.
    let reply = exchange(
        &daemon,
        concat!(
            r#"{"jsonrpc":"2.0","method":"spdk_get_version","params":null,"id":3294967295}"#,
            "\n",
            r#"{"jsonrpc":"2.0","method":"bdev_get_bdevs","params":{"name":"none"},"id":3294967296}"#,
            "\n"
        )
        .as_bytes(),
    );
    let replies: Vec<Value> =
        reply.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(replies[0]["id"], 3_294_967_295u64);
    assert!(replies[0]["result"]["version"].as_str().unwrap().starts_with("Lamina "));
    assert_eq!(replies[1]["error"]["code"], -19);
    assert!(replies[1]["error"]["message"].as_str().unwrap().starts_with("No such device"));
}

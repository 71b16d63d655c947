//! What is acted on in the middle of another act.

use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};

use lamina_bdev::Uuid;
use lamina_nvmf::controller::{Connected, Origin};
use lamina_nvmf::subsystem::{Address, DeviceKey, NamespaceSpec, Nqn, PortId, SubsystemSpec};
use lamina_nvmf::wire::opcode::nvm;
use lamina_nvmf::wire::{Command, Sgl};

use super::super::Caps;
use super::super::core::Association;
use super::super::stream::Stream;
use super::super::transport::Settings;
use super::*;
use crate::reactor::mailbox::Mailbox;

const SUBSYSTEM: &str = "nqn.2026-01.io.lamina:cnode1";
const SECOND: u64 = 1_000_000_000;
/// CC: enabled, 64- and 16-byte entries.
const ENABLE: u32 = 0x0046_0001;

fn core() -> (Core, PortId) {
    let inbox = Arc::new(Mailbox::new(64).unwrap());
    let save = Box::new(|_| ());
    let mut core =
        Core::new(Caps::default(), Settings::default(), inbox, Vec::new(), save).unwrap();
    let port = core.service.edit(|target| {
        let mut spec = SubsystemSpec::new(Nqn::new(SUBSYSTEM).unwrap());
        spec.allow_any_host = true;
        target.add_subsystem(spec).unwrap();
        let disk = NamespaceSpec::new(DeviceKey(1), "disk", Uuid([1; 16]), 1 << 20);
        target.add_namespace(SUBSYSTEM, disk).unwrap();
        let address = Address::parse(None, "127.0.0.1", "4420").unwrap();
        target.add_listener(SUBSYSTEM, &address, false).unwrap()
    });
    (core, port)
}

fn connect(core: &mut Core, port: PortId, host: u8, qid: u16, cntlid: u16) -> Connected {
    let mut data = vec![0; 1024];
    data[..16].fill(host);
    data[16..18].copy_from_slice(&cntlid.to_le_bytes());
    data[256..256 + SUBSYSTEM.len()].copy_from_slice(SUBSYSTEM.as_bytes());
    let nqn = format!("nqn.2026-01.io.lamina:host{host}");
    data[512..512 + nqn.len()].copy_from_slice(nqn.as_bytes());
    let connect = Command {
        opcode: fabrics::OPCODE,
        nsid: u32::from(fabrics::CONNECT),
        cdw10: u32::from(qid) << 16,
        cdw11: 31,
        ..Command::default()
    };
    let origin = Origin { port, local: IpAddr::V4(Ipv4Addr::LOCALHOST), tls: None };
    core.service.connect(&origin, &connect, &data, SECOND).expect("connects")
}

fn set_cc(core: &mut Core, key: ControllerKey, cc: u32) {
    let set = Command {
        opcode: fabrics::OPCODE,
        nsid: u32::from(fabrics::PROPERTY_SET),
        cdw11: 0x14,
        cdw12: cc,
        ..Command::default()
    };
    let answer = core.service.admin(key, SlotId(0), &set, 0, SECOND);
    assert!(matches!(&answer, Answer::Reply(reply) if reply.completion.status.is_ok()));
}

/// An enabled controller with an I/O queue.
fn host(core: &mut Core, port: PortId, host: u8) -> Connected {
    let admin = connect(core, port, host, 0, 0xffff);
    set_cc(core, admin.controller, ENABLE);
    let cntlid = core.service.controller(admin.controller).unwrap().cntlid;
    connect(core, port, host, 1, cntlid)
}

/// A queue that ends while its Connect is being answered makes the service act again, in the middle
/// of what an answer to another host waits for.
#[test]
fn an_answer_waits_for_all_that_is_done_on_its_behalf() {
    let (mut core, port) = core();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (socket, peer) = listener.accept().unwrap();
    let moving = host(&mut core, port, 1);
    let (key, id) = (moving.controller, ConnectionId(7));
    let mut conn = Conn::new(Stream::new(socket, peer), port, SECOND);
    conn.stage = Stage::Moving(Box::new(moving));
    core.conns.insert(id, conn);
    let queues = [(1, id)].into();
    let shared = Arc::default();
    let admin = ConnectionId(6);
    core.associations.insert(key, Association { admin, queues, shared, peer, local: peer });
    // Its reset is to be acted on, when another host's reservation is to be kept.
    set_cc(&mut core, key, 0);
    let other = host(&mut core, port, 2);
    let mut keys = [0; 16];
    keys[8] = 1;
    let register = Command {
        opcode: nvm::RESERVATION_REGISTER,
        nsid: 1,
        cdw10: 3 << 30,
        sgl: Sgl::transport(16),
        ..Command::default()
    };
    let answer = core.service.queue_command(other.controller, 1, &register, 16, &keys, SECOND);
    assert!(matches!(answer, Answer::ReplyAfterActions(_)), "{answer:?}");
    core.answer(ReplyTo::Away(ConnectionId(8), SlotId(0)), answer);
    assert!(!core.conns.contains_key(&id), "the reset has ended it");
    assert_eq!(core.deferred.len(), 1, "nothing is durable yet");
    let token = *core.deferred[0].tokens.first().expect("what it waits for");
    core.message(ServiceMsg::Saved(token, true));
    assert_eq!(core.deferred.len(), 0);
    // The reset host's queue has left, so it is told that it is disabled.
    let csts = Command {
        opcode: fabrics::OPCODE,
        nsid: u32::from(fabrics::PROPERTY_GET),
        cdw11: 0x1c,
        ..Command::default()
    };
    let answer = core.service.admin(key, SlotId(0), &csts, 0, SECOND);
    assert!(matches!(&answer, Answer::Reply(reply) if reply.completion.dw0 == 0), "{answer:?}");
}

//! The Linux kernel's own NVMe/TCP initiator against the daemon, from a guest.
//!
//! ```text
//!  guest: nvme-cli, nvme-tcp, ext4, fio ── user-mode network ── 127.0.0.1 ── laminad
//!                 10.0.2.2 is the host's loopback
//! ```

use std::net::TcpListener;
use std::thread::sleep;
use std::time::Duration;

use lamina_tests::guest::{Daemon, Guest, MIB, Machine, ready, turn};
use serde_json::{Value, json};

const NQN: &str = "nqn.2016-06.io.lamina:cnode1";
const HOST_NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:4c4c4544-0042-4210-8038-b4c04f503434";
const HOST_ID: &str = "4c4c4544-0042-4210-8038-b4c04f503434";
/// How long I/O goes on before and after something happens to it.
const IO_TIME: Duration = Duration::from_secs(3);

/// A daemon with a store, a disk `vm` of `mib` MiB, and a subsystem that anybody may use.
fn target(mib: u64) -> Daemon {
    let daemon = Daemon::with_store(1024 * MIB);
    daemon.create_disk("vm", mib);
    daemon.ask(
        "nvmf_create_subsystem",
        json!({"nqn": NQN, "allow_any_host": true, "serial_number": "LAMINA0001",
               "model_number": "Lamina test disk", "ana_reporting": true}),
    );
    let nsid = add_namespace(&daemon, "vm");
    assert_eq!(nsid, json!(1));
    daemon
}

fn add_namespace(daemon: &Daemon, disk: &str) -> Value {
    daemon.ask("nvmf_subsystem_add_ns", json!({"nqn": NQN, "namespace": {"bdev_name": disk}}))
}

/// Makes the daemon listen on a free port of the loopback.
fn listen(daemon: &Daemon) -> u16 {
    let free = TcpListener::bind("127.0.0.1:0").expect("the loopback has a free port");
    let port = free.local_addr().expect("bound").port();
    drop(free);
    daemon.ask("nvmf_subsystem_add_listener", listener(port));
    port
}

fn listener(port: u16) -> Value {
    json!({"nqn": NQN, "listen_address":
           {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string()}})
}

fn boot(daemon: &Daemon) -> Guest {
    let mut guest = Machine::new().cpus(2).network().boot(daemon.folder(), "guest");
    guest.run("load_nvme");
    guest
}

fn connect(guest: &mut Guest, port: u16, more: &str) {
    guest.run(&format!(
        "nvme connect -t tcp -a 10.0.2.2 -s {port} -n {NQN} --hostnqn {HOST_NQN} --hostid {HOST_ID} {more}"
    ));
}

/// Waits in the guest until a shell condition holds.
fn wait_in(guest: &mut Guest, condition: &str) {
    guest.run(&format!(
        "n=0; until {condition}; do n=$((n+1)); [ $n -lt 300 ] || exit 9; sleep 0.1; done"
    ));
}

/// A daemon with a disk of 64 MiB, its port, and a guest that has it as `/dev/nvme0n1`; `more` is
/// for its `nvme connect`.
fn connected(more: &str) -> (Daemon, u16, Guest) {
    let daemon = target(64);
    let port = listen(&daemon);
    let mut guest = boot(&daemon);
    connect(&mut guest, port, more);
    wait_in(&mut guest, "[ -b /dev/nvme0n1 ]");
    (daemon, port, guest)
}

/// Starts verified I/O in the guest's background.
fn start_io(guest: &mut Guest) {
    guest.run(
        "cd /tmp; rm -f status; (fio --name=io --filename=/dev/nvme0n1 --rw=randrw --bs=4k \
         --size=24m --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 \
         --verify_backlog=64 --time_based --runtime=14 --thread >said 2>&1; echo $? >status) &",
    );
}

/// Waits for the end of that I/O, which must have gone without an error.
fn finish_io(guest: &mut Guest) {
    wait_in(guest, "[ -e /tmp/status ]");
    let said = guest.run("cat /tmp/said");
    assert_eq!(guest.run("cat /tmp/status"), "0", "{said}");
    assert!(said.contains("err= 0"), "{said}");
}

#[test]
fn the_kernel_finds_a_disk_and_uses_all_of_it() {
    if !ready("the_kernel_finds_a_disk_and_uses_all_of_it") {
        return;
    }
    let _turn = turn();
    let daemon = target(256);
    let port = listen(&daemon);
    let mut guest = boot(&daemon);
    let found = guest.run(&format!(
        "nvme discover -t tcp -a 10.0.2.2 -s {port} --hostnqn {HOST_NQN} --hostid {HOST_ID}"
    ));
    assert!(found.contains(NQN), "{found}");
    connect(&mut guest, port, "");
    wait_in(&mut guest, "[ -b /dev/nvme0n1 ]");
    let controller = guest.run("nvme id-ctrl /dev/nvme0");
    assert!(controller.contains("LAMINA0001"), "{controller}");
    assert!(controller.contains("Lamina test disk"), "{controller}");
    let namespace = guest.run("nvme id-ns /dev/nvme0n1");
    assert!(namespace.contains("nsze    : 0x80000"), "{namespace}");
    assert!(guest.run("nvme list").contains("/dev/nvme0n1"));
    guest.run("make_fs /dev/nvme0n1 && make_tree /mnt/tree 30 64 && umount /mnt");
    guest.run("mount /dev/nvme0n1 /mnt");
    assert_eq!(guest.run("check_tree /mnt/tree"), "30");
    guest.run("umount /mnt && /bin/e2fsck -fn /dev/nvme0n1");
    guest.run("nvme flush /dev/nvme0n1 -n 1");
    let health = guest.run("nvme smart-log /dev/nvme0");
    let counter = |name: &str| {
        let line = health.lines().find(|line| line.to_lowercase().starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name:?} in {health}"));
        let digits = line.split(':').nth(1).expect("a value").chars();
        digits.skip_while(|c| *c == ' ').take_while(char::is_ascii_digit).collect::<String>()
    };
    for name in ["host_write_commands", "host_read_commands"] {
        assert_ne!(counter(name).trim_start_matches('0'), "", "{name}: {health}");
    }
    guest.run("nvme dsm /dev/nvme0n1 -n 1 --ad --slbs=0 --blocks=2048");
    guest.run("[ $(dd if=/dev/nvme0n1 bs=4k count=256 iflag=direct | tr -d '\\000' | wc -c) = 0 ]");
    guest.run("dd if=/dev/urandom of=/dev/nvme0n1 bs=64k count=4 oflag=direct");
    guest.run("nvme write-zeroes /dev/nvme0n1 -n 1 --start-block=128 --block-count=127");
    guest.run(
        "[ $(dd if=/dev/nvme0n1 bs=64k skip=1 count=1 iflag=direct | tr -d '\\000' | wc -c) = 0 ]",
    );
    guest.run("[ $(dd if=/dev/nvme0n1 bs=64k count=1 iflag=direct | tr -d '\\000' | wc -c) != 0 ]");
    start_io(&mut guest);
    sleep(IO_TIME);
    guest.run("nvme reset /dev/nvme0");
    finish_io(&mut guest);
    guest.run("nvme disconnect -n {NQN}".replace("{NQN}", NQN).as_str());
    wait_in(&mut guest, "[ ! -b /dev/nvme0n1 ]");
    guest.assert_no_kernel_errors();
}

#[test]
fn digests_guard_every_transfer() {
    if !ready("digests_guard_every_transfer") {
        return;
    }
    let _turn = turn();
    let (_daemon, _, mut guest) = connected("--hdr-digest --data-digest --nr-io-queues=2");
    start_io(&mut guest);
    finish_io(&mut guest);
    guest.run("dd if=/dev/urandom of=/dev/nvme0n1 bs=1M count=8 oflag=direct");
    guest.assert_no_kernel_errors();
}

#[test]
fn namespaces_come_grow_and_go_while_connected() {
    if !ready("namespaces_come_grow_and_go_while_connected") {
        return;
    }
    let _turn = turn();
    let (daemon, _, mut guest) = connected("");
    daemon.create_disk("second", 32);
    assert_eq!(add_namespace(&daemon, "second"), json!(2));
    wait_in(&mut guest, "[ -b /dev/nvme0n2 ]");
    guest.run("nvme ns-rescan /dev/nvme0");
    guest.run("dd if=/dev/urandom of=/dev/nvme0n2 bs=1M count=32 oflag=direct");
    daemon.ask("bdev_lvol_resize", json!({"name": "second", "size_in_mib": 48}));
    wait_in(&mut guest, "[ $(cat /sys/block/nvme0n2/size) = 98304 ]");
    guest.run("dd if=/dev/urandom of=/dev/nvme0n2 bs=1M count=48 oflag=direct");
    daemon.ask("nvmf_subsystem_remove_ns", json!({"nqn": NQN, "nsid": 2}));
    wait_in(&mut guest, "[ ! -b /dev/nvme0n2 ]");
    // A snapshot is there to be read.
    guest.run("dd if=/dev/urandom of=/tmp/data bs=1M count=4; dd if=/tmp/data of=/dev/nvme0n1 bs=1M oflag=direct");
    daemon.snapshot("vm", "kept");
    guest.run("dd if=/dev/zero of=/dev/nvme0n1 bs=1M count=4 oflag=direct");
    assert_eq!(add_namespace(&daemon, "vm@kept"), json!(2));
    wait_in(&mut guest, "[ -b /dev/nvme0n2 ] && [ $(cat /sys/block/nvme0n2/ro) = 1 ]");
    guest
        .run("dd if=/dev/nvme0n2 of=/tmp/back bs=1M count=4 iflag=direct; cmp /tmp/data /tmp/back");
    guest.assert_no_kernel_errors();
}

#[test]
fn reservations_work_as_nvme_cli_asks_for_them() {
    if !ready("reservations_work_as_nvme_cli_asks_for_them") {
        return;
    }
    let _turn = turn();
    let (mut daemon, _, mut guest) = connected("--reconnect-delay=1");
    guest.run("nvme resv-register /dev/nvme0n1 -n 1 --nrkey=0x1234 --rrega=0 --cptpl=3");
    guest.run("nvme resv-acquire /dev/nvme0n1 -n 1 --crkey=0x1234 --rtype=1 --racqa=0");
    let report = guest.run("nvme resv-report /dev/nvme0n1 -n 1 --eds");
    assert!(report.contains("rtype     : 1"), "{report}");
    assert!(report.contains("1234"), "{report}");
    guest.run("dd if=/dev/urandom of=/dev/nvme0n1 bs=64k count=4 oflag=direct");
    let (status, _) = guest.try_run("nvme resv-acquire /dev/nvme0n1 -n 1 --crkey=0x9 --rtype=1");
    assert_ne!(status, 0, "a wrong key reserves nothing");
    // It persists through power loss.
    daemon.kill();
    daemon.start();
    // The kernel answers such commands with EAGAIN until it has connected again.
    wait_in(&mut guest, "nvme resv-report /dev/nvme0n1 -n 1 --eds");
    let report = guest.run("nvme resv-report /dev/nvme0n1 -n 1 --eds");
    assert!(report.contains("rtype     : 1") && report.contains("1234"), "{report}");
    guest.run("dd if=/dev/urandom of=/dev/nvme0n1 bs=64k count=4 oflag=direct");
    guest.run("nvme resv-release /dev/nvme0n1 -n 1 --crkey=0x1234 --rtype=1 --rrela=0");
    guest.run("nvme resv-register /dev/nvme0n1 -n 1 --crkey=0x1234 --rrega=1");
}

#[test]
fn a_path_that_goes_is_no_error_with_two_of_them() {
    if !ready("a_path_that_goes_is_no_error_with_two_of_them") {
        return;
    }
    let _turn = turn();
    let daemon = target(64);
    let (first, second) = (listen(&daemon), listen(&daemon));
    let mut guest = boot(&daemon);
    connect(&mut guest, first, "");
    connect(&mut guest, second, "");
    wait_in(&mut guest, "[ -b /dev/nvme0n1 ]");
    let paths = "$(cat /sys/class/nvme-subsystem/nvme-subsys0/nvme*/nvme*c*n1/ana_state | grep -c optimized)";
    wait_in(&mut guest, &format!("[ {paths} = 2 ]"));
    start_io(&mut guest);
    sleep(IO_TIME);
    let mut state = listener(first);
    state["ana_state"] = json!("inaccessible");
    daemon.ask("nvmf_subsystem_listener_set_ana_state", state);
    wait_in(
        &mut guest,
        "grep -q inaccessible /sys/class/nvme-subsystem/nvme-subsys0/nvme*/nvme*c*n1/ana_state",
    );
    sleep(Duration::from_secs(1));
    let mut state = listener(first);
    state["ana_state"] = json!("optimized");
    daemon.ask("nvmf_subsystem_listener_set_ana_state", state);
    sleep(Duration::from_secs(1));
    daemon.ask("nvmf_subsystem_remove_listener", listener(second));
    finish_io(&mut guest);
}

#[test]
fn the_daemon_dies_and_the_kernel_goes_on() {
    if !ready("the_daemon_dies_and_the_kernel_goes_on") {
        return;
    }
    let _turn = turn();
    let (mut daemon, _, mut guest) = connected("--reconnect-delay=1");
    start_io(&mut guest);
    for _ in 0..2 {
        sleep(IO_TIME);
        assert_eq!(guest.try_run("test -e /tmp/status").0, 1, "the I/O ended before its time");
        daemon.kill();
        sleep(Duration::from_millis(500));
        daemon.start();
    }
    finish_io(&mut guest);
    let found = daemon.ask("nvmf_get_subsystems", json!({}));
    assert_eq!(found[1]["namespaces"][0]["alias"].as_str(), Some("pool/vm"), "{found}");
}

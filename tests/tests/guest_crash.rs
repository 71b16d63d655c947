//! The daemon dies under a guest that writes, and comes back: the guest waits, then goes on, and
//! nothing it was told is written is lost.

use std::thread::sleep;
use std::time::Duration;

use lamina_tests::guest::{Daemon, MIB, Machine, ready, turn};

/// The program that knows what every sector must hold.
const GUEST_IO: &str = env!("CARGO_BIN_EXE_guest-io");

/// How long the guest writes before and after each death.
const WRITING_TIME: Duration = Duration::from_secs(3);

fn killed_under_stress(test: &str, properties: &str) {
    if !ready(test) {
        return;
    }
    let _turn = turn();
    let mut daemon = Daemon::with_store(1024 * MIB);
    daemon.create_disk("vm", 128);
    let socket = daemon.export("vm", false);
    let machine = Machine::new().cpus(2).program(GUEST_IO).disk(&socket, properties);
    let mut guest = machine.boot(daemon.folder(), "guest");
    guest.run(
        "(tool stress /dev/vda 11 131072 6 /tmp/stop >/tmp/said 2>&1; echo $? >/tmp/status) &",
    );
    for round in 0..3 {
        sleep(WRITING_TIME);
        if round == 1 {
            // A snapshot between two deaths shares every block: the next writes copy.
            daemon.snapshot("vm", "half");
            sleep(Duration::from_millis(300));
        }
        assert_eq!(guest.try_run("test -e /tmp/status").0, 1, "the stress ended before its time");
        daemon.kill();
        sleep(Duration::from_millis(500));
        daemon.start();
    }
    sleep(WRITING_TIME);
    guest.run("touch /tmp/stop; while [ ! -e /tmp/status ]; do sleep 0.2; done");
    let said = guest.run("cat /tmp/said");
    assert_eq!(guest.run("cat /tmp/status"), "0", "{said}\n{}", daemon.log());
    assert!(said.ends_with("131072 sectors checked"), "{said}");
    guest.assert_no_kernel_errors();
}

#[test]
fn killed_under_stress_on_split_rings() {
    killed_under_stress("killed_under_stress_on_split_rings", "num-queues=2");
}

#[test]
fn killed_under_stress_on_packed_rings() {
    killed_under_stress("killed_under_stress_on_packed_rings", "num-queues=2,packed=on");
}

#[test]
fn killed_under_a_file_system() {
    if !ready("killed_under_a_file_system") {
        return;
    }
    let _turn = turn();
    let mut daemon = Daemon::with_store(2048 * MIB);
    daemon.create_disk("vm", 1024);
    let socket = daemon.export("vm", false);
    let mut guest = Machine::new().disk(&socket, "").boot(daemon.folder(), "guest");
    guest.run("make_fs /dev/vda && make_tree /mnt/tree 30 64 && start_writer /mnt/written 128");
    sleep(WRITING_TIME);
    daemon.kill();
    let before: u32 = guest.run("acknowledged").parse().expect("a number");
    assert!(before > 0, "the writer finished a file before the daemon died");
    daemon.start();
    sleep(WRITING_TIME);
    guest.run("stop_writer");
    let after: u32 = guest.run("check_acknowledged").parse().expect("a number");
    assert!(after > before, "the writer went on: {before} files before, {after} after");
    assert_eq!(guest.run("check_tree /mnt/tree"), "30");
    guest.run("umount /mnt && /bin/e2fsck -fn /dev/vda");
    guest.assert_no_kernel_errors();
}

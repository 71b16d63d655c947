//! A real guest on each kind of virtqueue: what it writes it reads back, also after a restart of
//! the daemon.

use lamina_tests::guest::{Daemon, MIB, Machine, ready, turn};

/// The program that knows what every sector must hold.
const GUEST_IO: &str = env!("CARGO_BIN_EXE_guest-io");

/// Boots a guest with the given properties of its disk, writes, reads back, makes a file system,
/// and reads all of it again in a second guest from a restarted daemon.
fn write_and_read_back(test: &str, properties: &str, cpus: u32) {
    if !ready(test) {
        return;
    }
    let _turn = turn();
    let mut daemon = Daemon::with_store(2048 * MIB);
    daemon.create_disk("vm", 512);
    let socket = daemon.export("vm", false);
    let machine = Machine::new().cpus(cpus).program(GUEST_IO).disk(&socket, properties);

    let mut guest = machine.boot(daemon.folder(), "first");
    assert_eq!(guest.run("cat /sys/block/vda/size"), (512 * MIB / 512).to_string());
    // The end of the disk, at odd sectors, before and after the file system takes the front.
    guest.run("tool zeroes /dev/vda 0 4096");
    guest.run("tool fill /dev/vda 7 1040001 8191");
    guest.run("tool check /dev/vda 7 1040001 8191");
    guest
        .run("mke2fs -q -t ext4 /dev/vda 400M && mount /dev/vda /mnt && make_tree /mnt/tree 40 48");
    assert_eq!(guest.run("check_tree /mnt/tree"), "40");
    guest.assert_no_kernel_errors();
    guest.power_off();

    assert!(daemon.terminate().success(), "a clean stop ends with status 0\n{}", daemon.log());
    daemon.start();
    assert!(socket.exists(), "the export is back by itself after a restart");
    let mut guest = machine.boot(daemon.folder(), "second");
    guest.run("tool check /dev/vda 7 1040001 8191");
    guest.run("/bin/e2fsck -fn /dev/vda");
    guest.run("mount /dev/vda /mnt");
    assert_eq!(guest.run("check_tree /mnt/tree"), "40");
    guest.assert_no_kernel_errors();
}

#[test]
fn split_rings() {
    write_and_read_back("split_rings", "num-queues=1", 1);
}

#[test]
fn packed_rings() {
    write_and_read_back("packed_rings", "num-queues=1,packed=on", 1);
}

#[test]
fn split_rings_many_queues() {
    write_and_read_back("split_rings_many_queues", "num-queues=2,queue-size=64", 2);
}

#[test]
fn packed_rings_many_queues_no_event_index() {
    let properties = "num-queues=2,packed=on,event_idx=off,queue-size=256";
    write_and_read_back("packed_rings_many_queues_no_event_index", properties, 2);
}

/// Without indirect descriptors a ring must hold the longest request (126 segments and two more);
/// with them a small one will do.
#[test]
fn no_indirect_descriptors() {
    let properties = "num-queues=1,indirect_desc=off,queue-size=128";
    write_and_read_back("no_indirect_descriptors", properties, 1);
}

#[test]
fn small_queue() {
    write_and_read_back("small_queue", "num-queues=1,queue-size=16", 1);
}

//! Thin disks as a guest sees them: snapshots, clones, discard, resize, several disks, a full
//! store.

use lamina_tests::guest::{Daemon, MIB, Machine, ready, turn};
use serde_json::json;

/// The program that knows what every sector must hold.
const GUEST_IO: &str = env!("CARGO_BIN_EXE_guest-io");

#[test]
fn discard_gives_space_back() {
    if !ready("discard_gives_space_back") {
        return;
    }
    let _turn = turn();
    let daemon = Daemon::with_store(1024 * MIB);
    daemon.create_disk("vm", 512);
    let socket = daemon.export("vm", false);
    let mut guest = Machine::new().program(GUEST_IO).disk(&socket, "").boot(daemon.folder(), "a");
    let empty = daemon.free_bytes();
    // 64 MiB.
    guest.run("tool fill /dev/vda 1 8192 131072");
    let filled = daemon.free_bytes();
    assert!(empty - filled >= 64 * MIB, "{} bytes taken by 64 MiB", empty - filled);
    guest.run("blkdiscard -o 4194304 -l 67108864 /dev/vda && sync");
    guest.run("tool zeroes /dev/vda 8192 131072");
    let freed = daemon.free_bytes();
    // Metadata of the once written range may stay.
    assert!(empty - freed < 2 * MIB, "{} bytes stay after the discard", empty - freed);

    guest.run("tool fill /dev/vda 2 8192 131072");
    guest.run("blkdiscard -z -o 4194304 -l 67108864 /dev/vda && sync");
    guest.run("tool zeroes /dev/vda 8192 131072");

    guest.run("make_fs /dev/vda && head -c 50000000 /dev/urandom >/mnt/big && sync");
    let filled = daemon.free_bytes();
    guest.run("rm /mnt/big && sync && fstrim /mnt && sync");
    let freed = daemon.free_bytes();
    assert!(freed > filled + 40 * MIB, "fstrim gave {} bytes back", freed.saturating_sub(filled));
    guest.assert_no_kernel_errors();
}

#[test]
fn discard_of_what_a_snapshot_holds_keeps_the_snapshot() {
    if !ready("discard_of_what_a_snapshot_holds_keeps_the_snapshot") {
        return;
    }
    let _turn = turn();
    let daemon = Daemon::with_store(512 * MIB);
    daemon.create_disk("vm", 128);
    let socket = daemon.export("vm", false);
    let mut guest = Machine::new().program(GUEST_IO).disk(&socket, "").boot(daemon.folder(), "a");
    guest.run("tool fill /dev/vda 3 0 65536");
    daemon.snapshot("vm", "full");
    guest.run("blkdiscard /dev/vda && tool zeroes /dev/vda 0 65536");
    guest.run("tool fill /dev/vda 4 100 1000");
    guest.power_off();

    let old = daemon.export("vm@full", true);
    let machine = Machine::new().program(GUEST_IO).disk(&socket, "").disk(&old, "");
    let mut guest = machine.boot(daemon.folder(), "b");
    assert_eq!(guest.run("cat /sys/block/vda/ro /sys/block/vdb/ro"), "0\n1");
    guest.run("tool check /dev/vda 4 100 1000 && tool zeroes /dev/vda 1100 64436");
    guest.run("tool check /dev/vdb 3 0 65536");
    // The guest's kernel refuses first; the daemon's own refusal is tested on the wire.
    assert_ne!(guest.try_run("tool fill /dev/vdb 5 0 8").0, 0, "a snapshot cannot be written");
    guest.run("tool check /dev/vdb 3 0 65536");
}

#[test]
fn a_resize_is_seen_while_the_guest_runs() {
    if !ready("a_resize_is_seen_while_the_guest_runs") {
        return;
    }
    let _turn = turn();
    let daemon = Daemon::with_store(512 * MIB);
    daemon.create_disk("vm", 64);
    let socket = daemon.export("vm", false);
    let mut guest = Machine::new().program(GUEST_IO).disk(&socket, "").boot(daemon.folder(), "a");
    guest.run("make_fs /dev/vda && make_tree /mnt/tree 20 32");
    daemon.ask("bdev_lvol_resize", json!({"name": "vm", "size": 256 * MIB}));
    let sectors = 256 * MIB / 512;
    let seen = format!("[ $(cat /sys/block/vda/size) = {sectors} ]");
    guest.run(&format!("for i in $(seq 50); do {seen} && break; sleep 0.1; done; {seen}"));
    guest.run("/bin/resize2fs /dev/vda");
    let blocks: u64 = guest.run("stat -f -c %b /mnt").parse().expect("a number");
    let block: u64 = guest.run("stat -f -c %S /mnt").parse().expect("a number");
    assert!(blocks * block > 200 * MIB, "the file system has {blocks} blocks of {block}");
    guest.run("head -c 150000000 /dev/zero >/mnt/big && sync");
    assert_eq!(guest.run("check_tree /mnt/tree"), "20");
    guest.assert_no_kernel_errors();
}

#[test]
fn clones_share_and_part() {
    if !ready("clones_share_and_part") {
        return;
    }
    let _turn = turn();
    let daemon = Daemon::with_store(1024 * MIB);
    daemon.create_disk("golden", 256);
    let socket = daemon.export("golden", false);
    let mut guest = Machine::new().program(GUEST_IO).disk(&socket, "").boot(daemon.folder(), "a");
    guest.run("tool fill /dev/vda 1 0 262144");
    guest.power_off();
    daemon.snapshot("golden", "base");
    let before = daemon.free_bytes();
    for name in ["one", "two"] {
        let clone = json!({"snapshot_name": "golden@base", "clone_name": name});
        daemon.ask("bdev_lvol_clone", clone);
    }
    let spent = before - daemon.free_bytes();
    assert!(spent < MIB, "two clones of 128 MiB of data took {spent} bytes");

    let [one, two] = ["one", "two"].map(|name| daemon.export(name, false));
    let machine = Machine::new().cpus(2).program(GUEST_IO);
    let mut guest = machine.disk(&one, "packed=on").disk(&two, "").boot(daemon.folder(), "b");
    guest.run("tool fill /dev/vda 2 1000 2000 & tool fill /dev/vdb 3 2000 2000; wait");
    guest.run("tool check /dev/vda 2 1000 2000 && tool check /dev/vda 1 3000 259144");
    guest.run("tool check /dev/vdb 3 2000 2000 && tool check /dev/vdb 1 0 2000");
    guest.assert_no_kernel_errors();
    guest.power_off();

    let mut guest = Machine::new().program(GUEST_IO).disk(&socket, "").boot(daemon.folder(), "c");
    guest.run("tool check /dev/vda 1 0 262144");
}

#[test]
fn a_full_store_is_an_error_and_not_the_end() {
    if !ready("a_full_store_is_an_error_and_not_the_end") {
        return;
    }
    let _turn = turn();
    let daemon = Daemon::with_store(128 * MIB);
    daemon.create_disk("vm", 1024);
    let socket = daemon.export("vm", false);
    let mut guest = Machine::new().program(GUEST_IO).disk(&socket, "").boot(daemon.folder(), "a");
    guest.run("tool fill /dev/vda 1 0 16384");
    let (status, said) = guest.try_run("tool fill /dev/vda 2 16384 524288");
    assert_ne!(status, 0, "256 MiB do not fit in a store of 128 MiB");
    assert!(said.contains("No space left") || said.contains("Input/output error"), "{said}");
    guest.run("tool check /dev/vda 1 0 16384");
    guest.run("blkdiscard -o 8388608 -l 268435456 /dev/vda && sync");
    assert!(daemon.free_bytes() > 32 * MIB, "discard gives space back in a full store");
    guest.run("tool fill /dev/vda 3 16384 16384 && tool check /dev/vda 3 16384 16384");
    guest.run("tool check /dev/vda 1 0 16384");
}

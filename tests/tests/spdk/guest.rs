//! A Linux guest on SPDK's vhost, with a Lamina disk: file system, fio, a snapshot under load, a
//! clone, and a target that dies.

use std::thread::sleep;
use std::time::Duration;

use super::app::{App, MIB, Tool, ready};
use lamina_tests::guest::{Machine, turn};
use serde_json::json;

/// How long the guest writes before and after each event.
const WRITING_TIME: Duration = Duration::from_secs(3);
/// A verified run of fio, whose file is checked again later; direct, in flight together.
const FIO: &str = "fio --name=v --filename=/mnt/fio --size=16M --bs=4k --rw=randwrite \
                   --ioengine=libaio --iodepth=16 --direct=1 --verify=crc32c --verify_fatal=1";

#[test]
fn a_guest_on_spdks_vhost_outlives_the_target() {
    const TEST: &str = "a_guest_on_spdks_vhost_outlives_the_target";
    if !ready(TEST) || !lamina_tests::guest::ready(TEST) {
        return;
    }
    let _turn = turn();
    let image = std::env::temp_dir().join(format!("lamina-guest-{}", std::process::id()));
    std::fs::File::create(&image).and_then(|file| file.set_len(1024 * MIB)).expect("an image");
    let aio = json!({"name": "Aio0", "filename": image, "block_size": 512});
    let mut app = App::start(Tool::Target, &[("bdev_aio_create", aio)]);
    app.create_store("Aio0");
    app.create_disk("vm", 512);
    let socket = app.export("pool/vm");

    let machine = Machine::new().network().disk(&socket, "num-queues=1");
    let mut guest = machine.boot(app.folder(), "a");
    guest.run("make_fs /dev/vda && make_tree /mnt/tree 20 32");
    let said = guest.run(&format!("{FIO} --do_verify=1 --output-format=terse | tail -1"));
    assert!(!said.is_empty());
    guest.run("sync && start_writer /mnt/written 64");
    sleep(WRITING_TIME);
    app.snapshot("vm", "live");
    sleep(WRITING_TIME);
    for _ in 0..2 {
        app.kill();
        let before: u32 = guest.run("acknowledged").parse().expect("a number");
        sleep(Duration::from_millis(500));
        app.run();
        assert_eq!(app.export("pool/vm"), socket);
        sleep(WRITING_TIME);
        let after: u32 = guest.run("acknowledged").parse().expect("a number");
        assert!(after > before, "the writer went on: {before} files, then {after}\n{}", app.log());
    }
    guest.run("stop_writer && check_acknowledged");
    assert_eq!(guest.run("check_tree /mnt/tree"), "20");
    guest.run(&format!("{FIO} --verify_only"));
    guest.run("umount /mnt && /bin/e2fsck -fn /dev/vda");
    guest.assert_no_kernel_errors();
    guest.power_off();

    // As the disk was in the middle of the load: a crash to the file system, which it gets over.
    app.clone_of("vm@live", "clone");
    let clone = app.export("pool/clone");
    let machine = Machine::new().network().disk(&clone, "num-queues=1");
    let mut guest = machine.boot(app.folder(), "b");
    guest.run("mount -t ext4 /dev/vda /mnt");
    assert_eq!(guest.run("check_tree /mnt/tree"), "20");
    guest.run(&format!("{FIO} --verify_only"));
    guest.run("umount /mnt && /bin/e2fsck -fn /dev/vda");
    guest.assert_no_kernel_errors();
    guest.power_off();
    std::fs::remove_file(&image).expect("the image is there");
}

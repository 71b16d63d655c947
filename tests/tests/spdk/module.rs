//! The module inside SPDK, seen from SPDK's side: bdevs that come, change and go, I/O from other
//! threads, a base that is pulled out, and SPDK's own verifying programs on a disk.

use std::time::{Duration, Instant};

use super::app::{
    App, Bdevs, MIB, SPDK_TGT, Tool, malloc, passthru, ready, ready_with, spdk_program,
};
use lamina_tests::client::{Device, Options, Request, lock, wait};
use serde_json::{Value, json};

const PERF: &str = "build/examples/bdevperf";
const IO: &str = "test/bdev/bdevio/bdevio";

#[test]
fn disks_are_bdevs_that_come_change_and_go() {
    if !ready("disks_are_bdevs_that_come_change_and_go") {
        return;
    }
    let app = App::start(Tool::Target, &[malloc(256, 512)]);
    app.create_store("Malloc0");
    let uuid = app.create_disk("a", 64);
    let bdev = app.bdev("pool/a").expect("a disk is a bdev");
    assert_eq!(bdev["name"], uuid.as_str());
    assert_eq!((&bdev["uuid"], &bdev["product_name"]), (&json!(uuid), &json!("Lamina disk")));
    assert_eq!(bdev["block_size"], 512);
    assert_eq!(bdev["num_blocks"], 64 * MIB / 512);
    assert_eq!(bdev["driver_specific"]["lamina"]["store"], "pool");
    for (kind, can) in [("read", true), ("flush", true), ("unmap", true), ("compare", false)] {
        assert_eq!(bdev["supported_io_types"][kind], can, "{kind}");
    }
    assert_eq!(app.bdev("Malloc0").expect("the base")["claimed"], true);

    app.ask("lamina_bdev_lvol_resize", json!({"name": "a", "size": 96 * MIB}));
    assert_eq!(app.bdev("pool/a").expect("still there")["num_blocks"], 96 * MIB / 512);
    app.ask("lamina_bdev_lvol_rename", json!({"old_name": "a", "new_name": "b"}));
    assert!(app.bdev("pool/a").is_none() && app.bdev("pool/b").is_some());

    app.snapshot("b", "one");
    app.clone_of("b@one", "c");
    assert_eq!(app.bdev("pool/c").expect("a clone is a bdev")["num_blocks"], 96 * MIB / 512);
    let error = app.try_ask("lamina_bdev_lvol_create", json!({"lvol_name": "c", "size": MIB}));
    assert_eq!(error.expect_err("the name is taken").code, -17);

    // What is exported is in use; what is not vanishes.
    let _socket = app.export("pool/b");
    let used = app.try_ask("lamina_bdev_lvol_delete", json!({"name": "b"}));
    if let Err(error) = used {
        assert_eq!(error.code, -16, "{}", error.message);
        app.ask("vhost_delete_controller", json!({"ctrlr": "pool-b.sock"}));
        app.ask("lamina_bdev_lvol_delete", json!({"name": "b"}));
    }
    assert!(app.bdev("pool/b").is_none());
    app.ask("lamina_store_close", json!({"name": "pool"}));
    assert!(app.bdev("pool/c").is_none());
    assert_eq!(app.bdev("Malloc0").expect("the base")["claimed"], false);
    app.ask("lamina_store_open", json!({"path": "Malloc0"}));
    assert!(app.bdev("pool/c").is_some());
    drop(app.into_folder());
}

/// What a store lies on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Under {
    /// Memory, that is lent.
    Memory,
    /// A bdev that is reached by I/O.
    Io,
    /// The same, where SPDK has not I/O enough for what is asked for at a time.
    FewIo,
}

/// Runs a program of SPDK that waits to be told, and gives its answer.
fn performed(under: Under, place: &str, arguments: &[&str], params: Value) -> (App, Value) {
    let app = prepared(under, place, arguments);
    let answer = app.ask("perform_tests", params);
    (app, answer)
}

/// Starts it, with a disk to perform on.
fn prepared(under: Under, place: &str, arguments: &[&str]) -> App {
    let few = json!({"bdev_io_pool_size": 80, "bdev_io_cache_size": 4});
    let (base, bdevs) = match under {
        Under::Memory => ("Malloc0", vec![malloc(256, 4096)]),
        Under::Io => ("Pass0", vec![malloc(256, 4096), passthru()]),
        Under::FewIo => ("Pass0", vec![("bdev_set_options", few), malloc(256, 4096), passthru()]),
    };
    let app = App::start(Tool::Preloaded(place, arguments), &bdevs);
    app.create_store(base);
    app.create_disk("d", 96);
    app
}

#[test]
fn bdevperf_finds_what_it_wrote() {
    if !ready_with("bdevperf_finds_what_it_wrote", PERF) {
        return;
    }
    let all = ["verify", "reset", "unmap", "write_zeroes", "flush"];
    let on = |under, all: &[&'static str]| all.iter().map(|one| (under, *one)).collect::<Vec<_>>();
    let few = ["verify", "randrw"];
    let runs = [on(Under::Memory, &all), on(Under::Io, &all), on(Under::FewIo, &few)].concat();
    for (under, workload) in runs {
        let mix: &[&str] = if workload == "randrw" { &["-M", "50"] } else { &[] };
        let arguments = ["-z", "-q", "32", "-o", "4096", "-w", workload, "-t", "2", "-T", "pool/d"];
        let arguments = [&arguments, mix].concat();
        let (app, answer) = performed(under, PERF, &arguments, Value::Null);
        let job = &answer["results"][0];
        assert_eq!(job["status"], "finished", "{workload}: {answer}");
        assert_eq!((&job["io_failed"], &job["io_timeout"]), (&json!(0), &json!(0)), "{workload}");
        assert!(job["iops"].as_f64().is_some_and(|iops| iops > 100.0), "{workload}: {answer}");
        if workload == "verify" {
            // The shard went to the thread that its I/O comes from, and home again.
            let (local, sent) = (app.counter("io_local"), app.counter("io_sent"));
            assert!(local > 10 * sent, "{local} local, {sent} sent");
            assert!(app.counter("moves") >= 1);
        }
    }
}

#[test]
fn bdevio_passes() {
    if !ready_with("bdevio_passes", IO) {
        return;
    }
    // It wants three cores; the machine may have fewer.
    let arguments = ["-w", "-m", "--lcores=0@0,1@1,2@1"];
    for under in [Under::Memory, Under::Io] {
        let (app, answer) = performed(under, IO, &arguments, json!({"name": "pool/d"}));
        assert_eq!(answer, json!(0), "failures on {under:?}\n{}", app.log());
    }
}

#[test]
fn an_unmodified_spdk_tgt_takes_the_library() {
    if !ready_with("an_unmodified_spdk_tgt_takes_the_library", SPDK_TGT) {
        return;
    }
    let app = App::start(Tool::Preloaded(SPDK_TGT, &[]), &[malloc(128, 4096)]);
    app.create_store("Malloc0");
    app.create_disk("d", 16);
    assert!(app.bdev("pool/d").is_some());
    let methods = app.ask("rpc_get_methods", json!({}));
    for name in ["lamina_store_create", "lamina_tree", "lamina_bdev_lvol_clone", "bdev_lvol_create"]
    {
        let there = methods.as_array().is_some_and(|all| all.contains(&json!(name)));
        assert!(there, "{name} is missing");
    }
    drop(app.into_folder());
}

#[test]
fn a_base_pulled_out_is_an_error_on_its_disks() {
    if !ready("a_base_pulled_out_is_an_error_on_its_disks") {
        return;
    }
    pulled_out("Malloc0", &[malloc(128, 4096)]);
    pulled_out("Pass0", &[malloc(128, 4096), passthru()]);
    assert!(spdk_program("no/such/program").is_none());
}

#[test]
fn a_base_goes_while_it_is_written_at_full_speed() {
    if !ready_with("a_base_goes_while_it_is_written_at_full_speed", PERF) {
        return;
    }
    for (under, method, base) in [
        (Under::Memory, "bdev_malloc_delete", "Malloc0"),
        (Under::Io, "bdev_passthru_delete", "Pass0"),
    ] {
        // It goes on after errors, so that the load never lets up.
        let arguments = ["-z", "-q", "32", "-o", "4096", "-w", "randrw", "-M", "50", "-t", "8"];
        let arguments = [&arguments[..], &["-T", "pool/d", "-f"]].concat();
        let app = prepared(under, PERF, &arguments);
        let answer = std::thread::scope(|scope| {
            let load = scope.spawn(|| app.ask("perform_tests", Value::Null));
            std::thread::sleep(Duration::from_secs(2));
            // Answered once nobody holds it open any more.
            app.ask(method, json!({"name": base}));
            assert!(app.bdev(base).is_none(), "{under:?}: it is held");
            assert!(!load.is_finished(), "{under:?}: it went only after the load");
            load.join().expect("the load is answered")
        });
        let job = &answer["results"][0];
        assert!(job["io_failed"].as_u64().is_some_and(|failed| failed > 0), "{under:?}: {answer}");
        assert_eq!(job["io_timeout"], json!(0), "{under:?}: none is lost");
        assert!(app.bdev("pool/d").is_some(), "the disk is still there, with its errors");
    }
}

fn pulled_out(base: &str, bdevs: Bdevs<'_>) {
    let app = App::start(Tool::Target, bdevs);
    app.create_store(base);
    app.create_disk("d", 32);
    let socket = app.export("pool/d");
    let device = Device::connect(&socket, Options { huge: true, ..Options::default() })
        .expect("SPDK's vhost listens");
    let queue = device.queue(0);
    let write = |at: u64| {
        let slot = lock(&queue).free_slot().expect("nothing in flight");
        lock(&queue).submit(slot, Request::Write { offset: at, data: &[7; 4096] });
        wait(&queue).good
    };
    assert!(write(0) && write(MIB));
    app.ask("bdev_malloc_delete", json!({"name": "Malloc0"}));
    assert!(app.bdev(base).is_none(), "it is held");
    let deadline = Instant::now() + Duration::from_secs(10);
    while write(2 * MIB) {
        assert!(Instant::now() < deadline, "writes go well without a base");
    }
    assert!(!write(0), "an error stays one");
    assert!(app.bdev("pool/d").is_some(), "the disk is still there, with its errors");
    // SPDK keeps an export as long as somebody is connected to it.
    drop((queue, device));
    app.await_no_clients();
    app.ask("vhost_delete_controller", json!({"ctrlr": "pool-d.sock"}));
    app.ask("lamina_store_close", json!({"name": "pool", "force": true}));
    assert!(app.bdev("pool/d").is_none());
    drop(app.into_folder());
}

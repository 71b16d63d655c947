//! SPDK's own initiator against a `laminad`: its discover, identify and perf tools, as somebody
//! built them. `LAMINA_SPDK_BIN` names their folder (and `LD_LIBRARY_PATH` their libraries, if they
//! were built shared). Without it each test says that it is skipped.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lamina_tests::guest::call;
use lamina_tests::nvme::{Exported, Host, NQN, address_json, free_port};
use serde_json::{Value, json};

/// Memory for a tool without huge pages, MiB.
const MEMORY: &str = "256";
/// Longest run of a tool; most of it is DPDK looking at the machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// What DPDK says when it wants huge pages and there are none.
const NO_HUGE_PAGES: [&str; 2] = ["No free 2048 kB hugepages", "Cannot get hugepage information"];

/// The path of a tool, if there is a build. Some are in its folder of examples.
fn tool(name: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("LAMINA_SPDK_BIN").map(PathBuf::from) else {
        println!("skipped: set LAMINA_SPDK_BIN to the folder of SPDK's {name} to run it");
        return None;
    };
    let places = [folder.join(name), folder.join("../examples").join(name)];
    let found = places.iter().find(|path| path.is_file());
    let found = found.unwrap_or_else(|| panic!("no {name} in {}", folder.display()));
    Some(found.clone())
}

fn transport(exported: &Exported) -> String {
    format!("trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:{}", exported.port)
}

/// Reads both outputs of a tool, each on a thread of its own.
fn outputs(child: &mut Child) -> [std::sync::Arc<std::sync::Mutex<String>>; 2] {
    let pipes: [Box<dyn Read + Send>; 2] = [
        Box::new(child.stdout.take().expect("a pipe")),
        Box::new(child.stderr.take().expect("a pipe")),
    ];
    pipes.map(|mut pipe| {
        let text = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let sink = text.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut bytes) {
                sink.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        text
    })
}

/// Runs a tool to its end. Where it would go on for ever it is asked to end once `until` holds.
/// Whether it ended well, and what it said.
fn run(path: PathBuf, arguments: &[&str], until: Option<&dyn Fn() -> bool>) -> (bool, String) {
    let mut command = Command::new(path);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the tool can be run");
    let texts = outputs(&mut child);
    let all = || texts.iter().map(|text| text.lock().unwrap().clone()).collect::<String>();
    let end = Instant::now() + PATIENCE;
    let mut asked = false;
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            // The readers see the end of the pipes soon.
            std::thread::sleep(Duration::from_millis(200));
            return (status.success(), all());
        }
        if !asked && until.is_some_and(|until| until()) {
            asked = true;
            // It has what it came for, or will have soon.
            std::thread::sleep(Duration::from_secs(2));
            let pid = child.id().to_string();
            Command::new("kill").arg("-TERM").arg(pid).status().expect("kill can be run");
        }
        if Instant::now() > end {
            let _ = child.kill();
            panic!("the tool does not end; it said:\n{}", all());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Nothing that went wrong between the two.
fn complaints(text: &str) -> Vec<&str> {
    let known = [
        // DPDK, of devices of the machine.
        "EAL",
        "eth_virtio",
        // The tool polls queues that it has disconnected itself, with SPDK's target too.
        "CQ transport error -6",
    ];
    let bad = |line: &&str| line.contains("*ERROR*") && !known.iter().any(|k| line.contains(k));
    text.lines().filter(bad).collect()
}

#[test]
fn spdk_discovers() {
    let Some(path) = tool("spdk_nvme_discover") else { return };
    let exported = Exported::new();
    let connected = || exported.stats()["connections"] == 1;
    let (_, text) = run(path, &["-r", &transport(&exported)], Some(&connected));
    if NO_HUGE_PAGES.iter().any(|why| text.contains(why)) {
        return println!("skipped: this tool of SPDK needs huge pages, and there are none");
    }
    assert!(text.contains(NQN) && text.contains(&exported.port.to_string()), "{text}");
    assert!(text.contains("Transport Type:                        3 (TCP)"), "{text}");
    assert_eq!(complaints(&text), Vec::<&str>::new());
    exported.wait_until_alone();
}

#[test]
fn spdk_identifies() {
    let Some(path) = tool("spdk_nvme_identify") else { return };
    let parameters = json!({"serial_number": "SN-77", "model_number": "Lamina of a test",
        "ana_reporting": true});
    let exported = Exported::with(parameters);
    let target = format!("{} subnqn:{NQN}", transport(&exported));
    let (well, text) = run(path, &["--no-huge", "-s", MEMORY, "-r", &target], None);
    assert!(well, "{text}");
    for line in [
        "SN-77",
        "Lamina of a test",
        "NVMe Specification Version (VS):       2.1",
        "Max Data Transfer Size:                131072",
        "Maximum Queue Entries:                 1024",
        "Compare Command:             Supported",
        "Write Zeroes Command:        Supported",
        "Dataset Management Command:  Supported",
        "Copy:                        Supported",
        "Reservations:                Supported",
        "Current LBA Format:                    LBA Format #00",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    assert_eq!(complaints(&text), Vec::<&str>::new());
    exported.wait_until_alone();
}

#[test]
fn spdk_reads_and_writes() {
    let Some(path) = tool("spdk_nvme_perf") else { return };
    let exported = Exported::new();
    for more in [&[][..], &["-H", "-I"], &["-P", "4", "-q", "512"], &["-o", "131072"]] {
        let target = transport(&exported);
        let mut arguments = vec!["--no-huge", "-s", MEMORY, "-r", &target];
        arguments.extend(["-q", "32", "-o", "4096", "-w", "randrw", "-M", "50", "-t", "2"]);
        arguments.extend(more);
        let (well, text) = run(path.clone(), &arguments, None);
        assert!(well, "{text}");
        let total = text.lines().find(|line| line.starts_with("Total")).expect("a result");
        let iops = total.split(':').nth(1).and_then(|rest| rest.split_whitespace().next());
        let iops: f64 = iops.expect("figures").parse().expect("a number");
        assert!(iops > 1.0, "{text}");
        assert!(!text.contains("errors occurred"), "{text}");
        assert_eq!(complaints(&text), Vec::<&str>::new(), "{more:?}");
        exported.wait_until_alone();
    }
    let ended = exported.stats()["poll_groups"][0]["completed_nvme_io"].as_u64();
    assert!(ended > Some(100), "{ended:?}");
}

/// SPDK's `bdevperf`, which attaches NVMe disks as it is told.
struct Attacher {
    child: Child,
    socket: PathBuf,
}

impl Attacher {
    fn start(path: PathBuf, socket: PathBuf) -> Attacher {
        let mut command = Command::new(path);
        command.args(["-z", "--no-huge", "-s", "512", "-q", "8", "-o", "4096", "-w", "randread"]);
        command.args(["-t", "1", "--disable-cpumask-locks", "-r"]).arg(&socket);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("the tool can be run");
        let mut attacher = Attacher { child, socket };
        let end = Instant::now() + PATIENCE;
        while attacher.ask("rpc_get_methods", Value::Null).is_err() {
            let ended = attacher.child.try_wait().expect("a child");
            assert!(ended.is_none() && Instant::now() < end, "bdevperf does not start: {ended:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
        attacher
    }

    fn ask(&self, method: &str, params: Value) -> Result<Value, String> {
        call(&self.socket, method, params).map_err(|error| error.message)
    }
}

impl Drop for Attacher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn spdk_authenticates_in_both_directions_and_inside_tls() {
    let Some(path) = tool("bdevperf") else { return };
    let exported = Exported::with(json!({"allow_any_host": false}));
    let daemon = &exported.daemon;
    let attacher = Attacher::start(path, daemon.path("spdk.sock"));
    let ask = |method, params| attacher.ask(method, params);
    for (name, text) in [
        ("host", "DHHC-1:00:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:"),
        ("own", "DHHC-1:00:ERERERERERERERERERERERERERERERERERERERERERHYIEm8:"),
        ("psk", "NVMeTLSkey-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:"),
    ] {
        let path = daemon.path(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let key = json!({"name": name, "path": path});
        daemon.ask("keyring_file_add_key", key.clone());
        ask("keyring_file_add_key", key).expect("SPDK takes the key");
    }
    let host = json!({"nqn": NQN, "host": Host::new(1).nqn, "psk": "psk",
        "dhchap_key": "host", "dhchap_ctrlr_key": "own"});
    daemon.ask("nvmf_subsystem_add_host", host);
    let secure = free_port();
    let listener = json!({"nqn": NQN, "listen_address": address_json(secure),
        "secure_channel": true});
    daemon.ask("nvmf_subsystem_add_listener", listener);
    let attach = |name: &str, port: u16, keys: &Value| {
        let mut params = address_json(port);
        params["name"] = json!(name);
        params["subnqn"] = json!(NQN);
        params["hostnqn"] = json!(Host::new(1).nqn);
        for (key, value) in keys.as_object().expect("an object") {
            params[key] = value.clone();
        }
        ask("bdev_nvme_attach_controller", params)
    };
    let both = json!({"dhchap_key": "host", "dhchap_ctrlr_key": "own"});
    let all = json!({"dhchap_key": "host", "dhchap_ctrlr_key": "own", "psk": "psk"});
    for (name, port, keys) in [("A", exported.port, &both), ("B", secure, &all)] {
        assert_eq!(attach(name, port, keys), Ok(json!([format!("{name}n1")])));
        let shown = daemon.ask("nvmf_subsystem_get_controllers", json!({"nqn": NQN}));
        assert_eq!(shown[0]["authenticated"], true, "{shown}");
        let ran = ask("perform_tests", Value::Null).expect("I/O");
        assert!(ran["results"][0]["iops"].as_f64() > Some(1.0), "{ran}");
        assert_eq!(ran["results"][0]["io_failed"].as_u64().unwrap_or(0), 0, "{ran}");
        ask("bdev_nvme_detach_controller", json!({"name": name})).expect("it goes");
        exported.wait_until_alone();
    }
    for keys in [
        json!({}),
        json!({"dhchap_key": "own"}),
        json!({"dhchap_key": "host", "dhchap_ctrlr_key": "host"}),
    ] {
        assert!(attach("C", exported.port, &keys).is_err(), "{keys}");
        exported.wait_until_alone();
    }
}

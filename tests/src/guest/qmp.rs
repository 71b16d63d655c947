//! The monitor of a running QEMU: plugs memory into the guest and pulls it out again. Each time the
//! daemon gets a new memory table.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::MIB;

/// Size of a memory module: what x86 kernels add and remove at a time.
const MODULE_BYTES: u64 = 128 * MIB;
/// Longest wait for an answer: QEMU may be busy with a daemon that is gone.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);

/// A connection to the monitor.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// Modules that are plugged in, oldest first.
    modules: Vec<u32>,
    made: u32,
}

impl Qmp {
    /// Connects to QEMU's socket.
    ///
    /// # Panics
    /// If nobody answers there.
    #[must_use]
    pub fn connect(path: &Path) -> Qmp {
        let stream = UnixStream::connect(path).expect("QEMU listens");
        stream.set_read_timeout(Some(ANSWER_TIME_MAX)).expect("a timeout can be set");
        let mut qmp = Qmp { stream: BufReader::new(stream), modules: Vec::new(), made: 0 };
        let _greeting = qmp.line();
        qmp.call("qmp_capabilities", json!({}));
        qmp
    }

    /// How many memory modules are plugged in.
    #[must_use]
    pub fn plugged(&self) -> usize {
        self.modules.len()
    }

    /// Plugs in one more memory module.
    ///
    /// # Panics
    /// If QEMU refuses.
    pub fn plug(&mut self) {
        self.made += 1;
        let (id, memory) = (format!("dimm{}", self.made), format!("plug{}", self.made));
        let backend = json!({
            "qom-type": "memory-backend-memfd", "id": memory, "size": MODULE_BYTES, "share": true
        });
        self.call("object-add", backend);
        self.call("device_add", json!({"driver": "pc-dimm", "id": id, "memdev": memory}));
        self.modules.push(self.made);
    }

    /// Asks the guest to let go of the oldest module, and waits until it has; false: it has not.
    ///
    /// # Panics
    /// If QEMU refuses, or none is plugged in.
    pub fn unplug(&mut self, time: Duration) -> bool {
        let number = self.modules[0];
        let (id, deadline) = (format!("dimm{number}"), Instant::now() + time);
        // A guest that was asked before may have let go of it since, at any moment.
        match self.try_call("device_del", json!({"id": id})) {
            Err(error) if error["class"] == "DeviceNotFound" => {}
            answer => drop(answer.unwrap_or_else(|error| panic!("device_del {id}: {error}"))),
        }
        while self.is_there(&id) {
            if Instant::now() > deadline {
                // Next time another one.
                self.modules.rotate_left(1);
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.modules.remove(0);
        self.call("object-del", json!({"id": format!("plug{number}")}));
        true
    }

    fn is_there(&mut self, id: &str) -> bool {
        let all = self.call("query-memory-devices", json!({}));
        all.as_array().expect("a list").iter().any(|device| device["data"]["id"] == id)
    }

    fn call(&mut self, command: &str, arguments: Value) -> Value {
        let answer = self.try_call(command, arguments);
        answer.unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// What QEMU answers: its error too.
    fn try_call(&mut self, command: &str, arguments: Value) -> Result<Value, Value> {
        let request = json!({"execute": command, "arguments": arguments});
        let text = format!("{request}\n");
        self.stream.get_mut().write_all(text.as_bytes()).expect("QEMU takes a command");
        loop {
            let mut answer = self.line();
            if answer.get("event").is_some() {
                continue;
            }
            return match answer.get("error") {
                Some(_) => Err(answer["error"].take()),
                None => Ok(answer["return"].take()),
            };
        }
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("QEMU answers");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line:?}"))
    }
}

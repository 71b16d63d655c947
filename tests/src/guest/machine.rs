//! A guest of one test: booted, told what to run, switched off.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::{Qmp, root, tail};

/// Longest wait for the guest's first word: some ten times what an idle host needs.
const BOOT_TIME_MAX: Duration = Duration::from_secs(60);
/// Longest wait for one command.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(120);

/// What to boot.
#[derive(Debug, Default)]
pub struct Machine {
    disks: Vec<String>,
    program: Option<PathBuf>,
    cpus: u32,
    network: bool,
    hotplug: bool,
}

impl Machine {
    /// A machine with one processor and no disk.
    #[must_use]
    pub fn new() -> Machine {
        Machine { cpus: 1, ..Machine::default() }
    }

    /// Adds the next disk (`/dev/vda`, `/dev/vdb`, ...): a vhost-user socket, and properties of
    /// QEMU's `vhost-user-blk-pci` like `packed=on,queue-size=64` (or nothing).
    #[must_use]
    pub fn disk(mut self, socket: &Path, properties: &str) -> Machine {
        let comma = if properties.is_empty() { "" } else { "," };
        self.disks.push(format!("{}{comma}{properties}", socket.display()));
        self
    }

    /// Hands a program to the guest, where it is `tool`.
    #[must_use]
    pub fn program(mut self, program: &str) -> Machine {
        self.program = Some(program.into());
        self
    }

    /// Sets the number of processors.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Machine {
        self.cpus = cpus;
        self
    }

    /// Gives it a network card, on which the host's loopback is 10.0.2.2, and the disk with `fio`
    /// and `nvme`.
    #[must_use]
    pub fn network(mut self) -> Machine {
        self.network = true;
        self
    }

    /// Gives it slots for memory modules, and its monitor a socket: see [`Guest::monitor`].
    #[must_use]
    pub fn hotplug(mut self) -> Machine {
        self.hotplug = true;
        self
    }

    /// Boots it; `name` tells its files in `folder` from another guest's.
    ///
    /// # Panics
    /// If the guest does not come up, with the end of its console.
    #[must_use]
    pub fn boot(&self, folder: &Path, name: &str) -> Guest {
        let prefix = folder.join(name);
        let log = prefix.with_extension("qemu.log");
        let console = prefix.with_extension("console");
        let output = File::create(&log).expect("log file");
        let [input, answers] = ["in", "out"].map(|end| prefix.with_extension(end));
        let made = Command::new("mkfifo").arg(&input).arg(&answers).status();
        assert!(made.expect("mkfifo can be run").success(), "cannot make FIFOs in the folder");
        let mut command = Command::new(root().join("scripts/guest"));
        for disk in &self.disks {
            command.arg("--disk").arg(disk);
        }
        if let Some(program) = &self.program {
            command.arg("--program").arg(program);
        }
        if self.network {
            command.args(["--network", "--tools"]);
        }
        let monitor = prefix.with_extension("qmp");
        if self.hotplug {
            command.arg("--hotplug").arg(&monitor);
        }
        command.arg("--cpus").arg(self.cpus.to_string());
        command.arg("--control").arg(&prefix).arg("--console").arg(&console);
        command.stdin(Stdio::null());
        command.stdout(output.try_clone().expect("log file")).stderr(output);
        let child = command.spawn().expect("scripts/guest can be run");
        // Opened for both directions so that it does not wait for QEMU.
        let input = OpenOptions::new().read(true).write(true).open(&input).expect("FIFO");
        let lines = read_lines(answers);
        let mut guest = Guest { child, input, lines, log, console, monitor, commands: 0 };
        guest.wait_for("@@ready", BOOT_TIME_MAX);
        guest
    }
}

/// Lines of the FIFO as they come, until QEMU is gone.
fn read_lines(path: PathBuf) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let Ok(fifo) = File::open(path) else { return };
        for line in BufReader::new(fifo).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_string();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// A running guest. Dropping it switches it off without asking it.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    input: File,
    lines: Receiver<String>,
    log: PathBuf,
    console: PathBuf,
    monitor: PathBuf,
    commands: u32,
}

impl Guest {
    /// Runs a shell command that must succeed; gives what it printed.
    ///
    /// # Panics
    /// If it fails or does not end in time.
    pub fn run(&mut self, command: &str) -> String {
        let (status, output) = self.try_run(command);
        if status != 0 {
            panic!("in the guest, `{command}` failed ({status}):\n{output}\n{}", self.logs());
        }
        output
    }

    /// Runs a shell command; gives its exit status and what it printed.
    ///
    /// # Panics
    /// If the guest is gone or the command does not end in time.
    pub fn try_run(&mut self, command: &str) -> (i32, String) {
        assert!(!command.contains('\n'), "the guest takes one line a command");
        self.commands += 1;
        let id = self.commands;
        let line = format!("{id} {command}\n");
        self.input.write_all(line.as_bytes()).expect("the guest's FIFO takes a line");
        let (output, end) = self.wait_for(&format!("@@{id} "), COMMAND_TIME_MAX);
        let status = end.trim().parse().unwrap_or_else(|_| panic!("bad status '{end}'"));
        (status, output)
    }

    /// Reads lines up to the one that starts with `marker`: what came before, and its rest.
    fn wait_for(&mut self, marker: &str, time: Duration) -> (String, String) {
        let deadline = Instant::now() + time;
        let mut output = String::new();
        loop {
            match self.lines.recv_timeout(Duration::from_millis(200)) {
                Ok(line) => match line.strip_prefix(marker) {
                    Some(rest) => return (output.trim_end().to_string(), rest.to_string()),
                    None => {
                        output.push_str(&line);
                        output.push('\n');
                    }
                },
                Err(RecvTimeoutError::Timeout) => {
                    let ended = self.child.try_wait().expect("a child");
                    assert!(ended.is_none(), "QEMU ended ({ended:?})\n{}", self.logs());
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("QEMU closed the guest's port\n{}", self.logs())
                }
            }
            assert!(
                Instant::now() < deadline,
                "no '{marker}' from the guest in {time:?}; so far:\n{output}\n{}",
                self.logs()
            );
        }
    }

    /// Connects to the monitor of a machine with [`Machine::hotplug`].
    #[must_use]
    pub fn monitor(&self) -> Qmp {
        Qmp::connect(&self.monitor)
    }

    /// Asserts that the guest's kernel saw no I/O error and no hurt file system.
    ///
    /// # Panics
    /// If it did, with its lines.
    pub fn assert_no_kernel_errors(&mut self) {
        self.run("kernel_errors");
    }

    /// Switches the guest off after a sync, and waits for QEMU to end.
    ///
    /// # Panics
    /// If it does not end in time.
    pub fn power_off(mut self) {
        self.run("umount /mnt 2>/dev/null; sync");
        self.input.write_all(b"0 poweroff -f\n").expect("the guest's FIFO takes a line");
        let deadline = Instant::now() + BOOT_TIME_MAX;
        while self.child.try_wait().expect("a child").is_none() {
            assert!(Instant::now() < deadline, "the guest does not go off\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn logs(&self) -> String {
        format!("{}\n{}", tail(&self.log, 20), tail(&self.console, 20))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

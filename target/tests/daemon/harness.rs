//! A real laminad on a temporary folder, and calls to it.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use lamina_rpc::{Client, ClientError, Method, RpcError};
use serde_json::Value;

const START_TIMEOUT: Duration = Duration::from_secs(60);
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A temporary folder, removed when dropped.
pub struct Dir(PathBuf);

impl Dir {
    pub fn new() -> Dir {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("laminad-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a temporary folder");
        Dir(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("a temporary path is text").to_string()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    client: Client,
}

impl Daemon {
    /// Starts it on `dir` and waits until it is ready.
    pub fn start(dir: &Dir, args: &[&str]) -> Daemon {
        match Daemon::try_start(dir, "d", args) {
            Ok(daemon) => daemon,
            Err((status, log)) => panic!("laminad did not start ({status}): {log}"),
        }
    }

    /// Starts it with state and sockets named after `who`. `Err`: it ended instead.
    pub fn try_start(dir: &Dir, who: &str, args: &[&str]) -> Result<Daemon, (ExitStatus, String)> {
        let socket = dir.path(&format!("{who}.sock"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_laminad"))
            .arg("--rpc-socket")
            .arg(&socket)
            .arg("--state-dir")
            .arg(dir.path(&format!("{who}.state")))
            .arg("--export-dir")
            .arg(dir.path(&format!("{who}.run")))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("laminad starts");
        let (ready, wait) = channel();
        let stdout = child.stdout.take().expect("piped");
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = ready.send(line);
        });
        let mut stderr = child.stderr.take().expect("piped");
        let log = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        let line = wait.recv_timeout(START_TIMEOUT).unwrap_or_default();
        if line != "laminad: ready\n" {
            let _ = child.kill();
            let status = child.wait().expect("a child can be waited for");
            return Err((status, log.join().unwrap_or_default()));
        }
        let client = Client::connect(&socket).expect("ready means that RPC is served");
        Ok(Daemon { child, client })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A call that must go well.
    pub fn call<M: Method>(&mut self, params: M) -> M::Output {
        let answer = self.client.call(&params);
        answer.unwrap_or_else(|error| panic!("{}: {error}", M::INFO.name))
    }

    /// A call that may be refused.
    pub fn try_call(&mut self, method: &str, params: &Value) -> Result<Value, RpcError> {
        match self.client.call_raw(method, params) {
            Ok(value) => Ok(value),
            Err(ClientError::Rpc(error)) => Err(error),
            Err(other) => panic!("{method} {params}: {other}"),
        }
    }

    /// A call that must be refused.
    pub fn refused(&mut self, method: &str, params: &Value) -> RpcError {
        match self.try_call(method, params) {
            Err(error) => error,
            Ok(value) => panic!("{method} {params}: {value}"),
        }
    }

    fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        let signalled =
            Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status();
        assert!(signalled.is_ok_and(|status| status.success()), "kill -{signal} {pid}");
    }

    /// Ends it in good order.
    pub fn stop(mut self) {
        self.signal(15);
        let status = self.wait();
        assert!(status.success(), "laminad ended with {status}");
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be asked") {
                return status;
            }
            assert!(Instant::now() < end, "laminad does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it in no order at all.
    pub fn kill_hard(mut self) {
        self.child.kill().expect("SIGKILL");
        self.wait();
    }

    /// CPU time used so far, in clock ticks of 10 ms.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("stat");
        let after_name = stat.rsplit_once(')').expect("a name in brackets").1;
        let field =
            |n: usize| after_name.split_whitespace().nth(n).unwrap().parse::<u64>().unwrap();
        field(11) + field(12)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// True if somebody listens on the socket.
pub fn listens(socket: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}

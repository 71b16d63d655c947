//! A sign of life on stderr for what takes over a second; nothing where nobody looks.

use std::io::IsTerminal;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How long a call may take before something is shown.
const QUIET_TIME: Duration = Duration::from_secs(1);

/// Time between two pictures of the spinner.
const TICK_TIME: Duration = Duration::from_millis(100);

/// Shows a spinner from a second after it is made until it is dropped.
pub struct Progress {
    /// Dropped to say that it is over.
    done: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// A spinner beside `doing`, such as "creating disk vm1".
    pub fn new(doing: String) -> Progress {
        if !std::io::stderr().is_terminal() {
            return Progress { done: None, thread: None };
        }
        let (done, over) = channel::<()>();
        let thread = std::thread::Builder::new().spawn(move || {
            if over.recv_timeout(QUIET_TIME) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            let spinner = ProgressBar::new_spinner().with_elapsed(QUIET_TIME);
            // A fixed template: it is right or it is not, and the default does as well.
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
                spinner.set_style(style);
            }
            spinner.set_message(doing);
            spinner.enable_steady_tick(TICK_TIME);
            // Ends when the other side is dropped.
            let _ = over.recv();
            spinner.finish_and_clear();
        });
        // Without a thread there is no spinner, and the call goes on.
        Progress { done: Some(done), thread: thread.ok() }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.done.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

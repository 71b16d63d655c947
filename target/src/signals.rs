//! SIGTERM and SIGINT, taken by a thread of their own: the first asks for the end in good order,
//! the second ends the process at once.
#![allow(unsafe_code)]
// UNSAFETY: signal sets exist only behind pthread_sigmask(3) and sigwait(3).

use std::io;
use std::sync::mpsc::SyncSender;

/// Exit status after a second signal.
const EXIT_IMPATIENT: i32 = 130;

/// Keeps the two signals from every thread that is started after this, and starts the thread that
/// takes them. To be called on the main thread before any other thread exists.
///
/// # Errors
/// What the system says.
pub fn watch(stop: SyncSender<String>) -> io::Result<()> {
    let set = blocked_set()?;
    let take = move || {
        let mut seen = 0u32;
        loop {
            let mut signal = 0;
            // SAFETY: both point at initialised memory that outlives the call.
            let rc = unsafe { libc::sigwait(&set, &mut signal) };
            if rc != 0 {
                continue;
            }
            seen += 1;
            let name = if signal == libc::SIGTERM { "SIGTERM" } else { "SIGINT" };
            if seen > 1 {
                eprintln!("laminad: a second signal ({name}): ending at once");
                std::process::exit(EXIT_IMPATIENT);
            }
            let _ = stop.try_send(name.to_string());
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(take)?;
    Ok(())
}

/// Blocks the two signals for this thread and those it starts.
fn blocked_set() -> io::Result<libc::sigset_t> {
    // SAFETY: all zeros is room for a set, which sigemptyset then initialises.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is valid for every call; the old mask is not asked for.
    let rc = unsafe {
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGINT);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut())
    };
    if rc == 0 { Ok(set) } else { Err(io::Error::from_raw_os_error(rc)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;
    use std::time::Duration;

    #[test]
    fn a_signal_becomes_a_message() {
        let (stop, wait) = sync_channel(1);
        // The signal goes to this thread alone, so it must be the one that takes it.
        let set = blocked_set().unwrap();
        // SAFETY: raise() sends to the calling thread, where the signal is blocked.
        assert_eq!(unsafe { libc::raise(libc::SIGTERM) }, 0);
        let mut signal = 0;
        // SAFETY: as in `watch`.
        assert_eq!(unsafe { libc::sigwait(&set, &mut signal) }, 0);
        assert_eq!(signal, libc::SIGTERM);
        watch(stop).unwrap();
        assert!(wait.recv_timeout(Duration::from_millis(20)).is_err());
    }
}

//! Time: on the wall, on the CPU, and which core a thread keeps to.

use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Instant;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

static START: OnceLock<Instant> = OnceLock::new();

/// Nanoseconds since the first call, never going back.
pub fn wall_ns() -> u64 {
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// Nanoseconds this thread has spent on a CPU.
pub fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Nanoseconds all threads of a process have spent on a CPU; what has ended is not counted.
///
/// # Errors
/// The process is gone.
pub fn process_cpu_ns(pid: u32) -> io::Result<u64> {
    sum_of_threads(pid, 0)
}

/// Nanoseconds that all threads of a process together have waited for a core although they could
/// have run.
///
/// # Errors
/// The process is gone.
pub fn process_wait_ns(pid: u32) -> io::Result<u64> {
    sum_of_threads(pid, 1)
}

/// The same of the calling thread alone.
///
/// # Errors
/// There is no /proc.
pub fn thread_wait_ns() -> io::Result<u64> {
    field_of(&std::fs::read_to_string("/proc/thread-self/schedstat")?, 1)
}

fn field_of(text: &str, field: usize) -> io::Result<u64> {
    let value = text.split_whitespace().nth(field).and_then(|value| value.parse().ok());
    value.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// One field of the threads' scheduler statistics: 0 is time on a CPU, 1 time waiting for one.
fn sum_of_threads(pid: u32, field: usize) -> io::Result<u64> {
    let mut sum = 0;
    for thread in std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task"))? {
        // A thread may end between the two calls.
        let Ok(text) = std::fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        sum += field_of(&text, field)?;
    }
    Ok(sum)
}

/// Nanoseconds that a target's reactors (its threads whose names begin so) have spent on a CPU.
///
/// # Errors
/// The process is gone.
pub fn reactors_cpu_ns(pid: u32) -> io::Result<u64> {
    let mut sum = 0;
    for thread in std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task"))? {
        let thread = thread?.path();
        let name = std::fs::read_to_string(thread.join("comm")).unwrap_or_default();
        if name.starts_with("reactor") {
            sum += field_of(&std::fs::read_to_string(thread.join("schedstat"))?, 0)?;
        }
    }
    Ok(sum)
}

/// Does something on one core; afterwards the thread may be where it could be before.
///
/// # Errors
/// What sched_setaffinity(2) says.
pub fn on_core<T>(core: usize, what: impl FnOnce() -> T) -> io::Result<T> {
    let before = sched_getaffinity(None)?;
    pin(core)?;
    let outcome = what();
    sched_setaffinity(None, &before)?;
    Ok(outcome)
}

/// Keeps the calling thread, and what it starts from now on, on one core.
///
/// # Errors
/// What sched_setaffinity(2) says.
pub fn pin(core: usize) -> io::Result<()> {
    let mut cores = CpuSet::new();
    if core >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    cores.set(core);
    Ok(sched_setaffinity(None, &cores)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_go_forward() {
        let (wall, cpu) = (wall_ns(), thread_cpu_ns());
        let process = process_cpu_ns(std::process::id()).unwrap();
        while thread_cpu_ns() < cpu + 20_000_000 {
            std::hint::spin_loop();
        }
        assert!(wall_ns() >= wall + 15_000_000);
        assert!(process_cpu_ns(std::process::id()).unwrap() >= process + 10_000_000);
        assert!(thread_wait_ns().unwrap() <= process_wait_ns(std::process::id()).unwrap());
        assert!(pin(CpuSet::MAX_CPU).is_err());
        assert_eq!(reactors_cpu_ns(std::process::id()).unwrap(), 0);
        let free = sched_getaffinity(None).unwrap();
        let first = (0..CpuSet::MAX_CPU).find(|&core| free.is_set(core)).unwrap();
        assert_eq!(on_core(first, || sched_getaffinity(None).unwrap().count()).unwrap(), 1);
        assert_eq!(sched_getaffinity(None).unwrap(), free);
    }
}

//! Which cores there are for us, and keeping a thread on one of them.
#![allow(unsafe_code)]
// UNSAFETY: CPU sets exist only behind sched_setaffinity(2) and its macros.

use std::io;

const CORES_MAX: u32 = libc::CPU_SETSIZE as u32;

/// Cores that this thread may run on, ascending.
///
/// # Errors
/// What sched_getaffinity(2) says.
pub fn allowed_cores() -> io::Result<Vec<u32>> {
    // SAFETY: all zeros is a valid, empty CPU set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is writable and of the size given.
    let rc = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the index stays below CPU_SETSIZE.
    Ok((0..CORES_MAX).filter(|&core| unsafe { libc::CPU_ISSET(core as usize, &set) }).collect())
}

/// Keeps the calling thread on `core`.
///
/// # Errors
/// What sched_setaffinity(2) says; `InvalidInput` for a core beyond what a set can hold.
pub fn pin_to(core: u32) -> io::Result<()> {
    if core >= CORES_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: all zeros is a valid, empty CPU set; the index was checked; the call only reads.
    let rc = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core as usize, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_may_run_on_its_core_only() {
        std::thread::spawn(|| {
            let core = *allowed_cores().unwrap().last().unwrap();
            pin_to(core).unwrap();
            assert_eq!(allowed_cores().unwrap(), [core]);
            assert!(pin_to(CORES_MAX).is_err());
        })
        .join()
        .unwrap();
    }
}

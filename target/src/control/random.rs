//! Randomness, for identities only.
#![allow(unsafe_code)]
// UNSAFETY: getrandom(2) has no safe wrapper in std.

use lamina_bdev::Uuid;

/// A new random (version 4) UUID.
pub fn new_uuid() -> Uuid {
    let mut bytes = [0u8; 16];
    loop {
        // SAFETY: the buffer is writable and of the length given.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if got == bytes.len() as isize {
            break;
        }
        // Up to 256 bytes come whole; only a signal before the kernel's pool is ready interrupts.
        let e = std::io::Error::last_os_error();
        assert_eq!(e.kind(), std::io::ErrorKind::Interrupted, "getrandom: {e}");
    }
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Uuid(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_of_version_4_and_differ() {
        let (a, b) = (new_uuid(), new_uuid());
        assert_ne!(a, b);
        assert_eq!(a.to_string().as_bytes()[14], b'4');
        assert!(b"89ab".contains(&a.to_string().as_bytes()[19]));
    }
}

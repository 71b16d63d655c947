//! Randomness, for identities and for authentication.
#![allow(unsafe_code)]
// UNSAFETY: getrandom(2) has no safe wrapper in std.

use lamina_bdev::Uuid;

/// A new random (version 4) UUID.
pub fn new_uuid() -> Uuid {
    let mut bytes = [0u8; 16];
    fill(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Uuid(bytes)
}

/// Fills memory with random bytes, good enough for keys.
pub fn fill(bytes: &mut [u8]) {
    // Up to 256 bytes come whole; only a signal before the kernel's pool is ready interrupts.
    for part in bytes.chunks_mut(256) {
        loop {
            // SAFETY: the buffer is writable and of the length given.
            let got = unsafe { libc::getrandom(part.as_mut_ptr().cast(), part.len(), 0) };
            if got == part.len() as isize {
                break;
            }
            let e = std::io::Error::last_os_error();
            assert_eq!(e.kind(), std::io::ErrorKind::Interrupted, "getrandom: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_buffers_are_filled_to_their_end() {
        let mut bytes = [0u8; 1000];
        fill(&mut bytes);
        assert!(bytes.chunks(100).all(|part| part.iter().any(|b| *b != 0)));
    }

    #[test]
    fn uuids_are_of_version_4_and_differ() {
        let (a, b) = (new_uuid(), new_uuid());
        assert_ne!(a, b);
        assert_eq!(a.to_string().as_bytes()[14], b'4');
        assert!(b"89ab".contains(&a.to_string().as_bytes()[19]));
    }
}

//! crc32c (Castagnoli, as iSCSI and NVMe/TCP have it) of metadata blocks, of data whose records
//! carry it, and of PDUs, by the widest carry-less multiplication that the processor has.

use crc_fast::{CrcAlgorithm, Digest, crc32_iscsi};

/// crc32c of `bytes`.
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32_iscsi(bytes)
}

/// crc32c of what `crc` is of (0: of nothing) with `bytes` behind it.
#[inline]
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!crc));
    digest.update(bytes);
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, B.4, and the usual check value.
    #[test]
    fn known_sums_come_out() {
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&rising), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[]), 0);
    }

    #[test]
    fn parts_add_up_wherever_they_are_cut() {
        let bytes: Vec<u8> =
            (0..4096u32).map(|n| (n.wrapping_mul(2654435761) >> 11) as u8).collect();
        let whole = crc32c(&bytes);
        for cut in (0..=bytes.len()).step_by(31).chain([1, 15, 16, 255, 256, 4095]) {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(crc32c_append(crc32c(head), tail), whole, "cut at {cut}");
        }
    }
}

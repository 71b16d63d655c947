//! What the clients write: each sector names the write it came from and where it belongs, so a
//! read can be traced sector by sector.
//!
//! ```text
//! word 0: "LAMI" | op number     word 1: virtual sector     words 2..63: a mix of both
//! ```

/// Words in a sector.
const WORDS: usize = lamina_bdev::SECTOR_SIZE / 8;
/// From one word of the mix to the next.
const STEP: u64 = 0xD6E8_FEB8_6659_FD93;
/// Marks word 0.
const MAGIC: u64 = 0x494D_414C;

/// Number of a write in the run; 0 stands for zeros.
pub type OpId = u32;

fn word(op: OpId, sector: u64, index: usize) -> u64 {
    let base = (u64::from(op) << 40 ^ sector).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    match index {
        0 => MAGIC << 32 | u64::from(op),
        1 => sector,
        _ => base.wrapping_add((index as u64).wrapping_mul(STEP)),
    }
}

/// Fills one sector with the pattern of write `op` at virtual sector `sector`.
pub fn fill(out: &mut [u8], op: OpId, sector: u64) {
    for (index, chunk) in out.as_chunks_mut().0.iter_mut().enumerate() {
        *chunk = word(op, sector, index).to_le_bytes();
    }
}

/// True if a sector that begins with `head` is of a client.
pub fn is_data(head: [u8; 8]) -> bool {
    u64::from_le_bytes(head) >> 32 == MAGIC
}

/// Which write the bytes of one sector came from (0: zeros).
///
/// # Errors
/// A description, if they are neither zeros nor the whole pattern of one write for this sector.
pub fn identify(bytes: &[u8], sector: u64) -> Result<OpId, String> {
    let read = |index: usize| {
        let chunk = &bytes[index * 8..index * 8 + 8];
        u64::from_le_bytes(chunk.try_into().expect("eight bytes"))
    };
    let head = read(0);
    // All words at once and without a branch, here and below: the simulator's hottest loops.
    if head == 0
        && bytes.as_chunks().0.iter().fold(0, |all, word| all | u64::from_le_bytes(*word)) == 0
    {
        return Ok(0);
    }
    if head >> 32 != MAGIC {
        return Err(format!("no client wrote this: first words {head:#018x} {:#018x}", read(1)));
    }
    let op = head as OpId;
    if read(1) != sector {
        return Err(format!("this is write {op}'s data of sector {}", read(1)));
    }
    let mut differs = 0;
    let mut due = word(op, sector, 2);
    for chunk in &bytes.as_chunks().0[2..] {
        differs |= u64::from_le_bytes(*chunk) ^ due;
        due = due.wrapping_add(STEP);
    }
    if differs == 0 {
        return Ok(op);
    }
    let broken = (2..WORDS).find(|index| read(*index) != word(op, sector, *index)).unwrap_or(0);
    Err(format!("torn inside a sector: write {op} up to byte {}", broken * 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_told_apart() {
        let mut sector = [0; 512];
        assert_eq!(identify(&sector, 9), Ok(0));
        fill(&mut sector, 77, 1 << 38);
        assert_eq!(identify(&sector, 1 << 38), Ok(77));
        assert!(identify(&sector, 3).unwrap_err().contains("sector"));
        sector[300] ^= 1;
        assert!(identify(&sector, 1 << 38).unwrap_err().contains("torn"));
        assert!(identify(&[0xA7; 512], 0).is_err());
        let mut nearly_zero = [0; 512];
        nearly_zero[511] = 1;
        assert!(identify(&nearly_zero, 0).is_err());
    }
}

//! Which disks a journal block is about, in 16 bytes.
//!
//! ```text
//!  up to 7 disks:  0 │ slot+1 │ slot+1 │ ... (16 bits each)         exact
//!  more:           1 │ bit (slot mod 127) set for each              exact up to 127 slots
//! ```

/// Disks of a list.
const LISTED: u32 = 7;
/// Bits of a mask.
const MASKED: u32 = 127;
/// Set in a mask.
const IS_MASK: u128 = 1 << MASKED;

/// A set of disk slots; may say yes for some that are not in it, never no for one that is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Touched(u128);

impl Touched {
    /// Every disk.
    pub const ALL: Touched = Touched(u128::MAX);

    /// Adds a slot.
    #[inline]
    pub fn add(&mut self, slot: u32) {
        // Mostly the disk of the record before.
        let known = self.0 & IS_MASK == 0 && u64::from(self.0 as u16) == u64::from(slot) + 1;
        if !known {
            self.enter(slot);
        }
    }

    fn enter(&mut self, slot: u32) {
        if self.0 & IS_MASK != 0 {
            self.0 |= 1 << (slot % MASKED);
            return;
        }
        for at in 0..LISTED {
            let entry = self.0 >> (16 * at) & 0xffff;
            if entry == u128::from(slot) + 1 {
                return;
            }
            if entry == 0 && slot < 0xffff {
                self.0 |= (u128::from(slot) + 1) << (16 * at);
                return;
            }
        }
        let list = self.0;
        self.0 = IS_MASK | 1 << (slot % MASKED);
        for at in 0..LISTED {
            let entry = (list >> (16 * at) & 0xffff) as u32;
            if entry != 0 {
                self.0 |= 1 << ((entry - 1) % MASKED);
            }
        }
    }

    /// True if the slot may be in it.
    pub fn has(self, slot: u32) -> bool {
        if self.0 & IS_MASK != 0 {
            return self.0 >> (slot % MASKED) & 1 == 1;
        }
        (0..LISTED).any(|at| self.0 >> (16 * at) & 0xffff == u128::from(slot) + 1)
    }

    /// As it lies on disk.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }

    /// Back from there.
    pub fn from_bytes(bytes: [u8; 16]) -> Touched {
        Touched(u128::from_le_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_disks_are_listed_and_many_are_masked() {
        let mut touched = Touched::default();
        let slots = [3, 0, 65_534, 3, 700, 126, 127, 9];
        slots.iter().for_each(|&slot| touched.add(slot));
        let has = |t: Touched| (0..65_535).filter(|&s| t.has(s)).collect::<Vec<u32>>();
        assert_eq!(has(touched), [0, 3, 9, 126, 127, 700, 65_534]);
        touched.add(50);
        assert!(slots.iter().chain(&[50]).all(|&slot| touched.has(slot)));
        assert_eq!(Touched::from_bytes(touched.to_bytes()), touched);
        assert!((0..65_535).all(|slot| Touched::ALL.has(slot) && !Touched::default().has(slot)));
    }

    /// What a damaged block says may be any number.
    #[test]
    fn numbers_that_no_list_holds_are_masked() {
        for slot in [65_534, 65_535, 65_536, u32::MAX] {
            let mut touched = Touched::default();
            touched.add(slot);
            assert!(touched.has(slot), "{slot}");
            touched.add(0);
            assert!(touched.has(slot) && touched.has(0), "{slot} and 0");
        }
    }

    #[test]
    fn below_127_slots_a_mask_is_exact() {
        let mut touched = Touched::default();
        let slots: Vec<u32> = (0..127).step_by(3).collect();
        slots.iter().for_each(|&slot| touched.add(slot));
        assert_eq!((0..127).filter(|&s| touched.has(s)).collect::<Vec<u32>>(), slots);
    }
}

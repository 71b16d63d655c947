//! Reservations as they are kept with a disk: one image for each subsystem that shows it.
//!
//! ```text
//!  0        4       6
//!  | "LMRK" | ver=1 | set | set | ...
//!
//!  set  0                          16            18
//!       | SHA-256 of the NQN, cut  | image bytes | image (it names the namespace) |
//! ```
//!
//! An image is found by the names of subsystem and namespace, so a store that is moved to another
//! daemon has its reservations there too, once the subsystem is made again.

use lamina_bdev::Uuid;
use sha2::{Digest, Sha256};

use super::{IMAGE_BYTES_MAX, ImageFault};

const MAGIC: [u8; 4] = *b"LMRK";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 6;
const SET_HEADER_BYTES: usize = 18;
/// Where an image has the UUID of its namespace.
const IMAGE_UUID: std::ops::Range<usize> = 16..32;

/// All that is kept with one disk.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Kept {
    sets: Vec<Set>,
}

/// The reservations of one namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Set {
    subsystem: [u8; 16],
    image: Vec<u8>,
}

fn digest(nqn: &str) -> [u8; 16] {
    let hash = Sha256::digest(nqn.as_bytes());
    hash[..16].try_into().expect("16 of 32 bytes")
}

impl Set {
    fn is_of(&self, subsystem: [u8; 16], namespace: Uuid) -> bool {
        self.subsystem == subsystem && self.image[IMAGE_UUID] == namespace.0
    }
}

impl Kept {
    /// Reads what [`Kept::to_bytes`] made; nothing is an empty one.
    ///
    /// # Errors
    /// It is damaged, or of a later version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Kept, ImageFault> {
        let Some((header, mut rest)) = bytes.split_at_checked(HEADER_BYTES) else {
            return if bytes.is_empty() { Ok(Kept::default()) } else { Err(ImageFault::Shape) };
        };
        if header[..4] != MAGIC {
            return Err(ImageFault::Shape);
        }
        if header[4..] != VERSION.to_le_bytes() {
            return Err(ImageFault::Version);
        }
        let mut sets = Vec::new();
        while !rest.is_empty() {
            let (set, after) = rest.split_at_checked(SET_HEADER_BYTES).ok_or(ImageFault::Shape)?;
            let len = usize::from(u16::from_le_bytes([set[16], set[17]]));
            let (image, after) = after.split_at_checked(len).ok_or(ImageFault::Shape)?;
            if !(IMAGE_UUID.end..=IMAGE_BYTES_MAX).contains(&len) {
                return Err(ImageFault::Shape);
            }
            let subsystem = set[..16].try_into().expect("16 bytes");
            sets.push(Set { subsystem, image: image.to_vec() });
            rest = after;
        }
        Ok(Kept { sets })
    }

    /// The bytes to keep; none if there is nothing.
    pub fn to_bytes(&self) -> Vec<u8> {
        if self.sets.is_empty() {
            return Vec::new();
        }
        let mut out = Vec::with_capacity(self.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        for set in &self.sets {
            out.extend_from_slice(&set.subsystem);
            out.extend_from_slice(&(set.image.len() as u16).to_le_bytes());
            out.extend_from_slice(&set.image);
        }
        out
    }

    fn len(&self) -> usize {
        let sets = self.sets.iter().map(|set| SET_HEADER_BYTES + set.image.len());
        HEADER_BYTES + sets.sum::<usize>()
    }

    /// The image of a namespace of a subsystem.
    pub fn image(&self, nqn: &str, namespace: Uuid) -> Option<&[u8]> {
        let subsystem = digest(nqn);
        let found = self.sets.iter().find(|set| set.is_of(subsystem, namespace));
        found.map(|set| set.image.as_slice())
    }

    /// Replaces it; `None` forgets it.
    pub fn set_image(&mut self, nqn: &str, namespace: Uuid, image: Option<Vec<u8>>) {
        let subsystem = digest(nqn);
        self.sets.retain(|set| !set.is_of(subsystem, namespace));
        if let Some(image) = image {
            assert!((IMAGE_UUID.end..=IMAGE_BYTES_MAX).contains(&image.len()), "an image");
            assert_eq!(image[IMAGE_UUID], namespace.0, "the image of this namespace");
            self.sets.push(Set { subsystem, image });
        }
    }

    /// Gives up sets of subsystems that are not among `known`, the oldest first, until all fits
    /// `bytes_max`. How many; whether it fits then is for the caller to see.
    pub fn shrink(&mut self, bytes_max: usize, known: &[String]) -> usize {
        let known: Vec<[u8; 16]> = known.iter().map(|nqn| digest(nqn)).collect();
        let before = self.sets.len();
        while self.len() > bytes_max {
            let stranger = |set: &Set| !known.contains(&set.subsystem);
            let Some(at) = self.sets.iter().position(stranger) else { break };
            self.sets.remove(at);
        }
        before - self.sets.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reservation::{Register, RegisterAction, Reservations};

    fn reservations(hosts: u8) -> Reservations {
        let mut made = Reservations::default();
        for host in 1..=hosts {
            let what = Register {
                action: RegisterAction::Register,
                ignore_key: false,
                persist: Some(true),
                current: 0,
                new: u64::from(host),
            };
            assert!(made.register([host; 16], what).is_ok());
        }
        made
    }

    #[test]
    fn each_namespace_of_each_subsystem_has_its_own() {
        let (one, other) = (Uuid([1; 16]), Uuid([2; 16]));
        let mut kept = Kept::default();
        assert_eq!(Kept::from_bytes(&kept.to_bytes()), Ok(Kept::default()));
        for (nqn, uuid, hosts) in [("a", one, 1), ("b", one, 2), ("a", other, 3)] {
            kept.set_image(nqn, uuid, Some(reservations(hosts).to_bytes(uuid)));
        }
        kept.set_image("b", one, Some(reservations(4).to_bytes(one)));
        let again = Kept::from_bytes(&kept.to_bytes()).unwrap();
        assert_eq!(again, kept);
        for (nqn, uuid, hosts) in [("a", one, 1), ("b", one, 4), ("a", other, 3)] {
            let image = again.image(nqn, uuid).unwrap();
            assert_eq!(Reservations::from_bytes(image, uuid), Ok(reservations(hosts)));
        }
        assert_eq!(again.image("c", one), None);
        kept.set_image("a", one, None);
        assert_eq!((kept.image("a", one), kept.image("b", one).is_some()), (None, true));
    }

    #[test]
    fn a_full_set_fits_a_disk_and_forgotten_subsystems_make_room() {
        let (max, uuid) = (lamina_bdev::limits::CLAIMS_LEN_MAX, Uuid([9; 16]));
        let full = reservations(64).to_bytes(uuid);
        let mut kept = Kept::default();
        kept.set_image("old", uuid, Some(reservations(10).to_bytes(uuid)));
        kept.set_image("new", uuid, Some(full.clone()));
        assert!(kept.to_bytes().len() > max);
        assert_eq!(kept.clone().shrink(max, &["old".into(), "new".into()]), 0);
        assert_eq!(kept.shrink(max, &["new".into()]), 1);
        assert!(kept.to_bytes().len() <= max);
        assert_eq!((kept.image("new", uuid), kept.image("old", uuid)), (Some(&full[..]), None));
    }

    #[test]
    fn damage_is_an_error_wherever_it_is_cut() {
        let uuid = Uuid([9; 16]);
        let mut kept = Kept::default();
        kept.set_image("a", uuid, Some(reservations(2).to_bytes(uuid)));
        let bytes = kept.to_bytes();
        for cut in (1..bytes.len()).filter(|cut| *cut != HEADER_BYTES) {
            assert_eq!(Kept::from_bytes(&bytes[..cut]), Err(ImageFault::Shape), "cut at {cut}");
        }
        let mut later = bytes.clone();
        later[4] = 2;
        assert_eq!(Kept::from_bytes(&later), Err(ImageFault::Version));
    }
}

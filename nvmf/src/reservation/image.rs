//! Reservations as bytes that outlive the daemon. Read back with suspicion: the bytes may be
//! damaged, of another namespace, or made to harm.
//!
//! ```text
//!  0        4       6     7      8        10       12          16               32
//!  | "LMRS" | ver=1 | PTPL| type | count  | holder | generation | namespace UUID | hosts | crc
//!                                           ffff: none                             24 bytes each
//! ```

use lamina_bdev::Uuid;

use super::{Held, Kind, REGISTRANTS_MAX, Registrant, Reservations};

const MAGIC: [u8; 4] = *b"LMRS";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 32;
const REGISTRANT_BYTES: usize = 24;
const NO_HOLDER: u16 = 0xffff;
/// Longest image, bytes.
pub const IMAGE_BYTES_MAX: usize = HEADER_BYTES + REGISTRANTS_MAX * REGISTRANT_BYTES + 4;

/// Why an image was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImageFault {
    /// Not as long as it says, or not begun as it must.
    Shape,
    /// Made by a version this one does not know.
    Version,
    /// The checksum does not match.
    Checksum,
    /// It belongs to another namespace.
    Foreign,
    /// Its parts contradict each other.
    Content,
}

impl std::fmt::Display for ImageFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ImageFault::Shape => "the saved reservations are cut short or no reservations at all",
            ImageFault::Version => "the saved reservations are of a version unknown here",
            ImageFault::Checksum => "the saved reservations fail their checksum",
            ImageFault::Foreign => "the saved reservations belong to another namespace",
            ImageFault::Content => "the saved reservations contradict themselves",
        })
    }
}

impl Reservations {
    /// The bytes to keep for the namespace with this UUID.
    pub fn to_bytes(&self, namespace: Uuid) -> Vec<u8> {
        let mut out = Vec::with_capacity(IMAGE_BYTES_MAX);
        let holder = self.held.and_then(|h| h.holder);
        let position = |host| self.registrants.iter().position(|r| r.host == host);
        let holder = holder.and_then(position).map_or(NO_HOLDER, |at| at as u16);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.push(u8::from(self.persist));
        out.push(self.held.map_or(0, |h| h.kind as u8));
        out.extend_from_slice(&(self.registrants.len() as u16).to_le_bytes());
        out.extend_from_slice(&holder.to_le_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&namespace.0);
        for registrant in &self.registrants {
            out.extend_from_slice(&registrant.host);
            out.extend_from_slice(&registrant.key.to_le_bytes());
        }
        let crc = lamina_bdev::crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads what [`Reservations::to_bytes`] made for the same namespace.
    pub fn from_bytes(bytes: &[u8], namespace: Uuid) -> Result<Reservations, ImageFault> {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        if bytes.len() < HEADER_BYTES + 4 || bytes[..4] != MAGIC {
            return Err(ImageFault::Shape);
        }
        if word(4) != VERSION {
            return Err(ImageFault::Version);
        }
        let count = usize::from(word(8));
        let end = HEADER_BYTES + count * REGISTRANT_BYTES;
        if count > REGISTRANTS_MAX || bytes.len() != end + 4 {
            return Err(ImageFault::Shape);
        }
        if lamina_bdev::crc32c::crc32c(&bytes[..end]).to_le_bytes() != bytes[end..] {
            return Err(ImageFault::Checksum);
        }
        if bytes[16..32] != namespace.0 {
            return Err(ImageFault::Foreign);
        }
        let mut registrants = Vec::with_capacity(count);
        for entry in bytes[HEADER_BYTES..end].chunks_exact(REGISTRANT_BYTES) {
            let host: super::HostId = entry[..16].try_into().expect("16 bytes");
            let key = u64::from_le_bytes(entry[16..].try_into().expect("8 bytes"));
            let twice = registrants.iter().any(|r: &Registrant| r.host == host);
            if twice || host == [0; 16] || key == 0 {
                return Err(ImageFault::Content);
            }
            registrants.push(Registrant { host, key });
        }
        let held = held(bytes[7], word(10), &registrants)?;
        let persist = match bytes[6] {
            0 => false,
            1 => true,
            _ => return Err(ImageFault::Content),
        };
        let generation = u32::from_le_bytes(bytes[12..16].try_into().expect("4 bytes"));
        Ok(Reservations { registrants, held, generation, persist })
    }
}

/// A type needs its holder, and only a type that has one.
fn held(code: u8, holder: u16, registrants: &[Registrant]) -> Result<Option<Held>, ImageFault> {
    let holder = match holder {
        NO_HOLDER => None,
        at => Some(registrants.get(usize::from(at)).ok_or(ImageFault::Content)?.host),
    };
    if code == 0 {
        return if holder.is_none() { Ok(None) } else { Err(ImageFault::Content) };
    }
    let kind = Kind::from_code(code).ok_or(ImageFault::Content)?;
    if kind.all_registrants() != holder.is_none() || registrants.is_empty() {
        return Err(ImageFault::Content);
    }
    Ok(Some(Held { kind, holder }))
}

//! The Diffie-Hellman groups: ffdhe2048 to ffdhe8192 of RFC 7919, or none.
//!
//! A prime is made by the formula that defines it, not copied from a table:
//! `p = 2^b - 2^(b-64) + (floor(2^(b-130) e) + X) 2^64 - 1`, generator 2. Exponents are as short as
//! RFC 7919 (5.2) allows. Arithmetic with secrets is crypto-bigint's, in constant time.

use std::sync::OnceLock;

use crypto_bigint::modular::{BoxedMontyForm, BoxedMontyParams};
use crypto_bigint::{BoxedUint, Limb, NonZero, Odd};

/// Bits with which e is computed beyond those that are kept.
const GUARD_BITS: u32 = 64;

/// A group, by its identifier in messages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Group {
    /// No key exchange: the challenge alone.
    Null = 0,
    /// ffdhe2048.
    Ffdhe2048 = 1,
    /// ffdhe3072.
    Ffdhe3072 = 2,
    /// ffdhe4096.
    Ffdhe4096 = 3,
    /// ffdhe6144.
    Ffdhe6144 = 4,
    /// ffdhe8192.
    Ffdhe8192 = 5,
}

/// An exponent, not yet used.
pub(super) struct Exponent(Group, Vec<u8>);

/// One side's exponent and what it sends.
pub(super) struct KeyPair {
    params: &'static BoxedMontyParams,
    exponent: BoxedUint,
    /// g^x, big-endian, as long as the prime.
    pub(super) public: Vec<u8>,
}

impl Group {
    /// All of them.
    pub const ALL: [Group; 6] = [
        Group::Null,
        Group::Ffdhe2048,
        Group::Ffdhe3072,
        Group::Ffdhe4096,
        Group::Ffdhe6144,
        Group::Ffdhe8192,
    ];

    /// By its identifier.
    pub fn from_id(id: u8) -> Option<Group> {
        Group::ALL.into_iter().find(|group| *group as u8 == id)
    }

    /// By the name that SPDK's RPCs use.
    pub fn from_name(name: &str) -> Option<Group> {
        Group::ALL.into_iter().find(|group| group.name() == name)
    }

    /// The name that SPDK's RPCs use.
    pub fn name(self) -> &'static str {
        match self {
            Group::Null => "null",
            Group::Ffdhe2048 => "ffdhe2048",
            Group::Ffdhe3072 => "ffdhe3072",
            Group::Ffdhe4096 => "ffdhe4096",
            Group::Ffdhe6144 => "ffdhe6144",
            Group::Ffdhe8192 => "ffdhe8192",
        }
    }

    /// Bits of the prime, what is added to e, and bits of an exponent.
    fn definition(self) -> (u32, u64, u32) {
        match self {
            Group::Null => (0, 0, 0),
            Group::Ffdhe2048 => (2048, 560_316, 225),
            Group::Ffdhe3072 => (3072, 2_625_351, 275),
            Group::Ffdhe4096 => (4096, 5_736_041, 325),
            Group::Ffdhe6144 => (6144, 15_705_020, 375),
            Group::Ffdhe8192 => (8192, 10_965_728, 400),
        }
    }

    /// Bytes of a public value; 0 without a group.
    pub fn bytes(self) -> usize {
        self.definition().0 as usize / 8
    }

    /// The prime.
    pub(super) fn prime(self) -> BoxedUint {
        let (bits, add, _) = self.definition();
        assert!(bits > 0, "a group without key exchange has no prime");
        let precision = bits + 2 * GUARD_BITS;
        let power = |exponent: u32| BoxedUint::one_with_precision(precision).shl(exponent);
        // e = 1/0! + 1/1! + 1/2! + ..., scaled.
        let mut term = power(bits - 130 + GUARD_BITS);
        let mut e = term.clone();
        let mut k = 1u64;
        while !bool::from(term.is_zero()) {
            let divisor = NonZero::new(Limb::from(k)).expect("counts from one");
            term = term.div_rem_limb(divisor).0;
            e = e.wrapping_add(&term);
            k += 1;
        }
        let middle = e.shr(GUARD_BITS).wrapping_add(BoxedUint::from(add)).shl(64);
        let prime = power(bits)
            .wrapping_sub(power(bits - 64))
            .wrapping_add(&middle)
            .wrapping_sub(BoxedUint::one());
        BoxedUint::from_be_slice(
            &prime.to_be_bytes()[precision as usize / 8 - self.bytes()..],
            bits,
        )
        .expect("just as many bytes")
    }

    /// What arithmetic in the group needs, made once.
    fn params(self) -> &'static BoxedMontyParams {
        static PARAMS: [OnceLock<BoxedMontyParams>; Group::ALL.len()] =
            [const { OnceLock::new() }; Group::ALL.len()];
        PARAMS[self as usize].get_or_init(|| {
            let prime = Odd::new(self.prime()).into_option().expect("the primes are odd");
            BoxedMontyParams::new(prime)
        })
    }

    /// A fresh exponent; `None` without a group.
    pub(super) fn exponent(self, random: super::Random<'_>) -> Option<Exponent> {
        let (bits, _, exponent_bits) = self.definition();
        if bits == 0 {
            return None;
        }
        let mut secret = vec![0; exponent_bits.div_ceil(8) as usize];
        random(&mut secret);
        // The highest bit is set so that no exponent is a small one.
        let spare = secret.len() as u32 * 8 - exponent_bits;
        secret[0] = (secret[0] & (0xff >> spare)) | 0x80 >> spare;
        Some(Exponent(self, secret))
    }

    /// A fresh exponent and its public value; `None` without a group.
    pub(super) fn key_pair(self, random: super::Random<'_>) -> Option<KeyPair> {
        self.exponent(random).map(Exponent::key_pair)
    }
}

impl Exponent {
    /// Its public value: milliseconds of computing.
    pub(super) fn key_pair(self) -> KeyPair {
        let Exponent(group, secret) = self;
        let (bits, _, exponent_bits) = group.definition();
        let params = group.params();
        let exponent =
            BoxedUint::from_be_slice(&secret, secret.len() as u32 * 8).expect("its own length");
        let two = BoxedUint::from_be_slice(&[2], bits).expect("fits");
        let public =
            BoxedMontyForm::new(two, params).pow_bounded_exp(&exponent, exponent_bits).retrieve();
        KeyPair { params, exponent, public: public.to_be_bytes().to_vec() }
    }
}

impl KeyPair {
    /// The shared secret, as long as the prime; `None` if the other side's value is out of range
    /// (0, 1, p - 1 or more), which would give the secret away.
    pub(super) fn agree(&self, other: &[u8]) -> Option<Vec<u8>> {
        let bits = self.public.len() as u32 * 8;
        if other.len() != self.public.len() {
            return None;
        }
        let other = BoxedUint::from_be_slice(other, bits).ok()?;
        let one = BoxedUint::from_be_slice(&[1], bits).expect("fits");
        let last = self.params.modulus().as_ref().wrapping_sub(&one);
        if other <= one || other >= last {
            return None;
        }
        let exponent_bits = self.exponent.bits_precision();
        let shared = BoxedMontyForm::new(other, self.params)
            .pow_bounded_exp(&self.exponent, exponent_bits)
            .retrieve();
        Some(shared.to_be_bytes().to_vec())
    }
}

//! Sizes as people write and read them. A unit is a power of 1024, as disks and memory have them.

use std::str::FromStr;

/// Bytes, read from text such as `512M`, `1.5G`, `10GiB` or `4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// The units, each 1024 times the one before.
const UNITS: [&str; 6] = ["K", "M", "G", "T", "P", "E"];

/// Most digits after the point.
const DECIMALS_MAX: usize = 9;

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let bad = |why: &str| format!("{why}; write bytes (4096) or a unit: 512M, 1.5G, 10T");
        let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits_end);
        let factor = factor(unit).ok_or_else(|| bad("unknown unit"))?;
        let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
        if decimals.is_empty() || decimals.len() > DECIMALS_MAX || decimals.contains('.') {
            return Err(bad("not a number"));
        }
        let whole: u64 = match whole.parse() {
            Ok(whole) => whole,
            Err(_) if whole.is_empty() => return Err(bad("not a number")),
            Err(_) => return Err(bad("too large")),
        };
        let decimals_value: u64 = decimals.parse().map_err(|_| bad("not a number"))?;
        // In 128 bits: at most 2^64 times 10^9 times 2^60 would not fit, but whole * factor is
        // bounded first.
        let whole = whole.checked_mul(factor).ok_or_else(|| bad("too large"))?;
        let scale = 10u128.pow(decimals.len() as u32);
        let part = u128::from(decimals_value) * u128::from(factor);
        if !part.is_multiple_of(scale) {
            return Err(bad("not a whole number of bytes"));
        }
        // Less than the factor, so it fits.
        let part = (part / scale) as u64;
        whole.checked_add(part).map(Size).ok_or_else(|| bad("too large"))
    }
}

/// What a unit multiplies by: `K`, `k`, `KiB` and so on; nothing or `B` is 1.
fn factor(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_uppercase();
    if unit.is_empty() || unit == "B" {
        return Some(1);
    }
    let letter = unit.strip_suffix("IB").unwrap_or(&unit);
    let index = UNITS.iter().position(|known| *known == letter)?;
    Some(1 << (10 * (index + 1)))
}

/// Bytes for a person: three digits or so and a unit, such as `1.5 GiB`.
pub fn human(bytes: u64) -> String {
    let mut factor = 1u64;
    let mut unit = "B";
    for (index, letter) in UNITS.iter().enumerate() {
        let next = 1u64 << (10 * (index + 1));
        if bytes < next {
            break;
        }
        factor = next;
        unit = letter;
    }
    if factor == 1 {
        return format!("{bytes} B");
    }
    let tenths = (u128::from(bytes) * 10 + u128::from(factor) / 2) / u128::from(factor);
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole} {unit}iB"),
        (whole, tenth) => format!("{whole}.{tenth} {unit}iB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("1k", 1 << 10),
            ("512M", 512 << 20),
            ("10G", 10 << 30),
            ("10GiB", 10 << 30),
            ("10gib", 10 << 30),
            ("1.5G", 3 << 29),
            ("0.25T", 1 << 38),
            ("256T", 256 << 40),
            ("15E", 15 << 60),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_how_to_write_one() {
        for text in [
            "",
            "G",
            "-1G",
            "10X",
            "10GB",
            "1.5",
            "1.",
            ".5G",
            "1.2.3G",
            "1 G",
            "0x10",
            "16E",
            "18446744073709551616",
            "1e9",
            "1.0000000001G",
            "ten",
            "10G ",
            "1iB",
        ] {
            let error = text.parse::<Size>().unwrap_err();
            assert!(error.contains("512M"), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_are_written() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (10 << 30, "10 GiB"),
            ((10 << 30) + 1, "10 GiB"),
            (3 << 29, "1.5 GiB"),
            (256 << 40, "256 TiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}

//! The running hash over everything that happens, and the event log of `--log`.

use std::io::Write;

use super::rng::mix;

/// What a run did, as one number and, if asked for, as lines.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    lines: bool,
    /// The shard that it is of, if several are traced.
    shard: Option<u32>,
}

impl Trace {
    /// A fresh hash; `lines` prints each event as well.
    pub fn new(lines: bool) -> Trace {
        Trace { hash: 0x1A31, lines, shard: None }
    }

    /// A fresh hash for one shard of several.
    pub fn named(&self, shard: u32) -> Trace {
        Trace { shard: Some(shard), ..Trace::new(self.lines) }
    }

    /// The hash so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Takes one event into the hash.
    pub fn note(&mut self, kind: &str, facts: [u64; 3]) {
        let name = kind.bytes().fold(0u64, |sum, byte| sum << 7 ^ sum >> 57 ^ u64::from(byte));
        for fact in [name, facts[0], facts[1], facts[2]] {
            self.hash = mix(self.hash ^ fact);
        }
    }

    /// Prints a line, if lines were asked for.
    pub fn line(&self, now_ns: u64, text: impl FnOnce() -> String) {
        if self.lines {
            let (us, ns) = (now_ns / 1000, now_ns % 1000);
            // A reader that has seen enough and closed the pipe is no reason to stop.
            let shard = self.shard.map(|shard| format!("shard {shard}: ")).unwrap_or_default();
            let _ = writeln!(std::io::stdout(), "{us:>12}.{ns:03} us  {shard}{}", text());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_content_change_the_hash() {
        let run = |events: &[(&str, u64)]| {
            let mut trace = Trace::new(false);
            events.iter().for_each(|(kind, fact)| trace.note(kind, [*fact, 0, 0]));
            trace.hash()
        };
        assert_eq!(run(&[("a", 1), ("b", 2)]), run(&[("a", 1), ("b", 2)]));
        assert_ne!(run(&[("a", 1), ("b", 2)]), run(&[("b", 2), ("a", 1)]));
        assert_ne!(run(&[("a", 1)]), run(&[("a", 2)]));
    }
}

//! Writes little-endian fields at the offsets the specification gives.

/// A data structure being filled in; zeros where nothing is written.
pub(super) struct Page(Vec<u8>);

impl Page {
    /// `len` zeros.
    pub fn new(len: usize) -> Page {
        Page(vec![0; len])
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn u8(&mut self, at: usize, value: u8) {
        self.0[at] = value;
    }

    pub fn u16(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    pub fn u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    pub fn u64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    pub fn u128(&mut self, at: usize, value: u128) {
        self.put(at, &value.to_le_bytes());
    }

    /// ASCII, padded with spaces to `len`.
    pub fn text(&mut self, at: usize, len: usize, text: &str) {
        self.0[at..at + len].fill(b' ');
        let used = text.len().min(len);
        self.put(at, &text.as_bytes()[..used]);
    }

    pub fn done(self) -> Vec<u8> {
        self.0
    }
}

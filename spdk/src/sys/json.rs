//! SPDK's JSON writers.
#![allow(unsafe_code)]
// UNSAFETY: a writer is SPDK's, known by pointer.

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;

use serde_json::Value;

use crate::ffi;

/// A place in a JSON text that SPDK writes.
pub struct JsonWriter<'a> {
    raw: NonNull<ffi::spdk_json_write_ctx>,
    lent: PhantomData<&'a mut ()>,
}

impl JsonWriter<'_> {
    /// # Safety
    /// `raw` is a writer that may be written to for as long as this lives.
    pub(super) unsafe fn new<'a>(raw: *mut ffi::spdk_json_write_ctx) -> Option<JsonWriter<'a>> {
        NonNull::new(raw).map(|raw| JsonWriter { raw, lent: PhantomData })
    }

    /// Writes a value where one is due.
    pub fn value(&mut self, value: &Value) {
        let text = value.to_string();
        // SAFETY: a writer, and text of that length; SPDK copies it.
        unsafe {
            ffi::spdk_json_write_val_raw(self.raw.as_ptr(), text.as_ptr().cast(), text.len())
        };
    }

    /// Writes a member of the object that is open.
    pub fn member(&mut self, name: &str, value: &Value) {
        let len = name.len();
        // SAFETY: as in `value`.
        unsafe { ffi::spdk_json_write_name_raw(self.raw.as_ptr(), name.as_ptr().cast(), len) };
        self.value(value);
    }
}

/// A value that SPDK has decoded, as text. `None`: no memory.
///
/// # Safety
/// `value` is null or a whole value of SPDK's.
pub(super) unsafe fn text_of(value: *const ffi::spdk_json_val) -> Option<String> {
    if value.is_null() {
        return Some("{}".into());
    }
    let mut text: Vec<u8> = Vec::new();
    // SAFETY: `take` gets `text`, which outlives the writer; the value is whole by contract.
    unsafe {
        let writer = ffi::spdk_json_write_begin(Some(take), (&raw mut text).cast(), 0);
        if writer.is_null() {
            return None;
        }
        let wrote = ffi::spdk_json_write_val(writer, value);
        if ffi::spdk_json_write_end(writer) != 0 || wrote != 0 {
            return None;
        }
    }
    String::from_utf8(text).ok()
}

unsafe extern "C" fn take(text: *mut c_void, data: *const c_void, size: usize) -> c_int {
    // SAFETY: the vector that `text_of` gave, and bytes of SPDK's.
    unsafe {
        let bytes = std::slice::from_raw_parts(data.cast::<u8>(), size);
        (*text.cast::<Vec<u8>>()).extend_from_slice(bytes);
    }
    0
}

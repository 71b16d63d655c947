//! Methods of SPDK's JSON-RPC server.
#![allow(unsafe_code)]
// UNSAFETY: requests and parameters are SPDK's, known by pointer.

use std::ffi::CString;
use std::ptr::NonNull;

use lamina_rpc::RpcError;
use serde_json::Value;

use super::json::{JsonWriter, text_of};
use crate::ffi;

/// Methods that can be registered.
pub const METHODS_MAX: usize = 48;

/// A request that waits for its answer. Dropped on the thread that it came on, the application's,
/// it is answered with an error; elsewhere, with SPDK ending, nobody is left to answer it.
pub struct Request(NonNull<ffi::spdk_jsonrpc_request>);

// SAFETY: only carried by other threads; answering asserts the right one.
unsafe impl Send for Request {}

impl Request {
    /// Answers it.
    ///
    /// # Panics
    /// Anywhere but on the application's thread.
    pub fn answer(self, answer: Result<Value, RpcError>) {
        assert!(super::thread::Thread::app().is_some_and(|app| app.is_current()));
        let raw = self.0.as_ptr();
        std::mem::forget(self);
        // SAFETY: a request is answered once: `self` is gone.
        unsafe {
            match answer {
                Ok(value) => {
                    let result = ffi::spdk_jsonrpc_begin_result(raw);
                    if let Some(mut writer) = JsonWriter::new(result) {
                        writer.value(&value);
                    }
                    ffi::spdk_jsonrpc_end_result(raw, result);
                }
                Err(error) => {
                    let text = CString::new(error.message.replace('\0', "")).unwrap_or_default();
                    ffi::spdk_jsonrpc_send_error_response(raw, error.code, text.as_ptr());
                }
            }
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if super::thread::Thread::app().is_some_and(|app| app.is_current()) {
            Request(self.0).answer(Err(RpcError::internal("the call was given up")));
        }
    }
}

unsafe extern "C" fn called<const INDEX: usize>(
    request: *mut ffi::spdk_jsonrpc_request,
    params: *const ffi::spdk_json_val,
) {
    // SAFETY: SPDK gives a request to be answered, and whole parameters or none.
    let (request, params) = unsafe { (NonNull::new(request), text_of(params)) };
    let request = Request(request.expect("SPDK gives a request"));
    match params {
        Some(params) => crate::rpc::call(INDEX, params, request),
        None => request.answer(Err(RpcError::internal("no memory for the parameters"))),
    }
}

type Called = unsafe extern "C" fn(*mut ffi::spdk_jsonrpc_request, *const ffi::spdk_json_val);

/// SPDK tells a method nothing of its own name, so each place has a function of its own.
macro_rules! places {
    ($($index:literal)*) => { [$(called::<$index>),*] };
}

const PLACES: [Called; METHODS_MAX] = places!(
    0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23
    24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47
);

/// Registers a method: a call of it is a call of `crate::rpc::call(index, ...)`.
///
/// # Panics
/// If there are more methods than places.
pub(super) fn register(name: &str, index: usize) {
    let name = CString::new(name).expect("names of methods have no zeros");
    // SAFETY: SPDK copies the name.
    unsafe {
        ffi::spdk_rpc_register_method(name.as_ptr(), Some(PLACES[index]), ffi::SPDK_RPC_RUNTIME);
    }
}

//! The program around SPDK, and what happens when this library is loaded.
#![allow(unsafe_code)]
// UNSAFETY: `main` of a C framework, and a function that the loader runs.

use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::OnceLock;

use crate::ffi;

/// Run by the loader before `main`: SPDK wants to know its modules and methods before it starts.
#[used]
// SAFETY: an array of functions without arguments is what the section holds.
#[unsafe(link_section = ".init_array")]
static LOADED: extern "C" fn() = loaded;

extern "C" fn loaded() {
    super::disk::register_module();
    for (index, name) in crate::rpc::names().iter().enumerate() {
        super::rpc::register(name, index);
    }
}

/// File that is to hold the process's number.
static PID_FILE: OnceLock<String> = OnceLock::new();

/// Runs `spdk_tgt` with the module in it, to its end. Returns the exit code.
pub fn run_target(args: &[String]) -> i32 {
    // So that a static link keeps it.
    std::hint::black_box(&LOADED);
    let args: Vec<CString> = args.iter().filter_map(|a| CString::new(a.as_str()).ok()).collect();
    let mut argv: Vec<*mut c_char> = args.iter().map(|a| a.as_ptr().cast_mut()).collect();
    argv.push(std::ptr::null_mut());
    // SAFETY: options are plain data that SPDK fills in; arguments outlive the run.
    unsafe {
        let mut opts: ffi::spdk_app_opts = std::mem::zeroed();
        ffi::spdk_app_opts_init(&mut opts, size_of::<ffi::spdk_app_opts>());
        opts.name = c"lamina_spdk_tgt".as_ptr();
        let parsed = ffi::spdk_app_parse_args(
            args.len() as c_int,
            argv.as_mut_ptr(),
            &mut opts,
            c"f:S:".as_ptr(),
            std::ptr::null(),
            Some(argument),
            Some(usage),
        );
        if parsed != ffi::SPDK_APP_PARSE_ARGS_SUCCESS {
            return c_int::from(parsed != ffi::SPDK_APP_PARSE_ARGS_HELP);
        }
        let rc = ffi::spdk_app_start(&mut opts, Some(started), std::ptr::null_mut());
        ffi::spdk_app_fini();
        rc
    }
}

unsafe extern "C" fn argument(option: c_int, value: *mut c_char) -> c_int {
    // SAFETY: SPDK gives text with each option that takes a value.
    unsafe {
        match u8::try_from(option) {
            Ok(b'f') => {
                let _ = PID_FILE.set(super::thread::text(value));
                0
            }
            Ok(b'S') => ffi::spdk_vhost_set_socket_path(value),
            _ => -libc::EINVAL,
        }
    }
}

unsafe extern "C" fn usage() {
    println!(" -f <file>                 pidfile save pid to file under given path");
    println!(" -S <path>                 directory where to create vhost sockets (default: pwd)");
}

unsafe extern "C" fn started(_: *mut c_void) {
    if let Some(path) = PID_FILE.get()
        && let Err(e) = std::fs::write(path, format!("{}\n", std::process::id()))
    {
        lamina_target::log::error(format!("{path} cannot be written: {e}"));
    }
}

//! SPDK's own declarations, made by `bindgen` when this crate is built; used by `sys` alone.
#![allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unsafe_code,
    unsafe_op_in_unsafe_fn,
    dead_code,
    unnecessary_transmutes,
    unused_imports,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    reason = "not written by hand"
)]
// UNSAFETY: foreign functions and bit fields as bindgen writes them.

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));

#![doc = include_str!("../README.md")]

mod base;
mod control;
mod device;
mod disk;
mod drive;
mod ffi;
mod host;
mod module;
mod rpc;
mod sys;

pub use sys::app::run_target;

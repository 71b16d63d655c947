//! The engine inside SPDK: `lamina_spdk_tgt`, and SPDK's own programs with the module in them.
//! Where they are not built, each test says its name and that it is skipped.

mod app;
mod guest;
mod hosts;
mod measure;
mod module;

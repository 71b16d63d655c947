#![doc = include_str!("../README.md")]

mod attach;
mod background;
pub mod base_io;
#[cfg(feature = "canaries")]
pub mod canary;
#[cfg(not(feature = "canaries"))]
mod canary;
pub mod check;
mod commands;
pub mod control;
pub mod crc32c;
mod disk;
mod engine;
pub mod error;
mod format;
mod journal_scan;
pub mod limits;
mod listing;
mod map;
mod notes;
mod page;
mod pipeline;
mod recover;
mod replay;
mod replays;
pub mod request;
mod ring;
mod slots;
mod space;
mod stats;
pub mod status;
pub mod types;

pub use base_io::{BaseIo, BaseOp, BaseTraits};
pub use control::*;
pub use disk::Traffic;
pub use disk::at_once::AtOnce;
pub use disk::straight::Straight;
pub use engine::{Config, Engine, EngineState, Event};
pub use error::{Error, ErrorKind};
pub use format::FORMAT_VERSION;
pub use format::label::{
    FormatParams, FormatWrite, LABEL_BYTES, StoreLabel, fixed_areas, format_plan, read_label,
};
pub use request::{Done, Op, Request, Seg};
pub use stats::Stats;
pub use status::{BaseError, Status};
pub use types::*;

//! Simulator and end-to-end tests

pub mod guest;
pub mod sim;

//! Simulator and end-to-end tests

pub mod client;
pub mod contend;
pub mod disk;
pub mod fuzz;
pub mod guest;
pub mod load;
pub mod nvme;
pub mod powercut;
pub mod register;
pub mod replays;
pub mod sim;
pub mod tagged;

/// A number out of an environment variable, or `default`.
///
/// # Panics
/// If the variable is no number.
#[must_use]
pub fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: a number")))
}

//! Not yet.
/// Not yet.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {}
/// Not yet.
///
/// # Errors
/// Always.
pub fn main(_: &Options) -> anyhow::Result<bool> { anyhow::bail!("not yet") }

//! lamina_spdk_tgt: SPDK's target application, `spdk_tgt`, with the Lamina module in it.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match lamina_spdk::run_target(&args) {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

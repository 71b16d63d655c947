//! `lamina check`: an open store by the daemon, while it is served; a store that is not open by
//! `lamina-check`, which needs no daemon.
//!
//! ```text
//!  lamina check pool              lamina_check, then lamina_check_status until it is done
//!  lamina check /srv/pool.lamina  becomes lamina-check /srv/pool.lamina
//! ```

use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use clap::{Args, ValueHint};
use indicatif::{ProgressBar, ProgressStyle};
use lamina_rpc::methods::{CheckStatus, LaminaCheck, LaminaCheckStatus};

use crate::answer::{Answer, write_out};
use crate::failure::Failure;
use crate::session::{SEE_STORES, Session};

/// Something was found.
const EXIT_FOUND: u8 = 1;
/// It could not check.
const EXIT_UNCHECKED: u8 = 2;
/// Time between two questions how far it is.
const ASK_TIME: Duration = Duration::from_millis(200);
/// The checker of stores that are not open.
const CHECKER: &str = "lamina-check";

#[derive(Args)]
#[command(after_help = "\
Examples:
  lamina check pool                          (an open store, while it is served)
  lamina check /srv/pool.lamina              (a store that is not open)
  lamina check /srv/pool.lamina --repair     (frees leaks, rebuilds bitmaps)

Exit codes: 0 clean, 1 something was found, 2 it could not check.")]
pub struct Arguments {
    /// Name or UUID of an open store; or the path (with a '/') of one that is not open
    #[arg(value_hint = ValueHint::FilePath)]
    store: Option<String>,
    /// Repair what can be repaired without loss; only a store that is not open
    #[arg(long)]
    repair: bool,
    /// With --repair: give up disks and parts of disks that cannot be read, and free the rest of
    /// what they held
    #[arg(long, requires = "repair")]
    cut_off: bool,
}

pub fn run(session: &mut Session, arguments: &Arguments) -> Result<Answer, Failure> {
    match &arguments.store {
        Some(path) if path.contains('/') => Err(become_checker(path, arguments, session.json)),
        _ if arguments.repair => Err(Failure::other(
            "an open store cannot be repaired: close it (lamina store close), then give its path",
        )
        .exiting(EXIT_UNCHECKED)),
        name => check_open(session, name.clone()).map_err(|failure| failure.hint(SEE_STORES)),
    }
}

/// Only comes back if there is no such program.
fn become_checker(path: &str, arguments: &Arguments, json: bool) -> Failure {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name(CHECKER));
    let program = beside.filter(|path| path.exists()).unwrap_or_else(|| CHECKER.into());
    let mut command = Command::new(&program);
    for (given, flag) in
        [(json, "--json"), (arguments.repair, "--repair"), (arguments.cut_off, "--cut-off")]
    {
        if given {
            command.arg(flag);
        }
    }
    let error = command.arg("--").arg(path).exec();
    Failure::other(format!("{} cannot be run: {error}", program.display()))
        .hint("install it beside lamina and laminad; it comes with them")
        .exiting(EXIT_UNCHECKED)
}

fn check_open(session: &mut Session, name: Option<String>) -> Result<Answer, Failure> {
    let unchecked = |failure: Failure| failure.exiting(EXIT_UNCHECKED);
    session.call("starting the check", &LaminaCheck { name: name.clone() }).map_err(unchecked)?;
    let bar = bar();
    let status = loop {
        let params = LaminaCheckStatus { name: name.clone(), cancel: None };
        let status = session.call("asking how far the check is", &params).map_err(unchecked)?;
        if status.state != "running" {
            break status;
        }
        show(&bar, &status);
        std::thread::sleep(ASK_TIME);
    };
    bar.finish_and_clear();
    let Some(report) = status.report else {
        let why = status.error.unwrap_or_else(|| "the daemon says nothing of it".into());
        return Err(unchecked(Failure::other(why)));
    };
    let answer = Answer::new(report.text(), &report)?;
    if report.clean {
        return Ok(answer);
    }
    let text = if session.json { format!("{:#}\n", answer.json) } else { answer.text };
    write_out(&text)?;
    Err(Failure::said(EXIT_FOUND))
}

fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    // A fixed template: it is right or it is not, and the default does as well.
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {percent}% {elapsed}") {
        bar.set_style(style);
    }
    bar
}

fn show(bar: &ProgressBar, status: &CheckStatus) {
    let part = format!("shard {} of {}: {}", status.shard + 1, status.shards, status.phase);
    bar.set_message(part);
    bar.set_length(status.total);
    bar.set_position(status.done);
}

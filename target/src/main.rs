//! laminad: arguments, start, wait for the end, stop.

use std::io::Write;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, sync_channel};

use clap::Parser;
use lamina_rpc::Server;
use lamina_target::config::Config;
use lamina_target::control::Control;
use lamina_target::{log, signals};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn main() -> ExitCode {
    let config = Config::parse();
    log::set_level(config.log_level);
    abort_on_panic();
    raise_descriptor_limit();
    let (stop, wait) = sync_channel(4);
    if let Err(e) = signals::watch(stop.clone()) {
        log::error(format!("signals cannot be taken: {e}"));
        log::sync();
        return ExitCode::FAILURE;
    }
    let started = Control::start(&config, stop).map_err(|error| error.to_string());
    let code = match started {
        Ok(control) => run(&config, &control, &wait),
        Err(why) => {
            log::error(why);
            ExitCode::FAILURE
        }
    };
    log::sync();
    code
}

fn run(config: &Config, control: &std::sync::Arc<Control>, wait: &Receiver<String>) -> ExitCode {
    let served =
        control.open_known(&config.stores).map_err(|error| error.to_string()).and_then(|()| {
            Server::start(&config.rpc_socket, control.clone()).map_err(|error| error.to_string())
        });
    let mut good = true;
    match served {
        Ok(server) => {
            log::info(format!("JSON-RPC on {}", config.rpc_socket.display()));
            // Scripts wait for this line; nobody reading it is no reason to end.
            let _ = writeln!(std::io::stdout(), "laminad: ready");
            let why = wait.recv().unwrap_or_else(|_| "nobody is left to ask for it".into());
            log::info(format!("stopping: {why}"));
            server.stop();
        }
        Err(why) => {
            log::error(why);
            good = false;
        }
    }
    good &= control.shut_down();
    log::info(if good { "stopped" } else { "stopped, not in good order" });
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Each queue of a guest takes descriptors, and the usual soft limit of 1024 is soon reached.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    if let Err(e) = raised {
        log::warn(format!("the limit of open files stays at {:?}: {e}", limit.current));
    }
}

/// A broken invariant ends the whole daemon, whatever thread finds it: its disks are safe in the
/// store, and a restart is quick; a daemon without one of its reactors would only hang its guests.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}

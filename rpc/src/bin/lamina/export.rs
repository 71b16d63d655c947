//! `lamina export`: disks on sockets, for virtual machines.

use clap::Subcommand;
use lamina_rpc::methods::{
    BdevGetBdevs, VhostController, VhostCreateBlkController, VhostDeleteController,
    VhostGetControllers,
};
use serde_json::json;

use crate::answer::Answer;
use crate::failure::Failure;
use crate::session::{SEE_TREE, Session};
use crate::table::Table;

#[derive(Subcommand)]
pub enum Command {
    /// Export a disk, or a snapshot read-only, and print the options for QEMU
    #[command(after_help = "\
Examples:
  lamina export attach vm1
  lamina export attach vm1 --socket /run/vm1.sock
  lamina export attach golden@base --readonly

An export is kept with its disk: after a restart of the daemon it is there again.
The daemon's own socket is named by LAMINA_SOCKET, or by --rpc-socket PATH.")]
    Attach {
        /// The disk or snapshot
        disk: String,
        /// The socket: a name in the daemon's socket folder, or a path [default: DISK.sock]
        #[arg(long, value_name = "NAME")]
        socket: Option<String>,
        /// The guest cannot write; always so for a snapshot
        #[arg(long)]
        readonly: bool,
        /// Queues offered to the guest
        #[arg(long, value_name = "COUNT")]
        queues: Option<u16>,
    },
    /// End an export
    #[command(after_help = "Example:\n  lamina export detach vm1.sock")]
    Detach {
        /// Its name, its socket's path, or the disk's name it was made from
        export: String,
    },
    /// List the exports
    #[command(visible_alias = "ls", after_help = "Example:\n  lamina export list")]
    List,
}

/// What to do when an export is not found.
const SEE_EXPORTS: &str = "`lamina export list` shows the exports there are";

pub fn run(session: &mut Session, command: Command) -> Result<Answer, Failure> {
    match command {
        Command::Attach { disk, socket, readonly, queues } => {
            let params = VhostCreateBlkController {
                ctrlr: match socket {
                    Some(socket) => export_name(&socket)?,
                    None => default_name(&disk),
                },
                dev_name: disk,
                readonly: readonly.then_some(true),
                num_queues: queues,
                ..VhostCreateBlkController::default()
            };
            attach(session, &params)
        }
        Command::Detach { export } => detach(session, &export),
        Command::List => list(session),
    }
}

/// The name of an export of `disk` unless one is given: the last part of its name.
fn default_name(disk: &str) -> String {
    let last = disk.rsplit('/').next().unwrap_or(disk);
    format!("{last}.sock")
}

/// A socket given as a path is one in our folder, not in the daemon's.
fn export_name(socket: &str) -> Result<String, Failure> {
    if !socket.contains('/') {
        return Ok(socket.into());
    }
    let absolute = std::path::absolute(socket)
        .map_err(|error| Failure::usage(format!("the path {socket:?} cannot be used: {error}")))?;
    Ok(absolute.to_string_lossy().into_owned())
}

fn attach(session: &mut Session, params: &VhostCreateBlkController) -> Result<Answer, Failure> {
    let (name, disk) = (&params.ctrlr, &params.dev_name);
    session.call(format!("exporting {disk}"), params).map_err(|failure| match failure.code() {
        Some(code) if code == -libc::EEXIST => {
            failure.hint("choose another name with --socket, or see `lamina export list`")
        }
        Some(code) if code == -libc::ENODEV => failure.hint(SEE_TREE),
        _ => failure,
    })?;
    let get = VhostGetControllers { name: Some(name.clone()) };
    let made = session
        .call("looking at it", &get)?
        .pop()
        .ok_or_else(|| Failure::other("the export was made, and is gone already"))?;
    let options = qemu_options(&made, params.num_queues);
    let text = format!(
        "exported {disk} on {}\n\nOptions for QEMU (its memory must be shared; reconnect-ms=1000 \
         from QEMU 9.2 on):\n  {}\n",
        made.socket,
        options.chunks(2).map(shell_words).collect::<Vec<_>>().join(" \\\n  ")
    );
    Answer::new(
        text,
        json!({
            "ctrlr": made.ctrlr,
            "socket": made.socket,
            "bdev": made.backend_specific.block.bdev,
            "readonly": made.backend_specific.block.readonly,
            "qemu": options,
        }),
    )
}

/// The options that give a guest this disk. Unless `queues` are asked for, QEMU takes one for each
/// processor of the guest.
fn qemu_options(export: &VhostController, queues: Option<u16>) -> Vec<String> {
    // What QEMU takes for an id: letters, digits, '-', '.', '_', a letter first.
    let stem = export.socket.rsplit('/').next().unwrap_or_default().trim_end_matches(".sock");
    let safe = |c: char| if c.is_ascii_alphanumeric() || "-._".contains(c) { c } else { '_' };
    let id = format!("lamina-{}", stem.chars().map(safe).collect::<String>());
    // A comma ends a value in QEMU's options, and two are one.
    let path = export.socket.replace(',', ",,");
    let queues = queues.map(|queues| format!(",num-queues={queues}")).unwrap_or_default();
    [
        "-m",
        "1G",
        "-object",
        "memory-backend-memfd,id=lamina-mem,size=1G,share=on",
        "-numa",
        "node,memdev=lamina-mem",
        "-chardev",
        &format!("socket,id={id},path={path},reconnect=1"),
        "-device",
        &format!("vhost-user-blk-pci,chardev={id}{queues}"),
    ]
    .map(String::from)
    .to_vec()
}

/// Words as a shell has to be given them.
fn shell_words(words: &[String]) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-._/=,@:+".contains(c);
    let quote = |word: &String| match word.chars().all(safe) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

fn detach(session: &mut Session, export: &str) -> Result<Answer, Failure> {
    let exports = session.call("looking at the exports", &VhostGetControllers { name: None })?;
    let default = default_name(export);
    let found = exports
        .iter()
        .find(|one| one.ctrlr == export || one.socket == export)
        .or_else(|| exports.iter().find(|one| one.ctrlr == default))
        .ok_or_else(|| {
            Failure::other(format!("there is no export {export:?}")).hint(SEE_EXPORTS)
        })?;
    let params = VhostDeleteController { ctrlr: found.ctrlr.clone() };
    let detached = session
        .call(format!("ending export {}", found.ctrlr), &params)
        .map_err(|failure| failure.hint(SEE_EXPORTS))?;
    Answer::new(format!("ended export {}", found.ctrlr), detached)
}

fn list(session: &mut Session) -> Result<Answer, Failure> {
    let exports = session.call("looking at the exports", &VhostGetControllers { name: None })?;
    let bdevs = match exports.is_empty() {
        true => Vec::new(),
        false => session.call("looking at the disks", &BdevGetBdevs::default())?,
    };
    let alias = |uuid: &str| {
        let found = bdevs.iter().find(|bdev| bdev.uuid == uuid);
        found.and_then(|bdev| bdev.aliases.first()).map_or(uuid, String::as_str).to_string()
    };
    let mut table = Table::new(&["EXPORT", "DISK", "MODE", "GUEST", ">QUEUES", "SOCKET"]);
    for export in &exports {
        let block = &export.backend_specific.block;
        table.row([
            export.ctrlr.clone(),
            alias(&block.bdev),
            if block.readonly { "read-only" } else { "writable" }.into(),
            if export.connected { "connected" } else { "-" }.into(),
            export.queues.to_string(),
            export.socket.clone(),
        ]);
    }
    Answer::new(table.text_or("No exports. Make one with `lamina export attach DISK`."), exports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_disk() {
        assert_eq!(default_name("vm1"), "vm1.sock");
        assert_eq!(default_name("pool/vm1@base"), "vm1@base.sock");
        assert_eq!(export_name("x.sock").unwrap(), "x.sock");
        assert!(export_name("./x.sock").unwrap().starts_with('/'));
    }

    #[test]
    fn qemu_is_given_a_lawful_id_and_an_escaped_path() {
        let export = VhostController {
            socket: "/run/a,b/vm 1@base.sock".into(),
            queues: 4,
            ..VhostController::default()
        };
        let options = qemu_options(&export, Some(4));
        assert_eq!(
            options[7],
            "socket,id=lamina-vm_1_base,path=/run/a,,b/vm 1@base.sock,reconnect=1"
        );
        assert_eq!(options[9], "vhost-user-blk-pci,chardev=lamina-vm_1_base,num-queues=4");
        let options = qemu_options(&export, None);
        assert_eq!(options[9], "vhost-user-blk-pci,chardev=lamina-vm_1_base");
        assert_eq!(shell_words(&["-a".into(), "it's".into()]), r"-a 'it'\''s'");
    }
}

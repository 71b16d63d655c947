//! `lamina snapshot`: snapshots of disks, and clones of snapshots.

use clap::Subcommand;
use lamina_rpc::methods::{
    BdevLvolDelete, BdevLvolSnapshot, LaminaDiskInfo, LaminaSnapshotLabel, LaminaSnapshotList,
    SnapshotInfo,
};
use serde_json::json;

use crate::answer::Answer;
use crate::changes;
use crate::disk;
use crate::failure::Failure;
use crate::human::time;
use crate::session::{SEE_DISKS, SEE_TREE, Session};
use crate::size::{Size, human};
use crate::stream;
use crate::table::Table;

#[derive(Subcommand)]
pub enum Command {
    /// Take a snapshot of a disk; its guest goes on
    #[command(after_help = "Examples:\n  lamina snapshot create vm1 before-upgrade\n  \
                            lamina snapshot create vm1")]
    Create {
        /// The disk
        disk: String,
        /// Label of the snapshot; it has a number in any case
        label: Option<String>,
    },
    /// List the snapshots of a disk, or of all disks
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  lamina snapshot list vm1\n  \
                                                  lamina snapshot list --json"
    )]
    List {
        /// The disk
        disk: Option<String>,
    },
    /// Give a snapshot another label
    #[command(after_help = "Examples:\n  lamina snapshot label vm1@3 good\n  \
                            lamina snapshot label vm1@good \"\"      (no label any more)")]
    Label {
        /// The snapshot (DISK@LABEL, DISK@NUMBER or a UUID)
        snapshot: String,
        /// Its new label
        label: String,
    },
    /// Delete a snapshot
    #[command(visible_alias = "rm", after_help = "Example:\n  lamina snapshot delete vm1@3")]
    Delete {
        /// The snapshot (DISK@LABEL, DISK@NUMBER or a UUID)
        snapshot: String,
    },
    /// List what changed between two snapshots, or since one
    #[command(after_help = "Examples:\n  lamina snapshot diff vm1@monday vm1@tuesday\n  \
                            lamina snapshot diff vm1@monday          (to the disk as it is now)")]
    Diff {
        /// The older snapshot (DISK@LABEL, DISK@NUMBER or a UUID)
        older: String,
        /// The newer one; the disk as it is now if left out
        newer: Option<String>,
    },
    /// Write a snapshot to a file or pipe
    #[command(
        after_help = "Examples:\n  lamina snapshot export vm1@monday --output monday.lam\n  \
              lamina snapshot export vm1@tuesday --since vm1@monday -o tuesday.lam\n  \
              lamina snapshot export vm1@monday -o - | ssh other lamina snapshot import - --disk vm1"
    )]
    Export(stream::Export),
    /// Read an exported snapshot into a disk
    #[command(after_help = "Examples:\n  lamina snapshot import monday.lam --disk copy\n  \
              lamina snapshot import tuesday.lam --onto copy")]
    Import(stream::Import),
    /// Make a disk that starts as a snapshot is
    #[command(after_help = "Example:\n  lamina snapshot clone golden@base vm2")]
    Clone {
        /// The snapshot (DISK@LABEL, DISK@NUMBER or a UUID)
        snapshot: String,
        /// Name of the new disk
        name: String,
        /// Its size, if not the snapshot's
        #[arg(long)]
        size: Option<Size>,
    },
}

pub fn run(session: &mut Session, command: Command) -> Result<Answer, Failure> {
    match command {
        Command::Create { disk, label } => create(session, disk, label),
        Command::List { disk } => list(session, disk),
        Command::Label { snapshot, label } => {
            let params = LaminaSnapshotLabel { snapshot: snapshot.clone(), label: label.clone() };
            let labelled = session
                .call(format!("labelling {snapshot}"), &params)
                .map_err(|failure| failure.hint(SEE_TREE))?;
            let text = match label.is_empty() {
                true => format!("took the label of {snapshot} away"),
                false => format!("labelled {snapshot} {label}"),
            };
            Answer::new(text, labelled)
        }
        Command::Delete { snapshot } => delete(session, &snapshot),
        Command::Diff { older, newer } => changes::diff(session, &older, newer),
        Command::Export(arguments) => stream::export(session, &arguments),
        Command::Import(arguments) => stream::import(session, &arguments),
        Command::Clone { snapshot, name, size } => disk::clone(session, snapshot, name, size),
    }
}

fn create(session: &mut Session, disk: String, label: Option<String>) -> Result<Answer, Failure> {
    let label = label.filter(|label| !label.is_empty());
    let params = BdevLvolSnapshot { lvol_name: disk.clone(), snapshot_name: label };
    let uuid =
        session.call(format!("taking a snapshot of {disk}"), &params).map_err(|failure| {
            match failure.code() {
                Some(code) if code == -libc::EEXIST => {
                    failure.hint(format!("choose another label; `lamina snapshot list {disk}`"))
                }
                _ => failure.hint(SEE_DISKS),
            }
        })?;
    let snapshots = session.call("looking at it", &LaminaSnapshotList { disk })?;
    let taken = snapshots
        .into_iter()
        .find(|snapshot| snapshot.uuid == uuid)
        .ok_or_else(|| Failure::other("the snapshot was taken, and is gone already"))?;
    let name = full_name(&taken);
    Answer::new(
        format!("took snapshot {name} ({uuid})"),
        json!({
            "name": name, "uuid": uuid, "disk": taken.disk, "id": taken.id, "label": taken.label,
        }),
    )
}

/// `disk@label`, or `disk@number` without a label.
fn full_name(snapshot: &SnapshotInfo) -> String {
    match snapshot.label.as_str() {
        "" => format!("{}@{}", snapshot.disk, snapshot.id),
        label => format!("{}@{label}", snapshot.disk),
    }
}

fn list(session: &mut Session, disk: Option<String>) -> Result<Answer, Failure> {
    let disks = match disk {
        Some(disk) => vec![disk],
        None => {
            let disks = session.call("looking at the disks", &LaminaDiskInfo { name: None })?;
            // By UUID: two stores may have a disk of one name.
            disks.into_iter().filter(|disk| disk.snapshots > 0).map(|disk| disk.uuid).collect()
        }
    };
    let mut snapshots = Vec::new();
    for disk in disks {
        let found = session
            .call("looking at the snapshots", &LaminaSnapshotList { disk })
            .map_err(|failure| failure.hint(SEE_DISKS))?;
        snapshots.extend(found);
    }
    let mut table =
        Table::new(&["DISK", ">NUMBER", "LABEL", "TAKEN", ">SIZE", ">MAPPED", ">CLONES"]);
    for snapshot in &snapshots {
        table.row([
            snapshot.disk.clone(),
            snapshot.id.to_string(),
            match snapshot.label.as_str() {
                "" => "-".into(),
                label => label.into(),
            },
            time(snapshot.time),
            human(snapshot.size),
            human(snapshot.mapped),
            snapshot.clones.to_string(),
        ]);
    }
    Answer::new(
        table.text_or("No snapshots. Take one with `lamina snapshot create DISK [LABEL]`."),
        snapshots,
    )
}

fn delete(session: &mut Session, snapshot: &str) -> Result<Answer, Failure> {
    let named = session.resolve(snapshot)?;
    // The daemon deletes either by one method; a slip here would cost a disk.
    if !named.snapshot {
        return Err(Failure::usage(format!("{snapshot} is a disk, not a snapshot"))
            .hint(format!("`lamina disk delete {snapshot}` deletes a disk")));
    }
    let params = BdevLvolDelete { name: named.uuid };
    let deleted = session.call(format!("deleting {snapshot}"), &params).map_err(|failure| {
        match failure.code() {
            Some(code) if code == -libc::EBUSY => {
                failure.hint("detach its exports first (`lamina export list`)")
            }
            _ => failure,
        }
    })?;
    Answer::new(format!("deleted snapshot {snapshot}"), deleted)
}

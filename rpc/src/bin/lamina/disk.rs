//! `lamina disk`: disks.

use clap::Subcommand;
use lamina_rpc::methods::{
    BdevLvolClone, BdevLvolCreate, BdevLvolDelete, BdevLvolRename, BdevLvolResize, DiskInfo,
    LaminaDiskInfo,
};
use serde_json::json;

use crate::answer::Answer;
use crate::failure::Failure;
use crate::human::{count, time};
use crate::session::{SEE_DISKS, SEE_STORES, SEE_TREE, Session};
use crate::size::{Size, human};
use crate::table::{Table, fields};

#[derive(Subcommand)]
pub enum Command {
    /// Make a disk: empty, or as a snapshot is
    #[command(after_help = "\
Examples:
  lamina disk create golden --size 10G
  lamina disk create vm1 --from golden@base
  lamina disk create vm2 --from golden@base --size 20G")]
    Create {
        /// Name of the disk
        name: String,
        /// Size that the guest sees; space is taken as it is written
        #[arg(long, required_unless_present = "from")]
        size: Option<Size>,
        /// Start as this snapshot is (DISK@LABEL, DISK@NUMBER or a UUID)
        #[arg(long, value_name = "SNAPSHOT", conflicts_with = "store")]
        from: Option<String>,
        /// Name of the store; may be left out when one store is open
        #[arg(long)]
        store: Option<String>,
    },
    /// Delete a disk
    #[command(
        visible_alias = "rm",
        after_help = "\
Examples:
  lamina disk delete vm1
  lamina disk delete golden --with-snapshots"
    )]
    Delete {
        /// The disk
        disk: String,
        /// Delete its snapshots too
        #[arg(long)]
        with_snapshots: bool,
    },
    /// Give a disk another size, attached or not
    #[command(after_help = "Examples:\n  lamina disk resize vm1 20G\n  \
                            lamina disk resize vm1 5G --shrink")]
    Resize {
        /// The disk
        disk: String,
        /// The new size
        size: Size,
        /// Let it get smaller: what is cut off is lost
        #[arg(long)]
        shrink: bool,
    },
    /// Give a disk another name
    #[command(after_help = "Example:\n  lamina disk rename vm1 web1")]
    Rename {
        /// The disk
        disk: String,
        /// Its new name
        name: String,
    },
    /// List the disks
    #[command(visible_alias = "ls", after_help = "Example:\n  lamina disk list --store pool")]
    List {
        /// Only those of this store
        #[arg(long)]
        store: Option<String>,
    },
    /// Show all about a disk
    #[command(after_help = "Example:\n  lamina disk info vm1")]
    Info {
        /// The disk
        disk: String,
    },
}

pub fn run(session: &mut Session, command: Command) -> Result<Answer, Failure> {
    match command {
        Command::Create { name, size, from: None, store } => {
            let size = size.ok_or_else(|| Failure::usage("give --size"))?;
            create(session, name, size, store)
        }
        Command::Create { name, size, from: Some(snapshot), store: _ } => {
            clone(session, snapshot, name, size)
        }
        Command::Delete { disk, with_snapshots } => delete(session, &disk, with_snapshots),
        Command::Resize { disk, size, shrink } => resize(session, &disk, size, shrink),
        Command::Rename { disk, name } => {
            let info = session.disk(&disk)?;
            let params = BdevLvolRename { old_name: info.uuid, new_name: name.clone() };
            let renamed = session.call(format!("renaming {disk}"), &params)?;
            Answer::new(format!("renamed disk {disk} to {name}"), renamed)
        }
        Command::List { store } => list(session, store),
        Command::Info { disk } => {
            let info = session.disk(&disk)?;
            Answer::new(details(&info), info)
        }
    }
}

fn create(
    session: &mut Session,
    name: String,
    size: Size,
    store: Option<String>,
) -> Result<Answer, Failure> {
    let params = BdevLvolCreate {
        lvol_name: name.clone(),
        size: Some(size.0),
        lvs_name: store,
        ..BdevLvolCreate::default()
    };
    let uuid = session
        .call(format!("creating disk {name}"), &params)
        .map_err(|failure| hint_create(failure, &name))?;
    Answer::new(
        format!("created disk {name}, {} ({uuid})", human(size.0)),
        json!({ "name": name, "uuid": uuid, "size": size.0 }),
    )
}

/// A disk as `snapshot` is, then of another size if one is given.
pub fn clone(
    session: &mut Session,
    snapshot: String,
    name: String,
    size: Option<Size>,
) -> Result<Answer, Failure> {
    let params = BdevLvolClone { snapshot_name: snapshot.clone(), clone_name: name.clone() };
    let uuid =
        session.call(format!("cloning {snapshot}"), &params).map_err(|failure| {
            match failure.code() {
                Some(code) if code == -libc::ENODEV => failure.hint(SEE_TREE),
                _ => hint_create(failure, &name),
            }
        })?;
    let mut info = session.disk(&uuid)?;
    if let Some(size) = size.filter(|size| size.0 != info.size) {
        let made = "the disk was made, with the snapshot's size; `lamina disk resize` changes that";
        if size.0 < info.size {
            return Err(Failure::usage(format!(
                "{} is less than the snapshot's {}",
                human(size.0),
                human(info.size)
            ))
            .hint(made));
        }
        let resize = BdevLvolResize { name: uuid.clone(), size: Some(size.0), size_in_mib: None };
        session.call(format!("resizing {name}"), &resize).map_err(|failure| failure.hint(made))?;
        info.size = size.0;
    }
    Answer::new(
        format!("created disk {name} from {snapshot}, {} ({uuid})", human(info.size)),
        json!({ "name": name, "uuid": uuid, "size": info.size, "origin": info.origin }),
    )
}

fn hint_create(failure: Failure, name: &str) -> Failure {
    match failure.code() {
        Some(code) if code == -libc::EEXIST => failure
            .hint(format!("choose another name, or delete it with `lamina disk delete {name}`")),
        Some(code) if code == -libc::ENODEV => failure.hint(SEE_STORES),
        Some(code) if code == -libc::ENOSPC => {
            failure.hint("delete disks or snapshots, or discard inside the guests (fstrim)")
        }
        _ => failure,
    }
}

fn delete(session: &mut Session, disk: &str, with_snapshots: bool) -> Result<Answer, Failure> {
    let info = session.disk(disk)?;
    if info.snapshots > 0 && !with_snapshots {
        let snapshots = count(info.snapshots, "snapshot");
        return Err(Failure::usage(format!("{disk} has {snapshots}, which would go with it"))
            .hint(format!("give --with-snapshots to delete both; `lamina snapshot list {disk}`")));
    }
    // By UUID: the name may mean something else by now.
    let params = BdevLvolDelete { name: info.uuid };
    let deleted =
        session.call(format!("deleting disk {disk}"), &params).map_err(|failure| match failure
            .code()
        {
            Some(code) if code == -libc::EBUSY => {
                failure.hint("detach its exports first (`lamina export list`)")
            }
            _ => failure,
        })?;
    Answer::new(format!("deleted disk {disk}"), deleted)
}

fn resize(session: &mut Session, disk: &str, size: Size, shrink: bool) -> Result<Answer, Failure> {
    let info = session.disk(disk)?;
    if size.0 < info.size && !shrink {
        return Err(Failure::usage(format!(
            "{disk} has {}; cutting it to {} loses what is behind",
            human(info.size),
            human(size.0)
        ))
        .hint("shrink the file system in the guest first, then give --shrink"));
    }
    let params = BdevLvolResize { name: info.uuid, size: Some(size.0), size_in_mib: None };
    let resized = session.call(format!("resizing {disk}"), &params)?;
    Answer::new(
        format!("resized disk {disk} from {} to {}", human(info.size), human(size.0)),
        resized,
    )
}

fn list(session: &mut Session, store: Option<String>) -> Result<Answer, Failure> {
    let mut disks = session
        .call("looking at the disks", &LaminaDiskInfo { name: None })
        .map_err(|failure| failure.hint(SEE_DISKS))?;
    if let Some(store) = &store {
        disks.retain(|disk| disk.store == *store);
    }
    let mut table =
        Table::new(&["NAME", "STORE", ">SIZE", ">MAPPED", ">SNAPSHOTS", "ORIGIN", "EXPORTED ON"]);
    for disk in &disks {
        table.row([
            disk.name.clone(),
            disk.store.clone(),
            human(disk.size),
            human(disk.mapped),
            disk.snapshots.to_string(),
            disk.origin.clone().unwrap_or_else(|| "-".into()),
            match disk.exports.is_empty() {
                true => "-".into(),
                false => disk.exports.join(" "),
            },
        ]);
    }
    Answer::new(
        table.text_or("No disks. Make one with `lamina disk create NAME --size SIZE`."),
        disks,
    )
}

fn details(disk: &DiskInfo) -> String {
    fields(&[
        ("name", disk.name.clone()),
        ("uuid", disk.uuid.clone()),
        ("store", format!("{} (shard {})", disk.store, disk.shard)),
        ("size", human(disk.size)),
        ("mapped", human(disk.mapped)),
        ("created", time(disk.created)),
        ("origin", disk.origin.clone().unwrap_or_else(|| "none".into())),
        ("snapshots", disk.snapshots.to_string()),
        (
            "exported on",
            match disk.exports.is_empty() {
                true => "nothing".into(),
                false => disk.exports.join(" "),
            },
        ),
    ])
}

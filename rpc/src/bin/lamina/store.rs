//! `lamina store`: making, opening, closing and looking at stores.

use clap::{Subcommand, ValueHint};
use lamina_rpc::methods::{
    LaminaStoreClose, LaminaStoreCreate, LaminaStoreInfo, LaminaStoreOpen, LaminaStoreSetWarnings,
    StoreInfo,
};
use serde_json::json;

use crate::answer::Answer;
use crate::failure::Failure;
use crate::human::{count, percent};
use crate::session::{SEE_STORES, Session};
use crate::size::{Size, human};
use crate::table::{Table, fields};

#[derive(Subcommand)]
pub enum Command {
    /// Make a store on a file, a block device or RAM, and open it
    #[command(after_help = "\
Examples:
  lamina store create pool /srv/pool.lamina --size 100G   (a new sparse file)
  lamina store create fast /dev/nvme0n1                   (a whole device)
  lamina store create scratch ram:2G                      (gone when the daemon ends)")]
    Create {
        /// Name of the store
        name: String,
        /// A file, a block device, or ram:SIZE
        #[arg(value_hint = ValueHint::FilePath)]
        path: String,
        /// Size of the store; needed for a file that does not exist yet
        #[arg(long)]
        size: Option<Size>,
        /// Parts that work on their own core each
        #[arg(long, value_name = "COUNT")]
        shards: Option<u32>,
        /// Journal of each shard
        #[arg(long, value_name = "SIZE")]
        journal_size: Option<Size>,
        /// Overwrite a store that is there already, with all its disks
        #[arg(long)]
        force: bool,
    },
    /// Open a store that was made before, and export again what was exported
    #[command(after_help = "Example:\n  lamina store open /srv/pool.lamina")]
    Open {
        /// The file or block device
        #[arg(value_hint = ValueHint::FilePath)]
        path: String,
    },
    /// Close a store; its disks stay on it
    #[command(after_help = "Example:\n  lamina store close pool")]
    Close {
        /// Name or UUID of the store
        name: String,
        /// End the exports of its disks first
        #[arg(long)]
        force: bool,
    },
    /// Set the percentages of used space at which a store raises events
    #[command(after_help = "\
Examples:
  lamina store warn-at pool 70 85 95
  lamina store warn-at pool --never
  lamina store warn-at pool --default     (those the daemon was started with)")]
    WarnAt {
        /// Name or UUID of the store
        name: String,
        /// 1 to 100 each
        #[arg(value_name = "PERCENT", required_unless_present_any = ["never", "default"],
              value_parser = clap::value_parser!(u32).range(1..=100))]
        percents: Vec<u32>,
        /// No warnings
        #[arg(long, conflicts_with_all = ["percents", "default"])]
        never: bool,
        /// The daemon's own percentages again
        #[arg(long, conflicts_with = "percents")]
        default: bool,
    },
    /// Show all about the open stores, or one of them
    #[command(
        visible_alias = "show",
        after_help = "Examples:\n  lamina store info\n  lamina store info pool --json"
    )]
    Info {
        /// Name or UUID of the store
        name: Option<String>,
    },
    /// List the open stores
    #[command(visible_alias = "ls", after_help = "Example:\n  lamina store list")]
    List,
}

pub fn run(session: &mut Session, command: Command) -> Result<Answer, Failure> {
    match command {
        Command::Create { name, path, size, shards, journal_size, force } => {
            let params = LaminaStoreCreate {
                name,
                path: absolute(&path)?,
                size: size.map(|size| size.0),
                shards,
                journal_size: journal_size.map(|size| size.0),
                force: force.then_some(true),
            };
            create(session, &params)
        }
        Command::Open { path } => {
            let params = LaminaStoreOpen { path: absolute(&path)? };
            let opened =
                session.call(format!("opening {path}"), &params).map_err(
                    |failure| match failure.code() {
                        Some(code) if code == -libc::EILSEQ => {
                            failure.hint("check the path; `lamina store create` makes a new store")
                        }
                        Some(code) if code == -libc::EEXIST || code == -libc::EBUSY => {
                            failure.hint(SEE_STORES)
                        }
                        _ => failure,
                    },
                )?;
            Answer::new(format!("opened store {} ({})", opened.name, opened.uuid), opened)
        }
        Command::Close { name, force } => {
            let params = LaminaStoreClose { name: name.clone(), force: force.then_some(true) };
            let closed =
                session.call(format!("closing store {name}"), &params).map_err(|failure| {
                    match failure.code() {
                        Some(code) if code == -libc::EBUSY => failure.hint(
                            "detach its exports first (`lamina export list`), or give --force",
                        ),
                        _ => failure.hint(SEE_STORES),
                    }
                })?;
            Answer::new(format!("closed store {name}"), closed)
        }
        Command::WarnAt { name, percents, default, never: _ } => {
            let percents = (!default).then_some(percents);
            let params = LaminaStoreSetWarnings { name: name.clone(), percents };
            let set = session
                .call(format!("setting the warnings of store {name}"), &params)
                .map_err(|failure| failure.hint(SEE_STORES))?;
            let list: Vec<String> = set.iter().map(|percent| format!("{percent}%")).collect();
            let text = match list.is_empty() {
                true => format!("store {name} raises no warnings"),
                false => format!("store {name} warns at {}", list.join(", ")),
            };
            Answer::new(text, set)
        }
        Command::Info { name } => {
            let stores = stores(session, name)?;
            let text: Vec<String> = stores.iter().map(details).collect();
            Answer::new(some_or_none(text.join("\n")), stores)
        }
        Command::List => {
            let stores = stores(session, None)?;
            Answer::new(some_or_none(list(&stores)), stores)
        }
    }
}

fn create(session: &mut Session, params: &LaminaStoreCreate) -> Result<Answer, Failure> {
    let (name, path) = (&params.name, &params.path);
    let uuid =
        session.call(format!("creating store {name}"), params).map_err(|failure| match failure
            .code()
        {
            Some(code) if code == -libc::EEXIST => failure.hint(format!(
                "`lamina store list` shows what is open; a store that is on {path} already is \
                 opened with `lamina store open`, or overwritten with --force"
            )),
            _ => failure,
        })?;
    Answer::new(
        format!("created store {name} on {path} ({uuid})"),
        json!({ "name": name, "uuid": uuid, "path": path }),
    )
}

/// The open stores, or the one called `name`.
fn stores(session: &mut Session, name: Option<String>) -> Result<Vec<StoreInfo>, Failure> {
    session
        .call("looking at the stores", &LaminaStoreInfo { name })
        .map_err(|failure| failure.hint(SEE_STORES))
}

fn some_or_none(text: String) -> String {
    match text.is_empty() {
        true => "No store is open. Make one with `lamina store create`, or open one with \
                 `lamina store open`.\n"
            .into(),
        false => text,
    }
}

fn list(stores: &[StoreInfo]) -> String {
    let mut table =
        Table::new(&["NAME", ">SIZE", ">FREE", ">USED", ">PRESENTED", ">DISKS", "STATE", "PATH"]);
    for store in stores {
        table.row([
            store.name.clone(),
            human(store.size),
            human(store.free),
            format!("{}%", store.used_percent),
            human(store.presented),
            store.disks.to_string(),
            state(store),
            store.path.clone(),
        ]);
    }
    if stores.is_empty() { String::new() } else { table.text() }
}

/// Its state, and whether it is filling up.
fn state(store: &StoreInfo) -> String {
    match store.warning {
        Some(_) if store.used_percent == 100 => format!("{}, full", store.state),
        Some(at) => format!("{}, over {at}%", store.state),
        None => store.state.clone(),
    }
}

fn details(store: &StoreInfo) -> String {
    // What is neither free nor about to be; what is kept back counts as neither.
    let unused = store.free.saturating_add(store.pending).saturating_add(store.reserved);
    let used = store.size.saturating_sub(unused);
    fields(&[
        ("name", store.name.clone()),
        ("uuid", store.uuid.clone()),
        ("path", store.path.clone()),
        ("state", state(store)),
        ("shards", store.shards.to_string()),
        ("size", human(store.size)),
        ("used", format!("{} ({})", human(used), percent(used, store.size))),
        ("free", human(store.free)),
        ("pending", format!("{} (freed, back after a consistency point)", human(store.pending))),
        ("reserved", human(store.reserved)),
        (
            "presented",
            format!(
                "{} by {}, {}",
                human(store.presented),
                count(store.disks, "disk"),
                count(store.snapshots, "snapshot")
            ),
        ),
        (
            "journal",
            format!("{} of {} in use", human(store.journal_used), human(store.journal_size)),
        ),
        ("checkpoints", store.checkpoints.to_string()),
    ])
}

/// The path as the daemon, whose folder is another, has to be told.
fn absolute(path: &str) -> Result<String, Failure> {
    if path.starts_with("ram:") {
        return Ok(path.into());
    }
    let absolute = std::path::absolute(path)
        .map_err(|error| Failure::usage(format!("the path {path:?} cannot be used: {error}")))?;
    // Both parts were text.
    Ok(absolute.to_string_lossy().into_owned())
}

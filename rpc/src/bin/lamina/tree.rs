//! `lamina tree`: disks, snapshots and clones with their descent, as text or for Graphviz.
//!
//! ```text
//!  pool
//!  └─ golden  10 GiB
//!     └─ @1 base            a snapshot hangs under the disk it was taken of,
//!        ├─ vm1  10 GiB     a clone under the snapshot it was made from
//!        └─ vm2  10 GiB
//! ```
//!
//! What the daemon answers is drawn without recursion and each disk once, so that chains of any
//! length, and nonsense, come out as lines.

use std::collections::{BTreeMap, BTreeSet};

use lamina_rpc::methods::{LaminaTree, StoreTree, TreeDisk, TreeSnapshot};

use crate::answer::Answer;
use crate::failure::Failure;
use crate::human::{plain, time};
use crate::session::{SEE_STORES, Session};
use crate::size::human;

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lamina tree\n  lamina tree pool\n  \
                        lamina tree --dot | dot -Tsvg -o tree.svg")]
pub struct Arguments {
    /// Name or UUID of the store; all if left out
    store: Option<String>,
    /// Write a graph for Graphviz instead of text
    #[arg(long, conflicts_with = "json")]
    dot: bool,
}

pub fn run(session: &mut Session, arguments: Arguments) -> Result<Answer, Failure> {
    let stores = session
        .call("looking at the disks", &LaminaTree { store: arguments.store })
        .map_err(|failure| failure.hint(SEE_STORES))?;
    let text = match arguments.dot {
        true => dot(&stores),
        false => text(&stores),
    };
    Answer::new(text, stores)
}

/// A line to draw: what hangs under what.
#[derive(Clone, Copy)]
enum Item<'a> {
    Disk(&'a TreeDisk),
    Snapshot(&'a TreeDisk, &'a TreeSnapshot),
}

/// All stores as text.
fn text(stores: &[StoreTree]) -> String {
    if stores.is_empty() {
        return "No store is open. Make one with `lamina store create`, or open one with \
                `lamina store open`.\n"
            .into();
    }
    stores.iter().map(store_text).collect()
}

fn store_text(store: &StoreTree) -> String {
    let mut out = format!("{}\n", plain(&store.store));
    // Clones by the snapshot they were made from; the rest are roots.
    let known: BTreeSet<(&str, u64)> = store
        .disks
        .iter()
        .flat_map(|disk| disk.snapshots.iter().map(|snapshot| (disk.name.as_str(), snapshot.id)))
        .collect();
    let mut clones: BTreeMap<(&str, u64), Vec<&TreeDisk>> = BTreeMap::new();
    let mut roots = Vec::new();
    for disk in &store.disks {
        let origin = disk.origin.as_ref().map(|origin| (origin.disk.as_str(), origin.snapshot));
        match origin.filter(|origin| known.contains(origin)) {
            Some(origin) => clones.entry(origin).or_default().push(disk),
            None => roots.push(disk),
        }
    }
    let mut drawn = BTreeSet::new();
    draw(&roots, &clones, &mut drawn, &mut out);
    // Disks that descend from each other in a ring hang under no root.
    for disk in &store.disks {
        if !drawn.contains(disk.name.as_str()) {
            draw(&[disk], &clones, &mut drawn, &mut out);
        }
    }
    out
}

/// Draws `roots` and what hangs under them.
fn draw<'a>(
    roots: &[&'a TreeDisk],
    clones: &BTreeMap<(&str, u64), Vec<&'a TreeDisk>>,
    drawn: &mut BTreeSet<&'a str>,
    out: &mut String,
) {
    // The last is drawn first. With each item what stands before its line, and whether it is the
    // last of its brothers.
    let mut waiting: Vec<(Item<'a>, String, bool)> = Vec::new();
    let push = |waiting: &mut Vec<_>, items: Vec<Item<'a>>, before: &str| {
        for (i, item) in items.into_iter().rev().enumerate() {
            waiting.push((item, before.to_string(), i == 0));
        }
    };
    push(&mut waiting, roots.iter().map(|disk| Item::Disk(disk)).collect(), "");
    while let Some((item, before, last)) = waiting.pop() {
        let children: Vec<Item<'a>> = match item {
            Item::Disk(disk) if !drawn.insert(disk.name.as_str()) => continue,
            Item::Disk(disk) => {
                disk.snapshots.iter().map(|snapshot| Item::Snapshot(disk, snapshot)).collect()
            }
            Item::Snapshot(disk, snapshot) => clones
                .get(&(disk.name.as_str(), snapshot.id))
                .map(|disks| disks.iter().map(|disk| Item::Disk(disk)).collect())
                .unwrap_or_default(),
        };
        let branch = if last { "└─ " } else { "├─ " };
        out.push_str(&format!("{before}{branch}{}\n", label(item)));
        let under = format!("{before}{}", if last { "   " } else { "│  " });
        push(&mut waiting, children, &under);
    }
}

/// What stands on the line of a disk or snapshot.
fn label(item: Item<'_>) -> String {
    plain(&match item {
        Item::Disk(disk) => {
            format!("{}  {}, {} mapped", disk.name, human(disk.size), human(disk.mapped))
        }
        Item::Snapshot(_, snapshot) => {
            let name = match snapshot.label.as_str() {
                "" => format!("@{}", snapshot.id),
                label => format!("@{} {label}", snapshot.id),
            };
            format!("{name}  {}, {} mapped", time(snapshot.time), human(snapshot.mapped))
        }
    })
}

/// All stores as a graph: boxes are disks, ellipses snapshots.
fn dot(stores: &[StoreTree]) -> String {
    let mut out = String::from("digraph lamina {\n  rankdir=LR;\n  node [fontname=\"sans\"];\n");
    for (i, store) in stores.iter().enumerate() {
        out.push_str(&format!(
            "  subgraph cluster_{i} {{\n    label={};\n",
            quoted(&[&store.store])
        ));
        for disk in &store.disks {
            let node = quoted(&[&store.uuid, &disk.name]);
            let size = format!("{} of {}", human(disk.mapped), human(disk.size));
            let label = quoted(&[&disk.name, &size]);
            out.push_str(&format!("    {node} [shape=box, label={label}];\n"));
            for snapshot in &disk.snapshots {
                let snapshot_node = snapshot_node(&store.uuid, &disk.name, snapshot.id);
                let number = format!("@{}", snapshot.id);
                let label = match snapshot.label.as_str() {
                    "" => quoted(&[&number, &human(snapshot.mapped)]),
                    label => quoted(&[&number, label, &human(snapshot.mapped)]),
                };
                out.push_str(&format!("    {snapshot_node} [shape=ellipse, label={label}];\n"));
                out.push_str(&format!("    {node} -> {snapshot_node} [style=dashed];\n"));
            }
        }
        for disk in &store.disks {
            if let Some(origin) = &disk.origin {
                let from = snapshot_node(&store.uuid, &origin.disk, origin.snapshot);
                let to = quoted(&[&store.uuid, &disk.name]);
                out.push_str(&format!("    {from} -> {to};\n"));
            }
        }
        out.push_str("  }\n");
    }
    out.push_str("}\n");
    out
}

fn snapshot_node(store: &str, disk: &str, id: u64) -> String {
    quoted(&[store, disk, &format!("@{id}")])
}

/// Lines of text as one quoted string of Graphviz.
fn quoted(lines: &[&str]) -> String {
    let escape = |line: &&str| plain(line).replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{}\"", lines.iter().map(escape).collect::<Vec<_>>().join("\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_rpc::methods::TreeOrigin;

    fn disk(name: &str, origin: Option<(&str, u64)>, snapshots: &[(u64, &str)]) -> TreeDisk {
        TreeDisk {
            name: name.into(),
            size: 10 << 30,
            mapped: 1 << 20,
            origin: origin.map(|(disk, snapshot)| TreeOrigin { disk: disk.into(), snapshot }),
            snapshots: snapshots
                .iter()
                .map(|(id, label)| TreeSnapshot {
                    id: *id,
                    label: (*label).into(),
                    mapped: 1 << 20,
                    ..TreeSnapshot::default()
                })
                .collect(),
            ..TreeDisk::default()
        }
    }

    fn store(disks: Vec<TreeDisk>) -> StoreTree {
        StoreTree { store: "pool".into(), uuid: "u".into(), disks }
    }

    #[test]
    fn clones_hang_under_their_snapshot() {
        let drawn = text(&[store(vec![
            disk("golden", None, &[(1, "base"), (2, "")]),
            disk("other", None, &[]),
            disk("vm1", Some(("golden", 1)), &[(1, "x")]),
            disk("vm2", Some(("golden", 1)), &[]),
            disk("vm3", Some(("vm1", 1)), &[]),
        ])]);
        let names: String = drawn
            .lines()
            .map(|line| line.split("  1").next().unwrap_or(line).trim_end().to_string() + "\n")
            .collect();
        let expected = "\
pool
├─ golden
│  ├─ @1 base
│  │  ├─ vm1
│  │  │  └─ @1 x
│  │  │     └─ vm3
│  │  └─ vm2
│  └─ @2
└─ other
";
        assert_eq!(names, expected, "{drawn}");
        assert!(drawn.contains("other  10 GiB, 1 MiB mapped"), "{drawn}");
    }

    #[test]
    fn every_disk_is_drawn_once_whatever_comes() {
        // A ring, an origin that is not there, a disk that is its own origin, a twin.
        let nonsense = store(vec![
            disk("a", Some(("b", 1)), &[(1, "")]),
            disk("b", Some(("a", 1)), &[(1, "")]),
            disk("c", Some(("gone", 7)), &[]),
            disk("d", Some(("d", 1)), &[(1, "\x1b[2J")]),
            disk("c", None, &[]),
        ]);
        let drawn = text(&[nonsense]);
        for name in ["a", "b", "c", "d"] {
            let count = drawn.matches(&format!("─ {name}  ")).count();
            assert_eq!(count, 1, "{name} in\n{drawn}");
        }
        assert!(!drawn.contains('\x1b'));
    }

    #[test]
    fn a_chain_of_any_length_is_drawn() {
        let chain = (0..3000)
            .map(|i| {
                let before = format!("d{}", i - 1);
                disk(&format!("d{i}"), (i > 0).then_some((before.as_str(), 1)), &[(1, "")])
            })
            .collect();
        assert_eq!(text(&[store(chain)]).lines().count(), 6001);
    }

    #[test]
    fn the_graph_quotes_what_it_is_given() {
        let graph = dot(&[store(vec![
            disk("a\"b", None, &[(1, "x\\")]),
            disk("c", Some(("a\"b", 1)), &[]),
        ])]);
        assert!(graph.contains(r#""u\na\"b" [shape=box"#), "{graph}");
        assert!(graph.contains(r#"label="@1\nx\\\n1 MiB""#), "{graph}");
        assert!(graph.contains(r#""u\na\"b\n@1" -> "u\nc";"#), "{graph}");
        assert_eq!(graph.matches('{').count(), graph.matches('}').count());
    }
}

//! The house rules, kept by a test: what breaks one is named with its file and line.
//!
//! Sizes are ratchets: files and functions over the goal are listed with what they have today; they
//! may shrink, not grow, and no new one may join them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Longest line, characters.
const LINE_MAX: usize = 100;
/// Longest file without a place in [`LONG_FILES`], lines.
const FILE_LINES_MAX: usize = 600;
/// Longest function without a place in [`LONG_FUNCTIONS`], lines.
const FUNCTION_LINES_MAX: usize = 70;
/// The only files that may hold unsafe code.
const UNSAFE_FILES: &[&str] = &[
    "bdev/src/page.rs",
    "bdev/tests/rig/mod.rs",
    "bdev/tests/sizes.rs",
    "bdev/tests/simple/mod.rs",
    "perf/src/allocator.rs",
    "perf/src/memory.rs",
    "spdk/src/sys/app.rs",
    "spdk/src/sys/base_io.rs",
    "spdk/src/sys/below.rs",
    "spdk/src/sys/bdev_io.rs",
    "spdk/src/sys/channel.rs",
    "spdk/src/sys/disk.rs",
    "spdk/src/sys/dma.rs",
    "spdk/src/sys/json.rs",
    "spdk/src/sys/lent.rs",
    "spdk/src/sys/owned.rs",
    "spdk/src/sys/rpc.rs",
    "spdk/src/sys/thread.rs",
    "target/src/base/file.rs",
    "target/src/base/ram.rs",
    "target/src/base/uring.rs",
    "target/src/control/random.rs",
    "target/src/eventfd.rs",
    "target/src/mem/far.rs",
    "target/src/mem/guest.rs",
    "target/src/mem/guest/span.rs",
    "target/src/mem/hugepage.rs",
    "target/src/mem/sigbus.rs",
    "target/src/nvmf/low_water.rs",
    "target/src/nvmf/tls.rs",
    "target/src/reactor/affinity.rs",
    "target/src/reactor/epoll.rs",
    "target/src/signals.rs",
    "target/src/vhost/tests/client.rs",
    "target/src/vhost/tests/disk.rs",
    "target/src/vhost/tests/served.rs",
    "target/tests/daemon/data.rs",
    "target/tests/vhost_engine.rs",
    "target/tests/vhost_flush.rs",
    "tests/src/client/memory.rs",
    "tests/src/sim/memory.rs",
];
/// Files over the goal, with their lines.
const LONG_FILES: &[(&str, usize)] = &[("bdev/src/engine.rs", 678)];
/// Functions over the goal, as file and name, with their lines.
const LONG_FUNCTIONS: &[(&str, &str, usize)] = &[
    ("target/src/vhost/tests/fuzz.rs", "step", 76),
    ("target/src/vhost/tests/hostile.rs", "chains", 166),
    ("target/src/vhost/tests/hostile.rs", "hostile_split_rings", 144),
    ("target/src/vhost/tests/protocol.rs", "crimes", 96),
];
/// Words that have no place in the tree.
const BANNED: &[&str] = &["todo!(", "unimplemented!(", "dbg!(", "FIXME", "/work/", "/root/"];
/// What the engine must not know: time, threads, files, sockets, locks, random order.
const ENGINE_BANNED: &[&str] = &[
    "std::time",
    "std::thread",
    "std::fs",
    "std::net",
    "std::sync",
    "HashMap",
    "HashSet",
    "rand::",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a checkout").to_path_buf()
}

/// All Rust files of the tree, by their path in it.
fn sources() -> BTreeMap<String, String> {
    let root = root();
    let mut found = BTreeMap::new();
    let mut folders: Vec<PathBuf> = ["bdev", "nvmf", "rpc", "target", "tests", "perf", "spdk"]
        .iter()
        .map(|f| root.join(f))
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the tree").map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(&root).expect("below it").display().to_string();
                // This file names what it bans.
                if name != "tests/tests/tidy.rs" {
                    found.insert(name, fs::read_to_string(&path).expect("text"));
                }
            }
        }
    }
    assert!(found.len() > 100, "the tree's sources were not found");
    found
}

fn report(what: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{what}:\n{}", broken.join("\n"));
}

/// Lines of `text` for which `bad` holds, as "name:line".
fn lines_where(name: &str, text: &str, bad: impl Fn(&str) -> bool) -> Vec<String> {
    let numbered = text.lines().enumerate();
    numbered.filter(|(_, l)| bad(l)).map(|(i, l)| format!("  {name}:{}: {l}", i + 1)).collect()
}

/// Functions of `text` longer than the goal: name and lines. rustfmt's indentation tells the end.
fn long_functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let Some((before, after)) = line.split_once("fn ") else { continue };
        let words = ["pub", "pub(crate)", "pub(super)", "const", "async", "unsafe"];
        if !before.split_whitespace().all(|w| words.contains(&w)) {
            continue;
        }
        let end = format!("{}}}", " ".repeat(indent));
        let Some(lines) = lines[start..].iter().position(|l| *l == end) else { continue };
        if lines + 1 > FUNCTION_LINES_MAX {
            let name = after.split(['(', '<']).next().unwrap_or(after);
            found.push((name.to_string(), lines + 1));
        }
    }
    found
}

/// `unsafe` blocks, functions and impls without a SAFETY reason close above them.
fn unexplained(text: &str) -> Vec<usize> {
    let lines: Vec<&str> = text.lines().collect();
    let starts = |l: &str| {
        let code = l.split("//").next().unwrap_or("");
        code.contains("unsafe {") || code.contains("unsafe impl")
    };
    let reason = |i: usize| lines[i.saturating_sub(8)..=i].iter().any(|l| l.contains("SAFETY:"));
    (0..lines.len()).filter(|&i| starts(lines[i]) && !reason(i)).map(|i| i + 1).collect()
}

#[test]
fn lines_are_not_too_long() {
    let long = |l: &str| l.chars().count() > LINE_MAX && !l.contains('"') && !l.contains("#![");
    assert_eq!(lines_where("sample", &"x".repeat(LINE_MAX + 1), long).len(), 1);
    let broken: Vec<_> = sources().iter().flat_map(|(n, t)| lines_where(n, t, long)).collect();
    report("lines over 100 characters", &broken);
}

#[test]
fn files_do_not_grow_past_the_alarm() {
    let mut broken = Vec::new();
    for (name, text) in sources() {
        let lines = text.lines().count();
        let listed = LONG_FILES.iter().find(|(n, _)| *n == name).map(|(_, l)| *l);
        if lines > listed.unwrap_or(FILE_LINES_MAX) {
            broken.push(format!("  {name}: {lines} lines: is it still one idea?"));
        }
    }
    report("files that grew past their limit", &broken);
}

#[test]
fn functions_do_not_grow_past_seventy_lines() {
    let sample = format!("fn f() {{\n{}}}\n", "    x;\n".repeat(FUNCTION_LINES_MAX));
    assert_eq!(long_functions(&sample), [("f".to_string(), FUNCTION_LINES_MAX + 2)]);
    let mut broken = Vec::new();
    for (file, text) in sources() {
        for (name, lines) in long_functions(&text) {
            let listed = LONG_FUNCTIONS.iter().find(|(f, n, _)| *f == file && *n == name);
            if lines > listed.map_or(FUNCTION_LINES_MAX, |l| l.2) {
                broken.push(format!("  {file}: fn {name} has {lines} lines"));
            }
        }
    }
    report("functions over 70 lines", &broken);
}

#[test]
fn every_file_says_what_it_is_for() {
    let opens = |text: &str| text.starts_with("//!") || text.starts_with("#![doc");
    assert!(!opens("use std::fmt;"));
    let broken: Vec<_> =
        sources().iter().filter(|(_, t)| !opens(t)).map(|(n, _)| format!("  {n}")).collect();
    report("files that do not open with //!", &broken);
}

#[test]
fn unsafe_stays_in_its_files_and_has_reasons() {
    assert_eq!(unexplained("fn f() {\n    unsafe { g() }\n}"), [2]);
    assert!(unexplained("// SAFETY: owned.\nunsafe impl Send for X {}").is_empty());
    let mut broken = Vec::new();
    for (name, text) in sources() {
        let holds = text.contains("unsafe {") || text.contains("unsafe impl");
        if holds && !UNSAFE_FILES.contains(&name.as_str()) {
            broken.push(format!("  {name}: unsafe code outside the allowed files"));
        }
        if holds && !text.contains("UNSAFETY:") {
            broken.push(format!("  {name}: no UNSAFETY: reason for the file"));
        }
        broken
            .extend(unexplained(&text).iter().map(|l| format!("  {name}:{l}: no SAFETY: reason")));
    }
    report("unsafe code", &broken);
}

#[test]
fn banned_words_stay_out() {
    let banned = |l: &str| BANNED.iter().any(|w| l.contains(w));
    assert_eq!(
        lines_where("sample", "a\nlet x = dbg!(1);", banned),
        ["  sample:2: let x = dbg!(1);"]
    );
    let broken: Vec<_> = sources().iter().flat_map(|(n, t)| lines_where(n, t, banned)).collect();
    report("banned words", &broken);
}

#[test]
fn the_engine_knows_nothing_of_the_world() {
    let mut broken = Vec::new();
    for (name, text) in sources().iter().filter(|(n, _)| n.starts_with("bdev/src/")) {
        let code = text.split("#[cfg(test)]").next().unwrap_or(text);
        let worldly = |l: &str| ENGINE_BANNED.iter().any(|w| l.contains(w));
        broken.extend(lines_where(name, code, worldly));
    }
    report("in bdev/, which has no I/O, clock, lock or randomness of its own", &broken);
    for (krate, allowed) in [("bdev", 0), ("rpc", 0), ("nvmf", 1), ("target", 3)] {
        let manifest =
            fs::read_to_string(root().join(krate).join("Cargo.toml")).expect("a manifest");
        let ours = manifest.lines().filter(|l| l.starts_with("lamina-")).count();
        assert!(ours <= allowed, "{krate} depends on {ours} crates of ours, {allowed} are allowed");
    }
}

#[test]
fn every_source_is_part_of_a_crate() {
    let sources = sources();
    let mut broken = Vec::new();
    for name in sources.keys().filter(|n| n.contains("/src/")) {
        let path = Path::new(name);
        let stem = path.file_stem().expect("a file").to_string_lossy().to_string();
        let folder = path.parent().expect("a folder");
        if ["lib", "main"].contains(&stem.as_str()) || folder.ends_with("src/bin") {
            continue;
        }
        let (module, parent) = match stem.as_str() {
            "mod" => (folder.file_name().expect("named"), folder.parent().expect("a parent")),
            _ => (path.file_stem().expect("a file"), folder),
        };
        let declared = format!("mod {};", module.to_string_lossy());
        let beside = parent.with_extension("rs");
        let by_path = format!("#[path = \"{}\"]", path.file_name().expect("named").display());
        let homes = ["lib.rs", "main.rs", "mod.rs"].map(|f| parent.join(f).display().to_string());
        let named = |t: &String| t.contains(&declared);
        let in_home = homes
            .iter()
            .chain([&beside.display().to_string()])
            .any(|home| sources.get(home).is_some_and(named));
        let prefix = format!("{}/", folder.display());
        let pathed = sources.iter().any(|(n, t)| n.starts_with(&prefix) && t.contains(&by_path));
        if !in_home && !pathed {
            broken.push(format!("  {name}: no `{declared}` leads to it"));
        }
    }
    report("dead files", &broken);
}

#[test]
fn scripts_can_be_run_and_stop_at_errors() {
    let mut broken = Vec::new();
    for name in ["scripts/demo", "scripts/test", "scripts/setup", "scripts/guest", ".ci/run"] {
        let path = root().join(name);
        let text = fs::read_to_string(&path).expect("a script");
        let mode = fs::metadata(&path).expect("a script").permissions();
        use std::os::unix::fs::PermissionsExt;
        let good = text.starts_with("#!") && text.contains("set -euo pipefail");
        if !good || mode.mode() & 0o111 == 0 {
            broken.push(format!("  {name}"));
        }
    }
    report("scripts without #!, `set -euo pipefail` or the right to run", &broken);
}

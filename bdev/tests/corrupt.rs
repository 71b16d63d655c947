//! A damaged store: whatever lies on disk, opening it ends, soon and in bounded memory, without a
//! panic; what is damaged is named with disk and block; the other disks serve every byte; and
//! `check` finds it. Each case damages one thing, most with the checksum made right again.

mod damage;
mod simple;

use damage::case::*;
use damage::journals::{JOURNALS, torn_journals};
use damage::logs::LOGS;
use damage::nodes::NODES;
use damage::pairs::PAIRS;
use damage::records::{DESCENT, RECORDS};
use damage::space::SPACE;
use damage::superblocks::{LABELS, SUPERBLOCKS};
use damage::{Due, Store, checked, repaired};
use lamina_bdev::check::FindingKind::{
    Bitmap, Catalogue, Counter, Journal, Label, Leak, NotAllocated, Superblock,
};
use lamina_bdev::check::{FindingKind, Severity};
use lamina_bdev::*;
use simple::{FILE, RAM, Rig};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// CPU time that opening, reading and writing a damaged store may take.
const CPU_NS_MAX: u64 = 2_000_000_000;
/// Memory that it may take, the engine's own included.
const MEMORY_KIB_MAX: u64 = 64 << 10;
/// Turns of the host's loop before opening counts as hung.
const TURNS_MAX: u64 = 200_000;

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for group in [SUPERBLOCKS, LABELS, RECORDS, DESCENT, LOGS, NODES, SPACE, PAIRS, JOURNALS] {
        all.extend(group.iter().map(|c| Case { ..*c }));
    }
    all.extend(torn_journals());
    all
}

/// Nanoseconds this thread has run.
fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

/// A line of /proc/self/status, KiB.
fn memory_kib(key: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with(key)).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Opens the store as a host would; the engine's state is what came of it.
fn open(disk: Vec<u8>, store: &Store) -> Result<Rig, String> {
    let label = read_label(&disk[..LABEL_BYTES], disk.len() as u64).map_err(|e| e.to_string())?;
    let mut rig = Rig::start(disk, label, store.traits);
    rig.cookie = 1 << 40;
    for _ in 0..TURNS_MAX {
        match rig.engine.state() {
            EngineState::Opening => rig.turn(),
            EngineState::Ready => return Ok(rig),
            EngineState::Failed => {
                let why = rig.engine.open_error().map(ToString::to_string);
                return Err(why.expect("a refusal says why"));
            }
        }
    }
    Err("HUNG: opening never ended".to_string())
}

fn attach(rig: &mut Rig, target: Target) -> Option<Handle> {
    match rig.command(Command::Attach(target)) {
        Ok(Reply::Handle(handle)) => Some(handle),
        Ok(other) => panic!("{other:?} is no handle"),
        Err(_) => None,
    }
}

/// A healthy disk reads what is due and takes writes.
fn assert_healthy(rig: &mut Rig, due: &Due, writes: bool) {
    let handle = attach(rig, due.target).unwrap_or_else(|| panic!("{} is gone", due.name));
    for (at, bytes) in &due.bytes {
        let mut data = vec![0x5a; bytes.len()];
        let status = rig.request(handle, Op::Read, *at, &mut data);
        assert_eq!(status, Status::Ok, "{} at {at}", due.name);
        assert!(data == *bytes, "{} reads other bytes at {at}", due.name);
    }
    if writes && matches!(due.target, Target::Disk(_)) {
        // Away from the bytes that are compared.
        assert_eq!(rig.request(handle, Op::Write, 2 << 30, &mut [7; 8192]), Status::Ok);
        assert_eq!(rig.request(handle, Op::Flush, 0, &mut []), Status::Ok);
        assert_eq!(rig.read(handle, 2 << 30, 8192), vec![7; 8192], "{}", due.name);
    }
    rig.command(Command::Detach(handle)).unwrap();
}

/// A damaged disk may answer anything but a panic or nothing at all.
fn use_victim(rig: &mut Rig, due: &Due) {
    let Some(handle) = attach(rig, due.target) else { return };
    for (at, bytes) in &due.bytes {
        rig.request(handle, Op::Read, *at, &mut vec![0; bytes.len()]);
        if matches!(due.target, Target::Disk(_)) {
            rig.request(handle, Op::Write, *at + 4096, &mut vec![9; 40 << 10]);
            rig.ranged(handle, Op::Discard, *at + (32 << 10), 32 << 10, &mut []);
        }
    }
    rig.command(Command::Detach(handle)).unwrap();
}

fn is_victim(case: &Case, due: &Due) -> bool {
    let disk = due.name.split('@').next().expect("a name");
    case.victims.contains(&disk)
}

/// Opens, serves, makes a consistency point, opens again.
fn serve(case: &Case, store: &Store, whole: &Store) {
    let mut rig = match open(store.disk.clone(), store) {
        Ok(rig) => rig,
        Err(why) => {
            assert_eq!(case.opens, Opens::Refused, "not served: {why}");
            return;
        }
    };
    assert_eq!(case.opens, Opens::Serves, "it was served");
    case.assert_named(&rig.take_events(), store, whole);
    let healthy: Vec<&Due> = store.due.iter().filter(|d| !is_victim(case, d)).collect();
    healthy.iter().for_each(|due| assert_healthy(&mut rig, due, true));
    store.due.iter().filter(|d| is_victim(case, d)).for_each(|due| use_victim(&mut rig, due));
    for _ in 0..3 {
        let _ = rig.command(Command::Checkpoint);
    }
    healthy.iter().for_each(|due| assert_healthy(&mut rig, due, true));
    let mut again = open(rig.disk, store).expect("it opens again");
    healthy.iter().for_each(|due| assert_healthy(&mut again, due, false));
}

fn look(case: &Case, store: &Store) {
    let report = match checked(&store.disk) {
        Ok(report) => report,
        Err(error) => {
            assert_eq!(case.finds, Some(Label), "it could not check: {error}");
            assert!(error.message.contains(case.says), "it says only: {error}");
            return;
        }
    };
    let texts: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    let Some(kind) = case.finds else {
        assert!(report.clean(), "{texts:#?}");
        return;
    };
    let named = report.findings.iter().find(|f| f.kind == kind && f.text.contains(case.says));
    let named = named.unwrap_or_else(|| panic!("check does not say {:?}: {texts:#?}", case.says));
    assert!(named.block.is_some(), "no block is named: {named}");
    let mended = named.severity == Severity::Note;
    assert!(!report.clean() || mended, "{texts:#?}");
}

fn run(case: &Case, whole: &Store) -> Result<(), String> {
    let mut store = whole.clone();
    let before = memory_kib("VmRSS");
    // Starts the peak anew; where that is not allowed, the peak of all cases has to do.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let start = cpu_ns();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        (case.damage)(&mut store);
        assert!(store.disk != whole.disk, "nothing was damaged");
        look(case, &store);
        serve(case, &store, whole);
    }));
    let (cpu, peak) = (cpu_ns() - start, memory_kib("VmHWM").saturating_sub(before));
    let copies = 2 * (store.disk.len() as u64 >> 10);
    outcome.map_err(|panic| panic_text(&*panic))?;
    if cpu > CPU_NS_MAX {
        return Err(format!("it took {} ms of CPU time", cpu / 1_000_000));
    }
    if peak > MEMORY_KIB_MAX + copies {
        return Err(format!("it took {peak} KiB of memory"));
    }
    Ok(())
}

/// What a repair without loss makes clean again.
const MENDED: [FindingKind; 7] =
    [Superblock, Label, Catalogue, Bitmap, NotAllocated, Leak, Counter];

/// What a repair that may cut off does not make clean: what a journal says of disks that are not
/// there stays, and of disks that descend from each other nobody knows which came first.
const NOT_CUT_CLEAN: &[&str] =
    &["origin: a cycle of two", "record: deleting, reaped to behind the end"];

/// Repairs, looks, and serves as `case` says or better.
fn mend(case: &Case, store: &mut Store, cut_off: bool) -> Result<bool, String> {
    let whole = checked(&store.disk).is_ok_and(|report| report.clean());
    let (report, done) = match repaired(&mut store.disk, cut_off) {
        Ok(found) => found,
        Err(error) => {
            assert_eq!(case.opens, Opens::Refused, "not repaired: {error}");
            return Ok(false);
        }
    };
    let clean = report.clean();
    if clean {
        assert!(!done.is_empty() || whole, "clean, but nothing was done");
        let (again, nothing) = repaired(&mut store.disk, cut_off).unwrap();
        assert!(again.clean() && nothing.is_empty(), "a second repair did {nothing:?}");
    }
    if let Ok(mut rig) = open(store.disk.clone(), store) {
        for due in store.due.iter().filter(|d| !is_victim(case, d)) {
            assert_healthy(&mut rig, due, true);
        }
    } else {
        assert_eq!(case.opens, Opens::Refused, "it is not served any more");
    }
    let must = case.finds.is_none_or(|kind| MENDED.contains(&kind))
        || cut_off && case.finds != Some(Journal) && !NOT_CUT_CLEAN.contains(&case.name);
    let lost = case.opens == Opens::Refused && case.finds != Some(Catalogue);
    if must && !lost && !clean {
        let texts: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        return Err(format!("not clean after repair (cut off: {cut_off}): {texts:#?}; {done:#?}"));
    }
    Ok(clean)
}

#[test]
fn repair_mends_what_it_can_and_harms_nobody() {
    let only = std::env::var("CORRUPT_CASE").ok();
    let whole = Store::new(RAM);
    let mut failed = Vec::new();
    for case in cases() {
        if only.as_ref().is_some_and(|only| !case.name.contains(only.as_str())) {
            continue;
        }
        for cut_off in [false, true] {
            let mut store = whole.clone();
            (case.damage)(&mut store);
            let outcome = catch_unwind(AssertUnwindSafe(|| mend(&case, &mut store, cut_off)));
            match outcome {
                Ok(Ok(_)) => {}
                Ok(Err(why)) => failed.push(format!("{}: {why}", case.name)),
                Err(panic) => failed.push(format!("{}: {}", case.name, panic_text(&*panic))),
            }
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
}

#[test]
fn no_damage_panics_hangs_or_spreads() {
    let only = std::env::var("CORRUPT_CASE").ok();
    let mut failed = Vec::new();
    let mut count = 0;
    for traits in [RAM, FILE] {
        let whole = Store::new(traits);
        let report = checked(&whole.disk).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        assert!(report.counts.journal_records >= 40, "{:?}", report.counts);
        for case in cases() {
            if only.as_ref().is_some_and(|only| !case.name.contains(only.as_str())) {
                continue;
            }
            count += 1;
            if let Err(why) = run(&case, &whole) {
                failed.push(format!("{} ({traits:?}): {why}", case.name));
            }
        }
    }
    assert!(count >= 2 * 60 || only.is_some(), "only {count} cases");
    assert!(failed.is_empty(), "{} of {count} failed:\n{}", failed.len(), failed.join("\n"));
}

/// Where nothing tears, a block at the journal's end that says what it was has rotted.
#[test]
fn a_lost_journal_block_seals_its_disk_until_the_loss_is_accepted() {
    let mut store =
        Store::new(BaseTraits { volatile_cache: true, atomic_4k: true, atomic_rw: false });
    let block = store.journal(store.last());
    store.rot(block, |b| b[1000] ^= 1);
    let find = |name| store.due.iter().find(|d| d.name == name).expect("it is listed").clone();
    let (well, solo) = (find("well"), find("solo"));
    let mut rig = open(store.disk.clone(), &store).unwrap();
    for _ in 0..2 {
        let refused = rig.command(Command::Attach(well.target)).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Corrupt);
        assert!(refused.message.contains("well is sealed"), "{refused}");
        assert_healthy(&mut rig, &solo, true);
        let texts: Vec<String> = rig.take_events().into_iter().map(|e| e.text).collect();
        assert!(texts.iter().any(|text| text.contains("journal block")), "{texts:?}");
        // The journal is gone after the first time; the record knows.
        rig = open(rig.disk, &store).unwrap();
    }
    let mut disk = rig.disk;
    assert!(!checked(&disk).unwrap().clean());
    assert!(!repaired(&mut disk, false).unwrap().0.clean(), "it takes a decision");
    assert!(repaired(&mut disk, true).unwrap().0.clean());
    let mut rig = open(disk, &store).unwrap();
    assert!(attach(&mut rig, well.target).is_some());
    assert_healthy(&mut rig, &solo, true);
}

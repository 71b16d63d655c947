//! A store is known by either of its labels; what it is called stays claimed until it is listed.

use std::path::PathBuf;

use clap::Parser;

use super::*;
use crate::base::HostBase;
use crate::config::Config;
use crate::control::device::HostDevice;
use crate::control::host::Host;
use crate::control::stores::FailedStore;
use crate::reactor::handle::ReactorHandle;
use crate::testing::TempDir;

/// The labels of a store, on a device that cannot read some of its blocks.
struct Worn {
    labels: Vec<u8>,
    bad: Vec<u64>,
}

const SIZE: u64 = 64 << 20;

impl HostDevice for Worn {
    fn name(&self) -> String {
        "worn".to_string()
    }

    fn size(&self) -> u64 {
        SIZE
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> Result<(), Error> {
        let range = offset..offset + out.len() as u64;
        if self.bad.iter().any(|block| range.contains(&(block * BLOCK_SIZE as u64))) {
            return Err(Error::new(ErrorKind::Io, "a bad block"));
        }
        out.copy_from_slice(&self.labels[range.start as usize..range.end as usize]);
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: u64) -> Result<(), Error> {
        Err(Error::new(ErrorKind::Io, "it is only read"))
    }

    fn sync(&self) -> Result<(), Error> {
        Ok(())
    }

    fn base(&self, _: Region) -> Result<Box<dyn HostBase>, Error> {
        Err(Error::new(ErrorKind::Io, "nothing is served from it"))
    }
}

/// The labels of a new store.
fn labels(text: &str, uuid: Uuid) -> Vec<u8> {
    let plan = lamina_bdev::format_plan(&FormatParams {
        uuid,
        name: name(text).unwrap(),
        device_bytes: SIZE,
        shards: 1,
        journal_bytes: 0,
        time: 1,
    });
    plan.unwrap().pop().expect("labels come last").bytes
}

#[test]
fn a_store_of_which_one_label_cannot_be_read_is_known_by_the_other() {
    let uuid = random::new_uuid();
    let labels = labels("worn", uuid);
    let read = |bad: &[u64]| {
        let device = Worn { labels: labels.clone(), bad: bad.to_vec() };
        read_label(&Device::Host(Arc::new(device)), "worn")
    };
    for bad in [&[][..], &[0], &[1]] {
        assert_eq!(read(bad).unwrap().uuid, uuid, "without block {bad:?}");
    }
    assert_eq!(read(&[0, 1]).unwrap_err().kind, ErrorKind::Io);
}

/// Nothing is driven, and nothing opened.
struct Idle;

impl Host for Idle {
    fn place_shard(&self) -> Result<Arc<ReactorHandle>, Error> {
        Err(Error::new(ErrorKind::Io, "nothing is driven"))
    }

    fn open(&self, _: &str) -> Result<Device, Error> {
        Err(Error::new(ErrorKind::Io, "nothing is opened"))
    }

    fn open_new(&self, _: &str, _: Option<u64>, _: bool) -> Result<(Device, bool), Error> {
        Err(Error::new(ErrorKind::Io, "nothing is made"))
    }
}

fn control(dir: &TempDir) -> Arc<Control> {
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (state, exports) = (path("state"), path("exports"));
    let args = ["laminad", "--state-dir", &state, "--export-dir", &exports];
    let (stop, _) = std::sync::mpsc::sync_channel(1);
    Control::start_on(&Config::parse_from(args), stop, Box::new(Idle)).unwrap()
}

/// In the way of a new state file, until removed.
fn block_state(dir: &TempDir) -> PathBuf {
    let way = dir.path().join("state/stores.json.new");
    std::fs::create_dir(&way).unwrap();
    way
}

fn kind<T>(result: Result<T, Error>) -> ErrorKind {
    result.err().expect("it is refused").kind
}

#[test]
fn a_store_that_cannot_be_written_down_is_not_there_and_still_claimed() {
    let dir = TempDir::new("claims");
    let control = control(&dir);
    let file = dir.path().join("file");
    let path = file.to_str().unwrap();
    let (device, _) = Device::for_new_store(path, Some(SIZE), false).unwrap();
    let label = lamina_bdev::read_label(&labels("a", random::new_uuid()), SIZE).unwrap();
    let store = Arc::new(Store::new(&label, device, path));
    let known = KnownStore { path: path.into(), warnings: Some(vec![42]), ..Default::default() };
    control.stores_mut().failed.push(FailedStore { known: known.clone() });

    let way = block_state(&dir);
    let claim = control.claim_store(path, Some(label.name)).unwrap();
    assert!(control.list(&claim, &store).is_err());
    assert!(control.open_stores().is_empty());
    // Whoever made a file for it removes that now: nobody else may have put anything there.
    assert_eq!(kind(control.claim_store(path, None)), ErrorKind::Busy);
    assert_eq!(kind(control.claim_store("ram:1G", Some(label.name))), ErrorKind::Busy);
    drop(claim);
    assert_eq!(control.stores_mut().failed[0].known, known, "what was known is known again");

    let claim = control.claim_store(path, Some(label.name)).unwrap();
    std::fs::remove_dir(&way).unwrap();
    control.list(&claim, &store).unwrap();
    assert_eq!(control.state.load().unwrap(), [store.known().unwrap()]);
    assert_eq!(store.known().unwrap().warnings, Some(vec![42]));
    drop(claim);
    let stores = control.stores_mut();
    assert_eq!((stores.open.len(), stores.coming.len(), stores.failed.len()), (1, 0, 0));
    drop(stores);
    assert_eq!(kind(control.claim_store(path, None)), ErrorKind::Exists);
    assert!(control.shut_down());
}

#[test]
fn a_daemon_that_stops_waits_for_what_cannot_be_written_down() {
    let dir = TempDir::new("claims-stop");
    let control = control(&dir);
    let label = lamina_bdev::read_label(&labels("a", random::new_uuid()), SIZE).unwrap();
    let device = Device::Host(Arc::new(Worn { labels: Vec::new(), bad: Vec::new() }));
    let store = Arc::new(Store::new(&label, device, "bdev:worn"));
    let _way = block_state(&dir);
    let claim = control.claim_store("bdev:worn", None).unwrap();
    assert!(control.list(&claim, &store).is_err());
    let daemon = control.clone();
    let stopped = std::thread::spawn(move || daemon.shut_down());
    while control.refuse_when_stopping().is_ok() {
        std::thread::yield_now();
    }
    assert!(!stopped.is_finished(), "its file is still to be removed");
    drop(claim);
    assert!(stopped.join().unwrap(), "all has come to its end");
}

#[test]
fn a_path_that_is_not_there_yet_has_one_spelling() {
    let dir = TempDir::new("claims-path");
    let control = control(&dir);
    std::fs::create_dir(dir.path().join("real")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("real"), dir.path().join("link")).unwrap();
    let at = |name: &str| absolute(dir.path().join(name).to_str().unwrap());
    let claim = control.claim_store(&at("real/new"), None).unwrap();
    for other in ["link/new", "real/./new", "link/../real/new", "link//new"] {
        assert_eq!(kind(control.claim_store(&at(other), None)), ErrorKind::Busy, "{other}");
    }
    let made = claim.path.clone();
    drop(claim);
    // The same when it is there.
    std::fs::write(&made, "").unwrap();
    assert_eq!((at("real/new"), at("link/new")), (made.clone(), made));
    // Without a folder there is nothing to be found twice.
    assert_eq!(absolute("/nonexistent/file"), "/nonexistent/file");
    assert_eq!(absolute("/"), "/");
    assert!(control.shut_down());
}

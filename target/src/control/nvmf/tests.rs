//! What of a disk must be let go before something of it is deleted.

use lamina_bdev::FormatParams;

use super::*;
use crate::base::ram::RamDevice;
use crate::control::{device, random};
use crate::testing::TempDir;

const SIZE: u64 = 64 << 20;

fn store() -> Arc<Store> {
    let plan = lamina_bdev::format_plan(&FormatParams {
        uuid: random::new_uuid(),
        name: super::super::name("pool").unwrap(),
        device_bytes: SIZE,
        shards: 1,
        journal_bytes: 0,
        time: 1,
    });
    let labels = plan.unwrap().pop().expect("labels come last").bytes;
    let label = lamina_bdev::read_label(&labels, SIZE).unwrap();
    let ram = Arc::new(RamDevice::sparse(SIZE).unwrap());
    Arc::new(Store::new(&label, device::Device::Ram(ram), "ram:64M"))
}

fn hung(store: &Arc<Store>, disk: DiskId, dev: Exported, key: u64) -> Device {
    Device {
        key: DeviceKey(key),
        store: store.clone(),
        shard: 0,
        disk,
        dev,
        uuid: random::new_uuid(),
        alias: "pool/disk".into(),
        bytes: 1 << 20,
        readonly: false,
        handle: Handle(7),
        shown: Vec::new(),
        leaving: true,
    }
}

#[test]
fn a_snapshot_waits_for_its_own_attachment_only() {
    let dir = TempDir::new("nvmf-leaving");
    let nvmf = Nvmf::start(dir.path().to_path_buf(), Vec::new()).unwrap();
    let (store, other) = (store(), store());
    let disk = DiskId(3);
    let (a, b) = (Exported::Snapshot(1), Exported::Snapshot(2));
    let devices = [
        hung(&store, disk, Exported::Disk, 1),
        hung(&store, disk, a, 2),
        hung(&store, disk, b, 3),
        hung(&store, DiskId(4), a, 4),
        hung(&other, disk, a, 5),
    ];
    let of = |dev| {
        let its = devices.iter().filter(|device| device.is_of(&store, 0, disk, dev));
        its.map(|device| device.key.0).collect::<Vec<_>>()
    };
    assert_eq!((of(Some(a)), of(Some(b))), (vec![2], vec![3]));
    assert_eq!(of(None), [1, 2, 3], "all of a disk goes with it");

    // The others are not even asked: these stores have no shard that could answer.
    nvmf.devices().extend(devices.iter().filter(|device| device.key.0 != 2).cloned());
    nvmf.finish_leaving(&store, 0, disk, Some(a)).unwrap();
    let left: Vec<u64> = nvmf.devices().iter().map(|device| device.key.0).collect();
    assert_eq!(left, [1, 3, 4, 5]);
    nvmf.devices().clear();
    nvmf.stop().unwrap();
}

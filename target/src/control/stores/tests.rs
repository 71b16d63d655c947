//! A store is known by either of its labels.

use super::*;
use crate::base::HostBase;
use crate::control::device::HostDevice;

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

#[test]
fn a_store_of_which_one_label_cannot_be_read_is_known_by_the_other() {
    let uuid = random::new_uuid();
    let plan = lamina_bdev::format_plan(&FormatParams {
        uuid,
        name: name("worn").unwrap(),
        device_bytes: SIZE,
        shards: 1,
        journal_bytes: 0,
        time: 1,
    });
    let labels = plan.unwrap().pop().expect("labels come last").bytes;
    let read = |bad: &[u64]| {
        let device = Worn { labels: labels.clone(), bad: bad.to_vec() };
        read_label(&Device::Host(Arc::new(device)), "worn")
    };
    for bad in [&[][..], &[0], &[1]] {
        assert_eq!(read(bad).unwrap().uuid, uuid, "without block {bad:?}");
    }
    assert_eq!(read(&[0, 1]).unwrap_err().kind, ErrorKind::Io);
}

//! What is compared: groups of targets that serve the same loads in the same run.

/// How requests reach the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Client {
    /// vhost-user-blk, SPDK's `bdevperf` on its virtio driver.
    BdevPerf,
    /// vhost-user-blk, the crate `virtio-driver`.
    VirtioDriver,
    /// NVMe/TCP on the loopback, SPDK's `spdk_nvme_perf`.
    NvmePerf,
    /// NVMe/TCP on the loopback, our own initiator.
    Initiator,
}

/// Who serves the disk, on what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// laminad, a thin disk, every block written, store in RAM.
    Lamina,
    /// The same, then 1,000 snapshots.
    LaminaDeep,
    /// laminad, store on the null base.
    LaminaNull,
    /// laminad, store in a file.
    LaminaFile,
    /// SPDK's logical volume, thin, every block written, on its malloc device.
    SpdkLvol,
    /// The same, then 100 snapshots.
    SpdkLvolDeep,
    /// SPDK's logical volume on a file.
    SpdkLvolFile,
    /// SPDK's malloc device.
    SpdkMalloc,
    /// SPDK's null device.
    SpdkNull,
    /// qemu-storage-daemon, raw image in RAM.
    QemuRaw,
    /// qemu-storage-daemon, qcow2 image in RAM.
    QemuQcow2,
    /// qemu-storage-daemon, raw image in a file.
    QemuRawFile,
    /// qemu-storage-daemon, qcow2 image in a file.
    QemuQcow2File,
}

impl Peer {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Peer::Lamina => "Lamina",
            Peer::LaminaDeep => "Lamina, 1,000 snapshots",
            Peer::LaminaNull => "Lamina, null base",
            Peer::LaminaFile => "Lamina, file",
            Peer::SpdkLvol => "SPDK lvol",
            Peer::SpdkLvolDeep => "SPDK lvol, 100 snapshots",
            Peer::SpdkLvolFile => "SPDK lvol, file",
            Peer::SpdkMalloc => "SPDK malloc",
            Peer::SpdkNull => "SPDK null",
            Peer::QemuRaw => "qemu raw",
            Peer::QemuQcow2 => "qemu qcow2",
            Peer::QemuRawFile => "qemu raw, file",
            Peer::QemuQcow2File => "qemu qcow2, file",
        }
    }

    /// True if it is SPDK's.
    pub fn is_spdk(self) -> bool {
        self.name().starts_with("SPDK")
    }

    /// True if it is QEMU's.
    pub fn is_qemu(self) -> bool {
        self.name().starts_with("qemu")
    }

    /// Snapshots it has before it is measured.
    pub fn snapshots(self) -> usize {
        match self {
            Peer::LaminaDeep => 1000,
            Peer::SpdkLvolDeep => 100,
            _ => 0,
        }
    }
}

/// One load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Case {
    /// Writes, otherwise reads.
    pub write: bool,
    /// Bytes of a request; more than 4 KiB: in sequence, otherwise at random.
    pub bytes: u32,
    /// Requests in flight.
    pub depth: u32,
    /// Only the first write to each 4 MiB after a snapshot; see [`super::fresh`].
    pub fresh: bool,
}

impl Case {
    /// For tables.
    pub fn name(self) -> String {
        if self.fresh {
            return format!("first 4 KiB write to each 4 MiB after a snapshot, QD {}", self.depth);
        }
        let verb = if self.write { "write" } else { "read" };
        let order = if self.is_random() { "random" } else { "sequential" };
        format!("{} KiB {order} {verb}, QD {}", self.bytes >> 10, self.depth)
    }

    /// True if requests go anywhere.
    pub fn is_random(self) -> bool {
        self.bytes == 4096
    }

    /// What SPDK's clients call it.
    pub fn workload(self) -> &'static str {
        match (self.is_random(), self.write) {
            (true, false) => "randread",
            (true, true) => "randwrite",
            (false, false) => "read",
            (false, true) => "write",
        }
    }
}

/// Targets and loads; the first target is held against the others.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// Also the name of its plot.
    pub key: &'static str,
    /// For tables.
    pub title: &'static str,
    /// How requests reach the targets.
    pub client: Client,
    /// Who serves.
    pub peers: &'static [Peer],
    /// What is asked for.
    pub cases: &'static [Case],
}

const fn case(write: bool, bytes: u32, depth: u32) -> Case {
    Case { write, bytes, depth, fresh: false }
}

const READ: Case = case(false, 4096, 64);
const WRITE: Case = case(true, 4096, 64);
const READ_1: Case = case(false, 4096, 1);
const WRITE_1: Case = case(true, 4096, 1);
const LARGE: [Case; 2] = [case(false, 128 << 10, 16), case(true, 128 << 10, 16)];
const FIRST_WRITE: Case = Case { fresh: true, ..WRITE };
/// Filling a disk.
pub const FILL: Case = LARGE[1];

/// All of them.
pub const GROUPS: [Group; 8] = [
    Group {
        key: "vhost",
        title: "vhost-user-blk, RAM",
        client: Client::BdevPerf,
        peers: &[Peer::Lamina, Peer::SpdkLvol, Peer::SpdkMalloc],
        cases: &[READ, WRITE, READ_1, WRITE_1, LARGE[0], LARGE[1]],
    },
    Group {
        key: "vhost-null",
        title: "vhost-user-blk, null device",
        client: Client::BdevPerf,
        peers: &[Peer::LaminaNull, Peer::SpdkNull],
        cases: &[READ, WRITE, READ_1],
    },
    Group {
        key: "vhost-depth",
        title: "vhost-user-blk, RAM, snapshots",
        client: Client::BdevPerf,
        peers: &[Peer::LaminaDeep, Peer::Lamina, Peer::SpdkLvolDeep],
        cases: &[READ],
    },
    Group {
        key: "vhost-file",
        title: "vhost-user-blk, file",
        client: Client::BdevPerf,
        peers: &[Peer::LaminaFile, Peer::SpdkLvolFile],
        cases: &[READ, WRITE, READ_1],
    },
    Group {
        key: "qemu",
        title: "vhost-user-blk, RAM, beside QEMU",
        client: Client::VirtioDriver,
        peers: &[Peer::Lamina, Peer::QemuRaw, Peer::QemuQcow2],
        cases: &[READ, WRITE, READ_1],
    },
    Group {
        key: "qemu-file",
        title: "vhost-user-blk, file, beside QEMU",
        client: Client::VirtioDriver,
        peers: &[Peer::LaminaFile, Peer::QemuRawFile, Peer::QemuQcow2File],
        cases: &[READ, WRITE, READ_1],
    },
    Group {
        key: "nvme",
        title: "NVMe/TCP, RAM",
        client: Client::NvmePerf,
        peers: &[Peer::Lamina, Peer::SpdkLvol, Peer::SpdkMalloc],
        cases: &[READ, WRITE, READ_1, WRITE_1],
    },
    Group {
        key: "snapshot",
        title: "NVMe/TCP, RAM, snapshots",
        client: Client::Initiator,
        peers: &[Peer::Lamina, Peer::SpdkLvol],
        cases: &[FIRST_WRITE],
    },
];

/// A promise: the first target's rate is at least so many times another's.
#[derive(Clone, Copy, Debug)]
pub struct Promise {
    /// Of which group.
    pub group: &'static str,
    /// Of which load.
    pub case: Case,
    /// Held against whom.
    pub to: Peer,
    /// At least.
    pub ratio: f64,
}

const fn promise(group: &'static str, case: Case, to: Peer, ratio: f64) -> Promise {
    Promise { group, case, to, ratio }
}

/// What is promised of these rows.
pub const PROMISES: [Promise; 17] = [
    promise("vhost", READ, Peer::SpdkLvol, 1.5),
    promise("vhost", READ, Peer::SpdkMalloc, 1.25),
    promise("vhost", WRITE, Peer::SpdkLvol, 1.5),
    promise("vhost", WRITE, Peer::SpdkMalloc, 1.25),
    promise("vhost", READ_1, Peer::SpdkMalloc, 1.0),
    promise("vhost-null", READ, Peer::SpdkNull, 1.0),
    promise("vhost-null", WRITE, Peer::SpdkNull, 1.0),
    promise("vhost-depth", READ, Peer::Lamina, 0.97),
    promise("snapshot", FIRST_WRITE, Peer::SpdkLvol, 100.0),
    promise("nvme", READ, Peer::SpdkLvol, 1.1),
    promise("nvme", READ, Peer::SpdkMalloc, 1.0),
    promise("nvme", WRITE, Peer::SpdkLvol, 1.1),
    promise("nvme", WRITE, Peer::SpdkMalloc, 1.0),
    promise("nvme", READ_1, Peer::SpdkLvol, 1.0),
    promise("nvme", READ_1, Peer::SpdkMalloc, 1.0),
    promise("nvme", WRITE_1, Peer::SpdkLvol, 1.0),
    promise("nvme", WRITE_1, Peer::SpdkMalloc, 1.0),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_promise_is_about_a_row_that_is_measured() {
        for promise in PROMISES {
            let group = GROUPS.iter().find(|group| group.key == promise.group).unwrap();
            assert!(group.cases.contains(&promise.case), "{promise:?}");
            assert!(group.peers[1..].contains(&promise.to), "{promise:?}");
        }
    }
}

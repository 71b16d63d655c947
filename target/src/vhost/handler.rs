//! The vhost-user messages, translated to operations of a [`Session`].
//!
//! The `vhost` crate reads and checks the wire; each method here is one message. An error closes
//! the connection after it was answered, as the front-end and we no longer agree on the state.

use std::fs::File;
use std::io;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Backend, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::features::CONFIG_WCE_AT;
use super::inflight::{InflightLog, LogShape};
use super::message::EventKind;
use super::session::{Session, refuse};
use super::vring::RingAddrs;
use crate::mem::guest::{GuestMemory, REGIONS_MAX, Region, RegionSpec};

fn wrap<T>(result: io::Result<T>) -> Result<T> {
    result.map_err(Error::ReqHandlerError)
}

/// For messages that belong to protocol features we do not offer.
fn not_offered<T>(what: &str) -> Result<T> {
    wrap(refuse(format!("{what} was never offered by this device")))
}

fn region_spec(region: &VhostUserMemoryRegion) -> RegionSpec {
    RegionSpec {
        guest_addr: region.guest_phys_addr,
        size: region.memory_size,
        user_addr: region.user_addr,
        offset: region.mmap_offset,
    }
}

/// What the protocol lets us do beyond its core.
pub(super) fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::RESET_DEVICE
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        wrap(self.reset())
    }

    fn reset_device(&mut self) -> Result<()> {
        wrap(self.reset())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        wrap(self.accept_features(features))
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let mapped = regions
            .iter()
            .zip(&files)
            .map(|(region, file)| Region::map(region_spec(region), file))
            .collect::<std::result::Result<Vec<_>, _>>();
        let memory = mapped.and_then(GuestMemory::new).map_err(io::Error::other);
        wrap(memory.and_then(|memory| self.use_memory(memory)))?;
        Ok(None)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(REGIONS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<u64>> {
        let mapped = Region::map(region_spec(region), &file).map_err(io::Error::other);
        wrap(mapped.and_then(|region| self.add_region(region)))?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let memory = self.memory().without(&region_spec(region)).map_err(io::Error::other);
        wrap(memory.and_then(|memory| self.use_memory(memory)))
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        wrap(self.set_size(index, num))
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let addrs = RingAddrs { desc: descriptor, driver: available, device: used };
        wrap(self.set_addrs(index, addrs))
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        wrap(self.set_base(index, base))
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        Ok(VhostUserVringState::new(index, wrap(self.take_base(index))?))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        wrap(self.set_event(index.into(), EventKind::Kick, fd))
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        wrap(self.set_event(index.into(), EventKind::Call, fd))
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        wrap(self.set_event(index.into(), EventKind::Error, fd))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        wrap(self.enable(index, enable))
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(protocol_features())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !protocol_features().bits();
        if unknown != 0 {
            return wrap(refuse(format!("protocol features {unknown:#x} were never offered")));
        }
        self.shared.update_status(|status| status.protocol_features = features);
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.shared.config.queues_max.into())
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        let space = self.config_space();
        let start = offset as usize;
        let range = start..start.saturating_add(size as usize);
        space.get(range).map(<[u8]>::to_vec).ok_or(Error::InvalidParam)
    }

    fn set_config(&mut self, offset: u32, buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        if offset as usize != CONFIG_WCE_AT || buf.len() != 1 {
            return wrap(refuse(format!(
                "configuration bytes {offset} and on cannot be changed, only the write cache"
            )));
        }
        self.shared.set_write_cache(buf[0] != 0);
        Ok(())
    }

    /// The crate's proxy cannot say "configuration changed"; [`super::socket`] keeps the channel.
    fn set_backend_req_fd(&mut self, _backend: Backend) {}

    fn get_inflight_fd(
        &mut self,
        inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        let shape = LogShape { queues: inflight.num_queues, queue_size: inflight.queue_size };
        let packed = self.is_packed();
        let queues_max = self.shared.config.queues_max;
        let file = InflightLog::create(shape, packed, queues_max).map_err(io::Error::other);
        let file = wrap(file)?;
        let reply = VhostUserInflight::new(shape.bytes(packed), 0, shape.queues, shape.queue_size);
        Ok((reply, file))
    }

    fn set_inflight_fd(&mut self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        let shape = LogShape { queues: inflight.num_queues, queue_size: inflight.queue_size };
        let queues_max = self.shared.config.queues_max;
        let log =
            InflightLog::map(shape, queues_max, &file, inflight.mmap_offset, inflight.mmap_size);
        self.log = Some(wrap(log.map_err(io::Error::other))?);
        Ok(())
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        not_offered("a GPU socket")
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        not_offered("sharing of objects")
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        not_offered("transfer of the device's state")
    }

    fn check_device_state(&mut self) -> Result<()> {
        not_offered("transfer of the device's state")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        not_offered("device memory")
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        not_offered("logging of dirty pages")
    }
}

//! What `nvmf_create_transport` sets: how large queues, commands and PDUs may be.

use lamina_nvmf::{controller, transport};

use super::listener::BACKLOG;

/// Settings of the TCP transport; new connections go by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Most entries of an I/O queue.
    pub queue_entries_max: u16,
    /// Most entries of an admin queue.
    pub admin_entries_max: u16,
    /// Most I/O queues of a controller.
    pub io_queues_max: u16,
    /// Data in a command capsule, bytes.
    pub in_capsule_bytes: u32,
    /// Most bytes of one command.
    pub data_bytes_max: u32,
    /// Most data of one PDU to the host, bytes.
    pub pdu_bytes_max: u32,
    /// A read's last data stands for its completion where that may be.
    pub c2h_success: bool,
    /// Connections that may wait to be accepted at a listener.
    pub backlog: i32,
}

impl Default for Settings {
    fn default() -> Settings {
        let limits = controller::Limits::default();
        Settings {
            queue_entries_max: limits.queue_entries_max,
            admin_entries_max: limits.admin_entries_max,
            io_queues_max: limits.io_queues_max,
            in_capsule_bytes: limits.in_capsule_bytes,
            data_bytes_max: limits.data_bytes_max,
            pdu_bytes_max: limits.data_bytes_max,
            c2h_success: true,
            backlog: BACKLOG,
        }
    }
}

impl Settings {
    /// What controllers offer.
    pub fn controller_limits(&self) -> controller::Limits {
        controller::Limits {
            data_bytes_max: self.data_bytes_max,
            in_capsule_bytes: self.in_capsule_bytes,
            queue_entries_max: self.queue_entries_max,
            admin_entries_max: self.admin_entries_max,
            io_queues_max: self.io_queues_max,
            ..controller::Limits::default()
        }
    }

    /// What a connection may do. Connect and admin commands bring up to 8 KiB in their capsules
    /// whatever I/O commands may.
    pub fn connection_limits(&self) -> transport::Limits {
        let plain = transport::Limits::default();
        transport::Limits {
            in_capsule: self.in_capsule_bytes.max(transport::ADMIN_IN_CAPSULE),
            data_max: self.data_bytes_max.max(transport::ADMIN_IN_CAPSULE),
            maxh2cdata: self.data_bytes_max,
            c2h_data_max: self.pdu_bytes_max,
            success_flag: self.c2h_success,
            ..plain
        }
    }
}

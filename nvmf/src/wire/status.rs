//! Status codes (Base 2.1, 4.2.3; NVM 1.1, 3.1).

use std::fmt;

/// Status of a completion: code (bits 7:0), code type (10:8), retry delay (12:11), more (13) and do
/// not retry (14). Bit 15 is never set; the phase bit of the wire is not part of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Status(pub u16);

/// Makes the constants and the table of their names.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl Status {
            $($(#[$doc])* pub const $name: Status = Status($value);)*

            /// All named codes.
            const NAMES: &[(u16, &str)] = &[$(($value, stringify!($name))),*];
        }
    };
}

codes! {
    // Generic command status (type 0h; Base 4.2.3.1).
    /// The command succeeded.
    SUCCESS = 0x000;
    /// An opcode that does not exist here.
    INVALID_OPCODE = 0x001;
    /// A field that is reserved, not supported or out of bounds.
    INVALID_FIELD = 0x002;
    /// The command identifier is in use.
    COMMAND_ID_CONFLICT = 0x003;
    /// Moving data or metadata failed.
    DATA_TRANSFER_ERROR = 0x004;
    /// The controller lost power.
    ABORTED_POWER_LOSS = 0x005;
    /// An error of the controller itself.
    INTERNAL_ERROR = 0x006;
    /// An Abort command ended it.
    ABORTED_BY_REQUEST = 0x007;
    /// Its queue was deleted.
    ABORTED_SQ_DELETION = 0x008;
    /// The other of two fused commands failed.
    ABORTED_FAILED_FUSED = 0x009;
    /// The other of two fused commands is not there.
    ABORTED_MISSING_FUSED = 0x00a;
    /// No such namespace, or a format that it cannot have.
    INVALID_NAMESPACE_OR_FORMAT = 0x00b;
    /// A command that may not come now.
    COMMAND_SEQUENCE_ERROR = 0x00c;
    /// An SGL segment descriptor where none may be.
    INVALID_SGL_SEGMENT_DESCRIPTOR = 0x00d;
    /// Too many or too few SGL descriptors.
    INVALID_SGL_DESCRIPTORS = 0x00e;
    /// The length of data does not fit the command or the capsule.
    DATA_SGL_LENGTH_INVALID = 0x00f;
    /// The length of metadata does not fit.
    METADATA_SGL_LENGTH_INVALID = 0x010;
    /// An SGL descriptor of a type that is not supported.
    SGL_DESCRIPTOR_TYPE_INVALID = 0x011;
    /// A PRP offset out of place.
    PRP_OFFSET_INVALID = 0x013;
    /// More than the atomic write unit.
    ATOMIC_WRITE_UNIT_EXCEEDED = 0x014;
    /// Access control refuses it.
    OPERATION_DENIED = 0x015;
    /// An SGL offset outside of the capsule.
    SGL_OFFSET_INVALID = 0x016;
    /// The host identifier differs in format from that of others.
    HOST_IDENTIFIER_INCONSISTENT_FORMAT = 0x018;
    /// The keep-alive timer ran out.
    KEEP_ALIVE_EXPIRED = 0x019;
    /// A keep-alive timeout that is too short or too long.
    KEEP_ALIVE_TIMEOUT_INVALID = 0x01a;
    /// Ended since another one's Preempt and Abort took the reservation.
    ABORTED_PREEMPT = 0x01b;
    /// Sanitize failed.
    SANITIZE_FAILED = 0x01c;
    /// Sanitize runs.
    SANITIZE_IN_PROGRESS = 0x01d;
    /// SGL data block granularity.
    SGL_GRANULARITY_INVALID = 0x01e;
    /// Not for the controller memory buffer.
    COMMAND_NOT_SUPPORTED_FOR_CMB = 0x01f;
    /// The namespace may not be written.
    NAMESPACE_IS_WRITE_PROTECTED = 0x020;
    /// Broken off; the host may send it again.
    COMMAND_INTERRUPTED = 0x021;
    /// The transport failed this once.
    TRANSIENT_TRANSPORT_ERROR = 0x022;
    /// Lockdown forbids it.
    PROHIBITED_BY_LOCKDOWN = 0x023;
    /// The media is not ready.
    ADMIN_MEDIA_NOT_READY = 0x024;
    /// The host has no identifier, which this command needs.
    HOST_IDENTIFIER_NOT_INITIALIZED = 0x027;
    /// An FDP error.
    FDP_DISABLED = 0x029;
    /// Blocks beyond the end of the namespace.
    LBA_OUT_OF_RANGE = 0x080;
    /// No space left.
    CAPACITY_EXCEEDED = 0x081;
    /// The namespace cannot serve now.
    NAMESPACE_NOT_READY = 0x082;
    /// Another host's reservation forbids it.
    RESERVATION_CONFLICT = 0x083;
    /// A format runs.
    FORMAT_IN_PROGRESS = 0x084;

    // Command specific status (type 1h; Base 4.2.3.2).
    /// Completion queue invalid.
    COMPLETION_QUEUE_INVALID = 0x100;
    /// No such queue.
    INVALID_QUEUE_IDENTIFIER = 0x101;
    /// A queue size of 0 or too big.
    INVALID_QUEUE_SIZE = 0x102;
    /// Too many Abort commands at a time.
    ABORT_LIMIT_EXCEEDED = 0x103;
    /// Too many Asynchronous Event Requests at a time.
    ASYNC_EVENT_LIMIT_EXCEEDED = 0x105;
    /// No such firmware slot.
    INVALID_FIRMWARE_SLOT = 0x106;
    /// No such firmware image.
    INVALID_FIRMWARE_IMAGE = 0x107;
    /// A log page that does not exist here.
    INVALID_LOG_PAGE = 0x109;
    /// A format that is not supported.
    INVALID_FORMAT = 0x10a;
    /// The feature cannot be saved.
    FEATURE_NOT_SAVEABLE = 0x10d;
    /// The feature cannot be changed.
    FEATURE_NOT_CHANGEABLE = 0x10e;
    /// The feature is not one of a namespace.
    FEATURE_NOT_NAMESPACE_SPECIFIC = 0x10f;
    /// The namespace is attached already.
    NAMESPACE_ALREADY_ATTACHED = 0x118;
    /// The namespace is private.
    NAMESPACE_IS_PRIVATE = 0x119;
    /// The namespace is not attached.
    NAMESPACE_NOT_ATTACHED = 0x11a;
    /// No thin provisioning.
    THIN_PROVISIONING_NOT_SUPPORTED = 0x11b;
    /// No such controller.
    CONTROLLER_LIST_INVALID = 0x11c;
    /// No such ANA group.
    ANA_GROUP_IDENTIFIER_INVALID = 0x124;
    /// ANA attach failed.
    ANA_ATTACH_FAILED = 0x125;
    /// An I/O command set that is not supported.
    IO_COMMAND_SET_NOT_SUPPORTED = 0x129;
    /// Attributes that exclude each other (NVM 3.1).
    CONFLICTING_ATTRIBUTES = 0x180;
    /// Protection information that does not fit the format (NVM 3.1).
    INVALID_PROTECTION_INFORMATION = 0x181;
    /// A write to blocks that may not be written (NVM 3.1).
    ATTEMPTED_WRITE_TO_READ_ONLY_RANGE = 0x182;
    /// More blocks or ranges than the limits allow (NVM 3.1).
    COMMAND_SIZE_LIMIT_EXCEEDED = 0x183;

    // Fabrics: command specific too (Base 6.3, 6.4).
    /// Connect: a record format that is not supported.
    CONNECT_INCOMPATIBLE_FORMAT = 0x180;
    /// Connect: the controller is in use or gone.
    CONNECT_CONTROLLER_BUSY = 0x181;
    /// Connect: a parameter is wrong; dword 0 says which.
    CONNECT_INVALID_PARAMETERS = 0x182;
    /// Connect: ask the discovery subsystem again.
    CONNECT_RESTART_DISCOVERY = 0x183;
    /// Connect: this host may not.
    CONNECT_INVALID_HOST = 0x184;
    /// Disconnect: not on this type of queue.
    DISCONNECT_INVALID_QUEUE_TYPE = 0x185;
    /// The discovery log has changed meanwhile.
    DISCOVER_RESTART = 0x190;
    /// The queue has not been authenticated.
    AUTHENTICATION_REQUIRED = 0x191;

    // Media and data integrity errors (type 2h; Base 4.2.3.3).
    /// A write failed.
    WRITE_FAULT = 0x280;
    /// A read failed.
    UNRECOVERED_READ_ERROR = 0x281;
    /// Protection information: guard.
    END_TO_END_GUARD_CHECK_ERROR = 0x282;
    /// Protection information: application tag.
    END_TO_END_APPLICATION_TAG_CHECK_ERROR = 0x283;
    /// Protection information: reference tag.
    END_TO_END_REFERENCE_TAG_CHECK_ERROR = 0x284;
    /// Compare found a difference.
    COMPARE_FAILURE = 0x285;
    /// Access refused.
    ACCESS_DENIED = 0x286;
    /// Read of blocks that are deallocated.
    DEALLOCATED_OR_UNWRITTEN_BLOCK = 0x287;

    // Path related status (type 3h; Base 4.2.3.4).
    /// The path failed inside the controller.
    INTERNAL_PATH_ERROR = 0x300;
    /// The namespace is lost to this path for good.
    ANA_PERSISTENT_LOSS = 0x301;
    /// The namespace cannot be reached by this path now.
    ANA_INACCESSIBLE = 0x302;
    /// The path's state is changing.
    ANA_TRANSITION = 0x303;
    /// The controller found the path broken.
    CONTROLLER_PATHING_ERROR = 0x360;
    /// The host found the path broken.
    HOST_PATHING_ERROR = 0x370;
    /// The host gave the command up.
    ABORTED_BY_HOST = 0x371;
}

impl Status {
    /// Do not retry, in [`Status::0`].
    const DNR: u16 = 1 << 14;
    /// More information is in the error log.
    const MORE: u16 = 1 << 13;

    /// This status with "do not retry": the same command would fail again.
    pub const fn dnr(self) -> Status {
        Status(self.0 | Status::DNR)
    }

    /// This status with "more": the error log has an entry.
    pub const fn more(self) -> Status {
        Status(self.0 | Status::MORE)
    }

    /// The command succeeded.
    pub const fn is_ok(self) -> bool {
        self.code() == 0
    }

    /// Type and code without "do not retry", "more" and the retry delay: what the constants hold.
    pub const fn code(self) -> u16 {
        self.0 & 0x7ff
    }

    /// "Do not retry" is set.
    pub const fn is_dnr(self) -> bool {
        self.0 & Status::DNR != 0
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Status::NAMES.iter().find(|(code, _)| *code == self.code()) {
            Some((_, name)) => f.write_str(name)?,
            None => write!(f, "Status({:#05x})", self.code())?,
        }
        f.write_str(if self.is_dnr() { ".dnr()" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_names_itself() {
        assert_eq!(format!("{:?}", Status::LBA_OUT_OF_RANGE.dnr()), "LBA_OUT_OF_RANGE.dnr()");
        assert_eq!(format!("{:?}", Status(0x7ff)), "Status(0x7ff)");
        assert!(Status::SUCCESS.is_ok() && !Status::WRITE_FAULT.is_ok());
        assert_eq!(Status::WRITE_FAULT.dnr().more().code(), 0x280);
        assert!(Status::NAMES.iter().all(|(code, _)| Status(*code).code() == *code));
    }
}

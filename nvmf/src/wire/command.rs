//! Submission queue entry (Base 2.1, 4.1).

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::opcode::fabrics;
use super::{RawSgl, Sgl};

/// Submission queue entry as it lies in a capsule.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawCommand {
    /// Opcode.
    pub opcode: u8,
    /// FUSE (bits 1:0) and PSDT (bits 7:6).
    pub flags: u8,
    /// Command identifier.
    pub cid: U16,
    /// Namespace, or type (first byte) of a fabrics command.
    pub nsid: U32,
    /// Command dwords 2 and 3.
    pub cdw2_3: [U32; 2],
    /// Metadata pointer.
    pub mptr: U64,
    /// SGL1.
    pub sgl: RawSgl,
    /// Command dwords 10 to 15.
    pub cdw10_15: [U32; 6],
}

const _: () = assert!(size_of::<RawCommand>() == 64);

/// Part of a fused operation (Base 2.1, 3.4.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fuse {
    /// A command on its own.
    #[default]
    None,
    /// The first of two.
    First,
    /// The second of two.
    Second,
    /// The value that means nothing (11b).
    Reserved,
}

/// Which way a command's data goes (opcode bits 1:0; of a fabrics command, its type's).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// No data.
    None,
    /// Host to controller: a write.
    ToController,
    /// Controller to host: a read.
    ToHost,
}

/// Submission queue entry, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command {
    /// Opcode; see [`super::opcode`].
    pub opcode: u8,
    /// Part of a fused operation.
    pub fuse: Fuse,
    /// PRP or SGL for data transfer (2 bits); over fabrics 01b.
    pub psdt: u8,
    /// Command identifier.
    pub cid: u16,
    /// Namespace. Of a fabrics command this dword holds the type, see [`Command::fctype`].
    pub nsid: u32,
    /// Command dword 2.
    pub cdw2: u32,
    /// Command dword 3.
    pub cdw3: u32,
    /// Metadata pointer.
    pub mptr: u64,
    /// Where the data is.
    pub sgl: Sgl,
    /// Command dword 10.
    pub cdw10: u32,
    /// Command dword 11.
    pub cdw11: u32,
    /// Command dword 12.
    pub cdw12: u32,
    /// Command dword 13.
    pub cdw13: u32,
    /// Command dword 14.
    pub cdw14: u32,
    /// Command dword 15.
    pub cdw15: u32,
}

impl Default for Command {
    /// All zero but for what every command over fabrics has: SGLs and a transport data block.
    fn default() -> Command {
        Command {
            opcode: 0,
            fuse: Fuse::None,
            psdt: Command::PSDT_SGL,
            cid: 0,
            nsid: 0,
            cdw2: 0,
            cdw3: 0,
            mptr: 0,
            sgl: Sgl::transport(0),
            cdw10: 0,
            cdw11: 0,
            cdw12: 0,
            cdw13: 0,
            cdw14: 0,
            cdw15: 0,
        }
    }
}

impl Command {
    /// PSDT of commands over fabrics: SGLs, metadata contiguous.
    pub const PSDT_SGL: u8 = 0b01;

    /// Type of a fabrics command, `None` of any other.
    pub fn fctype(&self) -> Option<u8> {
        (self.opcode == fabrics::OPCODE).then_some(self.nsid as u8)
    }

    /// Which way its data goes. Both ways at once does not exist in any command set here; it counts
    /// as none.
    pub fn direction(&self) -> Direction {
        match self.fctype().unwrap_or(self.opcode) & 0b11 {
            0b01 => Direction::ToController,
            0b10 => Direction::ToHost,
            _ => Direction::None,
        }
    }

    /// Command dwords 10 (low) and 11 as one number: an SLBA, an offset.
    pub fn cdw10_11(&self) -> u64 {
        u64::from(self.cdw11) << 32 | u64::from(self.cdw10)
    }

    /// The 64 bytes of a submission queue entry: this one holds the type-dependent tail of fabrics
    /// commands too, which read it by offset (Base 2.1, 6).
    pub fn to_bytes(&self) -> [u8; 64] {
        let raw = RawCommand::from(self);
        let mut bytes = [0; 64];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }
}

impl From<&RawCommand> for Command {
    fn from(raw: &RawCommand) -> Command {
        let [cdw10, cdw11, cdw12, cdw13, cdw14, cdw15] = raw.cdw10_15.map(U32::get);
        Command {
            opcode: raw.opcode,
            fuse: match raw.flags & 0b11 {
                0b00 => Fuse::None,
                0b01 => Fuse::First,
                0b10 => Fuse::Second,
                _ => Fuse::Reserved,
            },
            psdt: raw.flags >> 6,
            cid: raw.cid.get(),
            nsid: raw.nsid.get(),
            cdw2: raw.cdw2_3[0].get(),
            cdw3: raw.cdw2_3[1].get(),
            mptr: raw.mptr.get(),
            sgl: Sgl::from(&raw.sgl),
            cdw10,
            cdw11,
            cdw12,
            cdw13,
            cdw14,
            cdw15,
        }
    }
}

impl From<&Command> for RawCommand {
    fn from(command: &Command) -> RawCommand {
        let fuse = match command.fuse {
            Fuse::None => 0b00,
            Fuse::First => 0b01,
            Fuse::Second => 0b10,
            Fuse::Reserved => 0b11,
        };
        let Command { cdw10, cdw11, cdw12, cdw13, cdw14, cdw15, .. } = *command;
        RawCommand {
            opcode: command.opcode,
            flags: fuse | command.psdt << 6,
            cid: U16::new(command.cid),
            nsid: U32::new(command.nsid),
            cdw2_3: [U32::new(command.cdw2), U32::new(command.cdw3)],
            mptr: U64::new(command.mptr),
            sgl: RawSgl::from(&command.sgl),
            cdw10_15: [cdw10, cdw11, cdw12, cdw13, cdw14, cdw15].map(U32::new),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::SglKind;
    use super::*;

    #[test]
    fn a_command_survives_the_wire() {
        let bytes: [u8; 64] = std::array::from_fn(|i| i as u8);
        let raw = RawCommand::read_from_bytes(&bytes).expect("64 bytes");
        let command = Command::from(&raw);
        assert_eq!((command.opcode, command.cid), (0, 0x0302));
        assert_eq!((command.fuse, command.psdt), (Fuse::First, 0));
        assert_eq!(
            (command.nsid, command.cdw2, command.cdw3),
            (0x07060504, 0x0b0a0908, 0x0f0e0d0c)
        );
        assert_eq!(command.mptr, 0x1716151413121110);
        assert_eq!(command.sgl, Sgl { kind: SglKind::Other(0x27), length: 0x23222120 });
        assert_eq!((command.cdw10, command.cdw15), (0x2b2a2928, 0x3f3e3d3c));
        assert_eq!(command.cdw10_11(), 0x2f2e2d2c2b2a2928);
        for kind in [SglKind::InCapsule { offset: 512 }, SglKind::Transport] {
            for fuse in [Fuse::None, Fuse::First, Fuse::Second, Fuse::Reserved] {
                let command = Command { sgl: Sgl { kind, length: 4096 }, fuse, psdt: 1, ..command };
                let raw = RawCommand::read_from_bytes(&command.to_bytes()).expect("64 bytes");
                assert_eq!(Command::from(&raw), command);
            }
        }
    }

    #[test]
    fn directions_are_in_the_opcode_or_the_fabrics_type() {
        let of = |opcode, nsid| Command { opcode, nsid, ..Command::default() }.direction();
        assert_eq!(of(super::super::opcode::nvm::WRITE, 1), Direction::ToController);
        assert_eq!(of(super::super::opcode::nvm::READ, 1), Direction::ToHost);
        assert_eq!(of(super::super::opcode::nvm::FLUSH, 1), Direction::None);
        assert_eq!(of(fabrics::OPCODE, fabrics::CONNECT.into()), Direction::ToController);
        assert_eq!(of(fabrics::OPCODE, fabrics::PROPERTY_GET.into()), Direction::None);
        assert_eq!(of(fabrics::OPCODE, fabrics::AUTHENTICATION_RECEIVE.into()), Direction::ToHost);
        assert_eq!(of(0x03, 1), Direction::None, "both ways at once");
    }
}

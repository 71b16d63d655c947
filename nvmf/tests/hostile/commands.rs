//! Command capsules: their lengths, and their SGL.

use lamina_nvmf::wire::pdu::data_offset;
use lamina_nvmf::wire::{Sgl, Status};

use crate::case::*;
use crate::rig::{connect, flush, pattern, write};

const WHOLE: usize = 72;
/// Offsets of the command's fields in the PDU.
const FLAGS: u32 = 8 + 1;
const SGL_ADDRESS: u32 = 8 + 24;
const SGL_LENGTH: u32 = 8 + 32;
const SGL_TYPE: u32 = 8 + 39;

const LENGTH_INVALID: End = End::Status(Status::DATA_SGL_LENGTH_INVALID.dnr());
const OFFSET_INVALID: End = End::Status(Status::SGL_OFFSET_INVALID.dnr());
const TYPE_INVALID: End = End::Status(Status::SGL_DESCRIPTOR_TYPE_INVALID.dnr());
const INVALID_FIELD: End = End::Status(Status::INVALID_FIELD.dnr());

lies! { Write {
    command_hlen_0: |p, _| set8(p, 2, 0) => field(2, COMMON);
    command_hlen_1: |p, _| set8(p, 2, 1) => field(2, COMMON);
    command_hlen_71: |p, _| set8(p, 2, 71) => field(2, COMMON);
    command_hlen_73: |p, _| set8(p, 2, 73) => field(2, COMMON);
    command_hlen_255: |p, _| set8(p, 2, 255) => field(2, COMMON);
    command_header_digest_flag_lies: |p, _| p[1] ^= 1 => field(1, COMMON);
    command_data_digest_flag_lies: |p, _| p[1] ^= 2 => field(1, WHOLE);
    command_pdo_0: |p, _| set8(p, 3, 0) => field(3, WHOLE);
    command_pdo_1: |p, _| set8(p, 3, 1) => field(3, WHOLE);
    command_pdo_in_the_header: |p, _| p[3] -= 4 => field(3, WHOLE);
    command_pdo_one_less: |p, _| p[3] -= 1 => field(3, WHOLE);
    command_pdo_one_more: |p, _| p[3] += 1 => field(3, WHOLE);
    command_pdo_255: |p, _| set8(p, 3, 255) => field(3, WHOLE);
    command_plen_0: |p, _| set32(p, 4, 0) => field(4, WHOLE);
    command_plen_1: |p, _| set32(p, 4, 1) => field(4, WHOLE);
    command_plen_71: |p, _| set32(p, 4, 71) => field(4, WHOLE);
    command_plen_of_more_than_the_capsule_holds:
        |p, b| set32(p, 4, plen(b, 8193)) => field(4, WHOLE);
    command_plen_max: |p, _| set32(p, 4, u32::MAX) => field(4, WHOLE);
    command_reserved_flags_are_not_looked_at: |p, _| p[1] |= 0xf0 => End::Fine(4096);
    sgl_length_0: |p, _| set32(p, SGL_LENGTH, 0) => LENGTH_INVALID;
    sgl_length_1_is_lawful: |p, _| set32(p, SGL_LENGTH, 1) => End::Fine(1);
    sgl_length_one_less_is_lawful: |p, _| set32(p, SGL_LENGTH, 4095) => End::Fine(4095);
    sgl_length_one_more: |p, _| set32(p, SGL_LENGTH, 4097) => LENGTH_INVALID;
    sgl_length_of_a_full_capsule: |p, _| set32(p, SGL_LENGTH, 8192) => LENGTH_INVALID;
    sgl_length_max: |p, _| set32(p, SGL_LENGTH, u32::MAX) => LENGTH_INVALID;
    sgl_offset_1: |p, _| set32(p, SGL_ADDRESS, 1) => LENGTH_INVALID;
    sgl_offset_of_the_end: |p, _| set32(p, SGL_ADDRESS, 4096) => LENGTH_INVALID;
    sgl_offset_behind_the_end: |p, _| set32(p, SGL_ADDRESS, 4097) => OFFSET_INVALID;
    sgl_offset_4_gib: |p, _| set32(p, SGL_ADDRESS + 4, 1) => OFFSET_INVALID;
    sgl_offset_max: |p, _| p[SGL_ADDRESS as usize..][..8].fill(0xff) => OFFSET_INVALID;
    sgl_type_data_block_address: |p, _| set8(p, SGL_TYPE, 0x00) => TYPE_INVALID;
    sgl_type_data_block_subtype_2: |p, _| set8(p, SGL_TYPE, 0x02) => TYPE_INVALID;
    sgl_type_bit_bucket: |p, _| set8(p, SGL_TYPE, 0x10) => TYPE_INVALID;
    sgl_type_segment: |p, _| set8(p, SGL_TYPE, 0x20) => TYPE_INVALID;
    sgl_type_last_segment: |p, _| set8(p, SGL_TYPE, 0x31) => TYPE_INVALID;
    sgl_type_keyed: |p, _| set8(p, SGL_TYPE, 0x40) => TYPE_INVALID;
    sgl_type_transport_subtype_0: |p, _| set8(p, SGL_TYPE, 0x50) => TYPE_INVALID;
    sgl_type_vendor: |p, _| set8(p, SGL_TYPE, 0xf0) => TYPE_INVALID;
    sgl_type_max: |p, _| set8(p, SGL_TYPE, 0xff) => TYPE_INVALID;
    sgl_transport_with_data_in_the_capsule: |p, _| set8(p, SGL_TYPE, 0x5a) => LENGTH_INVALID;
    psdt_prp: |p, _| set8(p, FLAGS, 0x00) => INVALID_FIELD;
    psdt_sgl_with_metadata_segment: |p, _| set8(p, FLAGS, 0x80) => INVALID_FIELD;
    psdt_reserved: |p, _| set8(p, FLAGS, 0xc0) => INVALID_FIELD;
    flush_with_data_in_the_capsule: |p, _| set8(p, 8, 0x00) => LENGTH_INVALID;
    read_with_data_in_the_capsule: |p, _| set8(p, 8, 0x02) => TYPE_INVALID;
    both_ways_with_data_in_the_capsule: |p, _| set8(p, 8, 0x03) => LENGTH_INVALID;
    second_icreq_as_a_command: |p, _| set8(p, 0, 0) => sequence(COMMON);
    command_typed_icresp: |p, _| set8(p, 0, 1) => field(0, COMMON);
    command_typed_c2h_term: |p, _| set8(p, 0, 3) => field(0, COMMON);
    command_typed_response: |p, _| set8(p, 0, 5) => field(0, COMMON);
    command_typed_h2c_data: |p, _| set8(p, 0, 6) => field(2, COMMON);
    command_typed_c2h_data: |p, _| set8(p, 0, 7) => field(0, COMMON);
    command_typed_8: |p, _| set8(p, 0, 8) => field(0, COMMON);
    command_typed_r2t: |p, _| set8(p, 0, 9) => field(0, COMMON);
    command_typed_kickstart_request: |p, _| set8(p, 0, 10) => field(0, COMMON);
    command_typed_255: |p, _| set8(p, 0, 255) => field(0, COMMON);
    command_without_its_data: |p, b| {
        p.truncate(WHOLE + digest_bytes(b).0 as usize);
        let end = p.len() as u32;
        set32(p, 4, end);
    } => LENGTH_INVALID;
    // The data digest is over other bytes then; the length is looked at first.
    command_data_behind_its_place: |p, _| set8(p, 3, 252) => LENGTH_INVALID;
} }

/// Length of a capsule with so much data.
fn plen(builder: lamina_nvmf::host::Builder, data: u32) -> u32 {
    let (header, tail) = digest_bytes(builder);
    data_offset(WHOLE + header as usize, 0) as u32 + data + tail
}

lies! { Tiny {
    tiny_pdo_at_the_end: |p, _| p[3] += 4 => field(3, WHOLE);
    tiny_pdo_behind_the_end: |p, _| p[3] += 8 => field(3, WHOLE);
    tiny_plen_ends_with_the_header: |p, b| {
        let end = WHOLE as u32 + digest_bytes(b).0;
        set32(p, 4, end);
        p.truncate(end as usize);
    } => LENGTH_INVALID;
    tiny_plen_ends_with_no_data: |p, _| p[4] -= 5 => field(4, WHOLE);
} }

lies! { Read {
    read_sgl_length_0_is_lawful: |p, _| set32(p, SGL_LENGTH, 0) => End::Fine(0);
    read_sgl_length_above_mdts: |p, _| set32(p, SGL_LENGTH, (128 << 10) + 1) => INVALID_FIELD;
    read_sgl_length_max: |p, _| set32(p, SGL_LENGTH, u32::MAX) => INVALID_FIELD;
    read_sgl_in_capsule: |p, _| set8(p, SGL_TYPE, 0x01) => TYPE_INVALID;
    read_sgl_keyed: |p, _| set8(p, SGL_TYPE, 0x4f) => TYPE_INVALID;
    read_plen_one_less: |p, _| p[4] -= 1 => field(4, WHOLE);
    write_sgl_length_0_is_lawful: |p, _| { set8(p, 8, 1); set32(p, SGL_LENGTH, 0) } => End::Fine(0);
    write_sgl_length_above_mdts:
        |p, _| { set8(p, 8, 1); set32(p, SGL_LENGTH, (128 << 10) + 1) } => INVALID_FIELD;
    write_sgl_length_max: |p, _| { set8(p, 8, 1); set32(p, SGL_LENGTH, u32::MAX) } => INVALID_FIELD;
    write_in_a_capsule_without_data:
        |p, _| { set8(p, 8, 1); set8(p, SGL_TYPE, 1) } => LENGTH_INVALID;
    flush_with_any_sgl_is_lawful: |p, _| { set8(p, 8, 0); set8(p, SGL_TYPE, 0xff) } => End::Fine(0);
    both_ways_gets_no_data: |p, _| set8(p, 8, 3) => End::Fine(0);
} }

/// Data of a fabrics command is never asked for: hosts have crashed over it.
#[test]
fn connect_whose_data_would_have_to_be_asked_for() {
    for builder in digests() {
        for cut in CUTS {
            let (mut rig, _) = prepare(Base::Read, builder, cut);
            rig.command(&connect(CID, Sgl::transport(1024)), &[]);
            conclude(rig, &[], TYPE_INVALID, &format!("{builder:?}, {cut:?}"));
        }
    }
}

#[test]
fn refused_data_is_dropped_and_the_buffer_of_others_untouched() {
    for builder in digests() {
        let (mut rig, _) = prepare(Base::Read, builder, crate::rig::Cut::Every(100));
        rig.hold = true;
        rig.command(&write(1, Sgl::in_capsule(512)), &pattern(1, 512));
        rig.hold = false;
        let over = Sgl { length: 8193, ..Sgl::in_capsule(0) };
        rig.command(&write(CID, over), &pattern(9, 8192));
        assert_eq!(rig.pool.free().0, crate::rig::SMALL - 1);
        let slot = rig.held[0];
        let kept = rig.conn.data(slot).expect("its data").as_slice()[..512].to_vec();
        assert_eq!(kept, pattern(1, 512));
        rig.answer_held();
        rig.command(&flush(2), &[]);
        assert_eq!(rig.got.len(), 2);
        rig.finish_whole();
    }
}

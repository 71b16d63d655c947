//! ICReq.

use lamina_nvmf::wire::pdu::FES_UNSUPPORTED;

use crate::case::*;

const WHOLE: usize = 128;

lies! { IcReq {
    icreq_hlen_0: |p, _| set8(p, 2, 0) => field(2, COMMON);
    icreq_hlen_1: |p, _| set8(p, 2, 1) => field(2, COMMON);
    icreq_hlen_127: |p, _| set8(p, 2, 127) => field(2, COMMON);
    icreq_hlen_129: |p, _| set8(p, 2, 129) => field(2, COMMON);
    icreq_hlen_255: |p, _| set8(p, 2, 255) => field(2, COMMON);
    icreq_plen_0: |p, _| set32(p, 4, 0) => field(4, WHOLE);
    icreq_plen_1: |p, _| set32(p, 4, 1) => field(4, WHOLE);
    icreq_plen_127: |p, _| set32(p, 4, 127) => field(4, WHOLE);
    icreq_plen_129: |p, _| set32(p, 4, 129) => field(4, WHOLE);
    icreq_plen_max: |p, _| set32(p, 4, u32::MAX) => field(4, WHOLE);
    icreq_pfv_1: |p, _| set16(p, 8, 1) => End::Fatal(FES_UNSUPPORTED, 8, WHOLE);
    icreq_pfv_max: |p, _| set16(p, 8, 0xffff) => End::Fatal(FES_UNSUPPORTED, 8, WHOLE);
    icreq_hpda_31_is_lawful: |p, _| set8(p, 10, 31) => End::Fine(0);
    icreq_hpda_32: |p, _| set8(p, 10, 32) => field(10, WHOLE);
    icreq_hpda_255: |p, _| set8(p, 10, 255) => field(10, WHOLE);
    icreq_maxr2t_max_is_lawful: |p, _| set32(p, 12, u32::MAX) => End::Fine(0);
    icreq_reserved_flags_are_not_looked_at: |p, _| set8(p, 1, 0xff) => End::Fine(0);
    icreq_reserved_pdo_is_not_looked_at: |p, _| set8(p, 3, 0xff) => End::Fine(0);
    icreq_reserved_bytes_are_not_looked_at: |p, _| p[16..].fill(0xff) => End::Fine(0);
    icreq_reserved_digests_are_not_agreed_on: |p, _| set8(p, 11, 0xfc) => End::Fine(0);
    first_pdu_icresp: |p, _| set8(p, 0, 1) => field(0, COMMON);
    first_pdu_c2h_term: |p, _| set8(p, 0, 3) => field(0, COMMON);
    first_pdu_command: |p, _| set8(p, 0, 4) => sequence(COMMON);
    first_pdu_response: |p, _| set8(p, 0, 5) => field(0, COMMON);
    first_pdu_h2c_data: |p, _| set8(p, 0, 6) => sequence(COMMON);
    first_pdu_c2h_data: |p, _| set8(p, 0, 7) => field(0, COMMON);
    first_pdu_type_8: |p, _| set8(p, 0, 8) => field(0, COMMON);
    first_pdu_r2t: |p, _| set8(p, 0, 9) => field(0, COMMON);
    first_pdu_type_255: |p, _| set8(p, 0, 255) => field(0, COMMON);
    first_bytes_of_tls:
        |p, _| p[..8].copy_from_slice(&[22, 3, 1, 2, 0, 1, 0, 1]) => field(0, COMMON);
    first_bytes_of_http: |p, _| p[..8].copy_from_slice(b"GET / HT") => field(0, COMMON);
} }

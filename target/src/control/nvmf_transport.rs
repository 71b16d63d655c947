//! The TCP transport: its parameters checked, applied, kept and shown.
//!
//! What cannot be done is refused by name; nothing is taken and then ignored in silence.

use std::ops::RangeInclusive;

use lamina_bdev::{Error, ErrorKind};
use lamina_rpc::methods as rpc;
use lamina_rpc::{Method, RpcError};
use serde_json::Value;

use super::Control;
use super::methods::failure;
use super::nvmf_book::TransportRecord;
use super::nvmf_calls::refusal;
use crate::nvmf::transport::Settings;

fn invalid<T>(why: String) -> Result<T, Error> {
    Err(Error::new(ErrorKind::Invalid, why))
}

/// A number out of a call, within its range.
fn within(
    what: &str,
    given: Option<u32>,
    range: RangeInclusive<u32>,
    default: u32,
) -> Result<u32, Error> {
    let value = given.unwrap_or(default);
    if !range.contains(&value) {
        let (least, most) = (range.start(), range.end());
        return invalid(format!("{what} {value}: give {least} to {most}"));
    }
    Ok(value)
}

/// A number that fits 16 bits by its range.
fn short(
    what: &str,
    given: Option<u32>,
    range: RangeInclusive<u32>,
    default: u16,
) -> Result<u16, Error> {
    assert!(*range.end() <= u32::from(u16::MAX), "the range fits");
    within(what, given, range, default.into()).map(|value| value as u16)
}

/// Parameters as settings.
fn settings_of(call: &rpc::NvmfCreateTransport) -> Result<Settings, Error> {
    if !call.trtype.eq_ignore_ascii_case("tcp") {
        return invalid(format!("transport {:?}: there is only TCP", call.trtype));
    }
    for (what, wanted) in [
        ("dif_insert_or_strip", call.dif_insert_or_strip == Some(true)),
        ("zcopy", call.zcopy == Some(true)),
        ("sock_priority", call.sock_priority.is_some_and(|priority| priority != 0)),
    ] {
        if wanted {
            return invalid(format!("{what} is not there: leave it out"));
        }
    }
    let plain = Settings::default();
    let max_io_size =
        within("max_io_size", call.max_io_size, 8192..=plain.data_bytes_max, plain.data_bytes_max)?;
    if !max_io_size.is_power_of_two() {
        return invalid(format!("max_io_size {max_io_size}: give a power of two"));
    }
    let unit = within("io_unit_size", call.io_unit_size, 4096..=max_io_size, max_io_size)?;
    if !unit.is_multiple_of(512) {
        return invalid(format!("io_unit_size {unit}: give a multiple of 512"));
    }
    let in_capsule = within(
        "in_capsule_data_size",
        call.in_capsule_data_size,
        0..=plain.in_capsule_bytes,
        plain.in_capsule_bytes,
    )?;
    if !in_capsule.is_multiple_of(16) {
        return invalid(format!("in_capsule_data_size {in_capsule}: give a multiple of 16"));
    }
    let (depth, admin) = (call.max_queue_depth, call.max_aq_depth);
    let queues = call.max_io_qpairs_per_ctrlr;
    let backlog = within("acceptor_backlog", call.acceptor_backlog, 1..=65535, 1024)?;
    Ok(Settings {
        queue_entries_max: short("max_queue_depth", depth, 2..=1024, plain.queue_entries_max)?,
        admin_entries_max: short("max_aq_depth", admin, 32..=1024, plain.admin_entries_max)?,
        io_queues_max: short("max_io_qpairs_per_ctrlr", queues, 1..=1024, plain.io_queues_max)?,
        in_capsule_bytes: in_capsule,
        data_bytes_max: max_io_size,
        pdu_bytes_max: unit,
        c2h_success: call.c2h_success.unwrap_or(plain.c2h_success),
        backlog: backlog as i32,
    })
}

fn record_of(settings: &Settings) -> TransportRecord {
    TransportRecord {
        max_queue_depth: settings.queue_entries_max,
        max_aq_depth: settings.admin_entries_max,
        max_io_qpairs_per_ctrlr: settings.io_queues_max,
        in_capsule_data_size: settings.in_capsule_bytes,
        max_io_size: settings.data_bytes_max,
        io_unit_size: settings.pdu_bytes_max,
        c2h_success: settings.c2h_success,
        acceptor_backlog: settings.backlog as u16,
    }
}

/// The transport as clients want to read it.
pub(super) fn show(settings: &Settings) -> rpc::NvmfTransport {
    rpc::NvmfTransport {
        trtype: "TCP".into(),
        max_queue_depth: settings.queue_entries_max.into(),
        max_io_qpairs_per_ctrlr: settings.io_queues_max.into(),
        in_capsule_data_size: settings.in_capsule_bytes,
        max_io_size: settings.data_bytes_max,
        io_unit_size: settings.pdu_bytes_max,
        max_aq_depth: settings.admin_entries_max.into(),
        c2h_success: settings.c2h_success,
        acceptor_backlog: settings.backlog as u32,
        sock_priority: 0,
        dif_insert_or_strip: false,
        zcopy: false,
    }
}

impl Control {
    /// `nvmf_create_transport`.
    pub(super) fn create_transport(
        &self,
        call: &rpc::NvmfCreateTransport,
    ) -> Result<Value, RpcError> {
        let settings = settings_of(call).map_err(refusal)?;
        let _change = self.change().map_err(failure)?;
        if self.nvmf.book.read().transport.is_some() {
            let why = "Transport type 'TCP' already exists";
            return Err(RpcError::new(RpcError::INTERNAL_ERROR, why));
        }
        let before = self.nvmf.service.run(move |core| {
            let before = core.settings();
            core.set_settings(settings).map(|()| before)
        });
        let before = before.and_then(|set| set).map_err(failure)?;
        let record = record_of(&settings);
        if let Err(error) = self.nvmf.book.change(|records| records.transport = Some(record)) {
            let undo = self.nvmf.service.run(move |core| core.set_settings(before));
            undo.and_then(|undone| undone).map_err(failure)?;
            return Err(failure(error));
        }
        rpc::NvmfCreateTransport::reply(true)
    }

    /// The transport as the book has it.
    pub(super) fn restore_transport(&self, record: &TransportRecord) -> Result<(), Error> {
        // Checked like a call: the book may have been edited by hand.
        let settings = settings_of(&rpc::NvmfCreateTransport {
            trtype: "TCP".into(),
            max_queue_depth: Some(record.max_queue_depth.into()),
            max_aq_depth: Some(record.max_aq_depth.into()),
            max_io_qpairs_per_ctrlr: Some(record.max_io_qpairs_per_ctrlr.into()),
            in_capsule_data_size: Some(record.in_capsule_data_size),
            max_io_size: Some(record.max_io_size),
            io_unit_size: Some(record.io_unit_size),
            c2h_success: Some(record.c2h_success),
            acceptor_backlog: Some(record.acceptor_backlog.into()),
            ..rpc::NvmfCreateTransport::default()
        })?;
        self.nvmf.service.run(move |core| core.set_settings(settings))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(edit: impl FnOnce(&mut rpc::NvmfCreateTransport)) -> rpc::NvmfCreateTransport {
        let mut call = rpc::NvmfCreateTransport { trtype: "tcp".into(), ..Default::default() };
        edit(&mut call);
        call
    }

    #[test]
    fn what_is_given_is_what_is_shown_and_the_rest_is_as_ever() {
        assert_eq!(settings_of(&call(|_| {})).unwrap(), Settings::default());
        let settings = settings_of(&call(|c| {
            c.max_queue_depth = Some(64);
            c.max_io_qpairs_per_ctrlr = Some(4);
            c.in_capsule_data_size = Some(4096);
            c.max_io_size = Some(65536);
            c.io_unit_size = Some(16384);
            c.max_aq_depth = Some(32);
            c.c2h_success = Some(false);
            c.acceptor_backlog = Some(7);
        }))
        .unwrap();
        let shown = show(&settings);
        assert_eq!((shown.max_queue_depth, shown.max_io_qpairs_per_ctrlr), (64, 4));
        assert_eq!((shown.in_capsule_data_size, shown.max_io_size), (4096, 65536));
        assert_eq!((shown.io_unit_size, shown.max_aq_depth), (16384, 32));
        assert_eq!((shown.c2h_success, shown.acceptor_backlog), (false, 7));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        type Edit = fn(&mut rpc::NvmfCreateTransport);
        let cases: [(&str, Edit); 13] = [
            ("RDMA", |c| c.trtype = "RDMA".into()),
            ("max_queue_depth 1:", |c| c.max_queue_depth = Some(1)),
            ("max_queue_depth 1025:", |c| c.max_queue_depth = Some(1025)),
            ("max_aq_depth", |c| c.max_aq_depth = Some(31)),
            ("max_io_qpairs_per_ctrlr", |c| c.max_io_qpairs_per_ctrlr = Some(0)),
            ("in_capsule_data_size", |c| c.in_capsule_data_size = Some(8208)),
            ("multiple of 16", |c| c.in_capsule_data_size = Some(8)),
            ("max_io_size", |c| c.max_io_size = Some(1 << 20)),
            ("power of two", |c| c.max_io_size = Some(12288)),
            ("io_unit_size", |c| c.io_unit_size = Some(1 << 20)),
            ("dif_insert_or_strip", |c| c.dif_insert_or_strip = Some(true)),
            ("zcopy", |c| c.zcopy = Some(true)),
            ("sock_priority", |c| c.sock_priority = Some(1)),
        ];
        for (word, edit) in cases {
            let error = settings_of(&call(edit)).unwrap_err();
            assert!(error.message.contains(word), "{word}: {error}");
        }
    }
}

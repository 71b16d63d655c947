//! The NVMe target as it was: subsystems before the stores are open, listeners after that.
//!
//! ```text
//!  book ─► transport, subsystems, hosts, referrals ─► (stores open, each with its namespaces) ─►
//!  listeners ```
//!
//! What cannot be restored is logged, and stays in the book.

use lamina_bdev::Error;
use lamina_nvmf::subsystem::{Address, AnaState, Host, Nqn, Referral, SubsystemSpec};

use super::Control;
use super::nvmf_book::{HostRecord, ListenerRecord, ReferralRecord, SubsystemRecord};
use crate::log;

fn complain(what: &str, result: Result<(), Error>) {
    if let Err(error) = result {
        log::error(format!("{what} is not there again: {error}"));
    }
}

impl Control {
    /// Makes the subsystems of the book, without namespaces and listeners.
    ///
    /// # Errors
    /// `Io`: the service does not answer.
    pub(super) fn restore_subsystems(&self) -> Result<(), Error> {
        let records = self.nvmf.book.read();
        if let Some(record) = &records.transport {
            complain("the transport as it was made", self.restore_transport(record));
        }
        for record in &records.subsystems {
            let nqn = &record.nqn;
            complain(&format!("subsystem {nqn}"), self.restore_subsystem(record));
            for host in &record.hosts {
                let what = format!("host {} of {nqn}", host.nqn);
                complain(&what, self.restore_host(nqn, host));
            }
        }
        for referral in &records.referrals {
            let what = format!("referral to {}:{}", referral.traddr, referral.trsvcid);
            complain(&what, self.restore_referral(referral));
        }
        Ok(())
    }

    fn restore_subsystem(&self, record: &SubsystemRecord) -> Result<(), Error> {
        let nqn = Nqn::new(&record.nqn)?;
        if nqn.is_discovery() {
            let allow = record.allow_any_host;
            return self.nvmf.service.run(move |core| {
                core.edit(|target| target.set_allow_any_host(nqn.as_str(), allow))
            })?;
        }
        let spec = SubsystemSpec {
            nqn,
            serial: record.serial.clone(),
            model: record.model.clone(),
            allow_any_host: record.allow_any_host,
            min_cntlid: record.min_cntlid,
            max_cntlid: record.max_cntlid,
            max_namespaces: record.max_namespaces,
            ana_reporting: record.ana_reporting,
        };
        self.nvmf.service.run(move |core| core.edit(|t| t.add_subsystem(spec).map(|_| ())))?
    }

    fn restore_host(&self, nqn: &str, record: &HostRecord) -> Result<(), Error> {
        let host = Host { nqn: Nqn::new(&record.nqn)?, keys: self.keys_of(record)? };
        let nqn = nqn.to_string();
        self.nvmf.service.run(move |core| core.edit(|target| target.add_host(&nqn, host)))?
    }

    fn restore_referral(&self, record: &ReferralRecord) -> Result<(), Error> {
        let address = Address::parse(None, &record.traddr, &record.trsvcid)?;
        let nqn = Nqn::new(&record.nqn)?;
        let referral = Referral { address, nqn, secure: record.secure };
        self.nvmf.service.run(move |core| core.edit(|target| target.add_referral(referral)))?
    }

    /// Listens where the book says. An address that is not there (yet) is tried again and again.
    pub(super) fn restore_listeners(&self) {
        for record in &self.nvmf.book.read().subsystems {
            for listener in &record.listeners {
                let what =
                    format!("listener {}:{} of {}", listener.traddr, listener.trsvcid, record.nqn);
                complain(&what, self.restore_listener(&record.nqn, listener));
            }
        }
    }

    fn restore_listener(&self, nqn: &str, record: &ListenerRecord) -> Result<(), Error> {
        let address = Address::parse(None, &record.traddr, &record.trsvcid)?;
        let state = |text: &str| AnaState::parse(text).unwrap_or_default();
        let whole = state(&record.ana_state);
        let groups: Vec<(u32, AnaState)> =
            record.ana_groups.iter().map(|(group, text)| (*group, state(text))).collect();
        let (nqn, secure) = (nqn.to_string(), record.secure);
        self.nvmf.service.run(move |core| {
            core.add_listener(&nqn, &address, secure, true)?;
            if whole != AnaState::default() {
                core.edit(|target| target.set_ana_state(&nqn, &address, None, whole))?;
            }
            for (group, state) in groups {
                core.edit(|target| target.set_ana_state(&nqn, &address, Some(group), state))?;
            }
            Ok(())
        })?
    }
}

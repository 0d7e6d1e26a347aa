//! What the kernel tells of TCP connections at once, beside the looks. Runs on the
//! plugin's thread; owns the program that reports them.

use std::os::fd::{AsFd, BorrowedFd};

use log::info;

use super::choice::{Choice, Connection};
use super::known::{Connections, Finding};
use super::scan::Scanner;
use super::NAME;
use crate::config::Section;
use crate::dispatcher::{Inlet, Refused};
use crate::error::Result;
use crate::flow::{FlowId, Timestamp};
use crate::net::cgroups::Places;
use crate::net::connections::{self, Change};
use crate::warn_limited;

/// How many reports are read before the dispatcher gets what they say.
const BATCH: usize = 1024;

/// The reports.
#[derive(Debug)]
pub(super) struct Reports {
    watch: connections::Connections,
    lost: u64,
}

impl Reports {
    /// As `immediate` says. None: there are none.
    ///
    /// # Errors
    /// They have to be, and cannot.
    pub(super) fn open(section: &Section, choice: &Choice) -> Result<Option<Self>> {
        let immediate = section.text("immediate");
        if immediate == "false" {
            return Ok(None);
        }
        let watch = connections::root()
            .and_then(|root| connections::Connections::watch(&root, &choice.wanted()));
        match watch {
            Ok(watch) => Ok(Some(Reports { watch, lost: 0 })),
            Err(error) if immediate == "auto" => {
                let period = choice.period.as_millis();
                info!("{NAME}: connections are found every {period} ms, not at once: {error}");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Where the control groups are of what was reported.
    pub(super) fn places(&self) -> Places {
        self.watch.places()
    }

    /// Works by another choice from now on.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn obey(&self, choice: &Choice) -> Result<()> {
        self.watch.want(&choice.wanted())
    }

    /// Takes some of what was reported, and tells the dispatcher. False: reports were
    /// lost, so it has to be looked.
    ///
    /// # Errors
    /// As of [`Connections::tell`].
    pub(super) fn take(
        &mut self,
        choice: &Choice,
        scanner: &mut Scanner,
        known: &mut Connections,
        out: &Inlet,
    ) -> std::result::Result<bool, Refused> {
        scanner.begin_reports(choice);
        let reports = std::iter::from_fn(|| self.watch.read()).take(BATCH);
        let judge = |new: &Connection, command: &str| scanner.judge(choice, new, command);
        obey(reports, judge, known, out)?;
        let lost = self.watch.lost();
        let more = lost - std::mem::replace(&mut self.lost, lost);
        if more > 0 {
            warn_limited!("{NAME}: {more} reports of connections were lost; looking at all");
        }
        Ok(more == 0)
    }
}

impl AsFd for Reports {
    /// Readable while there are reports.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

/// Takes all of these reports, and tells the dispatcher.
///
/// # Errors
/// As of [`Connections::tell`]; nothing is lost of what they say.
pub(super) fn obey(
    reports: impl Iterator<Item = connections::Connection>,
    mut judge: impl FnMut(&Connection, &str) -> Finding,
    known: &mut Connections,
    out: &Inlet,
) -> std::result::Result<(), Refused> {
    let mut fresh: Vec<(FlowId, Option<Timestamp>)> = Vec::new();
    let mut outcome = Ok(());
    for report in reports {
        let Ok(id) = report.flow() else { continue };
        let (cookie, time) = (report.cookie, Some(report.time));
        match report.change {
            // Anybody can send a SYN, from any address.
            Change::Opened if report.passive => {}
            Change::Opened | Change::Established => {
                let connections::Connection { uid, cgroup, interface, .. } = report;
                let new = Connection { id, cookie, inode: 0, interface, uid, cgroup };
                if known.is_new(&new) {
                    let command = report.process.map_or(String::new(), |one| one.command);
                    let finding = judge(&new, &command);
                    known.reported(&new, finding, time);
                    if known.is_untold(&id, cookie) {
                        fresh.push((id, time));
                    }
                }
            }
            Change::Closed => {
                // A short life is told as well, if there is room.
                if outcome.is_ok() && known.is_untold(&id, cookie) {
                    outcome = known.tell(out, &fresh);
                    if outcome.is_ok() {
                        fresh.clear();
                    }
                }
                known.gone(&id, cookie, time);
            }
        }
    }
    // Also after a refusal: since then there may be ends, which make room.
    known.tell(out, &fresh)
}

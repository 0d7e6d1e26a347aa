//! The plugin's life: look, tell, wait. Runs on the plugin's thread.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::{error, info, warn};
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::choice::Choice;
use super::known::Connections;
use super::reports::Reports;
use super::scan::Scanner;
use super::NAME;
use crate::config::live::Live;
use crate::config::Section;
use crate::dispatcher::{Inlet, Refused};
use crate::error::{Error, Result};
use crate::flow::{FlowId, Timestamp};
use crate::log::limit::Limit;
use crate::part::{Context, Trial};
use crate::plugins::Plugin;
use crate::registry::Names;
use crate::shutdown::Stop;
use crate::warn_limited;

/// The pause after a look is at least so many times as long as that took.
const REST: u32 = 4;

/// The plugin.
struct Finder {
    names: Arc<Names>,
    choice: Choice,
    scanner: Scanner,
    connections: Connections,
    reports: Option<Reports>,
    /// The next look may find connections that were there long before it: the rules are new, or
    /// there was no room for some.
    is_late: bool,
    live: Live,
    figures: Arc<Mutex<Figures>>,
}

/// For the log.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    looks: u64,
    known: usize,
    tagged: usize,
    waiting: usize,
    last: Duration,
}

pub(super) fn build(section: &Section, context: &Context) -> Result<Box<dyn Plugin>> {
    let names = context.names.clone();
    let (choice, mut scanner) = prepare(section, &names)?;
    choice.warn_of_missing_groups();
    let reports = Reports::open(section, &choice)?;
    if let Some(reports) = &reports {
        scanner.ask(reports.places());
    }
    let most = context.max_flows as usize;
    Ok(Box::new(Finder {
        names,
        choice,
        scanner,
        connections: Connections::new(most),
        reports,
        is_late: true,
        live: Live::new()?,
        figures: Arc::default(),
    }))
}

fn prepare(section: &Section, names: &Names) -> Result<(Choice, Scanner)> {
    let choice =
        Choice::read(section, names).map_err(|problems| Error::config(problems.join("; ")))?;
    let scanner = Scanner::open(&choice)?;
    Ok((choice, scanner))
}

impl Finder {
    /// Takes what the configuration says now, or leaves all as it is.
    fn obey(&mut self, section: &Section) {
        match prepare(section, &self.names) {
            Ok((choice, mut scanner)) => {
                choice.warn_of_missing_groups();
                if let Some(reports) = &self.reports {
                    if let Err(problem) = reports.obey(&choice) {
                        warn!("{NAME}: some connections are not found at once any more: {problem}");
                    }
                    scanner.ask(reports.places());
                }
                (self.choice, self.scanner) = (choice, scanner);
                self.connections.forget_judgements();
                self.is_late = true;
            }
            Err(problem) => error!("{NAME}: {problem}; all stays as it was"),
        }
    }

    /// Names may mean other ids than before.
    fn look_up_names(&mut self) {
        match self.choice.reread(&self.names) {
            None => {}
            Some(Ok(choice)) => {
                self.choice = choice;
                self.connections.forget_judgements();
                self.is_late = true;
            }
            Some(Err(problems)) => {
                self.choice.stay(&self.names);
                let problems = problems.join("; ");
                error!("{NAME}: by the registry of now: {problems}; the tags stay as they were");
            }
        }
    }

    /// Looks at all connections and tells of what is different.
    fn look(&mut self, out: &Inlet) -> std::result::Result<(), Refused> {
        self.look_up_names();
        let begin = Instant::now();
        self.scanner.look(&self.choice, &mut self.connections);
        let untold = self.connections.untold();
        let told = self.tell(out, &untold);
        let (known, tagged) = self.connections.count();
        self.say_what_is_undated();
        let mut figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        let (looks, waiting) = (figures.looks + 1, self.connections.waiting);
        *figures = Figures { looks, known, tagged, waiting, last: begin.elapsed() };
        told
    }

    /// Says of how many flows the start is too late.
    fn say_what_is_undated(&mut self) {
        static LIMIT: Limit = Limit::new();
        let undated = &mut self.connections.undated;
        // Where looks are all there is, they find each connection, and most of them no older
        // than the last look: not worth a line each time.
        if self.reports.is_none() && !self.is_late {
            *undated = 0;
        } else if *undated > 0 && LIMIT.pass().is_some() {
            info!("{NAME}: found {undated} connections of unknown age; their flows begin now");
            *undated = 0;
        }
        self.is_late = self.connections.waiting > 0;
    }

    fn tell(
        &mut self,
        out: &Inlet,
        untold: &[(FlowId, Option<Timestamp>)],
    ) -> std::result::Result<(), Refused> {
        waiting(self.connections.tell(out, untold)).map(|_| ())
    }

    /// Takes what was reported. False: it has to be looked at all connections.
    fn take_reports(&mut self, out: &Inlet) -> std::result::Result<bool, Refused> {
        let Finder { choice, scanner, connections, reports, .. } = self;
        match reports {
            Some(reports) => {
                let taken = waiting(reports.take(choice, scanner, connections, out))?;
                Ok(taken.unwrap_or(true))
            }
            None => Ok(true),
        }
    }

    /// Works until `stop` says so.
    fn work(&mut self, out: &Inlet, stop: &Stop) -> Result<()> {
        loop {
            let begin = Instant::now();
            if self.look(out).is_err() {
                // The daemon stops.
                return Ok(());
            }
            let rested = begin + begin.elapsed() * (REST + 1);
            let mut next = rested.max(begin + self.choice.period);
            loop {
                let patience = next.saturating_duration_since(Instant::now());
                // A poll that ends early does no harm, but many of them would.
                let patience = PollTimeout::try_from(patience + Duration::from_millis(1));
                // A descriptor for each, also where there are no reports.
                let reports = self.reports.as_ref().map_or(self.live.as_fd(), AsFd::as_fd);
                let mut fds = [stop.as_fd(), self.live.as_fd(), reports]
                    .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
                match poll(&mut fds, patience.unwrap_or(PollTimeout::MAX)) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return Err(Error::os("cannot poll", error)),
                }
                let is_reported = fds[2].any().unwrap_or(true);
                if fds[0].any().unwrap_or(true) {
                    return Ok(());
                }
                if let Some(section) = self.live.take() {
                    self.obey(&section);
                    break;
                }
                match is_reported.then(|| self.take_reports(out)) {
                    Some(Err(_)) => return Ok(()),
                    Some(Ok(false)) => next = next.min(rested),
                    _ => {}
                }
                if Instant::now() >= next {
                    break;
                }
            }
        }
    }
}

/// What the flow table has no room for is tried again in the next round.
fn waiting<T>(told: std::result::Result<T, Refused>) -> std::result::Result<Option<T>, Refused> {
    match told {
        Ok(told) => Ok(Some(told)),
        Err(refused @ Refused::Full { events, .. }) => {
            warn_limited!("{NAME}: cannot open {events} flows: {refused}; they wait for room");
            Ok(None)
        }
        Err(Refused::Stopping) => Err(Refused::Stopping),
    }
}

impl Plugin for Finder {
    fn run(mut self: Box<Self>, out: Inlet, stop: Stop) -> Result<()> {
        let figures = self.figures.clone();
        out.report_with(Box::new(move || {
            let Figures { looks, known, tagged, waiting, last } =
                *figures.lock().unwrap_or_else(PoisonError::into_inner);
            info!(
                "{NAME}: {looks} looks, the last took {} us: {known} connections, {tagged} of them \
                 told as flows, {waiting} waiting for room in the flow table",
                last.as_micros()
            );
        }));
        self.work(&out.for_what_is_found(), &stop)
    }

    fn live(&self) -> Option<Live> {
        Some(self.live.clone())
    }

    fn trial(&self) -> Option<Trial> {
        let names = self.names.clone();
        Some(Box::new(move |section| prepare(section, &names.quiet()).map(drop)))
    }
}

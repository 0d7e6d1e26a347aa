//! `glowd selftest`: will it work on this host? Asks the kernel what it has, then runs
//! the real daemon on a cable of its own, for each way of attaching and each strategy,
//! and looks at every packet that arrives at the other end. Linux only.
//!
//! `kernel` asks, `observers` tries what finds and measures connections, `cable` makes the two ends, `capture` and `packet` see what arrives,
//! `round` is one way with one strategy, `traffic` what is sent in it, `daemon` the
//! child that is tried, `report` prints, `watch` bounds every wait. All of it runs on
//! the main thread; what was made is undone by Drop, also if a signal interrupts it.

mod cable;
mod capture;
mod daemon;
mod kernel;
mod observers;
mod packet;
mod report;
mod round;
mod traffic;
mod watch;

use std::io::Write;

use self::cable::Cable;
use self::capture::Capture;
use self::kernel::Kernel;
use self::report::Report;
use self::watch::Watch;
use crate::error::{At, Class, Error, Result};
use crate::sys::abi::Strategy;

/// Prints to `out` what the kernel has and what works, a line each.
///
/// # Errors
/// Marking does not work with the defaults, or the test was interrupted.
pub fn run(out: &mut dyn Write) -> Result<()> {
    // First, since threads and what they start inherit the blocked signals.
    let watch = Watch::start()?;
    let mut report = Report::new(out);
    let kernel = kernel::ask(&mut report);
    let result = match kernel.refusal() {
        Some(reason) => Err(Error::new(Class::Os, reason)),
        None => on_cable(&kernel, &watch, &mut report),
    };
    let result = result.and_then(|()| report.verdict());
    let written = report.close(&result, watch.is_interrupted());
    result.and(written).at("selftest")
}

/// Makes the cable and tries each way on it. An error is of what all of them need.
fn on_cable(kernel: &Kernel, watch: &Watch, report: &mut Report<'_>) -> Result<()> {
    let mut cable = Cable::new(kernel.may_make_namespaces())?;
    report.ok("veth", &cable.to_string());
    let mut capture = Capture::new(&cable, kernel.has_gso_size())?;
    match capture.clsact() {
        Ok(()) => report.ok("clsact", "a qdisc for programs on both ways"),
        Err(cause) => report.none(
            "clsact",
            &format!("{cause}; is the module sch_ingress there? glowd needs tcx here"),
        ),
    }
    report.ok("ingress", &format!("a program sees what arrives, attached by {}", capture.way()));
    traffic::await_cable(&cable, watch)?;
    for (attach, strategy, name) in ways() {
        let what = format!("{attach} {name}");
        let missing = match attach {
            "tcx" => kernel.lacks_tcx(),
            "clsact" => capture.clsact().err().map(|_| "there is no clsact".to_owned()),
            _ => None,
        };
        let missing = missing.or_else(|| kernel.lacks_for(strategy));
        if let Some(missing) = missing {
            report.none(&what, &format!("not tried: {missing}"));
            continue;
        }
        let outcome = round::run(&mut cable, &mut capture, watch, attach, (strategy, name));
        watch.check()?;
        report.way(&what, outcome);
    }
    Ok(())
}

/// What is tried: the defaults first.
fn ways() -> impl Iterator<Item = (&'static str, Strategy, &'static str)> {
    let all = ["tcx", "clsact"].into_iter().flat_map(|attach| {
        Strategy::ALL.into_iter().map(move |(strategy, name)| (attach, strategy, name))
    });
    let (label, name) = Strategy::ALL[0];
    std::iter::once((DEFAULT, label, name)).chain(all)
}

/// The key `attach` unless configured otherwise.
const DEFAULT: &str = "auto";

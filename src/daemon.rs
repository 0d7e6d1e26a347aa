//! The daemon's whole life on one page: build everything, start the threads, say
//! READY, wait, stop, join.

use std::collections::VecDeque;
use std::sync::{mpsc, Arc};

use log::{error, info};
use nix::sys::signal::Signal;

use crate::config::{Config, Section};
use crate::dispatcher::Dispatcher;
use crate::entropy::EntropyKey;
use crate::error::{At, Error, Result};
use crate::flow::Protocol;
use crate::metrics::Metrics;
use crate::part::Context;
use crate::pid_file::PidFile;
use crate::pulse::Pulse;
use crate::reload::{Origin, Reloader};
use crate::shutdown::{stop_token, Signals};
use crate::systemd::Notifier;
use crate::worker::Workers;

/// What the main thread wakes up for.
#[derive(Debug)]
pub enum Life {
    /// A signal arrived.
    Signal(Signal),
    /// A worker is done, in order or not.
    Ended {
        /// Its name.
        worker: String,
        /// How it ended.
        result: Result<()>,
    },
}

/// Runs the daemon as configured until it is told to stop. SIGHUP has it read the
/// configuration again from its origin.
///
/// # Errors
/// What a part could not acquire, or the first failure of a worker.
pub fn run(config: Config, origin: Origin) -> Result<()> {
    // Before anything can use up the descriptors.
    let notifier = Notifier::from_env();
    let (life, news) = mpsc::channel();
    // First, since every thread inherits the blocked signals.
    let signals = Signals::start(life.clone())?;
    let _pid_file = PidFile::create(config.pid_path()).at("pidPath")?;
    let mut result = live(config, origin, &notifier, life, &news);
    drop(signals);
    // What went wrong on the way out counts too.
    for news in news.try_iter() {
        match news {
            Life::Ended { result: Err(late), .. } if result.is_err() => error!("{late}"),
            Life::Ended { result: late, .. } if result.is_ok() => result = late,
            _ => {}
        }
    }
    if result.is_ok() {
        info!("stopped");
    }
    result
}

/// Whether that enricher knows what connections of TCP carry: all of them, also those that are
/// older than the daemon or over in a moment.
fn measures_tcp(name: &str, section: &Section) -> bool {
    let is_tcp = || section.int::<u8>("protocol") == Protocol::Tcp.number();
    name == "netlink" && is_tcp() && section.int::<u8>("ext") & 2 != 0
}

/// From the first part that is built to the last thread that is joined.
fn live(
    config: Config,
    origin: Origin,
    notifier: &Notifier,
    life: mpsc::Sender<Life>,
    news: &mpsc::Receiver<Life>,
) -> Result<()> {
    let metrics = Arc::<Metrics>::default();
    let names = Arc::new(config.names()?);
    // All that are unknown, not the first one that a part meets.
    config.check_names(&names, false)?;
    names.measure_by(&metrics);
    let context = Context {
        max_flows: config.max_flows(),
        names,
        metrics: metrics.clone(),
        period: config.period(),
        enriched: config.enrichers.iter().any(|(spec, section)| measures_tcp(spec.name, section)),
        in_full: Arc::default(),
    };
    let mut backends = Vec::new();
    for (spec, section) in &config.backends {
        let backend = (spec.build)(section, &context).at(section.path())?;
        backends.push((spec.name, backend));
    }
    let mut enrichers = Vec::new();
    for (spec, section) in &config.enrichers {
        let mut enricher = (spec.build)(section, &context).at(section.path())?;
        let last_look = enricher.last_look().at(section.path())?;
        enrichers.push((spec.name, enricher, last_look));
    }
    let mut plugins = Vec::new();
    for (spec, section) in &config.plugins {
        let plugin = (spec.build)(section, &context).at(section.path())?;
        plugins.push((spec.name, plugin));
    }
    let path = |section: &Section| section.path().to_owned();
    let trials = config.plugins.iter().zip(&plugins);
    let mut trials: Vec<_> =
        trials.filter_map(|((_, s), (_, plugin))| Some((path(s), plugin.trial()?))).collect();
    let tried = config.backends.iter().zip(&backends);
    trials.extend(tried.filter_map(|((_, s), (_, backend))| Some((path(s), backend.trial()?))));
    let backend_room = backends.iter().map(|(name, part)| (part.capacity(), *name));
    let rooms =
        backend_room.chain(enrichers.iter().map(|(name, part, _)| (part.capacity(), *name)));
    let capacity = rooms.filter_map(|(room, name)| Some((room?, name))).min();
    let sections = config.plugins.iter().map(|(_, section)| path(section));
    let lives =
        sections.zip(&plugins).filter_map(|(path, (_, plugin))| Some((path, plugin.live()?)));
    let lives = lives.collect();

    let (stopper, stop) = stop_token()?;
    // Before all that the workers wait for: should a thread not start, that hangs up
    // first, and then those that run are joined.
    let mut workers = Workers::new(stopper, life);
    let (mut dispatcher, inlet) = Dispatcher::new(context.max_flows, EntropyKey::of_this_boot());
    dispatcher.measure_by(metrics.clone(), plugins.iter().map(|(name, _)| *name).collect());
    dispatcher.set_meter(backends.iter_mut().find_map(|(_, backend)| backend.meter()));
    dispatcher.name_by(context.names.clone());
    dispatcher.set_idle_timeout(config.idle_timeout());
    dispatcher.set_ongoing_period(config.ongoing_period());
    dispatcher.set_pulse(Pulse::new(notifier.clone()));
    for (name, backend) in backends {
        let queue = dispatcher.attach(name);
        workers.start(format!("backends.{name}"), move || backend.run(queue))?;
    }
    let mut watches = Vec::new();
    for (name, enricher, last_look) in enrichers {
        watches.push((name, enricher, dispatcher.watch(name, last_look)));
    }
    workers.start("dispatcher", move || {
        dispatcher.run();
        Ok(())
    })?;
    for (name, enricher, watch) in watches {
        let (out, stop) = (inlet.clone(), stop.clone());
        workers.start(format!("enrichers.{name}"), move || enricher.run(watch, out, stop))?;
    }
    for (name, plugin) in plugins {
        let (out, stop) = (inlet.for_source(name), stop.clone());
        workers.start(format!("plugins.{name}"), move || plugin.run(out, stop))?;
    }

    info!("ready: {}", config.summary());
    // If the dispatcher has died, that is what the wait learns of.
    let _ = inlet.ready();
    let mut reloader = Reloader::new(origin, config, capacity, lives, trials);
    reloader.measure_by(&metrics);
    let result = wait(news, || inlet.report(), || reloader.reload(&inlet, notifier));

    // Sources, dispatcher and sinks end in this order, each when the one before it
    // has hung up, so that nothing accepted is lost.
    notifier.tell("STOPPING=1");
    drop(inlet);
    drop(workers);
    result
}

/// Waits for a reason to stop: a signal is a good one, a worker's end never is.
fn wait(news: &mpsc::Receiver<Life>, report: impl Fn(), mut reload: impl FnMut()) -> Result<()> {
    let mut waiting = VecDeque::new();
    loop {
        let next = match waiting.pop_front() {
            Some(next) => next,
            None => news.recv().map_err(|_| Error::internal("all workers are gone"))?,
        };
        match next {
            Life::Signal(Signal::SIGUSR1) => report(),
            Life::Signal(Signal::SIGHUP) => {
                // Whoever has asked by now is served by the same reading of the file, and
                // nobody has to wait for it who wants the daemon to stop.
                waiting.extend(news.try_iter());
                waiting.retain(|next| !matches!(next, Life::Signal(Signal::SIGHUP)));
                if waiting.iter().all(|next| matches!(next, Life::Signal(Signal::SIGUSR1))) {
                    reload();
                }
            }
            Life::Signal(signal) => {
                info!("{signal}: stopping");
                return Ok(());
            }
            Life::Ended { result: Err(error), .. } => return Err(error),
            Life::Ended { worker, result: Ok(()) } => {
                return Err(Error::internal("ended although nobody asked it to").at(worker));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::{self, Backend};
    use crate::dispatcher::{Inlet, Queue};
    use crate::error::Class;
    use crate::part::no_rules;
    use crate::plugins::{self, Plugin};
    use crate::shutdown::Stop;
    use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
    use std::os::fd::AsFd;
    use std::panic::{catch_unwind, AssertUnwindSafe};
    use std::sync::Mutex;
    use std::time::Duration;

    /// What happened, in this order.
    static ENDS: Mutex<Vec<&str>> = Mutex::new(Vec::new());

    struct Faulty;
    struct Patient;
    struct Sink;

    impl Plugin for Faulty {
        fn run(self: Box<Self>, _: Inlet, _: Stop) -> Result<()> {
            panic!("a bug");
        }
    }

    impl Plugin for Patient {
        fn run(self: Box<Self>, _: Inlet, stop: Stop) -> Result<()> {
            let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::NONE).map_err(|error| Error::os("cannot poll", error))?;
            ENDS.lock().unwrap().push("source");
            Ok(())
        }
    }

    impl Backend for Sink {
        fn run(self: Box<Self>, events: Queue) -> Result<()> {
            while events.recv().is_some() {}
            // Who does not wait for this one is gone before.
            std::thread::sleep(Duration::from_millis(20));
            ENDS.lock().unwrap().push("sink");
            Err(Error::new(Class::Os, "cannot flush"))
        }
    }

    static FAULTY: plugins::Spec = plugins::Spec {
        name: "faulty",
        aliases: &[],
        summary: "panics",
        keys: &[],
        check: no_rules,
        build: |_, _| Ok(Box::new(Faulty)),
    };
    static PATIENT: plugins::Spec =
        plugins::Spec { name: "patient", build: |_, _| Ok(Box::new(Patient)), ..FAULTY };
    static SINK: backends::Spec = backends::Spec {
        name: "sink",
        aliases: &[],
        summary: "ends when its queue hangs up",
        keys: &[],
        check: no_rules,
        build: |_, _| Ok(Box::new(Sink)),
    };

    /// Its thread cannot be started: the name is not one.
    static UNNAMED: plugins::Spec = plugins::Spec { name: "nul\0", ..FAULTY };

    /// How the daemon ends with that plugin beside others; that the others have
    /// ended by then, in order.
    fn end_with(spec: &'static plugins::Spec) -> std::thread::Result<Result<()>> {
        let dir = tempfile::tempdir().unwrap();
        let pid_path = dir.path().join("pid");
        let text = serde_json::json!({ "pidPath": pid_path.to_str().unwrap() }).to_string();
        let mut config = Config::parse(&text, "conf.json").unwrap();
        for spec in [&PATIENT, spec] {
            config.plugins.push((spec, Section::new(format!("plugins.{}", spec.name), vec![])));
        }
        config.backends.push((&SINK, Section::new("backends.sink", vec![])));
        let origin = Origin { path: dir.path().join("conf.json"), log_level: None };
        let end = catch_unwind(AssertUnwindSafe(|| run(config, origin)));
        assert_eq!(std::mem::take(&mut *ENDS.lock().unwrap()), ["source", "sink"]);
        assert!(!pid_path.exists());
        end
    }

    #[test]
    fn a_panic_of_one_ends_the_others_in_order() {
        let error = end_with(&FAULTY).unwrap().unwrap_err();
        assert_eq!(error.to_string(), "plugins.faulty: panicked: a bug");
        assert_eq!(error.class(), Class::Internal);
        // And so does a start that goes wrong half-way, in whatever way.
        end_with(&UNNAMED).unwrap_err();
    }

    /// How the wait ends with these news, and how often it reported and reloaded.
    fn wait_with(all: Vec<Life>) -> (String, usize, usize) {
        let (sender, news) = mpsc::channel();
        all.into_iter().for_each(|life| sender.send(life).unwrap());
        drop(sender);
        let (reports, mut reloads) = (std::cell::Cell::new(0), 0);
        let end = wait(&news, || reports.set(reports.get() + 1), || reloads += 1);
        (end.map_or_else(|error| error.to_string(), |()| "stop".into()), reports.get(), reloads)
    }

    #[test]
    fn many_hangups_are_one_and_whoever_stops_does_not_wait_for_it() {
        let signal = Life::Signal;
        use Signal::{SIGHUP, SIGTERM, SIGUSR1};
        let gone = "all workers are gone".to_owned();
        let storm = (0..100).map(|_| signal(SIGHUP)).collect();
        assert_eq!(wait_with(storm), (gone.clone(), 0, 1));
        let both = vec![signal(SIGHUP), signal(SIGUSR1), signal(SIGHUP), signal(SIGUSR1)];
        assert_eq!(wait_with(both), (gone, 2, 1));
        let stop = vec![signal(SIGHUP), signal(SIGUSR1), signal(SIGTERM), signal(SIGHUP)];
        assert_eq!(wait_with(stop), ("stop".into(), 1, 0));
        let result = Err(Error::new(Class::Os, "cannot go on"));
        let dead = vec![signal(SIGHUP), Life::Ended { worker: "w".into(), result }];
        assert_eq!(wait_with(dead), ("cannot go on".into(), 0, 0));
    }
}

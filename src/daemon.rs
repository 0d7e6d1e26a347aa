//! The daemon's whole life on one page: build everything, start the threads, say
//! READY, wait, stop, join.

use std::sync::{mpsc, Arc};

use log::{error, info, warn};
use nix::sys::signal::Signal;

use crate::config::Config;
use crate::dispatcher::Dispatcher;
use crate::entropy::EntropyKey;
use crate::error::{At, Error, Result};
use crate::part::Context;
use crate::pid_file::PidFile;
use crate::shutdown::{stop_token, Signals};
use crate::systemd;
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

/// Runs the daemon as configured until it is told to stop.
///
/// # Errors
/// What a part could not acquire, or the first failure of a worker.
pub fn run(config: &Config) -> Result<()> {
    let (life, news) = mpsc::channel();
    // First, since every thread inherits the blocked signals.
    let signals = Signals::start(life.clone())?;
    let _pid_file = PidFile::create(config.pid_path()).at("pidPath")?;
    let mut result = live(config, life, &news);
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

/// From the first part that is built to the last thread that is joined.
fn live(config: &Config, life: mpsc::Sender<Life>, news: &mpsc::Receiver<Life>) -> Result<()> {
    let context = Context { max_flows: config.max_flows(), names: Arc::new(config.names()?) };
    let mut backends = Vec::new();
    for (spec, section) in &config.backends {
        let backend = (spec.build)(section, &context).at(section.path())?;
        backends.push((spec.name, backend));
    }
    let mut plugins = Vec::new();
    for (spec, section) in &config.plugins {
        let plugin = (spec.build)(section, &context).at(section.path())?;
        plugins.push((spec.name, plugin));
    }

    let (stopper, stop) = stop_token()?;
    // Before all that the workers wait for: should a thread not start, that hangs up
    // first, and then those that run are joined.
    let mut workers = Workers::new(stopper, life);
    let (mut dispatcher, inlet) = Dispatcher::new(context.max_flows, EntropyKey::of_this_boot());
    dispatcher.name_by(context.names.clone());
    for (name, backend) in backends {
        let queue = dispatcher.attach(name);
        workers.start(format!("backends.{name}"), move || backend.run(queue))?;
    }
    workers.start("dispatcher", move || {
        dispatcher.run();
        Ok(())
    })?;
    for (name, plugin) in plugins {
        let (out, stop) = (inlet.for_source(name), stop.clone());
        workers.start(format!("plugins.{name}"), move || plugin.run(out, stop))?;
    }

    info!("ready: {}", config.summary());
    systemd::notify("READY=1");
    let result = wait(news, || inlet.report());

    // Sources, dispatcher and sinks end in this order, each when the one before it
    // has hung up, so that nothing accepted is lost.
    systemd::notify("STOPPING=1");
    drop(inlet);
    drop(workers);
    result
}

/// Waits for a reason to stop: a signal is a good one, a worker's end never is.
fn wait(news: &mpsc::Receiver<Life>, report: impl Fn()) -> Result<()> {
    loop {
        match news.recv() {
            Ok(Life::Signal(Signal::SIGUSR1)) => report(),
            Ok(Life::Signal(Signal::SIGHUP)) => {
                warn!("SIGHUP: the configuration cannot be read again yet; restart to change it");
            }
            Ok(Life::Signal(signal)) => {
                info!("{signal}: stopping");
                return Ok(());
            }
            Ok(Life::Ended { result: Err(error), .. }) => return Err(error),
            Ok(Life::Ended { worker, result: Ok(()) }) => {
                return Err(Error::internal("ended although nobody asked it to").at(worker));
            }
            Err(_) => return Err(Error::internal("all workers are gone")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::{self, Backend};
    use crate::config::Section;
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
        let end = catch_unwind(AssertUnwindSafe(|| run(&config)));
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
}

//! The daemon's whole life on one page: build everything, start the threads, say
//! READY, wait, stop, join.

use std::sync::mpsc;

use log::{error, info, warn};
use nix::sys::signal::Signal;

use crate::config::Config;
use crate::dispatcher::Dispatcher;
use crate::entropy::EntropyKey;
use crate::error::{At, Error, Result};
use crate::part::Context;
use crate::pid_file::PidFile;
use crate::shutdown::{stop_token, Signals};
use crate::{systemd, worker};

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

    let context = Context { max_flows: config.max_flows() };
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
    let (mut dispatcher, inlet) = Dispatcher::new(context.max_flows, EntropyKey::of_this_boot());
    let mut sinks = Vec::new();
    for (name, backend) in backends {
        let queue = dispatcher.attach(name);
        let work = move || backend.run(queue);
        sinks.push(worker::start(format!("backends.{name}"), life.clone(), work)?);
    }
    let work = move || {
        dispatcher.run();
        Ok(())
    };
    let hub = worker::start("dispatcher", life.clone(), work)?;
    let mut sources = Vec::new();
    for (name, plugin) in plugins {
        let (out, stop) = (inlet.for_source(name), stop.clone());
        let work = move || plugin.run(out, stop);
        sources.push(worker::start(format!("plugins.{name}"), life.clone(), work)?);
    }

    info!("ready: {}", config.summary());
    systemd::notify("READY=1");
    let result = wait(&news, || inlet.report());

    // In the direction of the data, so that nothing accepted is lost.
    systemd::notify("STOPPING=1");
    drop(stopper);
    drop(inlet);
    for thread in sources.into_iter().chain([hub]).chain(sinks) {
        // A panic was caught and reported by the worker itself.
        let _ = thread.join();
    }
    drop(life);
    drop(signals);
    // What went wrong on the way out counts too, if nothing did before.
    let late = news.try_iter().find_map(|news| match news {
        Life::Ended { result: Err(error), .. } => Some(error),
        _ => None,
    });
    let result = match (result, late) {
        (Err(first), Some(late)) => {
            error!("{late}");
            Err(first)
        }
        (Ok(()), Some(late)) => Err(late),
        (result, None) => result,
    };
    if result.is_ok() {
        info!("stopped");
    }
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

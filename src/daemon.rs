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
    // Before all that the workers wait for: should a thread not start, that hangs up
    // first, and then those that run are joined.
    let mut workers = Workers::new(stopper, life);
    let (mut dispatcher, inlet) = Dispatcher::new(context.max_flows, EntropyKey::of_this_boot());
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

//! Shows Prometheus what glowd does and how: `GET /metrics`, in Prometheus' text format
//! or OpenMetrics.
//!
//! The backend's thread keeps the figures of open flows as the dispatcher tells; a
//! second thread serves HTTP, and asks nobody for what it shows: see `crate::metrics`.
//! They share `flows`, so that a scrape may hold up the backend's thread, whose queue
//! meanwhile grows by what comes, and nothing else.

mod flows;
pub(crate) mod series;

use std::net::{IpAddr, SocketAddr};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use log::{error, info};

use self::flows::{Flows, Rules};
use super::{Backend, Spec};
use crate::config::{Choice, Key, Kind, Section};
use crate::dispatcher::{Event, Queue};
use crate::error::{Error, Result};
use crate::metrics::families::BUILD;
use crate::metrics::{process, Format, Metrics, Writer, OLD_OPEN_METRICS};
use crate::net::http::{Answer, Method, Request, Server, Service, Settings};
use crate::part::{no_rules, Context};
use crate::shutdown::{stop_token, Stop, Stopper};

/// Where messages come from.
const NAME: &str = "backends.prometheus";

/// More than Prometheus opens, in a pair and with people who look.
const CONNECTIONS: usize = 64;

/// A request has no body.
const BODY: usize = 4096;

/// The registration.
pub(super) static SPEC: Spec = Spec {
    name: "prometheus",
    aliases: &[],
    summary: "shows what glowd does and how to Prometheus, at http://ADDRESS:PORT/metrics",
    keys: &[
        Key::bind_address(
            "Address to listen on, IPv4 or IPv6. Nobody has to authenticate: whoever can reach it \
             can read the metrics, and with perFlow the addresses of flows. On a loopback \
             address requests have to name the host by an IP address or as localhost, and \
             get 403 otherwise.",
        ),
        Key::port("port", &["netlinkPort"], "9817"),
        Key {
            name: "skopsPort",
            aliases: &[],
            kind: Kind::Int { min: 0, max: 65535 },
            default: "0",
            live: false,
            doc:
                "flowd-go's second port. Here one port has all metrics: it is this one if port is \
                  0 or not given; otherwise this has no effect. In flowd-go a port of 0 is off; \
                  here it is one that the system chooses.",
        },
        Key {
            name: "perFlow",
            aliases: &[],
            kind: Kind::Bool,
            default: "true",
            live: true,
            doc: "Whether each flow that an enricher measures has series of its own while it is \
                  open: flow_tcp_rtt and the like, see METRICS in glowd(8).",
        },
        Key {
            name: "maxFlowSeries",
            aliases: &[],
            kind: Kind::Int { min: 0, max: 1_000_000 },
            default: "10000",
            live: true,
            doc: "The most flows with series of their own; each has about 30. What is beyond is \
                  counted in glowd_flows_without_series. A scrape of 10,000 flows is 45 MB.",
        },
        Key {
            name: "units",
            aliases: &[],
            kind: Kind::Choice(&[
                Choice { name: "flowd", aliases: &[] },
                Choice { name: "flowd-go", aliases: &[] },
            ]),
            default: "\"flowd-go\"",
            live: true,
            doc:
                "Whose names, units and labels the series of flows have: in flowd times are in ms \
                  and rates in bit/s, and exp and act are names; in flowd-go they are in us and \
                  octets per second, and exp and act are ids.",
        },
        Key {
            name: "log",
            aliases: &[],
            kind: Kind::Retired,
            default: "true",
            live: false,
            doc: "Has no effect: what is to be said is in the log.",
        },
    ],
    check: no_rules,
    build,
};

fn build(section: &Section, context: &Context) -> Result<Box<dyn Backend>> {
    Ok(Box::new(Prometheus::new(section, context)?))
}

/// The backend, listening.
struct Prometheus {
    server: Server,
    page: Page,
    flows: Arc<Mutex<Flows>>,
}

impl Prometheus {
    fn new(section: &Section, context: &Context) -> Result<Self> {
        let ip: IpAddr = section.address("bindAddress");
        let settings =
            Settings { connections: CONNECTIONS, body: BODY, who: NAME, ..Settings::default() };
        let server = Server::bind(SocketAddr::new(ip, section.int("port")), settings)?;
        info!("{NAME}: listening on http://{}/metrics", server.address());
        let metrics = context.metrics.clone();
        metrics.add(|writer| {
            let commit = option_env!("GLOWD_COMMIT").unwrap_or_default();
            writer.number(&BUILD, &[env!("CARGO_PKG_VERSION"), commit], 1);
        });
        metrics.add(process::write);
        let flows = Arc::new(Mutex::new(Flows::new(
            context.names.clone(),
            metrics.clone(),
            Rules::read(section),
        )));
        let page = Page { metrics, last: 0, flows: flows.clone() };
        Ok(Prometheus { server, page, flows })
    }
}

impl Backend for Prometheus {
    fn run(self: Box<Self>, events: Queue) -> Result<()> {
        let Prometheus { server, mut page, flows } = *self;
        let (stopper, stop) = stop_token()?;
        let thread = thread::Builder::new()
            // The kernel shows 15 bytes.
            .name("prometheus.http".into())
            .spawn(move || serve(server, &mut page, &stop))
            .map_err(|error| Error::os("cannot start the thread for HTTP", error))?;
        let _serving = Serving { stopper: Some(stopper), thread: Some(thread) };
        let lock = || flows.lock().unwrap_or_else(PoisonError::into_inner);
        events.want_samples(lock().wants_samples());
        while let Some(batch) = events.recv() {
            let mut flows = lock();
            flows.follow_registry();
            for event in batch.iter() {
                match event {
                    Event::Start(flow) => flows.open(flow),
                    Event::End(flow, _) => flows.close(flow),
                    // It is no flow.
                    Event::Everything(_) | Event::Ongoing(..) => {}
                    Event::Report => info!("{NAME}: {} scrapes", flows.scrapes),
                    Event::Sample(flow) => flows.measure(flow),
                    Event::Reload(section) => {
                        flows.obey(Rules::read(section));
                        events.want_samples(flows.wants_samples());
                    }
                }
            }
        }
        Ok(())
    }
}

/// Serves until `stop` says so.
fn serve(server: Server, page: &mut Page, stop: &Stop) {
    // A half-made page is thrown away with its connection.
    let end = catch_unwind(AssertUnwindSafe(|| server.serve(page, stop)));
    match end {
        Ok(Ok(())) => {}
        Ok(Err(cause)) => error!("{NAME}: metrics are no longer served: {cause}"),
        Err(_) => error!("{NAME}: metrics are no longer served: a bug in glowd"),
    }
}

/// The thread that serves. Dropping it ends it, and waits for that.
struct Serving {
    stopper: Option<Stopper>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.stopper.take());
        if let Some(thread) = self.thread.take() {
            // It has no panic of its own, see serve().
            let _ = thread.join();
        }
    }
}

/// What is served.
struct Page {
    metrics: Arc<Metrics>,
    /// How long the last one was, in octets.
    last: usize,
    flows: Arc<Mutex<Flows>>,
}

impl Page {
    fn write(&mut self, format: Format, out: &mut Vec<u8>) {
        let start = out.len();
        // One growth instead of many.
        out.reserve(self.last + self.last / 16);
        let mut writer = Writer::default();
        self.metrics.write(&mut writer);
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        flows.scrapes += 1;
        flows.write(&mut writer);
        writer.finish(format, out);
        flows.write_series(format, out);
        if format == Format::OpenMetrics {
            out.extend_from_slice(b"# EOF\n");
        }
        self.last = out.len() - start;
    }
}

impl Service for Page {
    fn answer(&mut self, request: &Request<'_>, crowded: bool, out: &mut Vec<u8>) -> Answer {
        let head = &request.head;
        if head.path != "/metrics" {
            return Answer::error(404, "there is only /metrics", out);
        }
        if !matches!(head.method, Method::Get | Method::Head) {
            let answer = Answer::error(405, "/metrics knows only GET, HEAD", out);
            return Answer { allow: "GET, HEAD", ..answer };
        }
        if crowded {
            return Answer::error(503, "too many long answers are on their way already", out);
        }
        let format = head.open_metrics.map_or(Format::Text, |_| Format::OpenMetrics);
        self.write(format, out);
        let content_type = match head.open_metrics {
            Some("0.0.1") => OLD_OPEN_METRICS,
            _ => format.content_type(),
        };
        Answer { status: 200, content_type, allow: "" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Value;
    use crate::queue::queue;
    use std::time::{Duration, Instant};

    fn section(per_flow: bool) -> Section {
        let keys = SPEC.keys.iter().filter_map(|key| Some((key.name, key.default_value()?)));
        let mut section = Section::new(NAME, keys.collect());
        section.set("port", Value::Int(0));
        section.set("perFlow", Value::Bool(per_flow));
        section
    }

    /// Else each would be copied for nobody.
    #[test]
    fn samples_are_wanted_where_flows_have_series() {
        let backend = build(&section(false), &Context::new(10)).unwrap();
        let (mut outlet, queue) = queue(NAME.into());
        let thread = thread::spawn(|| backend.run(queue).unwrap());
        let mut wait = |wanted: bool| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while outlet.wants_samples() != wanted {
                assert!(Instant::now() < deadline);
                thread::yield_now();
            }
            outlet.send(Arc::new(vec![Event::Reload(Arc::new(section(!wanted)))]));
        };
        [false, true, false].into_iter().for_each(&mut wait);
        drop(outlet);
        thread.join().unwrap();
    }
}

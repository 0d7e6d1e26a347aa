//! The live keys of the plugin netlink.

use nix::sys::signal::Signal;
use serde_json::{json, Value};

use super::super::{reload_with, RELOADED};
use crate::common::{free_port, wait_for, Daemon};

/// A connection on loopback whose one end has a port that nobody else has.
struct Loop {
    port: u16,
    _ends: (std::net::TcpListener, std::net::TcpStream),
}

impl Loop {
    fn new() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        Loop { port, _ends: (listener, stream) }
    }

    /// The tag of the flow to it, if there is one.
    fn tag(&self, daemon: &Daemon) -> Option<(u64, u64)> {
        let flows = daemon.get("/flows").1;
        let to = format!("127.0.0.1:{}", self.port);
        let flow = flows["flows"].as_array().unwrap().iter().find(|flow| flow["dst"] == to)?;
        Some((flow["experiment"].as_u64()?, flow["activity"].as_u64()?))
    }
}

/// A daemon whose netlink plugin begins with `before`, and gives a connection the tag
/// `was`; with `after` as the value of `key` it gives it the tag `is`.
fn netlink(
    before: Value,
    key: &str,
    after: Value,
    was: Option<(u64, u64)>,
    is: Option<(u64, u64)>,
) {
    let connection = Loop::new();
    let base = json!({"experiment": 2, "activity": 16, "includePrivate": true, "period": 100,
                      "immediate": "false"});
    let mut config = json!({
        "plugins": { "netlink": base, "api": { "bindPort": free_port() } }, "backends": {},
    });
    for (key, value) in before.as_object().unwrap() {
        config["plugins"]["netlink"][key] = value.clone();
    }
    let mut daemon = Daemon::start(config.clone());
    let looked = |daemon: &Daemon, least: u64| {
        wait_for("a look", || {
            daemon.signal(Signal::SIGUSR1);
            let lines = daemon.lines();
            let mut looks = lines.iter().filter_map(|line| {
                line.strip_suffix(" waiting for room in the flow table")?;
                line.split("plugins.netlink: ").nth(1)?.split(' ').next()?.parse::<u64>().ok()
            });
            looks.next_back().filter(|looks| *looks >= least)
        })
    };
    let looks = looked(&daemon, 1);
    assert_eq!(connection.tag(&daemon), was);
    config["plugins"]["netlink"][key] = after;
    let said = reload_with(&mut daemon, &config);
    assert_eq!(said.last(), Some(&format!("{RELOADED}changed plugins.netlink.{key}")));
    looked(&daemon, looks + 1);
    wait_for("the new tag", || (connection.tag(&daemon) == is).then_some(()));
    if key == "period" {
        // The reload itself makes it look; this one is found by the next look.
        let later = Loop::new();
        wait_for("the later one", || (later.tag(&daemon) == is).then_some(()));
    }
    daemon.stop(&["backends: ", "is not registered"]);
}

const OLD: Option<(u64, u64)> = Some((2, 16));

pub(super) fn netlink_rules() {
    let rules = json!([{"remotePrefix": "127.0.0.0/8", "experiment": 2, "activity": 15}]);
    netlink(json!({}), "rules", rules, OLD, Some((2, 15)));
}

pub(super) fn netlink_experiment() {
    netlink(json!({}), "experiment", json!("lhcb"), OLD, Some((4, 16)));
}

pub(super) fn netlink_activity() {
    netlink(json!({}), "activity", json!(9), OLD, Some((2, 9)));
}

pub(super) fn netlink_exclude() {
    netlink(json!({}), "exclude", json!("127.0.0.0/8"), OLD, None);
}

pub(super) fn netlink_include_private() {
    netlink(json!({}), "includePrivate", json!(false), OLD, None);
}

pub(super) fn netlink_period() {
    netlink(json!({"period": 3_600_000}), "period", json!(100), OLD, OLD);
}

//! The keys of the top level, and the rules that span sections.

use std::net::SocketAddr;

use log::Level;

use super::check::Judge;
use super::key::{Choice, Key, Kind, Value};
use super::{Config, Section};
use crate::stun;

/// The keys outside `plugins` and `backends`, in the order of the documentation.
pub static TOP: &[Key] = &[
    Key {
        name: "pidPath",
        aliases: &[],
        kind: Kind::Path,
        default: "\"/run/glowd/glowd.pid\"",
        live: false,
        doc: "The file that holds the process id while glowd runs, and whose lock keeps a second \
              glowd from starting. Its folder is made if only that is missing. With \"\" there is \
              none.",
    },
    Key {
        name: "workDir",
        aliases: &[],
        kind: Kind::Path,
        default: "\"/var/cache/glowd\"",
        live: false,
        doc: "The folder for state that is to survive a restart. This version writes nothing there, \
              and reads registry.json from it, see registryPath.",
    },
    Key {
        name: "maxFlows",
        aliases: &[],
        kind: Kind::Int { min: 1, max: 10_000_000 },
        default: "100000",
        live: true,
        doc: "How many flows may be open at a time. A start beyond that is refused and its sender \
              is told so, where the way it came allows it. No open flow ever makes room for a new \
              one. With the marker or enricher skops, more than glowd was started with needs a \
              restart.",
    },
    Key {
        name: "idleTimeout",
        aliases: &[],
        kind: Kind::Int { min: 0, max: 31_536_000 },
        default: "86400",
        live: true,
        doc: "After how many seconds without news a flow that a firefly told of is taken to be \
              over, since a datagram is easily lost, also the one that tells of the end. Each \
              firefly about the flow is news. With 0 such a flow stays open until it is ended. \
              Flows that other plugins told of or found are theirs to end.",
    },
    Key {
        name: "registryPath",
        aliases: &[],
        kind: Kind::Path,
        default: "\"/usr/share/glowd/registry.json\"",
        live: false,
        doc: "The registry of experiments and activities, as published at \
              https://www.scitags.org/api.json; with \"\" the one in the binary. Names are taken from \
              it wherever ids are taken. It is read again when it changes, and names in events, in the \
              rules of plugin netlink and in those of the marker mean what it says then; those \
              of plugins iperf3 and perfsonar mean what it said at the start. A file \
              registry.json in workDir comes before it. Where the default is not there, the one in the binary \
              serves; any other file has to be there.",
    },
    Key {
        name: "unknownIds",
        aliases: &[],
        kind: Kind::Choice(&[
            Choice { name: "warn", aliases: &[] },
            Choice { name: "accept", aliases: &[] },
            Choice { name: "refuse", aliases: &[] },
        ]),
        default: "\"warn\"",
        live: false,
        doc: "What becomes of a start whose experiment or activity is not registered: it is taken \
              with a warning, taken, or refused.",
    },
    Key {
        name: "stunServers",
        aliases: &[],
        kind: Kind::List,
        default: "[]",
        live: false,
        doc: "The glowd of 2024 had stunServers of backends.firefly.stun here. What is given here \
              counts as given there, and so asks for that section, if there is the backend \
              firefly.",
    },
    Key {
        name: "log",
        aliases: &[],
        kind: Kind::Choice(&[
            Choice { name: "stderr", aliases: &[] },
            Choice { name: "syslog", aliases: &[] },
        ]),
        default: "\"stderr\"",
        live: false,
        doc: "Where log lines go: to standard error, which systemd puts into its journal, or to \
              the local syslog daemon, facility daemon. A syslog daemon that does not answer is \
              an error at start.",
    },
    Key {
        name: "logLevel",
        aliases: &[],
        kind: Kind::Choice(&[
            Choice { name: "debug", aliases: &[] },
            Choice { name: "info", aliases: &[] },
            Choice { name: "warn", aliases: &[] },
            Choice { name: "error", aliases: &[] },
        ]),
        default: "\"info\"",
        live: true,
        doc: "Log what is at least as urgent as this. The flag --log-level wins over it.",
    },
];

/// Files and folders that glowd makes, by the path of their key.
const MADE: &[(&str, &str)] =
    &[("", "pidPath"), ("", "workDir"), ("plugins.namedPipe", "pipePath")];

/// The rules over several sections; each message starts with the path of the key
/// that has to change.
pub(super) fn problems(config: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    let mut seen: Vec<(String, &str)> = Vec::new();
    for (section, key) in MADE {
        let found = config.sections().find(|found| found.path() == *section);
        let values = found.map_or(&[][..], |section| section.values());
        let Some((_, Value::Text(file))) = values.iter().find(|(name, _)| name == key) else {
            continue;
        };
        let path = if section.is_empty() { (*key).into() } else { format!("{section}.{key}") };
        if let Some((first, _)) = seen.iter().find(|(_, other)| other == file) {
            problems.push(format!("{path}: {file:?} is what {first} names already"));
        }
        if !file.is_empty() {
            seen.push((path, file));
        }
    }
    problems.extend(listens_twice(config));
    if finds_twice(config) {
        problems.push(
            "plugins.perfsonar.fireflies: plugin netlink finds the connections of this host \
             already; give it an experiment and an activity instead"
                .into(),
        );
    }
    problems
}

/// Both are of TCP. Whether `::` takes IPv4 too the system says (ipv6(7), net.ipv6.bindv6only),
/// so that is left to the start.
fn listens_twice(config: &Config) -> Option<String> {
    let listens = |path, port| {
        let section = config.section(path)?;
        Some(SocketAddr::new(section.address("bindAddress").to_canonical(), section.int(port)))
    };
    let api = listens("plugins.api", "bindPort")?;
    let other = listens("backends.prometheus", "port")?;
    let is_wide = api.is_ipv4() == other.is_ipv4()
        && (api.ip().is_unspecified() || other.ip().is_unspecified());
    let meet = api.port() == other.port() && (api.ip() == other.ip() || is_wide);
    (meet && api.port() != 0)
        .then(|| format!("backends.prometheus.port: {other} is taken by plugins.api, at {api}"))
}

/// Two plugins that look for the same connections would give them two tags in turn.
fn finds_twice(config: &Config) -> bool {
    let plugin = |name| config.plugins.iter().find(|(spec, _)| spec.name == name);
    let perfsonar = plugin("perfsonar").is_some_and(|(_, section)| section.bool("fireflies"));
    perfsonar && plugin("netlink").is_some()
}

/// Whether plugin netlink has a tag for what no rule fits.
fn has_tag(netlink: &Section) -> bool {
    !netlink.text("experiment").is_empty()
}

/// What is allowed but hardly meant; each starts with the path of a key.
pub(super) fn remarks(config: &Config) -> Vec<(Level, String)> {
    let mut remarks = Vec::new();
    if config.plugins.is_empty() {
        let text = "plugins: there is none, so glowd will learn of no flow";
        remarks.push((Level::Warn, text.to_owned()));
    }
    if config.backends.is_empty() {
        let text = "backends: there is none, so no flow will be marked or reported";
        // The API may still list what was reported.
        remarks.push((Level::Info, text.to_owned()));
    }
    if config.plugins.iter().any(|(spec, _)| spec.name == "perfsonar")
        && !config.backends.iter().any(|(spec, _)| spec.name == "marker")
    {
        let text = "plugins.perfsonar: nothing will carry its tag without backends.marker";
        remarks.push((Level::Warn, text.to_owned()));
    }
    let netlink = config.section("plugins.netlink");
    if netlink.is_some_and(|it| it.rules("rules").is_empty() && !has_tag(it)) {
        let text = "plugins.netlink: there are no rules and no experiment, so it gives no \
                    connection a tag";
        remarks.push((Level::Warn, text.to_owned()));
    }
    // Those that give every connection a tag; rules may mean others.
    let finds_all = |path, finds: fn(&Section) -> bool| config.section(path).is_some_and(finds);
    for (key, finds_all) in [
        ("plugins.netlink.experiment", finds_all("plugins.netlink", has_tag)),
        ("plugins.perfsonar.fireflies", finds_all("plugins.perfsonar", |it| it.bool("fireflies"))),
    ] {
        if finds_all && config.section("plugins.iperf3").is_some() {
            let text = "plugin iperf3 finds connections, too, and each gets the tag of whichever \
                        of the two is first";
            remarks.push((Level::Warn, format!("{key}: {text}")));
        }
    }
    if !config.top.list("stunServers").is_empty() {
        let text = "stunServers: has no effect without the backend firefly";
        remarks.push((Level::Info, text.to_owned()));
    }
    let enriches = |section: &&Section| {
        section.values().iter().any(|pair| matches!(pair, ("enrich", Value::Bool(true))))
    };
    if config.enrichers.is_empty() && config.sections().any(|section| enriches(&section)) {
        let text = "backends.firefly.enrich: has no effect without an enricher";
        remarks.push((Level::Warn, text.to_owned()));
    }
    remarks
}

/// Puts the `stunServers` of the top level where they are used.
pub(super) fn move_stun_servers(config: &mut Config, judge: &mut Judge<'_>) {
    let servers = config.top.list("stunServers").to_vec();
    let firefly = config.backends.iter_mut().find(|(spec, _)| spec.name == "firefly");
    let Some((_, firefly)) = firefly.filter(|_| !servers.is_empty()) else { return };
    let place = format!("{}.stun.stunServers", firefly.path());
    if judge.is_given(&place) {
        judge.rule(format!("stunServers: given as {place} too"));
        return;
    }
    for problem in stun::server_problems(&servers) {
        judge.rule(problem);
    }
    let mut section = firefly.section("stun").cloned().unwrap_or_else(stun::default_section);
    section.set("stunServers", Value::List(servers));
    firefly.set("stun", Value::Section(Some(section)));
    config.top.set("stunServers", Value::List(Vec::new()));
}

/// Has `port` of the backend prometheus be the one to listen on, of flowd-go's two: what
/// such a configuration means there and does not here is said.
pub(super) fn choose_port(config: &mut Config, judge: &mut Judge<'_>) {
    let prometheus = config.backends.iter_mut().find(|(spec, _)| spec.name == "prometheus");
    let Some((_, section)) = prometheus else { return };
    let ports: [u16; 2] = ["port", "skopsPort"].map(|key| section.int(key));
    let [own, other] = ["port", "skopsPort"].map(|key| format!("{}.{key}", section.path()));
    match ports {
        [0, 0] => {
            let meant = judge.is_given(&other);
            let text = "0 has the system choose a port, and does not keep it closed as in flowd-go";
            let level = if meant { Level::Warn } else { Level::Info };
            judge.remark(level, &format!("{own}: {text}"));
        }
        [_, 0] => {}
        [port, skops] if port == 0 || !judge.is_given(&own) => {
            section.set("port", Value::Int(skops.into()));
        }
        [port, skops] if port == skops => {}
        [port, _] => {
            let text = format!("{other}: has no effect, since port {port} has all metrics");
            judge.remark(Level::Warn, &text);
        }
    }
}

//! Configurations that are judged against tables made for these tests.

use super::*;
use crate::backends;
use crate::config::{Choice, Config};
use crate::error::{Class, Error};
use crate::part::no_rules;
use crate::plugins;

static TAP: plugins::Spec = plugins::Spec {
    name: "tap",
    aliases: &["faucet"],
    summary: "a plugin for these tests",
    keys: &[
        Key {
            name: "bindPort",
            aliases: &["port"],
            kind: Kind::Int { min: 1, max: 65535 },
            default: "7777",
            live: false,
            doc: "The port.",
        },
        Key {
            name: "first",
            aliases: &[],
            kind: Kind::Int { min: 0, max: 9 },
            default: "0",
            live: false,
            doc: "At most last.",
        },
        Key {
            name: "last",
            aliases: &[],
            kind: Kind::Int { min: 0, max: 9 },
            default: "5",
            live: false,
            doc: "At least first.",
        },
        Key {
            name: "buffSize",
            aliases: &[],
            kind: Kind::Retired,
            default: "1000",
            live: false,
            doc: "Nothing.",
        },
    ],
    check: |section| {
        let (first, last) = (section.int::<i64>("first"), section.int::<i64>("last"));
        if first > last {
            return vec![format!("first: {first} is after last, {last}")];
        }
        Vec::new()
    },
    build: |_, _| Err(Error::internal("only judged")),
};

static SINK: backends::Spec = backends::Spec {
    name: "sink",
    aliases: &[],
    summary: "a backend for these tests",
    keys: &[
        Key {
            name: "strategy",
            aliases: &[],
            kind: Kind::Choice(&[
                Choice { name: "label", aliases: &["flowLabel"] },
                Choice { name: "hopByHop", aliases: &[] },
            ]),
            default: "\"label\"",
            live: false,
            doc: "How.",
        },
        Key {
            name: "interfaces",
            aliases: &["interface"],
            kind: Kind::List,
            default: "[\"lo\"]",
            live: false,
            doc: "Where.",
        },
    ],
    check: no_rules,
    build: |_, _| Err(Error::internal("only judged")),
};

fn judge(text: &str) -> Result<Config, Vec<String>> {
    Config::judge(text, "c", &[&TAP], &[&SINK]).map_err(|error| {
        assert_eq!(error.class(), Class::Config);
        error.to_string().lines().map(str::to_owned).collect()
    })
}

fn problems(text: &str) -> Vec<String> {
    match judge(text) {
        Err(problems) => problems,
        Ok(_) => panic!("accepted: {text}"),
    }
}

#[test]
fn nothing_given_means_nothing_runs_and_defaults_hold() {
    let config = judge("{}").unwrap();
    assert!(config.plugins.is_empty() && config.backends.is_empty());
    assert_eq!(config.max_flows(), 100_000);
    assert_eq!(config.pid_path(), "/run/glowd/glowd.pid");
    let levels: Vec<_> = config.notes.iter().map(|note| note.level).collect();
    assert_eq!(levels, [Level::Warn, Level::Info], "{:?}", config.notes);
}

#[test]
fn presence_asks_for_a_part_and_fills_in_its_defaults() {
    let config = judge(r#"{"plugins": {"tap": {}}, "backends": {"sink": {}}}"#).unwrap();
    let (spec, section) = &config.plugins[0];
    assert_eq!((spec.name, section.path()), ("tap", "plugins.tap"));
    assert_eq!(section.int::<u16>("bindPort"), 7777);
    assert_eq!(config.backends[0].1.text("strategy"), "label");
    assert_eq!(config.notes, []);
}

#[test]
fn names_know_no_case_and_aliases_are_canonical_afterwards() {
    let text = r#"{"PLUGINS": {"FAUCET": {"PORT": 1}},
        "Backends": {"Sink": {"INTERFACE": "eth0", "strategy": "FLOWLABEL"}}}"#;
    let config = judge(text).unwrap();
    assert_eq!(config.plugins[0].1.int::<u16>("bindPort"), 1);
    let interfaces = ("interfaces", Value::List(vec!["eth0".into()]));
    assert_eq!(config.backends[0].1.values()[1], interfaces);
    assert_eq!(config.backends[0].1.text("strategy"), "label");
}

#[test]
fn all_problems_are_reported_in_the_order_of_the_text() {
    let text =
        "{\n  \"maxFlows\": 0,\n  \"plugins\": {\"tap\": {\"bindPort\": 70000, \"prot\": 1}},\n  \
        \"backends\": {\"sinc\": {}, \"sink\": {\"strategy\": \"lable\"}}\n}";
    assert_eq!(
        problems(text),
        [
            "c:2:15: maxFlows: 0 is out of range (1 to 10000000)",
            "c:3:35: plugins.tap.bindPort: 70000 is out of range (1 to 65535)",
            "c:3:42: plugins.tap.prot: this version of glowd does not know this key: did you \
             mean \"port\"? (known: bindPort, first, last, buffSize)",
            "c:4:16: backends.sinc: this version of glowd does not know this backend: did you \
             mean \"sink\"? (known: sink)",
            "c:4:49: backends.sink.strategy: found the text \"lable\", expected one of label, \
             hopByHop: did you mean \"label\"?",
        ]
    );
}

/// Defect 12 of the peers: misspelt keys were accepted.
#[test]
fn defect_12_an_unknown_key_is_an_error_wherever_it_stands() {
    for text in [
        r#"{"stun": {}}"#,
        r#"{"plugins": {"iperf3": {}}}"#,
        r#"{"backends": {"sink": {"enrich": true}}}"#,
        r#"{"plugins": {"": {}}}"#,
        r#"{"enrichers": {"netlnk": {}}}"#,
        r#"{"enrichers": {"perod": 1000}}"#,
    ] {
        let problems = problems(text);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains("this version of glowd does not know this "));
    }
}

#[test]
fn a_key_given_twice_is_an_error_under_whatever_name() {
    let twice = r#"{"plugins": {"tap": {"port": 1, "bindPort": 2}}}"#;
    assert_eq!(
        problems(twice),
        ["c:1:33: plugins.tap.bindPort: given a second time, as \"bindPort\"; the first is \
          \"port\" in line 1"]
    );
    assert_eq!(problems(r#"{"log": "syslog", "Log": "stderr"}"#).len(), 1);
    assert_eq!(problems(r#"{"plugins": {"tap": {}, "faucet": {}}}"#).len(), 1);
    assert_eq!(problems(r#"{"plugins": {}, "plugins": {}}"#).len(), 1);
}

#[test]
fn sections_have_to_be_objects() {
    for (text, problem) in [
        ("[]", "c:1:1: found a list, expected an object ({} for the defaults)"),
        (
            r#"{"plugins": null}"#,
            "c:1:13: plugins: found null, expected an object ({} for the defaults)",
        ),
        (
            r#"{"plugins": {"tap": true}}"#,
            "c:1:21: plugins.tap: found true, expected an object ({} for the defaults)",
        ),
    ] {
        assert_eq!(problems(text), [problem]);
    }
}

#[test]
fn rules_over_several_keys_name_the_place_of_the_key() {
    let text = "{\"plugins\": {\"tap\":\n{\"last\": 1,\n \"first\": 2}}}";
    assert_eq!(problems(text), ["c:3:2: plugins.tap.first: 2 is after last, 1"]);
    // One that was not given: its section.
    let text = "{\"plugins\": {\n\"tap\": {\"first\": 9}}}";
    assert_eq!(problems(text), ["c:2:9: plugins.tap.first: 9 is after last, 5"]);
    // Not judged on top of a wrong value.
    let text = r#"{"plugins": {"tap": {"first": 9, "last": "9"}}}"#;
    assert_eq!(problems(text).len(), 1);
    // Nor where a key may be meant for another.
    let text = r#"{"plugins": {"tap": {"first": 9, "lats": 9}}}"#;
    assert_eq!(problems(text).len(), 1);
    // But beside one that has nothing to do with them.
    let text = r#"{"plugins": {"tap": {"first": 9, "bindPort": "9"}}}"#;
    let found = problems(text);
    let keys: Vec<_> = found.iter().map(|text| text.split(": ").nth(1).unwrap()).collect();
    assert_eq!(keys, ["plugins.tap.first", "plugins.tap.bindPort"], "{found:?}");
}

#[test]
fn a_retired_key_is_accepted_and_said_to_be_so() {
    let text = r#"{"plugins": {"tap": {"buffSize": [null]}}, "backends": {"sink": {}}}"#;
    let config = judge(text).unwrap();
    let text = "c:1:22: plugins.tap.buffSize: has no effect any more".to_owned();
    assert_eq!(config.notes, [Note { level: Level::Info, text }]);
    assert!(!config.to_json().contains("buffSize"));
}

#[test]
fn the_effective_configuration_is_a_configuration() {
    let text = r#"{"log": "SYSLOG", "stunServers": "stun:a:1",
        "plugins": {"faucet": {"port": 5}}, "backends": {"sink": {"interface": []}}}"#;
    let config = judge(text).unwrap();
    let json = config.to_json();
    let again = judge(&json).unwrap();
    assert_eq!(again.to_json(), json);
    assert_eq!(again.plugins[0].1, config.plugins[0].1);
    assert_eq!(again.backends[0].1, config.backends[0].1);
    let order = ["pidPath", "workDir", "plugins", "bindPort", "last", "backends", "strategy"];
    let places: Vec<_> = order.iter().map(|key| json.find(key).unwrap()).collect();
    assert!(places.is_sorted(), "{json}");
}

#[test]
fn yaml_is_answered_with_a_hint() {
    let problem = |name| Config::judge("plugins:\n", name, &[], &[]).err().unwrap().to_string();
    assert_eq!(problem("c.json"), "c.json:1:1: not JSON: expected value");
    assert!(problem("c.yaml").ends_with("expected value (YAML has to be written as JSON)"));
}

#[test]
fn keys_are_quoted_safely() {
    let problems = problems("{\"a\\u001b[31m\\nb\": 1}");
    assert!(problems[0].contains(r#""a\u{1b}[31m\nb": this version"#), "{problems:?}");
}

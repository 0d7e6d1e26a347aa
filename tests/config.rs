//! Configurations: goldens of every error, both dialects, the shipped file.
//!
//! `data/config/<case>.json` is judged, and what comes out has to be what
//! `<case>.expected` says: all problems, or the notes and the effective
//! configuration. `GLOWD_BLESS=1` writes the `.expected` files.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use glowd::config::Config;
use glowd::error::{Class, Result};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What a user sees of `path`, which messages call by its last name.
fn outcome(path: &Path) -> String {
    let shown = match Config::load(path) {
        Err(error) => {
            assert_eq!(error.class(), Class::Config, "{}", path.display());
            format!("{error}\n")
        }
        Ok(config) => {
            let mut text = String::new();
            for note in &config.notes {
                text.push_str(&format!("{}: {}\n", note.level.as_str().to_lowercase(), note.text));
            }
            text + &config.to_json() + "\n"
        }
    };
    let dir = format!("{}/", path.parent().unwrap().display());
    shown.replace(&dir, "")
}

#[test]
fn every_case_comes_out_as_expected() {
    let bless = std::env::var_os("GLOWD_BLESS").is_some();
    let mut cases: Vec<PathBuf> = fs::read_dir(root().join("tests/data/config"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    cases.sort();
    assert!(cases.len() > 20, "{cases:?}");
    let mut wrong = Vec::new();
    for case in cases {
        let (golden, found) = (case.with_extension("expected"), outcome(&case));
        if bless {
            fs::write(&golden, &found).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        if found != expected {
            wrong.push(format!("{}\n--- expected\n{expected}--- found\n{found}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What `glowd conf` prints is a configuration, and says the same.
#[test]
fn every_effective_configuration_loads_again() {
    for entry in fs::read_dir(root().join("tests/data/config")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let Ok(config) = Config::load(&path) else { continue };
        let json = config.to_json();
        let again = Config::parse(&json, "again").unwrap();
        assert_eq!(again.to_json(), json, "{}", path.display());
    }
}

/// Every way to cut a configuration short and to spoil one byte of it: judged
/// without a panic, and refused with a place, or understood.
#[test]
fn damaged_configurations_are_judged_too() {
    let judge = |text: &str| match Config::parse(text, "c") {
        Ok(config) => {
            let json = config.to_json();
            assert_eq!(Config::parse(&json, "again").unwrap().to_json(), json, "{text}");
        }
        Err(error) => {
            for line in error.to_string().lines() {
                let mut words = line.splitn(4, ':');
                assert_eq!(words.next(), Some("c"), "{line}");
                let (row, col) = (words.next().unwrap(), words.next().unwrap());
                assert!(row.parse::<usize>().unwrap() > 0, "{line}");
                assert!(col.parse::<usize>().unwrap() > 0, "{line}");
            }
        }
    };
    for case in ["dialect_2024", "dialect_flowd_go"] {
        let path = root().join("tests/data/config").join(case).with_extension("json");
        let text = fs::read_to_string(path).unwrap();
        for at in 0..text.len() {
            judge(&text[..at]);
            judge(&text[at..]);
            for byte in ["\"", "{", "]", ",", "0", "\\", "\n", "\u{e4}", "null"] {
                judge(&format!("{}{byte}{}", &text[..at], &text[at + 1..]));
            }
        }
    }
}

fn names_of(config: &Config) -> Result<()> {
    config.check_names(&config.names()?, false)
}

/// What the daemon refuses at its start, once some parts are there, and what it warns of.
#[test]
fn tags_that_are_not_registered_are_found_by_who_checks() {
    let config = |unknown: &str| {
        let text = format!(
            r#"{{"unknownIds": "{unknown}", "plugins": {{
                "netlink": {{"rules": [{{"localPort": 1, "experiment": "atlas", "activity": "Production Input"}},
                                       {{"experiment": 2, "activity": 62}}]}},
                "iperf3": {{"experimentIDs": [2, 2], "activityIDs": [16, 61]}}}},
              "backends": {{"marker": {{"rules": [{{"experiment": 511, "activity": 1}}]}}}}}}"#
        );
        Config::parse(&text, "c").unwrap()
    };
    let expected = [
        "plugins.netlink.rules[1].experiment: experiment 2 activity 62",
        "plugins.iperf3.activityIDs: experiment 2 activity 61",
        "backends.marker.rules[0].experiment: experiment 511 activity 1",
    ]
    .map(|problem| format!("{problem} is not registered (unknownIds is refuse)"));
    let error = names_of(&config("refuse")).unwrap_err();
    assert_eq!((error.class() as i32, error.to_string()), (78, expected.join("\n")));
    for unknown in ["warn", "accept"] {
        names_of(&config(unknown)).unwrap();
    }
}

#[test]
fn names_that_are_not_registered_are_found_by_who_checks() {
    let check = |rules: &str| {
        let text = format!(r#"{{"plugins": {{"netlink": {rules}}}, "backends": {{}}}}"#);
        let config = Config::parse(&text, "c").unwrap_or_else(|error| panic!("{error}"));
        names_of(&config).map_err(|error| error.to_string())
    };
    let good = r#"{"rules": [{"localPort": 1, "experiment": "Atlas", "activity": 16}]}"#;
    assert_eq!(check(good), Ok(()));
    let wrong = r#"{"experiment": 512, "activity": 1, "rules": [
        {"localPort": 1, "experiment": "altas", "activity": 1},
        {"localPort": 1, "experiment": 2, "activity": "Stagign"}]}"#;
    let problems = [
        "plugins.netlink.rules[0].experiment: \"altas\" is no experiment: did you mean \"atlas\"?",
        "plugins.netlink.rules[1].activity: \"Stagign\" is no activity of atlas: did you mean \
         \"Staging\"?",
        "plugins.netlink.experiment: experiment 512 is out of range (1 to 511)",
    ];
    assert_eq!(check(wrong), Err(problems.join("\n")));
    let text = r#"{"plugins": {"iperf3": {"experimentIDs": ["altas", 2],
        "activityIDs": [1, "Stagign"]}}, "backends": {}}"#;
    let error = names_of(&Config::parse(text, "c").unwrap()).unwrap_err().to_string();
    let keys: Vec<_> = error.lines().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(keys, ["plugins.iperf3.experimentIDs", "plugins.iperf3.activityIDs"]);
}

/// A directory service may know them a little later.
#[test]
fn an_unknown_user_alone_is_no_wrong_configuration() {
    let status = |experiment: &str| {
        let text = format!(
            r#"{{"plugins": {{"netlink": {{"rules": [{{"user": "no such user",
                "experiment": "{experiment}", "activity": 1}}]}}}}, "backends": {{}}}}"#
        );
        let error = names_of(&Config::parse(&text, "c").unwrap()).unwrap_err();
        assert!(error.to_string().contains("there is no user \"no such user\""), "{error}");
        error.class() as i32
    };
    assert_eq!((status("atlas"), status("altas")), (71, 78));
}

#[test]
fn the_shipped_file_is_accepted_and_says_what_is_documented() {
    let shipped = Config::load(&root().join("conf.json")).unwrap();
    assert_eq!(shipped.notes, [], "nothing to remark on");
    let defaults = r#"{"plugins": {"namedPipe": {}, "api": {}}, "enrichers": {"netlink": {}},
        "backends": {"marker": {"discoverInterfaces": true}, "firefly": {}}}"#;
    let defaults = Config::parse(defaults, "defaults").unwrap();
    assert_eq!(shipped.to_json(), defaults.to_json(), "the other values are the defaults");
    let json: serde_json::Value = serde_json::from_str(&shipped.to_json()).unwrap();
    for (pointer, value) in [
        ("/pidPath", serde_json::json!("/run/glowd/glowd.pid")),
        ("/workDir", "/var/cache/glowd".into()),
        ("/maxFlows", 100_000.into()),
        ("/stunServers", serde_json::json!([])),
        ("/log", "stderr".into()),
        ("/logLevel", "info".into()),
        ("/plugins/namedPipe/pipePath", "/run/glowd/np".into()),
        ("/plugins/namedPipe/mode", "0660".into()),
        ("/plugins/api/bindAddress", "127.0.0.1".into()),
        ("/plugins/api/bindPort", 7777.into()),
        ("/backends/marker/targetInterfaces", serde_json::json!([])),
        ("/backends/marker/discoverInterfaces", true.into()),
        ("/backends/marker/markingStrategy", "label".into()),
        ("/backends/marker/matchAll", false.into()),
        ("/backends/marker/countReceived", "auto".into()),
        ("/enrichers/period", 1000.into()),
        ("/backends/marker/attach", "auto".into()),
        ("/backends/firefly/sendToDestination", true.into()),
        ("/backends/firefly/destinationPort", 10514.into()),
        ("/backends/firefly/prependSyslog", true.into()),
        ("/backends/firefly/sendToCollector", false.into()),
    ] {
        assert_eq!(json.pointer(pointer), Some(&value), "{pointer}");
    }
}

#[test]
fn the_examples_of_the_manual_are_accepted() {
    let page = fs::read_to_string(root().join("man/glowd.conf.5.in")).unwrap();
    let displays = page.split(".Bd -literal -offset indent\n").skip(1);
    let examples: Vec<_> = displays
        .map(|display| display.split(".Ed\n").next().unwrap())
        .filter(|display| display.starts_with('{'))
        .collect();
    assert!(examples.len() >= 3);
    for example in examples {
        // mdoc escapes nothing in them but the backslash, of which there is none.
        assert!(!example.contains('\\'), "{example}");
        if let Err(error) = Config::parse(example, "example") {
            panic!("{error}\n{example}");
        }
    }
}

#[test]
fn a_file_that_anybody_may_write_to_earns_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("conf.json");
    fs::copy(root().join("conf.json"), &path).unwrap();
    for (mode, notes) in [(0o644, 0), (0o664, 0), (0o666, 1)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let config = Config::load(&path).unwrap();
        assert_eq!(config.notes.len(), notes, "{mode:o}: {:?}", config.notes);
        assert!(config.notes.iter().all(|note| note.text.contains("chmod o-w")));
    }
}

#[test]
fn files_that_are_no_text_are_refused_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |path: &Path| {
        let error = Config::load(path).err().unwrap();
        assert_eq!(error.class(), Class::Config);
        error.to_string()
    };
    let path = dir.path().join("conf.json");
    let missing = refused(&path);
    assert!(missing.contains("No such file") && missing.contains("use --conf PATH"), "{missing}");
    assert!(refused(dir.path()).contains("cannot read the configuration"));
    fs::write(&path, b"{\n \"a\xff\": 1}").unwrap();
    assert!(refused(&path).ends_with("conf.json:2:4: not UTF-8"), "{}", refused(&path));
    fs::write(&path, " ".repeat(2 << 20)).unwrap();
    assert!(refused(&path).ends_with("longer than 1048576 bytes"));
}

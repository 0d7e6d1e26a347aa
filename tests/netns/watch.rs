//! `glowd watch` beside the marker and a plain flow.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use super::rig::{line, Rig, Strategy, ATLAS, STRATEGIES};
use crate::common::{binary, skip_unless_root, v6, Nobody, DEVICE, HERE, THERE};

#[test]
fn watch_shows_the_tag_of_each_flow_once_on_both_hosts() {
    if skip_unless_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let conf = own_names(&dir);
    for strategy in STRATEGIES {
        let mut rig = Rig::new(strategy, "auto");
        let (from, to) = (v6(HERE, 40_000), v6(THERE, 5001));
        let (socket, _sink) = rig.pair.udp(from, to);
        let (plain_from, plain_to) = (v6(HERE, 40_001), v6(THERE, 5002));
        let (plain, _plain_sink) = rig.pair.udp(plain_from, plain_to);
        rig.obey(&line(true, "udp", from, to, ATLAS));
        let what = if strategy == Strategy::Label { "flow label" } else { "option" };
        for (way, conf, experiment, activity) in [
            ("out", None, "atlas", "Production Input"),
            ("in", Some(&conf), "lamp", "Reading in Bed"),
        ] {
            let start = || {
                let mut command = Command::new(binary());
                if let Some(conf) = conf {
                    command.arg("--conf").arg(conf);
                }
                command.args(["watch", "-i", DEVICE]).stdout(Stdio::piped());
                command.stderr(Stdio::piped()).spawn().expect("glowd watch")
            };
            let host = if way == "out" { &rig.pair.here } else { &rig.pair.there };
            let mut watch = host.enter(start);
            let mut told = BufReader::new(watch.stderr.take().expect("its stderr")).lines();
            let ready = told.next().expect("a line").expect("text");
            assert!(ready.starts_with("info: watching flows with a tag"), "{ready}");
            let mut lines = BufReader::new(watch.stdout.take().expect("its stdout")).lines();
            for _ in 0..3 {
                plain.send(b"plain").expect("to send");
                socket.send(b"tagged").expect("to send");
            }
            // The probe of the rig is a flow with a tag, too, and sends the last packet.
            rig.captured();
            let mut shown: Vec<String> = (0..2).map(|_| lines.next().unwrap().unwrap()).collect();
            watch.kill().and_then(|()| watch.wait()).expect("its end");
            shown.extend(lines.map_while(Result::ok));
            assert_eq!(shown.len(), 2, "{shown:#?}");
            let tag = format!("experiment 2 ({experiment}), activity 15 ({activity})");
            assert_eq!(shown[0], format!("{DEVICE} {way}: udp {from} -> {to}: {what} says {tag}"));
        }
        rig.finish();
    }
}

/// A configuration with a registry of its own, in that folder.
fn own_names(dir: &tempfile::TempDir) -> PathBuf {
    let (registry, conf) = (dir.path().join("names.json"), dir.path().join("conf.json"));
    let experiment = json!({
        "expName": "lamp",
        "expId": 2,
        "activities": [{ "activityName": "Reading in Bed", "activityId": 15 }],
    });
    let files = [
        (&registry, json!({ "experiments": [experiment] })),
        (&conf, json!({ "registryPath": registry, "backends": { "firefly": {} } })),
    ];
    for (path, content) in files {
        fs::write(path, content.to_string()).expect("a file");
    }
    conf
}

#[test]
fn tag_knows_the_names_of_the_configuration() {
    let dir = tempfile::tempdir().expect("a folder");
    let conf = own_names(&dir);
    let run = |conf: &Path, experiment: &str| {
        let mut command = Command::new(binary());
        command.arg("--conf").arg(conf).args(["tag", "encode", experiment, "reading", "in", "bed"]);
        let output = command.output().expect("glowd");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    let (status, told) = run(&conf, "LAMP");
    assert!(told.starts_with("experiment  2 lamp\nactivity    15 Reading in Bed\n"), "{told}");
    assert_eq!(status, Some(0), "{told}");
    assert_eq!(run(&conf, "atlas").0, Some(64));
    let (status, told) = run(&dir.path().join("nothing.json"), "lamp");
    assert_eq!(status, Some(78), "{told}");
    assert!(told.contains("nothing.json"), "{told}");
}

#[test]
fn watch_names_what_it_lacks() {
    let refusal = |command: &mut Command| {
        let output = command.output().expect("glowd");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (status, told) = refusal(Command::new(binary()).args(["watch", "-i", "nope0"]));
    assert_eq!(status, Some(64), "{told}");
    assert!(told.starts_with("glowd: there is no interface \"nope0\"; there are "), "{told}");
    if skip_unless_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let (status, told) = refusal(Nobody("-all").command(&dir).arg("watch"));
    assert_eq!(status, Some(71), "{told}");
    let reason = "(it takes CAP_NET_RAW, which root has)\n";
    assert!(told.starts_with("glowd: cannot watch packets: ") && told.ends_with(reason), "{told}");
}

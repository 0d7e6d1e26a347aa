//! The refresh of the registry: by its own service, from a server of the test.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde_json::{json, Value};

use crate::common::wait_for;
use crate::machine::{source, Machine};

const UNIT: &str = "glowd-registry.service";
const FILE: &str = "/var/cache/glowd/registry.json";
const MODIFIED: &str = "Sat, 01 Nov 2025 12:00:00 GMT";

/// Answers each request of the container as it was told last.
struct Server {
    port: u16,
    answer: Arc<Mutex<String>>,
}

impl Server {
    /// It ends with the test's process, as the port does.
    fn start(machine: &Machine) -> Self {
        let listener = machine.pair.here.enter(|| TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = Arc::new(Mutex::new(String::new()));
        let told = answer.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let answer = told.lock().unwrap_or_else(PoisonError::into_inner).clone();
                serve(&stream, &answer);
            }
        });
        let server = Server { port, answer };
        server.drop_in(machine, "api.json");
        server
    }

    /// Names it as a site does its mirror.
    fn drop_in(&self, machine: &Machine, path: &str) {
        let url = format!("http://127.0.0.1:{}/{path}", self.port);
        machine.drop_in(UNIT, &format!("Environment=REGISTRY_URL={url}"));
    }

    fn tell(&self, answer: &str) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer.to_owned();
    }
}

/// Whoever has that file's version is told so (RFC 9110 section 13.1.3).
fn serve(mut stream: &TcpStream, answer: &str) {
    let mut known = false;
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        known |= line.eq_ignore_ascii_case(&format!("If-Modified-Since: {MODIFIED}"));
        if line.is_empty() {
            break;
        }
    }
    let head = if known { "304 Not Modified" } else { "200 OK" };
    let body = if known { "" } else { answer };
    // It need not want all of it.
    let _ = write!(
        stream,
        "HTTP/1.1 {head}\r\nLast-Modified: {MODIFIED}\r\nConnection: close\r\n\r\n{body}"
    );
}

/// The published one, and an experiment that it does not have.
fn with_another() -> String {
    let text = std::fs::read_to_string(source("data/registry.json")).unwrap();
    let mut registry: Value = serde_json::from_str(&text).unwrap();
    let another = json!({ "expId": 300, "expName": "another",
        "activities": [{ "activityId": 7, "activityName": "First Light" }] });
    registry["experiments"].as_array_mut().unwrap().push(another);
    registry.to_string()
}

fn refresh(machine: &Machine) -> bool {
    machine.output(&["systemctl", "start", UNIT]).status.success()
}

#[test]
fn a_refresh_brings_a_new_name_to_the_running_daemon() {
    let machine = Machine::with_service(&json!({}));
    // Also after the presets, which a package applies.
    for preset in [false, true] {
        if preset {
            machine.run(&["systemctl", "preset", "glowd-registry.timer"]);
        }
        let enabled = machine.output(&["systemctl", "is-enabled", "glowd-registry.timer"]);
        assert_eq!(String::from_utf8_lossy(&enabled.stdout).trim(), "disabled");
    }
    let server = Server::start(&machine);
    server.tell(&with_another());
    assert!(refresh(&machine), "{}", machine.journal(UNIT));
    let mode = machine.run(&["stat", "--format=%U:%G %a", FILE]);
    assert_eq!(mode, "glowd:glowd 600");
    assert!(machine.journal(UNIT).contains("/api.json: a new registry"));
    // The daemon looks once a second, when there is an event.
    wait_for("the name", || {
        let line = "start udp ::1 9 ::1 1009 another First Light";
        assert!(machine.write_as("glowd", "/run/glowd/np", line));
        let flows = machine.get(7777, "/flows");
        (flows.contains("\"another\"") && flows.contains("\"First Light\"")).then_some(())
    });
    machine.run(&["systemctl", "enable", "--now", "glowd-registry.timer"]);
    assert_eq!(machine.property("glowd-registry.timer", "ActiveState"), "active");
    // What is not newer is not fetched, and the metrics can tell that it was asked for.
    let times = || ["%y", "%z"].map(|time| machine.run(&["stat", "--format", time, FILE]));
    let before = times();
    assert!(refresh(&machine), "{}", machine.journal(UNIT));
    assert!(machine.journal(UNIT).contains("/api.json: nothing newer"));
    let after = times();
    assert!(before[0] == after[0] && before[1] != after[1], "{before:?} {after:?}");
    // Another place's is fetched whatever its time is, and so is one that got damaged.
    for (path, content) in [("mirror.json", None), ("mirror.json", Some("{"))] {
        server.drop_in(&machine, path);
        if let Some(content) = content {
            machine.write(FILE, content);
        }
        machine.run(&["touch", "--date=2030-01-01", FILE]);
        machine.run(&["journalctl", "--rotate", "--vacuum-time=1s"]);
        assert!(refresh(&machine), "{}", machine.journal(UNIT));
        assert!(machine.journal(UNIT).contains("/mirror.json: a new registry"));
    }
}

#[test]
fn what_is_no_registry_leaves_the_one_of_before() {
    let machine = Machine::boot();
    let server = Server::start(&machine);
    server.tell(&with_another());
    assert!(refresh(&machine), "{}", machine.journal(UNIT));
    let before = std::fs::read(machine.path(FILE)).unwrap();
    // Older than what the server has from now on.
    machine.run(&["touch", "--date=2020-01-01", FILE]);
    let long = with_another() + &" ".repeat(2 << 20);
    let stays = "; the registry of before stays";
    for (answer, cause) in [
        ("<html>", "/registry.json.new\": expected value at line 1 column 1"),
        (r#"{"experiments": []}"#, "/registry.json.new\": it has no experiments"),
        (long.as_str(), "curl: (23)"),
    ] {
        machine.run(&["journalctl", "--rotate", "--vacuum-time=1s"]);
        server.tell(answer);
        assert!(!refresh(&machine), "{cause}");
        let journal = machine.journal(UNIT);
        assert!(journal.contains(cause) && journal.contains(stays), "{cause}: {journal}");
        assert_eq!(std::fs::read(machine.path(FILE)).unwrap(), before, "{cause}");
    }
    // Nobody listens there.
    machine.drop_in(UNIT, "Environment=REGISTRY_URL=http://127.0.0.1:1/api.json");
    assert!(!refresh(&machine));
    let journal = machine.journal(UNIT);
    let told = format!("cannot fetch http://127.0.0.1:1/api.json{stays}");
    assert!(journal.contains("curl: (7)") && journal.contains(&told), "{journal}");
    assert_eq!(machine.run(&["ls", "/var/cache/glowd"]), "registry.json\nregistry.json.url");
    assert_eq!(std::fs::read(machine.path(FILE)).unwrap(), before);
}

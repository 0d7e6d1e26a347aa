//! The command line: what is printed, which exit status.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use glowd::net::uninterrupted;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::common::{binary, skip_unless_root, wait_for, PATIENCE};

fn glowd() -> Command {
    let mut command = crate::common::glowd();
    command.env_remove("JOURNAL_STREAM").env_remove("NOTIFY_SOCKET");
    command
}

fn run(words: &[&str]) -> Output {
    glowd().args(words).output().unwrap()
}

fn out(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn err(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// Runs, wants success and silence on standard error, returns what was printed.
fn printed(words: &[&str]) -> String {
    let output = run(words);
    assert_eq!(output.status.code(), Some(0), "{words:?}: {}", err(&output));
    assert_eq!(err(&output), "", "{words:?}");
    out(&output).to_owned()
}

/// Runs, wants failure with that status and nothing on standard output, returns
/// the lines on standard error.
fn refused(words: &[&str], status: i32) -> Vec<String> {
    let output = run(words);
    assert_eq!(output.status.code(), Some(status), "{words:?}: {}", err(&output));
    assert_eq!(out(&output), "", "{words:?}");
    err(&output).lines().map(str::to_owned).collect()
}

fn file(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn help_lists_the_commands_and_explains_each() {
    let help = printed(&["help"]);
    assert_eq!(printed(&["-h"]), help);
    assert_eq!(printed(&["--help"]), help);
    let commands = [
        "run",
        "conf",
        "marker clean",
        "selftest",
        "tag encode",
        "tag decode",
        "watch",
        "version",
        "help",
        "man",
        "completions",
    ];
    for command in commands {
        assert!(help.contains(&format!("\n  {command} ")), "{command}");
        let words: Vec<&str> = ["help"].into_iter().chain(command.split(' ')).collect();
        let one = printed(&words);
        assert!(one.starts_with(&format!("Usage: glowd [FLAGS] {command}")), "{one}");
    }
    assert_eq!(printed(&["run", "-h"]), printed(&["help", "run"]));
    assert_eq!(printed(&["marker", "clean", "--help"]), printed(&["help", "marker", "clean"]));
}

#[test]
fn tags_are_encoded_and_decoded() {
    let encoded = printed(&["tag", "encode", "ATLAS", "production output"]);
    assert_eq!(
        encoded,
        "experiment  2 atlas\n\
         activity    16 Production Output\n\
         scitag      144\n\
         flow label  0x10040 (65600), with entropy up to 0xd0143\n\
         option      1e 03 00 02 10\n\
         header      06 00 1e 03 00 02 10 00 (before TCP)\n\
         tcpdump     'ip6[0:4] & 0x3fefc == 0x10040'\n"
    );
    assert_eq!(printed(&["tag", "encode", "atlas", "Production", "Output"]), encoded);
    for value in ["144", "06 00 1e 03 00 02 10 00"] {
        let decoded = printed(&["tag", "decode", value]);
        assert!(decoded.contains("experiment 2 (atlas), activity 16 (Production Output)\n"));
        assert!(decoded.ends_with(&encoded), "{decoded}");
    }
    // A label where a scitag was meant, and a number that may be both.
    let label = run(&["tag", "decode", "65600"]);
    assert!(out(&label).starts_with("flow label: experiment 2 (atlas)"), "{}", out(&label));
    assert!(err(&label).starts_with("warn: 65600 is a flow label; "), "{}", err(&label));
    assert!(err(&label).trim_end().ends_with("it is 144"), "{}", err(&label));
    let both = run(&["tag", "decode", "897"]);
    assert!(out(&both).starts_with("scitag: experiment 14 (xenon), activity 1 (default)"));
    assert_eq!(
        err(&both),
        "warn: 897, taken as a scitag; as a flow label it is experiment 256 (not registered), \
         activity 32 (not registered)\n"
    );
    for (words, message) in [
        (
            &["tag", "encode", "2"][..],
            "\"tag encode\" takes an experiment and one of its activities",
        ),
        (&["tag", "encode"], "\"tag encode\" takes an experiment and one of its activities"),
        (&["tag", "encode", "alice", "64"], "activity 64 is out of range (0 to 63)"),
        (&["tag", "encode", "alcie", "1"], "\"alcie\" is no experiment: did you mean \"alice\"?"),
        (&["tag", "decode"], "\"tag decode\" takes a number, or bytes in hexadecimal"),
        (&["tag", "decode", "0"], "\"0\" carries no tag, in whichever form"),
        (&["tag"], "\"tag\" is not a command: did you mean \"tag encode\" or \"tag decode\"?"),
    ] {
        let lines = refused(words, 64);
        assert!(lines[0].starts_with(&format!("glowd: {message}")), "{lines:?}");
    }
}

#[test]
fn version_says_what_was_built() {
    let version = printed(&["version"]);
    let mut lines = version.lines();
    assert_eq!(lines.next(), Some(concat!("glowd ", env!("CARGO_PKG_VERSION"))));
    let libbpf = version.lines().find(|line| line.starts_with("libbpf ")).unwrap();
    if cfg!(all(target_os = "linux", feature = "ebpf")) {
        assert!(libbpf.starts_with("libbpf 1."), "{libbpf}");
    } else {
        assert!(libbpf.starts_with("libbpf none"), "{libbpf}");
    }
    assert_eq!(printed(&["-V"]), version);
    assert_eq!(printed(&["run", "--version"]), version);
}

#[test]
fn no_word_at_all_is_answered_with_the_help_and_an_error() {
    let lines = refused(&[], 64);
    assert_eq!(lines.join("\n") + "\n", printed(&["help"]));
    refused(&["--log-time"], 64);
}

#[test]
fn wrong_words_are_usage_errors_with_the_nearest_right_one() {
    for (words, line) in [
        (&["rnu"][..], "glowd: \"rnu\" is not a command: did you mean \"run\"?"),
        (&["marker"], "glowd: \"marker\" is not a command: did you mean \"marker clean\"?"),
        (&["help", "cnof"], "glowd: \"cnof\" is not a command: did you mean \"conf\"?"),
        (
            &["run", "--log-lvel=info"],
            "glowd: \"--log-lvel\" is not a flag: did you mean \"--log-level\"?",
        ),
        (&["man", "glowd.cnf"], "glowd: \"glowd.cnf\" is not a page: did you mean \"glowd.conf\"?"),
        (&["completions", "fihs"], "glowd: \"fihs\" is not a shell: did you mean \"fish\"?"),
        (&["completions", "ksh", "x"], "glowd: \"x\" is too much: \"completions\" takes one shell"),
        (&["conf", "now"], "glowd: \"now\" is too much: \"conf\" takes no word"),
        (&["run", "--conf"], "glowd: --conf needs a value: --conf PATH"),
    ] {
        assert_eq!(refused(words, 64), [line]);
    }
    // What is quoted cannot steer a terminal.
    assert!(refused(&["a\u{1b}[2J"], 64)[0].contains(r"\u{1b}"));
}

#[test]
fn conf_prints_what_holds_and_reads_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let text = r#"{"pidPath": "", "plugins": {"API": {}}, "backends": {"firefly": {}}}"#;
    let path = file(dir.path(), "conf.json", text);
    let first = printed(&["conf", "--conf", &path]);
    assert!(first.contains("\"pidPath\": \"\"") && first.contains("\"maxFlows\": 100000"));
    let again = file(dir.path(), "again.json", &first);
    assert_eq!(printed(&["--conf", &again, "conf"]), first);
    assert_eq!(printed(&["conf", "--check", "--conf", &path]), format!("{path}: ok\n"));
}

#[test]
fn conf_says_notes_on_standard_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "conf.json", r#"{"backends": {"firefly": {}}}"#);
    let output = run(&["conf", "--check", "--conf", &path]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(out(&output), format!("{path}: ok\n"));
    let note =
        format!("warn: {path}:1:1: plugins: there is none, so glowd will learn of no flow\n");
    assert_eq!(err(&output), note);
    let output = run(&["conf", "--check", "--conf", &path, "--log-level", "error"]);
    assert_eq!(err(&output), "");
    // What the daemon warns of when it reads its rules.
    let text = r#"{"plugins": {"netlink": {"experiment": 2, "activity": 62}}, "backends":
        {"firefly": {}}}"#;
    let path = file(dir.path(), "unregistered.json", text);
    let output = run(&["conf", "--check", "--conf", &path]);
    assert_eq!(out(&output), format!("{path}: ok\n"));
    let note = "warn: plugins.netlink: experiment 2 activity 62 is not registered\n";
    assert_eq!(err(&output), note);
}

/// Defect 12 of the peers: fatal start-up errors exited 0.
#[test]
fn defect_12_failures_have_their_exit_status() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none.json");
    let missing = missing.to_str().unwrap();
    for command in ["run", "conf"] {
        let lines = refused(&[command, "--conf", missing], 78);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("glowd: cannot read the configuration \""), "{lines:?}");
    }
    let path = file(dir.path(), "wrong.json", "{\"maxFlows\": 0,\n\"plugin\": {}}");
    let problems = [
        format!("glowd: {path}:1:14: maxFlows: 0 is out of range (1 to 10000000)"),
        format!(
            "glowd: {path}:2:1: plugin: this version of glowd does not know this key: did you \
             mean \"plugins\"? (known: pidPath, workDir, maxFlows, idleTimeout, registryPath, unknownIds, stunServers, log, logLevel, plugins, \
             enrichers, backends)"
        ),
    ];
    for words in [&["run"][..], &["conf"], &["conf", "--check"]] {
        let words = [words, &["--conf", &path]].concat();
        assert_eq!(refused(&words, 78), problems);
    }
    let pid_path = dir.path().join("no/such/folder/pid");
    let text = format!("{{\"pidPath\": {pid_path:?}}}");
    let path = file(dir.path(), "os.json", &text);
    let lines = refused(&["run", "--conf", &path, "--log-level", "error"], 71);
    assert!(lines[0].starts_with("glowd: pidPath: cannot "), "{lines:?}");
}

/// A stream whose other end is gone.
fn closed() -> OwnedFd {
    UnixStream::pair().unwrap().0.into()
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    for words in [&["help"][..], &["man", "glowd.conf"], &["version"]] {
        let output = glowd().args(words).stdout(closed()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{words:?}");
        assert_eq!(err(&output), "", "{words:?}");
    }
    let status = glowd().arg("rnu").stderr(closed()).status().unwrap();
    assert_eq!(status.code(), Some(64), "nobody hears it, but the status says it");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_a_failure() {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = glowd().arg("help").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(71));
    assert!(err(&output).starts_with("glowd: cannot write to standard output: "));
}

/// A daemon that is killed if the test fails.
struct Daemon(Child);

impl Daemon {
    /// Stops it and returns its exit status.
    fn stop(mut self) -> Option<i32> {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        self.0.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a daemon without parts, and returns it with what it logs until it is
/// ready. `env` may look at its standard error.
fn start(words: &[&str], env: impl FnOnce(&mut Command, &UnixStream)) -> (Daemon, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "conf.json", r#"{"pidPath": ""}"#);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut command = glowd();
    env(&mut command, &theirs);
    let theirs: OwnedFd = theirs.into();
    command.args(["run", "--conf", &path]).args(words).stdin(Stdio::null()).stderr(theirs);
    let daemon = Daemon(command.spawn().unwrap());
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut lines = Vec::new();
    for line in BufReader::new(ours).lines() {
        let line = line.unwrap();
        let ready = line.contains("ready");
        lines.push(line.replace(&path, "PATH"));
        if ready {
            break;
        }
    }
    (daemon, lines)
}

#[test]
fn run_logs_the_notes_of_its_configuration_and_its_life() {
    let (daemon, lines) = start(&[], |_, _| ());
    assert_eq!(lines[0], "warn: PATH:1:1: plugins: there is none, so glowd will learn of no flow");
    assert!(lines.last().unwrap().starts_with("info: ready"), "{lines:?}");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn log_time_puts_the_time_in_front() {
    let (daemon, lines) = start(&["--log-time"], |_, _| ());
    for line in &lines {
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(glowd::flow::Timestamp::parse(time).is_some(), "{line}");
        assert!(rest.starts_with("warn: ") || rest.starts_with("info: "), "{line}");
    }
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn somebody_elses_journal_does_not_count() {
    let (daemon, lines) = start(&[], |command, _| {
        command.env("JOURNAL_STREAM", "1:2");
    });
    assert!(lines[0].starts_with("warn: "), "{lines:?}");
    assert_eq!(daemon.stop(), Some(0));
}

/// The journal gets the native protocol where its socket is, and priorities before
/// the lines where only standard error reaches it. In a mount namespace, so that a
/// journal of this host does not hear of it.
#[cfg(target_os = "linux")]
#[test]
fn the_journal_gets_fields_or_priorities() {
    if skip_unless_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("np");
    let text = serde_json::json!({"pidPath": "", "plugins": {"namedPipe": {"pipePath": pipe}}});
    let conf = file(dir.path(), "conf.json", &text.to_string());
    let socket = dir.path().join("socket");
    let journal = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    journal.set_read_timeout(Some(PATIENCE)).unwrap();
    let stderr = dir.path().join("stderr");
    let run = |prepare: &str| {
        let script = format!(
            "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && {prepare} && \
             JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) && export JOURNAL_STREAM && \
             exec \"$GLOWD\" --log-level debug --log-time --conf \"$CONF\" run"
        );
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &script]).env("SOCKET", &socket).env("CONF", &conf);
        command.env("GLOWD", binary()).stdin(Stdio::null());
        command.env_remove("NOTIFY_SOCKET").stderr(fs::File::create(&stderr).unwrap());
        Daemon(command.spawn().unwrap())
    };

    let daemon = run("ln -s \"$SOCKET\" /run/systemd/journal/socket");
    let mut buffer = [0; 4096];
    let mut wait_for_line = |part: &str| loop {
        let length = uninterrupted(|| journal.recv(&mut buffer)).unwrap();
        let line = String::from_utf8_lossy(&buffer[..length]);
        if line.contains(part) {
            return line.into_owned();
        }
    };
    let ready = wait_for_line("MESSAGE=ready");
    let pid = format!("\nSYSLOG_PID={}\n", daemon.0.id());
    assert!(ready.contains("\nPRIORITY=6\n") && ready.contains(&pid), "{ready}");
    fs::write(&pipe, "start tcp 2001:db8::1 1 2001:db8::2 2 3 4\n").unwrap();
    let event = wait_for_line("FLOW_STATE");
    let (_, fields) = event.split_once("\nFLOW_").unwrap();
    assert_eq!(
        fields,
        "PLUGIN=namedPipe\nFLOW_STATE=start\nFLOW_PROTOCOL=tcp\nFLOW_SRC=2001:db8::1\n\
         FLOW_SRC_PORT=1\nFLOW_DST=2001:db8::2\nFLOW_DST_PORT=2\nFLOW_EXPERIMENT=3\n\
         FLOW_ACTIVITY=4\nFLOW_EXPERIMENT_NAME=cms\nFLOW_ACTIVITY_NAME=Data Challenge\n"
    );
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(fs::read_to_string(&stderr).unwrap(), "");

    let daemon = run("true");
    let ready = || fs::read_to_string(&stderr).unwrap().contains("\n<6>ready: ").then_some(());
    wait_for("the line that says ready", ready);
    assert_eq!(daemon.stop(), Some(0));
}

/// Runs in a mount namespace whose /dev has a syslog socket, or none.
#[cfg(target_os = "linux")]
#[test]
fn syslog_gets_the_lines_or_the_start_fails() {
    if skip_unless_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "conf.json", r#"{"pidPath": "", "log": "syslog"}"#);
    let socket = dir.path().join("log");
    let syslog = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    syslog.set_read_timeout(Some(PATIENCE)).unwrap();
    let in_namespace = |prepare: &str| {
        let script = format!(
            "mount -t tmpfs none /dev && mount -t tmpfs none /run && {prepare} && \
             exec $GLOWD_WRAPPER \"$GLOWD\" run --conf \"$CONF\""
        );
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &script]);
        command.env("GLOWD", binary()).env("CONF", &path);
        command.env("SOCKET", &socket).stdin(Stdio::null());
        command
    };

    let daemon = Daemon(in_namespace("ln -s \"$SOCKET\" /dev/log").spawn().unwrap());
    let mut buffer = [0; 1024];
    let mut receive = || {
        let length = uninterrupted(|| syslog.recv(&mut buffer)).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    // Facility daemon (3), severity warning (4).
    let tag = format!("<28>glowd[{}]: ", daemon.0.id());
    let first = receive();
    assert!(first.starts_with(&tag) && first.contains("plugins: there is none"), "{first}");
    while !receive().contains("]: ready") {}
    assert_eq!(daemon.stop(), Some(0));

    let output = in_namespace("true").stdout(Stdio::piped()).stderr(Stdio::piped()).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(71), "{}", err(&output));
    assert!(err(&output).starts_with("glowd: log: cannot reach the syslog daemon: "));
}

/// `GLOWD_BLESS=1` writes the pages, as `make man` does.
#[test]
fn the_committed_pages_are_those_that_the_tables_make() {
    for page in glowd::cli::man::PAGES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("man").join(page.file);
        let text = printed(&["man", page.name]);
        assert_eq!(text, page.text());
        assert_eq!(text, printed(&["man", page.file]));
        if std::env::var_os("GLOWD_BLESS").is_some() {
            fs::write(&path, &text).unwrap();
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == text, "{} is old: \"make man\" writes it", path.display());
    }
    assert_eq!(printed(&["man"]), printed(&["man", "glowd"]));
}

/// What somebody sees who built it for an old system.
#[cfg(not(feature = "ebpf"))]
#[test]
fn without_ebpf_the_marker_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let text = r#"{"pidPath": "", "plugins": {}, "backends": {"marker": {}}}"#;
    let conf = file(dir.path(), "conf.json", text);
    let run = run(&["--conf", &conf, "run"]);
    assert_eq!(run.status.code(), Some(78), "{}", err(&run));
    assert!(err(&run).contains("backends.marker: "), "{}", err(&run));
    assert!(err(&run).contains("ebpf"), "{}", err(&run));
    let lines = refused(&["selftest"], 78);
    assert!(lines[0].contains("ebpf"), "{lines:?}");
}

//! The plugin on its thread, with a real FIFO and a real dispatcher.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::Ipv6Addr;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::libc::O_NONBLOCK;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use super::{check, gid, Access, NamedPipe, SPEC};
#[cfg(target_os = "linux")]
use super::{poll, AsFd, PollFd, PollFlags, PollTimeout};
use crate::config::{Section, Value};
use crate::dispatcher::{Dispatcher, Event, Inlet, Queue};
use crate::entropy::EntropyKey;
use crate::error::{Class, Result};
use crate::flow::FlowId;
use crate::part::Context;
use crate::plugins::Plugin;
use crate::shutdown::{stop_token, Stop, Stopper};

const ACCESS: Access = Access { mode: 0o600, gid: None };

/// Far more than anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < DEADLINE, "{what}");
        thread::sleep(Duration::from_micros(200));
    }
}

/// A dispatcher and the ends of everything around the plugin.
struct Rig {
    dir: TempDir,
    inlet: Inlet,
    queue: Queue,
    stop: Stop,
    stopper: Option<Stopper>,
    dispatcher: Option<JoinHandle<()>>,
    plugin: Option<JoinHandle<Result<()>>>,
}

impl Rig {
    fn new() -> Self {
        let (mut dispatcher, inlet) = Dispatcher::new(200_000, EntropyKey::of_this_boot());
        let queue = dispatcher.attach("test");
        let dispatcher = Some(thread::spawn(|| dispatcher.run()));
        let (stopper, stop) = stop_token().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let stopper = Some(stopper);
        Rig { dir, inlet, queue, stop, stopper, dispatcher, plugin: None }
    }

    fn running() -> Self {
        let mut rig = Rig::new();
        let pipe = NamedPipe::open(&rig.path(), ACCESS, Context::new(1).names).unwrap();
        rig.start(pipe);
        rig
    }

    fn start(&mut self, pipe: NamedPipe) {
        let (inlet, stop) = (self.inlet.clone(), self.stop.clone());
        self.plugin = Some(thread::spawn(|| Box::new(pipe).run(inlet, stop)));
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("run/np")
    }

    fn open(&self) -> File {
        open(&self.path())
    }

    fn write(&self, text: impl AsRef<[u8]>) {
        self.open().write_all(text.as_ref()).unwrap();
    }

    /// Waits until the path is a FIFO and has a reader.
    fn wait_for_fifo(&self) {
        wait_for("the FIFO is there again", || {
            is_fifo(&self.path())
                && OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(self.path()).is_ok()
        });
    }

    /// The next `count` flows that were started, or all after a stop.
    fn started(&self, count: usize) -> Vec<FlowId> {
        let mut started = Vec::new();
        wait_for("all flows are started", || {
            while let Some(batch) = self.queue.try_recv() {
                started.extend(batch.iter().filter_map(|event| match event {
                    Event::Start(flow) => Some(flow.id),
                    _ => None,
                }));
            }
            started.len() >= count
        });
        started
    }

    /// Asserts that flows `range`, and no others, were started, in any order.
    fn assert_started(&self, range: std::ops::Range<usize>) {
        let shown = |n: usize| {
            let source: Ipv6Addr = source(n).parse().unwrap();
            format!("tcp [{source}]:1 -> [::2]:2")
        };
        let mut started: Vec<String> =
            self.started(range.len()).iter().map(FlowId::to_string).collect();
        let mut expected: Vec<String> = range.map(shown).collect();
        started.sort();
        expected.sort();
        assert!(started == expected, "{} of {}", started.len(), expected.len());
    }

    /// Stops the plugin and returns what it returned.
    fn stop(&mut self) -> Result<()> {
        drop(self.stopper.take());
        let plugin = self.plugin.take().expect("it runs");
        wait_for("the plugin has stopped", || plugin.is_finished());
        plugin.join().unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        drop(self.stopper.take());
        if let Some(plugin) = self.plugin.take() {
            let _ = plugin.join();
        }
        let (_, dead) = Dispatcher::new(1, EntropyKey::of_this_boot());
        self.inlet = dead;
        if let Some(dispatcher) = self.dispatcher.take() {
            let _ = dispatcher.join();
        }
    }
}

/// Fails where a writer would be turned away: there is always a reader.
fn open(path: &Path) -> File {
    drop(OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(path).unwrap());
    OpenOptions::new().write(true).open(path).unwrap()
}

fn is_fifo(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_fifo())
}

/// The source address of flow `n`.
fn source(n: usize) -> String {
    format!("2001:db8::{:x}:{:x}", n >> 16, n & 0xffff)
}

/// The start of flow `n`, with its newline.
fn start(n: usize) -> String {
    format!("start tcp {} 1 ::2 2 3 4\n", source(n))
}

fn starts(range: std::ops::Range<usize>) -> String {
    range.map(start).collect()
}

#[test]
fn a_last_line_needs_no_newline_once_its_writer_closes() {
    let rig = Rig::running();
    for n in 0..100 {
        rig.write(start(n).trim_end());
        rig.assert_started(n..n + 1);
    }
}

#[test]
fn nothing_is_lost_between_writers() {
    let rig = Rig::running();
    for n in 0..1000 {
        rig.write(start(n));
    }
    rig.assert_started(0..1000);
    // Writers that say nothing do no harm.
    for _ in 0..100 {
        rig.write("");
    }
    rig.write(start(1000));
    rig.assert_started(1000..1001);
}

#[test]
fn defect_13_one_large_write_is_applied_without_another() {
    let rig = Rig::running();
    let lines = starts(0..30_000);
    assert!(lines.len() > 1_000_000);
    let mut writer = rig.open();
    writer.write_all(lines.as_bytes()).unwrap();
    // While the writer holds the pipe open.
    rig.assert_started(0..30_000);
    drop(writer);
}

#[test]
fn defect_14_a_full_pipe_is_no_deadlock() {
    let rig = Rig::running();
    rig.write(starts(0..100_000));
    rig.assert_started(0..100_000);
}

#[test]
fn defect_15_many_writers_at_once_keep_their_lines() {
    let rig = Rig::running();
    thread::scope(|scope| {
        for writer in 0..8 {
            let path = rig.path();
            scope.spawn(move || {
                let mut file = open(&path);
                for n in 0..5000 {
                    // One write per line: atomic up to PIPE_BUF (pipe(7)).
                    file.write_all(start(writer * 5000 + n).as_bytes()).unwrap();
                }
            });
        }
    });
    rig.assert_started(0..40_000);
}

#[test]
fn defect_15_lines_may_be_cut_anywhere() {
    let rig = Rig::running();
    let lines = starts(0..2000);
    for size in [1, 7, 1000, 4096] {
        let (mut writer, base) = (rig.open(), 10_000 * size);
        for chunk in starts(base..base + 500).as_bytes().chunks(size) {
            writer.write_all(chunk).unwrap();
        }
        rig.assert_started(base..base + 500);
    }
    rig.write(lines);
    rig.assert_started(0..2000);
}

#[test]
fn defect_15_bad_bytes_cost_their_own_line_only() {
    let rig = Rig::running();
    let mut text = start(0).into_bytes();
    text.extend_from_slice(b"start tcp \xff\xfe 1 ::2 2 3 4\n\0\0\0\n\n# a comment\r\n");
    text.extend(std::iter::repeat_n(b'x', 100_000));
    text.push(b'\n');
    text.extend_from_slice(start(1).replace(' ', "\t ").replace('\n', "\r\n").as_bytes());
    text.extend_from_slice(b"start tcp 10.0.0 1 10.0.0.2 2 3 4\nrestart\n");
    text.extend_from_slice(start(2).as_bytes());
    rig.write(&text);
    rig.assert_started(0..3);
    // A long line that only the close ends; or the next writer's newline, if it is
    // there before the close is seen.
    rig.write([b'y'; 100_000]);
    rig.write(format!("\n{}", start(3)));
    rig.assert_started(3..4);
}

#[test]
fn defect_16_an_unlinked_fifo_is_made_again() {
    let rig = Rig::running();
    for n in 0..20 {
        let mut old = rig.open();
        old.write_all(start(3 * n).as_bytes()).unwrap();
        fs::remove_file(rig.path()).unwrap();
        rig.wait_for_fifo();
        // Who still has the old one is heard until it closes.
        rig.write(start(3 * n + 1));
        old.write_all(start(3 * n + 2).trim_end().as_bytes()).unwrap();
        drop(old);
        rig.assert_started(3 * n..3 * n + 3);
    }
}

#[test]
fn a_renamed_fifo_is_made_again_and_may_come_back() {
    let rig = Rig::running();
    let away = rig.dir.path().join("away");
    let mut writer = rig.open();
    fs::rename(rig.path(), &away).unwrap();
    rig.wait_for_fifo();
    rig.write(start(0));
    rig.assert_started(0..1);
    fs::rename(&away, rig.path()).unwrap();
    writer.write_all(start(1).as_bytes()).unwrap();
    rig.assert_started(1..2);
    drop(writer);
    rig.write(start(2));
    rig.assert_started(2..3);
}

#[test]
fn a_fifo_that_replaces_ours_is_used_and_left_there() {
    let mut rig = Rig::running();
    let other = rig.dir.path().join("other");
    mkfifo(&other, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    rig.write(start(0));
    fs::rename(&other, rig.path()).unwrap();
    rig.wait_for_fifo();
    rig.write(start(1));
    rig.assert_started(0..2);
    rig.stop().unwrap();
    assert!(is_fifo(&rig.path()), "it was not glowd's");
}

#[test]
fn a_removed_folder_is_made_again() {
    let mut rig = Rig::running();
    for n in 0..2 {
        // The plugin may make the FIFO anew between the removal of the old one and that of
        // its folder.
        wait_for("the folder is removed", || {
            match fs::remove_dir_all(rig.path().parent().unwrap()) {
                Err(cause) if cause.kind() == ErrorKind::DirectoryNotEmpty => false,
                removed => removed.is_ok() || panic!("{removed:?}"),
            }
        });
        rig.wait_for_fifo();
        rig.write(start(n));
        rig.assert_started(n..n + 1);
    }
    rig.stop().unwrap();
    assert!(!rig.path().parent().unwrap().exists(), "the last one was glowd's");
}

#[test]
fn defect_16_a_file_in_its_place_is_said_and_left_alone() {
    let mut rig = Rig::new();
    let mut pipe = NamedPipe::open(&rig.path(), ACCESS, Context::new(1).names).unwrap();
    let mut writer = rig.open();
    writer.write_all(start(0).as_bytes()).unwrap();
    let file = rig.dir.path().join("file");
    fs::write(&file, "precious").unwrap();
    fs::rename(&file, rig.path()).unwrap();
    wait_for("the trouble is noticed", || {
        assert!(pipe.turn(&rig.inlet, &rig.stop).unwrap());
        pipe.trouble.is_some()
    });
    let trouble = pipe.trouble.clone().unwrap();
    assert!(trouble.contains("is a regular file, not a FIFO"), "{trouble}");
    rig.assert_started(0..1);

    rig.start(pipe);
    writer.write_all(start(1).as_bytes()).unwrap();
    rig.assert_started(1..2);
    assert_eq!(fs::read_to_string(rig.path()).unwrap(), "precious");
    fs::remove_file(rig.path()).unwrap();
    rig.wait_for_fifo();
    rig.write(start(2));
    rig.assert_started(2..3);

    fs::write(&file, "precious too").unwrap();
    fs::rename(&file, rig.path()).unwrap();
    rig.stop().unwrap();
    assert_eq!(fs::read_to_string(rig.path()).unwrap(), "precious too");
}

#[test]
fn old_fifos_are_bounded() {
    let rig = Rig::new();
    let mut pipe = NamedPipe::open(&rig.path(), ACCESS, Context::new(1).names).unwrap();
    let mut writers = Vec::new();
    for _ in 0..12 {
        writers.push(rig.open());
        fs::remove_file(rig.path()).unwrap();
        wait_for("the FIFO is made again", || {
            assert!(pipe.turn(&rig.inlet, &rig.stop).unwrap());
            is_fifo(&rig.path())
        });
    }
    assert_eq!(pipe.old.len(), super::MOST_OLD);
    let error = writers[0].write_all(b"\n").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    writers[11].write_all(b"\n").unwrap();
    writers.clear();
    wait_for("the old ones are gone", || {
        assert!(pipe.turn(&rig.inlet, &rig.stop).unwrap());
        pipe.old.is_empty()
    });
}

/// A read end that had seen its last writer close would wake us for ever.
#[test]
#[cfg(target_os = "linux")]
fn an_idle_pipe_costs_nothing() {
    let rig = Rig::new();
    let mut pipe = NamedPipe::open(&rig.path(), ACCESS, Context::new(1).names).unwrap();
    for (n, text) in [(0, start(0)), (1, start(1).trim_end().into())] {
        rig.write(text);
        let idle = |pipe: &NamedPipe| pipe.current.as_ref().is_some_and(|end| !end.due);
        wait_for("all is read", || {
            assert!(pipe.turn(&rig.inlet, &rig.stop).unwrap());
            idle(&pipe)
        });
        rig.assert_started(n..n + 1);
        assert!(!pipe.has_to_try());
        let fd = pipe.current.as_ref().unwrap().fifo.as_fd();
        let woken = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO).unwrap();
        assert_eq!(woken, 0);
    }
}

/// After a fresh read end could not be had.
#[test]
fn an_end_that_cannot_be_polled_is_read_all_the_same() {
    let rig = Rig::new();
    let mut pipe = NamedPipe::open(&rig.path(), ACCESS, Context::new(1).names).unwrap();
    let current = pipe.current.as_mut().unwrap();
    (current.due, current.deaf) = (false, true);
    let mut writer = rig.open();
    writer.write_all(start(0).as_bytes()).unwrap();
    wait_for("it is polled again", || {
        assert!(pipe.turn(&rig.inlet, &rig.stop).unwrap());
        !pipe.current.as_ref().unwrap().deaf
    });
    rig.assert_started(0..1);
}

#[test]
fn a_stop_does_not_wait_for_writers_and_keeps_what_they_wrote() {
    let mut rig = Rig::running();
    let mut writer = rig.open();
    writer.write_all(start(0).as_bytes()).unwrap();
    rig.assert_started(0..1);
    writer.write_all(starts(1..1000).as_bytes()).unwrap();
    let told = Instant::now();
    rig.stop().unwrap();
    assert!(told.elapsed() < Duration::from_secs(5), "{:?}", told.elapsed());
    rig.assert_started(1..1000);
    assert!(!rig.path().exists(), "glowd made it");
    assert!(!rig.path().parent().unwrap().exists(), "and its folder");
}

fn section(path: &str, mode: &str, group: &str) -> Section {
    let text = |text: &str| Value::Text(text.into());
    let values = vec![("pipePath", text(path)), ("mode", text(mode)), ("group", text(group))];
    Section::new("plugins.namedPipe", values)
}

#[test]
fn the_keys_are_judged() {
    assert_eq!(check(&section("/run/glowd/np", "0660", "")), [""; 0]);
    assert_eq!(check(&section("", "0660", "")), ["pipePath: must not be empty"]);
    assert_eq!(
        check(&section("/run/..", "0660", "")),
        ["pipePath: \"/run/..\" does not name a file"]
    );
    let unreadable = "mode: \"0222\" does not let glowd itself read (0400)";
    assert_eq!(check(&section("np", "0222", "")), [unreadable]);
    assert_eq!((gid("").unwrap(), gid("0").unwrap()), (None, Some(0)));
    let error = gid("no-such-group").unwrap_err();
    assert_eq!(error.to_string(), "there is no group \"no-such-group\"");
    assert_eq!(error.class(), Class::Os, "it may come");
    let error = gid("4294967295").unwrap_err();
    assert_eq!(error.to_string(), "\"4294967295\" is not a group");
    assert_eq!(error.class(), Class::Config);
    assert_eq!(gid("4294967294").unwrap(), Some(4_294_967_294));
}

#[test]
fn defect_16_a_regular_file_stops_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("np");
    fs::write(&path, "precious").unwrap();
    let context = Context::new(10);
    let text = path.to_str().unwrap();
    let error = (SPEC.build)(&section(text, "0660", ""), &context).err().expect("an error");
    assert!(error.to_string().contains("is a regular file, not a FIFO"), "{error}");
    assert_eq!(error.class(), Class::Os);
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();
    drop((SPEC.build)(&section(text, "0660", ""), &context).map_err(|e| e.to_string()).unwrap());
    assert!(!path.exists());
}

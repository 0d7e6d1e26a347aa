//! A real XRootD that serves a real xrdcp and sends fireflies to glowd beside it: the
//! distribution's packages, as a site configures them.

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::User;
use serde_json::json;
use tempfile::TempDir;

use super::rig::{each, is_marked, is_plain, listening, Strategy, ATLAS_OUTPUT};
use crate::common::packet::{Packet, TCP};
use crate::common::{
    ethernet, ipv6, segment, skip_unless_root, v6, wait_for, Capture, Namespace, Pair, RawSender,
    DEVICE, HERE, PATIENCE, THERE,
};

const PORT: u16 = 1094;
const SIZE: usize = 24 << 20;
/// Experiment 2, activity 16.
const SCITAG: u16 = 2 << 6 | 16;

/// A server of one file, killed when dropped.
struct XRootD {
    child: Child,
    dir: TempDir,
}

impl XRootD {
    fn start(namespace: &Namespace) -> Self {
        // It refuses to be root.
        let user = User::from_name("xrootd").expect("to look up a user");
        let user = user.expect("the package's user (tools/deps test installs it)");
        let dir = tempfile::tempdir().expect("a folder");
        let path = |name: &str| dir.path().join(name);
        for folder in [dir.path().to_owned(), path("data"), path("admin")] {
            fs::create_dir_all(&folder).expect("a folder");
            chown(&folder, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("to give it");
        }
        let octets: Vec<u8> = (0..=250).cycle().take(SIZE).collect();
        fs::write(path("data/file"), octets).expect("a file to serve");
        let registry = json!({ "version": 1, "modified": "2025-09-04T12:01:55+00:00",
            "experiments": [{ "expName": "atlas", "expId": 2, "activities": [
                { "activityName": "Production Output", "activityId": 16 }] }] });
        fs::write(path("registry.json"), registry.to_string()).expect("a registry");
        let at = dir.path().display();
        let conf = format!(
            "all.export /\n\
             oss.localroot {at}/data\n\
             all.adminpath {at}/admin\n\
             all.pidpath {at}/admin\n\
             xrd.port {PORT}\n\
             xrootd.pmark defsfile {at}/registry.json\n\
             xrootd.pmark use firefly scitag\n\
             xrootd.pmark domain any\n\
             xrootd.pmark ffdest 127.0.0.1:10514\n"
        );
        fs::write(path("conf"), conf).expect("its configuration");
        let log = File::create(path("log")).expect("its log");
        let mut command = Command::new("xrootd");
        command.args(["-R", "xrootd", "-n", "glowd-test", "-c"]).arg(path("conf"));
        command.current_dir(path("admin")).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("its log")).stderr(log);
        let child = namespace.enter(|| command.spawn()).expect("xrootd (tools/deps test)");
        let mut server = XRootD { child, dir };
        wait_for("XRootD to listen", || {
            let ended = server.child.try_wait().expect("to ask for its end");
            assert!(ended.is_none(), "XRootD has ended: {}", server.log());
            namespace.enter(|| TcpStream::connect(v6(HERE, PORT))).ok()
        });
        server
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Copies the file from `namespace`, with that part of the URL behind its name.
    fn copy(&self, namespace: &Namespace, query: &str) {
        let to: PathBuf = self.dir.path().join("copy");
        let mut command = Command::new("timeout");
        command.args(["60", "xrdcp", "--nopbar", "--force"]);
        command.arg(format!("root://[{HERE}]:{PORT}//file{query}")).arg(&to);
        command.env("HOME", self.dir.path());
        let output = namespace.enter(|| command.output()).expect("xrdcp (tools/deps test)");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "xrdcp: {}: {errors}{}", output.status, self.log());
        assert_eq!(fs::metadata(&to).expect("the copy").len(), SIZE as u64);
    }
}

impl Drop for XRootD {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("XRootD's log:\n{}", self.log());
        }
    }
}

fn is_marked_so(packet: &Packet) -> Result<(), String> {
    is_marked(packet, Strategy::Label, ATLAS_OUTPUT)
}

#[test]
fn what_xrootd_serves_is_marked_from_its_firefly_to_the_next() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let daemon = listening(&pair, &json!({}));
    let server = XRootD::start(&pair.here);
    let capture = Capture::start(&pair.there, DEVICE);
    // Until the marker has obeyed, the wire carries little of what is to be marked.
    let carry = |how: &str, rate: &str| {
        let wire = format!("tc qdisc {how} dev {DEVICE} root tbf rate {rate} burst 128kb");
        pair.here.run(&format!("{wire} limit 4mb"));
    };
    carry("add", "8mbit");
    std::thread::scope(|scope| {
        scope.spawn(|| server.copy(&pair.there, &format!("?scitag.flow={SCITAG}")));
        let is_obeyed = |packet: &Packet| packet.src_port == PORT && is_marked_so(packet).is_ok();
        capture.find(0, PATIENCE, is_obeyed).expect("a marked packet");
        carry("change", "8gbit");
    });
    let end = daemon.wait_for_line("firefly: end tcp");
    assert!(end.contains("experiment 2 activity 16"), "{end}");
    let start = daemon.wait_for_line("firefly: start tcp");
    let (_, rest) = end.split_once(&format!("-> [{THERE}]:")).expect("the client's end");
    let port: u16 = rest.split(':').next().and_then(|port| port.parse().ok()).expect("a port");
    assert!(start.contains(&format!("]:{PORT} -> [{THERE}]:{port}: ")), "{start}");

    // The same 5-tuple as a later connection would have it.
    let (from, to) = (v6(HERE, PORT), v6(THERE, port));
    let sender = RawSender::new(&pair.here, DEVICE);
    let segment = |number: u8| {
        let before = capture.count();
        let segment = segment(TCP, from, to, &[b'x', number]);
        sender.send(&ethernet(&[], &ipv6(0, from, to, TCP, &segment)));
        capture
            .find(before, PATIENCE, |packet| packet.rest.ends_with(&[b'x', number]))
            .expect("it arrives")
    };
    wait_for("the marker to obey", || is_plain(&segment(0)).ok());
    let ended = capture.count();
    (1..=50).for_each(|number| is_plain(&segment(number)).expect("after the end"));

    // Nobody has said whose traffic this is.
    server.copy(&pair.there, "");
    daemon.signal(Signal::SIGUSR1);
    let report = daemon.wait_for_line("datagrams received");
    assert!(report.contains("plugins.firefly: 2 datagrams received, 2 taken, "), "{report}");
    assert!(
        report.contains(" 0 bad,") && report.ends_with("; 0 lost for want of room"),
        "{report}"
    );
    daemon.stop(&[]);

    let packets = capture.finish();
    let is_served = |packet: &&Packet| (packet.protocol, packet.src_port) == (TCP, PORT);
    let (during, after) = packets.split_at(ended);
    let during: Vec<_> = during
        .iter()
        .filter(is_served)
        .filter(|packet| packet.dst_port == port && !packet.rest.ends_with(b"x\0"))
        .collect();
    // Log-in and opening come before the firefly; what follows its end is at the end.
    let first = during.iter().position(|packet| is_marked_so(packet).is_ok());
    let last = during.iter().rposition(|packet| is_marked_so(packet).is_ok());
    let (first, last) = (first.expect("a marked packet"), last.expect("a marked packet"));
    each(during[..first].iter().copied(), is_plain);
    each(during[first..=last].iter().copied(), is_marked_so);
    each(during[last + 1..].iter().copied(), is_plain);
    let octets = |packets: &[&Packet]| packets.iter().map(|p| p.data_length).sum::<usize>();
    let marked = octets(&during[first..=last]);
    assert!(marked > SIZE / 2, "only {marked} of {} octets were marked", octets(&during));
    let count = each(after.iter().filter(is_served), is_plain);
    assert!(count > 100, "the second transfer was seen: {count}");
}

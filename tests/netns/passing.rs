//! Packets that pass two interfaces on their way out.

use nix::sys::signal::Signal;
use serde_json::Value;

use super::rig::{each, is_marked, line, of, Rig, Strategy, ATLAS};
use crate::common::packet::TCP;
use crate::common::{v6, Connection, Pair, DEVICE, HERE, HERE_TOO, THERE};

/// Where packets pass several interfaces, of which these are marked, each of them has to
/// look as on one, whole super-packets of TCP included, and none is said to be unmarked.
pub(super) fn passes_two(pair: Pair, strategy: Strategy, marker: Value, marked: &[&str]) {
    let mut rig = Rig::with(pair, strategy, marker, None);
    let (from, to) = (v6(HERE, 40_000), v6(THERE, 1094));
    rig.obey(&line(true, "tcp", from, to, ATLAS));
    let mut connection = Connection::open((&rig.pair.here, from), (&rig.pair.there, to), 0xb8);
    connection.send_bulk(1 << 20);
    connection.ping_pong(50);
    rig.obey(&line(false, "tcp", from, to, ATLAS));
    drop(connection);
    rig.daemon.signal(Signal::SIGUSR1);
    let line = rig.daemon.wait_for_line("interfaces marked: ");
    let (_, names) = line.split_once("marked: ").expect("as waited for");
    let mut names: Vec<&str> = names.split(", ").collect();
    names.sort_unstable();
    assert_eq!(names, {
        let mut marked = marked.to_vec();
        marked.sort_unstable();
        marked
    });
    let unmarked = rig.daemon.lines().into_iter().filter(|line| line.contains("went unmarked"));
    assert_eq!(unmarked.collect::<Vec<_>>(), [""; 0], "{strategy:?}");
    let end = rig.captured();
    rig.daemon.stop(&[]);
    let mut packets = rig.capture.finish();
    packets.truncate(end);
    let last = packets.iter().rposition(|packet| is_marked(packet, strategy, ATLAS).is_ok());
    packets.truncate(last.expect("some are marked") + 1);
    let count = each(packets.iter().filter(of(TCP, 40_000, 1094)), |packet| {
        is_marked(packet, strategy, ATLAS)
    });
    assert!(count > 50, "{count}");
}

/// Takes the addresses of the near host off its device.
pub(super) fn free_device(pair: &Pair) {
    for address in [HERE, HERE_TOO] {
        pair.here.ip(&format!("-6 address del {address}/64 dev {DEVICE}"));
    }
}

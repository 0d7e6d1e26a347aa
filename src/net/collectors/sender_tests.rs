//! Lanes that are full, by a scripted wire and by the kernel.

use super::*;
use std::collections::VecDeque;

/// A wire that does as it is told, then takes everything.
#[derive(Default)]
struct Scripted {
    script: VecDeque<nix::Result<usize>>,
    sent: Vec<String>,
    waits: usize,
    /// How long a wait takes.
    slow: Duration,
}

impl Wire for Scripted {
    fn send(&mut self, payloads: &[u8], letters: &[Letter]) -> nix::Result<usize> {
        let count = self.script.pop_front().unwrap_or(Ok(letters.len()))?;
        for letter in &letters[..count] {
            let payload = &payloads[letter.payload.clone()];
            self.sent.push(String::from_utf8(payload.to_vec()).unwrap());
        }
        Ok(count)
    }

    fn wait(&mut self, limit: Duration, _: Errno) {
        assert!((TICK..=COLLECTORS).contains(&limit), "{limit:?}");
        self.waits += 1;
        std::thread::sleep(self.slow);
    }
}

/// Sends "0", "1", ... and says what became of them.
fn sent(wire: &mut Scripted, patience: &mut Patience, count: usize) -> Vec<(u16, Outcome)> {
    let payloads: String = (0..count).map(|number| number.to_string()).collect();
    let letter = |number| Letter {
        payload: number..number + 1,
        to: SocketAddr::from(([127, 0, 0, 1], u16::try_from(number).unwrap())),
        recipient: Recipient::Destination,
    };
    let letters: Vec<_> = (0..count).map(letter).collect();
    let mut told = Vec::new();
    send(wire, patience, payloads.as_bytes(), &letters, &mut |letter, outcome| {
        told.push((letter.to.port(), outcome));
    });
    told
}

use Outcome::{Failed, Full, Sent};

#[test]
fn a_refused_datagram_costs_no_other() {
    let script = [
        Ok(2),
        Err(Errno::ENETUNREACH),
        Err(Errno::EPERM),
        Err(Errno::EINTR),
        Ok(1),
        Err(Errno::EMSGSIZE),
    ];
    let mut wire = Scripted { script: script.into(), ..Scripted::default() };
    let told = sent(&mut wire, &mut Patience::of_collectors(), 8);
    let outcomes = [
        (0, Sent),
        (1, Sent),
        (2, Failed(Errno::ENETUNREACH)),
        (3, Failed(Errno::EPERM)),
        (4, Sent),
        (5, Failed(Errno::EMSGSIZE)),
        (6, Sent),
        (7, Sent),
    ];
    assert_eq!(told, outcomes);
    assert_eq!(wire.sent, ["0", "1", "4", "6", "7"]);
}

#[test]
fn a_full_buffer_is_waited_for() {
    let script = [Err(Errno::EAGAIN), Err(Errno::ENOBUFS), Ok(1), Err(Errno::EAGAIN)];
    let mut wire = Scripted { script: script.into(), ..Scripted::default() };
    let mut patience = Patience::of_collectors();
    let told = sent(&mut wire, &mut patience, 3);
    assert_eq!(told, [(0, Sent), (1, Sent), (2, Sent)]);
    assert_eq!(wire.waits, 3);
    assert_eq!(patience.left(), Some(patience.limit), "what gets through restores it");
}

#[test]
fn a_buffer_that_stays_full_is_given_up() {
    let full = VecDeque::from([Err(Errno::EAGAIN); 1000]);
    let slow = Duration::from_millis(10);
    let mut wire = Scripted { script: full, slow, ..Scripted::default() };
    let mut patience = Patience { limit: Duration::from_millis(50), ..Patience::of_collectors() };
    assert_eq!(sent(&mut wire, &mut patience, 2), [(0, Full), (1, Full)]);
    assert!((1..=5).contains(&wire.waits), "{}", wire.waits);
    wire.waits = 0;
    assert_eq!(sent(&mut wire, &mut patience, 2), [(0, Full), (1, Full)]);
    assert_eq!(wire.waits, 0, "its patience is gone");
    wire.script.clear();
    assert_eq!(sent(&mut wire, &mut patience, 1), [(0, Sent)]);
    assert_eq!(patience.left(), Some(patience.limit));
}

/// Here a wait is always followed by one datagram that gets through.
#[test]
fn a_buffer_that_empties_slowly_takes_a_share_of_the_time_only() {
    const LETTERS: usize = 60;
    let trickle = [Err(Errno::EAGAIN), Ok(1)];
    let script = trickle.into_iter().cycle().take(LETTERS * 2).collect();
    let mut wire = Scripted { script, slow: Duration::from_millis(10), ..Scripted::default() };
    let since = Instant::now();
    let told = sent(&mut wire, &mut Patience::of_destinations(), LETTERS);
    let took = since.elapsed();
    let waited = wire.slow * u32::try_from(wire.waits).unwrap();
    // A wait may be longer than it was to be.
    assert!(waited <= DESTINATIONS + took / SHARE + wire.slow, "{waited:?} of {took:?}");
    assert!(wire.waits > 0 && told[0] == (0, Sent), "{told:?}");
    assert_eq!(told[LETTERS - 1].1, Full);
}

#[test]
fn time_restores_the_patience_with_destinations_up_to_its_limit() {
    let mut patience = Patience::of_destinations();
    patience.spend(DESTINATIONS * 2); // far beyond what a slow test run restores
    patience.got_through();
    assert_eq!(patience.left(), None);
    let ago = |time| Some(Instant::now().checked_sub(time).unwrap());
    patience.restored = ago(DESTINATIONS * SHARE * 3 / 2);
    let left = patience.left().unwrap();
    assert!(left >= DESTINATIONS / 2 && left < DESTINATIONS, "{left:?}");
    patience.restored = ago(DESTINATIONS * SHARE * 2);
    assert_eq!(patience.left(), Some(DESTINATIONS));
}

#[test]
fn each_recipient_has_a_lane_by_kind_and_family() {
    let [v4, v6] = ["127.0.0.1:1", "[::1]:1"].map(|text| text.parse().unwrap());
    let collectors = [lane(&v4, Recipient::Collector(7)), lane(&v6, Recipient::Collector(0))];
    let destinations = [v4, v6].map(|to| lane(&to, Recipient::Destination));
    assert_eq!((collectors, destinations), ([0, 1], [2, 3]));
    let mut sender = Sender::open("test", true).unwrap();
    let all = [Recipient::Destination, Recipient::Collector(0)];
    sender.post(all.map(|recipient| (v4, recipient)), |out| out.push(b'x'));
    let mut order = Vec::new();
    sender.flush(|letter, _| order.push(letter.recipient));
    assert_eq!(order, [all[1], all[0]], "the collectors come first");
}

/// Datagrams to a neighbour that does not answer stay in the socket's buffer.
#[test]
#[cfg(target_os = "linux")]
fn a_full_buffer_of_the_kernel_s_is_waited_for_and_given_up() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP: a network namespace needs root");
        return;
    }
    // A thread of its own: the namespace is the thread's, and ends with it.
    let thread = std::thread::spawn(|| {
        use nix::sys::socket::{setsockopt, sockopt::SndBuf};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let ip = |arguments: &str| {
            let mut command = std::process::Command::new("ip");
            let status = command.args(arguments.split(' ')).status().unwrap();
            assert!(status.success(), "ip {arguments}");
        };
        ip("link set lo up");
        ip("link add near type veth peer name far");
        ip("addr add fd00::1/64 dev near nodad");
        ip("link set near up");
        ip("link set far up");
        let outcomes = |sender: &mut Sender, to: &str, recipient| {
            let to = (to.parse().unwrap(), recipient);
            (0..10).for_each(|_| sender.post([to], |out| out.extend([b'x'; 500])));
            let (mut sent, mut full) = (0, 0);
            let since = Instant::now();
            sender.flush(|_, outcome| match outcome {
                Sent => sent += 1,
                Full => full += 1,
                Failed(error) => panic!("{error}"),
            });
            (sent, full, since.elapsed())
        };

        for (kind, other, patience, limit) in [
            (Recipient::Destination, Recipient::Collector(0), DESTINATIONS, COLLECTORS),
            (Recipient::Collector(0), Recipient::Destination, COLLECTORS, COLLECTORS * 2),
        ] {
            let mut sender = Sender::open("test", true).unwrap();
            for lane in &sender.lanes {
                let Udp(socket) = lane.wire.as_ref().unwrap();
                setsockopt(socket, SndBuf, &0).unwrap();
            }
            let silent = "[fd00::2]:10514";
            let (sent, full, took) = outcomes(&mut sender, silent, kind);
            assert!(sent > 0 && full > 0 && sent + full == 10, "{sent} {full}");
            assert!(took >= patience - 10 * TICK && took < limit, "{took:?}");
            for (to, recipient) in [("[::1]:1", other), ("127.0.0.1:1", kind)] {
                let (sent, full, _) = outcomes(&mut sender, to, recipient);
                assert_eq!((sent, full), (10, 0), "{to} as {recipient:?}");
            }
            ip("neigh replace fd00::2 lladdr 02:00:00:00:00:01 nud permanent dev near");
            let (sent, full, _) = outcomes(&mut sender, silent, other);
            assert_eq!((sent, full), (10, 0), "as {other:?}");
            ip("neigh del fd00::2 dev near");
        }
    });
    thread.join().unwrap();
}

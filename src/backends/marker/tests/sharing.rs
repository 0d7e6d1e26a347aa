//! That the marker shares an interface: with what others do there while it runs,
//! and with other glowds, of which it cannot see all. Root.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;

use nix::sys::socket::{
    bind, connect, listen, socket, AddressFamily, Backlog, SockFlag, SockType, UnixAddr,
};

use super::super::owner::{Claim, Owner};
use super::*;

#[test]
fn a_qdisc_that_somebody_has_made_anew_stays() {
    in_namespace(|| {
        let marker = clsact().unwrap();
        run("tc qdisc del dev lo clsact");
        run("tc qdisc add dev lo clsact");
        let before = state();
        assert!(!before.contains("glowd"), "{before}");
        drop(marker);
        assert_eq!(state(), before);
    });
}

#[test]
fn a_new_interface_with_the_number_of_one_that_is_gone_is_left_alone() {
    in_namespace(|| {
        let create = "ip link add veth-a index 77 type veth peer name veth-b";
        run(create);
        let changes = [interfaces(&["veth-a"]), ("attach", text("clsact"))];
        let marker = marker(&changes).unwrap();
        run("ip link del veth-a");
        run(create);
        run("tc qdisc add dev veth-a clsact");
        drop(marker);
        let qdiscs = run("tc qdisc show dev veth-a");
        assert!(qdiscs.contains("clsact"), "{qdiscs}");
    });
}

/// Somebody may remove one of glowd's filters without touching the qdisc.
#[test]
fn a_qdisc_goes_with_the_last_filter_that_is_found() {
    in_namespace(|| {
        let before = state();
        let changes = [("attach", text("clsact")), ("markingStrategy", text("hopByHop"))];
        let marker = marker(&changes).unwrap();
        run("tc filter del dev lo egress prio 1");
        drop(marker);
        assert_eq!(state(), before);
    });
}

/// A command that runs this program in a process namespace of its own, as a
/// container does, and kills it when it is killed itself.
fn in_container() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child"]).arg(std::env::current_exe().unwrap());
    command
}

#[test]
fn a_restart_after_kill_9_needs_no_help_in_a_container() {
    const TEST: &str = "sharing::a_restart_after_kill_9_needs_no_help_in_a_container";
    if was_child() {
        return;
    }
    in_namespace(|| {
        let before = state();
        for cleans in [true, false] {
            let other = Other::ready(in_container(), TEST, "clsact");
            let there = state();
            let refusal = clsact().err().unwrap().to_string();
            assert!(refusal.starts_with("lo: another glowd"), "{refusal}");
            let refusal = clean(&[]).unwrap_err().to_string();
            assert!(refusal.starts_with("lo: another glowd"), "{refusal}");
            assert_eq!(state(), there, "a live one is not disturbed");
            other.kill();
            assert_eq!(state(), there, "the filter outlives its maker");
            // What is waited for is that it dies with its parent.
            goes(cleans);
            assert_eq!(state(), before);
        }
    });
}

/// Waits until what a dead one left is removed by `marker clean`, or by a successor.
fn goes(cleans: bool) {
    if cleans {
        eventually("the rest is removed", || clean(&[]).is_ok());
    } else {
        eventually("the successor starts", || clsact().is_ok());
    }
}

/// The holder is outside of the process namespace of who asks.
#[test]
fn a_live_glowd_of_another_process_namespace_is_noticed() {
    const TEST: &str =
        "backends::marker::tests::sharing::a_live_glowd_of_another_process_namespace_is_noticed";
    if was_child() {
        return;
    }
    in_namespace(|| {
        let _marker = marker(&[("attach", text("tcx"))]).unwrap();
        let output = in_container()
            .args(["--exact", "--nocapture", TEST])
            .env(ROLE, "tcx")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("another glowd, of another process namespace, marks"), "{said}");
        assert!(!output.status.success(), "{said}");
    });
}

/// The text of a filter whose maker is of a process namespace that is none of ours.
fn of_another_process_namespace() -> String {
    let text = Owner::this_process(true).to_string();
    let (front, back) = text.split_once("pidns=").unwrap();
    let back = back.split_once(' ').unwrap().1;
    format!("{front}pidns=1 {back}")
}

/// The name that is the claim of the loopback, without a listener.
fn squat() -> OwnedFd {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(fd.as_raw_fd(), &UnixAddr::new_abstract(b"glowd/marker/1").unwrap()).unwrap();
    fd
}

#[test]
fn what_may_be_of_a_live_glowd_stays_only_while_that_cannot_be_told() {
    in_namespace(|| {
        let before = state();
        for cleans in [true, false] {
            run("tc qdisc add dev lo clsact");
            Foreign::named(Hook::Egress, 1, &of_another_process_namespace());
            let there = state();
            let squatter = squat();
            for refusal in [clsact().map(drop).unwrap_err(), clean(&[]).unwrap_err()] {
                let refusal = refusal.to_string();
                assert!(refusal.contains("of another process namespace"), "{refusal}");
                assert!(refusal.contains("tc filter del dev lo egress prio 1"), "{refusal}");
            }
            assert_eq!(state(), there);
            // Children of other tests may have a copy for a moment.
            drop(squatter);
            goes(cleans);
            assert_eq!(state(), before);
        }
    });
}

#[test]
fn clean_keeps_out_of_the_way_of_a_glowd_that_starts() {
    const TEST: &str = "sharing::clean_keeps_out_of_the_way_of_a_glowd_that_starts";
    if was_child() {
        return;
    }
    in_namespace(|| {
        let before = state();
        Other::attached(TEST, "clsact").kill();
        let there = state();
        // As far as one has come that starts just now.
        let claim = Claim::of(1).unwrap();
        assert!(matches!(claim, Claim::Held(_)), "{claim:?}");
        let refusal = clean(&[]).unwrap_err().to_string();
        assert!(refusal.starts_with("lo: another glowd"), "{refusal}");
        assert_eq!(state(), there);
        drop(claim);
        clean(&[]).unwrap();
        assert_eq!(state(), before);

        // Where there is nothing to remove, clean neither claims nor complains.
        let _claim = Claim::of(1).unwrap();
        clean(&[]).unwrap();
    });
}

fn assert_squatted(who: &str) {
    let begin = Instant::now();
    let claim = Claim::of(1).unwrap();
    let took = begin.elapsed();
    // It is 10 ms on an idle machine.
    assert!(took < Duration::from_secs(1), "{took:?}");
    let Claim::Squatted(how) = &claim else { panic!("{claim:?}") };
    assert!(how.contains(who) && how.contains("\"glowd/marker/1\""), "{how}");
    assert!(how.ends_with("another glowd on this interface would not be noticed"), "{how}");
    drop(clsact().unwrap());
}

#[test]
fn who_squats_on_a_claim_costs_a_warning_and_no_time() {
    in_namespace(|| {
        let before = state();
        let squatter = squat();
        assert_squatted("does not answer");
        // Its queue is full: nobody is taken from it.
        listen(&squatter, Backlog::new(0).unwrap()).unwrap();
        let open = || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap()
        };
        let address = UnixAddr::new_abstract(b"glowd/marker/1").unwrap();
        let first = open();
        connect(first.as_raw_fd(), &address).unwrap();
        assert_squatted("does not answer");
        assert_eq!(state(), before);
    });
}

#[test]
fn another_user_squats_on_a_claim_in_vain() {
    const TEST: &str = "sharing::another_user_squats_on_a_claim_in_vain";
    const NOBODY: u32 = 65_534;
    if std::env::var_os(ROLE).is_some() {
        let squatter = squat();
        listen(&squatter, Backlog::new(10).unwrap()).unwrap();
        println!("{ATTACHED}");
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    in_namespace(|| {
        // By this way the file may be in a folder that is not nobody's to enter.
        let mut command = Command::new("/proc/self/exe");
        command.uid(NOBODY).gid(NOBODY);
        let other = Other::ready(command, TEST, "squat");
        assert_squatted(&format!("process {} of user {NOBODY}", other.0.id()));
    });
}

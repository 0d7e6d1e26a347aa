//! Interfaces that come, go and change while the marker runs.

use super::super::choice::Link;
use super::*;

fn discovering(way: &str) -> Marker {
    marker(&[("discoverInterfaces", Value::Bool(true)), ("attach", text(way))]).unwrap()
}

/// Has the marker look, as after a notification that `gone` went.
fn look(marker: &mut Marker, gone: &[u32]) {
    marker.follower.as_mut().unwrap().update(gone).unwrap();
}

fn add_veth() {
    run("ip link add veth-a index 77 type veth peer name veth-b");
}

fn address(what: &str) {
    run(&format!("ip -6 address {what} 2001:db8::1/64 dev veth-a nodad"));
}

/// What glowd has on the interface: filters and tcx programs.
fn on(interface: &str) -> usize {
    let qdiscs = run(&format!("tc qdisc show dev {interface}"));
    let filters = if qdiscs.contains("clsact") {
        run(&format!("tc filter show dev {interface} egress"))
    } else {
        String::new()
    };
    filters.matches("glowd:marker").count() + tcx(interface, Hook::Egress).len()
}

#[test]
fn an_interface_is_marked_while_it_has_a_public_address() {
    in_namespace(|| {
        for way in ["clsact", "tcx"] {
            let mut marker = discovering(way);
            add_veth();
            let before = run("tc qdisc show");
            look(&mut marker, &[]);
            assert_eq!((on("veth-a"), on("veth-b"), on("lo")), (0, 0, 0), "{way}");
            for _ in 0..3 {
                address("add");
                for _ in 0..2 {
                    look(&mut marker, &[]);
                    assert_eq!((on("veth-a"), on("veth-b"), on("lo")), (1, 0, 0), "{way}");
                }
                address("del");
                look(&mut marker, &[]);
                assert_eq!((on("veth-a"), run("tc qdisc show")), (0, before.clone()), "{way}");
            }
            address("add");
            look(&mut marker, &[]);
            drop(marker);
            assert_eq!((on("veth-a"), run("tc qdisc show")), (0, before), "{way}");
            run("ip link del veth-a");
        }
    });
}

#[test]
fn an_interface_that_comes_back_is_another_one() {
    in_namespace(|| {
        for way in ["clsact", "tcx"] {
            add_veth();
            let changes = [interfaces(&["veth-a", "lo"]), ("attach", text(way))];
            let mut marker = marker(&changes).unwrap();
            assert_eq!((on("veth-a"), on("lo")), (1, 1), "{way}");
            // Its number is the same, so that only the notification tells.
            run("ip link del veth-a");
            add_veth();
            look(&mut marker, &[77]);
            assert_eq!((on("veth-a"), on("lo")), (1, 1), "{way}");
            run("ip link del veth-a");
            look(&mut marker, &[]);
            assert_eq!(marker.interfaces(), "lo");
            add_veth();
            look(&mut marker, &[]);
            assert_eq!((on("veth-a"), on("lo")), (1, 1), "{way}");
            assert_eq!(marker.interfaces(), "lo, veth-a");
            run("ip link del veth-a");
        }
    });
}

#[test]
fn an_interface_that_moves_to_another_namespace_takes_nothing_along() {
    in_namespace(|| {
        for way in ["clsact", "tcx"] {
            add_veth();
            let mut marker = marker(&[interfaces(&["veth-*"]), ("attach", text(way))]).unwrap();
            let mut other = Command::new("unshare")
                .args(["--net", "sh", "-c"])
                .arg("echo there; read line; ip link; tc qdisc show dev veth-a; bpftool net show")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut out = BufReader::new(other.stdout.take().unwrap());
            out.read_line(&mut String::new()).unwrap();
            run(&format!("ip link set veth-a netns {}", other.id()));
            look(&mut marker, &[]);
            assert_eq!((marker.interfaces().as_str(), on("veth-b")), ("veth-b", 1), "{way}");
            drop(other.stdin.take());
            let mut told = String::new();
            out.read_to_string(&mut told).unwrap();
            other.wait().unwrap();
            assert!(told.contains("veth-a"), "{told}");
            assert!(!told.contains("clsact") && !told.contains("marker_eth"), "{told}");
            drop(marker);
            // It goes with the other namespace, sooner or later.
            eventually("the pair is gone", || !run("ip link").contains("veth-b"));
        }
    });
}

#[test]
fn a_new_name_counts() {
    in_namespace(|| {
        add_veth();
        let changes = [interfaces(&["lo", "veth*", "!*-b"]), ("attach", text("clsact"))];
        let mut marker = marker(&changes).unwrap();
        for (command, interface, programs) in [
            ("ip link set veth-a name veth-c", "veth-c", 1),
            ("ip link set veth-c name eth0", "eth0", 0),
            ("ip link set eth0 name veth-b2", "veth-b2", 1),
            ("ip link set veth-b2 name veth-bb", "veth-bb", 1),
            ("ip link set veth-bb name a-b", "a-b", 0),
        ] {
            run(command);
            look(&mut marker, &[]);
            assert_eq!((on(interface), on("veth-b"), on("lo")), (programs, 0, 1), "{command}");
        }
    });
}

#[test]
fn what_fails_at_one_interface_is_tried_again_when_that_changes() {
    in_namespace(|| {
        add_veth();
        run("tc qdisc add dev veth-b ingress");
        let changes = [interfaces(&["veth-*", "no*"]), ("attach", text("clsact"))];
        let mut marker = marker(&changes).expect("only names are demanded");
        assert_eq!(marker.interfaces(), "veth-a");
        run("tc qdisc del dev veth-b ingress");
        run("ip link set veth-a mtu 1400");
        look(&mut marker, &[]);
        assert_eq!(marker.interfaces(), "veth-a", "nothing has changed");
        run("ip link set veth-b mtu 1400");
        look(&mut marker, &[]);
        assert!(marker.interfaces().contains("veth-b"), "{}", marker.interfaces());
        assert_eq!((on("veth-a"), on("veth-b")), (1, 1));
        // And whenever it comes to be wanted again.
        run("ip link set veth-b name eth-b");
        look(&mut marker, &[]);
        run("tc qdisc add dev eth-b ingress");
        run("ip link set eth-b name veth-b");
        look(&mut marker, &[]);
        run("ip link set veth-b name eth-b");
        look(&mut marker, &[]);
        assert_eq!(marker.interfaces(), "veth-a");
        run("tc qdisc del dev eth-b ingress");
        run("ip link set eth-b name veth-b");
        look(&mut marker, &[]);
        assert_eq!((on("veth-a"), on("veth-b")), (1, 1));
    });
}

/// Not every kernel can make one.
#[test]
fn an_interface_of_unknown_kind_is_passed_over() {
    in_namespace(|| {
        let mut marker = discovering("auto");
        let mut links = Link::list(&mut Socket::route().unwrap()).unwrap();
        links[0].interface.arphrd = 280;
        marker.follower.as_mut().unwrap().try_to_attach(&links[0]);
        assert_eq!(on("lo"), 0);
        // It is another interface than the one that failed.
        marker.follower.as_mut().unwrap().update(&[]).unwrap();
        assert_eq!(marker.interfaces(), "none");
    });
}

/// As on kernels before 5.12.
#[test]
fn the_programs_are_told_how_an_mtu_changes() {
    in_namespace(|| {
        add_veth();
        let strategy = ("markingStrategy", text("hopByHop"));
        let mut marker = marker(&[interfaces(&["lo", "veth-?"]), strategy]).unwrap();
        let follower = marker.follower.as_mut().unwrap();
        let mtus: Map<u32, u32> = follower.programs().object().map("mtus").unwrap();
        follower.programs_mut().forget_that_the_kernel_tells();
        run("ip link set veth-a mtu 4000");
        look(&mut marker, &[]);
        assert_eq!(mtus.lookup(&77).unwrap(), 4000);
        run("ip link set veth-a mtu 1400");
        look(&mut marker, &[]);
        assert_eq!(mtus.lookup(&77).unwrap(), 1400);
        run("ip link del veth-a");
        look(&mut marker, &[]);
        mtus.lookup(&77).unwrap_err();
        add_veth();
        look(&mut marker, &[]);
        assert_eq!(mtus.lookup(&77).unwrap(), 1500);
    });
}

#[test]
fn changes_are_heard_of_until_the_end() {
    in_namespace(|| {
        run("ip link set lo down");
        for way in ["clsact", "tcx"] {
            let following = discovering(way).follower.take().unwrap().start().unwrap();
            for _ in 0..20 {
                add_veth();
                address("add");
                eventually("it is marked", || on("veth-a") == 1);
                address("del");
                eventually("it is not marked", || on("veth-a") == 0);
                address("add");
                run("ip link del veth-a");
            }
            add_veth();
            address("add");
            eventually("it is marked", || on("veth-a") == 1);
            drop(following);
            assert_eq!(on("veth-a"), 0);
            run("ip link del veth-a");
        }
    });
}

/// More than the socket holds.
#[test]
fn a_flood_of_changes_is_followed_too() {
    in_namespace(|| {
        let mut marker = discovering("auto");
        let line = |n| format!("link add flood{n} type veth\nlink del flood{n}\n");
        let dir = tempfile::tempdir().unwrap();
        let batch = dir.path().join("batch");
        std::fs::write(&batch, (0..60).map(line).collect::<String>()).unwrap();
        run(&format!("ip -batch {}", batch.display()));
        let following = marker.follower.take().unwrap().start().unwrap();
        run(&format!("ip -batch {}", batch.display()));
        add_veth();
        address("add");
        eventually("it is marked", || on("veth-a") == 1);
        drop(following);
    });
}

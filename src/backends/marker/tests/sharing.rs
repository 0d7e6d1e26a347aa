//! That the marker shares an interface: with what others do there while it runs,
//! and with other glowds, of which it cannot see all. Root.

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

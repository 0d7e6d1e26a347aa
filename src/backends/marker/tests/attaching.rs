//! What is on an interface while the marker is attached, and after.

use super::*;
use crate::sys::abi::{COUNT_ALL, COUNT_NONE, COUNT_UDP};

#[test]
fn clsact_comes_and_goes() {
    in_namespace(|| {
        let before = state();
        let marker = clsact().unwrap();
        let there = state();
        assert!(there.contains("clsact") && there.contains("glowd:marker pid="), "{there}");
        assert!(there.contains("pref 1 ") && there.contains("direct-action"), "{there}");
        send(1);
        drop(marker);
        assert_eq!(state(), before);
    });
}

#[test]
fn tcx_comes_and_goes_and_is_the_choice_of_auto() {
    in_namespace(|| {
        let before = state();
        for way in ["tcx", "auto"] {
            let marker = marker(&[("attach", text(way))]).unwrap();
            assert_eq!(state(), before, "no qdisc is needed");
            assert_eq!(tcx("lo", Hook::Egress), ["marker_eth"]);
            assert_eq!(tcx("lo", Hook::Ingress), ["room_eth"]);
            send(1);
            drop(marker);
            assert_eq!(Hook::BOTH.map(|hook| tcx("lo", hook).len()), [0, 0]);
        }
    });
}

#[test]
fn header_strategies_also_look_at_what_arrives() {
    in_namespace(|| {
        for strategy in ["hopByHop", "destination", "hopByHopDestination"] {
            let before = state();
            let changes = [("attach", text("clsact")), ("markingStrategy", text(strategy))];
            let clsact = marker(&changes).unwrap();
            let ingress = run("tc filter show dev lo ingress");
            assert!(ingress.contains("glowd:marker"), "{ingress}");
            drop(clsact);
            assert_eq!(state(), before);
            let _tcx = marker(&[("attach", text("tcx")), changes[1].clone()]).unwrap();
            assert_eq!(tcx("lo", Hook::Egress), ["marker_eth"]);
            assert_eq!(tcx("lo", Hook::Ingress), ["room_eth"]);
        }
    });
}

/// Where nothing is to be seen of what arrives, nothing is attached there.
#[test]
fn what_arrives_is_left_alone_if_it_is_not_counted() {
    in_namespace(|| {
        let off = ("countReceived", text("off"));
        let tcx_only = marker(&[("attach", text("tcx")), off.clone()]).unwrap();
        assert_eq!((tcx("lo", Hook::Egress).len(), tcx("lo", Hook::Ingress).len()), (1, 0));
        drop(tcx_only);
        let _clsact = marker(&[("attach", text("clsact")), off]).unwrap();
        assert_eq!(run("tc filter show dev lo ingress"), "");
    });
}

#[test]
fn what_arrives_by_tcp_is_counted_unless_an_enricher_knows_more() {
    in_namespace(|| {
        for (given, enriched, counts) in [
            ("auto", false, COUNT_ALL),
            ("auto", true, COUNT_UDP),
            ("all", true, COUNT_ALL),
            ("udp", false, COUNT_UDP),
            ("off", false, COUNT_NONE),
        ] {
            let context = Context { enriched, ..Context::new(10) };
            let section = section(&[("countReceived", text(given))]);
            let marker = Marker::new(&section, &context).unwrap();
            let programs = marker.follower.as_ref().unwrap().programs();
            assert_eq!(programs.count_received(), counts, "{given} {enriched}");
        }
    });
}

#[test]
fn interfaces_without_ethernet_get_the_other_program() {
    in_namespace(|| {
        run("ip tuntap add t0 mode tun");
        let _marker = marker(&[interfaces(&["t0", "lo"])]).unwrap();
        assert_eq!(tcx("t0", Hook::Egress), ["marker_ip"]);
        assert_eq!(tcx("lo", Hook::Egress), ["marker_eth"]);
    });
}

#[test]
fn a_missing_interface_is_an_error_that_names_those_that_exist() {
    in_namespace(|| {
        run("ip link add veth-a type veth peer name veth-b");
        let refusal = marker(&[interfaces(&["lo", "veth-c"])]).err().unwrap();
        assert_eq!(refusal.class(), Class::Os, "it may come");
        let refusal = refusal.to_string();
        for name in ["\"veth-c\"", "lo", "veth-a", "veth-b"] {
            assert!(refusal.contains(name), "{refusal}");
        }
    });
}

#[test]
fn a_failure_at_one_interface_undoes_the_others() {
    in_namespace(|| {
        run("ip link add veth-a type veth peer name veth-b");
        run("tc qdisc add dev veth-b ingress");
        let before = run("tc qdisc show");
        let changes = [interfaces(&["veth-a", "veth-b"]), ("attach", text("clsact"))];
        let refusal = marker(&changes).err().unwrap().to_string();
        assert!(refusal.starts_with("veth-b: "), "{refusal}");
        assert_eq!(run("tc qdisc show"), before);
        run("tc qdisc del dev veth-b ingress");
        marker(&changes).expect("nothing holds veth-a");
    });
}

#[test]
fn an_interface_may_vanish() {
    in_namespace(|| {
        for way in ["clsact", "tcx"] {
            run("ip link add veth-a type veth peer name veth-b");
            let marker = marker(&[interfaces(&["veth-a"]), ("attach", text(way))]).unwrap();
            run("ip link del veth-a");
            drop(marker);
        }
    });
}

#[test]
fn what_keeps_packets_from_growing_a_header_is_told() {
    in_namespace(|| {
        run("ip link add veth-a type veth peer name veth-b");
        let find = || {
            let all = net::list(&mut Socket::route().unwrap()).unwrap();
            find(&all.iter().collect::<Vec<_>>(), "veth-a").unwrap().clone()
        };
        assert_eq!(find().gso_max_size, 65_536);
        assert_eq!(header_limitations(&find()).len(), 0);
        run("ip link set veth-a gso_max_size 185000");
        let told = header_limitations(&find()).concat();
        assert!(told.contains("185000"), "{told}");
        let advice = "ip link set dev veth-a gso_max_size 65536";
        assert!(told.ends_with(advice), "{told}");
        marker(&[interfaces(&["veth-a"]), ("markingStrategy", text("hopByHop"))]).unwrap();
        run(advice);
        let veth = find();
        assert_eq!(header_limitations(&veth).len(), 0);

        // Not every kernel has these tunnels.
        for arphrd in [libc::ARPHRD_IPGRE, ARPHRD_IP6GRE] {
            let told = header_limitations(&Interface { arphrd, ..veth.clone() }).concat();
            assert!(told.contains("GRE"), "{told}");
        }
    });
}

#[test]
fn another_program_may_be_loaded() {
    in_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("marker.o");
        std::fs::write(&path, &*crate::sys::bpf::MARKER.unpack().unwrap()).unwrap();
        let path_text = text(path.to_str().unwrap());
        marker(&[("programPath", path_text.clone())]).unwrap();
        std::fs::write(&path, b"not an object").unwrap();
        let refusal = marker(&[("programPath", path_text)]).err().unwrap().to_string();
        assert!(refusal.starts_with("programPath: cannot read"), "{refusal}");
        let refusal = marker(&[("programPath", text("/nowhere.o"))]).err().unwrap().to_string();
        assert!(refusal.contains("No such file"), "{refusal}");
    });
}

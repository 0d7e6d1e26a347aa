//! Qdiscs and filters of others on the same interface.

use super::*;

#[test]
fn defect_09_an_existing_clsact_is_used_and_stays() {
    in_namespace(|| {
        run("tc qdisc add dev lo clsact");
        let before = state();
        let marker = clsact().unwrap();
        assert!(state().contains("glowd:marker"));
        drop(marker);
        assert_eq!(state(), before);
    });
}

#[test]
fn defect_10_filters_of_others_survive() {
    in_namespace(|| {
        run("tc qdisc add dev lo clsact");
        // One with a program, one that shares a priority with ours, and one of a
        // protocol that keeps priority 1 from ours on the other hook.
        let foreign = [Foreign::new(Hook::Egress, 1), Foreign::new(Hook::Egress, 9)];
        let foreign_in = Foreign::new(Hook::Ingress, 5);
        run("tc filter add dev lo ingress prio 1 protocol ipv6 bpf bytecode 1,6~0~0~0");
        let before = state();
        for strategy in ["label", "hopByHop"] {
            let marker = marker(&[("attach", text("clsact")), ("markingStrategy", text(strategy))]);
            let marker = marker.unwrap();
            assert_eq!(state().matches("glowd:marker").count(), 2, "{}", state());
            assert!(run("tc filter show dev lo ingress prio 2").contains("glowd:marker"));
            foreign[0].check("while the marker is attached");
            foreign_in.check("while the marker is attached");
            drop(marker);
            foreign[0].check("after the marker has gone");
            foreign_in.check("after the marker has gone");
            assert_eq!(state(), before);
        }
    });
}

/// A filter that came while the marker was attached keeps the qdisc that the
/// marker made.
#[test]
fn defect_10_a_qdisc_that_others_have_come_to_use_stays() {
    in_namespace(|| {
        for hook in Hook::BOTH {
            let marker = clsact().unwrap();
            let foreign = Foreign::new(hook, 3);
            foreign.check("while the marker is attached");
            drop(marker);
            foreign.check("after the marker has gone");
            assert!(!state().contains("glowd"), "{}", state());
            run("tc qdisc del dev lo clsact");
        }
    });
}

#[test]
fn a_qdisc_stays_if_it_is_to_stay() {
    in_namespace(|| {
        let changes = [("attach", text("clsact")), ("removeQdisc", Value::Bool(false))];
        drop(marker(&changes).unwrap());
        assert!(state().contains("clsact") && !state().contains("glowd"), "{}", state());
    });
}

/// The counting filter accepts packets, so it sees them only if the marker, which
/// runs first, has let them go on.
#[test]
fn defect_11_a_filter_behind_the_marker_runs() {
    in_namespace(|| {
        run("tc qdisc add dev lo clsact");
        for (way, priority) in [("clsact", 1), ("clsact", 2), ("tcx", 1)] {
            for hook in Hook::BOTH {
                let foreign = Foreign::new(hook, priority);
                let _marker = marker(&[("attach", text(way))]).unwrap();
                if way == "clsact" {
                    let order = run(&format!("tc filter show dev lo {}", hook.name()));
                    let place = |name| order.find(name).unwrap();
                    assert!(place("glowd:marker") < place(Foreign::NAME), "{order}");
                }
                foreign.check(way);
                tc::delete_filter(&mut Socket::route().unwrap(), 1, &foreign.filter).unwrap();
            }
        }
    });
}

#[test]
fn an_ingress_qdisc_is_not_replaced() {
    in_namespace(|| {
        run("tc qdisc add dev lo ingress");
        let before = state();
        let refusal = clsact().err().unwrap().to_string();
        assert!(refusal.contains("\"ingress\"") && refusal.contains("tcx"), "{refusal}");
        assert_eq!(state(), before);
        marker(&[("attach", text("auto"))]).expect("tcx does not mind");
    });
}

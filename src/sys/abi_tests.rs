//! That the structs are those of bpf/abi.h.

use super::*;
use std::fmt::Write as _;
use std::mem::{offset_of, size_of};
use std::process::Command;

/// A C file that does not compile unless everything is as this file says.
fn assertions() -> String {
    let mut text =
        String::from("#include <stddef.h>\n#include <linux/bpf.h>\n#include \"abi.h\"\n");
    let mut same = |c: &str, rust: usize| {
        writeln!(text, "_Static_assert(({c}) == {rust}, \"{c}\");").unwrap();
    };
    macro_rules! mirror {
        ($c:literal, $rust:ident { $($field:ident),* }) => {
            same(concat!("sizeof(struct ", $c, ")"), size_of::<$rust>());
            $(same(
                concat!("offsetof(struct ", $c, ", ", stringify!($field), ")"),
                offset_of!($rust, $field),
            );)*
        };
    }
    mirror!("flow_key", FlowKey { src, dst, src_port, dst_port, protocol, pad });
    mirror!("flow_value", FlowValue { label, experiment, activity, flags, slot });
    mirror!("settings", Settings { strategy, debug, check_mtu, count_received, slots });
    mirror!(
        "rule",
        Rule {
            address,
            mask,
            local_first,
            local_last,
            remote_first,
            remote_last,
            label,
            experiment,
            activity,
            classes
        }
    );
    mirror!("rules_head", RulesHead { label, experiment, activity, version });
    mirror!(
        "count",
        Count {
            packets,
            octets,
            received_packets,
            received_octets,
            last,
            unmarked_packets,
            unmarked_octets
        }
    );
    same("COUNT_NONE", usize::from(COUNT_NONE));
    same("COUNT_UDP", usize::from(COUNT_UDP));
    same("COUNT_ALL", usize::from(COUNT_ALL));
    same("RULE_SLOTS", RULE_SLOTS as usize);
    same("NO_SLOT", NO_SLOT as usize);
    same("MAX_RULES", MAX_RULES);
    for (name, value) in [("TCP", RULE_TCP), ("UDP", RULE_UDP), ("OTHER", RULE_OTHER)] {
        same(&format!("RULE_{name}"), usize::from(value));
    }
    mirror!("captured", Captured { len, gso_size, data });
    mirror!("socket_holder", SocketHolder { cgroup, inode, pid, command });
    mirror!(
        "connection",
        ConnectionReport {
            time,
            cookie,
            cgroup,
            local,
            remote,
            local_port,
            remote_port,
            uid,
            pid,
            change,
            passive,
            pad,
            command,
            interface,
            pad_too
        }
    );
    mirror!("port_ranges", PortRanges { local_first, local_last, remote_first, remote_last });
    mirror!("connection_filter", ConnectionFilter { count, no_loopback, groups, pad, ranges });
    mirror!("group", Group { parent, name });
    mirror!("tcp_sample", TcpSample { key, cookie, congestion, info });
    mirror!(
        "__sk_buff",
        SkBuff {
            mark,
            priority,
            ingress_ifindex,
            ifindex,
            cb,
            tstamp,
            wire_len,
            gso_segs,
            gso_size
        }
    );
    same("CAPTURED_DATA", CAPTURED_DATA);
    same("FLOW_NO_ROOM", usize::from(FLOW_NO_ROOM));
    same("PORT_RANGES", PORT_RANGES);
    same("CONNECTION_OPENED", usize::from(CONNECTION_OPENED));
    same("CONNECTION_ESTABLISHED", usize::from(CONNECTION_ESTABLISHED));
    same("CONNECTION_CLOSED", usize::from(CONNECTION_CLOSED));
    same("STRATEGY_LABEL", Strategy::Label as usize);
    same("STRATEGY_HOP_BY_HOP", Strategy::HopByHop as usize);
    same("STRATEGY_DESTINATION", Strategy::Destination as usize);
    same("STRATEGY_HOP_BY_HOP_DESTINATION", Strategy::HopByHopDestination as usize);
    let reasons = [
        ("FRAGMENT", "fragments"),
        ("HOP_BY_HOP", "a hop-by-hop header"),
        ("EXTENSION", "an extension header"),
        ("MTU", "the interface's MTU"),
        ("PATH_MTU", "the path's MTU"),
        ("LENGTH", "jumbograms"),
        ("VLAN", "VLAN"),
        ("GSO", "GSO"),
        ("KERNEL", "memory"),
    ];
    for (at, (name, word)) in reasons.into_iter().enumerate() {
        assert!(UNMARKED_REASONS[at].contains(word), "{name}: {}", UNMARKED_REASONS[at]);
        assert_eq!(UNMARKED_LABELS[at], name.to_lowercase());
        same(&format!("UNMARKED_{name}"), at);
    }
    same("UNMARKED_REASONS", UNMARKED_REASONS.len());
    text
}

#[test]
fn mirrors_abi_h() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mirror.c");
    std::fs::write(&file, assertions()).unwrap();
    let clang = std::env::var_os("CLANG").unwrap_or("clang".into());
    let here = env!("CARGO_MANIFEST_DIR");
    let output = Command::new(clang)
        .args(["-fsyntax-only", "-std=gnu11", "-I"])
        .arg(format!("{here}/bpf"))
        .arg(&file)
        .output()
        .expect("clang, which built the programs, runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn strategies_have_the_names_of_the_configuration() {
    assert_eq!(Strategy::of_name("hopByHop"), Some(Strategy::HopByHop));
    assert_eq!(Strategy::of_name("flowLabel"), None, "an alias, which the configuration resolves");
    assert!(!Strategy::Label.adds_header());
}

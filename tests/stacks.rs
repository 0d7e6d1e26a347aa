//! Packets that pass stacks of interfaces which not every kernel has (VLAN devices,
//! bonds, ipvlan): a test binary of its own, which `make stacks-test` runs in virtual
//! machines. Root.

// A test that cannot go on ends.
#![allow(clippy::unwrap_used)]
#[allow(dead_code, unused_imports)] // it is for the other test binaries, too
mod common;
#[path = "netns/passing.rs"]
mod passing;
#[allow(dead_code)] // the same
#[path = "netns/rig.rs"]
mod rig;

use serde_json::json;

use common::{skip_unless_root, Namespace, Pair, DEVICE, HERE, THERE};
use passing::{free_device, passes_two};
use rig::STRATEGIES;

const DISCOVER: &str = r#"{ "targetInterfaces": [], "discoverInterfaces": true }"#;

/// Makes a device and gives it the host's address and a public one.
fn stack(host: &Namespace, link: &str, name: &str, address: &str) {
    host.ip(&format!("link add {link}"));
    host.ip(&format!("link set {name} up"));
    host.ip(&format!("-6 address add {address}/64 dev {name} nodad"));
    host.ip(&format!("-6 address add 2001:db8:1::1/64 dev {name} nodad"));
}

/// The far end of a VLAN on that device.
fn far_vlan(pair: &Pair) {
    pair.there.ip(&format!("-6 address del {THERE}/64 dev {DEVICE}"));
    let link = format!("link {DEVICE} name far.5 type vlan id 5");
    stack(&pair.there, &link, "far.5", THERE);
}

/// Puts the near device into a bond.
fn bond(pair: &Pair) {
    pair.here.ip(&format!("link set {DEVICE} down"));
    pair.here.ip("link add bond0 type bond mode active-backup miimon 10");
    pair.here.ip(&format!("link set {DEVICE} master bond0"));
    pair.here.ip(&format!("link set {DEVICE} up"));
    pair.here.ip("link set bond0 up");
}

#[test]
fn a_packet_that_passes_a_vlan_device_and_its_parent_is_marked_once() {
    if skip_unless_root() {
        return;
    }
    for strategy in STRATEGIES {
        for inner in ["", " reorder_hdr off"] {
            let pair = Pair::new();
            free_device(&pair);
            far_vlan(&pair);
            let link = format!("link {DEVICE} name near.5 type vlan id 5{inner}");
            stack(&pair.here, &link, "near.5", HERE);
            pair.here.ip(&format!("-6 address add 2001:db8:2::1/64 dev {DEVICE} nodad"));
            let marker = serde_json::from_str(DISCOVER).expect("JSON");
            passes_two(pair, strategy, marker, &["near.5", DEVICE]);
        }
    }
}

#[test]
fn a_packet_that_passes_a_bond_is_marked_once() {
    if skip_unless_root() {
        return;
    }
    for strategy in STRATEGIES {
        for (marker, marked) in [
            (serde_json::from_str(DISCOVER).expect("JSON"), &["bond0"][..]),
            (json!({ "targetInterfaces": ["bond0", "veth*"] }), &["bond0", DEVICE]),
        ] {
            let pair = Pair::new();
            free_device(&pair);
            bond(&pair);
            pair.here.ip(&format!("-6 address add {HERE}/64 dev bond0 nodad"));
            pair.here.ip("-6 address add 2001:db8:2::1/64 dev bond0 nodad");
            passes_two(pair, strategy, marker, marked);
        }
    }
}

#[test]
fn a_packet_of_a_vlan_on_a_bond_is_marked_once() {
    if skip_unless_root() {
        return;
    }
    for strategy in STRATEGIES {
        for (marker, marked) in [
            (serde_json::from_str(DISCOVER).expect("JSON"), &["bond0.5"][..]),
            (json!({ "targetInterfaces": ["*", "!lo"] }), &["bond0", "bond0.5", DEVICE]),
        ] {
            let pair = Pair::new();
            free_device(&pair);
            far_vlan(&pair);
            bond(&pair);
            stack(&pair.here, "link bond0 name bond0.5 type vlan id 5", "bond0.5", HERE);
            passes_two(pair, strategy, marker, marked);
        }
    }
}

#[test]
fn a_packet_that_passes_an_ipvlan_device_and_its_parent_is_marked_once() {
    if skip_unless_root() {
        return;
    }
    for strategy in STRATEGIES {
        let pair = Pair::new();
        free_device(&pair);
        let link = format!("link {DEVICE} name upper0 type ipvlan mode l2");
        stack(&pair.here, &link, "upper0", HERE);
        pair.here.ip(&format!("-6 address add 2001:db8:2::1/64 dev {DEVICE} nodad"));
        let marker = serde_json::from_str(DISCOVER).expect("JSON");
        passes_two(pair, strategy, marker, &["upper0", DEVICE]);
    }
}

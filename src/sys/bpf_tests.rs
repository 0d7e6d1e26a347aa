//! The layer over libbpf against the kernel. Root.

use std::process::Command;

use super::abi::{FlowKey, FlowValue, Settings, SkBuff, UNMARKED_REASONS};
use super::bpf::{Object, OpenObject, MARKER};
use super::probe::{for_headers, has_check_mtu, lacks_for_headers};

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIP: needs root for bpf(2)");
    }
    root
}

fn open() -> OpenObject {
    OpenObject::from_memory("marker", &MARKER.unpack().unwrap()).unwrap()
}

fn load() -> Object {
    let mut object = open();
    object.set_max_entries("flows", 3).unwrap();
    object.load().unwrap()
}

/// Compiles tests/bpf/NAME.bpf.c.
fn compiled(name: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let object = dir.path().join("object");
    let output = Command::new(std::env::var_os("CLANG").unwrap_or("clang".into()))
        .args(["-target", "bpf", "-mcpu=v2", "-O2", "-g", "-c", "-o"])
        .arg(&object)
        .arg(format!("{}/tests/bpf/{name}.bpf.c", env!("CARGO_MANIFEST_DIR")))
        // Where Debian has asm/types.h.
        .arg(format!("-idirafter/usr/include/{}-linux-gnu", std::env::consts::ARCH))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(object).unwrap()
}

/// An ARP request, which is nobody's flow.
fn arp() -> Vec<u8> {
    let mut packet = vec![0xff; 12];
    packet.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    packet.resize(60, 0);
    packet
}

#[test]
fn the_object_is_what_the_marker_expects() {
    let mut object = open();
    object.set_rodata(".rodata.settings", &Settings::default()).unwrap();
    let refusal = object.set_rodata(".rodata.settings", &0_u32).unwrap_err().to_string();
    assert!(refusal.contains("has 8 octets instead of 4"), "{refusal}");
    let refusal = object.set_rodata(".rodata.nothing", &0_u64).unwrap_err().to_string();
    assert!(refusal.contains("no section"), "{refusal}");
    object.set_max_entries("nothing", 1).unwrap_err();
    let refusal = OpenObject::from_memory("rubbish", b"rubbish").unwrap_err().to_string();
    assert!(refusal.contains("cannot read the eBPF object \"rubbish\""), "{refusal}");
    assert!(super::version::libbpf().is_some_and(|(major, _)| major == 1));
}

#[test]
fn maps_are_of_their_types_and_sizes() {
    if !is_root() {
        return;
    }
    let object = load();
    let refusal = object.map::<u32, FlowValue>("flows").unwrap_err().to_string();
    assert!(refusal.contains("keys of 40"), "{refusal}");
    object.map::<FlowKey, FlowValue>("nothing").unwrap_err();
    let flows = object.map::<FlowKey, FlowValue>("flows").unwrap();
    // It outlives the object.
    drop(object);
    let key = |port: u8| FlowKey { src_port: [0, port], ..FlowKey::default() };
    let value = FlowValue { label: 0xD0143, experiment: 2, activity: 16, flags: 0, slot: u32::MAX };
    for port in 0..3 {
        flows.update(&key(port), &value).unwrap();
    }
    let full = flows.update(&key(3), &value).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::E2BIG), "nothing is evicted");
    assert_eq!(flows.count().unwrap(), 3);
    assert_eq!(flows.lookup(&key(1)).unwrap(), value);
    flows.delete(&key(1)).unwrap();
    let missing = flows.delete(&key(1)).unwrap_err();
    assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
    assert_eq!(flows.lookup(&key(1)).unwrap_err().raw_os_error(), Some(libc::ENOENT));
}

#[test]
fn programs_run_on_a_packet() {
    if !is_root() {
        return;
    }
    let object = load();
    let program = object.program("marker_eth").unwrap();
    let packet = arp();
    let mut context = SkBuff { mark: 5, priority: 7, ..SkBuff::default() };
    let run = program.test_run(&packet, Some(&mut context), 1).unwrap();
    assert_eq!((run.verdict, &run.packet), (-1, &packet), "TC_ACT_UNSPEC");
    assert_eq!((context.mark, context.priority), (5, 7));
    let run = program.test_run(&packet, None, 1000).unwrap();
    assert!(run.duration.as_micros() < 1000, "{run:?}");
    let sums = object.per_cpu_array("unmarked").unwrap().sums().unwrap();
    assert_eq!(sums, [0; UNMARKED_REASONS.len()]);
    let refusal = program.test_run(&[], None, 1).unwrap_err().to_string();
    assert!(refusal.contains("cannot run \"marker_eth\": Invalid argument"), "{refusal}");
}

#[test]
fn programs_are_left_out() {
    if !is_root() {
        return;
    }
    let mut object = open();
    object.retain_programs(|name| name == "marker_ip").unwrap();
    let object = object.load().unwrap();
    assert_eq!(object.program("marker_ip").unwrap().name(), "marker_ip");
    object.program("marker_eth").unwrap_err();
}

/// The verifier's reason, in one line.
#[test]
fn a_refused_program_says_why() {
    if !is_root() {
        return;
    }
    let object = OpenObject::from_memory("refused", &compiled("refused")).unwrap();
    let refusal = object.load().unwrap_err().to_string();
    assert!(refusal.starts_with("cannot load the eBPF programs: "), "{refusal}");
    assert!(refusal.contains("(os error 13)") && refusal.contains("refused"), "{refusal}");
    assert!(
        refusal.contains("invalid access to packet") || refusal.contains("outside of the packet"),
        "{refusal}"
    );
    assert_eq!(refusal.lines().count(), 1, "{refusal}");
}

#[test]
fn the_kernel_is_asked_for_check_mtu() {
    if !is_root() {
        return;
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    // Distributions bring it to older kernels too.
    assert!(has_check_mtu() || version < (5, 12), "{release}");
}

#[test]
fn the_kernel_is_asked_for_what_headers_need() {
    if !is_root() {
        return;
    }
    // All kernels that CI runs have all of it; none is taken for missing.
    assert_eq!(lacks_for_headers(), [""; 0]);
    assert!(for_headers().iter().all(|feature| feature.there));
}

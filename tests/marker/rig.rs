//! The marker's programs loaded but not attached, to be run on single packets.

use std::cell::RefCell;
use std::process::Command;

use glowd::entropy::EntropyKey;
use glowd::sys::abi::{
    Count, FlowKey, FlowValue, Rule, RulesHead, Settings, SkBuff, Strategy, COUNT_ALL, RULE_SLOTS,
};
use glowd::sys::bpf::{possible_cpus, Map, Object, OpenObject, PerCpuArray, Run, MARKER};
use glowd::sys::probe::has_check_mtu;
use nix::sched::{unshare, CloneFlags};

/// What every program of the marker returns: no opinion, the next filter decides.
pub(crate) const TC_ACT_UNSPEC: i32 = -1;

/// How many slots there are, those of rules included.
pub(crate) const SLOTS: u32 = RULE_SLOTS + 4;

pub(crate) fn cpus() -> u32 {
    u32::try_from(possible_cpus().unwrap()).unwrap()
}

/// The programs with one strategy, their maps, and an interface of some MTU.
pub(crate) struct Rig {
    pub(crate) strategy: Strategy,
    object: Object,
    flows: Map<FlowKey, FlowValue>,
    counts: Map<u32, Count>,
    rules: Map<u32, Rule>,
    rules_head: Map<u32, RulesHead>,
    unmarked: PerCpuArray,
    counted: RefCell<Vec<u64>>,
}

impl Rig {
    /// On the loopback interface, whose MTU is 65536.
    pub(crate) fn new(strategy: Strategy) -> Self {
        Self::counting(strategy, COUNT_ALL)
    }

    /// One that counts those of the packets that arrive: `COUNT_*`.
    pub(crate) fn counting(strategy: Strategy, count_received: u8) -> Self {
        let mut object = OpenObject::from_memory("marker", &MARKER.unpack().unwrap()).unwrap();
        let settings = Settings {
            strategy: strategy as u8,
            check_mtu: u8::from(has_check_mtu()),
            count_received,
            slots: SLOTS,
            ..Settings::default()
        };
        object.set_rodata(".rodata.settings", &settings).unwrap();
        let key = EntropyKey::of_this_boot().halves();
        object.set_rodata(".rodata.entropy", &key).unwrap();
        object.set_max_entries("flows", 100).unwrap();
        object.set_max_entries("counts", SLOTS * cpus()).unwrap();
        let object = object.load().unwrap();
        Rig {
            strategy,
            flows: object.map("flows").unwrap(),
            counts: object.map("counts").unwrap(),
            rules: object.map("rules").unwrap(),
            rules_head: object.map(".data.rules").unwrap(),
            unmarked: object.per_cpu_array("unmarked").unwrap(),
            counted: RefCell::default(),
            object,
        }
    }

    /// On an interface of that MTU: the loopback of a network namespace of this
    /// thread's own, which is the interface that a test run takes.
    pub(crate) fn with_mtu(strategy: Strategy, mtu: usize) -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (are you root?)");
        let mtu = mtu.to_string();
        let ip = Command::new("ip").args(["link", "set", "lo", "mtu", &mtu, "up"]).status();
        assert!(ip.expect("ip of iproute2").success());
        Self::new(strategy)
    }

    pub(crate) fn open(&self, key: FlowKey, value: FlowValue) {
        self.flows.update(&key, &value).unwrap();
    }

    pub(crate) fn flow(&self, key: &FlowKey) -> Option<FlowValue> {
        self.flows.lookup(key).ok()
    }

    /// Sets the rules from that place of the map on.
    pub(crate) fn set_rules(&self, first: usize, rules: &[Rule]) {
        for (place, rule) in (first..).zip(rules) {
            self.rules.update(&u32::try_from(place).unwrap(), rule).unwrap();
        }
    }

    pub(crate) fn set_rules_head(&self, head: RulesHead) {
        self.rules_head.update(&0, &head).unwrap();
    }

    /// What all CPUs have counted in a slot.
    pub(crate) fn count(&self, slot: u32) -> Count {
        (0..cpus()).fold(Count::default(), |sum, cpu| {
            let one = self.counts.lookup(&(cpu * SLOTS + slot)).unwrap();
            Count {
                packets: sum.packets + one.packets,
                octets: sum.octets + one.octets,
                received_packets: sum.received_packets + one.received_packets,
                received_octets: sum.received_octets + one.received_octets,
                last: sum.last.max(one.last),
                unmarked_packets: sum.unmarked_packets + one.unmarked_packets,
                unmarked_octets: sum.unmarked_octets + one.unmarked_octets,
            }
        })
    }

    /// Has every CPU begin with that in a slot.
    pub(crate) fn set_count(&self, slot: u32, count: Count) {
        (0..cpus()).for_each(|cpu| self.counts.update(&(cpu * SLOTS + slot), &count).unwrap());
    }

    /// A frame that leaves.
    pub(crate) fn egress(&self, frame: &[u8]) -> Run {
        self.run("marker_eth", frame, None)
    }

    /// A frame that leaves and still has to be cut into segments.
    pub(crate) fn egress_gso(&self, frame: &[u8], gso_size: u32) -> Run {
        let mut context = SkBuff::default();
        (context.gso_size, context.gso_segs) = (gso_size, 2);
        self.run("marker_eth", frame, Some(&mut context))
    }

    /// A frame that arrives.
    pub(crate) fn ingress(&self, frame: &[u8]) -> Run {
        self.run("room_eth", frame, None)
    }

    fn run(&self, program: &str, frame: &[u8], context: Option<&mut SkBuff>) -> Run {
        self.object.program(program).unwrap().test_run(frame, context, 1).unwrap()
    }

    /// What was counted as unmarked since the last call, by the reasons of
    /// bpf/abi.h without their prefix.
    pub(crate) fn take_unmarked(&self) -> Vec<(String, u64)> {
        let now = self.unmarked.sums().unwrap();
        let mut before = self.counted.replace(now.clone());
        before.resize(now.len(), 0);
        let since = now.into_iter().zip(before).map(|(now, before)| now - before);
        reasons().into_iter().zip(since).filter(|(_, count)| *count > 0).collect()
    }
}

fn reasons() -> Vec<String> {
    let header = include_str!("../../bpf/abi.h");
    let (_, list) = header.split_once("enum unmarked_reason {").unwrap();
    let (list, _) = list.split_once('}').unwrap();
    let names = list.lines().filter_map(|line| line.trim().strip_prefix("UNMARKED_"));
    names.map(|name| name.split(',').next().unwrap().to_owned()).collect()
}

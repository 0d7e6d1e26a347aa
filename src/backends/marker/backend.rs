//! The marker at work: loads the programs, attaches them, and keeps the map of
//! flows as the dispatcher says.
//!
//! Built on the main thread, run on its own. Owns the programs, their maps and what
//! is attached.

use std::path::Path;

use log::{debug, error, info, warn};

use super::attach::{find_interfaces, Attachment, Way};
use super::tag::{self, Newest};
use crate::backends::Backend;
use crate::config::Section;
use crate::dispatcher::{Event, Queue};
use crate::error::{At, Class, Error, Result};
use crate::flow::Flow;
use crate::log::limit::Limit;
use crate::net::interfaces::Interface;
use crate::net::netlink::Socket;
use crate::net::tc::Hook;
use crate::part::Context;
use crate::sys::abi::{FlowKey, FlowValue, Settings, Strategy, UNMARKED_REASONS};
use crate::sys::bpf::{self, Map, Object, OpenObject, PerCpuArray};
use crate::warn_limited;

pub(super) struct Marker {
    // Detached before the maps go.
    _attachments: Vec<Attachment>,
    pub(super) flows: Map<FlowKey, FlowValue>,
    unmarked: PerCpuArray,
    pub(super) default: Option<DefaultFlow>,
    /// How many entries map `flows` has room for.
    capacity: u32,
    /// How many entries map `flows` has.
    pub(super) entries: usize,
}

/// What packets of no flow carry, with `matchAll`.
pub(super) struct DefaultFlow {
    pub(super) map: Map<u32, FlowValue>,
    newest: Newest,
}

pub(super) fn build(section: &Section, context: &Context) -> Result<Box<dyn Backend>> {
    Ok(Box::new(Marker::new(section, context)?))
}

impl Marker {
    pub(super) fn new(section: &Section, context: &Context) -> Result<Self> {
        let name = section.text("markingStrategy");
        let strategy = Strategy::of_name(name)
            .ok_or_else(|| Error::internal(format!("there is no strategy {name:?}")))?;
        let way = match section.text("attach") {
            "tcx" => Way::Tcx,
            "clsact" => Way::Clsact,
            _ => Way::Auto,
        };
        // Cheap, and the likeliest mistake, so first.
        let targets = find_interfaces(&mut Socket::route()?, section.list("targetInterfaces"))?;
        let framings = targets.iter().map(framing).collect::<Result<Vec<_>>>()?;

        let settings = Settings {
            strategy: strategy as u8,
            match_all: section.bool("matchAll").into(),
            debug: section.bool("debugMode").into(),
            // Headers only make packets exceed it.
            check_mtu: (strategy.adds_header() && bpf::has_check_mtu()).into(),
        };
        // All three on every kernel that knows them: some newer ones load the programs
        // without CAP_PERFMON, and they take twice the time for each packet.
        if let Some(lacking) = bpf::lacking_capabilities() {
            return Err(Error::new(Class::Os, lacking).at("cannot load the eBPF programs"));
        }
        let object = load(section.text("programPath"), settings, &framings, context.max_flows)?;
        if strategy.adds_header() && settings.check_mtu == 0 {
            set_mtus(&object, &targets)?;
        }
        let mut attachments = Vec::new();
        for (interface, framing) in targets.iter().zip(&framings) {
            let mut programs = vec![(Hook::Egress, object.program(framing.marker())?)];
            if strategy.adds_header() {
                programs.push((Hook::Ingress, object.program(framing.room())?));
            }
            let remove_qdisc = section.bool("removeQdisc");
            let attachment = Attachment::new(interface, &programs, way, remove_qdisc)
                .at(interface.name.clone())?;
            info!("{}: marking {}, attached by {}", interface.name, name, attachment.way());
            if strategy.adds_header() {
                for limitation in header_limitations(interface) {
                    warn!("{}: {limitation}", interface.name);
                }
            }
            attachments.push(attachment);
        }
        let default = if section.bool("matchAll") {
            Some(DefaultFlow { map: object.map("default_flow")?, newest: Newest::default() })
        } else {
            None
        };
        Ok(Marker {
            _attachments: attachments,
            flows: object.map("flows")?,
            unmarked: object.per_cpu_array("unmarked")?,
            default,
            capacity: context.max_flows,
            entries: 0,
        })
    }

    /// Does what the events say, in their order.
    pub(super) fn apply(&mut self, batch: &[Event]) {
        for (at, event) in batch.iter().enumerate() {
            match event {
                Event::Start(flow) => self.open(flow),
                Event::End(flow, _) => {
                    // A flow with a new tag: its entry is overwritten next, and no packet
                    // goes unmarked in between.
                    let next = batch.get(at + 1);
                    if matches!(next, Some(Event::Start(next)) if next.id == flow.id) {
                        self.entries = self.entries.saturating_sub(1);
                    } else {
                        self.close(flow);
                    }
                }
                Event::Report => {
                    info!("backends.marker: {} flows are in the map", self.entries);
                    self.report();
                }
                // It has no key that could change while it runs.
                Event::Reload(_) => {}
            }
        }
    }

    fn open(&mut self, flow: &Flow) {
        let Some(key) = tag::key(&flow.id) else {
            debug!("backends.marker: {}: not marked, since it is IPv4", flow.id);
            return;
        };
        match self.flows.update(&key, &tag::value(flow)) {
            Ok(()) => self.entries += 1,
            Err(cause) => {
                // The map has room for maxFlows flows, so the kernel is in trouble.
                static LIMIT: Limit = Limit::new();
                if LIMIT.pass().is_some() {
                    error!("backends.marker: {}: cannot mark: {cause}", flow.id);
                }
            }
        }
        if let Some(default) = &mut self.default {
            default.newest.opened(flow);
            default.publish();
        }
    }

    fn close(&mut self, flow: &Flow) {
        let Some(key) = tag::key(&flow.id) else {
            return;
        };
        match self.flows.delete(&key) {
            Ok(()) => self.entries = self.entries.saturating_sub(1),
            Err(cause) => {
                warn_limited!("backends.marker: {}: cannot stop marking: {cause}", flow.id);
            }
        }
        if let Some(default) = &mut self.default {
            default.newest.closed(&flow.id);
            default.publish();
        }
    }

    /// Logs how many packets were left unmarked, if any were.
    fn report(&self) {
        let counters = match self.unmarked.sums() {
            Ok(counters) => counters,
            Err(cause) => {
                error!("backends.marker: cannot read the counters: {cause}");
                return;
            }
        };
        for (count, reason) in counters.iter().zip(UNMARKED_REASONS) {
            if *count > 0 {
                info!("backends.marker: {count} packets went unmarked: they {reason}");
            }
        }
    }
}

impl Backend for Marker {
    fn capacity(&self) -> Option<u32> {
        Some(self.capacity)
    }

    fn run(mut self: Box<Self>, events: Queue) -> Result<()> {
        while let Some(batch) = events.recv() {
            self.apply(&batch);
        }
        self.report();
        Ok(())
    }
}

/// What an interface's packets begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Ethernet,
    Ip,
}

impl Framing {
    fn marker(self) -> &'static str {
        if self == Framing::Ethernet {
            "marker_eth"
        } else {
            "marker_ip"
        }
    }

    fn room(self) -> &'static str {
        if self == Framing::Ethernet {
            "room_eth"
        } else {
            "room_ip"
        }
    }
}

/// By the interface's ARPHRD_*.
fn framing(interface: &Interface) -> Result<Framing> {
    match interface.arphrd {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Ok(Framing::Ethernet),
        libc::ARPHRD_NONE
        | libc::ARPHRD_PPP
        | libc::ARPHRD_TUNNEL
        | libc::ARPHRD_TUNNEL6
        | libc::ARPHRD_SIT
        | libc::ARPHRD_IPGRE
        | ARPHRD_IP6GRE
        | ARPHRD_RAWIP => Ok(Framing::Ip),
        other => Err(Error::config(format!(
            "glowd does not know what the packets of this interface begin with (link type {other})"
        ))
        .at(interface.name.clone())),
    }
}

/// What keeps packets of an interface from growing a header, for the log.
pub(super) fn header_limitations(interface: &Interface) -> Vec<String> {
    let mut limitations = Vec::new();
    // BIG TCP (Linux 5.19): larger packets have a hop-by-hop header of the kernel's.
    if interface.gso_max_size > GSO_LEGACY_MAX_SIZE {
        limitations.push(format!(
            "gso_max_size is {}: bulk packets of TCP over {GSO_LEGACY_MAX_SIZE} octets have a \
             hop-by-hop header of the kernel's own and go unmarked; to have them marked: ip link \
             set dev {} gso_max_size {GSO_LEGACY_MAX_SIZE}",
            interface.gso_max_size, interface.name
        ));
    }
    if matches!(interface.arphrd, libc::ARPHRD_IPGRE | ARPHRD_IP6GRE) {
        // What arrives begins with the outer header there.
        limitations.push(
            "the packets that arrive by a GRE tunnel cannot be told to leave room for a header, so \
             full-size segments of TCP go unmarked"
                .into(),
        );
    }
    limitations
}

/// The largest that has a length in the IPv6 header, as the kernel counts.
const GSO_LEGACY_MAX_SIZE: u32 = 65_536;

// These two libc has no names for.
const ARPHRD_RAWIP: u16 = 519;
pub(super) const ARPHRD_IP6GRE: u16 = 823;

fn load(path: &str, settings: Settings, framings: &[Framing], max_flows: u32) -> Result<Object> {
    let mut object = if path.is_empty() {
        OpenObject::from_memory("marker", bpf::MARKER)?
    } else {
        OpenObject::from_file(Path::new(path)).at("programPath")?
    };
    object.set_rodata(".rodata.settings", &settings)?;
    object.set_max_entries("flows", max_flows)?;
    // What no interface needs is not loaded: it would only cost time.
    let room = settings.strategy != Strategy::Label as u8;
    object.retain_programs(|name| {
        framings.iter().any(|f| name == f.marker() || (room && name == f.room()))
    })?;
    object.load()
}

/// Tells the programs the MTUs, on a kernel that does not (before 5.12).
fn set_mtus(object: &Object, targets: &[Interface]) -> Result<()> {
    let mtus: Map<u32, u32> = object.map("mtus")?;
    for interface in targets {
        mtus.update(&interface.index, &interface.mtu)
            .map_err(|error| Error::os("cannot set the MTU", error).at(interface.name.clone()))?;
    }
    Ok(())
}

impl DefaultFlow {
    fn publish(&self) {
        if let Err(cause) = self.map.update(&0, &self.newest.value()) {
            warn_limited!("backends.marker: cannot set the tag of packets of no flow: {cause}");
        }
    }
}

//! The eBPF programs of the marker, loaded: which of them an interface needs, and what
//! they have to know of it.

use std::path::Path;
use std::sync::Arc;

use log::{info, warn};

use super::attach::{Attachment, Way};
use super::meter::{self, Counts};
use crate::config::Section;
use crate::entropy::EntropyKey;
use crate::error::{At, Class, Error, Result};
use crate::net::interfaces::Interface;
use crate::net::tc::Hook;
use crate::part::Context;
use crate::sys::abi::{Settings, Strategy, COUNT_ALL, COUNT_NONE, COUNT_UDP};
use crate::sys::bpf::{self, Map, Object, OpenObject};
use crate::sys::probe;

/// The loaded programs and how they are attached.
#[derive(Debug)]
pub(super) struct Programs {
    object: Object,
    strategy: Strategy,
    /// The strategy, as the configuration names it.
    name: String,
    way: Way,
    remove_qdisc: bool,
    /// `COUNT_*`.
    count_received: u8,
    /// How many slots the counters have, and on how many CPUs.
    slots: u32,
    cpus: u32,
    /// Interfaces' MTUs, on a kernel that does not tell the programs (before 5.12) and
    /// with a strategy that asks.
    mtus: Option<Map<u32, u32>>,
}

impl Programs {
    /// Loads all that an interface of any kind may need.
    ///
    /// # Errors
    /// The kernel refuses, or the programs are not ours.
    pub(super) fn load(section: &Section, context: &Context) -> Result<Self> {
        let name = section.text("markingStrategy");
        let strategy = Strategy::of_name(name)
            .ok_or_else(|| Error::internal(format!("there is no strategy {name:?}")))?;
        let settings = Settings {
            strategy: strategy as u8,
            debug: section.bool("debugMode").into(),
            // Headers only make packets exceed it.
            check_mtu: (strategy.adds_header() && probe::has_check_mtu()).into(),
            count_received: COUNT_NONE,
            slots: 0,
        };
        let (slots, cpus) =
            if probe::can_count() { meter::size(context.max_flows)? } else { (0, 0) };
        let count_received = match section.text("countReceived") {
            _ if slots == 0 => COUNT_NONE,
            "off" => COUNT_NONE,
            "udp" => COUNT_UDP,
            "all" => COUNT_ALL,
            // What an enricher knows of TCP is better, and costs TCP nothing here.
            _ if context.enriched => COUNT_UDP,
            _ => COUNT_ALL,
        };
        let settings = Settings { slots, count_received, ..settings };
        // All three on every kernel that knows them: some newer ones load the programs
        // without CAP_PERFMON, and they take twice the time for each packet.
        if let Some(lacking) = bpf::lacking_capabilities() {
            return Err(Error::new(Class::Os, lacking).at("cannot load the eBPF programs"));
        }
        let object = load(section.text("programPath"), settings, context.max_flows, cpus)?;
        let mtus = (strategy.adds_header() && settings.check_mtu == 0)
            .then(|| object.map("mtus"))
            .transpose()?;
        let way = match section.text("attach") {
            "tcx" => Way::Tcx,
            "clsact" => Way::Clsact,
            _ => Way::Auto,
        };
        let (name, remove_qdisc) = (name.to_owned(), section.bool("removeQdisc"));
        Ok(Programs {
            object,
            strategy,
            name,
            way,
            remove_qdisc,
            count_received,
            slots,
            cpus,
            mtus,
        })
    }

    /// The counters, if the kernel has what they take.
    ///
    /// # Errors
    /// They cannot be mapped.
    pub(super) fn counts(&self) -> Result<Option<Arc<Counts>>> {
        let counts = (self.slots != 0).then(|| Counts::new(&self.object, self.slots, self.cpus));
        Ok(counts.transpose()?.map(Arc::new))
    }

    /// `COUNT_*`: which packets that arrive are counted.
    pub(super) fn count_received(&self) -> u8 {
        self.count_received
    }

    /// The object, for its maps.
    pub(super) fn object(&self) -> &Object {
        &self.object
    }

    /// Behaves from now on as where the kernel does not tell the programs the MTU.
    #[cfg(test)]
    pub(super) fn forget_that_the_kernel_tells(&mut self) {
        self.mtus = Some(self.object.map("mtus").expect("the object has it"));
    }

    /// Attaches to the interface what it needs, and logs that.
    ///
    /// # Errors
    /// Another glowd is at work there, or glowd does not know what its packets begin
    /// with, or the kernel refuses.
    pub(super) fn attach(&self, interface: &Interface) -> Result<Attachment> {
        let framing = Framing::of(interface)?;
        let mut programs = vec![(Hook::Egress, self.object.program(framing.marker())?)];
        if self.strategy.adds_header() || self.count_received != COUNT_NONE {
            programs.push((Hook::Ingress, self.object.program(framing.room())?));
        }
        self.tell_mtu(interface)?;
        let attachment = Attachment::new(interface, &programs, self.way, self.remove_qdisc)
            .at(interface.name.clone())?;
        let counting = match self.count_received {
            COUNT_NONE => "",
            COUNT_UDP => " and counting what arrives by UDP",
            _ => " and counting what arrives",
        };
        let (name, way) = (&interface.name, attachment.way());
        info!("{name}: marking {}{counting}, attached by {way}", self.name);
        if self.strategy.adds_header() {
            for limitation in header_limitations(interface) {
                warn!("{}: {limitation}", interface.name);
            }
        }
        Ok(attachment)
    }

    /// Tells the programs the interface's MTU, if they need to be told.
    ///
    /// # Errors
    /// There are too many interfaces, or the kernel has no memory.
    pub(super) fn tell_mtu(&self, interface: &Interface) -> Result<()> {
        let Some(mtus) = &self.mtus else {
            return Ok(());
        };
        mtus.update(&interface.index, &interface.mtu)
            .map_err(|error| Error::os("cannot set the MTU", error).at(interface.name.clone()))
    }

    /// Makes room for the MTU of another interface.
    pub(super) fn forget_mtu(&self, index: u32) {
        if let Some(mtus) = &self.mtus {
            // It is not there if it could not be set.
            let _ = mtus.delete(&index);
        }
    }
}

fn load(path: &str, settings: Settings, max_flows: u32, cpus: u32) -> Result<Object> {
    let mut object = if path.is_empty() {
        OpenObject::from_memory("marker", &bpf::MARKER.unpack()?)?
    } else {
        OpenObject::from_file(Path::new(path)).at("programPath")?
    };
    object.set_rodata(".rodata.settings", &settings)?;
    object.set_rodata(".rodata.entropy", &EntropyKey::of_this_boot().halves())?;
    object.set_max_entries("flows", max_flows)?;
    if settings.slots == 0 {
        object.clear_map_flags("counts")?;
    }
    object.set_max_entries("counts", (settings.slots * cpus).max(1))?;
    // What the strategy does not need is not loaded: it would only cost time.
    let room = settings.strategy != Strategy::Label as u8;
    let ingress = room || settings.count_received != COUNT_NONE;
    object.retain_programs(|name| {
        Framing::ALL.iter().any(|f| name == f.marker() || (ingress && name == f.room()))
    })?;
    object.load().map_err(|error| {
        // The verifier's words for it would be of registers and offsets.
        let lacking = if room { probe::lacks_for_headers() } else { Vec::new() };
        if lacking.is_empty() {
            return error;
        }
        error.at(format!(
            "the kernel lacks {}, which only the strategy label works without",
            lacking.join(", ")
        ))
    })
}

/// What an interface's packets begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Ethernet,
    Ip,
}

impl Framing {
    const ALL: [Framing; 2] = [Framing::Ethernet, Framing::Ip];

    /// By the interface's ARPHRD_*.
    ///
    /// # Errors
    /// glowd does not know.
    pub(super) fn of(interface: &Interface) -> Result<Self> {
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
                "glowd does not know what the packets of this interface begin with (link type \
                 {other})"
            ))
            .at(interface.name.clone())),
        }
    }

    fn marker(self) -> &'static str {
        match self {
            Framing::Ethernet => "marker_eth",
            Framing::Ip => "marker_ip",
        }
    }

    fn room(self) -> &'static str {
        match self {
            Framing::Ethernet => "room_eth",
            Framing::Ip => "room_ip",
        }
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

//! Traffic control by rtnetlink(7): the clsact qdisc and the filters on its two
//! hooks (tc(8), tc-bpf(8)).
//!
//! Knows nothing of who owns what; every call does one thing.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::netlink::{u32_at, Attributes, Message, Outcome, Request, Socket};
use super::netlink::{F_CREATE, F_EXCLUSIVE};

/// struct tcmsg.
const FIXED: usize = 20;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

/// Where the ingress and the clsact qdisc hang (TC_H_INGRESS, TC_H_CLSACT).
const PARENT: u32 = 0xffff_fff1;
/// Their handle, ffff:.
const HANDLE: u32 = 0xffff_0000;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
/// The program's verdict counts, without an action.
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

/// A hook of a clsact qdisc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets that leave.
    Egress,
    /// Packets that arrive.
    Ingress,
}

impl Hook {
    /// Both.
    pub const BOTH: [Hook; 2] = [Hook::Egress, Hook::Ingress];

    /// TC_H_MIN_EGRESS, TC_H_MIN_INGRESS.
    fn parent(self) -> u32 {
        HANDLE | if self == Hook::Egress { 0xfff3 } else { 0xfff2 }
    }

    /// The word that tc(8) has for it.
    pub fn name(self) -> &'static str {
        if self == Hook::Egress {
            "egress"
        } else {
            "ingress"
        }
    }
}

/// A filter on a hook. One without a handle is the kernel's header of a priority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Where it is.
    pub hook: Hook,
    /// Its number under its priority.
    pub handle: u32,
    /// Smaller ones run first.
    pub priority: u16,
    /// ETH_P_*.
    pub protocol: u16,
    /// "bpf", "flower", ...
    pub kind: String,
    /// A bpf filter's free text, up to 255 octets.
    pub name: String,
}

/// `struct tcmsg`. `info` is a priority and a protocol, in network order.
fn fixed(ifindex: u32, handle: u32, parent: u32, info: u32) -> [u8; FIXED] {
    let mut bytes = [0; FIXED];
    for (at, value) in [(4, ifindex), (8, handle), (12, parent), (16, info)] {
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}

fn info(priority: u16, protocol: u16) -> u32 {
    u32::from(priority) << 16 | u32::from(protocol.to_be())
}

/// The kind of the qdisc at ffff: of that interface: "clsact", "ingress", or None.
///
/// # Errors
/// The kernel refuses.
pub fn qdisc(socket: &mut Socket, ifindex: u32) -> Outcome<Option<String>> {
    let messages = socket.dump(&Request::new(RTM_GETQDISC, 0).fixed(&fixed(ifindex, 0, 0, 0)))?;
    // Older kernels list the qdiscs of all interfaces.
    let here = |message: &&Message| {
        u32_at(&message.payload, 4) == Some(ifindex) && u32_at(&message.payload, 8) == Some(HANDLE)
    };
    let found = messages.iter().find(here);
    Ok(found.and_then(|message| message.attributes(FIXED).find_text(TCA_KIND)))
}

/// Makes a clsact qdisc.
///
/// # Errors
/// EEXIST: there is something at ffff: already. Or the kernel refuses.
pub fn add_clsact(socket: &mut Socket, ifindex: u32) -> Outcome<()> {
    let request = Request::new(RTM_NEWQDISC, F_CREATE | F_EXCLUSIVE)
        .fixed(&fixed(ifindex, HANDLE, PARENT, 0))
        .text(TCA_KIND, "clsact");
    socket.change(&request)
}

/// Deletes the clsact qdisc, with all filters that are on it.
///
/// # Errors
/// There is none, or the kernel refuses.
pub fn delete_clsact(socket: &mut Socket, ifindex: u32) -> Outcome<()> {
    let request = Request::new(RTM_DELQDISC, 0)
        .fixed(&fixed(ifindex, HANDLE, PARENT, 0))
        .text(TCA_KIND, "clsact");
    socket.change(&request)
}

/// The filters on that hook, in the order in which they run; none if there is no
/// qdisc.
///
/// # Errors
/// The kernel refuses.
pub fn filters(socket: &mut Socket, ifindex: u32, hook: Hook) -> Outcome<Vec<Filter>> {
    let request = Request::new(RTM_GETTFILTER, 0).fixed(&fixed(ifindex, 0, hook.parent(), 0));
    let messages = match socket.dump(&request) {
        // 6.x says so where earlier kernels gave an empty answer.
        Err(failure) if failure.errno == Errno::ENOENT => return Ok(Vec::new()),
        other => other?,
    };
    Ok(messages.iter().filter_map(|message| parse(message, ifindex, hook)).collect())
}

/// None: not a filter of that hook, or cut.
fn parse(message: &Message, ifindex: u32, hook: Hook) -> Option<Filter> {
    let field = |at| u32_at(&message.payload, at);
    if message.kind != RTM_NEWTFILTER || field(4)? != ifindex || field(12)? != hook.parent() {
        return None;
    }
    let [priority_high, priority_low, ..] = field(16)?.to_be_bytes();
    let protocol = u16::try_from(field(16)? & 0xffff).ok()?;
    let options = message.attributes(FIXED).find(TCA_OPTIONS).unwrap_or_default();
    Some(Filter {
        hook,
        handle: field(8)?,
        priority: u16::from_be_bytes([priority_high, priority_low]),
        protocol: u16::from_be(protocol),
        kind: message.attributes(FIXED).find_text(TCA_KIND)?,
        name: Attributes(options).find_text(TCA_BPF_NAME).unwrap_or_default(),
    })
}

/// Adds a bpf filter in direct-action mode for all protocols; the kernel chooses
/// its handle. Under a priority it runs before those that are there.
///
/// # Errors
/// EINVAL: the priority belongs to another kind or protocol. Or the kernel
/// refuses.
pub fn add_filter(
    socket: &mut Socket,
    ifindex: u32,
    hook: Hook,
    priority: u16,
    program: BorrowedFd<'_>,
    name: &str,
) -> Outcome<()> {
    let fd = u32::try_from(program.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    let request = Request::new(RTM_NEWTFILTER, F_CREATE | F_EXCLUSIVE)
        .fixed(&fixed(ifindex, 0, hook.parent(), info(priority, ETH_P_ALL)))
        .text(TCA_KIND, "bpf")
        .nest(TCA_OPTIONS, |options| {
            options
                .number(TCA_BPF_FD, fd)
                .text(TCA_BPF_NAME, name)
                .number(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT)
        });
    socket.change(&request)
}

/// ETH_P_ALL.
const ETH_P_ALL: u16 = 3;

/// Deletes exactly that filter.
///
/// # Errors
/// ENOENT: it is not there. Or the kernel refuses.
pub fn delete_filter(socket: &mut Socket, ifindex: u32, filter: &Filter) -> Outcome<()> {
    let Filter { hook, handle, priority, protocol, .. } = *filter;
    // Without a handle the kernel would delete the whole priority.
    if handle == 0 || priority == 0 {
        return Err(Errno::EINVAL.into());
    }
    let request = Request::new(RTM_DELTFILTER, 0)
        .fixed(&fixed(ifindex, handle, hook.parent(), info(priority, protocol)))
        .text(TCA_KIND, &filter.kind);
    socket.change(&request)
}

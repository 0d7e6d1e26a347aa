//! Pairs of virtual Ethernet devices (veth(4)) by rtnetlink(7), with addresses of their
//! own. Runs on the caller's thread and owns nothing.

use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::netlink::{Outcome, Request, Socket, F_CREATE, F_EXCLUSIVE};

const RTM_NEWADDR: u16 = 20;

const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// No duplicate address detection, which would take seconds.
const IFA_F_NODAD: u8 = 0x02;

/// struct ifinfomsg: the flags are set to `flags` where `change` has a bit.
fn link(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (at, value) in [(4, index), (8, flags), (12, change)] {
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}

/// Makes a pair called `names`; the second is put into the network namespace
/// `elsewhere` if there is one. Both are down.
///
/// # Errors
/// EEXIST: there is an interface of such a name. EOPNOTSUPP: the kernel has no veth.
/// Or it refuses.
pub fn add(
    socket: &mut Socket,
    names: [&str; 2],
    elsewhere: Option<BorrowedFd<'_>>,
) -> Outcome<()> {
    let elsewhere = elsewhere.map(|fd| u32::try_from(fd.as_raw_fd()).map_err(|_| Errno::EBADF));
    let elsewhere = elsewhere.transpose()?;
    let peer = |request: Request| {
        let request = request.fixed(&link(0, 0, 0)).text(IFLA_IFNAME, names[1]);
        match elsewhere {
            Some(fd) => request.number(IFLA_NET_NS_FD, fd),
            None => request,
        }
    };
    let request = Request::new(libc::RTM_NEWLINK, F_CREATE | F_EXCLUSIVE)
        .fixed(&link(0, 0, 0))
        .text(IFLA_IFNAME, names[0])
        .nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "veth")
                .nest(IFLA_INFO_DATA, |data| data.nest(VETH_INFO_PEER, peer))
        });
    socket.change(&request)
}

/// Gives an interface a link-local address, at once in use.
///
/// # Errors
/// EACCES: IPv6 is disabled there. Or the kernel refuses.
pub fn add_address(socket: &mut Socket, index: u32, address: Ipv6Addr) -> Outcome<()> {
    // struct ifaddrmsg: family, length of the prefix, flags, scope, index.
    let family = u8::try_from(libc::AF_INET6).unwrap_or_default();
    let mut fixed = [family, 64, IFA_F_NODAD, libc::RT_SCOPE_LINK, 0, 0, 0, 0];
    fixed[4..].copy_from_slice(&index.to_ne_bytes());
    let request = Request::new(RTM_NEWADDR, F_CREATE | F_EXCLUSIVE)
        .fixed(&fixed)
        .attribute(IFA_LOCAL, &address.octets())
        .attribute(IFA_ADDRESS, &address.octets());
    socket.change(&request)
}

/// Sets an interface up.
///
/// # Errors
/// The kernel refuses.
pub fn set_up(socket: &mut Socket, index: u32) -> Outcome<()> {
    let up = u32::try_from(libc::IFF_UP).unwrap_or_default();
    socket.change(&Request::new(libc::RTM_NEWLINK, 0).fixed(&link(index, up, up)))
}

/// Removes an interface; of a pair, both.
///
/// # Errors
/// ENODEV: it is gone. Or the kernel refuses.
pub fn delete(socket: &mut Socket, index: u32) -> Outcome<()> {
    socket.change(&Request::new(libc::RTM_DELLINK, 0).fixed(&link(index, 0, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::interfaces;

    #[test]
    fn a_pair_comes_with_both_ends_and_goes_with_one() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIP: needs root");
            return;
        }
        let mut socket = Socket::route().unwrap();
        let names = ["a", "b"].map(|end| format!("gv{}{end}", std::process::id()));
        let ours = |socket: &mut Socket| {
            let all = interfaces::list(socket).unwrap();
            let named = |name: &String| all.iter().find(|known| known.name == *name).cloned();
            names.iter().filter_map(named).collect::<Vec<_>>()
        };
        add(&mut socket, [&names[0], &names[1]], None).unwrap();
        let made = ours(&mut socket);
        let address = "fe80::6c6f:1".parse().unwrap();
        let used = made.iter().try_for_each(|end| {
            set_up(&mut socket, end.index)?;
            add_address(&mut socket, end.index, address)
        });
        let up = ours(&mut socket);
        delete(&mut socket, made[0].index).unwrap();
        assert!(made.len() == 2 && made.iter().all(|end| end.kind == "veth"), "{made:?}");
        assert_eq!(used, Ok(()));
        assert!(up.iter().all(|end| end.flags & 1 == 1), "{up:?}");
        assert_eq!(ours(&mut socket), []);
        assert_eq!(delete(&mut socket, made[0].index).unwrap_err().errno, Errno::ENODEV);
    }
}

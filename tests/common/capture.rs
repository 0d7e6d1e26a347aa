//! Packet capture inside the test process: an AF_PACKET socket (packet(7)) and a
//! thread that decodes what arrives, in order.

use std::io::IoSliceMut;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{
    getsockopt, recvmsg, setsockopt, socket, sockopt, AddressFamily, ControlMessageOwned, LinkAddr,
    MsgFlags, SockFlag, SockProtocol, SockType,
};
// The first expands to the others.
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};

use super::netns::Namespace;
use super::packet::{decode, Link, Packet};

/// How much of a frame is looked at: all headers, and some data.
const SNAP: usize = 256;
/// In octets, as the kernel counts a packet's memory: 64 MB hold 50 MB of bulk data
/// even if the thread does not run at all.
const BUFFER: usize = 64 << 20;

sockopt_impl!(
    /// Control messages with the VLAN tag that the kernel has taken out of the frame.
    AuxData,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_AUXDATA,
    bool
);
sockopt_impl!(
    /// Packets seen and dropped since the last call.
    Statistics,
    GetOnly,
    libc::SOL_PACKET,
    libc::PACKET_STATISTICS,
    libc::tpacket_stats
);

#[derive(Default)]
struct Arrived {
    packets: Mutex<Vec<Packet>>,
    more: Condvar,
}

/// A running capture of the IPv6 packets that arrive at a device.
pub(crate) struct Capture {
    arrived: Arc<Arrived>,
    socket: Arc<OwnedFd>,
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    pub(crate) fn start(namespace: &Namespace, device: &str) -> Self {
        let (socket, index) = namespace.enter(|| {
            let kind = (AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC);
            let socket = socket(kind.0, kind.1, kind.2, SockProtocol::EthAll).expect("a socket");
            (socket, if_nametoindex(device).expect("the device"))
        });
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).expect("SO_RCVBUFFORCE");
        setsockopt(&socket, AuxData, &true).expect("PACKET_AUXDATA");
        let socket = Arc::new(socket);
        let arrived = Arc::<Arrived>::default();
        let (stop, stopped) = UnixStream::pair().expect("a socket pair");
        let thread = {
            let (socket, arrived) = (socket.clone(), arrived.clone());
            thread::spawn(move || {
                let mut running = true;
                while running {
                    let mut fds = [
                        PollFd::new(socket.as_fd(), PollFlags::POLLIN),
                        PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
                    ];
                    poll(&mut fds, PollTimeout::NONE).expect("poll");
                    // What was queued before the stop is still read.
                    running = fds[1].revents().is_some_and(|events| events.is_empty());
                    read_all(&socket, index as usize, &arrived);
                }
            })
        };
        Capture { arrived, socket, stop: Some(stop), thread: Some(thread) }
    }

    /// How many packets have arrived so far.
    pub(crate) fn count(&self) -> usize {
        self.arrived.packets.lock().expect("no panic").len()
    }

    /// Those of these numbers.
    #[allow(dead_code)] // the demo shows packets while more arrive
    pub(crate) fn packets(&self, numbers: Range<usize>) -> Vec<Packet> {
        self.arrived.packets.lock().expect("no panic")[numbers].to_vec()
    }

    /// Waits until one of the packets from number `from` on is `wanted`, for up to
    /// `patience`.
    pub(crate) fn find(
        &self,
        from: usize,
        patience: Duration,
        wanted: impl Fn(&Packet) -> bool,
    ) -> Option<Packet> {
        let packets = self.arrived.packets.lock().expect("no panic");
        let find = |packets: &[Packet]| packets[from..].iter().find(|p| wanted(p)).cloned();
        let (packets, _) = self
            .arrived
            .more
            .wait_timeout_while(packets, patience, |packets| find(packets).is_none())
            .expect("no panic");
        find(&packets)
    }

    /// Ends the capture; all packets, in order, and none is missing.
    pub(crate) fn finish(mut self) -> Vec<Packet> {
        self.stop = None;
        let thread = self.thread.take().expect("finished once");
        thread.join().expect("the capture's thread");
        let statistics = getsockopt(&self.socket, Statistics).expect("PACKET_STATISTICS");
        assert_eq!(statistics.tp_drops, 0, "the capture itself lost packets");
        std::mem::take(&mut *self.arrived.packets.lock().expect("no panic"))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // Its panic is worth less than the one that brought us here.
            let _ = thread.join();
        }
    }
}

/// Reads the socket until it is empty.
fn read_all(socket: &OwnedFd, index: usize, arrived: &Arrived) {
    let mut buffer = [0; SNAP];
    let mut control = nix::cmsg_space!([u8; 64]);
    loop {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        // MSG_TRUNC: the length is the frame's, not the buffer's.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        let received =
            recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags);
        let (length, vlan) = match received {
            Err(Errno::EAGAIN) => return,
            Err(Errno::EINTR | Errno::ENETDOWN) => continue,
            Err(error) => panic!("recvmsg: {error}"),
            Ok(message) => {
                let from = message.address.expect("the packet's device");
                if from.ifindex() != index || from.pkttype() == libc::PACKET_OUTGOING {
                    continue;
                }
                let vlan = message.cmsgs().expect("control messages").find_map(|c| vlan(&c));
                (message.bytes, vlan)
            }
        };
        let frame = &buffer[..length.min(SNAP)];
        if let Some(packet) = decode(Link::Ethernet, frame, length, vlan) {
            arrived.packets.lock().expect("no panic").push(packet);
            arrived.more.notify_all();
        }
    }
}

/// The tag that the kernel has taken out of the frame, as (TPID, TCI).
fn vlan(message: &ControlMessageOwned) -> Option<(u16, u16)> {
    let ControlMessageOwned::Unknown(message) = message else { return None };
    let header = &message.cmsg_header;
    if (header.cmsg_level, header.cmsg_type) != (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
        return None;
    }
    // struct tpacket_auxdata: status, len, snaplen; mac, net, vlan_tci, vlan_tpid.
    let data = &message.data_bytes;
    let status = u32::from_ne_bytes(data.get(..4)?.try_into().ok()?);
    let half = |at: usize| Some(u16::from_ne_bytes(data.get(at..at + 2)?.try_into().ok()?));
    let tpid_valid = status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
    let tag = (if tpid_valid { half(18)? } else { 0x8100 }, half(16)?);
    (status & libc::TP_STATUS_VLAN_VALID != 0).then_some(tag)
}

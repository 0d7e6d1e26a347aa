//! A STUN server of the tests', which loses, delays, forges and cuts. By RFC 8489,
//! independently of glowd's own code.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::common::{wait_for, Namespace};

/// How a responder answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Not at all.
    Silent,
    /// With what must not be believed.
    Forging,
    /// With an error response.
    Refusing,
    /// With 203.0.113.N or 2001:db8:113::N, N being the last octet of who asks.
    Honest,
}

/// A STUN server of the test's.
pub(crate) struct Responder {
    manner: Arc<Mutex<Manner>>,
    asked: Arc<Mutex<Vec<SocketAddr>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    pub(crate) fn start(host: &Namespace, address: &str, manner: Manner) -> Self {
        let address: SocketAddr = address.parse().expect("an address");
        let another = SocketAddr::new(address.ip(), 0);
        let [socket, other] =
            host.enter(|| [address, another].map(|at| UdpSocket::bind(at).expect("a socket")));
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
        let (manner, asked) = (Arc::new(Mutex::new(manner)), Arc::<Mutex<Vec<_>>>::default());
        let over = Arc::new(AtomicBool::new(false));
        let shared = (manner.clone(), asked.clone(), over.clone());
        let answer = move || {
            let (manner, asked, over) = shared;
            let mut buffer = [0; 100];
            while !over.load(Ordering::Relaxed) {
                let Ok((20, from)) = socket.recv_from(&mut buffer) else { continue };
                let manner = *manner.lock().expect("no panic");
                respond(&socket, &other, &buffer[..20], from, manner);
                asked.lock().expect("no panic").push(from);
            }
        };
        Responder { manner, asked, over, thread: Some(thread::spawn(answer)) }
    }

    pub(crate) fn set(&self, manner: Manner) {
        *self.manner.lock().expect("no panic") = manner;
    }

    /// How often it was asked by that address.
    pub(crate) fn asked_by(&self, address: &str) -> usize {
        let address: IpAddr = address.parse().expect("an address");
        let asked = self.asked.lock().expect("no panic");
        asked.iter().filter(|from| from.ip() == address).count()
    }

    pub(crate) fn wait_until_asked(&self, address: &str) {
        let before = self.asked_by(address);
        wait_for("a request", || (self.asked_by(address) > before).then_some(()));
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

fn respond(
    socket: &UdpSocket,
    other: &UdpSocket,
    request: &[u8],
    from: SocketAddr,
    manner: Manner,
) {
    assert_eq!(request[..8], [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42]);
    // The address that it tells of, and the first octets of a lie.
    let (mut public, mut lie): (Vec<u8>, Vec<u8>) = match from.ip() {
        IpAddr::V4(_) => (vec![203, 0, 113], vec![198, 51, 100]),
        IpAddr::V6(_) => {
            let [public, lie]: [Ipv6Addr; 2] =
                ["2001:db8:113::", "2001:db8:666::"].map(|ip| ip.parse().expect("an address"));
            (public.octets()[..15].to_vec(), lie.octets()[..15].to_vec())
        }
    };
    public.push(match from.ip() {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[15],
    });
    lie.push(66);
    let success = |public: &[u8]| {
        let family = if public.len() == 4 { 1 } else { 2 };
        let length = u8::try_from(4 + public.len()).expect("a small number");
        let mut message = vec![1, 1, 0, 4 + length];
        message.extend(&request[4..]);
        message.extend([0, 0x20, 0, length, 0, family, 0, 0]);
        message.extend(public.iter().zip(&request[4..]).map(|(octet, mask)| octet ^ mask));
        message
    };
    let send = |message: &[u8]| {
        socket.send_to(message, from).expect("to answer");
    };
    match manner {
        Manner::Silent => {}
        Manner::Honest => send(&success(&public)),
        Manner::Refusing => {
            send(&[&[1, 0x11, 0, 8], &request[4..], &[0, 9, 0, 4, 0, 0, 4, 1]].concat());
        }
        Manner::Forging => {
            let lie = success(&lie);
            other.send_to(&lie, from).expect("to answer");
            let mut other_id = lie.clone();
            other_id[19] ^= 1;
            send(&other_id);
            (0..lie.len()).for_each(|length| send(&lie[..length]));
            send(&[&lie[..], b"more"].concat());
        }
    }
}

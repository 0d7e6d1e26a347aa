//! Which sockets the kernel leaves out of a dump: conditions, and the instructions that
//! say them (INET_DIAG_REQ_BYTECODE, linux/inet_diag.h). Pure.
//!
//! An instruction tests one thing and goes on by a distance if it holds and by another
//! if it does not. A socket is told if its walk ends exactly at the end; to land behind the
//! end is to be left out.

use std::net::{IpAddr, Ipv4Addr};

use crate::net::prefix::Prefix;

const JUMP: u8 = 1;
const LOCAL_PORT_GE: u8 = 2;
const LOCAL_PORT_LE: u8 = 3;
const REMOTE_PORT_GE: u8 = 4;
const REMOTE_PORT_LE: u8 = 5;
const LOCAL: u8 = 7;
const REMOTE: u8 = 8;
const CGROUP: u8 = 13;

/// Of an instruction without operand.
const PLAIN: usize = 4;
/// A distance is a 16-bit number, and that of an attribute too.
const LONGEST: usize = 60_000;

/// One thing that the kernel can test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The socket's own port, from and to.
    LocalPort(u16, u16),
    /// The port of the other end, from and to.
    RemotePort(u16, u16),
    /// The socket's own address. A prefix of IPv4 also holds for IPv4-mapped ones.
    Local(Prefix),
    /// The address of the other end, likewise.
    Remote(Prefix),
    /// The control group itself, none below it (5.9).
    Cgroup(u64),
    /// Not that.
    Not(Box<Condition>),
}

/// The instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(Vec<u8>);

impl Filter {
    /// For sockets of which in at least one of the lists every condition holds. None: the
    /// kernel cannot say it, since it is too long, or nothing is to be left out.
    pub fn any_of<'a>(lists: impl IntoIterator<Item = &'a [Condition]>) -> Option<Self> {
        let mut code: Vec<u8> = Vec::new();
        // Where a list ends, and jumps, if it holds, to the end of all.
        let mut accepting = Vec::new();
        for list in lists {
            if list.is_empty() {
                return None;
            }
            // Instructions that lead, if the list does not hold, to the next one.
            let mut failing = Vec::new();
            for condition in list {
                write(condition, &mut code, &mut failing);
            }
            accepting.push(code.len());
            code.extend_from_slice(&[JUMP, 4, 0, 0]);
            let next = code.len();
            failing.into_iter().for_each(|at| set_distance(&mut code, at, next));
            if code.len() > LONGEST {
                return None;
            }
        }
        // Without a list: nothing. Whatever no list took arrives here.
        let reject = code.len();
        code.extend_from_slice(&[JUMP, 4, 0, 0]);
        let end = code.len();
        set_distance(&mut code, reject, end + PLAIN);
        accepting.into_iter().for_each(|at| set_distance(&mut code, at, end));
        Some(Filter(code))
    }

    /// The value of the attribute.
    pub(super) fn bytecode(&self) -> &[u8] {
        &self.0
    }
}

/// Has the instruction at `at`, if its test fails, go on at `to`.
fn set_distance(code: &mut [u8], at: usize, to: usize) {
    let distance = u16::try_from(to - at).unwrap_or(u16::MAX);
    code[at + 2..at + 4].copy_from_slice(&distance.to_ne_bytes());
}

/// Adds instructions that lead behind themselves if the condition holds; `failing` gets
/// those whose other distance is still to be set.
fn write(condition: &Condition, code: &mut Vec<u8>, failing: &mut Vec<usize>) {
    match condition {
        Condition::LocalPort(from, to) => {
            write_port(LOCAL_PORT_GE, *from, code, failing);
            write_port(LOCAL_PORT_LE, *to, code, failing);
        }
        Condition::RemotePort(from, to) => {
            write_port(REMOTE_PORT_GE, *from, code, failing);
            write_port(REMOTE_PORT_LE, *to, code, failing);
        }
        Condition::Local(prefix) => write_prefix(LOCAL, *prefix, code, failing),
        Condition::Remote(prefix) => write_prefix(REMOTE, *prefix, code, failing),
        Condition::Cgroup(id) => {
            failing.push(code.len());
            code.extend_from_slice(&[CGROUP, 12, 0, 0]);
            code.extend_from_slice(&id.to_ne_bytes());
        }
        Condition::Not(inner) => {
            let mut held = Vec::new();
            write(inner, code, &mut held);
            // Behind it the inner condition holds.
            failing.push(code.len());
            code.extend_from_slice(&[JUMP, 4, 0, 0]);
            let next = code.len();
            held.into_iter().for_each(|at| set_distance(code, at, next));
        }
    }
}

fn write_port(test: u8, port: u16, code: &mut Vec<u8>, failing: &mut Vec<usize>) {
    failing.push(code.len());
    // The port is in the place of a second instruction's distance.
    code.extend_from_slice(&[test, 8, 0, 0, 0, 0]);
    code.extend_from_slice(&port.to_ne_bytes());
}

/// struct inet_diag_hostcond.
fn write_prefix(test: u8, prefix: Prefix, code: &mut Vec<u8>, failing: &mut Vec<usize>) {
    let mut address = [0; 16];
    let (family, size) = match prefix.address() {
        IpAddr::V4(_) => (2, 4),
        IpAddr::V6(_) => (10, 16),
    };
    super::message::write_address(&mut address, prefix.address());
    failing.push(code.len());
    code.extend_from_slice(&[test, 12 + size, 0, 0, family, prefix.length(), 0, 0]);
    // Any port.
    code.extend_from_slice(&(-1_i32).to_ne_bytes());
    code.extend_from_slice(&address[..usize::from(size)]);
    // To the kernel an IPv4-mapped address is one of ::/0 and the like, here it is IPv4.
    if let IpAddr::V6(ip) = prefix.address() {
        let bits = u32::from(prefix.length());
        let mapped = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
        let differ = u128::from(ip) ^ u128::from(mapped);
        if bits <= 96 && differ.checked_shr(128 - bits).unwrap_or(0) == 0 {
            let any = Prefix::any_ipv4();
            let side = if test == LOCAL { Condition::Local(any) } else { Condition::Remote(any) };
            write(&Condition::Not(Box::new(side)), code, failing);
        }
    }
}

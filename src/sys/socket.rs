//! Socket options that nix has no names for (setsockopt(2)).
#![allow(unsafe_code)]

use std::ffi::{c_int, c_uint};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sets an option whose value is an int.
///
/// # Errors
/// The system does not know the option, or refuses the value.
pub fn set_int_option(
    socket: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: c_int,
) -> io::Result<()> {
    let size = c_uint::try_from(size_of::<c_int>()).map_err(io::Error::other)?;
    let start = &raw const value;
    // SAFETY: the value has that size and lives until it returns.
    let code = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, start.cast(), size) };
    if code < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The cookie of the socket's network namespace, by which eBPF programs know it
/// (SO_NETNS_COOKIE, 5.14).
///
/// # Errors
/// The system does not know the option.
#[cfg(target_os = "linux")]
pub fn namespace_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_NETNS_COOKIE: c_int = 71;
    let mut cookie = 0_u64;
    let mut size = c_uint::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    let (fd, start) = (socket.as_raw_fd(), &raw mut cookie);
    // SAFETY: the value has that size, and both live until it returns.
    let code = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, start.cast(), &raw mut size)
    };
    if code < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

/// Has a packet socket (packet(7)) keep of IPv6 packets the first `length` octets, and
/// nothing of others. By a classic filter, of bpf(4)'s instructions.
///
/// # Errors
/// The system refuses.
#[cfg(target_os = "linux")]
pub fn keep_ipv6(socket: BorrowedFd<'_>, length: u32) -> io::Result<()> {
    // linux/filter.h: where the kernel keeps the protocol beside the packet.
    const PROTOCOL: u32 = 0xffff_f000;
    const LOAD_HALF: u16 = 0x28;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        instruction(LOAD_HALF, 0, 0, PROTOCOL),
        instruction(JUMP_IF_EQUAL, 0, 1, 0x86dd),
        instruction(RETURN, 0, 0, length),
        instruction(RETURN, 0, 0, 0),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    let size = c_uint::try_from(size_of::<libc::sock_fprog>()).map_err(io::Error::other)?;
    let (fd, start) = (socket.as_raw_fd(), &raw const program);
    // SAFETY: the program has that size, it points at that many instructions, and both
    // live until it returns; the kernel copies them.
    let code = unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, start.cast(), size)
    };
    if code < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

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

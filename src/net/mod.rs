//! Talking to the network and the kernel, in safe code.

pub mod udp;
pub mod http;
pub mod poller;

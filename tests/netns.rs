//! The daemon in network namespaces with real traffic. Root.
//!
//! What arrives on the other host is captured and decoded; every packet of a flow
//! is counted and has to be marked, none may be missing.

mod bulk;
mod connections;
mod counts;
mod echo;
mod firefly;
mod first_match;
mod harness;
mod interfaces;
mod iperf3;
mod life;
mod listener;
mod odd;
mod ongoing;
mod packets;
mod passing;
mod paths;
mod perfsonar;
mod privilege;
mod prometheus;
mod rig;
mod rules;
mod skops;
mod sockets;
mod stun;
mod usage;
mod watch;
mod xrootd;

//! glowd, the network flow and packet marking daemon.
//!
//! ```text
//!     plugins/*  --FlowEvent-->  dispatcher  --Event-->  backends/*
//!     named_pipe, api, firefly   flow_table              marker     -> eBPF map, egress packets
//!     netlink, iperf3            (one thread)            firefly    -> UDP datagrams
//!     perfsonar                       ^                  prometheus -> GET /metrics
//!     (one thread each)               | samples          (one thread each)
//!                                enrichers/*
//!
//!     main thread: daemon.rs waits for a signal or a dead worker; reload.rs on SIGHUP
//! ```
//!
//! The modules below follow the data. This is the inside of one program, not an
//! API for others; it is a library so that tests and fuzz targets reach it.

pub mod firefly;
pub mod flow;
pub mod flow_info;
pub mod flow_map;
pub mod registry;
pub mod rules;
pub mod scitag;

pub mod plugins;

pub mod admission;
pub mod carried;
pub mod closed;
pub mod dispatcher;
pub mod entropy;
pub mod flow_table;
pub mod inlet;
mod ongoing;
pub mod outcomes;
pub mod queue;
pub mod stun;
mod watchers;

pub mod backends;
pub mod enrichers;

pub mod daemon;
pub mod pid_file;
pub mod pulse;
pub mod reload;
pub mod run_dir;
pub mod shutdown;
pub mod systemd;
pub mod worker;

pub mod cli;
pub mod config;
pub mod error;
pub mod log;
pub mod meter;
pub mod metrics;
pub mod part;
#[cfg(target_os = "linux")]
pub mod privileges;
pub mod texts;

pub mod net;
pub mod sys;

#[cfg_attr(not(all(target_os = "linux", feature = "ebpf")), path = "selftest/absent.rs")]
pub mod selftest;

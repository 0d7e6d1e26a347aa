//! Integration tests: one binary, a module per topic.

// A test that cannot go on ends.
#![allow(clippy::unwrap_used)]
mod api;
mod cli;
// Without the marker nobody needs namespaces and captures.
#[cfg_attr(not(feature = "ebpf"), allow(dead_code, unused_imports))]
mod common;
mod completions;
mod config;
mod firefly;
mod layout;
mod life;
#[cfg(feature = "ebpf")]
mod marker;
mod named_pipe;
#[cfg(feature = "ebpf")]
mod netns;
mod pipeline;
mod prometheus;
mod reload;
#[cfg(feature = "ebpf")]
mod selftest;

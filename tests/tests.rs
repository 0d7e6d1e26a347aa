//! Integration tests: one binary, a module per topic.

// A test that cannot go on ends.
#![allow(clippy::unwrap_used)]
mod api;
mod cli;
mod common;
mod config;
mod firefly;
mod layout;
mod marker;
mod named_pipe;
mod netns;
mod pipeline;

//! The units under a real systemd, in containers (systemd-nspawn(1)) of a small Debian:
//! a second test binary, which `make system-test` runs. As root, and one container at
//! a time.

// A test that cannot go on ends.
#![allow(clippy::unwrap_used)]
#[path = "system/capability.rs"]
mod capability;
#[allow(dead_code, unused_imports)] // it is for the other test binary, too
mod common;
#[path = "system/files.rs"]
mod files;
#[path = "system/instances.rs"]
mod instances;
#[path = "system/machine.rs"]
mod machine;
#[path = "system/parts.rs"]
mod parts;
#[path = "system/registry.rs"]
mod registry;
#[allow(dead_code)] // the same
#[path = "netns/rig.rs"]
mod rig;
#[path = "system/service.rs"]
mod service;
#[path = "system/trouble.rs"]
mod trouble;

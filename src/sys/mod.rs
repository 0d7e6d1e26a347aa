//! The only folder in which `unsafe` compiles: one file per kernel object, each
//! of which turns raw calls into owned, safe types.

#[cfg(target_os = "linux")]
pub mod udp;
pub mod version;

//! Compiles bpf/*.bpf.c.
fn main() {}

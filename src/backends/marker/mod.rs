//! Stub.
use super::Spec;
use crate::part::no_rules;
/// Stub.
pub(super) static SPEC: Spec = Spec {
    name: "marker",
    aliases: &["ebpf"],
    summary: "",
    keys: &[],
    check: no_rules,
    build: |_, _| Err(crate::error::Error::internal("not yet")),
};

/// `marker clean`: stub.
pub fn clean(_interfaces: &[String]) -> crate::error::Result<()> {
    Ok(())
}

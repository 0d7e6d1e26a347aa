//! Stub.
use super::Spec;
use crate::part::no_rules;
/// Stub.
pub(super) static SPEC: Spec = Spec {
    name: "firefly",
    aliases: &[],
    summary: "",
    keys: &[],
    check: no_rules,
    build: |_, _| Err(crate::error::Error::internal("not yet")),
};

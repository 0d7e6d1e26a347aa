//! api
use super::Spec;
use crate::part::no_rules;
mod flow_fields;
pub mod flow_json;
/// Stub.
pub(super) static SPEC: Spec = Spec {
    name: "api",
    aliases: &[],
    summary: "",
    keys: &[],
    check: no_rules,
    build: |_, _| Err(crate::error::Error::internal("not yet")),
};

//! The body of POST /flow: what is accepted can be written and read again, and what
//! is refused says so within limits.

#![no_main]

use std::sync::LazyLock;

use glowd::plugins::api::flow_json::{parse, write, MAX_FLOWS, MAX_PROBLEMS};
use glowd::registry::{Names, Registry, Unknown};
use libfuzzer_sys::fuzz_target;

static NAMES: LazyLock<Names> =
    LazyLock::new(|| Names::fixed(Registry::snapshot(), Unknown::Accept));

fuzz_target!(|body: &[u8]| match parse(body, &NAMES) {
    Ok(flows) => {
        assert!(flows.events.len() <= MAX_FLOWS);
        assert!(flows.array || flows.events.len() == 1);
        let mut out = Vec::new();
        write(&flows.events, flows.array, &mut out);
        assert_eq!(parse(&out, &NAMES), Ok(flows));
    }
    Err(rejection) => {
        assert!(!rejection.error.is_empty() && rejection.problems.len() <= MAX_PROBLEMS);
        assert!(rejection.problems.iter().all(|problem| problem.message.len() < 2000));
    }
});

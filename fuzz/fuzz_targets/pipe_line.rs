//! A line of the named pipe: whatever it is, it is an event, nothing, or a fault
//! that can be shown on one short line.
#![no_main]

use std::sync::LazyLock;

use glowd::plugins::named_pipe::line;
use glowd::registry::Registry;
use libfuzzer_sys::fuzz_target;

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::snapshot);

fuzz_target!(|text: &[u8]| match line::parse(text, &REGISTRY) {
    Ok(Some(event)) => {
        // What was understood means the same when it is said in canonical form.
        let (src, dst) = (event.id.src(), event.id.dst());
        let canonical = format!(
            "{} {} {} {} {} {} {} {}",
            event.state.name(),
            event.id.protocol(),
            src.ip(),
            src.port(),
            dst.ip(),
            dst.port(),
            event.tag.experiment(),
            event.tag.activity(),
        );
        assert_eq!(line::parse(canonical.as_bytes(), &REGISTRY), Ok(Some(event)), "{canonical}");
    }
    Ok(None) => {}
    Err(fault) => {
        let shown = fault.to_string();
        assert!(shown.len() < 1000 && shown.is_ascii(), "{shown}");
        assert!(!shown.bytes().any(|byte| byte.is_ascii_control()), "{shown:?}");
    }
});

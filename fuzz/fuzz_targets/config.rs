//! The configuration: what is accepted says the same when it is printed and read
//! again, and nothing panics.
#![no_main]

use glowd::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(config) = Config::parse(text, "fuzz") {
        let json = config.to_json();
        let again = Config::parse(&json, "again").expect("what glowd conf prints is accepted");
        assert_eq!(again.to_json(), json);
    }
});

//! The texts in the program, as build.rs packs them: the manual pages, the registry and
//! the description of the API are three quarters smaller by that. Unpacked when somebody
//! wants to read one.

use std::borrow::Cow;

/// A text that is packed where there are eBPF programs, which bring zlib, and plain
/// elsewhere.
#[derive(Debug)]
pub struct Text(&'static [u8]);

macro_rules! text {
    ($file:literal) => {
        Text(include_bytes!(concat!(env!("OUT_DIR"), "/", $file, ".z")))
    };
}

/// data/registry.json.
pub static REGISTRY: Text = text!("registry.json");
/// src/plugins/api/openapi.json.
pub static OPENAPI: Text = text!("openapi.json");
/// man/glowd.8.in.
pub static GLOWD_8: Text = text!("glowd.8.in");
/// man/glowd.conf.5.in.
pub static GLOWD_CONF_5: Text = text!("glowd.conf.5.in");

impl Text {
    /// What it says; "" if the program is damaged.
    #[cfg(all(target_os = "linux", feature = "ebpf"))]
    pub fn read(&self) -> Cow<'static, str> {
        let unpacked = crate::sys::packed::Packed(self.0).unpack();
        let text = unpacked.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Cow::Owned(text.unwrap_or_default())
    }

    /// What it says.
    #[cfg(not(all(target_os = "linux", feature = "ebpf")))]
    pub fn read(&self) -> Cow<'static, str> {
        String::from_utf8_lossy(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_what_is_in_their_files() {
        assert_eq!(GLOWD_8.read(), include_str!("../man/glowd.8.in"));
        assert_eq!(GLOWD_CONF_5.read(), include_str!("../man/glowd.conf.5.in"));
        for (text, file) in [
            (&REGISTRY, include_str!("../data/registry.json")),
            (&OPENAPI, include_str!("plugins/api/openapi.json")),
        ] {
            let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
            assert_eq!(json(&text.read()), json(file));
        }
    }
}

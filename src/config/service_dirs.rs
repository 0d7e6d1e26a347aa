//! The folders that the service manager has made for this service (systemd.exec(5),
//! RuntimeDirectory= and CacheDirectory=) take the place of those in the defaults, so
//! that two services that name no paths do not meet. The main thread reads the
//! environment while the configuration is judged.

use std::env;
use std::path::{Path, PathBuf};

use super::key::{Key, Kind, Value};

/// A folder of the defaults, and the variable that names its place.
const FOLDERS: [(&str, &str); 2] =
    [("/run/glowd", "RUNTIME_DIRECTORY"), ("/var/cache/glowd", "CACHE_DIRECTORY")];

/// The value of a key that the configuration does not give.
pub(super) fn default_value(key: &Key) -> Option<Value> {
    let value = key.default_value()?;
    match (&key.kind, value) {
        (Kind::Path, Value::Text(path)) => {
            Some(Value::Text(place(path, |name| env::var(name).ok())))
        }
        (_, value) => Some(value),
    }
}

fn place(path: String, variable: impl Fn(&str) -> Option<String>) -> String {
    let placed = FOLDERS.iter().find_map(|(folder, name)| {
        let rest = Path::new(&path).strip_prefix(folder).ok()?;
        let folders = variable(name)?;
        // There may be several, the first is the main one.
        let folder = folders.split(':').next().filter(|folder| folder.starts_with('/'))?;
        let placed: PathBuf = Path::new(folder).components().chain(rest.components()).collect();
        placed.into_os_string().into_string().ok()
    });
    placed.unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_follow_the_folders_of_the_service() {
        let with = |path: &str, name: &'static str, value: &'static str| {
            place(path.to_owned(), |asked| (asked == name).then(|| value.to_owned()))
        };
        for (path, name, value, expected) in [
            ("/run/glowd/np", "RUNTIME_DIRECTORY", "/run/glowd-a", "/run/glowd-a/np"),
            ("/run/glowd/np", "RUNTIME_DIRECTORY", "/run/glowd-a/:/run/b", "/run/glowd-a/np"),
            ("/var/cache/glowd", "CACHE_DIRECTORY", "/var/cache/glowd-a", "/var/cache/glowd-a"),
            // Of another folder, none, or not a path.
            ("/run/glowd/np", "CACHE_DIRECTORY", "/var/cache/glowd-a", "/run/glowd/np"),
            ("/run/glowd/np", "RUNTIME_DIRECTORY", "", "/run/glowd/np"),
            ("/run/glowd/np", "RUNTIME_DIRECTORY", "glowd-a", "/run/glowd/np"),
            ("", "RUNTIME_DIRECTORY", "/run/glowd-a", ""),
        ] {
            assert_eq!(with(path, name, value), expected, "{name}={value}");
        }
    }
}

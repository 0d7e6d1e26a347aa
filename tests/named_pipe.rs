//! The named pipe of a running daemon.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::json;

use crate::common::{skip_unless_root, Daemon};

#[test]
fn it_belongs_to_the_configured_group() {
    if skip_unless_root() {
        return;
    }
    let pipe = json!({ "group": "12345", "mode": "0620" });
    let daemon = Daemon::start(json!({ "plugins": { "namedPipe": pipe } }));
    let metadata = fs::metadata(daemon.pipe_path()).unwrap();
    assert_eq!((metadata.gid(), metadata.mode() & 0o7777), (12_345, 0o620));
    daemon.stop(&["backends: there is none"]);
}

#[test]
fn its_folder_goes_with_it_if_glowd_made_it() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("run");
    let pipe = json!({ "pipePath": folder.join("np").to_str() });
    let daemon = Daemon::start(json!({ "plugins": { "namedPipe": pipe } }));
    assert!(folder.join("np").exists());
    daemon.stop(&["backends: there is none"]);
    assert!(!folder.exists());
}

//! The control groups of version 2 (cgroups(7)): which path has which id, the number that
//! the kernel tells of sockets, which is that of the group's folder. Used by the thread that
//! owns the [`Cgroups`], which holds the paths that it has seen.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::DirEntryExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// More groups than a host has; of those beyond them the path is unknown.
const MOST: usize = 100_000;
/// Deeper than groups are nested.
const DEEPEST: usize = 64;

/// The paths of control groups by their ids, read anew when an id is not known.
#[derive(Debug)]
pub struct Cgroups {
    /// Where the root group is mounted.
    root: PathBuf,
    paths: HashMap<u64, Box<str>>,
    /// Whether the folders were read in this round.
    is_fresh: bool,
}

impl Cgroups {
    /// Finds where they are mounted.
    ///
    /// # Errors
    /// There are none of version 2.
    pub fn find() -> Result<Self> {
        let file = "/proc/self/mountinfo";
        let mounts = fs::read_to_string(file)
            .map_err(|error| Error::os(format!("cannot read {file:?}"), error))?;
        let root = mount_point(&mounts).ok_or_else(|| {
            Error::config("control groups of version 2 are not mounted, which rules by path need")
        })?;
        Ok(Cgroups { root, paths: HashMap::new(), is_fresh: false })
    }

    /// Begins a round: within one the folders are read at most once, whatever unknown
    /// ids there are.
    pub fn begin_round(&mut self) {
        self.is_fresh = false;
    }

    /// The path of the group with that id, as of the root group (`/system.slice/x.service`).
    /// None: it was removed, or is outside of what this process sees.
    pub fn path(&mut self, id: u64) -> Option<&str> {
        if !self.paths.contains_key(&id) && !self.is_fresh {
            self.is_fresh = true;
            self.read();
        }
        self.paths.get(&id).map(|path| &**path)
    }

    fn read(&mut self) {
        self.paths.clear();
        if let Ok(root) = fs::metadata(&self.root) {
            self.paths.insert(root.ino(), "/".into());
        }
        // A folder that went meanwhile has nothing below it.
        let mut folders = vec![(self.root.clone(), String::new(), 0)];
        while let Some((folder, path, depth)) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || self.paths.len() >= MOST {
                    continue;
                }
                let path = format!("{path}/{}", entry.file_name().to_string_lossy());
                self.paths.insert(entry.ino(), path.as_str().into());
                if depth < DEEPEST {
                    folders.push((entry.path(), path, depth + 1));
                }
            }
        }
    }
}

/// Whether a group is the one with the path `outer`, or below it.
pub fn is_within(path: &str, outer: &str) -> bool {
    let rest = path.strip_prefix(outer.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Where groups of version 2 are mounted, of the lines of proc_pid_mountinfo(5). The whole
/// tree is better than a part of it.
fn mount_point(mounts: &str) -> Option<PathBuf> {
    let mut found = None;
    for line in mounts.lines() {
        let Some((fields, kind)) = line.split_once(" - ") else { continue };
        let mut fields = fields.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else { continue };
        if kind.starts_with("cgroup2 ") && (found.is_none() || root == "/") {
            found = Some(Path::new(&unescape(point)).to_owned());
        }
    }
    found
}

/// A space is written as `\040`, and the like.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                out.push_str(&part[3..]);
            }
            None => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found() {
        for (mounts, point) in [
            ("30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup"),
            (
                "40 31 0:37 / /c/systemd rw - cgroup cgroup rw\n\
                 41 31 0:38 /x /c/part rw - cgroup2 cgroup2 rw\n\
                 41 31 0:38 / /c/uni\\040fied rw - cgroup2 cgroup2 rw\n\
                 42 31 0:38 /y /c/other rw - cgroup2 cgroup2 rw\n",
                "/c/uni fied",
            ),
        ] {
            assert_eq!(mount_point(mounts), Some(point.into()));
        }
        assert_eq!(mount_point("30 23 0:26 / /proc rw - proc proc rw\n - cgroup2 \n"), None);
    }

    #[test]
    fn groups_below_count() {
        for (path, outer, inside) in [
            ("/a/b", "/a", true),
            ("/a/b", "/a/", true),
            ("/a", "/a", true),
            ("/ab", "/a", false),
            ("/", "/a", false),
            ("/a", "/", true),
            ("/", "/", true),
        ] {
            assert_eq!(is_within(path, outer), inside, "{path} in {outer}");
        }
    }

    #[test]
    fn ids_are_those_of_the_folders() {
        let Ok(mut cgroups) = Cgroups::find() else {
            println!("SKIP: there are no control groups of version 2");
            return;
        };
        let root = fs::metadata(&cgroups.root).unwrap().ino();
        assert_eq!(cgroups.path(root), Some("/"));
        assert_eq!(cgroups.path(u64::MAX), None);
        // One that is new is known in the next round.
        let folder = cgroups.root.join(format!("glowd-test-{}", std::process::id()));
        if fs::create_dir(&folder).is_err() {
            println!("SKIP: needs root to make a control group");
            return;
        }
        let id = fs::metadata(&folder).unwrap().ino();
        let in_this_round = cgroups.path(id).map(str::to_owned);
        cgroups.begin_round();
        let in_the_next = cgroups.path(id).map(str::to_owned);
        fs::remove_dir(&folder).unwrap();
        assert_eq!(in_this_round, None);
        let name = folder.file_name().unwrap().to_str().unwrap();
        assert_eq!(in_the_next, Some(format!("/{name}")));
    }
}

//! The control groups of version 2 (cgroups(7)): which path has which id, the number that
//! the kernel tells of sockets, which is that of the group's folder. Used by the thread that
//! owns the [`Cgroups`], which holds the paths that it has seen.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::DirEntryExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::rules::Fact;

/// More groups than a host has; of those beyond them the path is unknown.
const MOST: usize = 100_000;
/// Deeper than groups are nested.
pub const DEEPEST: usize = 64;

/// Knows some paths from elsewhere: of the group with the first number as of the one with the
/// second. Some(None): it is not below that one; None: not known.
pub type Places = Box<dyn Fn(u64, u64) -> Option<Option<String>> + Send>;

/// The paths of control groups by their ids, read anew when an id is not known.
pub struct Cgroups {
    /// Where the root group is mounted.
    root: PathBuf,
    /// The number of the root group.
    top: u64,
    /// Asked before the folders are read.
    places: Option<Places>,
    /// The last answer.
    told: String,
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
        let top = fs::metadata(&root).map(|folder| folder.ino());
        let top = top.map_err(|error| Error::os(format!("cannot look at {root:?}"), error))?;
        let (places, told, paths) = (None, String::new(), HashMap::new());
        Ok(Cgroups { root, top, places, told, paths, is_fresh: false })
    }

    /// Asks for unknown ids there first from now on.
    pub fn ask(&mut self, places: Places) {
        self.places = Some(places);
    }

    /// Begins a round: within one the folders are read at most once, whatever unknown
    /// ids there are.
    pub fn begin_round(&mut self) {
        self.is_fresh = false;
    }

    /// The path of the group with that id, as of the root group (`/system.slice/x.service`).
    /// Unknown: it was removed, or is outside of what this process sees. Open: that may be, or
    /// it was made since the folders were read in this round.
    pub fn path(&mut self, id: u64) -> Fact<&str> {
        let mut missing = Fact::Open;
        if !self.paths.contains_key(&id) {
            match self.places.as_ref().and_then(|places| places(id, self.top)) {
                Some(None) => return Fact::Unknown,
                // Not kept: they come and go, and to ask costs microseconds.
                Some(Some(path)) => {
                    self.told = path;
                    return Fact::Known(&self.told);
                }
                None if self.is_fresh => {}
                None => {
                    (self.is_fresh, missing) = (true, Fact::Unknown);
                    self.read();
                }
            }
        }
        self.paths.get(&id).map_or(missing, |path| Fact::Known(path))
    }

    fn read(&mut self) {
        self.paths.clear();
        self.paths.insert(self.top, "/".into());
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

impl fmt::Debug for Cgroups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} groups below {:?}", self.paths.len(), self.root)
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
        assert_eq!(cgroups.path(root), Fact::Known("/"));
        cgroups.begin_round();
        assert_eq!(cgroups.path(u64::MAX), Fact::Unknown, "the folders have just been read");
        // One that is new is known in the next round.
        let folder = cgroups.root.join(format!("glowd-test-{}", std::process::id()));
        if fs::create_dir(&folder).is_err() {
            println!("SKIP: needs root to make a control group");
            return;
        }
        let id = fs::metadata(&folder).unwrap().ino();
        let in_this_round = cgroups.path(id) == Fact::Open;
        cgroups.begin_round();
        let name = format!("/{}", folder.file_name().unwrap().to_str().unwrap());
        let in_the_next = cgroups.path(id) == Fact::Known(&name);
        fs::remove_dir(&folder).unwrap();
        assert!(in_this_round && in_the_next);
    }
}

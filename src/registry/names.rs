//! The registry as the running daemon uses it: read again when its file changes,
//! and asked whether ids are known. Shared by all threads.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::{info, warn};

use super::{Registry, DEFAULT_PATH};
use crate::error::{At, Result};
use crate::flow::Tag;
use crate::metrics::families::REGISTRY_TIME;
use crate::metrics::Metrics;
use crate::warn_limited;

/// How often at the most is looked whether a file has changed.
const PERIOD: Duration = Duration::from_secs(1);

/// The file in `workDir` that a refreshed registry is put into.
const REFRESHED: &str = "registry.json";

/// What becomes of ids that are not registered (`unknownIds`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// They are taken.
    Accept,
    /// They are taken with a warning.
    Warn,
    /// They are refused.
    Refuse,
}

/// The registry, as up to date as its file.
#[derive(Debug)]
pub struct Names {
    /// Where it may be; the first that is there counts.
    files: Vec<PathBuf>,
    unknown: Unknown,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    registry: Arc<Registry>,
    /// What it was read from; none: it is the snapshot.
    read: Option<Source>,
    /// Each of the files at the last look.
    seen: Vec<Option<Source>>,
    looked: Instant,
}

/// A version of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    path: PathBuf,
    inode: (u64, u64),
    length: u64,
    modified: (i64, i64),
}

impl Source {
    /// The version that is there.
    fn at(path: &Path) -> Option<Self> {
        Some(Source::of(path, &std::fs::metadata(path).ok()?))
    }

    fn of(path: &Path, metadata: &Metadata) -> Self {
        Source {
            path: path.to_owned(),
            inode: (metadata.dev(), metadata.ino()),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Names {
    /// The registry in `work_dir`, if it was refreshed there; else that at `path`;
    /// else, unless `path` was chosen, the snapshot in the binary.
    ///
    /// # Errors
    /// The chosen file is not there, or what is there is no registry.
    pub fn open(path: &str, work_dir: &str, unknown: Unknown) -> Result<Self> {
        let refreshed = (!work_dir.is_empty()).then(|| Path::new(work_dir).join(REFRESHED));
        let given = (!path.is_empty()).then(|| PathBuf::from(path));
        let files: Vec<PathBuf> = refreshed.iter().chain(given.iter()).cloned().collect();
        // Before they are read: a version that comes meanwhile is another one.
        let seen: Vec<_> = files.iter().map(|file| Source::at(file)).collect();
        let was = |file: &Path| seen.iter().flatten().find(|seen| seen.path == file).cloned();
        let (mut registry, mut read) = (None, None);
        // A refreshed one that is broken is no reason not to start.
        if let Some(file) = refreshed.filter(|file| file.exists()) {
            match Registry::load(&file) {
                Ok(good) => (registry, read) = (Some(good), was(&file)),
                Err(error) => warn!("{error}"),
            }
        }
        let chosen = path != DEFAULT_PATH;
        if let Some(file) = given.filter(|file| registry.is_none() && (chosen || file.exists())) {
            registry = Some(Registry::load(&file).at("registryPath")?);
            read = was(&file);
        }
        let names = Names::fixed(registry.unwrap_or_else(Registry::snapshot), unknown);
        {
            let mut state = names.lock();
            (state.read, state.seen) = (read, seen);
        }
        Ok(Names { files, ..names })
    }

    /// A registry that does not change.
    pub fn fixed(registry: Registry, unknown: Unknown) -> Self {
        Names::of(Arc::new(registry), unknown)
    }

    fn of(registry: Arc<Registry>, unknown: Unknown) -> Self {
        let state = State { registry, read: None, seen: Vec::new(), looked: Instant::now() };
        Names { files: Vec::new(), unknown, state: Mutex::new(state) }
    }

    /// The names of now, which refuse the same and warn of nothing: for who only tries.
    pub fn quiet(&self) -> Self {
        let refuses = self.unknown == Unknown::Refuse;
        Names::of(self.get(), if refuses { Unknown::Refuse } else { Unknown::Accept })
    }

    /// Says in the metrics how old the registry is.
    pub fn measure_by(self: &Arc<Self>, metrics: &Metrics) {
        let names = self.clone();
        metrics.add(move |writer| {
            if let Some(time) = names.checked().and_then(|time| time.try_into().ok()) {
                writer.number(&REGISTRY_TIME, &[], time);
            }
        });
    }

    /// When the registry was put where it is, in seconds since 1970, or found to be still what is
    /// published: the refresh then changes the time of the file's status (st_ctime)
    /// and nothing else. Of the snapshot: when the binary was put there.
    fn checked(&self) -> Option<i64> {
        let state = self.lock();
        let Some(read) = &state.read else {
            let binary = std::env::current_exe().and_then(std::fs::metadata);
            return binary.ok().map(|metadata| metadata.ctime());
        };
        let there = std::fs::metadata(&read.path).ok();
        let same = there.filter(|metadata| Source::of(&read.path, metadata) == *read);
        // One that has gone, or that another has replaced that is none, is as old as it was.
        Some(same.map_or(read.modified.0, |metadata| metadata.ctime()))
    }

    /// The registry of now.
    pub fn get(&self) -> Arc<Registry> {
        let mut state = self.lock();
        if !self.files.is_empty() && state.looked.elapsed() >= PERIOD {
            self.look(&mut state);
            state.looked = Instant::now();
        }
        state.registry.clone()
    }

    /// Whether no flow may carry a tag that is not registered.
    pub fn refuses(&self) -> bool {
        self.unknown == Unknown::Refuse
    }

    /// Whether flows may carry `tag`, of which an event of `plugin` tells.
    ///
    /// # Errors
    /// It is not registered, and such ids are refused.
    pub fn judge(
        &self,
        registry: &Registry,
        tag: Tag,
        plugin: &str,
    ) -> std::result::Result<(), String> {
        self.judge_at(registry, tag, &format_args!("plugins.{plugin}"))
    }

    /// Whether flows may carry `tag`, of which the configuration tells at `place`.
    ///
    /// # Errors
    /// It is not registered, and such ids are refused.
    pub fn judge_at(
        &self,
        registry: &Registry,
        tag: Tag,
        place: &dyn std::fmt::Display,
    ) -> std::result::Result<(), String> {
        if self.unknown == Unknown::Accept || registry.contains(tag) {
            return Ok(());
        }
        let problem = format!("{tag} is not registered");
        if self.unknown == Unknown::Refuse {
            return Err(format!("{problem} (unknownIds is refuse)"));
        }
        warn_limited!("{place}: {problem}");
        Ok(())
    }

    /// Reads the first file that is there, if one of them is another one or another version
    /// than it was. One that is no registry is passed over, but for that which counts: the last
    /// good version of it stays, and is also there if no file is.
    fn look(&self, state: &mut State) {
        let seen: Vec<_> = self.files.iter().map(|file| Source::at(file)).collect();
        if seen == state.seen {
            return;
        }
        for source in seen.iter().flatten() {
            let counts = state.read.as_ref().is_some_and(|read| read.path == source.path);
            match Registry::load(&source.path) {
                Ok(registry) => {
                    info!("registry: read {:?} again", source.path.display());
                    state.registry = Arc::new(registry);
                    state.read = Some(source.clone());
                    break;
                }
                // Said once for each version: what was seen is remembered.
                Err(error) if counts => {
                    warn!("{error}; the last good one stays");
                    break;
                }
                Err(error) => warn!("{error}"),
            }
        }
        state.seen = seen;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"{"experiments": [{"expName": "small", "expId": 7, "activities": []}]}"#;

    impl Names {
        /// As if the period were over.
        fn get_anew(&self) -> Arc<Registry> {
            self.look(&mut self.lock());
            self.get()
        }
    }

    #[test]
    fn a_file_that_changes_is_read_again_and_a_broken_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let installed = dir.path().join("installed.json");
        std::fs::write(&installed, include_str!("../../data/registry.json")).unwrap();
        let work = dir.path().to_str().unwrap();
        let names = Names::open(installed.to_str().unwrap(), work, Unknown::Warn).unwrap();
        assert_eq!(names.get_anew().experiment_name(7), Some("ska"));
        // What was refreshed comes first.
        std::fs::write(dir.path().join(REFRESHED), SMALL).unwrap();
        assert_eq!(names.get_anew().experiment_name(7), Some("small"));
        std::fs::write(dir.path().join(REFRESHED), "{").unwrap();
        assert_eq!(names.get_anew().experiment_name(7), Some("small"));
        std::fs::remove_file(dir.path().join(REFRESHED)).unwrap();
        assert_eq!(names.get_anew().experiment_name(7), Some("ska"));
        std::fs::remove_file(&installed).unwrap();
        assert_eq!(names.get_anew().experiment_name(7), Some("ska"));
        // A broken one in workDir does not keep the daemon from starting.
        std::fs::write(dir.path().join(REFRESHED), "{").unwrap();
        let names = Names::open(DEFAULT_PATH, work, Unknown::Warn).unwrap();
        assert!(names.get().experiment_name(2).is_some());
    }

    #[test]
    fn the_age_is_that_of_what_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let (path, work) = (dir.path().join(REFRESHED), dir.path().to_str().unwrap());
        let hour_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
        let put = |text: &str| {
            std::fs::write(&path, text).unwrap();
            // As the server dates it.
            std::fs::File::open(&path).unwrap().set_modified(hour_ago).unwrap();
        };
        put(SMALL);
        let names = Names::open("", work, Unknown::Warn).unwrap();
        let status = || std::fs::metadata(&path).unwrap().ctime();
        assert_eq!(names.checked(), Some(status()));
        let modified = std::fs::metadata(&path).unwrap().mtime();
        // What is no registry is not used, and says nothing of what is.
        std::fs::write(&path, "{").unwrap();
        names.get_anew();
        assert_eq!(names.checked(), Some(modified));
        put(SMALL);
        names.get_anew();
        assert_eq!(names.checked(), Some(status()));
        let snapshot = Names::open("", "", Unknown::Warn).unwrap();
        let binary = std::fs::metadata(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(snapshot.checked(), Some(binary.ctime()));
    }

    #[test]
    fn a_broken_refreshed_one_hides_no_change_of_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let (installed, refreshed) =
            (dir.path().join("installed.json"), dir.path().join(REFRESHED));
        std::fs::write(&installed, SMALL).unwrap();
        std::fs::write(&refreshed, "{").unwrap();
        let work = dir.path().to_str().unwrap();
        let names = Names::open(installed.to_str().unwrap(), work, Unknown::Warn).unwrap();
        assert_eq!(names.get_anew().experiment_name(7), Some("small"));
        std::fs::write(&installed, SMALL.replace("small", "smaller")).unwrap();
        assert_eq!(names.get_anew().experiment_name(7), Some("smaller"));
        std::fs::write(&refreshed, SMALL.replace("small", "fresh")).unwrap();
        assert_eq!(names.get_anew().experiment_name(7), Some("fresh"));
        std::fs::write(&installed, SMALL).unwrap();
        assert_eq!(names.get_anew().experiment_name(7), Some("fresh"));
    }

    #[test]
    fn a_chosen_file_has_to_be_there_and_the_default_one_not() {
        let error = Names::open("/nonexistent/registry.json", "", Unknown::Warn).unwrap_err();
        let start = "registryPath: cannot read the registry \"/nonexistent/registry.json\": ";
        assert!(error.to_string().starts_with(start), "{error}");
        assert!(Names::open("", "", Unknown::Warn).unwrap().get().experiment_name(2).is_some());
    }

    #[test]
    fn unknown_ids_are_refused_only_if_that_is_wanted() {
        let tag = |experiment, activity| Tag::new(experiment, activity).unwrap();
        for unknown in [Unknown::Accept, Unknown::Warn, Unknown::Refuse] {
            let names = Names::fixed(Registry::snapshot(), unknown);
            let registry = names.get();
            let judge = |tag| names.judge(&registry, tag, "test");
            assert_eq!(judge(tag(2, 16)), Ok(()));
            for tag in [tag(2, 63), tag(2, 0), tag(511, 1)] {
                match judge(tag) {
                    Ok(()) => assert_ne!(unknown, Unknown::Refuse),
                    Err(message) => {
                        assert_eq!(unknown, Unknown::Refuse);
                        let end = "is not registered (unknownIds is refuse)";
                        assert_eq!(message, format!("{tag} {end}"));
                    }
                }
            }
        }
    }
}

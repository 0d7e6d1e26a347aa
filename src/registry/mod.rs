//! The registry: which experiments and activities there are and what they are
//! called, as published at <https://www.scitags.org/api.json>. Read from a file;
//! a snapshot is in the binary, for hosts that have no file.

mod names;

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::O_NONBLOCK;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::flow::Tag;
use crate::texts;

pub use names::{Names, Unknown};

/// Where packages install the registry.
pub const DEFAULT_PATH: &str = "/usr/share/glowd/registry.json";

/// More than any registry needs, in bytes.
const LONGEST: u64 = 1 << 20;

/// The longest name, in bytes.
const LONGEST_NAME: usize = 128;

/// One more than the largest id of an experiment.
const IDS: usize = 512;
const _: () = assert!(IDS as u64 == Tag::MAX_EXPERIMENT + 1);

/// Names of experiments and of their activities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    experiments: Vec<Experiment>,
    /// For each experiment id a bit for each activity: every event asks.
    known: Box<[u64; IDS]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Experiment {
    id: u64,
    name: String,
    activities: Vec<(u64, String)>,
}

/// The published document. What else it holds does not matter.
#[derive(Deserialize)]
struct Document {
    experiments: Vec<DocumentExperiment>,
}

#[derive(Deserialize)]
struct DocumentExperiment {
    #[serde(rename = "expId")]
    id: u64,
    #[serde(rename = "expName")]
    name: String,
    activities: Vec<DocumentActivity>,
}

#[derive(Deserialize)]
struct DocumentActivity {
    #[serde(rename = "activityId")]
    id: u64,
    #[serde(rename = "activityName")]
    name: String,
}

impl Registry {
    /// The snapshot in the binary.
    pub fn snapshot() -> Self {
        // A test parses it.
        Registry::parse(&texts::REGISTRY.read()).unwrap_or_else(|_| Registry::new(Vec::new()))
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// It cannot be read, or is no registry.
    pub fn load(path: &Path) -> Result<Self> {
        let cannot = |cause: &dyn std::fmt::Display| {
            Error::config(format!("cannot read the registry {:?}: {cause}", path.display()))
        };
        // To open a pipe that nobody writes to would take for ever.
        let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path);
        let file = file.map_err(|error| cannot(&error))?;
        if !file.metadata().map_err(|error| cannot(&error))?.is_file() {
            return Err(cannot(&"not a regular file"));
        }
        let mut text = String::new();
        file.take(LONGEST + 1).read_to_string(&mut text).map_err(|error| cannot(&error))?;
        if text.len() as u64 > LONGEST {
            return Err(cannot(&format_args!("longer than {LONGEST} bytes")));
        }
        Registry::parse(&text).map_err(|error| cannot(&error))
    }

    /// The installed registry, or the snapshot where none is installed.
    ///
    /// # Errors
    /// There is one, but it cannot be read or is none.
    pub fn installed() -> Result<Self> {
        let path = Path::new(DEFAULT_PATH);
        if path.exists() {
            Registry::load(path)
        } else {
            Ok(Registry::snapshot())
        }
    }

    /// Reads `text`.
    ///
    /// # Errors
    /// It is no registry: not of the published form, or with ids that do not fit a
    /// tag, or two entries of one id or name.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let document: Document = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if document.experiments.is_empty() {
            return Err("it has no experiments".to_owned());
        }
        let mut experiments: Vec<Experiment> = Vec::new();
        for DocumentExperiment { id, name, activities } in document.experiments {
            judge("experiment", id, &name, 1..=Tag::MAX_EXPERIMENT)?;
            distinct("experiment", id, &name, experiments.iter().map(|e| (e.id, &*e.name)))?;
            let mut known: Vec<(u64, String)> = Vec::new();
            for activity in activities {
                let what = format!("experiment {name:?}: activity");
                judge(&what, activity.id, &activity.name, 0..=Tag::MAX_ACTIVITY)?;
                let others = known.iter().map(|(id, name)| (*id, &**name));
                distinct(&what, activity.id, &activity.name, others)?;
                known.push((activity.id, activity.name));
            }
            experiments.push(Experiment { id, name, activities: known });
        }
        Ok(Registry::new(experiments))
    }

    fn new(experiments: Vec<Experiment>) -> Self {
        let mut known = Box::new([0; IDS]);
        for experiment in &experiments {
            for (activity, _) in &experiment.activities {
                // Both were judged; ids that do not fit are not there.
                if let Ok(tag) = Tag::new(experiment.id, *activity) {
                    known[usize::from(tag.experiment())] |= 1 << tag.activity();
                }
            }
        }
        Registry { experiments, known }
    }

    /// Whether both ids are registered.
    pub fn contains(&self, tag: Tag) -> bool {
        self.known[usize::from(tag.experiment())] & 1 << tag.activity() != 0
    }

    /// The name of an experiment.
    pub fn experiment_name(&self, id: u64) -> Option<&str> {
        self.by_id(id).map(|experiment| experiment.name.as_str())
    }

    /// The name of an activity of an experiment.
    pub fn activity_name(&self, experiment: u64, id: u64) -> Option<&str> {
        let activities = &self.by_id(experiment)?.activities;
        activities.iter().find(|(known, _)| *known == id).map(|(_, name)| name.as_str())
    }

    /// The names of a tag, each if it is registered.
    pub fn names(&self, tag: Tag) -> (Option<&str>, Option<&str>) {
        let experiment = u64::from(tag.experiment());
        (self.experiment_name(experiment), self.activity_name(experiment, tag.activity().into()))
    }

    /// The tag that two words say, each an id or a name in any case.
    ///
    /// # Errors
    /// A name is not registered, or an id does not fit a tag.
    pub fn tag(&self, experiment: &str, activity: &str) -> std::result::Result<Tag, String> {
        let experiment = self.experiment(experiment)?;
        self.activity(experiment, activity)
    }

    /// The id of an experiment, given as such or by its name in any case.
    ///
    /// # Errors
    /// The name is not registered, or the id does not fit a tag.
    pub fn experiment(&self, word: &str) -> std::result::Result<u64, String> {
        if let Some(id) = number(word) {
            return Tag::new(id, 0).map(|_| id);
        }
        let named = self.experiments.iter().find(|known| same(&known.name, word));
        named.map(|known| known.id).ok_or_else(|| {
            let names = self.experiments.iter().map(|known| known.name.as_str());
            unknown("experiment", word, names)
        })
    }

    /// The tag of an experiment's activity, which is given by its id or by its name
    /// in any case.
    ///
    /// # Errors
    /// The name is not registered, or an id does not fit a tag.
    pub fn activity(&self, experiment: u64, word: &str) -> std::result::Result<Tag, String> {
        if let Some(id) = number(word) {
            return Tag::new(experiment, id);
        }
        let known = self.by_id(experiment).map_or(&[][..], |known| &known.activities);
        let named = known.iter().find(|(_, name)| same(name, word));
        let id = named.map(|(id, _)| *id).ok_or_else(|| {
            let what = match self.experiment_name(experiment) {
                Some(name) => format!("activity of {name}"),
                None => format!("activity of experiment {experiment}"),
            };
            unknown(&what, word, known.iter().map(|(_, name)| name.as_str()))
        })?;
        Tag::new(experiment, id)
    }

    fn by_id(&self, id: u64) -> Option<&Experiment> {
        self.experiments.iter().find(|experiment| experiment.id == id)
    }
}

/// A word of digits only: no registered name is one. One too large for any id is
/// still a number.
fn number(word: &str) -> Option<u64> {
    let digits = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| word.parse().unwrap_or(u64::MAX))
}

fn same(name: &str, typed: &str) -> bool {
    name.to_lowercase() == typed.to_lowercase()
}

fn unknown<'n>(what: &str, typed: &str, names: impl Iterator<Item = &'n str> + Clone) -> String {
    let hint = match crate::config::nearest::nearest(typed, names.clone()) {
        Some(near) => format!("did you mean {near:?}?"),
        None => match names.collect::<Vec<_>>().as_slice() {
            [] => "none is registered".to_owned(),
            names => format!("registered are {}", names.join(", ")),
        },
    };
    format!("{typed:?} is no {what}: {hint}")
}

fn judge(
    what: &str,
    id: u64,
    name: &str,
    range: std::ops::RangeInclusive<u64>,
) -> std::result::Result<(), String> {
    if !range.contains(&id) {
        let (low, high) = range.into_inner();
        return Err(format!("{what} {name:?}: id {id} is out of range ({low} to {high})"));
    }
    // It is shown in logs and metrics, and must not be mistaken for an id.
    if name.is_empty() || name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
        return Err(format!("{what} {id}: {name:?} is no name"));
    }
    if number(name).is_some() {
        return Err(format!("{what} {id}: the name {name:?} looks like an id"));
    }
    Ok(())
}

fn distinct<'n>(
    what: &str,
    id: u64,
    name: &str,
    mut others: impl Iterator<Item = (u64, &'n str)>,
) -> std::result::Result<(), String> {
    match others.find(|(other, known)| *other == id || same(known, name)) {
        Some((other, known)) => {
            Err(format!("{what} {name:?} ({id}) and {known:?} ({other}) are not distinct"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_is_what_was_published() {
        let registry = Registry::snapshot();
        assert_eq!(registry.experiments.len(), 14);
        assert_eq!(registry.experiment_name(2), Some("atlas"));
        assert_eq!(registry.activity_name(2, 16), Some("Production Output"));
        assert_eq!(registry.activity_name(3, 14), Some("Analysis Input"));
        assert_eq!((registry.experiment_name(15), registry.activity_name(2, 63)), (None, None));
        assert_eq!(registry.names(Tag::new(14, 9).unwrap()), (Some("xenon"), None));
    }

    #[test]
    fn words_are_ids_or_names_in_any_case() {
        let registry = Registry::snapshot();
        for (experiment, activity) in
            [("2", "15"), ("atlas", "15"), ("ATLAS", "production INPUT"), ("2", "Production Input")]
        {
            assert_eq!(registry.tag(experiment, activity), Ok(Tag::new(2, 15).unwrap()));
        }
        // Ids need not be registered.
        assert_eq!(registry.tag("511", "0"), Ok(Tag::new(511, 0).unwrap()));
        for (experiment, activity, problem) in [
            ("altas", "1", "\"altas\" is no experiment: did you mean \"atlas\"?"),
            ("", "1", "\"\" is no experiment: registered are default, atlas, "),
            ("atlas", "Stagign", "\"Stagign\" is no activity of atlas: did you mean \"Staging\"?"),
            ("400", "x", "\"x\" is no activity of experiment 400: none is registered"),
            ("512", "1", "experiment 512 is out of range (1 to 511)"),
            ("99999999999999999999", "1", "experiment 18446744073709551615 is out of range"),
            ("atlas", "64", "activity 64 is out of range (0 to 63)"),
        ] {
            let error = registry.tag(experiment, activity).unwrap_err();
            assert!(error.starts_with(problem), "{error}");
        }
    }

    #[test]
    fn what_is_no_registry_is_refused() {
        let activity =
            |id: i64, name: &str| format!(r#"{{"activityId": {id}, "activityName": "{name}"}}"#);
        let with = |id: i64, name: &str, activities: &[String]| {
            let activities = activities.join(",");
            format!(r#"{{"expId": {id}, "expName": "{name}", "activities": [{activities}]}}"#)
        };
        let document = |list: &[String]| format!(r#"{{"experiments": [{}]}}"#, list.join(","));
        let refused = |list: &[String]| Registry::parse(&document(list)).unwrap_err();
        assert!(Registry::parse(&document(&[with(7, "ska", &[activity(0, "x")])])).is_ok());
        for (list, problem) in [
            (vec![with(512, "a", &[])], "experiment \"a\": id 512 is out of range (1 to 511)"),
            (vec![with(0, "a", &[])], "experiment \"a\": id 0 is out of range (1 to 511)"),
            (vec![with(1, "2", &[])], "experiment 1: the name \"2\" looks like an id"),
            (vec![with(1, "", &[])], "experiment 1: \"\" is no name"),
            (vec![with(1, "a", &[]), with(1, "b", &[])], "experiment \"b\" (1) and \"a\" (1)"),
            (vec![with(1, "a", &[]), with(2, "A", &[])], "experiment \"A\" (2) and \"a\" (1)"),
            (
                vec![with(1, "a", &[activity(64, "x")])],
                "experiment \"a\": activity \"x\": id 64 is out of range (0 to 63)",
            ),
            (
                vec![with(1, "a", &[activity(1, "x"), activity(2, "X")])],
                "experiment \"a\": activity \"X\" (2) and \"x\" (1) are not distinct",
            ),
        ] {
            let error = refused(&list);
            assert!(error.starts_with(problem), "{error}");
        }
        let none = r#"{"experiments": []}"#;
        for text in ["", "[]", none, r#"{"experiments": 1}"#, r#"{"experiments": [{"expId": -1}]}"#]
        {
            assert!(Registry::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_is_read_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.json");
        assert!(Registry::load(&path).unwrap_err().to_string().starts_with("cannot read the"));
        std::fs::write(&path, include_str!("../../data/registry.json")).unwrap();
        assert_eq!(Registry::load(&path).unwrap(), Registry::snapshot());
        std::fs::write(&path, vec![b' '; 1 << 21]).unwrap();
        assert!(Registry::load(&path)
            .unwrap_err()
            .to_string()
            .ends_with("longer than 1048576 bytes"));
    }
}

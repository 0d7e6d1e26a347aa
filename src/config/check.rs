//! Judges a configuration against the tables of its keys. Nothing stops at the
//! first problem: whoever has to mend a file wants them all.

use log::Level;

use super::json::{self, Json, Member, Node};
use super::key::{Key, Kind, Value};
use super::nearest::nearest;
use super::problem::{Note, Position, Problem};
use super::section::Section;
use super::service_dirs;
use super::value::{self, unexpected};
use crate::part::Spec;

/// A configuration under judgement.
pub(super) struct Judge<'t> {
    text: &'t str,
    name: &'t str,
    problems: Vec<Problem>,
    notes: Vec<Note>,
    /// Every key that was met, by its canonical path, and where it stands.
    places: Vec<(String, usize)>,
}

/// Where a key may be given, under all of its names.
#[derive(Clone, Copy)]
pub(super) struct Name {
    pub(super) canonical: &'static str,
    pub(super) aliases: &'static [&'static str],
}

impl Name {
    pub(super) fn of_key(key: &Key) -> Self {
        Name { canonical: key.name, aliases: key.aliases }
    }

    /// Go's JSON knows no case, so the configurations that exist may not either.
    fn is(&self, word: &str) -> bool {
        let mut names = self.aliases.iter().chain([&self.canonical]);
        names.any(|name| name.eq_ignore_ascii_case(word))
    }
}

impl<'t> Judge<'t> {
    /// Begins with `text`, which is called `name` in messages.
    pub(super) fn new(text: &'t str, name: &'t str) -> Self {
        Judge { text, name, problems: Vec::new(), notes: Vec::new(), places: Vec::new() }
    }

    /// The whole text; None if it is not JSON.
    pub(super) fn root(&mut self) -> Option<Node<'t>> {
        let yaml = [".yaml", ".yml"].iter().any(|ending| self.name.ends_with(ending));
        let hint = if yaml { " (YAML has to be written as JSON)" } else { "" };
        json::parse(self.text)
            .map_err(|mut problem| {
                problem.message.push_str(hint);
                self.problems.push(problem);
            })
            .ok()
    }

    /// The members of the object at `node`, which is `path`: for each name the
    /// one that was given, if any. `what` says what the names name.
    pub(super) fn members(
        &mut self,
        path: &str,
        node: Node<'t>,
        what: &str,
        names: &[Name],
    ) -> Vec<Option<Member<'t>>> {
        let mut found: Vec<Option<Member<'t>>> = names.iter().map(|_| None).collect();
        let members = match node.open() {
            Ok(Json::Object(members)) => members,
            Ok(json) => {
                self.problem(node.at, path, unexpected(&json, "an object ({} for the defaults)"));
                return found;
            }
            Err(message) => {
                self.problem(node.at, path, message);
                return found;
            }
        };
        for member in members {
            let Some(index) = names.iter().position(|name| name.is(&member.key)) else {
                let full = join(path, &shown(&member.key));
                self.problem(member.at, &full, unknown(&member.key, what, names));
                continue;
            };
            let full = join(path, names[index].canonical);
            match &found[index] {
                None => {
                    self.places.push((full, member.at));
                    found[index] = Some(member);
                }
                Some(first) => {
                    let line = Position::of(self.text, first.at).line;
                    let message = format!(
                        "given a second time, as \"{}\"; the first is \"{}\" in line {line}",
                        member.key, first.key
                    );
                    self.problem(member.at, &full, message);
                }
            }
        }
        found
    }

    /// The section at `path` of the values that were given and the defaults of the
    /// others.
    pub(super) fn section(
        &mut self,
        path: &str,
        keys: &'static [Key],
        given: Vec<Option<Member<'t>>>,
    ) -> Section {
        let mut values = Vec::with_capacity(keys.len());
        for (key, given) in keys.iter().zip(given) {
            let judged = given.and_then(|member| {
                if matches!(key.kind, Kind::Retired) {
                    let message = format!("{}: has no effect any more", join(path, key.name));
                    self.note(Level::Info, member.at, &message);
                    return None;
                }
                let path = join(path, key.name);
                if let Kind::Rules(keys) = key.kind {
                    return self.rules(&path, keys, member.value);
                }
                if let (Kind::Section(keys), false) = (&key.kind, member.value.is_null()) {
                    let names: Vec<_> = keys.iter().map(Name::of_key).collect();
                    let given = self.members(&path, member.value, "key", &names);
                    return Some(Value::Section(Some(self.section(&path, keys, given))));
                }
                value::judge(&key.kind, member.value)
                    .map_err(|wrong| self.problem(wrong.at, &path, wrong.message))
                    .ok()
            });
            // After a problem the default only stands in: the whole is refused.
            if let Some(value) = judged.or_else(|| service_dirs::default_value(key)) {
                values.push((key.name, value));
            }
        }
        Section::new(path, values)
    }

    /// The rules in the list at `node`, which is `path`. Like all items of lists they are
    /// counted from 0, as other programs count those of JSON.
    fn rules(&mut self, path: &str, keys: &'static [Key], node: Node<'t>) -> Option<Value> {
        let expected = "a list of objects";
        let nodes = match node.open() {
            Ok(Json::List(nodes)) => nodes,
            Ok(json) => {
                self.problem(node.at, path, unexpected(&json, expected));
                return None;
            }
            Err(message) => {
                self.problem(node.at, path, message);
                return None;
            }
        };
        let names: Vec<_> = keys.iter().map(Name::of_key).collect();
        let mut rules = Vec::with_capacity(nodes.len());
        for (index, node) in nodes.into_iter().enumerate() {
            let path = format!("{path}[{index}]");
            self.places.push((path.clone(), node.at));
            let given = self.members(&path, node, "key", &names);
            rules.push(self.section(&path, keys, given));
        }
        Some(Value::Rules(rules))
    }

    /// The parts of a kind (`plugins` or `backends`) that are given, in the order
    /// of `specs`. Each is asked for by being there.
    pub(super) fn parts<T: ?Sized>(
        &mut self,
        path: &str,
        what: &str,
        node: Node<'t>,
        specs: &[&'static Spec<T>],
    ) -> Vec<(&'static Spec<T>, Section)> {
        let names: Vec<_> =
            specs.iter().map(|spec| Name { canonical: spec.name, aliases: spec.aliases }).collect();
        let given = self.members(path, node, what, &names);
        self.given_parts(path, given, specs)
    }

    /// The same, in an object that has keys of its own beside the parts.
    pub(super) fn keys_and_parts<T: ?Sized>(
        &mut self,
        (path, what): (&str, &str),
        node: Node<'t>,
        keys: &'static [Key],
        specs: &[&'static Spec<T>],
    ) -> (Section, Vec<(&'static Spec<T>, Section)>) {
        let parts = specs.iter().map(|s| Name { canonical: s.name, aliases: s.aliases });
        let names: Vec<_> = keys.iter().map(Name::of_key).chain(parts).collect();
        let mut given = self.members(path, node, what, &names);
        let parts = given.split_off(keys.len());
        (self.section(path, keys, given), self.given_parts(path, parts, specs))
    }

    fn given_parts<T: ?Sized>(
        &mut self,
        path: &str,
        given: Vec<Option<Member<'t>>>,
        specs: &[&'static Spec<T>],
    ) -> Vec<(&'static Spec<T>, Section)> {
        let mut parts = Vec::new();
        for (spec, given) in specs.iter().zip(given) {
            let Some(member) = given else { continue };
            let before = self.problems.len();
            let path = join(path, spec.name);
            let names: Vec<_> = spec.keys.iter().map(Name::of_key).collect();
            let given = self.members(&path, member.value, "key", &names);
            let section = self.section(&path, spec.keys, given);
            self.section_rules(before, spec.keys, &section, spec.check);
            parts.push((*spec, section));
        }
        parts
    }

    /// The rules over several keys of a section, which has the problems from that number on.
    /// In place of a wrong value they see the default: what they say of its key is not said,
    /// and nothing where a key may be meant for another.
    fn section_rules(
        &mut self,
        before: usize,
        keys: &[Key],
        section: &Section,
        check: fn(&Section) -> Vec<String>,
    ) {
        let wrong = self.problems[before..].iter();
        let wrong = wrong.map(|problem| key_of(&problem.message, section.path()));
        let is_known =
            |key: &str| keys.iter().any(|known| key.split('[').next() == Some(known.name));
        if wrong.clone().all(is_known) {
            let mut messages = check(section);
            messages.retain(|message| !wrong.clone().any(|key| message.contains(key)));
            for message in messages {
                self.rule(format!("{}.{message}", section.path()));
            }
        }
    }

    /// Whether the key at that full path was given, under whatever name.
    pub(super) fn is_given(&self, path: &str) -> bool {
        self.places.iter().any(|(known, _)| known == path)
    }

    /// Whether nothing was wrong so far.
    pub(super) fn is_good(&self) -> bool {
        self.problems.is_empty()
    }

    /// A rule is broken. `message` starts with the full path of a key.
    pub(super) fn rule(&mut self, message: String) {
        let at = self.place(&message);
        self.problems.push(Problem { at, message });
    }

    /// Something to know about the key that `message` starts with.
    pub(super) fn remark(&mut self, level: Level, message: &str) {
        self.note(level, self.place(message), message);
    }

    /// The verdict: what to know, or all problems in the order of the text.
    pub(super) fn finish(mut self) -> Result<Vec<Note>, String> {
        if self.problems.is_empty() {
            return Ok(self.notes);
        }
        self.problems.sort_by_key(|problem| problem.at);
        let line = |Problem { at, message }: &Problem| {
            format!("{}:{}: {message}", self.name, Position::of(self.text, *at))
        };
        Err(self.problems.iter().map(line).collect::<Vec<_>>().join("\n"))
    }

    /// Where the key stands that `message` starts with; if it was left to its
    /// default, where the nearest thing around it stands.
    fn place(&self, message: &str) -> usize {
        let end = message.find([':', ' ']).unwrap_or(message.len());
        let mut path = &message[..end];
        loop {
            if let Some((_, at)) = self.places.iter().find(|(known, _)| known == path) {
                return *at;
            }
            match path.rfind('.') {
                Some(dot) => path = &path[..dot],
                None => return 0,
            }
        }
    }

    fn problem(&mut self, at: usize, path: &str, message: String) {
        // Of an item of a list: its place belongs to the path.
        let between = if path.is_empty() || message.starts_with('[') { "" } else { ": " };
        let message = format!("{path}{between}{message}");
        self.problems.push(Problem { at, message });
    }

    fn note(&mut self, level: Level, at: usize, message: &str) {
        let text = format!("{}:{}: {message}", self.name, Position::of(self.text, at));
        self.notes.push(Note { level, text });
    }
}

/// The key of the section at `path` that a problem is about, or the item of it that has keys
/// itself, such as `rules[1]`.
fn key_of<'m>(message: &'m str, path: &str) -> &'m str {
    let rest = message.get(path.len() + 1..).unwrap_or_default();
    let end = rest.find(['.', ':', ' ']).unwrap_or(rest.len());
    let key = &rest[..end];
    if rest[end..].starts_with('.') {
        key
    } else {
        key.split('[').next().unwrap_or_default()
    }
}

fn unknown(key: &str, what: &str, names: &[Name]) -> String {
    let all = names.iter().flat_map(|name| [&name.canonical].into_iter().chain(name.aliases));
    let hint = match nearest(key, all.copied()) {
        Some(name) => format!(": did you mean \"{name}\"?"),
        None => String::new(),
    };
    let known: Vec<_> = names.iter().map(|name| name.canonical).collect();
    let known = match known.as_slice() {
        [] => "none".into(),
        known => known.join(", "),
    };
    format!("this version of glowd does not know this {what}{hint} (known: {known})")
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// A key as somebody wrote it, fit for a message.
fn shown(key: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !key.is_empty() && key.chars().all(plain) {
        value::shorten(key)
    } else {
        format!("{:?}", value::shorten(key))
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;

//! The manual pages: roff prose from man/*.in (mdoc(7)) whose slots are filled from
//! the tables of commands, flags and keys, so that the two cannot disagree.

use super::flags::{Command, Flag, COMMANDS, FLAGS};
use super::help::wrap;
use crate::backends::series::{self, Units};
use crate::config::{Key, Kind, TOP};
use crate::metrics::families::{self, Family};
use crate::part::Spec;
use crate::texts::{self, Text};
use crate::{backends, enrichers, plugins};

/// A manual page.
pub struct Page {
    /// As man(1) knows it.
    pub name: &'static str,
    /// Its file in the folder man.
    pub file: &'static str,
    template: &'static Text,
}

/// All pages.
pub static PAGES: &[Page] = &[
    Page { name: "glowd", file: "glowd.8", template: &texts::GLOWD_8 },
    Page { name: "glowd.conf", file: "glowd.conf.5", template: &texts::GLOWD_CONF_5 },
];

/// What stands for a slot of a template.
type Fill = fn() -> String;

/// All slots; each stands on a line of its own.
const SLOTS: &[(&str, Fill)] = &[
    ("!!commands!!", || COMMANDS.iter().map(command).collect()),
    ("!!options!!", || FLAGS.iter().map(flag).collect()),
    ("!!top!!", || TOP.iter().map(key).collect()),
    ("!!plugins!!", || plugins::ALL.iter().map(|spec| part(spec)).collect()),
    ("!!series!!", series),
    ("!!metrics!!", || families::ALL.iter().map(|family| metric(family)).collect()),
    ("!!measuring!!", || enrichers::KEYS.iter().map(key).collect()),
    ("!!enrichers!!", || enrichers::ALL.iter().map(|spec| part(spec)).collect()),
    ("!!backends!!", || backends::ALL.iter().map(|spec| part(spec)).collect()),
];

impl Page {
    /// The page, in mdoc(7).
    pub fn text(&self) -> String {
        let mut text = String::new();
        for line in self.template.read().lines() {
            match SLOTS.iter().find(|(slot, _)| *slot == line) {
                Some((_, fill)) => text.push_str(&fill()),
                // Comments are for those who edit the template.
                None if line.starts_with(".\\\"") => {}
                None => {
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
        text
    }
}

fn command(command: &Command) -> String {
    let operand = command.operand.map_or_else(String::new, |word| format!(" Op Ar {word}"));
    format!(".It Cm {}{operand}\n{}", command.name, prose(command.doc))
}

fn flag(flag: &Flag) -> String {
    let short = flag.short.map_or_else(String::new, |short| format!("Fl {short} , "));
    let value = flag.value.map_or_else(String::new, |value| format!(" Ar {value}"));
    let default = flag
        .default
        .map_or_else(String::new, |default| format!("The default is {}.\n", escape(default)));
    let of = match flag.commands {
        [] => String::new(),
        commands => format!("Of {}: ", commands.join(", ")),
    };
    let doc = prose(&format!("{of}{}", flag.doc));
    format!(".It {short}Fl Fl {}{value}\n{doc}{default}", escape(flag.long))
}

/// `name [type] {default}`, as every key is headed; those of a rule have no default.
fn key(key: &Key) -> String {
    let of_a_rule = key.is_of_a_rule();
    let default = match key.kind {
        Kind::Retired => String::new(),
        _ if of_a_rule => String::new(),
        _ => format!(" {{{}}}", key.default),
    };
    let head = escape(&format!("[{}]{default}", key.kind.type_name())).replace('"', "\\(dq");
    let mut text = format!(".It Cm {} No \"{head}\"\n{}", key.name, prose(key.doc));
    if let Kind::Rules(keys) | Kind::Section(keys) = key.kind {
        text.push_str(".Bl -tag -width 4n\n");
        text.extend(keys.iter().map(self::key));
        text.push_str(".El\n");
    }
    if key.live && !of_a_rule {
        text.push_str("Applied on reload.\n");
    }
    if !key.aliases.is_empty() {
        text.push_str(&format!("Alias: {}.\n", escape(&key.aliases.join(", "))));
    }
    if let Kind::Choice(choices) = key.kind {
        for choice in choices.iter().filter(|choice| !choice.aliases.is_empty()) {
            let known = choice.aliases.iter().map(|alias| match *alias {
                "" => "the empty text",
                alias => alias,
            });
            let aliases = escape(&known.collect::<Vec<_>>().join(", "));
            text.push_str(&format!("Alias of {}: {aliases}.\n", escape(choice.name)));
        }
    }
    text
}

fn part<T: ?Sized>(spec: &Spec<T>) -> String {
    let mut text = format!(".Ss {}\n", spec.name);
    text.push_str(&prose(&format!("{}.", capital(spec.summary))));
    if !spec.aliases.is_empty() {
        text.push_str(&format!("Alias: {}.\n", escape(&spec.aliases.join(", "))));
    }
    if spec.keys.is_empty() {
        return text + "It has no keys.\n";
    }
    text.push_str(".Bl -tag -width 4n\n");
    text.extend(spec.keys.iter().map(key));
    text + ".El\n"
}

/// `name{labels} (kind)`, as every metric is headed.
fn metric(family: &Family) -> String {
    let labels = match family.labels {
        [] => String::new(),
        labels => format!("{{{}}}", labels.join(", ")),
    };
    let head = escape(&format!("{labels} {}", family.kind.name()));
    format!(".It Cm {} No \"{}\"\n{}", family.name, head.trim_start(), prose(family.help))
}

/// The series of flows: name in flowd-go and in flowd where that differs, and the unit.
fn series() -> String {
    let entry = |names: [&str; 2], units: [&str; 2], help: &str| {
        let [go, flowd] = names;
        let head = match (go, flowd) {
            ("", name) => format!("flow_tcp_{name} No (flowd only)"),
            (name, other) if name == other => format!("flow_tcp_{name}"),
            (name, other) => format!("flow_tcp_{name} No (flowd: Cm flow_tcp_{other} )"),
        };
        let unit = match units {
            [go, flowd] if go == flowd => go.to_owned(),
            [go, flowd] => format!("{go}; flowd{flowd}"),
        };
        format!(".It Cm {head}\n{}", prose(&format!("{help}{unit}.")))
    };
    let both = [Units::FlowdGo, Units::Flowd];
    let mut text: String = series::ALL
        .iter()
        .map(|one| entry(both.map(|u| one.name(u)), both.map(|u| one.unit.name(u)), one.help))
        .collect();
    let names = both.map(|units| series::algorithm(units).0);
    text.push_str(&entry(names, ["", ""], series::ALGORITHM));
    text
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// Plain sentences as roff wants them: each begins a line.
fn prose(text: &str) -> String {
    let mut lines = String::new();
    for sentence in text.split_inclusive(". ") {
        for line in wrap(sentence.trim_end(), 72) {
            lines.push_str(&escape(&line));
            lines.push('\n');
        }
    }
    lines
}

/// Text in which roff sees no commands.
fn escape(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    if escaped.starts_with(['.', '\'']) {
        format!("\\&{escaped}")
    } else {
        escaped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_is_filled_and_every_word_of_the_tables_is_there() {
        let all: String = PAGES.iter().map(Page::text).collect();
        assert!(!all.contains("!!"), "a slot is left");
        for (slot, _) in SLOTS {
            let used = |page: &&Page| page.template.read().lines().any(|line| line == *slot);
            assert_eq!(PAGES.iter().filter(used).count(), 1, "{slot}");
        }
        for command in COMMANDS {
            assert!(all.contains(&format!("\n.It Cm {}", command.name)), "{}", command.name);
        }
        for flag in FLAGS {
            assert!(all.contains(&format!("Fl Fl {}", escape(flag.long))), "--{}", flag.long);
        }
        let parts = plugins::ALL.iter().map(|spec| spec.keys);
        let parts =
            parts.chain(enrichers::ALL.iter().map(|spec| spec.keys)).chain([enrichers::KEYS]);
        let parts = parts.chain(backends::ALL.iter().map(|spec| spec.keys));
        for key in parts.chain([TOP]).flatten() {
            let inner = if let Kind::Rules(keys) = key.kind { keys } else { &[] };
            for key in std::iter::once(key).chain(inner) {
                assert!(all.contains(&format!("\n.It Cm {} No \"[", key.name)), "{}", key.name);
            }
        }
    }

    #[test]
    fn roff_sees_no_commands_in_prose() {
        assert_eq!(prose("A b-c. .x \\n. 'q"), "A b\\-c.\n\\&.x \\en.\n\\&'q\n");
    }
}

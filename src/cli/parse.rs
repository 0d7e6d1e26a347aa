//! Turns words into [`Args`]. Everything it knows of them is in the tables.

use std::ffi::OsString;

use super::flags::{Args, Command, Flag, COMMANDS, FLAGS};
use crate::config::nearest::nearest;
use crate::error::{Error, Result};

/// What `words` say, which lack the program's own name.
///
/// # Errors
/// A word is wrong; the message names the nearest right one.
pub(super) fn parse(words: impl Iterator<Item = OsString>) -> Result<Args> {
    let mut parser = lexopt::Parser::from_args(words);
    let mut args = Args::default();
    let mut given: Vec<&'static Flag> = Vec::new();
    let mut operands: Vec<String> = Vec::new();
    while let Some(arg) = parser.next().map_err(usage)? {
        let flag = match arg {
            lexopt::Arg::Value(word) => {
                operands.push(word.to_string_lossy().into_owned());
                continue;
            }
            lexopt::Arg::Long(name) => FLAGS
                .iter()
                .find(|flag| flag.long == name)
                .ok_or_else(|| unknown_flag(&format!("--{name}")))?,
            lexopt::Arg::Short(name) => FLAGS
                .iter()
                .find(|flag| flag.short == Some(name))
                .ok_or_else(|| unknown_flag(&format!("-{name}")))?,
        };
        let value = match flag.value {
            Some(_) => parser.value().map_err(|_| missing_value(flag))?,
            None => OsString::new(),
        };
        (flag.apply)(&mut args, value)
            .map_err(|message| Error::usage(format!("--{}: {message}", flag.long)))?;
        given.push(flag);
    }
    if operands.is_empty() {
        return Ok(args);
    }
    let command = find_command(&operands)?;
    args.command = Some(command);
    args.operands = operands.split_off(command.name.split(' ').count());
    // Asking for help is never wrong.
    if args.help || args.version {
        return Ok(args);
    }
    if let Some(flag) = given.iter().find(|flag| !flag.is_for(command.name)) {
        let (long, name, right) = (flag.long, command.name, flag.commands.join("\", \""));
        return Err(Error::usage(format!("--{long} is not for \"{name}\", but for \"{right}\"")));
    }
    if command.operand.is_none() {
        if let Some(word) = args.operands.first() {
            let name = command.name;
            return Err(Error::usage(format!("{word:?} is too much: \"{name}\" takes no word")));
        }
    }
    Ok(args)
}

/// The command that the words begin with.
pub(super) fn find_command(words: &[String]) -> Result<&'static Command> {
    let begins = |command: &&Command| {
        let mut words = words.iter();
        command.name.split(' ').all(|part| words.next().is_some_and(|word| word == part))
    };
    if let Some(command) = COMMANDS.iter().find(begins) {
        return Ok(command);
    }
    let first = words.first().map_or("", String::as_str);
    let names = || COMMANDS.iter().map(|command| command.name);
    // The words may begin with one of two words, or be both of them, misspelt.
    let two = words.iter().take(2).map(String::as_str).collect::<Vec<_>>().join(" ");
    let mut near: Vec<&str> = names()
        .filter(|name| name.split_once(' ').is_some_and(|(start, _)| start == first))
        .collect();
    if near.is_empty() {
        near.extend(nearest(&two, names()).or_else(|| nearest(first, names())));
    }
    let hint = match near.as_slice() {
        [] => "\"glowd help\" lists the commands".to_owned(),
        names => format!("did you mean \"{}\"?", names.join("\" or \"")),
    };
    let typed = if near.iter().any(|name| name.contains(' ')) { &two } else { first };
    Err(Error::usage(format!("{typed:?} is not a command: {hint}")))
}

fn unknown_flag(typed: &str) -> Error {
    let near = nearest(typed.trim_start_matches('-'), FLAGS.iter().map(|flag| flag.long));
    let hint = match near {
        Some(name) => format!("did you mean \"--{name}\"?"),
        None => "\"glowd help\" lists the flags".to_owned(),
    };
    Error::usage(format!("{typed:?} is not a flag: {hint}"))
}

fn missing_value(flag: &Flag) -> Error {
    let value = flag.value.unwrap_or_default();
    Error::usage(format!("--{} needs a value: --{} {value}", flag.long, flag.long))
}

/// What is left for lexopt to complain of.
fn usage(error: lexopt::Error) -> Error {
    match error {
        lexopt::Error::UnexpectedValue { option, value } => {
            Error::usage(format!("{option} takes no value, but has {value:?}"))
        }
        error => Error::usage(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;
    use std::path::Path;

    fn words(line: &str) -> Result<Args> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn refused(line: &str) -> String {
        match words(line) {
            Err(error) => {
                assert_eq!(error.class(), Class::Usage);
                error.to_string()
            }
            Ok(_) => panic!("accepted: {line}"),
        }
    }

    #[test]
    fn flags_stand_before_or_after_the_command() {
        for line in [
            "--conf /x --log-level debug conf --check",
            "conf --check --conf=/x --log-level=DEBUG",
            "--check conf --conf /x --log-level debug",
        ] {
            let args = words(line).unwrap();
            assert_eq!(args.command.unwrap().name, "conf");
            assert_eq!(args.conf, Path::new("/x"));
            assert_eq!(args.log_level, Some(log::LevelFilter::Debug));
            assert!(args.check && !args.log_time);
        }
        let args = words("marker --target-interface a clean --target-interface b").unwrap();
        assert_eq!(args.command.unwrap().name, "marker clean");
        assert_eq!(args.interfaces, ["a", "b"]);
        let args = words("help marker clean").unwrap();
        assert_eq!(args.operands, ["marker", "clean"]);
        assert!(words("").unwrap().command.is_none());
        assert!(words("-h").unwrap().help);
        assert!(words("run --check -V").unwrap().version);
    }

    #[test]
    fn a_wrong_word_is_answered_with_the_nearest_right_one() {
        for (line, message) in [
            ("rnu", "\"rnu\" is not a command: did you mean \"run\"?"),
            ("marker", "\"marker\" is not a command: did you mean \"marker clean\"?"),
            ("marker claen", "\"marker claen\" is not a command: did you mean \"marker clean\"?"),
            ("markre clean", "\"markre clean\" is not a command: did you mean \"marker clean\"?"),
            ("rnu now", "\"rnu\" is not a command: did you mean \"run\"?"),
            ("dance", "\"dance\" is not a command: \"glowd help\" lists the commands"),
            ("run --cnof x", "\"--cnof\" is not a flag: did you mean \"--conf\"?"),
            ("run -x", "\"-x\" is not a flag: \"glowd help\" lists the flags"),
            ("run --conf", "--conf needs a value: --conf PATH"),
            ("run --conf=", "--conf: the path is empty"),
            ("run --log-time=1", "--log-time takes no value, but has \"1\""),
            ("run --check", "--check is not for \"run\", but for \"conf\""),
            ("run fast", "\"fast\" is too much: \"run\" takes no word"),
            (
                "run --log-level wran",
                "--log-level: \"wran\" is none of debug, info, warn, error: did you mean \"warn\"?",
            ),
        ] {
            assert_eq!(refused(line), message);
        }
    }
}

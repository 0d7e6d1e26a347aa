//! The one table of commands and the one of flags: parser, help, man page and
//! completions all read them.

use std::ffi::OsString;
use std::path::PathBuf;

use log::LevelFilter;

use super::{commands, tag, watch};
use crate::config;
use crate::error::Result;

/// A command.
pub struct Command {
    /// One word or two.
    pub name: &'static str,
    /// What may follow it, as the help shows it.
    pub operand: Option<&'static str>,
    /// What it does. The first sentence is the summary of the help.
    pub doc: &'static str,
    /// Does it.
    pub run: fn(&Args) -> Result<()>,
}

/// A flag. It may stand before or after the command.
pub struct Flag {
    /// Without its dashes.
    pub long: &'static str,
    /// Without its dash.
    pub short: Option<char>,
    /// What its value is called; None: it has no value.
    pub value: Option<&'static str>,
    /// What holds without it.
    pub default: Option<&'static str>,
    /// The commands that know it; none: all of them do.
    pub commands: &'static [&'static str],
    /// What it does. The first sentence is the summary of the help.
    pub doc: &'static str,
    /// Notes it. A message lacks the name of the flag; the parser puts it in front.
    pub apply: fn(&mut Args, OsString) -> std::result::Result<(), String>,
}

/// What was typed.
pub struct Args {
    /// The command; None: there was no word at all.
    pub command: Option<&'static Command>,
    /// The words behind the command.
    pub operands: Vec<String>,
    /// `--conf`.
    pub conf: PathBuf,
    /// `--log-level`, if it was given.
    pub log_level: Option<LevelFilter>,
    /// `--log-time`.
    pub log_time: bool,
    /// `--check`.
    pub check: bool,
    /// `--target-interface` or `--interface`, as often as it was given.
    pub interfaces: Vec<String>,
    /// `--stun-server`, as often as it was given.
    pub stun_servers: Vec<String>,
    /// `--all`.
    pub all: bool,
    /// `--help`.
    pub help: bool,
    /// `--version`.
    pub version: bool,
}

impl Default for Args {
    fn default() -> Self {
        Args {
            command: None,
            operands: Vec::new(),
            conf: config::DEFAULT_PATH.into(),
            log_level: None,
            log_time: false,
            check: false,
            interfaces: Vec::new(),
            stun_servers: Vec::new(),
            all: false,
            help: false,
            version: false,
        }
    }
}

/// The levels of `--log-level`.
pub(super) const LEVELS: &[(&str, LevelFilter)] = &[
    ("debug", LevelFilter::Debug),
    ("info", LevelFilter::Info),
    ("warn", LevelFilter::Warn),
    ("error", LevelFilter::Error),
];

/// All commands, in the order of the documentation.
pub static COMMANDS: &[Command] = &[
    Command {
        name: "run",
        operand: None,
        doc: "Run the daemon in the foreground. It reads the configuration, opens all that the \
              configuration asks for, and works until it is told to stop. Service managers start \
              this.",
        run: commands::run,
    },
    Command {
        name: "conf",
        operand: None,
        doc: "Print the effective configuration. Defaults are filled in and aliases replaced, so \
              that the output says all that holds, and is a configuration itself. Problems and \
              notes go to standard error.",
        run: commands::conf,
    },
    Command {
        name: "marker clean",
        operand: None,
        doc: "Remove the packet filters that a killed glowd left behind, and nothing else. It is \
              not needed for a new start, which replaces them. Where a glowd is at work, nothing \
              is touched; if that interface was named, it is an error.",
        run: commands::marker_clean,
    },
    Command {
        name: "tag encode",
        operand: Some("EXPERIMENT ACTIVITY"),
        doc: "Print a tag in all the forms in which it travels. These are the scitag integer of \
              XRootD and HTTP, the IPv6 flow label, the option of the extension headers, and a \
              filter for tcpdump. Both are ids or registered names, in any case; the words behind \
              EXPERIMENT are one name.",
        run: tag::encode,
    },
    Command {
        name: "tag decode",
        operand: Some("VALUE"),
        doc: "Print which experiment and activity a value means. It is a scitag integer or a flow \
              label, in decimal or behind 0x in hexadecimal; or bytes in hexadecimal: an option, \
              an extension header or an IPv6 packet from its first byte on. A value that may mean \
              something else too is warned of.",
        run: tag::decode,
    },
    Command {
        name: "registry check",
        operand: Some("FILE"),
        doc:
            "Judge whether FILE is a registry, and say \"FILE: ok\" or what is wrong. Its form is \
              that of https://www.scitags.org/api.json; see registryPath in glowd.conf(5).",
        run: commands::registry_check,
    },
    Command {
        name: "selftest",
        operand: None,
        doc: "Try whether marking works on this host. It prints a line for each thing that the \
              kernel has or lacks, for what finds and measures connections, and for each way of \
              marking, and leaves nothing behind; see KERNELS in glowd(8). It fails if the defaults do not work.",
        run: commands::selftest,
    },
    Command {
        name: "watch",
        operand: None,
        doc: "Show the tags that packets carry, a line for each flow. It sees what arrives at the \
              interfaces and what leaves them, behind the marker. A flow label may be any number, \
              so only registered tags count there. It takes CAP_NET_RAW, and shows no more than \
              it can keep up with.",
        run: watch::watch,
    },
    Command {
        name: "stun sample",
        operand: None,
        doc: "Print which public addresses this host's private ones have. It asks as the daemon \
              does, by the section stun of the backend firefly or by its defaults, and prints a \
              line for each private address: the address, the public one or -, and who says so. \
              It takes 40 seconds if nobody answers, which is an error.",
        run: commands::stun_sample,
    },
    Command {
        name: "version",
        operand: None,
        doc:
            "Print the versions of glowd and of the libbpf in it. The commit that glowd was built \
              from is there too if the build knew it.",
        run: commands::version,
    },
    Command {
        name: "help",
        operand: Some("COMMAND"),
        doc: "Print the commands and flags, or what COMMAND does.",
        run: commands::help,
    },
    Command {
        name: "man",
        operand: Some("PAGE"),
        doc: "Print the manual page glowd or glowd.conf. Its form is that of mandoc and groff: \
              try glowd man glowd.conf | man -l -.",
        run: commands::man,
    },
    Command {
        name: "completions",
        operand: Some("SHELL"),
        doc: "Print the completions for bash, zsh or fish. Packages install them; without one, \
              try source <(glowd completions bash). They are bash's unless SHELL says otherwise.",
        run: commands::completions,
    },
];

/// All flags, in the order of the documentation.
pub static FLAGS: &[Flag] = &[
    Flag {
        long: "conf",
        short: None,
        value: Some("PATH"),
        default: Some(config::DEFAULT_PATH),
        commands: &[],
        doc: "Read the configuration from PATH. The commands that need one are run, conf and stun \
              sample; tag and watch take the names of registered ids from where it says. The \
              others pass it over.",
        apply: |args, value| {
            if value.is_empty() {
                return Err("the path is empty".into());
            }
            args.conf = value.into();
            Ok(())
        },
    },
    Flag {
        long: "log-level",
        short: None,
        value: Some("LEVEL"),
        default: None,
        commands: &[],
        doc: "Log what is at least as urgent as LEVEL: debug, info, warn or error. At info there \
              is a line for each change in the daemon's life, at debug one for each event of a \
              flow. Without it logLevel of the configuration holds, which is info by default.",
        apply: |args, value| {
            let found = LEVELS.iter().find(|(name, _)| value.eq_ignore_ascii_case(name));
            let Some((_, level)) = found else {
                let names: Vec<_> = LEVELS.iter().map(|(name, _)| *name).collect();
                let typed = value.to_string_lossy();
                let hint = match config::nearest::nearest(&typed, names.iter().copied()) {
                    Some(name) => format!(": did you mean \"{name}\"?"),
                    None => String::new(),
                };
                return Err(format!("{typed:?} is none of {}{hint}", names.join(", ")));
            };
            args.log_level = Some(*level);
            Ok(())
        },
    },
    Flag {
        long: "log-time",
        short: None,
        value: None,
        default: None,
        commands: &[],
        doc: "Put the time, in UTC, in front of each log line. The journal and syslog have their \
              own, so that it does nothing there.",
        apply: |args, _| {
            args.log_time = true;
            Ok(())
        },
    },
    Flag {
        long: "check",
        short: None,
        value: None,
        default: None,
        commands: &["conf"],
        doc: "Judge the configuration only, and say \"PATH: ok\" or all that is wrong. Nothing is \
              opened: that an interface exists or that a port is free is for run to find out.",
        apply: |args, _| {
            args.check = true;
            Ok(())
        },
    },
    Flag {
        long: "target-interface",
        short: None,
        value: Some("NAME"),
        default: Some("all"),
        commands: &["marker clean"],
        doc: "Clean this interface only. It may be given more than once.",
        apply: add_interface,
    },
    Flag {
        long: "interface",
        short: Some('i'),
        value: Some("NAME"),
        default: None,
        commands: &["watch"],
        doc: "Watch this interface only. It may be given more than once.",
        apply: add_interface,
    },
    Flag {
        long: "all",
        short: None,
        value: None,
        default: None,
        commands: &["watch"],
        doc: "Show flows without a tag too.",
        apply: |args, _| {
            args.all = true;
            Ok(())
        },
    },
    Flag {
        long: "stun-server",
        short: None,
        value: Some("SERVER"),
        default: None,
        commands: &["stun sample"],
        doc: "Ask this STUN server only, host or host:port, and read no configuration. It may be \
              given more than once.",
        apply: |args, value| {
            args.stun_servers.push(value.to_string_lossy().into_owned());
            Ok(())
        },
    },
    Flag {
        long: "remove-qdisc",
        short: None,
        value: None,
        default: None,
        commands: &["marker clean"],
        doc: "Accepted for the sake of flowd-go's users, without effect. A clsact qdisc goes if \
              glowd made it and nobody else uses it, and stays otherwise, with or without this \
              flag.",
        apply: |_, _| Ok(()),
    },
    Flag {
        long: "help",
        short: Some('h'),
        value: None,
        default: None,
        commands: &[],
        doc: "Print the help, of the command if there is one, and do nothing else.",
        apply: |args, _| {
            args.help = true;
            Ok(())
        },
    },
    Flag {
        long: "version",
        short: Some('V'),
        value: None,
        default: None,
        commands: &[],
        doc: "Print the versions and do nothing else.",
        apply: |args, _| {
            args.version = true;
            Ok(())
        },
    },
];

fn add_interface(args: &mut Args, value: OsString) -> std::result::Result<(), String> {
    match value.into_string() {
        Ok(name) if !name.is_empty() => {
            args.interfaces.push(name);
            Ok(())
        }
        _ => Err("that is no name of an interface".into()),
    }
}

impl Flag {
    /// Whether `command` knows it.
    pub fn is_for(&self, command: &str) -> bool {
        self.commands.is_empty() || self.commands.contains(&command)
    }
}

/// The first sentence of a documentation, for a list.
pub(super) fn summary(doc: &str) -> &str {
    doc.split_inclusive(". ").next().unwrap_or(doc).trim_end().trim_end_matches('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_sound() {
        for (index, flag) in FLAGS.iter().enumerate() {
            let others = &FLAGS[..index];
            assert!(!others.iter().any(|other| other.long == flag.long), "--{} twice", flag.long);
            let taken = |other: &Flag| other.short.is_some() && other.short == flag.short;
            assert!(!others.iter().any(taken), "--{}: short name twice", flag.long);
            let plain = |c: char| c.is_ascii_lowercase() || c == '-';
            assert!(flag.long.len() > 1 && flag.long.chars().all(plain), "--{}", flag.long);
            assert!(flag.default.is_none() || flag.value.is_some(), "--{}", flag.long);
            assert!(flag.doc.ends_with('.') && flag.doc.is_ascii(), "--{}", flag.long);
            for command in flag.commands {
                assert!(COMMANDS.iter().any(|known| known.name == *command), "--{}", flag.long);
            }
        }
        for (index, command) in COMMANDS.iter().enumerate() {
            assert!(!COMMANDS[..index].iter().any(|other| other.name == command.name));
            assert!(command.doc.ends_with('.') && command.doc.is_ascii(), "{}", command.name);
            assert!(summary(command.doc).len() <= 75, "{}", command.name);
        }
    }

    #[test]
    fn documented_defaults_hold() {
        let args = Args::default();
        for flag in FLAGS {
            let Some(default) = flag.default else { continue };
            let mut same = Args::default();
            match flag.long {
                // All, which is what no name means.
                "target-interface" => continue,
                _ => (flag.apply)(&mut same, default.into()).unwrap(),
            }
            assert_eq!((&same.conf, same.log_level), (&args.conf, args.log_level));
        }
    }
}

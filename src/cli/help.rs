//! The help: the tables in columns.

use super::flags::{summary, Command, Flag, COMMANDS, FLAGS};

/// Characters on a line.
const WIDTH: usize = 80;

/// All commands and flags, a line or two each.
pub(super) fn all() -> String {
    let mut text = String::from(
        "glowd marks network flows with their experiment and activity (SciTags).\n\n\
         Usage: glowd [FLAGS] COMMAND\n\nCommands:\n",
    );
    let rows = COMMANDS.iter().map(|command| (usage(command), summary(command.doc).to_owned()));
    columns(&mut text, rows.collect());
    text.push_str("\nFlags:\n");
    columns(&mut text, FLAGS.iter().map(|flag| row(flag, summary(flag.doc))).collect());
    text.push_str("\nMore is in glowd(8) and glowd.conf(5).\n");
    text
}

/// What one command does, with its flags.
pub(super) fn of(command: &Command) -> String {
    let mut text = format!("Usage: glowd [FLAGS] {}\n\n", usage(command));
    for line in wrap(command.doc, WIDTH) {
        text.push_str(&line);
        text.push('\n');
    }
    text.push_str("\nFlags:\n");
    let flags = FLAGS.iter().filter(|flag| flag.is_for(command.name));
    columns(&mut text, flags.map(|flag| row(flag, flag.doc)).collect());
    text
}

fn usage(command: &Command) -> String {
    match command.operand {
        Some(operand) => format!("{} [{operand}]", command.name),
        None => command.name.to_owned(),
    }
}

fn row(flag: &Flag, doc: &str) -> (String, String) {
    let short = flag.short.map_or_else(|| "    ".to_owned(), |short| format!("-{short}, "));
    let value = flag.value.map_or_else(String::new, |value| format!(" {value}"));
    let default = match (flag.default, doc.ends_with('.')) {
        (None, _) => String::new(),
        (Some(default), true) => format!(" Default: {default}."),
        (Some(default), false) => format!(" (default: {default})"),
    };
    let of = match flag.commands {
        [] => String::new(),
        commands => format!("{}: ", commands.join(", ")),
    };
    (format!("{short}--{}{value}", flag.long), format!("{of}{doc}{default}"))
}

fn columns(text: &mut String, rows: Vec<(String, String)>) {
    let left = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    for (name, doc) in rows {
        let mut name = name.as_str();
        for line in wrap(&doc, WIDTH - left - 4) {
            text.push_str(&format!("  {name:left$}  {line}\n"));
            name = "";
        }
    }
}

/// Breaks text between words.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_and_flag_is_in_the_help_and_no_line_is_too_long() {
        let all = all();
        for command in COMMANDS {
            assert!(all.contains(&format!("\n  {}", command.name)), "{}", command.name);
            let of = of(command);
            for flag in FLAGS {
                assert_eq!(of.contains(&format!("--{}", flag.long)), flag.is_for(command.name));
                assert!(all.contains(&format!("--{}", flag.long)));
            }
            assert!(of.lines().chain(all.lines()).all(|line| line.len() <= WIDTH), "{of}{all}");
        }
    }
}

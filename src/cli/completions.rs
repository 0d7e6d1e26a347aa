//! Shell completions, made from the tables of commands and flags. All three shells
//! are told the same: what has been typed so far, without flags, and which words
//! and flags may follow that. Formats: bash(1) "Programmable Completion",
//! zshcompsys(1), fish's complete(1).

use super::flags::{summary, Flag, COMMANDS, FLAGS, LEVELS};
use super::man::PAGES;

/// A shell.
pub(super) struct Shell {
    /// Its name.
    pub(super) name: &'static str,
    script: fn(&[Place]) -> String,
}

/// All shells.
pub(super) static SHELLS: &[Shell] = &[
    Shell { name: "bash", script: bash },
    Shell { name: "zsh", script: zsh },
    Shell { name: "fish", script: fish },
];

impl Shell {
    /// What the shell has to read.
    pub(super) fn text(&self) -> String {
        (self.script)(&places())
    }
}

/// What may be typed where a value or an operand is wanted.
enum Candidates {
    Files,
    Interfaces,
    Words(Vec<&'static str>),
    /// Anything, so that nothing can be offered.
    Any,
}

/// By the name that the help gives it.
fn candidates(value: &str) -> Candidates {
    match value {
        "PATH" => Candidates::Files,
        "NAME" => Candidates::Interfaces,
        "LEVEL" => Candidates::Words(LEVELS.iter().map(|(name, _)| *name).collect()),
        "PAGE" => Candidates::Words(PAGES.iter().map(|page| page.name).collect()),
        "SHELL" => Candidates::Words(SHELLS.iter().map(|shell| shell.name).collect()),
        _ => Candidates::Any,
    }
}

/// A point of a command line.
struct Place {
    /// The words before it that are neither flags nor their values.
    before: String,
    /// The words that may follow, each with its summary.
    words: Vec<(&'static str, String)>,
    flags: Vec<&'static Flag>,
}

fn places() -> Vec<Place> {
    let flags_for = |begin: &str| -> Vec<&Flag> {
        let fits = |name: &str| name == begin || begins_with(name, begin);
        let some = |flag: &&Flag| COMMANDS.iter().any(|it| fits(it.name) && flag.is_for(it.name));
        FLAGS.iter().filter(some).collect()
    };
    let commands = |begin: &str| Place {
        before: begin.to_owned(),
        words: next_words(begin),
        flags: flags_for(begin),
    };
    let mut places = vec![commands("")];
    for command in COMMANDS {
        if let Some((first, _)) = command.name.split_once(' ') {
            if !places.iter().any(|place| place.before == first) {
                places.push(commands(first));
            }
        }
        let words = match command.operand {
            Some("COMMAND") => next_words(""),
            Some(operand) => match candidates(operand) {
                Candidates::Words(words) => {
                    words.into_iter().map(|word| (word, String::new())).collect()
                }
                // What a word may be of these, no command wants yet.
                Candidates::Files | Candidates::Interfaces | Candidates::Any => Vec::new(),
            },
            None => Vec::new(),
        };
        let flags = FLAGS.iter().filter(|flag| flag.is_for(command.name)).collect::<Vec<_>>();
        // The second word of a command that is an operand.
        for (word, _) in words.iter().filter(|_| command.operand == Some("COMMAND")) {
            let words = next_words(word);
            if !words.is_empty() {
                let before = format!("{} {word}", command.name);
                places.push(Place { before, words, flags: flags.clone() });
            }
        }
        places.push(Place { before: command.name.to_owned(), words, flags });
    }
    places
}

/// Whether more words follow `begin` in `name`.
fn begins_with(name: &str, begin: &str) -> bool {
    begin.is_empty() || name.strip_prefix(begin).is_some_and(|rest| rest.starts_with(' '))
}

/// The next word of each command that begins so.
fn next_words(begin: &str) -> Vec<(&'static str, String)> {
    let mut next: Vec<(&str, String)> = Vec::new();
    for command in COMMANDS.iter().filter(|command| begins_with(command.name, begin)) {
        let rest = command.name.get(begin.len()..).unwrap_or_default().trim_start();
        let word = rest.split(' ').next().unwrap_or_default();
        if !next.iter().any(|(known, _)| *known == word) {
            next.push((word, summary(command.doc).to_owned()));
        }
    }
    next
}

/// The names of flags that have values, for a pattern.
fn valued(separator: &str) -> String {
    let flags = FLAGS.iter().filter(|flag| flag.value.is_some());
    flags.map(|flag| format!("--{}", flag.long)).collect::<Vec<_>>().join(separator)
}

fn spellings(flag: &Flag) -> Vec<String> {
    let short = flag.short.map(|short| format!("-{short}"));
    short.into_iter().chain([format!("--{}", flag.long)]).collect()
}

fn bash(places: &[Place]) -> String {
    let mut text = r#"# bash completion for glowd, made by "glowd completions bash".

_glowd() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} line='' i
    # "--flag=value" is three words here.
    if [[ $cur == = ]]; then
        cur=''
    elif [[ $prev == = ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    case $prev in
"#
    .to_owned();
    for flag in FLAGS.iter() {
        let Some(value) = flag.value else { continue };
        let reply = match candidates(value) {
            Candidates::Files => {
                "compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- \"$cur\")".to_owned()
            }
            Candidates::Interfaces => bash_words("$(command ls /sys/class/net 2>/dev/null)"),
            Candidates::Words(words) => bash_words(&words.join(" ")),
            Candidates::Any => "COMPREPLY=()".to_owned(),
        };
        text.push_str(&format!("        --{}) {reply}; return ;;\n", flag.long));
    }
    text.push_str(&format!(
        r#"    esac
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
            {}) [[ ${{COMP_WORDS[i + 1]}} == = ]] && ((i++)); ((i++)) ;;
            -*) ;;
            *) line+="${{line:+ }}${{COMP_WORDS[i]}}" ;;
        esac
    done
    local words='' flags=''
    case $line in
"#,
        valued(" | ")
    ));
    for place in places {
        let words: Vec<_> = place.words.iter().map(|(word, _)| *word).collect();
        let flags: Vec<_> = place.flags.iter().flat_map(|flag| spellings(flag)).collect();
        text.push_str(&format!(
            "        \"{}\") words=\"{}\" flags=\"{}\" ;;\n",
            place.before,
            words.join(" "),
            flags.join(" ")
        ));
    }
    text.push_str(&format!(
        r#"    esac
    [[ $cur == -* ]] && words=$flags
    {}
}}

complete -F _glowd glowd
"#,
        bash_words("$words")
    ));
    text
}

fn bash_words(words: &str) -> String {
    format!("mapfile -t COMPREPLY < <(compgen -W \"{words}\" -- \"$cur\")")
}

fn zsh(places: &[Place]) -> String {
    let mut text = String::from(
        r#"#compdef glowd
# zsh completion for glowd, made by "glowd completions zsh".

_glowd() {
    local prev=$words[CURRENT-1] line='' i
    local -a next flags
    if [[ $PREFIX == --*=* ]]; then
        prev=${PREFIX%%=*}
        compset -P 1 '*='
    fi
    case $prev in
"#,
    );
    for flag in FLAGS.iter() {
        let Some(value) = flag.value else { continue };
        let action = match candidates(value) {
            Candidates::Files => "_files".to_owned(),
            Candidates::Interfaces => "compadd -- /sys/class/net/*(N:t)".to_owned(),
            Candidates::Words(words) => format!("compadd -- {}", words.join(" ")),
            Candidates::Any => format!("_message {value}"),
        };
        text.push_str(&format!("        (--{}) {action}; return ;;\n", flag.long));
    }
    text.push_str(&format!(
        r#"    esac
    for ((i = 2; i < CURRENT; i++)); do
        case $words[i] in
            ({}) ((i++)) ;;
            (-*) ;;
            (*) line+="${{line:+ }}$words[i]" ;;
        esac
    done
    case $line in
"#,
        valued("|")
    ));
    for place in places {
        text.push_str(&format!("        (\"{}\")\n            next=(", place.before));
        for (word, doc) in &place.words {
            text.push_str(&format!("\n                {}", described(word, doc)));
        }
        text.push_str(")\n            flags=(");
        for flag in &place.flags {
            for name in spellings(flag) {
                text.push_str(&format!(
                    "\n                {}",
                    described(&name, summary(flag.doc))
                ));
            }
        }
        text.push_str(") ;;\n");
    }
    text.push_str(
        r#"    esac
    if [[ $PREFIX == -* ]]; then
        _describe -o flag flags
    else
        _describe word next
    fi
}

# It may be found in fpath, or read by "source".
if [[ $funcstack[1] == _glowd ]]; then
    _glowd "$@"
else
    compdef _glowd glowd
fi
"#,
    );
    text
}

/// An entry of zsh's _describe: a word, and what it means.
fn described(word: &str, doc: &str) -> String {
    let entry = if doc.is_empty() { word.to_owned() } else { format!("{word}:{doc}") };
    format!("'{}'", entry.replace('\'', "'\\''"))
}

fn fish(places: &[Place]) -> String {
    let mut text = format!(
        r#"# fish completion for glowd, made by "glowd completions fish".

# Whether the words before the cursor, without flags and their values, are one of
# the arguments.
function __glowd_after
    set -l line
    set -l value no
    for word in (commandline -opc)[2..-1]
        if test $value = yes
            set value no
            continue
        end
        switch $word
            case {}
                set value yes
            case '-*'
            case '*'
                set -a line $word
        end
    end
    contains -- "$line" $argv
end

complete -c glowd -f
"#,
        valued(" ")
    );
    for place in places {
        for (word, doc) in &place.words {
            let doc = fish_doc(doc);
            let condition = format!("__glowd_after \"{}\"", place.before);
            text.push_str(&format!("complete -c glowd -n '{condition}' -a {word}{doc}\n"));
        }
    }
    for flag in FLAGS {
        let knows = |place: &&Place| place.flags.iter().any(|known| known.long == flag.long);
        let known: Vec<_> =
            places.iter().filter(knows).map(|place| format!("\"{}\"", place.before)).collect();
        let value = match flag.value.map(candidates) {
            None => String::new(),
            Some(Candidates::Files) => " -r -F".to_owned(),
            Some(Candidates::Any) => " -x".to_owned(),
            Some(Candidates::Words(words)) => format!(" -x -a '{}'", words.join(" ")),
            Some(Candidates::Interfaces) => {
                " -x -a '(command ls /sys/class/net 2>/dev/null)'".to_owned()
            }
        };
        let short = flag.short.map_or_else(String::new, |short| format!(" -s {short}"));
        let doc = fish_doc(summary(flag.doc));
        text.push_str(&format!(
            "complete -c glowd -n '__glowd_after {}'{short} -l {}{value}{doc}\n",
            known.join(" "),
            flag.long
        ));
    }
    text
}

fn fish_doc(doc: &str) -> String {
    if doc.is_empty() {
        return String::new();
    }
    format!(" -d '{}'", doc.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(before: &str) -> (Vec<&'static str>, Vec<&'static str>) {
        let place = places().into_iter().find(|place| place.before == before).unwrap();
        let words = place.words.iter().map(|(word, _)| *word).collect();
        (words, place.flags.iter().map(|flag| flag.long).collect())
    }

    #[test]
    fn every_command_is_reached_word_by_word_and_ends_in_its_flags() {
        for command in COMMANDS {
            let mut before = String::new();
            for word in command.name.split(' ') {
                assert!(at(&before).0.contains(&word), "{}", command.name);
                before = format!("{before} {word}").trim_start().to_owned();
            }
            let known = FLAGS.iter().filter(|flag| flag.is_for(command.name));
            assert_eq!(at(&before).1, known.map(|flag| flag.long).collect::<Vec<_>>());
        }
        assert_eq!(at("").1.len(), FLAGS.len());
    }

    #[test]
    fn the_words_of_a_command_follow_help() {
        assert_eq!(at("help").0, at("").0);
        assert_eq!(at("help marker").0, ["clean"]);
        assert_eq!(at("completions").0, ["bash", "zsh", "fish"]);
        assert_eq!(at("man").0, ["glowd", "glowd.conf"]);
        assert!(at("run").0.is_empty());
    }

    #[test]
    fn what_stands_in_quotes_stays_there() {
        assert_eq!(described("a", "it's"), r"'a:it'\''s'");
        assert_eq!(fish_doc(r"it's \n"), r" -d 'it\'s \\n'");
    }
}

//! The lines of the self-test: a word, what it is about, what was found. Each is
//! printed at once, so that one can see how far it came.

use std::fmt::Display;
use std::io::{self, Write};

use crate::error::{Class, Error, Result};

/// Prints, and remembers what decides the exit status. A reader that has seen enough
/// is no failure.
pub(super) struct Report<'a> {
    out: &'a mut dyn Write,
    failure: Option<io::Error>,
    ways: usize,
    failed: usize,
    default_works: bool,
}

impl<'a> Report<'a> {
    pub(super) fn new(out: &'a mut dyn Write) -> Self {
        Report { out, failure: None, ways: 0, failed: 0, default_works: false }
    }

    /// It is there, or it works.
    pub(super) fn ok(&mut self, what: &str, text: &str) {
        self.line("ok", what, text);
    }

    /// It is not there, and glowd can do without.
    pub(super) fn none(&mut self, what: &str, text: &str) {
        self.line("none", what, text);
    }

    /// It does not work, or glowd cannot do without.
    pub(super) fn fail(&mut self, what: &str, text: &str) {
        self.line("FAIL", what, text);
    }

    /// The same for a way of marking that was tried.
    pub(super) fn way(&mut self, what: &str, outcome: Result<impl Display>) {
        self.ways += 1;
        match outcome {
            Ok(text) => {
                self.default_works |= self.ways == 1;
                self.ok(what, &text.to_string());
            }
            Err(error) => {
                self.failed += 1;
                self.fail(what, &error.to_string());
            }
        }
    }

    /// Whether marking works with the defaults, the way that was tried first.
    pub(super) fn verdict(&self) -> Result<()> {
        if self.default_works {
            return Ok(());
        }
        Err(Error::new(Class::Os, "the defaults, label and auto, do not work"))
    }

    /// The last line. An error of its own is one of standard output.
    pub(super) fn close(&mut self, result: &Result<()>, interrupted: bool) -> Result<()> {
        let (ways, failed) = (self.ways, self.failed);
        match result {
            Ok(()) if failed == 0 => {
                self.ok("result", &format!("marking works here, in all {ways} ways tried"));
            }
            Ok(()) => self.ok(
                "result",
                &format!("marking works here by default; {failed} of {ways} ways tried do not"),
            ),
            Err(error) if interrupted => self.none("result", &error.to_string()),
            Err(error) => self.fail("result", &format!("marking does not work here: {error}")),
        }
        match self.failure.take() {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::os("cannot write to standard output", error))
            }
            _ => Ok(()),
        }
    }

    fn line(&mut self, word: &str, what: &str, text: &str) {
        // What others say may have lines of its own.
        let text = text.replace('\n', "; ");
        let written =
            writeln!(self.out, "{word:<4} {what}: {text}").and_then(|()| self.out.flush());
        self.failure = self.failure.take().or(written.err());
    }
}

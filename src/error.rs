//! The one error type: a class, which is the exit status, and a chain of
//! contexts that reads `where: cannot do what: cause`.

use std::fmt;
use std::io;

/// What kind of failure it is. The number is the exit status, one of
/// sysexits.h; they are documented in glowd(8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A wrong word on the command line.
    Usage = 64,
    /// A bug in glowd, or a worker that panicked.
    Internal = 70,
    /// The operating system refused something.
    Os = 71,
    /// The configuration is wrong.
    Config = 78,
}

/// A failure with its context, outermost first.
#[derive(Debug)]
pub struct Error {
    class: Class,
    chain: Vec<String>,
}

/// The result of everything in glowd that can fail for good.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failure of the given class.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Error { class, chain: vec![message.into()] }
    }

    /// A wrong word on the command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Error::new(Class::Usage, message)
    }

    /// Something that the configuration asks for and that cannot be.
    pub fn config(message: impl Into<String>) -> Self {
        Error::new(Class::Config, message)
    }

    /// A bug.
    pub fn internal(message: impl Into<String>) -> Self {
        Error::new(Class::Internal, message)
    }

    /// `what` failed because the system said `cause`. `what` reads like "cannot
    /// create socket".
    pub fn os(what: impl Into<String>, cause: impl Into<io::Error>) -> Self {
        Error { class: Class::Os, chain: vec![what.into(), cause.into().to_string()] }
    }

    /// The same error with the place where it happened in front.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.chain.insert(0, place.into());
        self
    }

    /// The class, which decides the exit status.
    pub fn class(&self) -> Class {
        self.class
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chain.join(": "))
    }
}

impl std::error::Error for Error {}

/// Adds the place to the error of a result.
pub trait At<T> {
    /// The same result; an error has `place` in front.
    fn at(self, place: impl Into<String>) -> Result<T>;
}

impl<T> At<T> for Result<T> {
    fn at(self, place: impl Into<String>) -> Result<T> {
        self.map_err(|error| error.at(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_from_the_place_to_the_cause() {
        let cause = io::Error::from_raw_os_error(17);
        let error = Error::os("cannot create clsact qdisc", cause).at("eth0").at("backends.marker");
        assert_eq!(
            error.to_string(),
            "backends.marker: eth0: cannot create clsact qdisc: File exists (os error 17)"
        );
        assert_eq!(error.class() as i32, 71);
    }
}

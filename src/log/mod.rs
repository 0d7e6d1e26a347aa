//! Where log lines go.

pub mod limit;

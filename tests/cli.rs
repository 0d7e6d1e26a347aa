//! The command line: what is printed, which exit status.

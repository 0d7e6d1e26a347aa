//! The HTTP API of a running daemon.

//! The named pipe of a running daemon.

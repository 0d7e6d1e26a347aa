//! The daemon as a whole, unprivileged, on loopback.

//! Fireflies on the wire, against schema and collector.

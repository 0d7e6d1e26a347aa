//! What the other modules share: a daemon under test, namespaces, packets.

//! Receivers of fireflies, as the backend that sends its own and the plugin that
//! relays those of others need them: what they are called, where they are, and a
//! way to them.

pub mod destinations;
pub mod resolver;
pub mod sender;

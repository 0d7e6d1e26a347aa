//! The firefly document: what is said of a flow in a UDP datagram, as JSON
//! (RFC 8259) of the schema `firefly.schema.json` 1.0.0, behind the header of an
//! RFC 5424 syslog message. Pure; one plugin reads it and one backend writes it.

mod decode;
mod encode;
mod enrich;
mod syslog;

pub use decode::{decode, Fault, Header, Report};
pub use encode::{Encoder, Stage};
pub use enrich::Mode;

/// The UDP port of firefly receivers.
pub const PORT: u16 = 10514;

/// The longest firefly in octets: the smallest MTU of IPv6 without the headers of
/// IPv6 and UDP (RFC 8200 section 5), so that no firefly is ever fragmented.
pub const MAX_LEN: usize = 1280 - 40 - 8;

/// The longest `application` in octets, before JSON escapes it.
const MAX_APPLICATION: usize = 128;

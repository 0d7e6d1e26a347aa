//! What a flow is: its identity, its tag, and the event that opens or closes it.
//!
//! Everything that enters glowd from outside is turned into these types first,
//! and their constructors refuse what cannot be: the rest of the program never
//! sees a port 0, a pair of mixed families or an id that does not fit a label.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::flow_info::FlowInfo;
use crate::meter::Counted;

/// The transport protocol of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

impl Protocol {
    /// The IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }

    /// The name as fireflies write it.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }

    /// The protocol of that name, in any case.
    pub fn parse(text: &str) -> Option<Self> {
        [Protocol::Tcp, Protocol::Udp].into_iter().find(|p| p.name().eq_ignore_ascii_case(text))
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A flow is known by its 5-tuple, the source being the end whose packets are
/// marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowId {
    src_ip: IpAddr,
    dst_ip: IpAddr,
    src_port: u16,
    dst_port: u16,
    protocol: Protocol,
}

impl FlowId {
    /// A flow from `src` to `dst`. IPv4-mapped IPv6 addresses (RFC 4291 section
    /// 2.5.5.2) become IPv4, and a zone index (RFC 4007) is dropped.
    ///
    /// # Errors
    /// Port 0 and ends of different families are refused, with a message that
    /// names the end.
    pub fn new(
        protocol: Protocol,
        src: SocketAddr,
        dst: SocketAddr,
    ) -> std::result::Result<Self, String> {
        let (src_ip, dst_ip) = (src.ip().to_canonical(), dst.ip().to_canonical());
        if src.port() == 0 {
            return Err("source port 0 is not a port (1 to 65535)".into());
        }
        if dst.port() == 0 {
            return Err("destination port 0 is not a port (1 to 65535)".into());
        }
        if src_ip.is_ipv4() != dst_ip.is_ipv4() {
            return Err(format!("source {src_ip} and destination {dst_ip} are of two families"));
        }
        Ok(FlowId { src_ip, dst_ip, src_port: src.port(), dst_port: dst.port(), protocol })
    }

    /// Source address and port.
    pub fn src(&self) -> SocketAddr {
        SocketAddr::new(self.src_ip, self.src_port)
    }

    /// Destination address and port.
    pub fn dst(&self) -> SocketAddr {
        SocketAddr::new(self.dst_ip, self.dst_port)
    }

    /// The same connection with its ends the other way round.
    #[must_use]
    pub fn turned(self) -> Self {
        FlowId {
            src_ip: self.dst_ip,
            dst_ip: self.src_ip,
            src_port: self.dst_port,
            dst_port: self.src_port,
            protocol: self.protocol,
        }
    }

    /// The transport protocol.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether both ends are IPv6: only then can packets carry the tag.
    pub fn is_ipv6(&self) -> bool {
        self.src_ip.is_ipv6()
    }
}

/// In as few words as there are: what a map of flows takes is mostly this.
impl Hash for FlowId {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        for ip in [self.src_ip, self.dst_ip] {
            match ip {
                IpAddr::V4(ip) => hasher.write_u64(u32::from(ip).into()),
                IpAddr::V6(ip) => {
                    let ip = u128::from(ip);
                    #[allow(clippy::cast_possible_truncation)] // the two halves
                    let (low, high) = (ip as u64, (ip >> 64) as u64);
                    hasher.write_u64(high);
                    hasher.write_u64(low);
                }
            }
        }
        let ports = u64::from(self.src_port) << 16 | u64::from(self.dst_port);
        hasher.write_u64(ports << 8 | u64::from(self.protocol.number()));
    }
}

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.protocol, self.src(), self.dst())
    }
}

/// The bits of a flow label that carry the tag (spec section 1.1).
pub const LABEL_TAG_MASK: u32 = 0x3_FEFC;
/// The bits of a flow label that are entropy.
pub const LABEL_ENTROPY_MASK: u32 = 0xC_0103;

/// Which experiment and which of its activities a flow serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag {
    experiment: u16,
    activity: u8,
}

impl Tag {
    /// Largest experiment id that fits the nine bits of a flow label.
    pub const MAX_EXPERIMENT: u64 = 511;
    /// Largest activity id that fits the six bits of a flow label.
    pub const MAX_ACTIVITY: u64 = 63;

    /// A tag, of ids as somebody gave them.
    ///
    /// # Errors
    /// Ids that a flow label cannot carry are refused, never truncated.
    pub fn new(experiment: u64, activity: u64) -> std::result::Result<Self, String> {
        if !(1..=Self::MAX_EXPERIMENT).contains(&experiment) {
            return Err(format!("experiment {experiment} is out of range (1 to 511)"));
        }
        if activity > Self::MAX_ACTIVITY {
            return Err(format!("activity {activity} is out of range (0 to 63)"));
        }
        #[allow(clippy::cast_possible_truncation)] // both were just checked
        Ok(Tag { experiment: experiment as u16, activity: activity as u8 })
    }

    /// Experiment id, 1 to 511.
    pub fn experiment(self) -> u16 {
        self.experiment
    }

    /// Activity id, 0 to 63.
    pub fn activity(self) -> u8 {
        self.activity
    }

    /// The flow label that says this tag: the experiment with its nine bits
    /// reversed at bits 17 to 9, the activity at bits 7 to 2, and five bits of
    /// `entropy` at 19, 18, 8, 1 and 0 (spec section 1.1).
    pub fn label(self, entropy: u32) -> u32 {
        let reversed = u32::from(self.experiment.reverse_bits() >> 7);
        reversed << 9 | u32::from(self.activity) << 2 | (entropy & LABEL_ENTROPY_MASK)
    }

    /// The tag that a flow label says, if it says one: what `label` made, undone.
    pub fn from_label(label: u32) -> Option<Self> {
        #[allow(clippy::cast_possible_truncation)] // nine bits
        let reversed = (label >> 9 & 0x1ff) as u16;
        Tag::new(u64::from(reversed.reverse_bits() >> 7), u64::from(label >> 2 & 0x3f)).ok()
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "experiment {} activity {}", self.experiment, self.activity)
    }
}

/// A moment, in microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The wall clock's time.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    /// Parses RFC 3339 with any offset and 0 to 9 digits of a second's fraction
    /// (digits after the sixth are cut off). Years 1970 to 9999, in UTC.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let number = |range: std::ops::Range<usize>| -> Option<u64> {
            let digits = bytes.get(range)?;
            digits.iter().try_fold(0, |sum, digit| {
                digit.is_ascii_digit().then(|| sum * 10 + u64::from(digit - b'0'))
            })
        };
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
        let separators = [bytes[4], bytes[7], bytes[10].to_ascii_uppercase(), bytes[13], bytes[16]];
        let leap_year = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days_of_month = match month {
            2 if leap_year => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return None,
        };
        let in_range = year >= 1970 && (1..=days_of_month).contains(&day);
        // RFC 3339 section 5.7: second 60 is a leap second.
        if separators != *b"--T::" || !in_range || hour > 23 || minute > 59 || second > 60 {
            return None;
        }
        let mut rest = &bytes[19..];
        let mut fraction = 0;
        if let [b'.', after @ ..] = rest {
            let digits = after.iter().take_while(|byte| byte.is_ascii_digit()).count();
            if !(1..=9).contains(&digits) {
                return None;
            }
            let zeros = std::iter::repeat(&b'0');
            for digit in after[..digits].iter().chain(zeros).take(6) {
                fraction = fraction * 10 + u64::from(digit - b'0');
            }
            rest = &after[digits..];
        }
        let at = bytes.len() - rest.len();
        let offset: i64 = match rest {
            b"Z" | b"z" => 0,
            [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
                let (hours, minutes) = (number(at + 1..at + 3)?, number(at + 4..at + 6)?);
                if hours > 23 || minutes > 59 {
                    return None;
                }
                let seconds = i64::try_from(hours * 3600 + minutes * 60).ok()?;
                if *sign == b'+' {
                    seconds
                } else {
                    -seconds
                }
            }
            _ => return None,
        };
        let seconds = days_before(year, month, day) * 86400 + hour * 3600 + minute * 60 + second;
        let utc = u64::try_from(i64::try_from(seconds).ok()? - offset).ok()?;
        // An offset or a leap second may lead beyond the last year that has four digits.
        let last = days_before(9999, 12, 31) * 86400 + 86399;
        (utc <= last).then_some(Timestamp(utc * 1_000_000 + fraction))
    }
}

/// Days from 1970-01-01 to that date of the Gregorian calendar.
fn days_before(year: u64, month: u64, day: u64) -> u64 {
    // A year that begins in March has its leap day at its end.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    days - 719_468
}

impl fmt::Display for Timestamp {
    /// UTC, always with six digits and `+00:00` (spec section 3.4).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, micros) = (self.0 / 1_000_000, self.0 % 1_000_000);
        let (days, in_day) = (seconds / 86400 + 719_468, seconds % 86400);
        let era = days / 146_097;
        let in_era = days % 146_097;
        let year_of_era = (in_era - in_era / 1460 + in_era / 36_524 - in_era / 146_096) / 365;
        let in_year = in_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * in_year + 2) / 153;
        let day = in_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let (hour, minute, second) = (in_day / 3600, in_day / 60 % 60, in_day % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}+00:00"
        )
    }
}

/// What a flow event says of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowState {
    /// The flow begins.
    Start,
    /// The flow has begun before and goes on.
    Ongoing,
    /// The flow ends.
    End,
}

impl FlowState {
    /// The name as fireflies write it.
    pub fn name(self) -> &'static str {
        match self {
            FlowState::Start => "start",
            FlowState::Ongoing => "ongoing",
            FlowState::End => "end",
        }
    }

    /// The state of that name, in any case.
    pub fn parse(text: &str) -> Option<Self> {
        [FlowState::Start, FlowState::Ongoing, FlowState::End]
            .into_iter()
            .find(|state| state.name().eq_ignore_ascii_case(text))
    }
}

/// How much a flow has carried so far, in octets of payload, as its source counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// What the source has received.
    pub received: u64,
    /// What the source has sent.
    pub sent: u64,
}

impl Usage {
    /// The same, as the other end counts.
    #[must_use]
    pub fn turned(self) -> Self {
        Usage { received: self.sent, sent: self.received }
    }

    /// What is more than there was before.
    #[must_use]
    pub fn since(self, before: Usage) -> Self {
        Usage {
            received: self.received.saturating_sub(before.received),
            sent: self.sent.saturating_sub(before.sent),
        }
    }
}

/// What a plugin tells the dispatcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowEvent {
    /// Start, ongoing or end.
    pub state: FlowState,
    /// Of which flow.
    pub id: FlowId,
    /// What the sender says the tag is; at an end the flow's own tag counts.
    pub tag: Tag,
    /// When the flow began or, at an end, when it was over, if the sender knows;
    /// else the time of arrival counts.
    pub time: Option<Timestamp>,
    /// The program that the flow belongs to, if the sender named it.
    pub application: Option<Arc<str>>,
    /// What the flow has carried so far, if the sender counts it. Boxed since many
    /// events wait and few have it.
    pub usage: Option<Box<Usage>>,
}

/// An open flow, as the flow table has it and as backends see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Its 5-tuple.
    pub id: FlowId,
    /// Its tag, constant while it is open.
    pub tag: Tag,
    /// The flow label of its packets: tag and entropy, 20 bits, constant while
    /// it is open.
    pub label: u32,
    /// When it began.
    pub start: Timestamp,
    /// Nobody knows when its connection began: `start` is when it was found.
    pub is_undated: bool,
    /// The plugin that reported it, by configuration key.
    pub source: &'static str,
    /// The program that it belongs to, if the sender named it.
    pub application: Option<Arc<str>>,
    /// What was told of it since it was opened. Most flows have none, so it is apart.
    pub news: Option<Arc<News>>,
    /// What the marker has counted of it by now, if it counts it.
    pub counted: Option<Counted>,
}

/// What was told of an open flow besides its start, and measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// When something was last heard of it: a clock reading of this host.
    pub heard: Timestamp,
    /// What it has carried so far, if a sender counted it and no sample has told of it since.
    pub usage: Option<Usage>,
    /// When that was told: a clock reading of this host. What is told with the end is never
    /// too old: that is the last moment there is.
    pub told: Timestamp,
    /// The last sample of its connection, if an enricher takes any.
    pub info: Option<Arc<FlowInfo>>,
    /// What earlier flows of that connection had carried, as its end here counts.
    pub earlier: Usage,
    /// That end is the flow's destination.
    pub is_turned: bool,
}

impl News {
    /// What the flow has carried by the last sample of its connection.
    fn measured(&self) -> Option<Usage> {
        let usage = self.info.as_ref()?.usage()?.since(self.earlier);
        Some(if self.is_turned { usage.turned() } else { usage })
    }
}

impl Flow {
    /// When it was last heard of.
    pub fn heard(&self) -> Timestamp {
        self.news.as_ref().map_or(self.start, |news| news.heard)
    }

    /// What it has carried so far: as a sender counted it, if nothing newer is known, or as
    /// it was measured. It is of the flow, where a connection may carry many in turn.
    pub fn usage(&self) -> Option<Usage> {
        let news = self.news.as_ref();
        let measured = news.and_then(|news| news.measured());
        let counted = self.counted.and_then(|counted| Some((counted.usage()?, counted.last)));
        // A sample has taken the place of what is older.
        let is_old =
            |told| measured.is_none() && counted.is_some_and(|(_, last)| last > Some(told));
        let told = news.and_then(|news| news.usage.filter(|_| !is_old(news.told)));
        told.or(measured).or(counted.map(|(usage, _)| usage))
    }

    /// The last sample of it, if an enricher takes any.
    pub fn info(&self) -> Option<&FlowInfo> {
        self.news.as_ref()?.info.as_deref()
    }
}

#[cfg(test)]
#[path = "flow_tests.rs"]
mod tests;

//! The fields of a flow in JSON: their names, and what each value may be. Pure.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::Deserialize;

use crate::flow::{FlowState, Protocol, Timestamp};

/// The longest name of an application, in bytes.
const MAX_APPLICATION: usize = 128;

/// A field of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    State,
    Protocol,
    Src,
    Dst,
    Experiment,
    Activity,
    Application,
    StartTime,
    EndTime,
    Family,
    // Of other programs; they say nothing that glowd needs.
    CurrentTime,
    NetLink,
    Info,
    FlowInfoChans,
}

/// glowd's own name first, then those of others. By discriminant.
const NAMES: [(Field, &[&str]); Field::COUNT] = [
    (Field::State, &["state"]),
    (Field::Protocol, &["protocol"]),
    (Field::Src, &["src"]),
    (Field::Dst, &["dst"]),
    (Field::Experiment, &["experiment"]),
    (Field::Activity, &["activity"]),
    (Field::Application, &["application"]),
    (Field::StartTime, &["startTime", "startTs"]),
    (Field::EndTime, &["endTime", "endTs"]),
    (Field::Family, &["family"]),
    (Field::CurrentTime, &["currentTime", "currentTs"]),
    (Field::NetLink, &["netLink"]),
    (Field::Info, &["info"]),
    (Field::FlowInfoChans, &["flowInfoChans"]),
];

impl Field {
    pub(super) const COUNT: usize = 14;

    pub(super) fn parse(key: &str) -> Option<Self> {
        let known = |names: &[&str]| names.iter().any(|name| name.eq_ignore_ascii_case(key));
        NAMES.iter().find(|(_, names)| known(names)).map(|(field, _)| *field)
    }

    pub(super) fn name(self) -> &'static str {
        NAMES[self as usize].1[0]
    }

    /// Whether its value is not even looked at.
    pub(super) fn ignored(self) -> bool {
        matches!(self, Field::CurrentTime | Field::NetLink | Field::Info | Field::FlowInfoChans)
    }
}

/// A key of an object.
pub(super) struct Name<'a>(pub(super) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Name<'a> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        json.deserialize_str(Text)
    }
}

/// Any JSON value, as far as a field may care.
#[derive(Debug)]
pub(super) enum Raw<'a> {
    Null,
    Bool(bool),
    Unsigned(u64),
    Negative(i64),
    Fraction(f64),
    Text(Cow<'a, str>),
    Array,
    /// Read as `{IP, Port}`.
    Object(Box<Object<'a>>),
}

#[derive(Debug, Default)]
pub(super) struct Object<'a> {
    ip: Option<Raw<'a>>,
    port: Option<Raw<'a>>,
    /// What is wrong with its keys.
    problem: Option<String>,
}

impl fmt::Display for Raw<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Raw::Null => f.write_str("null"),
            Raw::Bool(value) => write!(f, "{value}"),
            Raw::Unsigned(value) => write!(f, "{value}"),
            Raw::Negative(value) => write!(f, "{value}"),
            Raw::Fraction(value) => write!(f, "{value:?}"),
            Raw::Text(text) => write!(f, "{:?}", clipped(text)),
            Raw::Array => f.write_str("an array"),
            Raw::Object(_) => f.write_str("an object"),
        }
    }
}

/// Not more of a client's text than a message may carry.
pub(super) fn clipped(text: &str) -> String {
    const MOST: usize = 64;
    match text.char_indices().nth(MOST) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

/// Reads a [`Raw`].
pub(super) struct RawValue;

impl<'de> DeserializeSeed<'de> for RawValue {
    type Value = Raw<'de>;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Raw<'de>, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for RawValue {
    type Value = Raw<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> Result<Raw<'de>, E> {
        Ok(Raw::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Raw<'de>, E> {
        Ok(Raw::Bool(value))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Raw<'de>, E> {
        Ok(Raw::Unsigned(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Raw<'de>, E> {
        Ok(u64::try_from(value).map_or(Raw::Negative(value), Raw::Unsigned))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Raw<'de>, E> {
        Ok(Raw::Fraction(value))
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Raw<'de>, E> {
        Ok(Raw::Text(Cow::Borrowed(text)))
    }
    fn visit_str<E>(self, text: &str) -> Result<Raw<'de>, E> {
        Ok(Raw::Text(Cow::Owned(text.to_owned())))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw<'de>, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Raw::Array)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw<'de>, A::Error> {
        let mut object = Object::default();
        while let Some(Name(key)) = map.next_key()? {
            let slot = if key.eq_ignore_ascii_case("ip") {
                &mut object.ip
            } else if key.eq_ignore_ascii_case("port") {
                &mut object.port
            } else {
                map.next_value::<IgnoredAny>()?;
                object.problem.get_or_insert_with(|| format!("unknown key {:?}", clipped(&key)));
                continue;
            };
            if slot.is_some() {
                let message = || format!("{:?} is there more than once", clipped(&key));
                object.problem.get_or_insert_with(message);
            }
            // An object in it is wrong, and cannot be deep: serde_json has a limit.
            *slot = Some(map.next_value_seed(RawValue)?);
        }
        Ok(Raw::Object(Box::new(object)))
    }
}

/// The 2024 glowd wrote 0 and 1, flowd-go writes 2 and 3.
pub(super) fn state(raw: &Raw<'_>) -> Result<FlowState, String> {
    match raw {
        Raw::Unsigned(0 | 2) => Ok(FlowState::Start),
        Raw::Unsigned(1 | 3) => Ok(FlowState::End),
        Raw::Unsigned(4) => Err("4 (ongoing) is not taken; only start and end are".into()),
        Raw::Text(text) if text.eq_ignore_ascii_case("ongoing") => {
            Err("\"ongoing\" is not taken; only start and end are".into())
        }
        Raw::Text(text) => {
            // "ongoing" was met above.
            FlowState::parse(text).ok_or_else(|| format!("{raw} is neither \"start\" nor \"end\""))
        }
        _ => Err(format!("{raw} is neither \"start\" (0, 2) nor \"end\" (1, 3)")),
    }
}

pub(super) fn protocol(raw: &Raw<'_>) -> Result<Protocol, String> {
    match raw {
        Raw::Unsigned(0) => Ok(Protocol::Tcp),
        Raw::Unsigned(1) => Ok(Protocol::Udp),
        Raw::Text(text) => {
            Protocol::parse(text).ok_or_else(|| format!("{raw} is neither \"tcp\" nor \"udp\""))
        }
        _ => Err(format!("{raw} is neither \"tcp\" (0) nor \"udp\" (1)")),
    }
}

/// An id as a number; what cannot be one is out of the same range.
pub(super) fn id(raw: &Raw<'_>, name: &str, max: u64) -> Result<u64, String> {
    match raw {
        Raw::Unsigned(id) => Ok(*id),
        _ => Err(format!("{name} {raw} is not a whole number up to {max}")),
    }
}

/// A word that may be a registered name, short enough to be shown.
pub(super) fn name(word: &str) -> Result<&str, String> {
    if word.len() <= 128 && !word.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(word);
    }
    Err(format!("{:?} is not a registered name; ids have no quotes", clipped(word)))
}

/// An address and port: `"[2001:db8::1]:1094"`, `"192.0.2.1:1094"`, or
/// `{"IP": "2001:db8::1", "Port": 1094}`.
pub(super) fn end(raw: &Raw<'_>) -> Result<SocketAddr, String> {
    let (ip, port) = match raw {
        Raw::Text(text) => {
            let wrong =
                || format!("{raw} is not an address and port, such as \"[2001:db8::1]:1094\"");
            let (ip, port) = text.rsplit_once(':').ok_or_else(wrong)?;
            let ip = match ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')) {
                Some(ip) => address(ip).filter(IpAddr::is_ipv6),
                None => address(ip).filter(IpAddr::is_ipv4),
            };
            let ip = ip.ok_or_else(wrong)?;
            let digits = Some(port).filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
            let number = digits.and_then(|digits| digits.parse().ok()).filter(|port| *port > 0);
            (ip, number.ok_or_else(|| bad_port(port))?)
        }
        Raw::Object(object) => {
            if let Some(problem) = &object.problem {
                return Err(problem.clone());
            }
            let raw_ip = object.ip.as_ref().ok_or("IP is missing")?;
            let ip = match raw_ip {
                Raw::Text(text) => address(text),
                _ => None,
            };
            let ip = ip.ok_or_else(|| format!("IP {raw_ip} is not an address"))?;
            let port = object.port.as_ref().ok_or("Port is missing")?;
            let number = match port {
                Raw::Unsigned(port) => u16::try_from(*port).ok().filter(|port| *port > 0),
                _ => None,
            };
            (ip, number.ok_or_else(|| bad_port(port))?)
        }
        _ => return Err(format!("{raw} is neither \"address:port\" nor {{\"IP\", \"Port\"}}")),
    };
    Ok(SocketAddr::new(ip, port))
}

fn bad_port(shown: impl fmt::Display) -> String {
    format!("{} is not a port (1 to 65535)", clipped(&shown.to_string()))
}

/// An address; the zone index (RFC 4007) of an IPv6 address is dropped.
fn address(text: &str) -> Option<IpAddr> {
    match text.split_once('%') {
        None => text.parse().ok(),
        Some((_, "")) => None,
        Some((ip, _)) => ip.parse().ok().map(IpAddr::V6),
    }
}

/// The operating system's constants, which is what flowd-go sends: the ends say
/// it all, so it must only not contradict them.
pub(super) fn family(
    raw: &Raw<'_>,
    ends: Option<(SocketAddr, SocketAddr)>,
) -> Result<Option<()>, String> {
    let both = |test: fn(SocketAddr) -> bool| ends.is_none_or(|(src, dst)| test(src) && test(dst));
    let (good, version) = match raw {
        Raw::Unsigned(2) => (both(|end| end.ip().to_canonical().is_ipv4()), "IPv4"),
        // 10 on Linux, 30 on macOS. An IPv4-mapped address is written as IPv6.
        Raw::Unsigned(10 | 30) => (both(|end| end.is_ipv6()), "IPv6"),
        _ => return Err(format!("{raw} is neither 2 (IPv4) nor 10 or 30 (IPv6)")),
    };
    if good {
        Ok(Some(()))
    } else {
        Err(format!("{raw} is {version}, and src and dst are not"))
    }
}

/// RFC 3339; null and Go's zero time are none.
pub(super) fn time(raw: &Raw<'_>) -> Result<Option<Timestamp>, String> {
    const ZERO: [&str; 2] = ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00+00:00"];
    match raw {
        Raw::Null => Ok(None),
        Raw::Text(text) if ZERO.contains(&&**text) => Ok(None),
        Raw::Text(text) => Timestamp::parse(text)
            .map(Some)
            .ok_or_else(|| format!("{raw} is not a time of RFC 3339 since 1970")),
        _ => Err(format!("{raw} is not a time of RFC 3339")),
    }
}

/// A name that fits a firefly and a log line; null and the empty text are none.
pub(super) fn application(raw: &Raw<'_>) -> Result<Option<Arc<str>>, String> {
    match raw {
        Raw::Null => Ok(None),
        Raw::Text(text) if text.is_empty() => Ok(None),
        Raw::Text(text) if text.len() > MAX_APPLICATION => {
            Err(format!("is longer than {MAX_APPLICATION} bytes"))
        }
        Raw::Text(text) if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) => {
            Err(format!("{raw} has other than printable ASCII characters"))
        }
        Raw::Text(text) => Ok(Some(Arc::from(&**text))),
        _ => Err(format!("{raw} is not a text")),
    }
}

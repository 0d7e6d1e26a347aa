//! Reads fireflies, in every form in which programs send them (spec section 3).
//!
//! Tolerant of what differs between them, exact in what it makes of it: what says
//! nothing of the flow may be anything, what does has to be good. Time and memory
//! are bounded by the length of the datagram; blocks that are not read are passed
//! over, however deep they are.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{syslog, MAX_APPLICATION};
use crate::flow::{FlowEvent, FlowId, FlowState, Protocol, Tag, Timestamp, Usage};

/// Whether a syslog header precedes the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// In some datagrams.
    Auto,
    /// In all.
    Always,
    /// In none.
    Never,
}

/// What a firefly reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What happened to the flow.
    pub state: FlowState,
    /// Which it is, with the source that the sender named.
    pub id: FlowId,
    /// Experiment and activity, which need not fit a label.
    pub ids: (u64, u64),
    /// When the flow began, if the sender knows.
    pub start: Option<Timestamp>,
    /// When it was over, if the sender knows.
    pub end: Option<Timestamp>,
    /// The program that it belongs to, cut to what a firefly of ours may carry.
    pub application: Option<Arc<str>>,
    /// What it has carried, as the source of `id` counts.
    pub usage: Option<Usage>,
}

impl Report {
    /// The same flow as its other end sees it.
    #[must_use]
    pub fn turned(self) -> Self {
        Report { id: self.id.turned(), usage: self.usage.map(Usage::turned), ..self }
    }

    /// The flow event that it is.
    ///
    /// # Errors
    /// No label can carry its ids, and it is not an end.
    pub fn event(self) -> Result<FlowEvent, String> {
        let Report { state, id, ids, start, end, application, usage } = self;
        let time = if state == FlowState::End { end } else { start };
        let tag = match Tag::new(ids.0, ids.1) {
            // At an end the flow's own tag counts.
            Err(_) if state == FlowState::End => Tag::new(1, 0)?,
            tag => tag?,
        };
        let usage = usage.map(Box::new);
        Ok(FlowEvent { state, id, tag, time, application, usage })
    }
}

/// Why a datagram is no firefly.
#[derive(Debug)]
pub enum Fault {
    /// It has no header, or the header is not followed by a document.
    NoHeader,
    /// It does not begin with a document.
    NoDocument,
    /// The document is not JSON, or lacks something, or has it in a wrong type.
    Json(serde_json::Error),
    /// A value is none of those that it can be.
    Value(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::NoHeader => f.write_str("there is no syslog header with a document behind it"),
            Fault::NoDocument => {
                f.write_str("it does not begin with a JSON document (hasSyslogHeader is false)")
            }
            Fault::Json(error) => error.fmt(f),
            Fault::Value(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Fault {}

impl From<String> for Fault {
    fn from(what: String) -> Self {
        Fault::Value(what)
    }
}

/// What the firefly in a datagram reports.
///
/// # Errors
/// There is none in it.
pub fn decode(datagram: &[u8], header: Header) -> Result<Report, Fault> {
    // Some senders end lines, some C strings.
    let end = datagram.iter().rposition(|byte| !matches!(byte, 0 | b' ' | b'\r' | b'\n' | b'\t'));
    let datagram = datagram[..end.map_or(0, |last| last + 1)].trim_ascii_start();
    let bare = datagram.first() == Some(&b'{');
    let (header, document) = match (header, bare) {
        (Header::Auto | Header::Never, true) => (&b""[..], datagram),
        (Header::Auto | Header::Always, _) => syslog::split(datagram).ok_or(Fault::NoHeader)?,
        (Header::Never, false) => return Err(Fault::NoDocument),
    };
    let Document { version, lifecycle, flow, context, usage } =
        serde_json::from_slice(document).map_err(Fault::Json)?;
    if version.is_some_and(|version| version != 1) {
        return Err(Fault::Value("its version is not 1".into()));
    }
    let state = FlowState::parse(&lifecycle.state.0)
        .ok_or_else(|| format!("state {} is none", Quoted(&lifecycle.state.0)))?;
    let protocol = Protocol::parse(&flow.protocol.0).ok_or_else(|| {
        format!("protocol {} is neither \"tcp\" nor \"udp\"", Quoted(&flow.protocol.0))
    })?;
    let src = SocketAddr::new(address(&flow.src_ip.0)?, flow.src_port);
    let dst = SocketAddr::new(address(&flow.dst_ip.0)?, flow.dst_port);
    // A disk pool of dCache names the client as the source, but counts as it sees it
    // itself: it is the destination.
    let counted_by_dst =
        syslog::app_name(header).is_some_and(|app| app.eq_ignore_ascii_case(b"dCache"));
    let usage = usage.and_then(|usage| {
        let usage = Usage { received: usage.received?, sent: usage.sent? };
        Some(if counted_by_dst { usage.turned() } else { usage })
    });
    Ok(Report {
        state,
        id: FlowId::new(protocol, src, dst)?,
        ids: (context.experiment, context.activity),
        start: lifecycle.start.0,
        end: lifecycle.end.0,
        application: context
            .application
            .0
            .as_deref()
            .map(cut)
            .filter(|text| !text.is_empty())
            .map(Into::into),
        usage,
    })
}

/// As much of an application's name as is kept.
fn cut(text: &str) -> &str {
    let text = text.trim();
    let mut end = text.len().min(MAX_APPLICATION);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// An address, which may have a zone (RFC 4007) or stand in brackets.
fn address(text: &str) -> Result<IpAddr, String> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let bare = bare.split_once('%').map_or(bare, |(address, _)| address);
    bare.parse().map_err(|_| format!("{} is not an IP address", Quoted(text)))
}

/// A text of the outside, as it may stand in a log.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 60;
        match self.0.char_indices().nth(SHOWN) {
            Some((end, _)) => write!(f, "{:?}...", &self.0[..end]),
            None => write!(f, "{:?}", self.0),
        }
    }
}

// The document. Unknown keys are passed over everywhere.

#[derive(serde::Deserialize)]
struct Document<'a> {
    version: Option<u64>,
    #[serde(rename = "flow-lifecycle", borrow)]
    lifecycle: Lifecycle<'a>,
    #[serde(rename = "flow-id", borrow)]
    flow: Ends<'a>,
    #[serde(borrow)]
    context: Context<'a>,
    #[serde(default)]
    usage: Option<Totals>,
}

#[derive(serde::Deserialize)]
struct Lifecycle<'a> {
    #[serde(borrow)]
    state: Text<'a>,
    #[serde(rename = "start-time", default)]
    start: Time,
    #[serde(rename = "end-time", default)]
    end: Time,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Ends<'a> {
    #[serde(borrow)]
    src_ip: Text<'a>,
    #[serde(borrow)]
    dst_ip: Text<'a>,
    #[serde(borrow)]
    protocol: Text<'a>,
    src_port: u16,
    dst_port: u16,
}

#[derive(serde::Deserialize)]
struct Context<'a> {
    #[serde(rename = "experiment-id")]
    experiment: u64,
    #[serde(rename = "activity-id")]
    activity: u64,
    #[serde(default, borrow)]
    application: Name<'a>,
}

/// What a flow has carried, each number if it is one.
#[derive(Default, serde::Deserialize)]
struct Totals {
    #[serde(default, deserialize_with = "count")]
    received: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    sent: Option<u64>,
}

/// A text, lent by the datagram unless it has escapes.
#[derive(serde::Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A text, if it is one.
#[derive(Default)]
struct Name<'a>(Option<Cow<'a, str>>);

/// A moment, if it is one that can be: senders that know none write null, nothing,
/// or the year 1.
#[derive(Default)]
struct Time(Option<Timestamp>);

fn count<'de, D: Deserializer<'de>>(json: D) -> Result<Option<u64>, D::Error> {
    json.deserialize_any(Lenient).map(|value| match value {
        Value::Count(count) => Some(count),
        _ => None,
    })
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(Lenient).map(|value| match value {
            Value::Text(text) => Time(Timestamp::parse(text.trim())),
            _ => Time(None),
        })
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Name<'a> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(Lenient).map(|value| match value {
            Value::Text(text) => Name(Some(text)),
            _ => Name(None),
        })
    }
}

/// A value of any type, of which two matter.
enum Value<'a> {
    Text(Cow<'a, str>),
    Count(u64),
    Other,
}

struct Lenient;

impl<'de> Visitor<'de> for Lenient {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_u64<E>(self, count: u64) -> Result<Value<'de>, E> {
        Ok(Value::Count(count))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Value<'de>, E> {
        Ok(Value::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value<'de>, E> {
        Ok(Value::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value<'de>, E> {
        Ok(Value::Other)
    }

    fn visit_unit<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value<'de>, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;

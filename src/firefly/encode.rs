//! Writes fireflies.
//!
//! Runs on the thread of the firefly backend and owns nothing but buffers. What
//! it writes is never schema-invalid and never longer than [`MAX_LEN`], whatever
//! the flow, the host's name and the sender of the flow event say.

use std::net::IpAddr;

use serde::{Serialize, Serializer};

use super::enrich::{self, Mode};
use super::{syslog, MAX_APPLICATION, MAX_LEN};
use crate::flow::{Flow, FlowState, Timestamp, Usage};

/// Who sends fireflies of flows whose sender named no application.
const OWN_APPLICATION: &str = concat!("glowd v", env!("CARGO_PKG_VERSION"));

/// The last moment that RFC 3339 can write.
const LAST_MOMENT: Timestamp = Timestamp(253_402_300_799_999_999);

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Firefly<'a> {
    version: u8,
    flow_lifecycle: Lifecycle,
    flow_id: FlowId,
    context: Context<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Totals>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Lifecycle {
    state: &'static str,
    start_time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<Time>,
    current_time: Time,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct FlowId {
    afi: &'static str,
    src_ip: IpAddr,
    dst_ip: IpAddr,
    protocol: &'static str,
    src_port: u16,
    dst_port: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Context<'a> {
    experiment_id: u16,
    activity_id: u8,
    application: &'a str,
}

#[derive(Serialize)]
struct Totals {
    received: u64,
    sent: u64,
}

/// A moment that has four digits for its year.
#[derive(Clone, Copy)]
struct Time(Timestamp);

impl From<Timestamp> for Time {
    fn from(moment: Timestamp) -> Self {
        Time(moment.min(LAST_MOMENT))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// What a firefly tells of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// That it begins.
    Start,
    /// That it goes on.
    Ongoing,
    /// That it is over since then.
    End(Timestamp),
}

/// Writes fireflies. Keeps what is the same in all of them, and the memory that
/// one of them needs.
#[derive(Debug)]
pub struct Encoder {
    /// HOSTNAME of the syslog header; none: no header.
    hostname: Option<String>,
    application: String,
    /// How what TCP knows of the flow is told, if it is.
    enrichment: Option<Mode>,
}

impl Encoder {
    /// An encoder of fireflies with a syslog header that names the host
    /// `hostname`, which may be any bytes, or without header.
    pub fn new(hostname: Option<&[u8]>) -> Self {
        let hostname = hostname.map(syslog::safe_hostname);
        let application = String::with_capacity(MAX_APPLICATION);
        Encoder { hostname, application, enrichment: None }
    }

    /// Tells what TCP knows of the flow too, where it is known and there is room.
    pub fn enrich(&mut self, mode: Option<Mode>) {
        self.enrichment = mode;
    }

    /// Whether it tells all that is known of that.
    pub fn is_full(&self) -> bool {
        self.enrichment == Some(Mode::Full)
    }

    /// Appends the firefly of a flow; `now` is the moment of sending.
    pub fn encode(&mut self, flow: &Flow, stage: Stage, now: Timestamp, out: &mut Vec<u8>) {
        let (id, now, before) = (&flow.id, Time::from(now), out.len());
        let (state, end) = match stage {
            Stage::Start => (FlowState::Start, None),
            Stage::Ongoing => (FlowState::Ongoing, None),
            Stage::End(end) => (FlowState::End, Some(end)),
        };
        self.application.clear();
        sanitise(flow.application.as_deref().unwrap_or_default(), &mut self.application);
        let application = Some(&*self.application).filter(|application| !application.is_empty());
        let firefly = Firefly {
            version: 1,
            flow_lifecycle: Lifecycle {
                state: state.name(),
                start_time: flow.start.into(),
                end_time: end.map(Time::from),
                current_time: now,
            },
            flow_id: FlowId {
                afi: if id.is_ipv6() { "ipv6" } else { "ipv4" },
                src_ip: id.src().ip(),
                dst_ip: id.dst().ip(),
                protocol: id.protocol().name(),
                src_port: id.src().port(),
                dst_port: id.dst().port(),
            },
            context: Context {
                experiment_id: flow.tag.experiment(),
                activity_id: flow.tag.activity(),
                application: application.unwrap_or(OWN_APPLICATION),
            },
            // A flow that starts has carried nothing.
            usage: flow
                .usage()
                .filter(|_| stage != Stage::Start)
                .map(|Usage { received, sent }| Totals { received, sent }),
        };
        let written = match &self.hostname {
            Some(host) => syslog::write(out, now.0, host),
            None => Ok(()),
        };
        written
            .and_then(|()| serde_json::to_writer(&mut *out, &firefly).map_err(Into::into))
            .expect("memory takes all bytes and no value is refused");
        let info = flow.info().filter(|_| stage != Stage::Start);
        if let Some((mode, info)) = self.enrichment.zip(info) {
            // As flowd-go, whose block of that name is in no other firefly.
            let is_ongoing = info.by_program && stage == Stage::Ongoing;
            enrich::add(mode, info, is_ongoing.then_some("skOps"), out, before, MAX_LEN, now.0);
        }
    }
}

/// Appends as much of `text` as an application may have: control characters,
/// line breaks among them, become spaces.
fn sanitise(text: &str, out: &mut String) {
    for char in text.trim().chars() {
        if out.len() + char.len_utf8() > MAX_APPLICATION {
            break;
        }
        out.push(if char.is_control() { ' ' } else { char });
    }
    out.truncate(out.trim_end().len());
}

#[cfg(test)]
mod tests {
    use super::super::MAX_LEN;
    use super::*;
    use crate::flow::{FlowId, News, Protocol, Tag};
    use std::sync::Arc;

    fn flow(application: Option<&str>) -> Flow {
        let ends = ["[2001:db8::1]:2345", "[2001:db8:0:1::2]:1094"].map(|end| end.parse().unwrap());
        let tag = Tag::new(2, 16).unwrap();
        Flow {
            id: FlowId::new(Protocol::Tcp, ends[0], ends[1]).unwrap(),
            tag,
            label: tag.label(0),
            start: Timestamp(1_632_309_147_808_092),
            is_undated: false,
            source: "test",
            application: application.map(Into::into),
            news: None,
            counted: None,
        }
    }

    fn carried(received: u64, sent: u64) -> Option<Arc<News>> {
        Some(Arc::new(News {
            heard: Timestamp(0),
            usage: Some(Usage { received, sent }),
            ..News::default()
        }))
    }

    fn encoded(hostname: Option<&[u8]>, flow: &Flow, end: Option<Timestamp>) -> String {
        let mut out = b"before ".to_vec();
        let stage = end.map_or(Stage::Start, Stage::End);
        Encoder::new(hostname).encode(flow, stage, Timestamp(1_632_309_148_000_000), &mut out);
        String::from_utf8(out).unwrap().strip_prefix("before ").unwrap().to_string()
    }

    #[test]
    fn a_start_and_an_end_are_written() {
        let rest = concat!(
            r#""current-time":"2021-09-22T11:12:28.000000+00:00"},"flow-id":{"afi":"ipv6","#,
            r#""src-ip":"2001:db8::1","dst-ip":"2001:db8:0:1::2","protocol":"tcp","#,
            r#""src-port":2345,"dst-port":1094},"context":{"experiment-id":2,"#,
            r#""activity-id":16,"application":"xrootd"}}"#
        );
        let start = format!(
            r#"<134>1 2021-09-22T11:12:28.000000+00:00 se1.example.org glowd - firefly-json - {}{rest}"#,
            concat!(
                r#"{"version":1,"flow-lifecycle":{"state":"start","#,
                r#""start-time":"2021-09-22T11:12:27.808092+00:00","#
            ),
        );
        assert_eq!(encoded(Some(b"se1.example.org"), &flow(Some("xrootd")), None), start);
        let end = format!(
            "{}{rest}",
            concat!(
                r#"{"version":1,"flow-lifecycle":{"state":"end","#,
                r#""start-time":"2021-09-22T11:12:27.808092+00:00","#,
                r#""end-time":"2021-09-22T11:12:27.999999+00:00","#
            ),
        );
        let over = Some(Timestamp(1_632_309_147_999_999));
        assert_eq!(encoded(None, &flow(Some("xrootd")), over), end);
    }

    #[test]
    fn an_end_says_what_the_flow_has_carried() {
        let flow = Flow { news: carried(1234, 5_000_000_000), ..flow(None) };
        let end = encoded(None, &flow, Some(flow.start));
        assert!(end.ends_with(r#"},"usage":{"received":1234,"sent":5000000000}}"#), "{end}");
        assert!(!encoded(None, &flow, None).contains("usage"));
    }

    #[test]
    fn applications_are_made_safe() {
        let application = |text: &str| {
            let document = encoded(None, &flow(Some(text)), None);
            let document: serde_json::Value = serde_json::from_str(&document).unwrap();
            document["context"]["application"].as_str().unwrap().to_string()
        };
        let own = OWN_APPLICATION;
        assert!(own.starts_with("glowd v"));
        for (text, safe) in [
            ("xrootd v5", "xrootd v5"),
            (r#"a "quoted\" one"#, r#"a "quoted\" one"#),
            ("two\r\nlines\t", "two  lines"),
            ("nul\0 del\x7f c1\u{85}.", "nul  del  c1 ."),
            ("", own),
            (" \n", own),
            ("\0", own),
        ] {
            assert_eq!(application(text), safe, "{text:?}");
        }
        assert_eq!(application(&"x".repeat(1000)), "x".repeat(128));
        // Cut between characters.
        assert_eq!(application(&"日".repeat(1000)), "日".repeat(42));
    }

    #[test]
    fn times_have_four_digits_for_the_year() {
        let mut flow = flow(None);
        flow.start = Timestamp(u64::MAX);
        let end = encoded(None, &flow, Some(Timestamp(u64::MAX)));
        assert_eq!(end.matches("\"9999-12-31T23:59:59.999999+00:00\"").count(), 2, "{end}");
    }

    #[test]
    fn the_longest_firefly_is_not_too_long() {
        let ends = ["[1111:1111:1111:1111:1111:1111:1111:1111]:65535"; 2];
        let ends = ends.map(|end| end.parse().unwrap());
        let id = FlowId::new(Protocol::Tcp, ends[0], ends[1]).unwrap();
        let tag = Tag::new(511, 63).unwrap();
        let news = carried(u64::MAX, u64::MAX);
        let flow = Flow { id, tag, news, ..flow(Some(&"\\".repeat(1000))) };
        let host = format!("{0}.{0}.{0}.{0}", "a".repeat(63));
        let longest = encoded(Some(host.as_bytes()), &flow, Some(Timestamp(0)));
        assert!(longest.contains(&host));
        assert!(longest.contains(r#""usage":{"received":18446744073709551615,"sent":1"#));
        assert!(longest.len() <= MAX_LEN, "{}", longest.len());
    }
}

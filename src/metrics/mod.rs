//! What glowd measures of itself, in the forms that Prometheus reads: its text format,
//! version 0.0.4, and OpenMetrics 1.0.0.
//!
//! A part that counts gives [`Metrics`] a source when it is built or attached; whoever
//! is asked for the metrics runs the sources on its own thread. A source reads atomics,
//! system files and maps of the kernel: it never waits for another thread's work. Which
//! metrics there are is in `families`, and no other can be written; glowd(8) lists them.

pub mod families;
pub mod interfaces;
#[cfg_attr(not(target_os = "linux"), path = "process_absent.rs")]
pub mod process;

use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

pub use families::Family;

use crate::meter::Reader;

/// A number that several threads read and add to.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds to it.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// Takes away from it, down to 0. For the one thread that also adds.
    pub fn take(&self, less: u64) {
        self.set(self.get().saturating_sub(less));
    }

    /// Has it be that number.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// As it is now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl From<u64> for Count {
    fn from(value: u64) -> Self {
        Count(AtomicU64::new(value))
    }
}

/// As they are at that moment.
impl PartialEq for Count {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Goes up; its name ends in `_total`.
    Counter,
    /// Always 1, for its labels; its name ends in `_info`.
    Info,
}

impl Kind {
    /// As the documentation says it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Info => "info",
        }
    }
}

/// The value of a sample. Not a floating-point number: none is needed.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// A number.
    Whole(u64),
    /// Of a millionth, shown as the unit with six decimals: seconds.
    Millionths(u64),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Whole(value) => value.fmt(f),
            Value::Millionths(value) => write!(f, "{}.{:06}", value / 1_000_000, value % 1_000_000),
        }
    }
}

/// Writes its samples whenever the metrics are asked for.
pub type Source = Box<dyn Fn(&mut Writer) + Send + Sync>;

/// All sources of the daemon.
#[derive(Default)]
pub struct Metrics {
    sources: Mutex<Vec<Source>>,
    packets: OnceLock<Arc<dyn Reader>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Adds a source, for good.
    pub fn add(&self, source: impl Fn(&mut Writer) + Send + Sync + 'static) {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(source));
    }

    /// Has marked packets read by `reader`. The first one counts.
    pub fn read_packets_by(&self, reader: Arc<dyn Reader>) {
        let _ = self.packets.set(reader);
    }

    /// What tells the marked packets, if they are counted.
    pub fn packets(&self) -> Option<&dyn Reader> {
        self.packets.get().map(|reader| &**reader)
    }

    /// Has all sources write, behind each other.
    pub fn write(&self, writer: &mut Writer) {
        // Only sources that are added wait for this, and that is while the daemon starts.
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.iter().for_each(|source| source(writer));
    }
}

/// Which of the two forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' own, version 0.0.4.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

/// The media type of OpenMetrics in its version before 1.0.0, which has all that is written
/// here in the same form.
pub const OLD_OPEN_METRICS: &str = "application/openmetrics-text; version=0.0.1; charset=utf-8";

impl Format {
    /// The media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The lines in front of a family's samples. `help` has neither a backslash nor a
    /// line's end in it.
    pub fn head(self, name: &str, kind: Kind, help: &str, out: &mut Vec<u8>) {
        let suffix = match kind {
            Kind::Gauge => "",
            Kind::Counter => "_total",
            Kind::Info => "_info",
        };
        // In OpenMetrics the suffix belongs to the sample; the other form knows no info.
        let (name, kind) = match (self, kind) {
            (Format::OpenMetrics, _) => (name.strip_suffix(suffix).unwrap_or(name), kind.name()),
            (Format::Text, Kind::Info) => (name, "gauge"),
            (Format::Text, _) => (name, kind.name()),
        };
        // Writing to a Vec cannot fail.
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }
}

/// Gathers samples: those of a family have to stand together, whoever writes them.
#[derive(Debug)]
pub struct Writer(Vec<Vec<u8>>);

impl Default for Writer {
    fn default() -> Self {
        Writer(families::ALL.iter().map(|_| Vec::new()).collect())
    }
}

impl Writer {
    /// Adds a sample, with a value for each of the family's labels.
    pub fn sample(&mut self, family: &'static Family, labels: &[&str], value: Value) {
        debug_assert_eq!(labels.len(), family.labels.len(), "{}", family.name);
        let Some(at) = families::ALL.iter().position(|known| known.name == family.name) else {
            return;
        };
        let out = &mut self.0[at];
        out.extend_from_slice(family.name.as_bytes());
        for (index, (name, text)) in family.labels.iter().zip(labels).enumerate() {
            out.push(if index == 0 { b'{' } else { b',' });
            label(name, text, out);
        }
        if !family.labels.is_empty() {
            out.push(b'}');
        }
        // Writing to a Vec cannot fail.
        let _ = writeln!(out, " {value}");
    }

    /// The same for a whole number.
    pub fn number(&mut self, family: &'static Family, labels: &[&str], value: u64) {
        self.sample(family, labels, Value::Whole(value));
    }

    /// Writes all families that have a sample.
    pub fn finish(&self, format: Format, out: &mut Vec<u8>) {
        for (family, samples) in families::ALL.iter().zip(&self.0) {
            if !samples.is_empty() {
                format.head(family.name, family.kind, family.help, out);
                out.extend_from_slice(samples);
            }
        }
    }
}

/// Writes a label; both formats have the same escapes.
pub fn label(name: &str, value: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"=\"");
    for byte in value.bytes() {
        match byte {
            b'\\' | b'"' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::families::{BUILD, FLOWS_OPEN, QUEUE_EVENTS};
    use std::collections::BTreeSet;

    fn written(format: Format, write: impl Fn(&mut Writer) + Send + Sync + 'static) -> String {
        let metrics = Metrics::default();
        metrics.add(write);
        let (mut writer, mut out) = (Writer::default(), Vec::new());
        metrics.write(&mut writer);
        writer.finish(format, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn samples_of_a_family_stand_together_whoever_writes_them_and_when() {
        let source = |writer: &mut Writer| {
            writer.number(&QUEUE_EVENTS, &["b"], 2);
            writer.number(&FLOWS_OPEN, &[], 1);
            writer.number(&QUEUE_EVENTS, &["a"], 3);
        };
        let text = written(Format::Text, source);
        let samples: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let expected = [
            "glowd_flows_open 1",
            "glowd_queue_events{backend=\"b\"} 2",
            "glowd_queue_events{backend=\"a\"} 3",
        ];
        assert_eq!(samples, expected);
        assert_eq!(text.matches("# TYPE").count(), 2, "none of a family without a sample");
    }

    #[test]
    fn hostile_labels_are_escaped_and_stay_on_their_line() {
        let hostile = "a\"} 1\nup{b=\"\\";
        let text = written(Format::Text, move |writer| {
            writer.number(&QUEUE_EVENTS, &[hostile], 7);
        });
        let last = text.lines().last().unwrap();
        assert_eq!(last, r#"glowd_queue_events{backend="a\"} 1\nup{b=\"\\"} 7"#);
        assert_eq!(text.lines().count(), 3);
    }

    #[test]
    fn suffixes_belong_to_the_samples_in_open_metrics() {
        let source = |writer: &mut Writer| writer.number(&BUILD, &["1", ""], 1);
        let text = written(Format::Text, source);
        assert!(text.contains("# TYPE glowd_build_info gauge\nglowd_build_info{"), "{text}");
        let text = written(Format::OpenMetrics, source);
        assert!(text.contains("# TYPE glowd_build info\nglowd_build_info{"), "{text}");
    }

    #[test]
    fn seconds_have_six_decimals() {
        assert_eq!(Value::Millionths(1_000_002).to_string(), "1.000002");
        assert_eq!(Value::Whole(u64::MAX).to_string(), "18446744073709551615");
    }

    #[test]
    fn the_families_are_named_by_the_conventions() {
        let mut seen = BTreeSet::new();
        for Family { name, kind, labels, help } in families::ALL.iter().copied() {
            assert!(seen.insert(name), "{name} twice");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert_eq!(name.ends_with("_info"), *kind == Kind::Info, "{name}");
            let ours = name.starts_with("glowd_") || name.starts_with("process_");
            assert!(ours, "{name}");
            let words = labels.iter().chain([name]);
            for word in words {
                let legal = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
                assert!(word.bytes().all(legal), "{name}: {word}");
            }
            assert!(help.ends_with('.') && !help.contains(['\\', '\n']), "{name}: {help}");
        }
    }
}

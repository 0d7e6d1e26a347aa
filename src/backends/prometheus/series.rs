//! The series of a flow: what TCP knows of its connection, under the names and in the
//! units of flowd or of flowd-go (spec section 7). Pure; glowd(8) is made from this
//! table.
//!
//! Where flowd-go's name says that something only grows its type is counter here, as in
//! flowd: flowd-go calls all gauges, which Prometheus' own tools object to.

use std::fmt::Write as _;
use std::io::Write as _;

use crate::flow::Timestamp;
use crate::flow_info::FlowInfo;
use crate::metrics::{Format, Kind};
use crate::net::tcp_info::TcpInfo;

/// Whose names and units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Units {
    /// ms, bit/s, names of experiments and activities.
    Flowd,
    /// us, octets/s, their ids.
    FlowdGo,
}

/// What a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// What the help says.
    Plain,
    /// us, as the kernel has it.
    Time,
    /// Octets per second, as the kernel has it.
    Rate,
}

impl Unit {
    /// How it is called in those units.
    pub(crate) fn name(self, units: Units) -> &'static str {
        match (self, units) {
            (Unit::Plain, _) => "",
            (Unit::Time, Units::Flowd) => ", in ms",
            (Unit::Time, Units::FlowdGo) => ", in us",
            (Unit::Rate, Units::Flowd) => ", in bit/s",
            (Unit::Rate, Units::FlowdGo) => ", in octets per second",
        }
    }
}

/// A connection that was measured.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub(super) tcp: TcpInfo<'a>,
    pub(super) info: &'a FlowInfo,
    /// When it is read.
    pub(super) now: Timestamp,
}

impl Reading<'_> {
    fn ago(self, age: Option<u32>) -> Option<u64> {
        self.info.ago(age, self.now).map(Into::into)
    }
}

/// One number of each flow.
pub(crate) struct Series {
    /// Its name behind `flow_tcp_` in flowd; "": it has none.
    flowd: &'static str,
    /// The same in flowd-go.
    flowd_go: &'static str,
    pub(crate) unit: Unit,
    /// What it is, without the unit and the full stop.
    pub(crate) help: &'static str,
    read: fn(Reading<'_>) -> Option<u64>,
}

impl Series {
    /// Its name behind `flow_tcp_`; "": it has none.
    pub(crate) fn name(&self, units: Units) -> &'static str {
        match units {
            Units::Flowd => self.flowd,
            Units::FlowdGo => self.flowd_go,
        }
    }

    pub(crate) fn kind(&self, units: Units) -> Kind {
        if self.name(units).ends_with("_total") {
            Kind::Counter
        } else {
            Kind::Gauge
        }
    }
}

/// Names in flowd and flowd-go, the unit, how it is read of a tcp_info, and the help.
macro_rules! series {
    ($($flowd:literal, $flowd_go:literal: $unit:ident $read:expr, $help:literal;)*) => {
        /// All series of a flow but [`ALGORITHM`].
        pub(crate) static ALL: &[Series] = &[$(Series {
            flowd: $flowd,
            flowd_go: $flowd_go,
            unit: Unit::$unit,
            help: $help,
            read: $read,
        }),*];
    };
}

/// For a value that says nothing if it is the largest.
fn unless_max(value: Option<u32>) -> Option<u64> {
    value.filter(|value| *value < u32::MAX).map(u64::from)
}

series! {
    "retrans_total", "retrans": Plain |r| r.tcp.total_retrans().map(Into::into),
        "Segments retransmitted so far";
    "rto", "rto": Time |r| r.tcp.rto().map(Into::into), "Retransmission time-out";
    "ato", "ato": Time |r| r.tcp.ato().map(Into::into), "Time-out of delayed acknowledgements";
    "rtt", "rtt": Time |r| r.tcp.rtt().map(Into::into), "Round-trip time, smoothed";
    "rtt_var", "rtt_var": Time |r| r.tcp.rttvar().map(Into::into),
        "Mean deviation of the round-trip time";
    "minrtt", "minrtt": Time |r| unless_max(r.tcp.min_rtt()), "Smallest round-trip time lately";
    "pmtu", "pmtu": Plain |r| r.tcp.pmtu().map(Into::into), "Path MTU, in octets";
    "mss", "mss": Plain |r| r.tcp.snd_mss().map(Into::into), "Size of segments sent, in octets";
    "rcvmss", "rcvmss": Plain |r| r.tcp.rcv_mss().map(Into::into),
        "Size of segments received, as estimated, in octets";
    "advmss", "advmss": Plain |r| r.tcp.advmss().map(Into::into),
        "Segment size that was announced, in octets";
    "cwnd", "cwnd": Plain |r| r.tcp.snd_cwnd().map(Into::into), "Congestion window, in segments";
    "ssthresh", "ssthresh": Plain
        |r| r.tcp.snd_ssthresh().filter(|value| *value < 0x7fff_ffff).map(Into::into),
        "Slow-start threshold, in segments; not before the first loss";
    "bytes_sent_total", "bytes_sent_total": Plain |r| r.tcp.bytes_sent(),
        "Octets sent, retransmissions included";
    "bytes_acked_total", "bytes_acked_total": Plain |r| r.tcp.bytes_acked(),
        "Octets that were acknowledged";
    "bytes_received_total", "bytes_received_total": Plain |r| r.tcp.bytes_received(),
        "Octets received";
    "segs_out_total", "segs_out_total": Plain |r| r.tcp.segs_out().map(Into::into),
        "Segments sent";
    "segs_in_total", "segs_in_total": Plain |r| r.tcp.segs_in().map(Into::into),
        "Segments received";
    "data_segs_out_total", "data_segs_out_total": Plain |r| r.tcp.data_segs_out().map(Into::into),
        "Segments with data sent";
    "data_segs_in_total", "data_segs_in_total": Plain |r| r.tcp.data_segs_in().map(Into::into),
        "Segments with data received";
    "send", "": Rate |r| {
        let window = u64::from(r.tcp.snd_cwnd()?) * u64::from(r.tcp.snd_mss()?);
        (window * 1_000_000).checked_div(r.tcp.rtt()?.into())
    }, "What the congestion window would let through";
    "lastsnd", "lastsnd": Plain |r| r.ago(r.tcp.last_data_sent()),
        "Since data was last sent, in ms";
    "lastrcv", "lastrcv": Plain |r| r.ago(r.tcp.last_data_recv()),
        "Since data was last received, in ms";
    "lastack", "lastack": Plain |r| r.ago(r.tcp.last_ack_recv()),
        "Since an acknowledgement was last received, in ms";
    "pacing_rate", "pacing_rate": Rate |r| r.tcp.pacing_rate().filter(|rate| *rate < u64::MAX),
        "Rate of pacing";
    "delivery_rate", "delivery_rate": Rate |r| r.tcp.delivery_rate(), "Rate of delivery";
    "delivered", "delivered": Plain |r| r.tcp.delivered().map(Into::into),
        "Segments delivered so far";
    "busy", "busy": Time |r| r.tcp.busy_time(), "Time in which there was data to send";
    "rwnd_limited", "rwnd_limited": Time |r| r.tcp.rwnd_limited(),
        "Of that, time in which the receive window was the limit";
    "rcv_space", "rcv_space": Plain |r| r.tcp.rcv_space().map(Into::into),
        "Space of the receive buffer, in octets";
    "rcv_ssthresh", "rcv_ssthresh": Plain |r| r.tcp.rcv_ssthresh().map(Into::into),
        "Bound of the receive window, in octets";
    "snd_wnd", "rcv_snd_wnd": Plain |r| r.tcp.snd_wnd().map(Into::into),
        "The window that the other side announced, in octets";
    "skmem_rmem_alloc", "": Plain |r| r.info.socket_memory(0).map(Into::into),
        "Memory for what was received, in octets";
    "skmem_rcv_buf", "": Plain |r| r.info.socket_memory(1).map(Into::into),
        "Bound of that memory, in octets";
    "skmem_wmem_allow", "": Plain |r| r.info.socket_memory(2).map(Into::into),
        "Memory of what is on its way, in octets";
    "skmem_snd_buf", "": Plain |r| r.info.socket_memory(3).map(Into::into),
        "Bound of the memory for sending, in octets";
    "skmem_fwd_alloc", "": Plain |r| r.info.socket_memory(4).map(Into::into),
        "Memory set aside, in octets";
    "skmem_wmem_queued", "": Plain |r| r.info.socket_memory(5).map(Into::into),
        "Memory of what waits to be sent, in octets";
    "skmem_opt_mem", "": Plain |r| r.info.socket_memory(6).map(Into::into),
        "Memory for socket options, in octets";
    "skmem_back_log", "": Plain |r| r.info.socket_memory(7).map(Into::into),
        "Memory of packets that wait for the socket, in octets";
    "skmem_sock_drop", "": Plain |r| r.info.socket_memory(8).map(Into::into),
        "Packets dropped before the socket took them";
}

/// What says the congestion control: names in flowd and flowd-go, and the label.
pub(crate) fn algorithm(units: Units) -> (&'static str, &'static str) {
    match units {
        Units::Flowd => ("ca_info", "opts"),
        Units::FlowdGo => ("rcv_ca_info", "alg"),
    }
}

/// The help of that.
pub(crate) const ALGORITHM: &str = "Congestion control, and in flowd's form what was negotiated";

/// The names of the labels of each series.
pub(crate) fn labels(units: Units) -> [&'static str; 7] {
    match units {
        Units::Flowd => ["src", "dst", "flow", "exp", "act", "experiment_id", "activity_id"],
        Units::FlowdGo => ["src", "dst", "flow", "exp", "act", "experiment", "activity"],
    }
}

/// A flow's labels as they are written, and what was measured.
pub(super) type Row<'a> = (&'a str, Reading<'a>);

/// Writes the series of all flows. Those of a name stand together.
pub(super) fn write(rows: &[Row<'_>], units: Units, format: Format, out: &mut Vec<u8>) {
    let mut name = String::new();
    for series in ALL.iter().filter(|series| !series.name(units).is_empty()) {
        let start = out.len();
        name.clear();
        name.push_str("flow_tcp_");
        name.push_str(series.name(units));
        let help = format!("{}{}.", series.help, series.unit.name(units));
        format.head(&name, series.kind(units), &help, out);
        let head = out.len();
        for (labels, reading) in rows {
            let Some(value) = (series.read)(*reading) else { continue };
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(labels.as_bytes());
            out.extend_from_slice(b"} ");
            match (series.unit, units) {
                (Unit::Time, Units::Flowd) => {
                    number(value / 1000, out);
                    // Writing to a Vec cannot fail.
                    let _ = write!(out, ".{:03}", value % 1000);
                }
                (Unit::Rate, Units::Flowd) => number(value.saturating_mul(8), out),
                _ => number(value, out),
            }
            out.push(b'\n');
        }
        if out.len() == head {
            out.truncate(start);
        }
    }
    write_algorithms(rows, units, format, out);
}

/// Writes a number; the formatting macros take three times as long, and a scrape of
/// 10,000 flows has 300,000 of them.
fn number(mut value: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        // Less than ten.
        digits[at] = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn write_algorithms(rows: &[Row<'_>], units: Units, format: Format, out: &mut Vec<u8>) {
    let (start, (name, label)) = (out.len(), algorithm(units));
    format.head(&format!("flow_tcp_{name}"), Kind::Info, &format!("{ALGORITHM}."), out);
    let head = out.len();
    for (labels, Reading { tcp, info, .. }) in rows {
        let Some(algorithm) = info.congestion() else { continue };
        let mut text = String::new();
        if units == Units::Flowd {
            let options = tcp.options().unwrap_or(0);
            for (bit, option) in [(1, "ts"), (2, "sack"), (8, "ecn"), (16, "ecnseen")] {
                if options & bit != 0 {
                    text.push_str(option);
                    text.push(' ');
                }
            }
        }
        text.push_str(algorithm);
        let scaled = units == Units::Flowd && tcp.options().unwrap_or(0) & 4 != 0;
        if let Some((sent, received)) = tcp.window_scales().filter(|_| scaled) {
            let _ = write!(text, " wscale:{sent},{received}");
        }
        let _ = write!(out, "flow_tcp_{name}{labels},");
        crate::metrics::label(label, &text, out);
        out.extend_from_slice(b"} 1\n");
    }
    if out.len() == head {
        out.truncate(start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_they_are() {
        for value in [0, 9, 10, 12_345, u64::MAX] {
            let mut out = Vec::new();
            number(value, &mut out);
            assert_eq!(out, value.to_string().as_bytes());
        }
    }

    /// A time in us, and a rate in octets per second, as either has it.
    #[test]
    fn times_and_rates_are_in_the_units_of_who_is_followed() {
        let mut tcp = vec![0; 248];
        for (at, value) in [(8, 204_007_u32), (12, 40_000), (68, 99), (72, 1_234_567), (148, 1)] {
            tcp[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        // Segments of 1000 octets, ten at a time.
        for (at, value) in [(16, 1000_u32), (80, 10)] {
            tcp[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let rates = [(104, 125_000_001_u64), (160, u64::MAX / 16), (168, 2_000), (176, 1_999)];
        for (at, value) in rates {
            tcp[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        }
        let info = FlowInfo::by_program(Timestamp(0), 1, &tcp, b"cubic");
        let rows =
            [("{l=\"\"", Reading { tcp: info.tcp_info().unwrap(), info: &info, now: info.time })];
        let written = |units| {
            let mut out = Vec::new();
            write(&rows, units, Format::Text, &mut out);
            String::from_utf8(out).unwrap()
        };
        let (ours, theirs) = (written(Units::FlowdGo), written(Units::Flowd));
        for (name, in_us, in_ms) in [
            ("rto", "204007", "204.007"),
            ("ato", "40000", "40.000"),
            ("rtt", "99", "0.099"),
            ("rtt_var", "1234567", "1234.567"),
            ("minrtt", "1", "0.001"),
            ("busy", "2000", "2.000"),
            ("rwnd_limited", "1999", "1.999"),
            ("pacing_rate", "125000001", "1000000008"),
            ("delivery_rate", "1152921504606846975", "9223372036854775800"),
            ("mss", "1000", "1000"),
            ("cwnd", "10", "10"),
        ] {
            for (text, value) in [(&ours, in_us), (&theirs, in_ms)] {
                let line = format!("\nflow_tcp_{name}{{l=\"\"}} {value}\n");
                assert!(text.contains(&line), "{line}{text}");
            }
        }
        // 10,000 octets in 99 us, in bit/s.
        assert!(theirs.contains("\nflow_tcp_send{l=\"\"} 808080808\n"), "{theirs}");
        for (text, times, rates) in
            [(&ours, ", in us.", "octets per second."), (&theirs, ", in ms.", "bit/s.")]
        {
            assert!(text.contains(&format!("# HELP flow_tcp_rto Retransmission time-out{times}\n")));
            assert!(
                text.contains(&format!("# HELP flow_tcp_pacing_rate Rate of pacing, in {rates}\n"))
            );
        }
    }

    #[test]
    fn each_name_is_there_once_in_either_units() {
        for units in [Units::Flowd, Units::FlowdGo] {
            let mut names: Vec<_> = ALL.iter().map(|series| series.name(units)).collect();
            names.retain(|name| !name.is_empty());
            names.push(algorithm(units).0);
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count);
            assert!(names.iter().all(|n| n.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
        }
        assert!(ALL.iter().all(|series| !series.help.ends_with('.')));
    }
}

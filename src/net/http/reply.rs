//! Replies to bytes: what stands in front of a body (RFC 9112 section 4). Pure.

use std::io::Write;

/// The media type of JSON documents.
pub const JSON: &str = "application/json";

/// A reply but for its body.
#[derive(Clone, Debug)]
pub struct Reply<'a> {
    /// The status code.
    pub status: u16,
    /// The media type of the body.
    pub content_type: &'a str,
    /// The methods that the path knows, with status 405.
    pub allow: &'a str,
    /// The moment, as [`date`] writes it.
    pub date: &'a str,
    /// The x of the request's HTTP/1.x.
    pub minor: u8,
    /// Whether the connection stays open.
    pub keep_alive: bool,
    /// Whether the body stays away: the method was HEAD.
    pub head_only: bool,
}

impl Reply<'_> {
    /// Puts the head in front of the body, which is `out[start..]`, so that its
    /// length is known without a copy of it.
    pub fn wrap(&self, out: &mut Vec<u8>, start: usize) {
        let length = out.len() - start;
        if self.head_only {
            out.truncate(start);
        }
        let mut head = Vec::with_capacity(256);
        // Writing to a Vec cannot fail.
        let _ = write!(
            head,
            "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {length}\r\nDate: {}\r\n",
            self.status,
            reason(self.status),
            self.content_type,
            self.date
        );
        if !self.allow.is_empty() {
            let _ = write!(head, "Allow: {}\r\n", self.allow);
        }
        if self.status == 503 {
            head.extend_from_slice(b"Retry-After: 1\r\n");
        }
        if !self.keep_alive {
            head.extend_from_slice(b"Connection: close\r\n");
        } else if self.minor == 0 {
            head.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        head.extend_from_slice(b"\r\n");
        out.splice(start..start, head);
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        // The phrase may be empty (RFC 9112 section 4).
        _ => "",
    }
}

/// The moment in seconds since 1970, as RFC 9110 section 5.6.7 writes it.
pub fn date(seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let weekday = usize::try_from(seconds / 86400 % 7).map_or("", |day| DAYS[day]);
    // 1970-01-01T00:00:00.000000+00:00
    let text = crate::flow::Timestamp(seconds.saturating_mul(1_000_000)).to_string();
    let month = text[5..7].parse().map_or("", |month: usize| MONTHS[month - 1]);
    format!("{weekday}, {} {month} {} {} GMT", &text[8..10], &text[..4], &text[11..19])
}

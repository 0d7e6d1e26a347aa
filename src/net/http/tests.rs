//! Tests of http.rs.

use super::*;

/// Everything that is decoded out of `bytes` when they arrive in pieces that end
/// at `cuts`: the requests, and what was wrong.
fn decode(bytes: &[u8], cuts: &[usize]) -> (Vec<Request<'static>>, Option<Bad>) {
    let mut decoder = Decoder::new(100);
    let (mut pending, mut requests) = (Vec::new(), Vec::new());
    let mut from = 0;
    for to in cuts.iter().copied().chain([bytes.len()]) {
        pending.extend_from_slice(&bytes[from..to]);
        from = to;
        let mut rest = &pending[..];
        loop {
            match decoder.decode(&mut rest) {
                Ok(Some(Request { head, body })) => {
                    requests.push(Request { head, body: Cow::Owned(body.into_owned()) });
                }
                Ok(None) => break,
                Err(bad) => return (requests, Some(bad)),
            }
        }
        let used = pending.len() - rest.len();
        pending.drain(..used);
    }
    (requests, None)
}

/// The only request in it.
fn one(text: &str) -> Request<'static> {
    let (mut requests, bad) = decode(text.as_bytes(), &[]);
    assert_eq!((requests.len(), bad), (1, None), "{text}");
    requests.remove(0)
}

/// The status with which it is refused.
fn refused(text: &str) -> u16 {
    let (requests, bad) = decode(text.as_bytes(), &[]);
    assert_eq!(requests, [], "{text}");
    bad.unwrap_or_else(|| panic!("{text} was not refused")).status
}

const PIPELINE: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n\
    POST /flow?x=1 HTTP/1.1\r\nHost: a\r\ncontent-LENGTH: 5\r\n\r\nhello\
    \r\nPOST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n\
    3;ext=\"1\"\r\nabc\r\n00A\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n\
    HEAD http://localhost:7777/flows HTTP/1.0\r\n\r\n";

#[test]
fn a_pipeline_is_cut_the_same_wherever_it_is_split() {
    let bytes = PIPELINE.as_bytes();
    let whole = decode(bytes, &[]);
    assert_eq!(whole.1, None);
    let shown: Vec<_> = whole.0.iter().map(|r| (r.head.method, &*r.head.path, &*r.body)).collect();
    let expected: [(Method, &str, &[u8]); 4] = [
        (Method::Get, "/", b""),
        (Method::Post, "/flow", b"hello"),
        (Method::Post, "/chunks", b"abc0123456789"),
        (Method::Head, "/flows", b""),
    ];
    assert_eq!(shown, expected);
    for at in 0..=bytes.len() {
        assert_eq!(decode(bytes, &[at]), whole, "split at {at}");
        for second in at..=bytes.len() {
            assert_eq!(decode(bytes, &[at, second]), whole, "split at {at} and {second}");
        }
    }
    let every: Vec<usize> = (0..bytes.len()).collect();
    assert_eq!(decode(bytes, &every), whole, "byte by byte");
}

#[test]
fn keep_alive_follows_version_and_connection() {
    for (lines, keep_alive) in [
        ("1.1\r\nHost: a", true),
        ("1.1\r\nHost: a\r\nConnection: x, Close", false),
        ("1.0", false),
        ("1.0\r\nConnection: Keep-Alive", true),
        ("1.0\r\nConnection: keep-alive, close", false),
    ] {
        let request = one(&format!("GET / HTTP/{lines}\r\n\r\n"));
        assert_eq!(request.head.keep_alive, keep_alive, "{lines}");
    }
}

#[test]
fn a_web_page_is_recognised() {
    for (line, from_page) in [
        ("Accept: *", false),
        ("Sec-Fetch-Site: none", false),
        ("Origin: null", true),
        ("ORIGIN: http://127.0.0.1:7777", true),
        ("Sec-Fetch-Site: cross-site", true),
        ("Sec-Fetch-Site: same-origin", true),
    ] {
        let request = one(&format!("GET / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n"));
        assert_eq!(request.head.from_page, from_page, "{line}");
    }
}

#[test]
fn what_cannot_be_served_is_refused() {
    let post = |lines: &str| refused(&format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}"));
    assert_eq!(refused("GET / HTTP/2.0\r\n\r\n"), 505);
    assert_eq!(refused("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505);
    assert_eq!(refused("\x16\x03\x01\x02"), 400);
    assert_eq!(refused("GET / HTTP/1.1\r\n\r\n"), 400, "no Host");
    assert_eq!(refused("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), 400);
    assert_eq!(refused("GET / HTTP/1.1\r\nHost : a\r\n\r\n"), 400);
    assert_eq!(refused("GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n"), 400);
    for length in ["", "-1", "+1", "1,1", "0x1", "1 1"] {
        assert_eq!(post(&format!("Content-Length: {length}\r\n\r\nx")), 400, "{length:?}");
    }
    assert_eq!(post("Content-Length: 1\r\nContent-Length: 1\r\n\r\nx"), 400);
    for length in ["101", "99999999999999999999999999"] {
        assert_eq!(post(&format!("Content-Length: {length}\r\n\r\n")), 413, "before the body");
    }
    assert_eq!(post("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx"), 400);
    assert_eq!(post("Transfer-Encoding: gzip, chunked\r\n\r\n"), 501);
    assert_eq!(post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"), 501);
    assert_eq!(refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
    assert_eq!(post("Expect: a miracle\r\n\r\n"), 417);
}

#[test]
fn broken_chunks_are_refused() {
    let chunks = |text: &str| {
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        refused(&format!("{head}{text}"))
    };
    for text in [
        "\r\n",
        " 1\r\nx",
        "-1\r\n",
        "x\r\n",
        "1\nx\r\n",
        "2\r\nabc\r\n",
        "1\r\nab\n",
        "1\r\nx\n0",
        "11111111111111111",
    ] {
        assert_eq!(chunks(text), 400, "{text:?}");
    }
    assert_eq!(chunks(&format!("1;{}", "x".repeat(300))), 400);
    assert_eq!(chunks("65\r\n"), 413);
}

#[test]
fn chunks_add_up_to_the_limit_and_no_further() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let fifty = format!("32\r\n{}\r\n", "x".repeat(50));
    assert_eq!(one(&format!("{head}{fifty}{fifty}0\r\n\r\n")).body.len(), 100);
    assert_eq!(refused(&format!("{head}{fifty}{fifty}1\r\n")), 413);
    assert_eq!(refused(&format!("{head}{fifty}ffffffffffffffff\r\n")), 413);
    assert_eq!(refused(&format!("{head}0\r\n{}", "a: b\r\n".repeat(2000))), 431);
    assert_eq!(refused(&format!("{head}0\r\n{}", "a".repeat(9000))), 431);
}

#[test]
fn heads_are_limited() {
    let lines = |count: usize| "a: b\r\n".repeat(count);
    one(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", lines(63)));
    assert_eq!(refused(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", lines(64))), 431);
    let padded = |length: usize| {
        let head = "GET / HTTP/1.1\r\nHost: a\r\nPad: ";
        format!("{head}{}\r\n\r\n", "x".repeat(length - head.len() - 4))
    };
    one(&padded(MAX_HEAD));
    assert_eq!(refused(&padded(MAX_HEAD + 1)), 431);
    assert_eq!(refused(&format!("GET /{}", "x".repeat(MAX_HEAD))), 431);
}

#[test]
fn empty_lines_before_a_request_are_dropped_up_to_a_limit() {
    let mut decoder = Decoder::new(10);
    let mut input = &b"\r\n\n\r\n"[..];
    assert_eq!(decoder.decode(&mut input), Ok(None));
    assert_eq!((input, decoder.in_body()), (&b""[..], false), "nothing is kept of them");
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let lines = |count: usize| "\r\n".repeat(count);
    let most = MAX_EMPTY / 2;
    let twice = format!("{}{get}", lines(most)).repeat(2);
    for cuts in [vec![], (0..twice.len()).collect()] {
        let (requests, bad) = decode(twice.as_bytes(), &cuts);
        assert_eq!((requests.len(), bad), (2, None), "the limit is for each request");
    }
    assert_eq!(refused(&format!("{}{get}", lines(most + 1))), 400);
    assert_eq!(refused(&format!("\r{get}")), 400, "not a line");
}

#[test]
fn who_expects_to_continue_is_told_so_once() {
    let mut decoder = Decoder::new(10);
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    let mut input = &head[..];
    assert_eq!(decoder.decode(&mut input), Ok(None));
    assert!(decoder.in_body() && decoder.take_continue() && !decoder.take_continue());
    let mut input = &b"hi"[..];
    assert_eq!(&*decoder.decode(&mut input).unwrap().unwrap().body, b"hi");
    // Whoever does not wait is not told.
    let eager = [&head[..], b"hi"].concat();
    decoder.decode(&mut &eager[..]).unwrap().unwrap();
    assert!(!decoder.take_continue() && !decoder.in_body());
}

#[test]
fn a_foreign_host_is_recognised() {
    for (target, version, host, foreign) in [
        ("/", "1.1", Some("127.0.0.1:7777"), false),
        ("/", "1.1", Some("example.org"), true),
        ("/", "1.1", Some(""), true),
        ("/", "1.0", None, false),
        ("/", "1.0", Some("example.org"), true),
        ("http://localhost/", "1.1", Some("example.org"), false),
        ("http://example.org/", "1.1", Some("localhost"), true),
        ("http://example.org/", "1.0", None, true),
        ("http://", "1.0", None, true),
    ] {
        let host = host.map_or(String::new(), |host| format!("Host: {host}\r\n"));
        let request = one(&format!("GET {target} HTTP/{version}\r\n{host}\r\n"));
        assert_eq!(request.head.foreign_host, foreign, "{target} {version} {host}");
    }
    assert_eq!(refused("GET / HTTP/1.0\r\nHost: localhost\r\nHost: a\r\n\r\n"), 400);
}

#[test]
fn replies_have_the_length_of_their_body() {
    let reply = Reply {
        content_type: JSON,
        status: 405,
        allow: "GET, HEAD",
        date: &date(784_111_777),
        minor: 1,
        keep_alive: false,
        head_only: false,
    };
    let head = "HTTP/1.1 405 Method Not Allowed\r\nContent-Type: application/json\r\n\
        Content-Length: 2\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nAllow: GET, HEAD\r\n\
        Connection: close\r\n\r\n";
    let mut out = b"before{}".to_vec();
    reply.wrap(&mut out, 6);
    assert_eq!(String::from_utf8(out).unwrap(), format!("before{head}{{}}"));
    let mut out = b"before{}".to_vec();
    Reply { head_only: true, ..reply.clone() }.wrap(&mut out, 6);
    assert_eq!(String::from_utf8(out).unwrap(), format!("before{head}"));
    let mut out = Vec::new();
    Reply { status: 200, allow: "", minor: 0, keep_alive: true, ..reply }.wrap(&mut out, 0);
    let text = String::from_utf8(out).unwrap();
    assert!(text.ends_with("GMT\r\nConnection: keep-alive\r\n\r\n"), "{text}");
}

#[test]
fn dates_are_those_of_the_rfc() {
    assert_eq!(date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
    assert_eq!(date(1_709_164_800), "Thu, 29 Feb 2024 00:00:00 GMT");
    assert_eq!(date(253_402_300_799), "Fri, 31 Dec 9999 23:59:59 GMT");
}

#[test]
fn open_metrics_is_for_those_who_like_it_as_much_as_plain_text() {
    let (new, old) = (Some("1.0.0"), Some("0.0.1"));
    for (accept, open_metrics) in [
        ("*/*", None),
        ("application/openmetrics-text", new),
        ("Application/OpenMetrics-Text; Version=\"1.0.0\";charset=utf-8", new),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", None),
        ("application/openmetrics-text;version=1.0.0;q=0.75,text/plain;q=0.5", new),
        ("text/plain;q=0.5,application/openmetrics-text;q=0.75", new),
        ("application/openmetrics-text;q=0.4,text/plain;version=0.0.4", None),
        ("application/openmetrics-text;Q=0.1,text/plain;Q=0.2", None),
        ("application/openmetrics-text;Q=1.000,text/plain;q=1", new),
        ("application/openmetrics-text;q=0.000", None),
        ("application/openmetrics-text;q=", None),
        ("application/openmetrics-text;q=+1", None),
        ("application/openmetrics-text;q=0.0001", None),
        ("application/openmetrics-text;q=10", None),
        ("application/openmetrics-text;version=2.0.0", None),
        ("application/openmetrics-text;version=0.0.1;q=0.7,text/plain;q=0.3", old),
        ("application/openmetrics-text;version=0.0.1,application/openmetrics-text;q=0.9", old),
        ("text/plain\r\nAccept: application/openmetrics-text;q=0.9", None),
        // Prometheus 2.30, 2.42 and 3.
        ("application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", old),
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;\
             q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            new,
        ),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,\
             text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            new,
        ),
        ("", None),
    ] {
        let request = one(&format!("GET / HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n\r\n"));
        assert_eq!(request.head.open_metrics, open_metrics, "{accept}");
    }
}

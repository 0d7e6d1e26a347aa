//! Rules, read from JSON as the configuration has them.

use super::*;
use crate::config::Config;
use crate::error::Error;
use crate::plugins;
use crate::registry::Unknown;

fn names(unknown: Unknown) -> Names {
    Names::fixed(Registry::snapshot(), unknown)
}

/// Its rules have all keys.
static RULED: plugins::Spec = plugins::Spec {
    name: "ruled",
    aliases: &[],
    summary: "a plugin for these tests",
    keys: &[Key {
        name: "rules",
        aliases: &[],
        kind: Kind::Rules(KEYS),
        default: "[]",
        live: true,
        doc: "The rules.",
    }],
    check: |section| Rules::problems("rules", section.rules("rules")),
    build: |_, _| Err(Error::internal("only judged")),
};

/// The rules of a configuration.
fn sections(json: &str) -> Result<Vec<Section>, String> {
    let text = format!("{{\"plugins\": {{\"ruled\": {{\"rules\": {json}}}}}, \"backends\": {{}}}}");
    let judge = |text: &str| Config::judge(text, "c", &[&RULED], &[]);
    let config = judge(&text).map_err(|error| error.to_string())?;
    let again = judge(&config.to_json()).unwrap();
    assert_eq!(again.plugins[0].1, config.plugins[0].1, "what is printed says the same");
    Ok(config.plugins[0].1.rules("rules").to_vec())
}

fn rules(json: &str) -> Rules {
    Rules::read("rules", &sections(json).unwrap(), &names(Unknown::Refuse)).unwrap()
}

fn tag(experiment: u64, activity: u64) -> Tag {
    Tag::new(experiment, activity).unwrap()
}

fn subject(local: &str, remote: &str) -> Subject<'static> {
    Subject {
        protocol: Protocol::Tcp,
        local: local.parse().unwrap(),
        remote: remote.parse().unwrap(),
        uid: Fact::Open,
        cgroup: Fact::Open,
        command: Fact::Open,
    }
}

/// Who reads rules later must not wait for a directory of users.
#[test]
fn a_user_is_looked_up_once_for_all_who_read_the_rules() {
    let root = rules(r#"[{"user": "root", "experiment": 2, "activity": 16}]"#);
    assert_eq!(root.0[0].user, Some(0));
    assert_eq!(users().iter().filter(|(name, _)| name == "root").count(), 1);
    // As if the directory had had it.
    let name = "nobody-has-this-name";
    users().push((name.into(), 4711));
    let read = rules(r#"[{"user": "nobody-has-this-name", "experiment": 2, "activity": 16}]"#);
    assert_eq!(read.0[0].user, Some(4711));
    assert_eq!(uid(name), Err(format!("there is no user {name:?}")));
}

#[test]
fn each_condition_holds_for_what_it_names_and_nothing_else() {
    let here = "[2001:db8::1]:1094";
    let base = subject(here, "[2001:db8:7::2]:40000");
    let v4 = subject("[::ffff:192.0.2.1]:1094", "[::ffff:198.51.100.2]:40000");
    let commands: [Box<str>; 2] = ["xrootd2".into(), "xrootd".into()];
    let known = Subject {
        uid: Fact::Known(0),
        cgroup: Fact::Known("/system.slice/xrootd.service"),
        command: Fact::Known(&commands),
        ..base
    };
    let root = Subject { cgroup: Fact::Known("/"), ..base };
    let udp = Subject { protocol: Protocol::Udp, ..base };
    for (condition, matching, other) in [
        (r#""protocol": "UDP""#, udp, base),
        (r#""localPort": 1094"#, base, subject("[2001:db8::1]:1095", "[2001:db8:7::2]:1094")),
        (r#""localPort": [1, "1094-1095"]"#, base, subject("[::1]:1096", "[::1]:1094")),
        (r#""remotePort": "1-40000""#, base, subject(here, "[2001:db8:7::2]:40001")),
        (r#""localPrefix": "2001:db8::1""#, base, v4),
        (r#""remotePrefix": ["10.0.0.0/8", "2001:db8:7::/48"]"#, base, v4),
        (r#""remotePrefix": "198.51.100.0/24""#, v4, base),
        (r#""user": 0"#, known, Subject { uid: Fact::Known(1), ..known }),
        (r#""user": "root""#, known, Subject { uid: Fact::Unknown, ..known }),
        (r#""cgroup": "/system.slice/xrootd.service""#, known, root),
        (
            r#""cgroup": "/system.slice/""#,
            known,
            Subject { cgroup: Fact::Known("/system.slice2"), ..known },
        ),
        (r#""cgroup": "/""#, root, Subject { cgroup: Fact::Unknown, ..known }),
        (
            r#""command": "xrootd""#,
            known,
            Subject { command: Fact::Known(&commands[..1]), ..known },
        ),
    ] {
        let rules = rules(&format!(r#"[{{{condition}, "experiment": "atlas", "activity": 16}}]"#));
        assert_eq!(rules.judge(&matching), Verdict::Tag(tag(2, 16)), "{condition}");
        assert_eq!(rules.judge(&other), Verdict::None, "{condition}");
    }
}

#[test]
fn the_first_rule_that_matches_counts() {
    let rules = rules(
        r#"[{"localPort": 1, "remotePort": 7, "experiment": 2, "activity": "15"},
            {"localPort": 1, "experiment": "ATLAS", "activity": "production output"},
            {"experiment": "cms", "activity": 14}]"#,
    );
    for (local, remote, expected) in [
        ("[::1]:1", "[::2]:7", tag(2, 15)),
        ("[::1]:1", "[::2]:8", tag(2, 16)),
        ("[::1]:2", "[::2]:7", tag(3, 14)),
    ] {
        assert_eq!(rules.judge(&subject(local, remote)), Verdict::Tag(expected));
    }
    assert_eq!(Rules::default().judge(&subject("[::1]:1", "[::2]:7")), Verdict::None);
}

#[test]
fn what_is_costly_is_asked_for_only_if_it_decides() {
    let rules = rules(
        r#"[{"localPort": 1, "command": "xrootd", "experiment": 2, "activity": 1},
            {"localPort": 2, "user": 7, "cgroup": "/a", "experiment": 2, "activity": 9},
            {"localPort": "1-3", "experiment": 2, "activity": 15}]"#,
    );
    let commands: [Box<str>; 1] = ["xrootd".into()];
    let at = |port| subject(&format!("[::1]:{port}"), "[::2]:7");
    assert_eq!(rules.judge(&at(3)), Verdict::Tag(tag(2, 15)));
    assert_eq!(rules.judge(&at(4)), Verdict::None);
    assert_eq!(rules.judge(&at(1)), Verdict::Depends(Need::Command));
    for (command, activity) in [(Fact::Known(&commands[..]), 1), (Fact::Unknown, 15)] {
        let subject = Subject { command, ..at(1) };
        assert_eq!(rules.judge(&subject), Verdict::Tag(tag(2, activity)));
    }
    assert_eq!(rules.judge(&at(2)), Verdict::Depends(Need::Uid));
    let other = Subject { uid: Fact::Known(8), ..at(2) };
    assert_eq!(rules.judge(&other), Verdict::Tag(tag(2, 15)), "whatever its group is");
    let owner = Subject { uid: Fact::Known(7), ..at(2) };
    assert_eq!(rules.judge(&owner), Verdict::Depends(Need::Cgroup));
    assert!(rules.may_need(Need::Command) && rules.may_need(Need::Uid));
    assert!(!Rules(rules.0[2..].to_vec()).may_need(Need::Cgroup));
}

#[test]
fn what_is_no_rule_is_refused_with_its_place() {
    let problems = |json: &str| match sections(json) {
        Err(problems) => problems.lines().map(str::to_owned).collect::<Vec<_>>(),
        Ok(_) => panic!("accepted: {json}"),
    };
    let base = r#""experiment": 2, "activity": 16"#;
    let path = "\"/system.slice/ssh.service\"";
    for (rule, problem) in [
        (
            r#""locaPort": 1"#,
            "locaPort: this version of glowd does not know this key: did you mean \"localPort\"? \
             (known: protocol, localPort, remotePort, localPrefix, remotePrefix, user, cgroup, \
             command, experiment, activity)",
        ),
        (
            r#""localPort": 1, "LocalPort": 2"#,
            "localPort: given a second time, as \"LocalPort\"; the first is \"localPort\" in line 2",
        ),
        (
            r#""localPort": true"#,
            "localPort: found true, expected a port, a range (a text, such as \"5000-5100\") or a \
             list of them",
        ),
        (
            r#""remotePort": ["1-2", "2-1"]"#,
            "remotePort[1]: \"2-1\": the first port is after the last",
        ),
        (
            r#""remotePrefix": "10.0.0.1/8""#,
            "remotePrefix: \"10.0.0.1/8\": the address has bits behind its length: 10.0.0.0/8 is \
             meant, or 10.0.0.1/32",
        ),
        (r#""localPrefix": []"#, "localPrefix: names none, so the rule would never match"),
        (r#""user": "" "#, "user: must not be empty"),
        (r#""user": -1"#, "user: found the number -1, expected a name or a number"),
        (
            r#""cgroup": "/sys/fs/cgroup/system.slice""#,
            "cgroup: \"/sys/fs/cgroup/system.slice\" is where groups are mounted: leave out \
             /sys/fs/cgroup",
        ),
        (
            r#""cgroup": "xrootd.service""#,
            &format!("cgroup: \"xrootd.service\" is not a path such as {path}"),
        ),
        (r#""cgroup": "/a//b""#, &format!("cgroup: \"/a//b\" is not a path such as {path}")),
        (
            r#""command": "0123456789abcdef""#,
            "command: \"0123456789abcdef\" is longer than the 15 octets that the kernel keeps of a \
             name",
        ),
        (r#""command": null"#, "command: found null, expected a text"),
        (r#""protocol": "icmp""#, "protocol: found the text \"icmp\", expected one of tcp, udp"),
    ] {
        let found = problems(&format!("[{{\"localPort\": 7, {base}}},\n{{{rule}, {base}}}]"));
        assert_eq!(found.len(), 1, "{found:?}");
        let (place, message) = found[0].split_once(": plugins.ruled.rules[1].").unwrap();
        assert!(place.starts_with("c:2:"), "{place}");
        assert_eq!(message, problem);
    }
    for (json, problem) in [
        ("{}", "1:33: plugins.ruled.rules: found an object, expected a list of objects".to_owned()),
        (
            "[\n1]",
            "2:1: plugins.ruled.rules[0]: found the number 1, expected an object ({} for the \
             defaults)"
                .into(),
        ),
        (
            "[\n{\"activity\": 3}]",
            "2:1: plugins.ruled.rules[0].experiment: is missing: a rule says a tag".into(),
        ),
        (
            &format!("[{{{base}}},\n{{{base}}}]"),
            "2:1: plugins.ruled.rules[1]: never matches, since rules[0] has no conditions".into(),
        ),
    ] {
        assert_eq!(problems(json), [format!("c:{problem}")]);
    }
}

#[test]
fn unknown_names_are_refused_with_the_place_of_the_rule() {
    let refused = |json: &str, unknown| {
        let sections = sections(json).unwrap();
        Rules::read("plugins.netlink.rules", &sections, &names(unknown)).unwrap_err()
    };
    let json = r#"[{"localPort": 1, "experiment": 2, "activity": 16},
        {"user": "no such user", "experiment": "altas", "activity": 16},
        {"user": 4294967295, "experiment": 2, "activity": "Stagign"},
        {"experiment": 512, "activity": 1}]"#;
    assert_eq!(
        refused(json, Unknown::Accept),
        [
            "[1].experiment: \"altas\" is no experiment: did you mean \"atlas\"?",
            "[1].user: there is no user \"no such user\"",
            "[2].activity: \"Stagign\" is no activity of atlas: did you mean \"Staging\"?",
            "[2].user: 4294967295 is not the number of a user",
            "[3].experiment: experiment 512 is out of range (1 to 511)",
        ]
    );
    let unregistered = r#"[{"experiment": 2, "activity": 63}]"#;
    let problem =
        "[0].experiment: experiment 2 activity 63 is not registered (unknownIds is refuse)";
    assert_eq!(refused(unregistered, Unknown::Refuse), [problem]);
}

//! Rules: any text as their value. What is accepted says the same when it is printed and
//! read again, and every connection gets a verdict when the facts are told one by one.
#![no_main]

use glowd::config::Config;
use glowd::flow::Protocol;
use glowd::registry::{Names, Registry, Unknown};
use glowd::rules::{Fact, Need, Rules, Subject, Verdict};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let text = format!(r#"{{"plugins": {{"netlink": {{"rules": {text}}}}}}}"#);
    let Ok(config) = Config::parse(&text, "fuzz") else { return };
    let json = config.to_json();
    let again = Config::parse(&json, "again").expect("what glowd conf prints is accepted");
    assert_eq!(again.to_json(), json);
    let names = Names::fixed(Registry::snapshot(), Unknown::Accept);
    for (_, section) in config.plugins.iter().filter(|(_, section)| section.has("rules")) {
        let Ok(rules) = Rules::read("rules", section.rules("rules"), &names) else { continue };
        let commands: [Box<str>; 1] = ["xrootd".into()];
        for (protocol, local, remote) in [
            (Protocol::Tcp, "[2001:db8::1]:1094", "[2001:db8:7::2]:40000"),
            (Protocol::Udp, "[::ffff:192.0.2.1]:5001", "[::ffff:198.51.100.2]:5001"),
        ] {
            let mut subject = Subject {
                protocol,
                local: local.parse().expect("an address"),
                remote: remote.parse().expect("an address"),
                uid: Fact::Open,
                cgroup: Fact::Open,
                command: Fact::Open,
            };
            let mut asked = Vec::new();
            while let Verdict::Depends(need) = rules.judge(&subject) {
                assert!(!asked.contains(&need) && rules.may_need(need));
                asked.push(need);
                match need {
                    Need::Uid => subject.uid = Fact::Known(0),
                    Need::Cgroup => subject.cgroup = Fact::Known("/system.slice/xrootd.service"),
                    Need::Command => subject.command = Fact::Known(&commands),
                }
            }
        }
    }
});

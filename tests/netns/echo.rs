//! Connections that two daemons find, each on its host, while each also hears the
//! fireflies of the other: a flow begins once and is over when its connection is.

use serde_json::{json, Value};

use crate::common::{
    skip_unless_root, v6, wait_for, Connection, Daemon, Namespace, Pair, HERE, THERE,
};

fn daemon(host: &Namespace, rule: &Value, other: &str) -> Daemon {
    let config = json!({
        "plugins": {
            "netlink": {"rules": [rule], "includePrivate": true, "period": 100},
            "firefly": {"bindAddress": "::", "allowFrom": [other, "local"]},
            "api": {}
        },
        "backends": {"firefly": {}}
    });
    Daemon::start_in(host, config)
}

fn flows(host: &Namespace, daemon: &Daemon) -> usize {
    host.enter(|| daemon.get("/flows").1["flows"].as_array().expect("flows").len())
}

#[test]
fn flows_end_with_their_connections_though_each_hears_of_the_others() {
    if skip_unless_root() {
        return;
    }
    let pair = Pair::new();
    let tag = json!({"experiment": 2, "activity": 16});
    let (here, there) = (daemon(&pair.here, &tag, THERE), daemon(&pair.there, &tag, HERE));
    let hosts = [(&pair.here, &here), (&pair.there, &there)];
    for port in [1094, 1095] {
        let client = (&pair.here, v6(HERE, 40_000));
        let connection = Connection::open(client, (&pair.there, v6(THERE, port)), 0);
        for (host, daemon) in hosts {
            wait_for("the flow", || (flows(host, daemon) == 1).then_some(()));
            // Until what one said has come to the other.
            daemon.wait_for_line(&format!("{port}"));
            wait_for("news of the other end", || {
                let heard = |line: &String| line.contains("debug: firefly: start");
                daemon.lines().iter().any(heard).then_some(())
            });
        }
        drop(connection);
        for (host, daemon) in hosts {
            wait_for("the end of the flow", || (flows(host, daemon) == 0).then_some(()));
        }
    }
}

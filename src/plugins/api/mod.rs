//! Takes flow events over HTTP/1.1 and tells which flows are open.
//!
//! One thread serves all connections. `net::http` moves the bytes and keeps the
//! limits, `routes` says what a request means, `flow_json` reads the flow events.
//!
//! Nobody has to authenticate, so the address is a loopback one unless the
//! administrator wants otherwise, and requests that a web page makes in a browser
//! are refused: they would come from wherever the page does. On a loopback address
//! that includes those under a name that DNS made loopback's, see `net::host`; on
//! another address the Host is not checked, since glowd does not know its names.

mod flow_fields;
pub mod flow_json;
mod routes;

use std::net::SocketAddr;
use std::sync::Arc;

use log::{info, warn};

pub use crate::net::http::Settings;

use super::{Plugin, Spec};
use crate::config::{Key, Section};
use crate::dispatcher::Inlet;
use crate::error::Result;
use crate::net::http;
use crate::part::{no_rules, Context};
use crate::registry::Names;
use crate::shutdown::Stop;

pub(super) static SPEC: Spec = Spec {
    name: "api",
    aliases: &[],
    summary: "takes flow events over HTTP and tells which flows are open",
    keys: &[
        Key::bind_address(
            "Address to listen on, IPv4 or IPv6. Nobody has to authenticate: whoever can reach the \
             address can open, close and read flows, so anything but a loopback address earns a \
             warning at start. On a loopback address requests have to name the host by an \
             IP address or as localhost, and get 403 otherwise; on any other address the \
             Host is not checked.",
        ),
        Key::port("bindPort", &[], "7777"),
    ],
    check: no_rules,
    build,
};

fn build(section: &Section, context: &Context) -> Result<Box<dyn Plugin>> {
    let address = SocketAddr::new(section.address("bindAddress"), section.int("bindPort"));
    let settings = Settings { who: "plugins.api", ..Settings::default() };
    let server = Server::bind(address, settings, context.names.clone())?;
    let address = server.address();
    if !address.ip().to_canonical().is_loopback() {
        warn!(
            "{}: {address} is not a loopback address, and there is no authentication",
            section.path()
        );
    }
    info!("{}: listening on http://{address}", section.path());
    Ok(Box::new(server))
}

/// The API, listening.
#[derive(Debug)]
pub struct Server {
    http: http::Server,
    names: Arc<Names>,
}

impl Server {
    /// Listens on `address`; port 0 is any free one.
    ///
    /// # Errors
    /// The port is taken, or the address is not one of this host.
    pub fn bind(address: SocketAddr, settings: Settings, names: Arc<Names>) -> Result<Self> {
        Ok(Server { http: http::Server::bind(address, settings)?, names })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.http.address()
    }

    /// Serves until `stop` says so.
    ///
    /// # Errors
    /// The system does not let it wait for sockets.
    pub fn serve(self, inlet: &Inlet, stop: &Stop) -> Result<()> {
        let mut api = routes::Api { inlet, names: &self.names };
        self.http.serve(&mut api, stop)
    }
}

impl Plugin for Server {
    fn run(self: Box<Self>, out: Inlet, stop: Stop) -> Result<()> {
        self.serve(&out, &stop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Value;

    fn build_at(address: &str, port: u16) -> Result<Box<dyn Plugin>> {
        let values = vec![
            ("bindAddress", Value::Text(address.into())),
            ("bindPort", Value::Int(port.into())),
        ];
        (SPEC.build)(&Section::new("plugins.api", values), &Context::new(10))
    }

    /// Defect 12 of the peers: with the port taken the daemon ran without an API.
    #[test]
    fn defect_12_a_taken_port_fails_the_start() {
        // Where no other test has a port, so that nobody takes it meanwhile.
        const HOST: &str = "127.0.0.77";
        let taken = std::net::TcpListener::bind((HOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = build_at(HOST, port).err().expect("the port is taken");
        assert_eq!(
            error.at("plugins.api").to_string(),
            format!(
                "plugins.api: cannot listen on {HOST}:{port}: {}",
                std::io::Error::from_raw_os_error(nix::libc::EADDRINUSE)
            )
        );
        drop(taken);
        drop(build_at(HOST, port).expect("the port is free"));
        build_at(HOST, port).expect("the port is free again at once");
    }
}

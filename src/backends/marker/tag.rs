//! Turns flows into the entries of the eBPF maps, and remembers which flow is the
//! newest. Owned by the marker's thread.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use crate::flow::{Flow, FlowId, Tag};
use crate::sys::abi::{FlowKey, FlowValue, NO_SLOT};

/// The key of a flow's packets; None for IPv4, which has nothing to carry a tag.
pub(super) fn key(id: &FlowId) -> Option<FlowKey> {
    let (src, dst) = (id.src(), id.dst());
    let (IpAddr::V6(src_ip), IpAddr::V6(dst_ip)) = (src.ip(), dst.ip()) else {
        return None;
    };
    Some(FlowKey {
        src: src_ip.octets(),
        dst: dst_ip.octets(),
        src_port: src.port().to_be_bytes(),
        dst_port: dst.port().to_be_bytes(),
        protocol: id.protocol().number(),
        pad: [0; 3],
    })
}

/// What the packets of a flow carry.
pub(super) fn value(flow: &Flow) -> FlowValue {
    FlowValue {
        label: flow.label,
        experiment: flow.tag.experiment(),
        activity: flow.tag.activity(),
        flags: 0,
        slot: flow.counted.map_or(NO_SLOT, |counted| counted.slot),
    }
}

/// The open flows in the order in which they were opened, for `matchAll`.
#[derive(Debug, Default)]
pub(super) struct Newest {
    order: BTreeMap<u64, Tag>,
    places: HashMap<FlowId, u64>,
    next: u64,
}

impl Newest {
    /// The flow was opened, or opened anew.
    pub(super) fn opened(&mut self, flow: &Flow) {
        self.closed(&flow.id);
        self.order.insert(self.next, flow.tag);
        self.places.insert(flow.id, self.next);
        self.next += 1;
    }

    /// The flow was closed.
    pub(super) fn closed(&mut self, id: &FlowId) {
        if let Some(place) = self.places.remove(id) {
            self.order.remove(&place);
        }
    }

    /// The newest flow's tag.
    pub(super) fn tag(&self) -> Option<Tag> {
        self.order.last_key_value().map(|(_, tag)| *tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Protocol, Timestamp};

    fn flow(port: u16, activity: u64) -> Flow {
        let src = std::net::SocketAddr::new("2001:db8::1".parse().unwrap(), port);
        let id = FlowId::new(Protocol::Tcp, src, "[2001:db8::2]:1094".parse().unwrap()).unwrap();
        let tag = Tag::new(2, activity).unwrap();
        let (label, start) = (tag.label(0), Timestamp(0));
        Flow {
            id,
            tag,
            label,
            start,
            is_undated: false,
            source: "test",
            application: None,
            news: None,
            counted: None,
        }
    }

    #[test]
    fn keys_are_in_network_order() {
        let key = key(&flow(0x1234, 1).id).unwrap();
        assert_eq!((key.src_port, key.dst_port, key.protocol), ([0x12, 0x34], [0x04, 0x46], 6));
        assert_eq!((key.src[..2].to_vec(), key.src[15], key.dst[15]), (vec![0x20, 0x01], 1, 2));
    }

    #[test]
    fn ipv4_has_no_key() {
        let end = |text: &str| text.parse().unwrap();
        let id = FlowId::new(Protocol::Udp, end("10.0.0.1:1"), end("10.0.0.2:2")).unwrap();
        assert_eq!(key(&id), None);
    }

    #[test]
    fn the_newest_open_flow_says_the_tag() {
        let mut newest = Newest::default();
        let activity = |newest: &Newest| newest.tag().map(Tag::activity);
        assert_eq!(activity(&newest), None);
        newest.opened(&flow(1, 1));
        newest.opened(&flow(2, 2));
        newest.opened(&flow(3, 3));
        newest.closed(&flow(2, 2).id);
        assert_eq!(activity(&newest), Some(3));
        newest.closed(&flow(3, 3).id);
        assert_eq!(activity(&newest), Some(1));
        newest.opened(&flow(1, 9));
        assert_eq!(activity(&newest), Some(9));
        newest.closed(&flow(1, 9).id);
        assert_eq!(activity(&newest), None);
        assert!(newest.order.is_empty() && newest.places.is_empty());
    }
}

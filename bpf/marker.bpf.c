// SPDX-License-Identifier: GPL-2.0-only
/*
 * The marker: on egress it writes the tag of a flow into every packet of it, and counts
 * it; on ingress, with the header strategies, it makes room for that, and counts too,
 * unless that is not wanted.
 *
 * It fails open. Its verdict is always TC_ACT_UNSPEC, "no opinion", so filters
 * behind it run as if it were not there. Each program comes twice, for
 * interfaces with an Ethernet header and for those without (tun, tunnels).
 */
#include "label.h"
#include "exthdr.h"
#include "room.h"
#include "rules.h"
#include "count.h"

const volatile struct settings settings SEC(".rodata.settings") = {};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);	/* maxFlows, set before load */
	__type(key, struct flow_key);
	__type(value, struct flow_value);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, UNMARKED_REASONS);
	__type(key, __u32);
	__type(value, __u64);
} unmarked SEC(".maps");

/*
 * Flows that only a rule marks and whose path has no room for headers. The
 * oldest is forgotten when there are too many, and learnt again.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct flow_key);
	__type(value, __u32);
} no_room SEC(".maps");

static __always_inline void count_unmarked(enum unmarked_reason reason)
{
	__u32 key = reason;
	__u64 *count = bpf_map_lookup_elem(&unmarked, &key);

	if (count)
		(*count)++;
}

/*
 * Copies the flow of a packet, or what a rule says of it, and returns 1; or 0 if there
 * is neither. A copy, since user space may change it meanwhile.
 */
static __always_inline int find_flow(const struct flow_key *key, struct flow_value *copy)
{
	struct flow_value *flow = NULL;

	if (has_ports(key->protocol))
		flow = bpf_map_lookup_elem(&flows, key);
	if (flow) {
		*copy = *flow;
		return 1;
	}
	/* Neighbour discovery and its kin must arrive as they are. */
	if (settings.strategy != STRATEGY_LABEL && !has_ports(key->protocol))
		return 0;
	if (!find_rule(key, copy))
		return 0;
	if (settings.strategy == STRATEGY_LABEL)
		copy->label |= entropy_of(key);
	else if (bpf_map_lookup_elem(&no_room, key))
		copy->flags |= FLOW_NO_ROOM;
	return 1;
}

static __always_inline void mark(struct __sk_buff *skb, __u32 l2)
{
	struct flow_key key;
	struct packet packet;
	struct flow_value flow;
	enum unmarked_reason reason = UNMARKED_REASONS;
	__u32 octets;

	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (!parse_plain(skb, l2, &key, &packet) && parse_any(skb, l2, &key, &packet) < 0)
			return;
	} else if (skb->protocol == bpf_htons(ETH_P_8021Q) ||
		   skb->protocol == bpf_htons(ETH_P_8021AD)) {
		if (parse_any(skb, l2, &key, &packet) < 0)
			return;
	} else {
		return;
	}
	if (packet.later_fragment) {
		count_unmarked(UNMARKED_FRAGMENT);
		return;
	}
	if (!find_flow(&key, &flow))
		return;
	octets = count(skb, &packet, flow.slot, &settings, 0);
	if (settings.strategy == STRATEGY_LABEL) {
		if (write_label(skb, &packet, flow.label) < 0)
			reason = UNMARKED_KERNEL;
	} else {
		reason = insert_headers(skb, &key, &packet, &flow, &settings);
	}
	if (reason != UNMARKED_REASONS) {
		count_unmarked(reason);
		count_as_unmarked(octets, flow.slot, &settings);
	}
	if (settings.debug)
		bpf_printk("glowd: experiment %d activity %d: %d", flow.experiment,
			   flow.activity, reason);
}

/*
 * The path of a flow is narrower than we thought. What cannot be told to TCP is
 * remembered: from then on only small packets of the flow are marked. Anybody can send
 * such a message, so nothing is remembered of what would not be marked anyway.
 */
static __always_inline void hear_of_path(struct __sk_buff *skb, __u32 transport,
					 struct flow_key *key)
{
	struct flow_value *flow, by_rule;
	__u32 value = 1;

	if (!is_too_big(skb, transport, key))
		return;
	flow = bpf_map_lookup_elem(&flows, key);
	if ((!flow && !find_rule(key, &by_rule)) ||
	    lower_path_mtu(skb, transport, room(settings.strategy)) == 0)
		return;
	if (flow)
		flow->flags |= FLOW_NO_ROOM;
	else
		bpf_map_update_elem(&no_room, key, &value, BPF_ANY);
}

/* Counts a packet that arrives, if the other direction is a flow. */
static __always_inline void hear_of_flow(struct __sk_buff *skb, const struct packet *packet,
					 const struct flow_key *key)
{
	const __u64 *from = (const __u64 *)key;
	const struct flow_value *flow;
	struct flow_key back;
	__u64 *to = (__u64 *)&back;

	if (settings.count_received == COUNT_UDP ? packet->protocol != IPPROTO_UDP :
						   !has_ports(packet->protocol))
		return;
	to[0] = from[2];
	to[1] = from[3];
	to[2] = from[0];
	to[3] = from[1];
	to[4] = 0;
	back.src_port = key->dst_port;
	back.dst_port = key->src_port;
	back.protocol = packet->protocol;
	flow = bpf_map_lookup_elem(&flows, &back);
	if (flow)
		count(skb, packet, flow->slot, &settings, 1);
}

/*
 * Whether it is IPv6 with TCP right behind it, as nearly all packets are that nobody wants
 * to know more of where only UDP is counted. @l2 is a constant.
 */
static __always_inline int is_plain_tcp(struct __sk_buff *skb, __u32 l2)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	__u8 *ip = data + l2;

	return (void *)ip + IPV6_LEN <= end && ip[0] >> 4 == 6 &&
	       ip[IPV6_NEXT_HEADER] == IPPROTO_TCP;
}

/* What the ingress programs do. */
static __always_inline void arrive(struct __sk_buff *skb, __u32 l2)
{
	struct flow_key key;
	struct packet packet;

	if (settings.strategy == STRATEGY_LABEL && settings.count_received == COUNT_UDP &&
	    skb->protocol == bpf_htons(ETH_P_IPV6) && is_plain_tcp(skb, l2))
		return;
	if (!(skb->protocol == bpf_htons(ETH_P_IPV6) && parse_plain(skb, l2, &key, &packet)) &&
	    (parse_any(skb, l2, &key, &packet) < 0 || packet.later_fragment))
		return;
	if (settings.count_received)
		hear_of_flow(skb, &packet, &key);
	/* What follows makes room, and most packets are neither SYN nor ICMPv6. */
	if (settings.strategy == STRATEGY_LABEL)
		return;
	if (packet.protocol == IPPROTO_TCP)
		clamp_mss(skb, packet.transport, &settings);
	else if (packet.protocol == NEXT_ICMPV6)
		hear_of_path(skb, packet.transport, &key);
}

SEC("tc")
int marker_eth(struct __sk_buff *skb)
{
	mark(skb, ETH_HLEN);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int marker_ip(struct __sk_buff *skb)
{
	mark(skb, 0);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int room_eth(struct __sk_buff *skb)
{
	arrive(skb, ETH_HLEN);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int room_ip(struct __sk_buff *skb)
{
	arrive(skb, 0);
	return TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "GPL";

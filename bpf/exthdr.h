/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Strategies "hopByHop", "destination" and both: the tag in an option of an
 * extension header behind the IPv6 header, RFC 8200 sections 4.2 to 4.6.
 *
 * First decide, then grow, then write. Every refusal comes before the first
 * change, and a change that cannot be completed is undone: the packet leaves
 * as it came or whole with its new header.
 */
#ifndef GLOWD_EXTHDR_H
#define GLOWD_EXTHDR_H

#include "parse.h"

/* Option type of RFC 4727: skip if unknown, does not change en route. */
#define OPTION_TYPE 0x1e
#define OPTION_LEN 3
#define OPTION_PADN 1
/* One header: next header, length 0, the option, Pad1. */
#define EXTHDR_LEN 8

/* RFC 8200 section 5: every link carries this much. */
#define IPV6_MIN_MTU 1280

/*
 * Kept free in front of a packet for a VLAN tag, so that putting it back needs no
 * memory. A multiple of 8, see grow_and_write().
 */
#define SPARE 8

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u32);
} mtus SEC(".maps");

/* How many octets the strategy adds. */
static __always_inline __u32 room(__u8 strategy)
{
	return strategy == STRATEGY_HOP_BY_HOP_DESTINATION ? 2 * EXTHDR_LEN : EXTHDR_LEN;
}

/* The MTU of the packet's interface; 0: unknown. */
static __always_inline __u32 interface_mtu(struct __sk_buff *skb, __u8 check_mtu)
{
	__u32 mtu = 0, ifindex = skb->ifindex;
	__u32 *known;

	/*
	 * Asked without a change of length: what counts is not its verdict but
	 * the MTU that it leaves behind, since its own sum takes VLAN tags in
	 * the data for payload.
	 */
	if (check_mtu)
		return bpf_check_mtu(skb, 0, &mtu, 0, 0) < 0 ? 0 : mtu;
	known = bpf_map_lookup_elem(&mtus, &ifindex);
	return known ? *known : 0;
}

/*
 * How a packet is to grow: the flags of bpf_skb_adjust_room, and those to try if
 * the kernel says no (the same: there is nothing else to try).
 */
struct growth {
	__u64 flags;
	__u64 otherwise;
};

/*
 * Whether the packet can take the strategy's headers. Returns UNMARKED_REASONS if
 * so, else the reason.
 */
static __always_inline enum unmarked_reason
decide_growth(struct __sk_buff *skb, const struct packet *packet, __u8 flow_flags,
	      const volatile struct settings *settings, struct growth *growth)
{
	__u32 len = room(settings->strategy), gso_size = skb->gso_size;
	__u32 size, mtu;
	__u8 offset;

	if (packet->next_header == NEXT_HOP_BY_HOP &&
	    settings->strategy != STRATEGY_DESTINATION)
		return UNMARKED_HOP_BY_HOP;
	/*
	 * Ours would stand first: right for hop-by-hop options, wrong for
	 * destination options before any header but Routing, where they would
	 * mean something else.
	 */
	if (packet->has_extension && settings->strategy != STRATEGY_HOP_BY_HOP)
		return UNMARKED_EXTENSION;

	/* 0: RFC 2675, the length is in an option. */
	if (!packet->payload_len || packet->payload_len + len > 0xffff)
		return UNMARKED_LENGTH;

	/* The largest packet that will be on the wire. */
	size = IPV6_LEN + packet->payload_len;
	if (gso_size) {
		size = packet->transport - packet->network + gso_size;
		if (packet->protocol == IPPROTO_TCP) {
			if (bpf_skb_load_bytes(skb, packet->transport + 12, &offset, 1) < 0)
				return UNMARKED_KERNEL;
			size += (offset >> 4) * 4;
		} else if (packet->protocol == IPPROTO_UDP) {
			size += 8;
		} else {
			return UNMARKED_GSO;
		}
	}
	if (flow_flags & FLOW_NO_ROOM && size + len > IPV6_MIN_MTU)
		return UNMARKED_PATH_MTU;
	mtu = interface_mtu(skb, settings->check_mtu);
	if (!mtu)
		return UNMARKED_KERNEL;

	growth->flags = 0;
	growth->otherwise = 0;
	if (!gso_size)
		return size + len <= mtu ? UNMARKED_REASONS : UNMARKED_MTU;
	/* It must stay well above 0 when it is lowered. */
	if (gso_size <= 4 * EXTHDR_LEN)
		return UNMARKED_GSO;
	/* Segments stay as large as TCP made them, or become smaller. */
	if (packet->protocol == IPPROTO_TCP) {
		if (size + len <= mtu)
			growth->flags = growth->otherwise = BPF_F_ADJ_ROOM_FIXED_GSO;
		return UNMARKED_REASONS;
	}
	/*
	 * A tunnel's UDP may carry segments of TCP, which gso_size then speaks of,
	 * and which can become smaller. For datagrams, which cannot, the kernel says
	 * no to that before it changes anything.
	 */
	if (size + len <= mtu)
		growth->otherwise = BPF_F_ADJ_ROOM_FIXED_GSO;
	return UNMARKED_REASONS;
}

/* Writes the option's header; @next is what follows it. */
static __always_inline void fill_header(__u8 *header, __u8 next,
					const struct flow_value *flow)
{
	header[0] = next;
	header[1] = 0;		/* EXTHDR_LEN / 8 - 1 */
	header[2] = OPTION_TYPE;
	header[3] = OPTION_LEN;
	header[4] = flow->experiment >> 8;
	header[5] = flow->experiment;
	header[6] = flow->activity;
	header[7] = 0;		/* Pad1 */
}

/* Lets the packet grow by @len behind the IPv6 header. 0; or -1: it is as it was. */
static __always_inline int grow(struct __sk_buff *skb, __u32 len, __u64 flags)
{
	__u32 before = skb->len;

	if (bpf_skb_adjust_room(skb, len, BPF_ADJ_ROOM_NET, flags) == 0)
		return 0;
	/* From 6.11 on, it may have grown and failed only after that. */
	if (skb->len != before)
		bpf_skb_adjust_room(skb, -(int)len, BPF_ADJ_ROOM_NET, flags);
	return -1;
}

/* The IPv6 header from its payload length on, and what is inserted behind it. */
struct rewritten {
	__be16 payload_len;
	__u8 next_header;
	__u8 hop_limit;
	__u8 addresses[32];
	__u8 headers[2 * EXTHDR_LEN + SPARE];
};

/*
 * Grows the packet behind the IPv6 header at @network and writes the headers, in
 * one piece. @spare octets (0 or SPARE) stay free in front of the packet. Returns
 * 0; or -1, and the packet is as it was.
 */
static __always_inline int grow_and_write(struct __sk_buff *skb, __u32 network,
					  const struct flow_key *key,
					  const struct packet *packet,
					  const struct flow_value *flow, __u8 strategy,
					  const struct growth *growth, __u32 spare)
{
	__u32 len = room(strategy), pad = 0;
	__u64 flags = growth->flags;
	struct rewritten new = { .hop_limit = packet->hop_limit };
	__u8 *last = new.headers + len - EXTHDR_LEN;

	/*
	 * Puts the headers in one piece and makes them ours to write, also after
	 * they have moved; or fails while nothing is changed.
	 */
	if (bpf_skb_pull_data(skb, network + IPV6_LEN) < 0)
		return -1;
	if (grow(skb, len + spare, flags) < 0) {
		if (growth->otherwise == flags)
			return -1;
		flags = growth->otherwise;
		if (grow(skb, len + spare, flags) < 0)
			return -1;
	}
	/* It is a copy that may have to be made for this; without memory for it the
	 * room becomes padding. */
	if (spare && bpf_skb_adjust_room(skb, -(int)spare, BPF_ADJ_ROOM_NET, flags) < 0)
		pad = spare;

	__builtin_memcpy(new.addresses, key->src, sizeof(new.addresses));
	new.payload_len = bpf_htons(packet->payload_len + len + pad);
	new.next_header = strategy == STRATEGY_DESTINATION ? NEXT_DESTINATION : NEXT_HOP_BY_HOP;
	if (strategy == STRATEGY_HOP_BY_HOP_DESTINATION)
		fill_header(new.headers, NEXT_DESTINATION, flow);
	fill_header(last, packet->next_header, flow);
	if (pad) {
		last[1] = SPARE / 8;
		last[7] = OPTION_PADN;
		last[8] = SPARE - 1;
	}
	if (bpf_skb_store_bytes(skb, network + IPV6_PAYLOAD_LEN, &new,
				IPV6_LEN - IPV6_PAYLOAD_LEN + len + pad,
				BPF_F_RECOMPUTE_CSUM) < 0) {
		bpf_skb_adjust_room(skb, -(int)(len + pad), BPF_ADJ_ROOM_NET, flags);
		return -1;
	}
	return 0;
}

/*
 * The same for a packet with VLAN tags in its data. The kernel grows only what
 * it sees as IPv6, so the tags have to go beside the data first: popping the
 * outermost one moves the next one there too. Afterwards the outermost one is
 * pushed back, for which grow_and_write() has kept room.
 */
static __always_inline int insert_behind_tags(struct __sk_buff *skb,
					      const struct flow_key *key,
					      const struct packet *packet,
					      const struct flow_value *flow, __u8 strategy,
					      const struct growth *growth)
{
	struct {
		__u8 addresses[12];
		__be16 tag[3];	/* EtherType, TCI, the next EtherType */
	} ether;
	__u32 protocol = skb->vlan_proto, tci = skb->vlan_tci;
	int result;

	if (bpf_skb_load_bytes(skb, 0, &ether, sizeof(ether)) < 0)
		return -1;
	/* Or the compiler chooses between two places of skb, which must not be. */
	barrier_var(protocol);
	if (!skb->vlan_present) {
		protocol = ether.tag[0];
		tci = bpf_ntohs(ether.tag[1]);
	}
	/* Makes what the pop writes to ours, so that it cannot fail half-way. */
	if (bpf_skb_pull_data(skb, packet->network + IPV6_LEN) < 0 || bpf_skb_vlan_pop(skb))
		return -1;
	result = grow_and_write(skb, ETH_HLEN, key, packet, flow, strategy, growth, SPARE);
	bpf_skb_vlan_push(skb, protocol, tci);
	return result;
}

/*
 * Whether the first extension header is the one that we would insert: the packet was
 * marked on an interface above this one, such as a VLAN device, and is as it should be.
 */
static __always_inline int is_marked(struct __sk_buff *skb, const struct packet *packet,
				     const struct flow_value *flow)
{
	__u64 found, ours;

	if (bpf_skb_load_bytes(skb, packet->network + IPV6_LEN, &found, EXTHDR_LEN) < 0)
		return 0;
	fill_header((__u8 *)&ours, *(__u8 *)&found, flow);
	return found == ours;
}

/*
 * Inserts the headers if that can be. Returns UNMARKED_REASONS if it was done,
 * else the reason why the packet is as it was.
 */
static __always_inline enum unmarked_reason
insert_headers(struct __sk_buff *skb, const struct flow_key *key, const struct packet *packet,
	       const struct flow_value *flow, const volatile struct settings *settings)
{
	struct growth growth = {};
	enum unmarked_reason reason;
	int result;

	reason = decide_growth(skb, packet, flow->flags, settings, &growth);
	if ((reason == UNMARKED_HOP_BY_HOP || reason == UNMARKED_EXTENSION) &&
	    is_marked(skb, packet, flow))
		return UNMARKED_REASONS;
	if (reason != UNMARKED_REASONS)
		return reason;
	if (!packet->tags_in_data)
		result = grow_and_write(skb, packet->network, key, packet, flow,
					settings->strategy, &growth, 0);
	else if (packet->tags_in_data + !!skb->vlan_present > 2)
		return UNMARKED_VLAN;
	else
		result = insert_behind_tags(skb, key, packet, flow, settings->strategy, &growth);
	if (result)
		return skb->gso_size ? UNMARKED_GSO : UNMARKED_KERNEL;
	return UNMARKED_REASONS;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Makes room for the extension headers, on ingress, so that full-size segments
 * of TCP can be marked too:
 *
 * - The MSS option of an arriving SYN (RFC 9293 section 3.7.1) says how large the
 *   segments that we send may be. It is lowered by the length of the headers, or
 *   to what the interface's MTU leaves.
 * - An ICMPv6 Packet Too Big (RFC 4443 section 3.2) for a packet of a marked flow
 *   speaks of the packet with the headers; TCP, which does not know of them,
 *   must hear of so much less. Where that is below what IPv6 allows, the flow's
 *   larger packets go out unmarked from then on.
 */
#ifndef GLOWD_ROOM_H
#define GLOWD_ROOM_H

#include "exthdr.h"

#define TCP_LEN 20
#define TCP_FLAGS 13
#define TCP_SYN 0x02
#define TCP_CHECKSUM 16
#define TCP_OPTION_END 0
#define TCP_OPTION_NOP 1
#define TCP_OPTION_MSS 2
#define TCP_OPTION_MSS_LEN 4
/* MSS is the first option of every stack in use; some put padding first. */
#define MAX_TCP_OPTIONS 6
/* Below this something is odd, and we keep our hands off. */
#define MIN_MSS 536

#define ICMPV6_PACKET_TOO_BIG 2
#define ICMPV6_CHECKSUM 2
#define ICMPV6_MTU 4
#define ICMPV6_LEN 8

/* Lowers the 16 bits at @at from @old to @new, and the TCP checksum with them. */
static __always_inline void lower_mss(struct __sk_buff *skb, __u32 transport,
				      __u32 at, __u16 old, __u16 new)
{
	__be16 from = bpf_htons(old), to = bpf_htons(new), field = to;

	/* At an odd offset the checksum sees the two octets the other way. */
	if ((at - transport) & 1) {
		from = __builtin_bswap16(from);
		to = __builtin_bswap16(to);
	}
	/*
	 * The checksum first: if the kernel cannot write it, nothing happened. If
	 * it could, the option's store cannot fail.
	 */
	if (bpf_l4_csum_replace(skb, transport + TCP_CHECKSUM, from, to, 2) == 0)
		bpf_skb_store_bytes(skb, at, &field, sizeof(field), 0);
}

static __always_inline void clamp_mss(struct __sk_buff *skb, __u32 transport,
				      const volatile struct settings *settings)
{
	__u32 at = transport + TCP_LEN, len = room(settings->strategy), mtu, limit;
	__u8 flags, option[2];
	__be16 field;
	__u16 mss;
	int i;

	if (bpf_skb_load_bytes(skb, transport + TCP_FLAGS, &flags, 1) < 0 || !(flags & TCP_SYN))
		return;
#pragma unroll
	for (i = 0; i < MAX_TCP_OPTIONS; i++) {
		if (bpf_skb_load_bytes(skb, at, option, sizeof(option)) < 0)
			return;
		if (option[0] == TCP_OPTION_END)
			return;
		if (option[0] == TCP_OPTION_MSS)
			break;
		at += option[0] == TCP_OPTION_NOP ? 1 : option[1];
		/* A length of 0 would have us look at the same place again. */
		if (option[0] != TCP_OPTION_NOP && option[1] < 2)
			return;
	}
	if (option[0] != TCP_OPTION_MSS || option[1] != TCP_OPTION_MSS_LEN ||
	    bpf_skb_load_bytes(skb, at + 2, &field, sizeof(field)) < 0)
		return;
	mtu = interface_mtu(skb, settings->check_mtu);
	if (mtu < IPV6_MIN_MTU)
		return;
	limit = mtu - IPV6_LEN - TCP_LEN;
	mss = bpf_ntohs(field);
	if (limit > mss)
		limit = mss;
	if (limit < MIN_MSS)
		return;
	lower_mss(skb, transport, at + 2, mss, limit - len);
}

static __always_inline void lower_path_mtu(struct __sk_buff *skb, __u32 transport,
					   const volatile struct settings *settings,
					   void *flows)
{
	__u32 len = room(settings->strategy), mtu;
	struct packet inner = {};
	struct flow_key key;
	struct flow_value *flow;
	__be32 field, lowered;
	__u8 type;

	if (bpf_skb_load_bytes(skb, transport, &type, 1) < 0 || type != ICMPV6_PACKET_TOO_BIG)
		return;
	inner.network = transport + ICMPV6_LEN;
	if (parse_ipv6(skb, &key, &inner) < 0 || !has_ports(inner.protocol) || inner.later_fragment)
		return;
	flow = bpf_map_lookup_elem(flows, &key);
	if (!flow ||
	    bpf_skb_load_bytes(skb, transport + ICMPV6_MTU, &field, sizeof(field)) < 0)
		return;
	mtu = bpf_ntohl(field);
	if (mtu < IPV6_MIN_MTU + len) {
		flow->flags |= FLOW_NO_ROOM;
		return;
	}
	lowered = bpf_htonl(mtu - len);
	if (bpf_l4_csum_replace(skb, transport + ICMPV6_CHECKSUM, field, lowered, 4) == 0)
		bpf_skb_store_bytes(skb, transport + ICMPV6_MTU, &lowered, sizeof(lowered), 0);
}

#endif

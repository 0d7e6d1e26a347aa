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
#define TCP_DATA_OFFSET 12	/* in words, upper four bits; then the flags */
#define TCP_SYN 0x02
#define TCP_CHECKSUM 16
#define TCP_OPTION_END 0
#define TCP_OPTION_NOP 1
#define TCP_OPTION_MSS 2
#define TCP_OPTION_MSS_LEN 4
#define TCP_OPTION_AO 29
/* Of a SYN of any stack in use, single padding octets included. */
#define MAX_TCP_OPTIONS 16
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

/* Added to the length of an option by tcp_option(). */
#define IS_MSS 0x100

/*
 * Reads the TCP option at @at, of @left octets. Returns its length; @left if the
 * list ends there; 0 if it is none, or forbids changes. With IS_MSS if that is what
 * it is.
 *
 * A function of its own, and not static: so the verifier looks at it once, and
 * does not follow a walk through every combination of options' lengths.
 */
__noinline int tcp_option(struct __sk_buff *skb, __u32 at, __u32 left)
{
	__u8 kind, length;

	if (bpf_skb_load_bytes(skb, at, &kind, 1) < 0)
		return 0;
	if (kind == TCP_OPTION_END)
		return left & 0xff;
	if (kind == TCP_OPTION_NOP)
		return 1;
	if (bpf_skb_load_bytes(skb, at + 1, &length, 1) < 0)
		return 0;
	/* RFC 5925 authenticates the options: who changes one, breaks it. */
	if (length < 2 || length > left || kind == TCP_OPTION_AO)
		return 0;
	if (kind == TCP_OPTION_MSS && length == TCP_OPTION_MSS_LEN)
		return length | IS_MSS;
	return length;
}

/*
 * Finds the value of MSS in the @length octets of options at @at. Returns its place
 * in them; 0: it is not there, or nobody may change it.
 */
static __always_inline __u32 find_mss(struct __sk_buff *skb, __u32 at, __u32 length)
{
	__u32 place = 0, found = 0;
	int i, step;

#pragma unroll
	for (i = 0; i < MAX_TCP_OPTIONS; i++) {
		if (place >= length)
			return found;
		step = tcp_option(skb, at + place, length - place);
		if (!step)
			return 0;
		if (step & IS_MSS)
			found = place + 2;
		place += step & 0xff;
	}
	/* One that we have not come to may be of the kind that forbids changes. */
	return place < length ? 0 : found;
}

static __always_inline void clamp_mss(struct __sk_buff *skb, __u32 transport,
				      const volatile struct settings *settings)
{
	__u32 length, place, mtu, limit;
	__u8 fixed[2];
	__be16 field;
	__u16 mss;

	if (bpf_skb_load_bytes(skb, transport + TCP_DATA_OFFSET, fixed, sizeof(fixed)) < 0 ||
	    !(fixed[1] & TCP_SYN) || fixed[0] >> 4 < 5)
		return;
	/* Behind its options a SYN may carry data (RFC 7413): none of our business. */
	length = (fixed[0] >> 4) * 4 - TCP_LEN;
	place = find_mss(skb, transport + TCP_LEN, length);
	if (!place ||
	    bpf_skb_load_bytes(skb, transport + TCP_LEN + place, &field, sizeof(field)) < 0)
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
	lower_mss(skb, transport, transport + TCP_LEN + place, mss,
		  limit - room(settings->strategy));
}

/* Whether a header of ours is right behind the IPv6 header at @network. */
static __always_inline int has_our_header(struct __sk_buff *skb, const struct packet *packet)
{
	__u8 header[4];

	if (packet->next_header != NEXT_HOP_BY_HOP && packet->next_header != NEXT_DESTINATION)
		return 0;
	return bpf_skb_load_bytes(skb, packet->network + IPV6_LEN, header, sizeof(header)) == 0 &&
	       header[1] == 0 && header[2] == OPTION_TYPE && header[3] == OPTION_LEN;
}

/*
 * Whether this is a Packet Too Big about a packet with our header. If so, fills the
 * key of its flow. One about a packet that went out unmarked tells the truth.
 */
static __always_inline int is_too_big(struct __sk_buff *skb, __u32 transport,
				      struct flow_key *key)
{
	struct packet inner = {};
	__u8 type;

	if (bpf_skb_load_bytes(skb, transport, &type, 1) < 0 || type != ICMPV6_PACKET_TOO_BIG)
		return 0;
	inner.network = transport + ICMPV6_LEN;
	return parse_ipv6(skb, key, &inner) == 0 && has_ports(inner.protocol) &&
	       !inner.later_fragment && has_our_header(skb, &inner);
}

/* Lowers the MTU of a Packet Too Big. Returns -1 if IPv6 does not allow so little. */
static __always_inline int lower_path_mtu(struct __sk_buff *skb, __u32 transport, __u32 len)
{
	__be32 field, lowered;
	__u32 mtu;

	if (bpf_skb_load_bytes(skb, transport + ICMPV6_MTU, &field, sizeof(field)) < 0)
		return 0;
	mtu = bpf_ntohl(field);
	if (mtu < IPV6_MIN_MTU + len)
		return -1;
	lowered = bpf_htonl(mtu - len);
	if (bpf_l4_csum_replace(skb, transport + ICMPV6_CHECKSUM, field, lowered, 4) == 0)
		bpf_skb_store_bytes(skb, transport + ICMPV6_MTU, &lowered, sizeof(lowered), 0);
	return 0;
}

#endif

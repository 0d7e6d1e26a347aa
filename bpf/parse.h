/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Finds the IPv6 header, the transport header and the 5-tuple of a packet.
 *
 * Two ways. parse_plain() covers what nearly all packets are, IPv6 with TCP or
 * UDP right behind it, and reads the packet directly. parse_any() walks up to
 * two VLAN tags in the data and a bounded number of extension headers; it reads
 * by helper, so it does not care how the packet is laid out in memory.
 */
#ifndef GLOWD_PARSE_H
#define GLOWD_PARSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

#define IPV6_LEN 40
/* Offsets in the IPv6 header, RFC 8200 section 3. */
#define IPV6_PAYLOAD_LEN 4
#define IPV6_NEXT_HEADER 6
#define IPV6_HOP_LIMIT 7
#define IPV6_ADDRESSES 8

#define UDP_LEN 8

/* Next headers that linux/in.h leaves out, by their IANA numbers. */
#define NEXT_HOP_BY_HOP 0
#define NEXT_ROUTING 43
#define NEXT_FRAGMENT 44
#define NEXT_AH 51
#define NEXT_ICMPV6 58
#define NEXT_DESTINATION 60
#define NEXT_MOBILITY 135

/* RFC 8200 section 4.1 knows seven at the most, in order. */
#define MAX_EXTENSION_HEADERS 7
#define MAX_TAGS_IN_DATA 2

/*
 * What parse found, but for the key: that has to be in memory for the maps, the
 * rest stays in registers. Offsets are from the start of the data.
 */
struct packet {
	__be32 first_word;	/* version, traffic class, flow label */
	__u16 payload_len;	/* as the IPv6 header says */
	__u8 hop_limit;
	__u32 network;		/* the IPv6 header */
	__u32 transport;	/* what follows the last extension header */
	__u8 next_header;	/* the IPv6 header's own */
	__u8 protocol;		/* what is at transport */
	__u8 tags_in_data;
	__u8 has_extension;
	__u8 later_fragment;
	__u8 header_len;	/* of TCP or UDP; 0: nobody has looked */
};

/* TCP and UDP begin with source and destination port. */
static __always_inline int has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP;
}

/*
 * Returns 1 and fills key and packet if it is IPv6 and right behind it TCP or UDP,
 * both within the directly readable data; else 0. @l2 is a constant.
 */
static __always_inline int parse_plain(struct __sk_buff *skb, __u32 l2,
				       struct flow_key *key, struct packet *packet)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	/* Both are multiples of the alignment that the stack itself needs. */
	const __u64 *from;
	__u64 *to = (__u64 *)key;
	__u8 *ip = data + l2;

	if ((void *)ip + IPV6_LEN + 4 > end)
		return 0;
	if (ip[0] >> 4 != 6 || !has_ports(ip[IPV6_NEXT_HEADER]))
		return 0;
	from = (const __u64 *)(ip + IPV6_ADDRESSES);
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	to[3] = from[3];
	to[4] = *(__u32 *)(ip + IPV6_LEN);
	key->protocol = ip[IPV6_NEXT_HEADER];
	packet->protocol = ip[IPV6_NEXT_HEADER];
	packet->first_word = *(__be32 *)ip;
	packet->payload_len = bpf_ntohs(*(__be16 *)(ip + IPV6_PAYLOAD_LEN));
	packet->hop_limit = ip[IPV6_HOP_LIMIT];
	packet->network = l2;
	packet->transport = l2 + IPV6_LEN;
	packet->next_header = ip[IPV6_NEXT_HEADER];
	packet->tags_in_data = 0;
	packet->has_extension = 0;
	packet->later_fragment = 0;
	packet->header_len = UDP_LEN;
	if (packet->protocol == IPPROTO_TCP)
		packet->header_len = (void *)ip + IPV6_LEN + 13 > end ? 0 :
				     (ip[IPV6_LEN + 12] >> 4) * 4;
	return 1;
}

/*
 * Walks from the IPv6 header at packet->network to the ports. Returns 0; or -1
 * for what is not IPv6, is cut short, or has too many extension headers.
 * The key's ports are 0 for a protocol that has none.
 */
static __always_inline int parse_ipv6(struct __sk_buff *skb, struct flow_key *key,
				      struct packet *packet)
{
	__u8 ip[IPV6_LEN], ext[8];
	__u32 at = packet->network;
	__u8 next;
	int i;

	if (bpf_skb_load_bytes(skb, at, ip, sizeof(ip)) < 0 || ip[0] >> 4 != 6)
		return -1;
	__builtin_memset(key, 0, sizeof(*key));
	__builtin_memcpy(key->src, ip + IPV6_ADDRESSES, 32);
	__builtin_memcpy(&packet->first_word, ip, 4);
	packet->payload_len = ip[IPV6_PAYLOAD_LEN] << 8 | ip[IPV6_PAYLOAD_LEN + 1];
	packet->hop_limit = ip[IPV6_HOP_LIMIT];
	next = ip[IPV6_NEXT_HEADER];
	packet->next_header = next;
	packet->has_extension = 0;
	packet->later_fragment = 0;
	packet->header_len = 0;
	at += IPV6_LEN;

#pragma unroll
	for (i = 0; i < MAX_EXTENSION_HEADERS; i++) {
		if (next != NEXT_HOP_BY_HOP && next != NEXT_ROUTING &&
		    next != NEXT_FRAGMENT && next != NEXT_AH &&
		    next != NEXT_DESTINATION && next != NEXT_MOBILITY)
			break;
		if (bpf_skb_load_bytes(skb, at, ext, sizeof(ext)) < 0)
			return -1;
		packet->has_extension = 1;
		if (next == NEXT_FRAGMENT) {
			/* RFC 8200 section 4.5: the offset's 13 bits. */
			if (ext[2] || ext[3] & 0xf8)
				packet->later_fragment = 1;
			at += 8;
		} else if (next == NEXT_AH) {
			/* RFC 4302 section 2.2: 4-octet units minus two. */
			at += ((__u32)ext[1] + 2) * 4;
		} else {
			at += ((__u32)ext[1] + 1) * 8;
		}
		next = ext[0];
		if (packet->later_fragment)
			break;
	}
	packet->protocol = next;
	key->protocol = next;
	packet->transport = at;
	if (has_ports(next) && !packet->later_fragment &&
	    bpf_skb_load_bytes(skb, at, &key->src_port, 4) < 0)
		return -1;
	return 0;
}

/*
 * Like parse_ipv6(), and finds the IPv6 header itself, behind up to two VLAN
 * tags that stand in the data. (A tag that the NIC is to insert is beside the
 * data, and skb->protocol is that of what it carries.)
 */
static __always_inline int parse_any(struct __sk_buff *skb, __u32 l2,
				     struct flow_key *key, struct packet *packet)
{
	__be16 protocol = skb->protocol;
	__be16 tag[2];		/* TCI, then the next EtherType */
	__u32 at = l2;
	int i;

	packet->tags_in_data = 0;
#pragma unroll
	for (i = 0; i < MAX_TAGS_IN_DATA; i++) {
		if (protocol != bpf_htons(ETH_P_8021Q) &&
		    protocol != bpf_htons(ETH_P_8021AD))
			break;
		if (!l2 || bpf_skb_load_bytes(skb, at, tag, sizeof(tag)) < 0)
			return -1;
		protocol = tag[1];
		at += sizeof(tag);
		packet->tags_in_data++;
	}
	if (protocol != bpf_htons(ETH_P_IPV6))
		return -1;
	packet->network = at;
	return parse_ipv6(skb, key, packet);
}

#endif

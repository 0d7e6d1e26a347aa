// SPDX-License-Identifier: GPL-2.0-only
/*
 * For "glowd selftest", on ingress: a capture of the IPv6 packets that arrive,
 * for which packet(7) would want CAP_NET_RAW; and programs that load, or do what
 * they are for, only where the kernel has what the marker uses.
 *
 * The verdict is always TC_ACT_UNSPEC, but for those that are only tried.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

/* Whether the kernel knows gso_size in __sk_buff (5.7). */
const volatile __u32 has_gso_size SEC(".rodata.selftest") = 0;

/* In the order of arrival, whichever CPUs they arrive on. A queue is of 4.20. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 4096);
	__type(value, struct captured);
} captured SEC(".maps");

/* How many packets found no place in the queue. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

SEC("tc")
int capture(struct __sk_buff *skb)
{
	struct captured packet = {};
	__u32 zero = 0, len = skb->len;
	__u64 rest, *count;
	int failed;

	if (skb->protocol != bpf_htons(ETH_P_IPV6))
		return TC_ACT_UNSPEC;
	packet.len = len;
	if (has_gso_size)
		packet.gso_size = skb->gso_size;
	if (len >= CAPTURED_DATA) {
		failed = bpf_skb_load_bytes(skb, 0, packet.data, CAPTURED_DATA) < 0;
	} else {
		/*
		 * Says nothing new, but so that every verifier understands; in 64 bits,
		 * or what is compared is another register than what is passed.
		 */
		rest = len & (CAPTURED_DATA - 1);
		barrier_var(rest);
		failed = rest < ETH_HLEN ||
			 bpf_skb_load_bytes(skb, 0, packet.data, rest) < 0;
	}
	if (failed || bpf_map_push_elem(&captured, &packet, BPF_ANY) < 0) {
		count = bpf_map_lookup_elem(&lost, &zero);
		if (count)
			__sync_fetch_and_add(count, 1);
	}
	return TC_ACT_UNSPEC;
}

SEC("tc")
int try_gso_size(struct __sk_buff *skb)
{
	return skb->gso_size ? TC_ACT_OK : TC_ACT_UNSPEC;
}

/* Not static: the verifier looks at it by itself, which it does from 5.6 on. */
__noinline int own_function(struct __sk_buff *skb, __u32 at)
{
	__u8 octet;

	if (bpf_skb_load_bytes(skb, at, &octet, 1) < 0)
		return 0;
	return octet;
}

SEC("tc")
int try_function(struct __sk_buff *skb)
{
	return own_function(skb, skb->len - 1) ? TC_ACT_OK : TC_ACT_UNSPEC;
}

/* The flag is of 4.20; others are refused when the program runs. */
SEC("tc")
int try_adjust_room(struct __sk_buff *skb)
{
	return bpf_skb_adjust_room(skb, 8, BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO);
}

char LICENSE[] SEC("license") = "GPL";

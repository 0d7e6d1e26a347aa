/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Counts the packets of flows and rules. Each CPU has counters of its own, so they need no atomic
 * instructions: programs of tc run with bottom halves off, and nothing else on the CPU
 * that counts comes between a load and its store.
 */
#ifndef GLOWD_COUNT_H
#define GLOWD_COUNT_H

#include "parse.h"

/*
 * An array with a block for each CPU, and not one of the kernel's per-CPU arrays: those
 * take a tenth of a second to make, and cannot be mapped.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);	/* slots times CPUs, set before load */
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct count);
} counts SEC(".maps");

/* How many octets are behind the header of TCP or UDP. */
static __always_inline __u32 payload_of(struct __sk_buff *skb, const struct packet *packet)
{
	__u32 before = packet->transport + packet->header_len, end = skb->len;
	__u8 offset;

	if (!packet->header_len) {
		before = packet->transport + UDP_LEN;
		if (packet->protocol == IPPROTO_TCP) {
			if (bpf_skb_load_bytes(skb, packet->transport + 12, &offset, 1) < 0)
				return 0;
			before = packet->transport + (offset >> 4) * 4;
		}
	}
	/* Not what a link may have put behind it; 0: a length that is too large for it. */
	if (packet->payload_len)
		end = packet->network + IPV6_LEN + packet->payload_len;
	return end > before ? end - before : 0;
}

/* The counters of that slot on this CPU; NULL: there are none. */
static __always_inline struct count *counters(__u32 slot,
					      const volatile struct settings *settings)
{
	__u32 slots = settings->slots, index;

	if (slot >= slots)
		return NULL;
	index = bpf_get_smp_processor_id() * slots + slot;
	return bpf_map_lookup_elem(&counts, &index);
}

/* Returns how many octets were counted. @arrives is a constant: on ingress. */
static __always_inline __u32 count(struct __sk_buff *skb, const struct packet *packet,
				   __u32 slot, const volatile struct settings *settings,
				   int arrives)
{
	struct count *count = counters(slot, settings);
	__u32 octets;

	if (!count)
		return 0;
	octets = payload_of(skb, packet);
	if (arrives) {
		count->received_packets++;
		count->received_octets += octets;
	} else {
		count->packets++;
		count->octets += octets;
	}
	/* The kernel reads a word for it, where every clock would cost ten times that. */
	count->last = bpf_jiffies64();
	return octets;
}

/*
 * Says of a packet that was counted before it could be marked that it was not. So one that
 * is marked, as nearly all are, is counted once, by what was read before it grew: a VLAN tag
 * may have moved since then.
 */
static __always_inline void count_as_unmarked(__u32 octets, __u32 slot,
					      const volatile struct settings *settings)
{
	struct count *count = counters(slot, settings);

	if (!count)
		return;
	count->unmarked_packets++;
	count->unmarked_octets += octets;
}

#endif

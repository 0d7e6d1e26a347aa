/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Somebody else's filter: counts packets and accepts them. Needs no header but
 * the kernel's.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#define SEC(name) __attribute__((section(name), used))

static void *(*const lookup)(void *map, const void *key) =
	(void *)BPF_FUNC_map_lookup_elem;

struct {
	int (*type)[BPF_MAP_TYPE_ARRAY];
	int (*max_entries)[1];
	__u32 *key;
	__u64 *value;
} packets SEC(".maps");

SEC("tc")
int count(struct __sk_buff *skb)
{
	__u32 zero = 0;
	__u64 *seen = lookup(&packets, &zero);

	if (seen && skb->len)
		__sync_fetch_and_add(seen, 1);
	return TC_ACT_OK;
}

char _license[] SEC("license") = "GPL";

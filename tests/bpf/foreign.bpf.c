// SPDX-License-Identifier: GPL-2.0-only
/*
 * Somebody else's sock_ops program: has ECN used, and asks to be told of round-trip
 * times. Counts connects, and those connections that still are as it has set them
 * when they are established.
 */
#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_sock_ops_cb_flags_set)(struct bpf_sock_ops *ctx, int flags) = (void *)59;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} calls SEC(".maps");

SEC("sockops")
int foreign(struct bpf_sock_ops *ctx)
{
	__u32 key = 0;
	__u64 *count;

	switch (ctx->op) {
	case BPF_SOCK_OPS_NEEDS_ECN:
		ctx->reply = 1;
		return 1;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags |
						       BPF_SOCK_OPS_RTT_CB_FLAG);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		if (!(ctx->bpf_sock_ops_cb_flags & BPF_SOCK_OPS_RTT_CB_FLAG))
			return 1;
		key = 1;
		break;
	default:
		return 1;
	}
	count = bpf_map_lookup_elem(&calls, &key);
	if (count)
		(*count)++;
	return 1;
}

char LICENSE[] SEC("license") = "GPL";

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the sock_ops programs share that look at connections: their ends, which of them
 * are of glowd's network namespace, and the count of records that found no room.
 */
#ifndef GLOWD_CONNECTION_H
#define GLOWD_CONNECTION_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "kernel.h"

#define AF_INET 2

/*
 * The inode of glowd's network namespace: a cgroup has the connections of all. Chosen
 * before load.
 */
const volatile __u64 here SEC(".rodata.here") = 0;

/* How many records found no room in their ring buffer. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

static __always_inline void count_lost(void)
{
	__u32 zero = 0;
	__u64 *count = bpf_map_lookup_elem(&lost, &zero);

	if (count)
		(*count)++;
}

static __always_inline int is_here(struct sock *sk)
{
	return sk->__sk_common.skc_net.net->ns.inum == here;
}

/* Has changes of the socket's state be told, beside what others have asked to be told. */
static __always_inline void hear_of_states(struct bpf_sock_ops *ctx)
{
	int told = ctx->bpf_sock_ops_cb_flags;

	if (!(told & BPF_SOCK_OPS_STATE_CB_FLAG))
		bpf_sock_ops_cb_flags_set(ctx, told | BPF_SOCK_OPS_STATE_CB_FLAG);
}

static __always_inline void set_mapped(__u32 to[4], __u32 ip4)
{
	to[0] = 0;
	to[1] = 0;
	to[2] = bpf_htonl(0xffff);
	to[3] = ip4;
}

/* The addresses of both ends, IPv4 as IPv4-mapped IPv6. */
static __always_inline void set_ends(struct bpf_sock_ops *ctx, __u32 local[4], __u32 remote[4])
{
	if (ctx->family == AF_INET) {
		set_mapped(local, ctx->local_ip4);
		set_mapped(remote, ctx->remote_ip4);
	} else {
		local[0] = ctx->local_ip6[0];
		local[1] = ctx->local_ip6[1];
		local[2] = ctx->local_ip6[2];
		local[3] = ctx->local_ip6[3];
		remote[0] = ctx->remote_ip6[0];
		remote[1] = ctx->remote_ip6[1];
		remote[2] = ctx->remote_ip6[2];
		remote[3] = ctx->remote_ip6[3];
	}
}

#endif

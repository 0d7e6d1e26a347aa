/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The ends of a connection, as sock_ops programs are told them.
 */
#ifndef GLOWD_CONNECTION_H
#define GLOWD_CONNECTION_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define AF_INET 2

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

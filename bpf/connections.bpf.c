// SPDX-License-Identifier: GPL-2.0-only
/*
 * Reports TCP connections as they open, are established and close, for plugins
 * that find flows by themselves. A sock_ops program, attached to a cgroup.
 *
 * It only watches. It returns 1 always and leaves `reply` alone, which together
 * mean "no opinion" and keep what other programs of the cgroup have replied; of a
 * socket it sets nothing but that its changes of state are told too, beside what
 * others have asked to be told.
 */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "connection.h"
#include "kernel.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1024 * 1024);	/* octets: 10,082 reports */
} reports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct connection_filter);
} filter SEC(".maps");

/* Where cgroups are that connections were of, lately. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct group);
} groups SEC(".maps");

#define GROUP_DEPTH 16

static __always_inline int is_loopback(const __u32 ip[4])
{
	if (ip[0] || ip[1])
		return 0;
	if (ip[2] == bpf_htonl(0xffff))
		return (ip[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !ip[2] && ip[3] == bpf_htonl(1);
}

/* Ports in host order. */
static __always_inline int is_wanted(const struct connection_filter *wanted, __u32 local,
				     __u32 remote)
{
	__u32 i;

	if (!wanted->count)
		return 1;
	/* Bounded loops are of 5.3. */
#pragma clang loop unroll(disable)
	for (i = 0; i < PORT_RANGES && i < wanted->count; i++) {
		const struct port_ranges *range = &wanted->ranges[i];

		if (local >= range->local_first && local <= range->local_last &&
		    remote >= range->remote_first && remote <= range->remote_last)
			return 1;
	}
	return 0;
}

/* A socket's cgroup; none if it has none of v2. */
static __always_inline struct cgroup *cgroup_of(struct sock *sk)
{
	struct sock_cgroup_data___before_5_15 *data;
	__u64 val;

	if (bpf_core_field_exists(sk->sk_cgrp_data.cgroup))
		return BPF_CORE_READ(sk, sk_cgrp_data.cgroup);
	data = (void *)&sk->sk_cgrp_data;
	val = BPF_CORE_READ(data, val);
	/* The last bit: classes of cgroup v1 instead. The one before: not counted. */
	if (val & 1)
		return 0;
	return (struct cgroup *)(val & ~3ULL);
}

/*
 * Says where a cgroup is, and those around it, unless that is known: user space may
 * come too late for one that is removed as soon as its processes are gone. Groups
 * nested deeper are told in part.
 */
static __always_inline void tell_groups(struct cgroup *cgroup)
{
	struct cgroup *parent;
	struct group group;
	__u64 number;
	__u32 i;

#pragma clang loop unroll(disable)
	for (i = 0; i < GROUP_DEPTH && cgroup; i++) {
		parent = BPF_CORE_READ(cgroup, self.parent, cgroup);
		number = BPF_CORE_READ(cgroup, kn, id);
		/* The look-up also counts as use, which keeps it. */
		if (!bpf_map_lookup_elem(&groups, &number)) {
			__builtin_memset(&group, 0, sizeof(group));
			if (parent) {
				group.parent = BPF_CORE_READ(parent, kn, id);
				if (bpf_probe_read_kernel_str(group.name, sizeof(group.name),
							      BPF_CORE_READ(cgroup, kn, name)) <= 0)
					return;
			}
			bpf_map_update_elem(&groups, &number, &group, BPF_ANY);
		}
		cgroup = parent;
	}
}

/* Whether the connection is one that user space wants to know of. */
static __always_inline int report(struct bpf_sock_ops *ctx, __u8 change, __u8 passive)
{
	__u32 local[4], remote[4], local_port, remote_port, zero = 0;
	struct connection_filter *wanted;
	struct connection *connection;
	struct cgroup *cgroup;
	struct sock *sk;

	wanted = bpf_map_lookup_elem(&filter, &zero);
	local_port = ctx->local_port;
	remote_port = bpf_ntohl(ctx->remote_port);
	if (!wanted || !remote_port || !is_wanted(wanted, local_port, remote_port))
		return 0;
	set_ends(ctx, local, remote);
	if (wanted->no_loopback && (is_loopback(local) || is_loopback(remote)))
		return 0;
	if (!ctx->sk)
		return 0;
	sk = (struct sock *)bpf_skc_to_tcp_sock(ctx->sk);
	if (!sk || !is_here(sk))
		return 0;
	cgroup = cgroup_of(sk);
	if (wanted->groups && change != CONNECTION_CLOSED)
		tell_groups(cgroup);
	connection = bpf_ringbuf_reserve(&reports, sizeof(*connection), 0);
	if (!connection) {
		count_lost();
		return 1;
	}
	__builtin_memset(connection, 0, sizeof(*connection));
	connection->time = bpf_ktime_get_ns();
	connection->cookie = bpf_get_socket_cookie(ctx);
	__builtin_memcpy(connection->local, local, sizeof(local));
	__builtin_memcpy(connection->remote, remote, sizeof(remote));
	connection->local_port = bpf_htons(local_port);
	connection->remote_port = bpf_htons(remote_port);
	connection->uid = sk->sk_uid.val;
	connection->cgroup = BPF_CORE_READ(cgroup, kn, id);
	connection->interface = sk->__sk_common.skc_bound_dev_if;
	connection->change = change;
	connection->passive = passive;
	/* The only one that is in the context of the process that it is about. */
	if (change == CONNECTION_OPENED) {
		struct task_struct *task = (void *)bpf_get_current_task();

		connection->pid = BPF_CORE_READ(task, tgid);
		BPF_CORE_READ_INTO(&connection->command, task, group_leader, comm);
	}
	bpf_ringbuf_submit(connection, 0);
	return 1;
}

SEC("sockops")
int connections(struct bpf_sock_ops *ctx)
{
	__u8 change = CONNECTION_ESTABLISHED, passive = 0;

	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		/* In connect(2), before the SYN is sent. */
		change = CONNECTION_OPENED;
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		/* Not at the SYN, which anybody can send from any address. */
		passive = 1;
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[1] != BPF_TCP_CLOSE)
			return 1;
		change = CONNECTION_CLOSED;
		break;
	default:
		return 1;
	}
	if (!report(ctx, change, passive))
		return 1;
	hear_of_states(ctx);
	return 1;
}

char LICENSE[] SEC("license") = "GPL";

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The few structures of the kernel that programs look into, with the fields that
 * they read and no others: where these are, libbpf finds out from the running
 * kernel's own types (BTF) before it loads a program.
 */
#ifndef GLOWD_KERNEL_H
#define GLOWD_KERNEL_H

#include <linux/types.h>

#define TASK_COMM_LEN 16

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ns_common {
	__u32 inum;		/* as in /proc/PID/ns/net */
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	volatile unsigned char skc_state;
	int skc_bound_dev_if;
	possible_net_t skc_net;
	unsigned long skc_flags;
};

typedef struct {
	__u32 val;
} kuid_t;

struct kernfs_node {
	__u64 id;		/* 5.5: a number; the inode of the cgroup's folder */
	const char *name;
};

struct cgroup;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
};

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
};

struct sock_cgroup_data {
	struct cgroup *cgroup;	/* 5.15 */
};

/* What is behind the underscores is not part of the name. */
struct sock_cgroup_data___before_5_15 {
	__u64 val;		/* the same, unless its last bit is set */
};

struct sock {
	struct sock_common __sk_common;
	kuid_t sk_uid;
	struct sock_cgroup_data sk_cgrp_data;
	unsigned long sk_pacing_rate;
	unsigned long sk_max_pacing_rate;
};

struct task_struct {
	__s32 tgid;
	struct task_struct *group_leader;
	char comm[TASK_COMM_LEN];
};

#pragma clang attribute pop

#endif

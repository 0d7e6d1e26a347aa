// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tells of every socket which processes hold it, for rules about commands and
 * control groups: an iterator over the open files of all processes (5.8), for what
 * /proc/PID/fd wants CAP_SYS_PTRACE. It reads only.
 */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

#define S_IFMT 0170000
#define S_IFSOCK 0140000

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct kernfs_node {
	__u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct css_set {
	struct cgroup *dfl_cgrp;	/* of version 2 */
};

struct task_struct {
	__s32 tgid;
	struct task_struct *group_leader;
	struct css_set *cgroups;
	char comm[16];
};

struct inode {
	unsigned short i_mode;
	unsigned long i_ino;
};

struct file {
	struct inode *f_inode;
};

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};

#pragma clang attribute pop

SEC("iter/task_file")
int holders(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket_holder holder = {};

	if (!task || !file || (file->f_inode->i_mode & S_IFMT) != S_IFSOCK)
		return 0;
	holder.inode = file->f_inode->i_ino;
	holder.pid = task->tgid;
	holder.cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	BPF_CORE_READ_INTO(&holder.command, task, group_leader, comm);
	/* What does not fit is told again when the reader has made room. */
	bpf_seq_write(ctx->meta->seq, &holder, sizeof(holder));
	return 0;
}

char LICENSE[] SEC("license") = "GPL";

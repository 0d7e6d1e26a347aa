// SPDX-License-Identifier: GPL-2.0-only
/* What a program costs that does nothing: the floor under the marker's figures. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

__attribute__((section("tc"), used))
int empty(struct __sk_buff *skb)
{
	return TC_ACT_UNSPEC;
}

char LICENSE[] __attribute__((section("license"), used)) = "GPL";

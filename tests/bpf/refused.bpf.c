/* SPDX-License-Identifier: GPL-2.0-only */
/* Reads a packet without a look at its length: the verifier refuses it. */
#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))

SEC("tc")
int refused(struct __sk_buff *skb)
{
	return *(volatile __u8 *)(long)skb->data;
}

char _license[] SEC("license") = "GPL";

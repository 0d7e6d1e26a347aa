/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Strategy "label": the tag in the flow label, RFC 8200 section 3.
 *
 * The first word of the header is version (4 bits), traffic class (8), label
 * (20). It is read, changed in its label, and written as a whole, so that DSCP
 * and ECN stay what they are. No checksum covers it.
 */
#ifndef GLOWD_LABEL_H
#define GLOWD_LABEL_H

#include "parse.h"

#define LABEL_BITS 20
#define LABEL_MASK 0x000fffff

/* Returns 0, or -1 if the kernel would not let us write. */
static __always_inline int write_label(struct __sk_buff *skb, const struct packet *packet,
				       __u32 label)
{
	__be32 word = (packet->first_word & ~bpf_htonl(LABEL_MASK)) | bpf_htonl(label);

	if (word == packet->first_word)
		return 0;
	/*
	 * By helper, not by pointer: a program that writes packets directly
	 * gets a prologue that unshares every packet of the interface, and TCP's
	 * are always shared with its retransmission queue.
	 */
	return bpf_skb_store_bytes(skb, packet->network, &word, sizeof(word),
				   BPF_F_RECOMPUTE_CSUM) < 0 ? -1 : 0;
}

#endif

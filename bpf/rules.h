/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Rules for packets of no flow: the first that fits says the tag. Looked at only
 * when the map of flows has no entry, and not at all while there are no rules.
 *
 * User space changes them under running programs. It writes the table that is not in
 * use, then the one word that says which is: so a packet sees the rules as they were
 * or as they are.
 */
#ifndef GLOWD_RULES_H
#define GLOWD_RULES_H

#include "label.h"

/* The bits of a flow label that are entropy. */
#define LABEL_ENTROPY 0x000c0103

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * MAX_RULES);
	__type(key, __u32);
	__type(value, struct rule);
} rules SEC(".maps");

/* A struct rules_head. Volatile: it changes while a program runs. */
volatile __u64 rules_head SEC(".data.rules") = 0;

/* The key of the labels' entropy: that of glowd's own hash. */
struct entropy_key {
	__u64 half[2];
};
const volatile struct entropy_key entropy_key SEC(".rodata.entropy") = {};

union head {
	__u64 word;
	struct rules_head is;
};

static __always_inline __u64 rotate(__u64 value, int by)
{
	return value << by | value >> (64 - by);
}

#define SIP_ROUND(v0, v1, v2, v3)						\
	do {									\
		v0 += v1; v1 = rotate(v1, 13) ^ v0; v0 = rotate(v0, 32);	\
		v2 += v3; v3 = rotate(v3, 16) ^ v2;				\
		v0 += v3; v3 = rotate(v3, 21) ^ v0;				\
		v2 += v1; v1 = rotate(v1, 17) ^ v2; v2 = rotate(v2, 32);	\
	} while (0)

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define little_endian(word) (word)
#else
#define little_endian(word) __builtin_bswap64(word)
#endif

/*
 * The entropy bits for that 5-tuple, as src/entropy.rs has them: SipHash-1-3 of its 37
 * octets. So a packet's label stays when its flow gets an entry with the same tag.
 */
static __always_inline __u32 entropy_of(const struct flow_key *key)
{
	const __u64 *word = (const __u64 *)key;
	__u64 v0 = entropy_key.half[0] ^ 0x736f6d6570736575ULL;
	__u64 v1 = entropy_key.half[1] ^ 0x646f72616e646f6dULL;
	__u64 v2 = entropy_key.half[0] ^ 0x6c7967656e657261ULL;
	__u64 v3 = entropy_key.half[1] ^ 0x7465646279746573ULL;
	__u64 next;
	int i;

#pragma unroll
	for (i = 0; i < 5; i++) {
		next = little_endian(word[i]);
		/* The ports and the protocol; above them the length. */
		if (i == 4)
			next = (next & 0xffffffffffULL) | 37ULL << 56;
		v3 ^= next;
		SIP_ROUND(v0, v1, v2, v3);
		v0 ^= next;
	}
	v2 ^= 0xff;
#pragma unroll
	for (i = 0; i < 3; i++)
		SIP_ROUND(v0, v1, v2, v3);
	v0 ^= v1 ^ v2 ^ v3;
	return (v0 ^ v0 >> 32) & LABEL_ENTROPY;
}

/* To which of the classes of protocols it belongs. */
static __always_inline __u8 protocol_class(__u8 protocol)
{
	if (protocol == IPPROTO_TCP)
		return RULE_TCP;
	return protocol == IPPROTO_UDP ? RULE_UDP : RULE_OTHER;
}

/* All ones if @a is below @b, else 0; without a branch, which the compiler would like. */
static __always_inline __u64 is_below(__s64 a, __s64 b)
{
	__s64 difference = a - b;

	barrier_var(difference);
	return difference >> 63;
}

/*
 * Whether the rule fits. Without branches, so that the verifier has one way through a
 * rule and its work grows with their number only.
 */
static __always_inline int fits(const struct rule *rule, const __u64 *addresses,
				__u16 local_port, __u16 remote_port, __u8 class)
{
	__u64 miss;

	miss = (addresses[0] ^ rule->address[0]) & rule->mask[0];
	miss |= (addresses[1] ^ rule->address[1]) & rule->mask[1];
	miss |= (addresses[2] ^ rule->address[2]) & rule->mask[2];
	miss |= (addresses[3] ^ rule->address[3]) & rule->mask[3];
	miss |= is_below(local_port, rule->local_first);
	miss |= is_below(rule->local_last, local_port);
	miss |= is_below(remote_port, rule->remote_first);
	miss |= is_below(rule->remote_last, remote_port);
	miss |= is_below(rule->classes & class, 1);
	return !miss;
}

/*
 * Whether the table in use is still that one. If not, it may have changed twice, and what
 * was read of it may be half of each.
 */
static __always_inline int is_still(__u8 version)
{
	union head now = { .word = rules_head };

	return now.is.version == version;
}

/* Fills in what a rule says. Its slot is of its own, for the verifier unknown. */
static __always_inline void take(struct flow_value *found, __u32 label, __u16 experiment,
				 __u8 activity)
{
	found->label = label & LABEL_MASK;
	found->experiment = experiment;
	found->activity = activity;
	found->flags = 0;
	found->slot = label >> LABEL_BITS;
}

/*
 * Finds the first rule that fits a packet of no flow, and fills in its tag, the label
 * without entropy. Returns 1, or 0 if there is none.
 */
static __always_inline int find_rule(const struct flow_key *key, struct flow_value *found)
{
	union head head = { .word = rules_head };
	__u16 local_port, remote_port;
	const struct rule *rule;
	__u32 index;
	__u8 class;
	int i;

	if (!head.word)
		return 0;
	if (head.is.version) {
		index = (head.is.version & 1) * MAX_RULES;
		local_port = bpf_ntohs(key->src_port);
		remote_port = bpf_ntohs(key->dst_port);
		class = protocol_class(key->protocol);
		for (i = 0; i < MAX_RULES; i++, index++) {
			/*
			 * Each by a look-up of its own: so what is behind the loop is the
			 * same for the verifier whichever rule it comes from.
			 */
			rule = bpf_map_lookup_elem(&rules, &index);
			if (!rule || !rule->label)
				break;
			if (!fits(rule, (const __u64 *)key, local_port, remote_port, class))
				continue;
			take(found, rule->label, rule->experiment, rule->activity);
			return is_still(head.is.version);
		}
		/* Halves of two tables may have no rule where each of them has one. */
		if (!is_still(head.is.version))
			return 0;
	}
	if (!head.is.label)
		return 0;
	take(found, head.is.label, head.is.experiment, head.is.activity);
	return 1;
}

#endif

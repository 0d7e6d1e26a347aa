/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What user space and the programs share: map keys and values, the settings, the
 * reasons. Mirrored in src/sys/abi.rs, where a test reads this
 * file and compares.
 *
 * Fixed width, explicit padding, a size assertion each. Fields in network order
 * say so by their type.
 */
#ifndef GLOWD_ABI_H
#define GLOWD_ABI_H

#include <linux/types.h>

/* Map "flows": hash. */
struct flow_key {
	__u8 src[16];
	__u8 dst[16];
	__be16 src_port;
	__be16 dst_port;
	__u8 protocol;		/* IPPROTO_TCP or IPPROTO_UDP */
	__u8 pad[3];		/* zero */
};
_Static_assert(sizeof(struct flow_key) == 40, "flow_key");

/* Set by the ingress program: the path's MTU leaves no room for a header. */
#define FLOW_NO_ROOM 1

struct flow_value {
	__u32 label;		/* flow label: tag and entropy, 20 bits; 0: none */
	__u16 experiment;	/* 1 to 511 */
	__u8 activity;		/* 0 to 63 */
	__u8 flags;		/* FLOW_* */
	__u32 slot;		/* where its packets are counted; from slots on: nowhere */
};
_Static_assert(sizeof(struct flow_value) == 12, "flow_value");

/* flow_value.slot of what is counted nowhere. */
#define NO_SLOT 0xffffffff

/*
 * Map "counts": array, mapped by user space: for each CPU a block of settings.slots, of
 * which the first RULE_SLOTS are for rules and the rest for flows.
 * Never set back: who gives a slot to another subtracts what was there.
 */
struct count {
	__u64 packets;		/* that left; a GSO packet is one */
	__u64 octets;		/* of their payload, behind the header of TCP or UDP */
	__u64 received_packets;	/* that arrived; those that GRO has joined are one */
	__u64 received_octets;
	__u64 last;		/* when the last one was, in jiffies */
	__u64 unmarked_packets;	/* of those that left: without a mark */
	__u64 unmarked_octets;
};
_Static_assert(sizeof(struct count) == 56, "count");

/*
 * Map "rules": array of two tables with so many rules each. One is in use, up to its
 * first rule without a label.
 */
#define MAX_RULES 64

/* The slots of map "counts" that rules have: one for each place, and for the last one's. */
#define RULE_SLOTS (2 * MAX_RULES + 64)

/* rule.classes: which protocols it is for. */
#define RULE_TCP 1
#define RULE_UDP 2
#define RULE_OTHER 4

/* What tag packets of no flow carry. All conditions hold. */
struct rule {
	__u64 address[4];	/* source, then destination; in network order */
	__u64 mask[4];		/* which of their bits have to be so; likewise */
	__u16 local_first;	/* source port, and the last of the range */
	__u16 local_last;
	__u16 remote_first;	/* destination port */
	__u16 remote_last;
	__u32 label;		/* without entropy; above its 20 bits the slot; 0: no rule */
	__u16 experiment;	/* 1 to 511 */
	__u8 activity;		/* 0 to 63 */
	__u8 classes;		/* RULE_* */
};
_Static_assert(sizeof(struct rule) == 80, "rule");

/*
 * Section ".data.rules": which table is in use, and the rule behind it, which fits
 * every packet. Eight octets, aligned, so that they change at once; all zero: no rules.
 */
struct rules_head {
	__u32 label;		/* likewise; 0: there is no such rule */
	__u16 experiment;
	__u8 activity;
	__u8 version;		/* 0: no table; else its lowest bit says which */
};
_Static_assert(sizeof(struct rules_head) == 8, "rules_head");

/* settings.strategy */
#define STRATEGY_LABEL 0
#define STRATEGY_HOP_BY_HOP 1
#define STRATEGY_DESTINATION 2
#define STRATEGY_HOP_BY_HOP_DESTINATION 3

/* settings.count_received */
#define COUNT_NONE 0
#define COUNT_UDP 1
#define COUNT_ALL 2

/* Section ".rodata.settings": chosen before load, constant for the verifier. */
struct settings {
	__u8 strategy;
	__u8 debug;		/* bpf_printk a line per packet of a flow */
	__u8 check_mtu;		/* the kernel has bpf_check_mtu (5.12) */
	__u8 count_received;	/* COUNT_*: of packets that arrive */
	__u32 slots;		/* for each CPU; 0: nothing is counted (before Linux 5.6) */
};
_Static_assert(sizeof(struct settings) == 8, "settings");

/*
 * Map "mtus": hash, __u32 interface index to __u32 MTU. Looked at only on a
 * kernel without bpf_check_mtu.
 */

/*
 * Map "unmarked": per-CPU array of __u64, packets that went out unmarked
 * although they belong (or, for later fragments, may belong) to a flow.
 */
enum unmarked_reason {
	UNMARKED_FRAGMENT,	/* not a first fragment, so without ports */
	UNMARKED_HOP_BY_HOP,	/* has a hop-by-hop header; a second is illegal */
	UNMARKED_EXTENSION,	/* has an extension header where ours would go */
	UNMARKED_MTU,		/* would exceed the interface's MTU */
	UNMARKED_PATH_MTU,	/* would exceed the path's MTU */
	UNMARKED_LENGTH,	/* payload length is a jumbogram's or would overflow */
	UNMARKED_VLAN,		/* more VLAN tags than the kernel lets us move */
	UNMARKED_GSO,		/* a GSO type that cannot grow a header */
	UNMARKED_KERNEL,	/* a helper refused: no memory */
	UNMARKED_REASONS,
};

/* Of a packet that "glowd selftest" captures: enough for all headers of ours. */
#define CAPTURED_DATA 128

/* Map "captured" of the selftest's programs: queue. */
struct captured {
	__u32 len;		/* of the packet, Ethernet header included */
	__u32 gso_size;		/* payload of a segment; 0: not GSO, or unknown */
	__u8 data[CAPTURED_DATA];	/* as it begins; zeroes behind its end */
};
_Static_assert(sizeof(struct captured) == 8 + CAPTURED_DATA, "captured");

/* What processes.bpf.c writes of each open file that is a socket. */
struct socket_holder {
	__u64 cgroup;		/* id of the process's, of version 2 */
	__u32 inode;		/* of the socket */
	__u32 pid;		/* of the process that has it open */
	char command[16];	/* of that process; ends in a NUL */
};
_Static_assert(sizeof(struct socket_holder) == 32, "socket_holder");

/* connection.change */
#define CONNECTION_OPENED 1	/* before its SYN has left */
#define CONNECTION_ESTABLISHED 2
#define CONNECTION_CLOSED 3

/* A record of ring buffer "reports" of connections.bpf.c. */
struct connection {
	__u64 time;		/* CLOCK_MONOTONIC, ns */
	__u64 cookie;		/* of the socket: SO_COOKIE */
	__u64 cgroup;		/* number of the socket's; 0: unknown */
	__u8 local[16];		/* IPv4 as IPv4-mapped IPv6 */
	__u8 remote[16];
	__be16 local_port;
	__be16 remote_port;
	__u32 uid;		/* of the socket */
	__u32 pid;		/* of the process that opens it; 0: unknown */
	__u8 change;		/* CONNECTION_OPENED ... */
	__u8 passive;		/* 1: the other end has opened it */
	__u8 pad[2];		/* zero */
	char command[16];	/* of that process; ends in a NUL */
	__u32 interface;	/* that the socket is bound to; 0: none */
	__u32 pad_too;		/* zero */
};
_Static_assert(sizeof(struct connection) == 96, "connection");

/* Ports in host order; both ends of a range belong to it. */
struct port_ranges {
	__u16 local_first;
	__u16 local_last;
	__u16 remote_first;
	__u16 remote_last;
};
_Static_assert(sizeof(struct port_ranges) == 8, "port_ranges");

#define PORT_RANGES 16

/*
 * Map "filter" of connections.bpf.c: array of one. A connection is reported if
 * its ports are in one of the ranges, or if there are none.
 */
struct connection_filter {
	__u32 count;		/* of the ranges */
	__u32 no_loopback;	/* 1: none from or to 127.0.0.0/8 and ::1 */
	__u32 groups;		/* 1: tell where their control groups are (map "groups") */
	__u32 pad;		/* zero */
	struct port_ranges ranges[PORT_RANGES];
};
_Static_assert(sizeof(struct connection_filter) == 16 + 8 * PORT_RANGES, "connection_filter");

#define GROUP_NAME 256

/* Map "groups" of connections.bpf.c, by the number of a control group: where it is. */
struct group {
	__u64 parent;		/* number of the group that it is in; 0: it is the root */
	char name[GROUP_NAME];	/* of its folder; ends in a NUL */
};
_Static_assert(sizeof(struct group) == 8 + GROUP_NAME, "group");

/* A record of both ring buffers of skops.bpf.c. */
struct tcp_sample {
	struct flow_key key;	/* from here to the other end; IPv4 as IPv4-mapped IPv6 */
	__u64 cookie;		/* of the socket: SO_COOKIE */
	char congestion[16];	/* name of the congestion control; ends in a NUL */
	__u8 info[232];		/* struct tcp_info as of 5.4 */
};
_Static_assert(sizeof(struct tcp_sample) == 296, "tcp_sample");

#endif

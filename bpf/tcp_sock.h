/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What skops.bpf.c reads of a TCP socket, as kernel.h has it of others. Widths and
 * bit fields are those of some version: libbpf adapts them.
 */
#ifndef GLOWD_TCP_SOCK_H
#define GLOWD_TCP_SOCK_H

#include <linux/types.h>

#include "kernel.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct inet_sock {
	struct sock sk;
};

struct tcp_congestion_ops {
	char name[16];
};

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	__u32 icsk_rto;
	__u32 icsk_pmtu_cookie;
	struct tcp_congestion_ops *icsk_ca_ops;
	__u8 icsk_ca_state : 5;
	__u8 icsk_retransmits;
	__u8 icsk_backoff;
	__u8 icsk_probes_out;
	struct {
		__u32 ato : 8;
		__u32 lrcvtime;
		__u16 rcv_mss;
	} icsk_ack;
};

struct tcp_options_received {
	__u16 tstamp_ok : 1;
	__u16 wscale_ok : 1;
	__u16 sack_ok : 3;
	__u16 snd_wscale : 4;
	__u16 rcv_wscale : 4;
};

struct minmax_sample {
	__u32 v;
};

struct minmax {
	struct minmax_sample s[3];
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 rcv_ssthresh;
	__u32 reordering;
	__u32 snd_wnd;
	__u32 mss_cache;
	__u32 snd_cwnd;
	__u32 lost_out;
	__u32 sacked_out;
	__u32 retrans_out;
	__u16 advmss;
	__u32 snd_ssthresh;
	struct minmax rtt_min;
	__u32 segs_out;
	__u32 data_segs_out;
	__u64 bytes_sent;
	__u8 chrono_type : 2;
	__u32 chrono_start;
	__u32 chrono_stat[3];
	__u32 write_seq;
	__u32 lsndtime;
	__u32 mdev_us;
	__u32 snd_nxt;
	__u32 srtt_us;
	__u32 packets_out;
	__u32 delivered;
	__u32 delivered_ce;
	__u32 rcv_tstamp;
	struct tcp_options_received rx_opt;
	__u64 bytes_received;
	__u32 segs_in;
	__u32 data_segs_in;
	__u32 rate_delivered;
	__u32 rate_interval_us;
	__u64 bytes_acked;
	struct {
		__u32 rtt_us;
	} rcv_rtt_est;
	struct {
		int space;
	} rcvq_space;
	__u32 dsack_dups;
	__u32 reord_seen;
	__u64 bytes_retrans;
	__u32 total_retrans;
	__u32 rcv_ooopack;
};

struct bpf_iter__bpf_sk_storage_map {
	struct sock *sk;
	void *value;
};

#pragma clang attribute pop

#endif

// SPDX-License-Identifier: GPL-2.0-only
/*
 * Measures TCP connections, for enricher skops: a sock_ops program that is told of
 * their states, attached to a control group, and an iterator that looks at all
 * connections that the former has seen established, when user space runs it.
 *
 * It only watches. It returns 1 always and leaves `reply` alone, which together
 * mean "no opinion" and keep what other programs of the group have replied; of a
 * socket it sets nothing but that its changes of state are told too, beside what
 * others have asked to be told. What it keeps at a socket (sk_storage) goes with that,
 * or with the map.
 *
 * Nothing runs for each packet: BPF_SOCK_OPS_RTT_CB would for each acknowledgement of every
 * connection, since none is known to be watched when it is established, and not at all
 * where data only arrives.
 */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <linux/tcp.h>

#include "abi.h"
#include "connection.h"
#include "kernel.h"
#include "tcp_sock.h"

#define IPPROTO_TCP 6
#define SOCK_DONE 1		/* bit of sk_flags: a FIN has arrived */

/* How long a jiffy is, in us. Chosen before load. */
const volatile __u32 jiffy SEC(".rodata.jiffy") = 1;

/* What is kept at a socket. */
struct seen {
	struct flow_key key;
	__u64 cookie;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct seen);
} sockets SEC(".maps");

/* A number for each of some flows. User space sets how many there may be. */
struct flows {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct flow_key);
	__type(value, __u32);
};

/* Those that are open; user space fills it. The number is nothing. */
struct flows watched SEC(".maps");

/*
 * The interfaces of sockets that are bound to one, without which they are not found by
 * their ends. Where it is full they are not.
 */
struct flows bound SEC(".maps");

/* Samples at changes of state. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1024 * 1024);	/* octets: 3,449 samples */
} changes SEC(".maps");

/* Samples that the iterator takes, which waits while there is no room. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);	/* octets; user space sets it */
} samples SEC(".maps");

_Static_assert(sizeof(struct tcp_info) >= sizeof(((struct tcp_sample *)0)->info), "tcp_info");

static __always_inline __u64 rate(__u64 packets, __u32 mss, __u32 interval)
{
	return interval ? packets * mss * 1000000 / interval : 0;
}

/* As tcp_get_info of the kernel has it, but for the state. */
static __noinline int fill(struct tcp_sample *to, struct seen *seen, struct tcp_sock *tcp)
{
	struct inet_connection_sock *icsk = &tcp->inet_conn;
	struct sock *sk = &icsk->icsk_inet.sk;
	struct tcp_info *info = (void *)to->info;
	__u32 now = bpf_jiffies64(), running;

	__builtin_memset(to->info, 0, sizeof(to->info));
	to->key = seen->key;
	to->cookie = seen->cookie;
	bpf_probe_read_kernel(&to->congestion, sizeof(to->congestion), &icsk->icsk_ca_ops->name);
	info->tcpi_ca_state = BPF_CORE_READ_BITFIELD(icsk, icsk_ca_state);
	info->tcpi_retransmits = icsk->icsk_retransmits;
	info->tcpi_probes = icsk->icsk_probes_out;
	info->tcpi_backoff = icsk->icsk_backoff;
	if (BPF_CORE_READ_BITFIELD(tcp, rx_opt.tstamp_ok))
		info->tcpi_options |= TCPI_OPT_TIMESTAMPS;
	if (BPF_CORE_READ_BITFIELD(tcp, rx_opt.sack_ok))
		info->tcpi_options |= TCPI_OPT_SACK;
	if (BPF_CORE_READ_BITFIELD(tcp, rx_opt.wscale_ok)) {
		info->tcpi_options |= TCPI_OPT_WSCALE;
		info->tcpi_snd_wscale = BPF_CORE_READ_BITFIELD(tcp, rx_opt.snd_wscale);
		info->tcpi_rcv_wscale = BPF_CORE_READ_BITFIELD(tcp, rx_opt.rcv_wscale);
	}
	info->tcpi_rto = icsk->icsk_rto * jiffy;
	info->tcpi_ato = BPF_CORE_READ_BITFIELD(icsk, icsk_ack.ato) * jiffy;
	info->tcpi_snd_mss = tcp->mss_cache;
	info->tcpi_rcv_mss = icsk->icsk_ack.rcv_mss;
	info->tcpi_unacked = tcp->packets_out;
	info->tcpi_sacked = tcp->sacked_out;
	info->tcpi_lost = tcp->lost_out;
	info->tcpi_retrans = tcp->retrans_out;
	info->tcpi_last_data_sent = (now - tcp->lsndtime) * jiffy / 1000;
	info->tcpi_last_data_recv = (now - icsk->icsk_ack.lrcvtime) * jiffy / 1000;
	info->tcpi_last_ack_recv = (now - tcp->rcv_tstamp) * jiffy / 1000;
	info->tcpi_pmtu = icsk->icsk_pmtu_cookie;
	info->tcpi_rcv_ssthresh = tcp->rcv_ssthresh;
	info->tcpi_rtt = tcp->srtt_us >> 3;
	info->tcpi_rttvar = tcp->mdev_us >> 2;
	info->tcpi_snd_ssthresh = tcp->snd_ssthresh;
	info->tcpi_snd_cwnd = tcp->snd_cwnd;
	info->tcpi_advmss = tcp->advmss;
	info->tcpi_reordering = tcp->reordering;
	info->tcpi_rcv_rtt = tcp->rcv_rtt_est.rtt_us >> 3;
	info->tcpi_rcv_space = tcp->rcvq_space.space;
	info->tcpi_total_retrans = tcp->total_retrans;
	info->tcpi_pacing_rate = sk->sk_pacing_rate;
	info->tcpi_max_pacing_rate = sk->sk_max_pacing_rate;
	info->tcpi_bytes_acked = tcp->bytes_acked;
	info->tcpi_bytes_received = tcp->bytes_received;
	info->tcpi_segs_out = tcp->segs_out;
	info->tcpi_segs_in = tcp->segs_in;
	if ((__s32)(tcp->write_seq - tcp->snd_nxt) > 0)
		info->tcpi_notsent_bytes = tcp->write_seq - tcp->snd_nxt;
	info->tcpi_min_rtt = tcp->rtt_min.s[0].v;
	info->tcpi_data_segs_in = tcp->data_segs_in;
	info->tcpi_data_segs_out = tcp->data_segs_out;
	info->tcpi_delivery_rate = rate(tcp->rate_delivered, tcp->mss_cache,
					tcp->rate_interval_us);
	running = BPF_CORE_READ_BITFIELD(tcp, chrono_type);
	now -= tcp->chrono_start;
	info->tcpi_rwnd_limited = tcp->chrono_stat[1] + (running == 2 ? now : 0);
	info->tcpi_sndbuf_limited = tcp->chrono_stat[2] + (running == 3 ? now : 0);
	info->tcpi_busy_time = tcp->chrono_stat[0] + (running == 1 ? now : 0);
	info->tcpi_busy_time += info->tcpi_rwnd_limited + info->tcpi_sndbuf_limited;
	info->tcpi_busy_time *= jiffy;
	info->tcpi_rwnd_limited *= jiffy;
	info->tcpi_sndbuf_limited *= jiffy;
	info->tcpi_delivered = tcp->delivered;
	info->tcpi_delivered_ce = tcp->delivered_ce;
	info->tcpi_bytes_sent = tcp->bytes_sent;
	info->tcpi_bytes_retrans = tcp->bytes_retrans;
	info->tcpi_dsack_dups = tcp->dsack_dups;
	info->tcpi_reord_seen = tcp->reord_seen;
	info->tcpi_rcv_ooopack = tcp->rcv_ooopack;
	info->tcpi_snd_wnd = tcp->snd_wnd;
	return 0;
}

/* Has user space know of a change of state, if it watches the connection. */
static __always_inline void tell(struct seen *seen, struct tcp_sock *tcp, __u8 state)
{
	struct tcp_sample *sample;

	if (!bpf_map_lookup_elem(&watched, &seen->key))
		return;
	sample = bpf_ringbuf_reserve(&changes, sizeof(*sample), 0);
	if (!sample) {
		count_lost();
		return;
	}
	fill(sample, seen, tcp);
	sample->info[0] = state;
	bpf_ringbuf_submit(sample, 0);
}

SEC("sockops")
int states(struct bpf_sock_ops *ctx)
{
	__u64 create = BPF_SK_STORAGE_GET_F_CREATE;
	struct bpf_sock *socket;
	struct tcp_sock *tcp;
	struct seen *seen;
	struct sock *sk;
	__u32 state = BPF_TCP_ESTABLISHED, interface;

	switch (ctx->op) {
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		break;
	case BPF_SOCK_OPS_STATE_CB:
		state = ctx->args[1];
		/* A socket may serve for another connection, of which nothing is known yet. */
		if (state == BPF_TCP_ESTABLISHED || state == BPF_TCP_SYN_SENT ||
		    state == BPF_TCP_SYN_RECV || state == BPF_TCP_LISTEN)
			return 1;
		create = 0;
		break;
	default:
		return 1;
	}
	socket = ctx->sk;
	if (!socket)
		return 1;
	tcp = bpf_skc_to_tcp_sock(socket);
	if (!tcp)
		return 1;
	sk = &tcp->inet_conn.icsk_inet.sk;
	if (!is_here(sk))
		return 1;
	/* None: there is no memory, and the connection goes unmeasured. */
	seen = bpf_sk_storage_get(&sockets, socket, 0, create);
	if (!seen)
		return 1;
	if (create) {
		set_ends(ctx, (__u32 *)seen->key.src, (__u32 *)seen->key.dst);
		seen->key.src_port = bpf_htons(ctx->local_port);
		seen->key.dst_port = bpf_htons(bpf_ntohl(ctx->remote_port));
		seen->key.protocol = IPPROTO_TCP;
		seen->cookie = bpf_get_socket_cookie(ctx);
		interface = sk->__sk_common.skc_bound_dev_if;
		if (interface)
			bpf_map_update_elem(&bound, &seen->key, &interface, BPF_ANY);
		hear_of_states(ctx);
	} else if (state == BPF_TCP_CLOSE) {
		/* Those that count what has arrived take it that a closed one had a FIN. */
		if (!(sk->__sk_common.skc_flags & (1 << SOCK_DONE)))
			state = ctx->args[0];
		/* Also of one that is not bound any more. */
		bpf_map_delete_elem(&bound, &seen->key);
	}
	tell(seen, tcp, state);
	return 1;
}

SEC("iter/bpf_sk_storage_map")
int look(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct sock *sk = ctx->sk;
	struct seen *found = ctx->value, seen;
	struct tcp_sample *sample;
	struct tcp_sock *tcp;
	__u8 state;

	if (!sk || !found)
		return 0;
	/* Kernels before 6.12 take no pointer to such a value as a key. */
	seen = *found;
	state = sk->__sk_common.skc_state;
	/* One that is closed has been told of. */
	if (state == BPF_TCP_CLOSE || state == BPF_TCP_SYN_SENT ||
	    !bpf_map_lookup_elem(&watched, &seen.key))
		return 0;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return 0;
	sample = bpf_ringbuf_reserve(&samples, sizeof(*sample), 0);
	/* The reader makes room, and comes again for this one. */
	if (!sample)
		return 1;
	fill(sample, &seen, tcp);
	sample->info[0] = state;
	bpf_ringbuf_submit(sample, BPF_RB_NO_WAKEUP);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";

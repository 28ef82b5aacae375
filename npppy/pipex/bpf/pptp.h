/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Enhanced GRE of PPTP (RFC 2637 section 4): its numbers, and what is acknowledged with them.
 */
#ifndef PIPEX_PPTP_H
#define PIPEX_PPTP_H

#include "tunnel.h"

/* Protocol Type, and what there is: Key, Sequence Number, Acknowledgment Number; Version 1.  No other bit is set. */
#define GRE_PPP 0x880b
#define GRE_KEY 0x2001
#define GRE_SEQUENCE 0x1000
#define GRE_ACKNOWLEDGMENT 0x0080

/* PPP's network protocols, compressed and encrypted ones too, which do not mind their order, come before these. */
#define PPP_CONTROL 0x4000

/* So many packets, or so many nanoseconds after the last time, are to be acknowledged at once. */
#define ACK_PACKETS 16
#define ACK_NS 250000000ll
/* So long without an acknowledgment of the peer, and what it owes one for counts as lost. */
#define LOST_NS 1000000000ll

/* Address and Control are not in it. */
struct gre {
	__be16 flags, protocol, length, call;
	__be32 number, acknowledged;	/* or the latter alone */
};

/* Octets of a frame that only acknowledges. */
#define PPTP_ACK_LEN (ETH_HLEN + sizeof(struct iphdr) + offsetof(struct gre, acknowledged))

/* Read GRE, room octets of it, that begins at a cursor.  False: no packet of a call. */
INLINE bool read_pptp(struct xdp_md *ctx, struct cursor *c, __u32 room, struct message *m)
{
	const void *data = (void *)(long)ctx->data;
	struct gre *gre = take(c, offsetof(struct gre, number));
	__u32 head = offsetof(struct gre, number), size, start, protocol;
	__be32 *field;
	__u16 flags;

	if (!gre || gre->protocol != bpf_htons(GRE_PPP))
		return false;
	flags = bpf_ntohs(gre->flags);
	if ((flags & ~(GRE_SEQUENCE | GRE_ACKNOWLEDGMENT)) != GRE_KEY)
		return false;
	m->session = gre->call;
	size = bpf_ntohs(gre->length);
	if (flags & GRE_SEQUENCE) {
		field = take(c, sizeof(*field));
		if (!field)
			return true;
		m->sequenced = 1;
		m->number = bpf_ntohl(*field);
		head += sizeof(*field);
	}
	if (flags & GRE_ACKNOWLEDGMENT) {
		field = take(c, sizeof(*field));
		if (!field)
			return true;
		m->acknowledges = 1;
		m->acknowledged = bpf_ntohl(*field);
		head += sizeof(*field);
	}
	start = c->at - data;
	if (head + size > room || start + size > ctx->data_end - ctx->data)
		return true;
	m->empty = !size;
	protocol = read_protocol(c);
	m->at = c->at - data;
	if (m->at > start + size || !m->sequenced)
		return true;
	m->size = start + size - m->at;
	m->protocol = protocol;
	return true;
}

INLINE struct pipex_seq *numbers(const struct flow *f)
{
	__u32 slot = f->slot;

	return bpf_map_lookup_elem(&seqs, &slot);
}

/* Note what a message acknowledges, if it makes sense. */
INLINE void peer_acknowledges(const struct flow *f, __u32 number, __u64 now)
{
	struct pipex_seq *seq = numbers(f);
	__u32 peer_acked;

	if (!seq)
		return;
	peer_acked = seq->peer_acked;
	if (number - peer_acked < seq->out - peer_acked) {
		seq->peer_acked = number + 1;
		if (f->session->window)
			f->stats->window_ns = now;
	}
}

/*
 * Note the number of a message, and say whether it comes too late: nothing may be delivered out of order (section 4.3),
 * but IP minds that no more here than elsewhere.
 */
INLINE bool late_pptp(const struct flow *f, const struct message *m)
{
	struct pipex_seq *seq = numbers(f);
	__s32 ahead;

	if (!seq)
		return false;
	ahead = m->number - seq->in;
	/* One from far behind may be the first of a peer that counts anew, and those after it are not to be late. */
	if (ahead >= 0 || ahead < -LATE)
		seq->in = m->number + 1;
	return ahead < -LATE || (ahead < 0 && m->protocol >= PPP_CONTROL);
}

/* The number that a packet to the peer acknowledges: that of the last that came. */
INLINE __u32 acknowledge(const struct flow *f, struct pipex_seq *seq)
{
	__u32 in = seq->in;

	if (seq->acked != in) {
		seq->acked = in;
		f->stats->ack_ns = bpf_ktime_get_coarse_ns();
	}
	return in - 1;
}

/*
 * Is something to be acknowledged that may not wait for data to the peer?  It is for the caller to see to it: so it is
 * said once, and not of all that come before the acknowledgment has left.
 */
INLINE bool acknowledge_now(const struct flow *f, __u64 now)
{
	struct pipex_seq *seq;
	__u32 in;

	if (f->session->kind != PIPEX_PPTP)
		return false;
	seq = numbers(f);
	if (!seq)
		return false;
	in = seq->in;
	if (seq->acked == in || (in - seq->acked < ACK_PACKETS && (__s64)(now - f->stats->ack_ns) < ACK_NS))
		return false;
	seq->acked = in;
	f->stats->ack_ns = now;
	return true;
}

/* Does the peer's window let data pass? */
INLINE bool in_window(const struct flow *f, __u64 now)
{
	struct pipex_seq *seq;
	__u32 outstanding;

	if (f->session->kind != PIPEX_PPTP || !f->session->window)
		return true;
	seq = numbers(f);
	if (!seq)
		return true;
	outstanding = seq->out - seq->peer_acked;
	if (outstanding >= f->session->window) {
		if ((__s64)(now - f->stats->window_ns) < LOST_NS)
			return false;
		seq->peer_acked = seq->out;
		outstanding = 0;
	}
	if (!outstanding)
		f->stats->window_ns = now;
	return true;
}

/*
 * A packet of the peer that brings an acknowledgment with it goes by npx0 to the stack with this for its source address,
 * of which pipex_ack knows it: 06, 24 bits of the slot, 16 of the generation.  npx0 sends a copy, which pipex_core makes
 * the acknowledgment.  Metadata would not do: the generic form of XDP redirects none.
 */
#define ACK_SOURCE 0x06

INLINE void mark_ack(struct ethhdr *eth, const struct flow *f)
{
	eth->h_source[0] = ACK_SOURCE;
	eth->h_source[1] = f->slot >> 16;
	*(__be16 *)(eth->h_source + 2) = bpf_htons(f->slot);
	*(__be16 *)(eth->h_source + 4) = bpf_htons(f->generation);
}

INLINE bool is_ack(const struct ethhdr *eth)
{
	return eth->h_source[0] == ACK_SOURCE;
}

INLINE __u32 ack_slot(const struct ethhdr *eth)
{
	return (__u32)eth->h_source[1] << 16 | bpf_ntohs(*(__be16 *)(eth->h_source + 2));
}

INLINE __u32 ack_generation(const struct ethhdr *eth)
{
	return bpf_ntohs(*(__be16 *)(eth->h_source + 4));
}

#endif

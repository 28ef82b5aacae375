/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Data messages of L2TP (RFC 2661 section 3.1) over UDP.  UDP checksums are not looked at: what is damaged within shows
 * in what it carries.
 */
#ifndef PIPEX_L2TP_H
#define PIPEX_L2TP_H

#include "tunnel.h"

#define L2TP_CONTROL 0x8000
#define L2TP_LENGTH 0x4000
#define L2TP_SEQUENCE 0x0800
#define L2TP_OFFSET 0x0200
#define L2TP_VERSION 0x000f
/* Flags, Tunnel ID, Session ID: no header is shorter. */
#define L2TP_LEAST 6
/* The longest offset that is taken for one. */
#define L2TP_OFFSET_MAX 2047

/* Read UDP, room octets of it, that begins at a cursor.  False: no data message. */
INLINE bool read_l2tp(struct xdp_md *ctx, struct cursor *c, __u32 room, struct message *m)
{
	const void *data = (void *)(long)ctx->data;
	struct udphdr *udp = take(c, sizeof(*udp));
	__be16 *field;
	__u32 size, start, length, protocol;
	__u16 flags;

	if (!udp)
		return false;
	size = bpf_ntohs(udp->len);
	if (size > room || size < sizeof(*udp) + L2TP_LEAST)
		return false;
	start = c->at - data;
	length = size -= sizeof(*udp);
	field = take(c, sizeof(*field));
	if (!field)
		return false;
	flags = bpf_ntohs(*field);
	if ((flags & (L2TP_CONTROL | L2TP_VERSION)) != 2)
		return false;
	if (flags & L2TP_LENGTH) {
		field = take(c, sizeof(*field));
		if (!field)
			return false;
		length = bpf_ntohs(*field);
	}
	field = take(c, 2 * sizeof(*field));
	if (!field)
		return false;
	m->tunnel = bpf_ntohs(field[0]);
	m->session = field[1];
	if (flags & L2TP_SEQUENCE) {
		field = take(c, 2 * sizeof(*field));
		if (!field)
			return true;
		m->sequenced = 1;
		m->number = bpf_ntohs(field[0]);
	}
	if (flags & L2TP_OFFSET) {
		field = take(c, sizeof(*field));
		if (!field || bpf_ntohs(*field) > L2TP_OFFSET_MAX)
			return true;
		c->at += bpf_ntohs(*field) & L2TP_OFFSET_MAX;
	}
	protocol = read_protocol(c);
	m->at = c->at - data;
	if (length > size || start + length > ctx->data_end - ctx->data || m->at > start + length)
		return true;
	m->size = start + length - m->at;
	m->protocol = protocol;
	return true;
}

/*
 * Note the number of a message, and say whether it comes too late.  Else order does not matter to IP; to another
 * protocol it may, but npppyd sees to that.
 */
INLINE bool late_l2tp(const struct flow *f, __u16 ns)
{
	__u32 slot = f->slot;
	struct pipex_seq *seq = bpf_map_lookup_elem(&seqs, &slot);
	__s16 ahead;

	if (!seq)
		return false;
	ahead = ns - seq->in;
	/* One from far behind may be the first of a peer that counts anew, and those after it are not to be late. */
	if (ahead >= 0 || ahead < -LATE)
		seq->in = (__u16)(ns + 1);
	return ahead < -LATE;
}

#endif

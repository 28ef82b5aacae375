/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Data messages of L2TP (RFC 2661 section 3.1) over UDP.  Fragments, and packets that have IP options or IPv6 extension
 * headers, are left to the stack.  UDP checksums are not looked at: what is damaged within shows in what it carries.
 */
#ifndef PIPEX_L2TP_H
#define PIPEX_L2TP_H

#include <linux/udp.h>

#include "session.h"
#include "sum.h"

#define L2TP_CONTROL 0x8000
#define L2TP_LENGTH 0x4000
#define L2TP_SEQUENCE 0x0800
#define L2TP_OFFSET 0x0200
#define L2TP_VERSION 0x000f
/* Flags, Tunnel ID, Session ID: no header is shorter. */
#define L2TP_LEAST 6
/* The longest offset that is taken for one. */
#define L2TP_OFFSET_MAX 2047

/* PPP's Address and Control. */
#define PPP_HDLC 0xff03

/* So many messages may have come after one that is still taken. */
#define LATE 64

/* A data message, by offsets in its frame. */
struct message {
	__u32 outer;		/* the IP header */
	__u32 at;		/* what PPP carries */
	__u32 size;		/* octets of that */
	__u32 tunnel;
	__be16 session;
	__u16 protocol;		/* PPP's; 0: malformed */
	__u16 ns;
	__u8 version;		/* of IP */
	__u8 sequenced;
};

/* Read the headers of Ethernet, with up to two VLAN tags, and IP; returns the octets that UDP has, 0: it is none. */
INLINE __u32 read_outer(struct cursor *c, const void *data, struct message *m)
{
	struct ethhdr *eth = take(c, sizeof(*eth));
	struct vlan *tag;
	struct iphdr *ip4;
	struct ipv6hdr *ip6;
	__u32 size;
	__be16 type;

	if (!eth)
		return 0;
	type = eth->h_proto;
#pragma unroll
	for (int i = 0; i < 2; i++) {
		if (!is_vlan(type))
			break;
		tag = take(c, sizeof(*tag));
		if (!tag)
			return 0;
		type = tag->type;
	}
	m->outer = c->at - data;
	if (type == bpf_htons(ETH_P_IP)) {
		ip4 = take(c, sizeof(*ip4));
		if (!ip4 || *(__u8 *)ip4 != 0x45 || ip4->protocol != PROTO_UDP || ip4->frag_off & bpf_htons(0x3fff))
			return 0;
		m->version = 4;
		size = bpf_ntohs(ip4->tot_len);
		return size > sizeof(*ip4) && checksum_right(ip4) ? size - sizeof(*ip4) : 0;
	}
	if (type == bpf_htons(ETH_P_IPV6)) {
		ip6 = take(c, sizeof(*ip6));
		if (!ip6 || ip6->version != 6 || ip6->nexthdr != PROTO_UDP)
			return 0;
		m->version = 6;
		return bpf_ntohs(ip6->payload_len);
	}
	return 0;
}

/* What PPP says of its packet, with and without Address and Control, and with a Protocol field of one octet or two. */
INLINE __u16 read_protocol(struct cursor *c)
{
	__u8 *octet = take(c, 1), *second;

	if (octet && *octet == PPP_HDLC >> 8) {
		second = take(c, 1);
		if (!second || *second != (PPP_HDLC & 0xff))
			return 0;
		octet = take(c, 1);
	}
	if (!octet || *octet & 1)
		return octet ? *octet : 0;
	second = take(c, 1);
	return second ? *octet << 8 | *second : 0;
}

/*
 * Read a frame.  0: it is no data message of L2TP, or none that is to be had here.  Of its own for the verifier: after
 * it, all the ways through it are one.
 */
__attribute__((noinline)) int read_message(struct xdp_md *ctx, struct message *m)
{
	struct cursor c;
	struct udphdr *udp;
	const void *data;
	__be16 *field;
	__u32 room, size, start, length, protocol;
	__u16 flags;

	if (!ctx || !m)
		return 0;
	c = cursor_open(ctx);
	data = c.at;
	room = read_outer(&c, data, m);
	udp = take(&c, sizeof(*udp));
	if (!room || !udp)
		return 0;
	size = bpf_ntohs(udp->len);
	if (size > room || size < sizeof(*udp) + L2TP_LEAST)
		return 0;
	start = c.at - data;
	length = size -= sizeof(*udp);
	field = take(&c, sizeof(*field));
	if (!field)
		return 0;
	flags = bpf_ntohs(*field);
	if ((flags & (L2TP_CONTROL | L2TP_VERSION)) != 2)
		return 0;
	if (flags & L2TP_LENGTH) {
		field = take(&c, sizeof(*field));
		if (!field)
			return 0;
		length = bpf_ntohs(*field);
	}
	field = take(&c, 2 * sizeof(*field));
	if (!field)
		return 0;
	m->tunnel = bpf_ntohs(field[0]);
	m->session = field[1];
	m->protocol = 0;
	m->sequenced = 0;
	if (flags & L2TP_SEQUENCE) {
		field = take(&c, 2 * sizeof(*field));
		if (!field)
			return 1;
		m->sequenced = 1;
		m->ns = bpf_ntohs(field[0]);
	}
	if (flags & L2TP_OFFSET) {
		field = take(&c, sizeof(*field));
		if (!field || bpf_ntohs(*field) > L2TP_OFFSET_MAX)
			return 1;
		c.at += bpf_ntohs(*field) & L2TP_OFFSET_MAX;
	}
	protocol = read_protocol(&c);
	m->at = c.at - data;
	if (length > size || start + length > ctx->data_end - ctx->data || m->at > start + length)
		return 1;
	m->size = start + length - m->at;
	m->protocol = protocol;
	return 1;
}

/* Does the message come from the session's peer, to our address?  What leaves says who is who. */
INLINE bool of_peer(struct xdp_md *ctx, const struct message *m, const struct pipex_session *s)
{
	struct cursor c = cursor_open(ctx);
	const void *outer = s->encap + ETH_HLEN;
	const struct iphdr *ip4, *ours4 = outer;
	const struct ipv6hdr *ip6, *ours6 = outer;
	const struct udphdr *udp, *ours;

	if (ours4->version != m->version || !take(&c, m->outer & 31))
		return false;
	if (m->version == 4) {
		ip4 = take(&c, sizeof(*ip4));
		if (!ip4 || ip4->saddr != ours4->daddr || ip4->daddr != ours4->saddr)
			return false;
		ours = outer + sizeof(*ip4);
	} else {
		ip6 = take(&c, sizeof(*ip6));
		if (!ip6 || !same_address(&ip6->saddr, &ours6->daddr) || !same_address(&ip6->daddr, &ours6->saddr))
			return false;
		ours = outer + sizeof(*ip6);
	}
	udp = take(&c, sizeof(*udp));
	return udp && udp->source == ours->dest && udp->dest == ours->source;
}

/*
 * Note the number of a message, and say whether it comes too late.  Else order does not matter to IP; to another
 * protocol it may, but npppyd sees to that.
 */
INLINE bool late(const struct flow *f, __u16 ns)
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

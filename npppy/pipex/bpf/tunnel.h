/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Messages of L2TP and PPTP: what both have.  Fragments, and packets that have IP options or IPv6 extension headers, are
 * left to the stack.
 */
#ifndef PIPEX_TUNNEL_H
#define PIPEX_TUNNEL_H

#include <linux/udp.h>

#include "session.h"
#include "sum.h"

/* PPP's Address and Control. */
#define PPP_HDLC 0xff03

/* So many messages may have come after one that is still taken. */
#define LATE 64

/* A data message, by offsets in its frame. */
struct message {
	__u32 outer;		/* the IP header */
	__u32 at;		/* what PPP carries */
	__u32 size;		/* octets of that */
	__u32 tunnel;		/* Tunnel ID; PPTP: 0 */
	__be16 session;		/* Session ID; Call ID */
	__u16 protocol;		/* PPP's; 0: malformed */
	__u32 number;		/* if it is sequenced */
	__u32 acknowledged;	/* if it acknowledges */
	__u8 version;		/* of IP */
	__u8 kind;
	__u8 sequenced;
	__u8 acknowledges;
	__u8 empty;		/* nothing of PPP is in it */
};

/*
 * Read the headers of Ethernet, with up to two VLAN tags, and IP; returns the octets that UDP or GRE has, 0: it is
 * neither.
 */
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
		if (!ip4 || *(__u8 *)ip4 != 0x45 || ip4->frag_off & bpf_htons(0x3fff))
			return 0;
		if (ip4->protocol == PROTO_UDP)
			m->kind = PIPEX_L2TP;
		else if (ip4->protocol == PROTO_GRE)
			m->kind = PIPEX_PPTP;
		else
			return 0;
		m->version = 4;
		size = bpf_ntohs(ip4->tot_len);
		return size > sizeof(*ip4) && checksum_right(ip4) ? size - sizeof(*ip4) : 0;
	}
	if (type == bpf_htons(ETH_P_IPV6)) {
		ip6 = take(c, sizeof(*ip6));
		if (!ip6 || ip6->version != 6 || ip6->nexthdr != PROTO_UDP)
			return 0;
		m->kind = PIPEX_L2TP;
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
	if (m->kind == PIPEX_PPTP)
		return true;
	udp = take(&c, sizeof(*udp));
	return udp && udp->source == ours->dest && udp->dest == ours->source;
}

#endif

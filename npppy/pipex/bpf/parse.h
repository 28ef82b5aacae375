/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * What frames say.  Nothing of a frame is read but through a cursor, or through a packet that was found by one.
 */
#ifndef PIPEX_PARSE_H
#define PIPEX_PARSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "pipex.h"

#define INLINE static __always_inline

/* PPP's Protocol field. */
#define PPP_IP 0x0021
#define PPP_IPV6 0x0057
#define PPP_LCP 0xc021

#define PROTO_ICMP 1
#define PROTO_IGMP 2
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_GRE 47
#define PROTO_HOPOPTS 0
#define PROTO_ROUTING 43
#define PROTO_FRAGMENT 44
#define PROTO_DSTOPTS 60
#define PROTO_ICMPV6 58

#define ICMP_REDIRECT 5

#define VLAN_ID 0x0fff
#define PPPOE_VERSION_TYPE 0x11

struct vlan {
	__be16 tci;
	__be16 type;
};

struct pppoe {
	__u8 version_type;
	__u8 code;
	__be16 id;
	__be16 length;	/* of what follows, the Protocol field included */
};

/* What is yet to be read of a frame. */
struct cursor {
	void *at;
	void *end;
};

INLINE struct cursor cursor_open(struct xdp_md *ctx)
{
	return (struct cursor){ (void *)(long)ctx->data, (void *)(long)ctx->data_end };
}

/* The next octets, or NULL if there are fewer. */
INLINE void *take(struct cursor *c, __u32 size)
{
	void *at = c->at;

	if (at + size > c->end)
		return NULL;
	c->at = at + size;
	return at;
}

INLINE __u32 left(const struct cursor *c)
{
	__u64 octets = c->end - c->at;

	/* The verifier lets pointers be subtracted in 64 bits only, and clang would do it in 32. */
	barrier_var(octets);
	return octets;
}

/*
 * Make the frame so long: cut off what is behind the packet, or put zeros there.  A driver that has no room for them
 * has its NIC pad short frames.  Packet and cursor must be found anew.
 */
INLINE bool resize(struct xdp_md *ctx, __u32 size)
{
	struct cursor c = cursor_open(ctx);
	int more = (int)size - (int)left(&c);

	return !more || !bpf_xdp_adjust_tail(ctx, more) || more > 0;
}

INLINE bool is_vlan(__be16 type)
{
	return type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD) || type == bpf_htons(ETH_P_QINQ1);
}

INLINE bool same_mac(const __u8 *a, const __u8 *b)
{
	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4]) | (a[5] ^ b[5]));
}

INLINE bool same_address(const struct in6_addr *a, const struct in6_addr *b)
{
	return !((a->s6_addr32[0] ^ b->s6_addr32[0]) | (a->s6_addr32[1] ^ b->s6_addr32[1]) |
		 (a->s6_addr32[2] ^ b->s6_addr32[2]) | (a->s6_addr32[3] ^ b->s6_addr32[3]));
}

/* A frame of a PPPoE session. */
struct frame {
	struct pipex_key key;
	struct ethhdr *eth;
	__u32 header;	/* octets before the Protocol field */
	__u32 length;	/* LENGTH: from there on */
};

/* Read all before the Protocol field.  False: no frame of a PPPoE session. */
INLINE bool read_pppoe(struct cursor *c, __u32 ifindex, struct frame *f)
{
	struct ethhdr *eth = take(c, sizeof(*eth));
	struct vlan *tag;
	struct pppoe *pppoe;
	__be16 type;

	if (!eth)
		return false;
	f->eth = eth;
	f->header = sizeof(*eth) + sizeof(*pppoe);
	f->key.kind = PIPEX_PPPOE;
	f->key.port = ifindex;
	__builtin_memcpy(f->key.peer, eth->h_source, ETH_ALEN);
	type = eth->h_proto;
	if (is_vlan(type)) {
		tag = take(c, sizeof(*tag));
		if (!tag)
			return false;
		f->header += sizeof(*tag);
		f->key.outer = bpf_ntohs(tag->tci) & VLAN_ID;
		type = tag->type;
		if (is_vlan(type)) {
			tag = take(c, sizeof(*tag));
			if (!tag)
				return false;
			f->header += sizeof(*tag);
			f->key.inner = bpf_ntohs(tag->tci) & VLAN_ID;
			type = tag->type;
		}
	}
	if (type != bpf_htons(ETH_P_PPP_SES))
		return false;
	pppoe = take(c, sizeof(*pppoe));
	if (!pppoe || pppoe->version_type != PPPOE_VERSION_TYPE || pppoe->code != 0)
		return false;
	f->key.id = pppoe->id;
	f->length = bpf_ntohs(pppoe->length);
	return true;
}

/* An IP packet whose header is sound: its length, that of its header, and that it is all there. */
struct packet {
	void *ip;
	void *end;
	__u32 size;	/* of the packet; what lies behind is padding */
	__u32 header;	/* octets before what it carries */
	__u8 version;
	__u8 protocol;	/* of what it carries; for IPv6 that of the first extension header, if there is one */
	bool fragment;
	bool first;	/* it has the header of what it carries */
};

/*
 * Read the header of the packet behind an Ethernet header, of at most room octets.  False: malformed.  The octets of
 * IPv4's checksum are left to who forwards.
 */
INLINE bool read_ip(struct xdp_md *ctx, __u8 version, __u32 room, struct packet *p)
{
	struct cursor c = cursor_open(ctx);
	struct iphdr *ip4;
	struct ipv6hdr *ip6;
	__u16 offset;

	if (!take(&c, ETH_HLEN))
		return false;
	p->ip = c.at;
	p->end = c.end;
	p->version = version;
	if (version == 4) {
		ip4 = take(&c, sizeof(*ip4));
		if (!ip4 || ip4->version != 4 || ip4->ihl < 5)
			return false;
		p->header = ip4->ihl * 4;
		p->size = bpf_ntohs(ip4->tot_len);
		p->protocol = ip4->protocol;
		offset = bpf_ntohs(ip4->frag_off);
		p->fragment = offset & 0x3fff;
		p->first = !(offset & 0x1fff);
	} else {
		ip6 = take(&c, sizeof(*ip6));
		if (!ip6 || ip6->version != 6)
			return false;
		p->header = sizeof(*ip6);
		p->size = sizeof(*ip6) + bpf_ntohs(ip6->payload_len);
		p->protocol = ip6->nexthdr;
		p->fragment = ip6->nexthdr == PROTO_FRAGMENT;
		p->first = true;
	}
	return p->header <= p->size && p->size <= room;
}

/* May routers cut it in pieces? */
INLINE bool divisible(const struct packet *p)
{
	return p->version == 4 && !(((struct iphdr *)p->ip)->frag_off & bpf_htons(0x4000));
}

/* The first octets of what the packet carries; NULL if it has fewer, or is not the first fragment. */
INLINE void *carried(const struct packet *p, __u32 size)
{
	void *at = p->ip + (p->header & 0x3f);

	if (!p->first || p->header + size > p->size || at + size > p->end)
		return NULL;
	return at;
}

/* Addresses of a link, which are never forwarded: npppyd's own business with the peer. */
INLINE bool link_local(const struct in6_addr *a)
{
	return a->s6_addr[0] == 0xfe && (a->s6_addr[1] & 0xc0) == 0x80;
}

INLINE bool link_scope(const struct ipv6hdr *ip)
{
	return link_local(&ip->saddr) || link_local(&ip->daddr) || ip->daddr.s6_addr[0] == 0xff;
}

#endif

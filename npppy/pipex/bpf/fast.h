/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * From NIC to NIC without the stack: only what may be forwarded plainly.  All else goes through the stack, which
 * answers, drops, delivers or fragments as it would without pipex: what is too big for the route (the look-up knows),
 * or goes back to npx0, from peer to peer.
 *
 * What the stack would do to a plain packet and nobody does here: netfilter, and rp_filter of npx0 and of core NICs.
 * Of packets from peers the ingress filter is the stricter one; where it is off, forged sources leave.
 */
#ifndef PIPEX_FAST_H
#define PIPEX_FAST_H

#include "filter.h"
#include "sum.h"

/* Of <sys/socket.h>. */
#define AF_INET 2
#define AF_INET6 10

/*
 * A packet of each session goes through the stack so often.  Only what uses a neighbour has the kernel probe it again;
 * a next hop that has another MAC address would never be noticed.
 */
#define NEIGHBOUR_NS (10 * 1000000000ll)

/* Not this network, loopback, multicast or reserved. */
INLINE bool plain4(__be32 address)
{
	__u32 first = bpf_ntohl(address) >> 24;

	return first != 0 && first != 127 && first < 224;
}

INLINE __u64 half6(const void *address, __u32 at)
{
	__be64 half;

	__builtin_memcpy(&half, address + at, sizeof(half));
	return bpf_be64_to_cpu(half);
}

/* Not ::, loopback, IPv4-mapped or multicast. */
INLINE bool plain6(const struct in6_addr *a)
{
	return half6(a, 0) && a->s6_addr[0] != 0xff && !link_local(a);
}

/* Routers look at some extension headers, and routing rules behind all that the kernel knows. */
INLINE bool extended(const struct packet *p)
{
	switch (p->protocol) {
	case PROTO_HOPOPTS:
	case PROTO_ROUTING:
	case PROTO_FRAGMENT:
	case PROTO_DSTOPTS:
		return true;
	}
	return false;
}

INLINE bool plain(const struct packet *p)
{
	const struct iphdr *ip4 = p->ip;
	const struct ipv6hdr *ip6 = p->ip;

	if (p->version == 4)
		return p->header == sizeof(*ip4) && ip4->ttl > 1 && plain4(ip4->saddr) && plain4(ip4->daddr) &&
		       checksum_right(ip4);
	return ip6->hop_limit > 1 && !extended(p) && plain6(&ip6->saddr) && plain6(&ip6->daddr);
}

/* One hop less to live. */
INLINE void hop(const struct packet *p)
{
	struct iphdr *ip4 = p->ip;
	struct ipv6hdr *ip6 = p->ip;
	__u32 sum;

	if (p->version == 4) {
		ip4->ttl--;
		sum = ip4->check + bpf_htons(0x0100);
		ip4->check = sum + (sum >= 0xffff);
	} else {
		ip6->hop_limit--;
	}
}

/* What the kernel knows of the packet's way, as if it had come in on npx0. */
INLINE bool look_up(struct xdp_md *ctx, const struct packet *p, __u32 npx0, struct bpf_fib_lookup *fib)
{
	const struct iphdr *ip4 = p->ip;
	const struct ipv6hdr *ip6 = p->ip;
	__be16 *ports = NULL;

	fib->ifindex = npx0;
	fib->tot_len = p->size;
	fib->l4_protocol = p->protocol;
	/* Of fragments the kernel's rules see no ports, not even of the first. */
	if (!p->fragment && (p->protocol == PROTO_TCP || p->protocol == PROTO_UDP))
		ports = carried(p, 2 * sizeof(*ports));
	if (ports) {
		fib->sport = ports[0];
		fib->dport = ports[1];
	}
	if (p->version == 4) {
		fib->family = AF_INET;
		fib->tos = ip4->tos;
		fib->ipv4_src = ip4->saddr;
		fib->ipv4_dst = ip4->daddr;
	} else {
		fib->family = AF_INET6;
		fib->flowinfo = *(__be32 *)ip6 & bpf_htonl(0x0fffffff);
		__builtin_memcpy(fib->ipv6_src, &ip6->saddr, sizeof(fib->ipv6_src));
		__builtin_memcpy(fib->ipv6_dst, &ip6->daddr, sizeof(fib->ipv6_dst));
	}
	return bpf_fib_lookup(ctx, fib, sizeof(*fib), 0) == BPF_FIB_LKUP_RET_SUCCESS;
}

/* Make a packet of the peer a frame for its next hop, to be redirected there.  False: nothing has been done. */
INLINE bool forward(struct xdp_md *ctx, const struct flow *f, const struct packet *p, __u32 npx0, __u64 now)
{
	struct bpf_fib_lookup fib = {};
	struct ethhdr *eth = p->ip - ETH_HLEN;

	if (!(f->blocks & PIPEX_FAST) || !plain(p))
		return false;
	/* Signed: another processor may have written it a tick later than we read the clock. */
	if ((__s64)(now - f->stats->stack_ns) > NEIGHBOUR_NS) {
		f->stats->stack_ns = now;
		return false;
	}
	/* From peer to peer: npx0 takes frames, but what the stack does to those that leave by it has to be done. */
	if (!look_up(ctx, p, npx0, &fib) || fib.ifindex == npx0)
		return false;
	/* It is the verdict that redirects: until then nothing has happened, and the next call has the last word. */
	if (bpf_redirect_map(&devs, fib.ifindex, XDP_ABORTED) != XDP_REDIRECT)
		return false;
	hop(p);
	__builtin_memcpy(eth->h_dest, fib.dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, fib.smac, ETH_ALEN);
	eth->h_proto = p->version == 4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	return true;
}

#endif

/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Outer headers: IP and UDP around L2TP, or IP and GRE, behind an Ethernet header without VLAN tags.
 */
#ifndef PIPEX_OUTER_H
#define PIPEX_OUTER_H

#include "fast.h"
#include "l2tp.h"
#include "mppe.h"
#include "pptp.h"

struct l2tp {
	__be16 flags, length, tunnel, session;
	__be16 ns, nr;	/* or what follows */
};

INLINE bool outer6(const struct pipex_session *s)
{
	return s->encap[ETH_HLEN] >> 4 == 6;
}

/* Where UDP or GRE begins. */
INLINE __u32 inner_at(const struct pipex_session *s)
{
	return ETH_HLEN + (outer6(s) ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
}

/* IPv4, in front of so many octets. */
INLINE bool fill_in4(struct cursor *c, __u32 length)
{
	struct iphdr *ip4 = take(c, sizeof(*ip4));

	if (!ip4)
		return false;
	ip4->tot_len = bpf_htons(sizeof(*ip4) + length);
	/* The stack may cut it in pieces. */
	ip4->id = bpf_get_prandom_u32();
	ip4->check = ~folded(ip4->check + ip4->tot_len + ip4->id);
	return true;
}

/* The sequence number of a packet; one that is encrypted has taken it with its key.  Of its own for the verifier. */
__attribute__((noinline)) int take_number(__u32 slot, bool encrypted)
{
	struct pipex_seq *seq = bpf_map_lookup_elem(&seqs, &slot);
	__u32 mine = 0;
	struct mppe_work *w = bpf_map_lookup_elem(&mppe_works, &mine);

	/* Arrays have all their elements. */
	if (!seq || !w)
		return 0;
	return encrypted ? w->sequence : __sync_fetch_and_add(&seq->out, 1);
}

/* UDP and L2TP, so many octets from an offset on. */
INLINE bool fill_in_l2tp(struct xdp_md *ctx, const struct flow *f, struct cursor *c, __u32 at, __u32 length,
			 bool encrypted)
{
	const struct pipex_session *s = f->session;
	struct udphdr *udp = take(c, sizeof(*udp));
	struct l2tp *l2tp = take(c, sizeof(*l2tp));
	int sum;

	if (!udp || !l2tp)
		return false;
	udp->len = bpf_htons(length);
	l2tp->length = bpf_htons(length - sizeof(*udp));
	if (s->seq_at)
		l2tp->ns = bpf_htons(take_number(f->slot, encrypted));
	if (s->flags & PIPEX_CHECKSUM) {
		sum = sum_frame(ctx, at, length);
		if (sum < 0)
			return false;
		sum = (__u16)~folded(sum + udp->len);
		/* 0 would mean that there is none. */
		udp->check = sum ? sum : 0xffff;
	}
	return true;
}

/* GRE, so many octets. */
INLINE bool fill_in_pptp(const struct flow *f, struct cursor *c, __u32 length, bool encrypted)
{
	struct gre *gre = take(c, sizeof(*gre));
	struct pipex_seq *seq = numbers(f);

	if (!gre || !seq)
		return false;
	gre->length = bpf_htons(length - sizeof(*gre));
	gre->number = bpf_htonl(take_number(f->slot, encrypted));
	gre->acknowledged = bpf_htonl(acknowledge(f, seq));
	return true;
}

/* Fill in what varies in the headers in front of a PPP packet, which has size octets from its Protocol field on. */
INLINE bool fill_in(struct xdp_md *ctx, const struct flow *f, __u32 size, bool encrypted)
{
	const struct pipex_session *s = f->session;
	struct cursor c = cursor_open(ctx);
	__u32 at = inner_at(s), length = s->encap_len - at + size;
	struct ipv6hdr *ip6;

	if (!take(&c, ETH_HLEN))
		return false;
	if (outer6(s)) {
		ip6 = take(&c, sizeof(*ip6));
		if (!ip6)
			return false;
		ip6->payload_len = bpf_htons(length);
	} else if (!fill_in4(&c, length)) {
		return false;
	}
	return s->kind == PIPEX_PPTP ? fill_in_pptp(f, &c, length, encrypted) :
				       fill_in_l2tp(ctx, f, &c, at, length, encrypted);
}

/*
 * The way past the stack of what is to leave with so many octets of PPP; now and then there is none, as in fast.h.
 * Nor is there where the stack is to choose a security association.
 */
INLINE bool shortcut(struct xdp_md *ctx, const struct flow *f, __u32 size, __u64 now, bool through,
		     struct bpf_fib_lookup *way)
{
	const struct pipex_session *s = f->session;
	const void *outer = s->encap + ETH_HLEN;
	const struct iphdr *ip4 = outer;
	const struct ipv6hdr *ip6 = outer;
	const struct udphdr *udp;
	__u32 shared = s->shared;
	struct pipex_config *cfg;

	if (!(f->blocks & PIPEX_FAST) || f->blocks & PIPEX_IPSEC || s->mark)
		return false;
	cfg = bpf_map_lookup_elem(&config, &shared);
	if (!cfg)
		return false;
	if ((__s64)(now - f->stats->outer_ns) > NEIGHBOUR_NS) {
		if (through)
			f->stats->outer_ns = now;
		return false;
	}
	__builtin_memset(way, 0, sizeof(*way));
	/* Where the stack would take it in. */
	way->ifindex = cfg->npx1;
	way->tot_len = s->encap_len - ETH_HLEN + size;
	way->l4_protocol = s->kind == PIPEX_PPTP ? PROTO_GRE : PROTO_UDP;
	if (outer6(s)) {
		way->family = AF_INET6;
		__builtin_memcpy(way->ipv6_src, &ip6->saddr, sizeof(way->ipv6_src));
		__builtin_memcpy(way->ipv6_dst, &ip6->daddr, sizeof(way->ipv6_dst));
		udp = outer + sizeof(*ip6);
	} else {
		way->family = AF_INET;
		way->ipv4_src = ip4->saddr;
		way->ipv4_dst = ip4->daddr;
		udp = outer + sizeof(*ip4);
	}
	if (s->kind == PIPEX_L2TP) {
		way->sport = udp->source;
		way->dport = udp->dest;
	}
	return bpf_fib_lookup(ctx, way, sizeof(*way), 0) == BPF_FIB_LKUP_RET_SUCCESS &&
	       bpf_map_lookup_elem(&devs, &way->ifindex);
}

/* Make a frame for the stack one for the next hop. */
INLINE bool take_shortcut(struct xdp_md *ctx, const struct pipex_session *s, const struct bpf_fib_lookup *way)
{
	struct cursor c = cursor_open(ctx);
	struct ethhdr *eth = take(&c, sizeof(*eth));
	struct packet p = { .ip = c.at, .version = outer6(s) ? 6 : 4 };

	if (!eth || !take(&c, sizeof(struct iphdr)))
		return false;
	__builtin_memcpy(eth->h_dest, way->dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, way->smac, ETH_ALEN);
	hop(&p);
	return true;
}

#endif
